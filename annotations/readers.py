"""readers.py: which file of which data set, and who reads it. docs/datasets.md shows the folders.

    python -m annotations charades FILE …    # how many examples, and the first one

The readers are in training_sets.py and benchmarks.py. Videos are looked for beside the file.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass

from annotations import MARK
from annotations import benchmarks as b
from annotations import training_sets as t
from lib.errors import BadInput


@dataclass(frozen=True)
class Dataset:
    reader: object  # the function that reads its files
    source: str  # where people get it
    test: str  # pattern of the test files' names in the data set's folder
    train: str = None  # of the training files; None: it is only evaluated on
    videos: str = "videos"  # its folder of videos


HUB = "huggingface.co/datasets"
PAPER = f"{HUB}/OpenGVLab/VideoChat-R1-training-annotations"
TIMELENS = f"{HUB}/TencentARC/TimeLens-Bench"

DATASETS = {
    "charades": Dataset(
        t.read_charades,
        "charades_sta_train.txt and charades_sta_test.txt from github.com/jiyanggao/TALL, or "
        f"train.json and charades_test.json from {PAPER}; videos/*.mp4 is Charades_v1_480.zip from "
        "prior.allenai.org/projects/charades",
        r"charades(_sta)?_test\b.*\.(txt|json)",
        r"charades(_sta)?_train\b.*\.(txt|json)|train\.json",
    ),
    "activitynet": Dataset(
        t.read_charades,
        "test.json of ActivityNet Captions' grounding split; videos/v_*.mp4 from activity-net.org",
        r"(activitynet_)?(test|val_2)\b.*\.json",
    ),
    "timelens-charades": Dataset(
        t.read_charades,
        f"charades-timelens.json from {TIMELENS}; Charades' videos/*.mp4",
        r"charades-timelens.*\.json",
    ),
    "timelens-activitynet": Dataset(
        t.read_charades,
        f"activitynet-timelens.json from {TIMELENS}; ActivityNet's videos/v_*.mp4",
        r"activitynet-timelens.*\.json",
    ),
    "got10k": Dataset(
        t.read_got10k,
        "train/ and val/, each with list.txt: full_data.zip from got-10k.aitestunion.com",
        r"val|got_val.*\.json",
        r"train|got_train.*\.json",
        videos=".",
    ),
    "nextgqa": Dataset(
        t.read_nextgqa,
        f"nextgqa_val.json and nextgqa_test.json from {PAPER}, or val.csv, gsub_val.json, test.csv,"
        " gsub_test.json and map_vid_vidorID.json from github.com/doc-doc/NExT-GQA; NExT-QA's "
        "videos/1101/*.mp4",
        r"nextgqa_test.*\.json|test\.csv",
        r"nextgqa_val.*\.json|val\.csv",
    ),
    "quality": Dataset(
        t.read_quality,
        f"Quality_Access_100shot.json and Quality_Access_test.json from {PAPER}; VidTAB's "
        "videos/*.mp4",
        r"quality_test.*\.json|Quality_Access_test\.json",
        r"quality_train.*\.json|Quality_Access_100shot\.json",
    ),
    "caption": Dataset(
        t.read_captions,
        'your own captions_train.json and captions_test.json, [{"video": "a.mp4", "events": '
        f'["…"]}}], or FIBER\'s metadata.json ({HUB}/MCG-NJU/CaReBench) to train on; videos/*.mp4',
        r"captions_test.*\.json",
        r"captions_train.*\.json|metadata\.json",
    ),
    "dream1k": Dataset(
        b.read_dream1k,
        f"json/metadata.json and video.zip, as videos/*.mp4, from {HUB}/omni-research/DREAM-1K",
        r"metadata\.json",
    ),
    "videomme": Dataset(
        b.read_videomme,
        f"test-00000-of-00001.parquet and videos/*.mp4 from {HUB}/lmms-lab/Video-MME",
        r"(test|videomme).*\.(parquet|json)",
    ),
    "longvideobench": Dataset(
        b.read_longvideobench,
        f"lvb_val.json and videos.tar, as videos/*.mp4, from {HUB}/longvideobench/LongVideoBench",
        r"lvb_val.*\.json|validation.*\.parquet",
    ),
    "mvbench": Dataset(
        b.read_mvbench,
        f"json/*.json and the archives, unpacked under video/, from {HUB}/OpenGVLab/MVBench",
        r"[a-z_-]+\.json",
        videos="video",
    ),
    "perceptiontest": Dataset(
        b.read_perceptiontest,
        "mc_question_valid.json and the valid videos/*.mp4 from "
        "github.com/google-deepmind/perception_test",
        r"(all|mc_question)_valid.*\.json",
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
    belongs = f"What belongs in {folder}: {dataset.source}"
    if not os.path.isdir(folder):
        raise BadInput(f"data folder {folder} does not exist. {belongs}")
    if not (paths := annotation_files(name, split, folder)):
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
    taken, counts, renamed = {e.id for e in examples}, Counter(), []
    for e in examples:
        first, again = e.id, e.id in counts
        counts[first] += 1
        while again and e.id in taken:  # "x#2" may be the name of another
            e.id = f"{first}#{counts[first]}"
            counts[first] += e.id in taken
        if again:
            taken.add(e.id)
            renamed.append(f"the second {first!r} is {e.id!r} here")
    if renamed:
        again = f"{len(renamed)} example(s) have the id of an earlier one"
        report(f"{source}: {again}, so {renamed[0]}")


def find_data(name, folder, stand_in, toy_model):
    """(folder, name to show) of a data set, for train.py and eval.py.

    folder: what --data says: the data set's own folder, or one that holds it under its name; "toy":
    the stand-in. None: data/NAME where it exists, else the stand-in, if the model is the toy's;
    `stand_in(name)` makes that if it is not there yet and returns its folder.
    """
    inside = os.path.join(folder or "data", name)
    if folder != "toy" and os.path.isdir(inside):
        folder = inside
    elif folder == "toy" or (not folder and toy_model):
        folder = stand_in(name)
    elif not folder:
        raise BadInput(
            f"there is no {inside}: give --data FOLDER with {name}, or --data toy for made-up clips"
        )
    made_up = os.path.isfile(os.path.join(folder, MARK))
    return folder, f"toy {name} (made up)" if made_up else f"{name} ({folder})"
