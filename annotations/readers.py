"""readers.py: which file of which data set, and who reads it. docs/datasets.md shows the folders.

The readers are in training_sets.py and benchmarks.py. Videos are looked for beside the file.
"""

import os
import re
from dataclasses import dataclass

from annotations import MARK
from annotations import benchmarks as b
from annotations import training_sets as t
from lib.errors import BadInput


@dataclass(frozen=True)
class Dataset:
    reader: object  # the function that reads its files
    test: str  # pattern of the test files' names in the data set's folder
    train: str = None  # of the training files; None: it is only evaluated on
    videos: str = "videos"  # its folder of videos


DATASETS = {
    "charades": Dataset(
        t.read_charades,
        r"charades(_sta)?_test\b.*\.(txt|json)",
        r"charades(_sta)?_train\b.*\.(txt|json)|train\.json",
    ),
    "activitynet": Dataset(t.read_charades, r"(activitynet_)?(test|val_2)\b.*\.json"),
    "timelens-charades": Dataset(t.read_charades, r"charades-timelens.*\.json"),
    "timelens-activitynet": Dataset(t.read_charades, r"activitynet-timelens.*\.json"),
    "got10k": Dataset(
        t.read_got10k, r"val|got_val.*\.json", r"train|got_train.*\.json", videos="."
    ),
    "nextgqa": Dataset(
        t.read_nextgqa, r"nextgqa_test.*\.json|test\.csv", r"nextgqa_val.*\.json|val\.csv"
    ),
    "quality": Dataset(
        t.read_quality,
        r"quality_test.*\.json|Quality_Access_test\.json",
        r"quality_train.*\.json|Quality_Access_100shot\.json",
    ),
    "caption": Dataset(
        t.read_captions, r"captions_test.*\.json", r"captions_train.*\.json|metadata\.json"
    ),
    "dream1k": Dataset(b.read_dream1k, r"metadata\.json"),
    "videomme": Dataset(b.read_videomme, r"(test|videomme).*\.json"),
    "longvideobench": Dataset(b.read_longvideobench, r"lvb_val.*\.json"),
    "mvbench": Dataset(b.read_mvbench, r"[a-z_-]+\.json", videos="video"),
    "perceptiontest": Dataset(b.read_perceptiontest, r"(all|mc_question)_valid.*\.json"),
}


def read_dataset(name, split, folder, report=print):
    """All Examples of a data set's split, "train" or "test", from the files in `folder`.

    MVBench has 20 files; for the others the first that fits is read (annotation_files). Ids are
    unique: where one is repeated, all are numbered, and that is reported. Raises BadInput if
    something is missing.
    """
    dataset = DATASETS[name]
    if getattr(dataset, split) is None:
        raise BadInput(f"{name} is only evaluated on, never trained on")
    belongs = f"docs/datasets.md lists the files of {name}, and where to get them"
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
    if repeated := len(examples) - len({e.id for e in examples}):
        first = examples[0].id
        for k, e in enumerate(examples):
            e.id = f"{e.id}#{k}"
        again = f"{repeated} example(s) have the id of an earlier one: all are numbered"
        report(f"{source}: {again}, the first {first!r} is {examples[0].id!r} here")


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
