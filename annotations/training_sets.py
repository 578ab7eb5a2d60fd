"""training_sets.py: the files of data sets that are trained on → Examples. Most are evaluated on,
too: their test files have the same form.

Each reader takes one annotation file (or folder, for GOT-10k) and the folder of its videos, and
gives a list of Examples, in the file's order. It leaves out every entry that it cannot use and
reports it in one sentence, with file and line. A file without any usable entry is an error.
"""

import csv
import os
import re
from collections import Counter

import numpy as np

from annotations import entries as e
from data import Example
from lib.errors import BadInput
from lib.video import numbered_pictures
from lib.wording import sentences
from rewards import N_BOXES


def read_charades(path, videos, report=print):
    """Charades-STA annotations, in any of the forms in circulation.

    The original text file, one query per line, times in seconds:

        3MSZA 24.3 30.4##person turn a light on.

    (PLPNet's copy has a fourth column, which is left alone); and the JSON dictionary, which
    ActivityNet Captions uses too (TimeLens calls the lists "spans" and "queries"):

        {"3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4]],
                   "sentences": ["person turn a light on."]}}

    Args:    path of the file; videos: the folder of the clips; report: called with one sentence for
             every malformed entry, which is then skipped.
    Returns: list of Example. Raises BadInput if the file is missing or holds no valid entry.

    End times may exceed the clip (30.0 in a clip of 29.46 s): annotators worked in whole steps.
    They are kept as they are, as everyone who reports scores on this data does.
    """
    counts = Counter()

    def query(_, row):
        name, span, text, duration = row
        asked = e.video_path(videos, name), e.sentence(text), e.interval(*span)
        counts[name] += 1
        return Example(f"{name}/{counts[name] - 1}", "grounding", *asked, duration=duration)

    def of_dictionary(name, entry):
        spans, texts = ("spans", "queries") if "spans" in entry else ("timestamps", "sentences")
        seconds = e.seconds_of(entry)
        return [(name, *row, seconds) for row in zip(entry[spans], entry[texts], strict=True)]

    def of_line(_, line):
        match = re.fullmatch(r"(\S+) (\S+ \S+)(?: \S+)?##(.*)", line.strip())
        return query(_, (match[1], match[2].split(), match[3], None))

    if e.read_text(path).lstrip().startswith(("{", "[")):
        entries = e.questions(e.json_entries(path), of_dictionary)
        form = "equally many 'timestamps' [start, end] and 'sentences'"
        return e.collect(path, entries, query, report, form)
    form = "a name, a start, an end and a sentence, like: 3MSZA 24.3 30.4##person turn a light on."
    return e.collect(path, e.lines_of(path), of_line, report, form, "line")


def read_got10k(path, videos, report=print):
    """GOT-10k, as its authors' raw folders or as the JSON that VideoChat-R1 published.

    Raw: `path` is the folder of a split. It holds list.txt with one sequence name per line, and for
    each sequence a folder of frames 00000001.jpg …, groundtruth.txt (one line per frame: x, y,
    width, height in pixels), absence.label (one line per frame: 1 where the object cannot be seen)
    and meta_info.ini (object_class, resolution).

    JSON: [{"path": "/home/somebody/GOT-10k/val/GOT-10k_Val_000010", "object": "sloth",
            "gt": [[x0, y0, x1, y1], … 8]}]
    with boxes normalised to the frame: at the first frame, and at seven from the second to the
    last. What stands before GOT-10k/ in a path is its authors' own disk.

    Either way an Example's answer is eight boxes (x0, y0, x1, y1) in [0, 1], its question the
    object's name, its video the folder of frames, and `frames` the numbers of the eight frames. A
    raw sequence is left out if its object is absent at one of them, or if the numbers of frames,
    boxes and absence labels differ: they would be paired wrongly.
    """
    if os.path.isdir(path):
        listed, make = os.path.join(path, "list.txt"), lambda _, name: raw_sequence(path, name)
        form = "a folder with frames, groundtruth.txt, absence.label and meta_info.ini"
        return e.collect(listed, e.lines_of(listed), make, report, form, "line")

    def make(_, entry):
        name = re.sub(r"^(.*/)?GOT-10k/", "", entry["path"])
        folder = e.video_path(videos, name).removesuffix(".mp4")
        count = len(numbered_pictures(folder)) if os.path.isdir(folder) else 0
        return tracking_example(folder, entry["object"], entry["gt"], count, published_frames)

    form = "'path', 'object' and 'gt' with 8 boxes"
    return e.collect(path, e.json_entries(path), make, report, form)


def tracking_example(folder, thing, boxes, count, choose):
    """boxes: eight, normalised, here cut to the frame; count: of the folder's frames; choose: which
    of them the boxes belong to. 0: no folder here; that is said when it is read."""
    if 0 < count < N_BOXES:
        raise BadInput(f"{folder} holds {count} frames; at least {N_BOXES} are needed")
    boxes = [tuple(min(1.0, max(0.0, float(v))) for v in box) for box in boxes]
    if len(boxes) != N_BOXES or any(len(box) != 4 for box in boxes):
        raise BadInput(f"{len(boxes)} boxes instead of {N_BOXES} of 4 numbers")
    if any(x1 <= x0 or y1 <= y0 for x0, y0, x1, y1 in boxes):
        raise BadInput("a box has no area inside the frame")
    name, frames = os.path.basename(folder), tuple(choose(count).tolist()) if count else ()
    return Example(name, "tracking", folder, e.sentence(thing), boxes, frames=frames)


def even_frames(count):
    """Which of `count` frames are asked about: (8,) numbers from the first to the last.

    >>> even_frames(100).tolist()
    [0, 14, 28, 42, 57, 71, 85, 99]
    """
    return np.linspace(0, count - 1, N_BOXES).round().astype(int)


def published_frames(count):
    """Which of `count` frames the boxes of GOT-10k's JSON belong to: the first, and seven from the
    second to the last. (In its validation sequences boxes 0 and 1 overlap by 0.84, later neighbours
    by 0.4.)

    >>> published_frames(100).tolist()
    [0, 1, 17, 34, 50, 66, 83, 99]
    """
    return np.append(0, np.linspace(1, count - 1, N_BOXES - 1).round()).astype(int)


def raw_sequence(split, name):
    """The Example of one raw sequence. Raises BadInput if its files are not complete."""
    folder = e.video_path(split, name.strip()).removesuffix(".mp4")
    meta, truth, absence = (
        os.path.join(folder, name) for name in ("meta_info.ini", "groundtruth.txt", "absence.label")
    )
    about, absent = e.read_text(meta), e.read_text(absence).split()
    boxes, frames = e.lines_of(truth), len(numbered_pictures(folder))
    (thing,) = re.findall(r"^object_class: *(.+)$", about, re.MULTILINE)
    (size,) = re.findall(r"^resolution: *\((\d+), *(\d+)\)", about, re.MULTILINE)
    if not frames == len(boxes) == len(absent):
        held = f"{frames} frames, {len(boxes)} boxes and {len(absent)} absence labels"
        raise BadInput(f"{folder} holds {held}: unpack it again")
    chosen = even_frames(frames) if frames else []
    if any(int(absent[i]) for i in chosen):
        raise BadInput("the object is out of sight at one of the eight frames")
    pixels = [[float(v) for v in boxes[i][-1].split(",")] for i in chosen]
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in pixels])
    scale = np.tile(np.array(size, dtype=float), 2)  # width, height, width, height
    return tracking_example(folder, thing, corners / scale, frames, even_frames)


def read_nextgqa(path, videos, report=print):
    """NExT-GQA, as VideoChat-R1 published it or as its authors do.

    JSON: [{"id", "video": "1101/2574374895.mp4", "question", "options": ["(A) …", …],
            "glue": [[23.0, 27.7]], "answer": "(C)"}]

    Authors: a table of questions, test.csv, with columns video_id, qid, question, a0 … a4 and
    answer (the right option's text); beside it gsub_test.json with the seconds, {"2574374895":
    {"location": {"8": [[23.0, 27.7]]}}}, and map_vid_vidorID.json with the videos' folders.

    answer: (letter, [(start, end), …] in seconds). Its training split has no intervals: the paper
    trains on the validation file and evaluates on the test file, and so do we.
    """
    table = path.endswith(".csv")
    entries, whole = nextgqa_table(path) if table else (e.json_entries(path), dict)

    def make(_, entry):
        entry = whole(entry)
        options = e.bare_options(entry["options"])
        evidence = [e.interval(*pair) for pair in entry["glue"]]
        if not evidence:
            raise BadInput("'glue' is empty")
        answer = e.letter_of(entry["answer"], options), evidence
        video, question = e.video_path(videos, entry["video"]), e.sentence(entry["question"])
        more = {"group": str(entry.get("type", "")), "duration": e.seconds_of(entry)}
        return Example(str(entry["id"]), "gqa", video, question, answer, options, **more)

    if table:
        form = "an answer among a0 to a4, seconds in gsub_val.json, a place in map_vid_vidorID.json"
        return e.collect(path, entries, make, report, form, "line")
    form = "'id', 'video', 'question', 'options', 'glue' and 'answer'"
    return e.collect(path, entries, make, report, form)


def nextgqa_table(path):
    """The three files of NExT-GQA's authors (read_nextgqa); path: of the table of questions.

    Returns the table's rows as entries, and a function that makes of a row an entry of the JSON.
    """
    folder, split = os.path.split(path)
    located = os.path.join(folder, f"gsub_{split.removesuffix('.csv')}.json")
    seconds = dict(e.json_entries(located))
    folders = dict(e.json_entries(os.path.join(folder, "map_vid_vidorID.json")))

    def whole(row):
        name, options = row["video_id"], [row[f"a{k}"].strip() for k in range(5)]
        return row | {
            "id": f"{name}_{row['qid']}",
            "video": folders[name],
            "options": options,
            "answer": options.index(row["answer"].strip()),
            "glue": seconds[name]["location"][row["qid"]],
        }

    rows = csv.DictReader(e.read_text(path).splitlines(keepends=True))
    try:
        return [(rows.line_num, row) for row in rows], whole
    except csv.Error as error:
        raise BadInput(f"{path}, line {rows.line_num}: broken table; download it again") from error


def read_quality(path, videos, report=print):
    """VidTAB's quality: [{"video": "0012.mp4", "instruction": "…", "answer": "low quality"}]."""

    def make(k, entry):
        answer = e.sentence(entry["answer"])
        if answer not in ("low quality", "high quality"):
            raise BadInput(f"the answer {answer!r} is neither 'low quality' nor 'high quality'")
        name = entry["video"]
        return Example(f"{name}/{k}", "quality", e.video_path(videos, name), "", answer)

    return e.collect(path, e.json_entries(path), make, report, "'video' and 'answer'")


def read_captions(path, videos, report=print):
    """Captions, with their events in a list, or as text, of which every sentence is an event:

        [{"video": "a.mp4", "events": ["a boy kicks a ball", "the dog runs away"]},
         {"video": "b.mp4", "caption": "A boy kicks a ball. The dog runs away."}]

    The first is our own form, because the events that the paper trained on are not published. The
    second is that of FIBER (published as CaReBench), the captions they were taken from.
    """

    def make(k, entry):
        events = entry["events"] if "events" in entry else sentences(entry["caption"])
        name = entry["video"]
        answer = e.event_list(events)
        return Example(f"{name}/{k}", "caption", e.video_path(videos, name), "", answer)

    form = "'video' and 'events', a list of sentences (or 'caption', a text)"
    return e.collect(path, e.json_entries(path), make, report, form)
