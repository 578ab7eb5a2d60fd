"""readers.py: which file of which data set, and who reads it.

    data set             file                                        videos
    charades             charades_sta_train.txt, or JSON             videos/3MSZA.mp4
    activitynet          test.json                                   videos/v_uqiMw7tQ1Cc.mp4
    timelens-charades    charades-timelens.json                      videos/3MSZA.mp4
    timelens-activitynet activitynet-timelens.json                   videos/v_uqiMw7tQ1Cc.mp4
    got10k               val/ (list.txt), or JSON with 8 boxes       val/GOT-10k_Val_000010/….jpg
    nextgqa              nextgqa_val.json, or val.csv and two more   videos/1101/2574374895.mp4
    quality              Quality_Access_test.json                    videos/0012.mp4
    caption              captions_train.json (our own), or FIBER's   videos/…
    dream1k              metadata.json                               videos/1.mp4
    videomme             test-….parquet, or JSON                     videos/fFjv93ACGo8.mp4
    longvideobench       lvb_val.json, or parquet                    videos/86CxyhFV9MI.mp4
    mvbench              json/action_sequence.json, …                video/star/Charades_v1_480/…
    perceptiontest       mc_question_valid.json                      videos/video_8241.mp4

    python -m annotations charades FILE …    # how many examples, and the first one

The readers are in training_sets.py and benchmarks.py. Videos are looked for beside the file.
"""

import os
import re
from dataclasses import dataclass

from annotations import MARK, benchmarks, training_sets
from lib.errors import BadInput


@dataclass(frozen=True)
class Dataset:
    reader: object  # the function that reads its files
    train: str  # pattern of the training files' names in the data set's folder; None: has none
    test: str
    source: str  # where people get it
    videos: str = "videos"  # its folder of videos


HUGGING_FACE = "huggingface.co/datasets"
PUBLISHED = f"{HUGGING_FACE}/OpenGVLab/VideoChat-R1-training-annotations"

DATASETS = {
    "charades": Dataset(
        training_sets.read_charades,
        train=r"charades(_sta)?_train\b.*\.(txt|json)|train\.json",
        test=r"charades(_sta)?_test\b.*\.(txt|json)",
        source=(
            "charades_sta_train.txt and charades_sta_test.txt from github.com/jiyanggao/TALL, or"
            f" train.json and charades_test.json from {PUBLISHED}; Charades_v1_480.zip from"
            " prior.allenai.org/projects/charades, unpacked as videos/*.mp4"
        ),
    ),
    "activitynet": Dataset(
        training_sets.read_charades,
        train=None,
        test=r"(activitynet_)?(test|val_2)\b.*\.json",
        source=(
            "test.json of ActivityNet Captions' grounding split; the videos from activity-net.org"
            " as videos/v_*.mp4"
        ),
    ),
    "timelens-charades": Dataset(
        training_sets.read_charades,
        train=None,
        test=r"charades-timelens.*\.json",
        source=(
            f"charades-timelens.json from {HUGGING_FACE}/TencentARC/TimeLens-Bench; the videos of"
            " Charades as videos/*.mp4"
        ),
    ),
    "timelens-activitynet": Dataset(
        training_sets.read_charades,
        train=None,
        test=r"activitynet-timelens.*\.json",
        source=(
            f"activitynet-timelens.json from {HUGGING_FACE}/TencentARC/TimeLens-Bench; the videos"
            " of ActivityNet as videos/v_*.mp4"
        ),
    ),
    "got10k": Dataset(
        training_sets.read_got10k,
        train=r"train|got_train.*\.json",
        test=r"val|got_val.*\.json",
        videos=".",
        source=(
            "full_data.zip from got-10k.aitestunion.com: folders train/ and val/, each with"
            " list.txt"
        ),
    ),
    "nextgqa": Dataset(
        training_sets.read_nextgqa,
        train=r"nextgqa_val.*\.json|val\.csv",
        test=r"nextgqa_test.*\.json|test\.csv",
        source=(
            f"nextgqa_val.json and nextgqa_test.json from {PUBLISHED}, or val.csv, gsub_val.json,"
            " test.csv, gsub_test.json and map_vid_vidorID.json from github.com/doc-doc/NExT-GQA;"
            " NExT-QA's videos as videos/1101/*.mp4"
        ),
    ),
    "quality": Dataset(
        training_sets.read_quality,
        train=r"quality_train.*\.json|Quality_Access_100shot\.json",
        test=r"quality_test.*\.json|Quality_Access_test\.json",
        source=(
            "VidTAB's video quality task: Quality_Access_100shot.json and Quality_Access_test.json"
            f" from {PUBLISHED}; videos/*.mp4"
        ),
    ),
    "caption": Dataset(
        training_sets.read_captions,
        train=r"captions_train.*\.json|metadata\.json",
        test=r"captions_test.*\.json",
        source=(
            'your own: captions_train.json and captions_test.json, [{"video": "a.mp4", "events":'
            f' ["…"]}}]; or metadata.json of FIBER ({HUGGING_FACE}/MCG-NJU/CaReBench) to train on;'
            " videos/*.mp4"
        ),
    ),
    "dream1k": Dataset(
        benchmarks.read_dream1k,
        train=None,
        test=r"metadata\.json",
        source=(
            f"json/metadata.json and video.zip from {HUGGING_FACE}/omni-research/DREAM-1K, unpacked"
            " as videos/*.mp4"
        ),
    ),
    "videomme": Dataset(
        benchmarks.read_videomme,
        train=None,
        test=r"(test|videomme).*\.(parquet|json)",
        source=(
            f"{HUGGING_FACE}/lmms-lab/Video-MME: test-00000-of-00001.parquet, and the videos as"
            " videos/*.mp4"
        ),
    ),
    "longvideobench": Dataset(
        benchmarks.read_longvideobench,
        train=None,
        test=r"lvb_val.*\.json|validation.*\.parquet",
        source=(
            f"lvb_val.json and videos.tar from {HUGGING_FACE}/longvideobench/LongVideoBench,"
            " unpacked as videos/*.mp4"
        ),
    ),
    "mvbench": Dataset(
        benchmarks.read_mvbench,
        train=None,
        test=r"[a-z_-]+\.json",
        videos="video",
        source=(
            f"{HUGGING_FACE}/OpenGVLab/MVBench: json/*.json, and the archives unpacked under video/"
        ),
    ),
    "perceptiontest": Dataset(
        benchmarks.read_perceptiontest,
        train=None,
        test=r"(all|mc_question)_valid.*\.json",
        source=(
            "mc_question_valid.json and valid videos from"
            " github.com/google-deepmind/perception_test; videos/*.mp4"
        ),
    ),
}


def read_dataset(name, split, folder, report=print):
    """All Examples of a data set's split, "train" or "test", from the files in `folder`.

    MVBench has 20 files; of the others the first that fits is read (annotation_files). Ids are
    unique: a repeated id is numbered (the second "x" is "x#2"), and that is reported. Raises
    BadInput, which says where to get what is missing.
    """
    dataset = DATASETS[name]
    if getattr(dataset, split) is None:
        raise BadInput(f"{name} is only evaluated on, never trained on")
    if not os.path.isdir(folder):
        raise BadInput(f"data folder {folder} does not exist. What belongs in it: {dataset.source}")
    belongs = f"What belongs in {folder}: {dataset.source}"
    paths = annotation_files(name, split, folder)
    if not paths:
        raise BadInput(f"no {split} annotations of {name} in {folder}. {belongs}")
    videos = os.path.normpath(os.path.join(folder, dataset.videos))
    if not os.path.isdir(videos):
        raise BadInput(f"no folder {videos} with the clips. {belongs}")
    if len(paths) > 1 and name != "mvbench":
        report(f"{paths[0]} is read, and not {', '.join(paths[1:])}")
        paths = paths[:1]
    examples = [e for path in paths for e in dataset.reader(path, videos, report)]
    source = paths[0] if len(paths) == 1 else f"{paths[0]} and the files beside it"
    number_repeated(examples, source, report)
    return examples


def annotation_files(name, split, folder):
    """The files of a split, the best first: raw folders of GOT-10k, which know every frame, before
    JSON; text before JSON; then by name. They lie in json/ inside the folder, or in the folder."""
    pattern = getattr(DATASETS[name], split)
    for place in (os.path.join(folder, "json"), folder):
        names = os.listdir(place) if os.path.isdir(place) else []
        paths = [os.path.join(place, n) for n in names if re.fullmatch(pattern, n)]
        # A folder without list.txt holds frames alone, for the JSON beside it.
        paths = [p for p in paths if os.path.isfile(p) or os.path.isfile(f"{p}/list.txt")]
        if paths:
            return sorted(paths, key=lambda p: (os.path.isfile(p), not p.endswith(".txt"), p))
    return []


def number_repeated(examples, source, report):
    """Makes ids unique, in place. Answers are kept by id: one would be scored as another."""
    taken, counts, renamed = {e.id for e in examples}, {}, []
    for e in examples:
        first, counts[e.id] = e.id, counts.get(e.id, 0) + 1
        if counts[first] == 1:
            continue
        while e.id in taken:  # "x#2" may be the name of another
            e.id = f"{first}#{counts[first]}"
            counts[first] += e.id in taken
        taken.add(e.id)
        renamed.append(f"the second {first!r} is {e.id!r} here")
    if renamed:
        again = f"{len(renamed)} example(s) have the id of an earlier one"
        report(f"{source}: {again}, so {renamed[0]}")


def find_data(name, folder, stand_in):
    """(folder, name to show) of a data set, for train.py and eval.py.

    folder: what --data says: the data set's own folder, or one that holds it under its name. None:
    data/NAME where it exists, else the stand-in; `stand_in(name)` makes that if it is not there yet
    and returns its folder.
    """
    inside = os.path.join(folder or "data", name)
    if os.path.isdir(inside):
        folder = inside
    elif not folder:
        folder = stand_in(name)
    made_up = os.path.isfile(os.path.join(folder, MARK))
    return folder, f"toy {name} (made up)" if made_up else f"{name} ({folder})"
