"""training_sets.py: the files of data sets that are trained on → Examples. Most are evaluated on,
too: their test files have the same form.

Each reader takes one annotation file (or folder, for GOT-10k) and the folder of its videos, and
gives a list of Examples, in the file's order. It leaves out every entry that it cannot use and
reports it in one sentence, with file and line. A file without any usable entry is an error.
"""

import configparser
import csv
import json
import os
import re

import numpy as np

from annotations.entries import (
    Malformed,
    bare_options,
    collect,
    each_usable,
    event_list,
    interval,
    json_entries,
    letter_of,
    own_name,
    read_text,
    sentence,
    video_path,
)
from data import Example
from evaluation.metrics import sentences
from lib.errors import BadInput
from lib.video import numbered_pictures
from rewards import N_BOXES

# ------------------------------------------------------------------------------------------------
# When: Charades-STA, ActivityNet Captions, and both as TimeLens annotated them again
# ------------------------------------------------------------------------------------------------


def read_charades(path, videos, report=print):
    """Charades-STA annotations, in any of the forms in circulation.

    The original text file, one query per line, times in seconds:

        3MSZA 24.3 30.4##person turn a light on.

    the JSON dictionary, which ActivityNet Captions uses too (TimeLens calls the lists "spans" and
    "queries"):

        {"3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4]],
                   "sentences": ["person turn a light on."]}}

    and TimeLens' list, one query per entry, its interval a JSON text:

        [{"video_path": "charades/3MSZA.mp4", "query": "person turn a light on.",
          "span": "[[24.3, 30.4]]"}]

    Args:    path of the file; videos: the folder of the clips; report: called with one sentence for
             every malformed entry, which is then skipped.
    Returns: list of Example. Raises BadInput if the file is missing or holds no valid entry.

    End times may exceed the clip (30.0 in a clip of 29.46 s): annotators worked in whole steps.
    They are kept as they are, as everyone who reports scores on this data does.
    """
    counts = {}

    def query(name, start, end, text, duration=None):
        video, when = video_path(videos, name), interval(start, end)
        example = Example("", "grounding", video, sentence(text), when, duration=duration)
        k = counts[name] = counts.get(name, -1) + 1
        example.id = f"{name}/{k}"
        return example

    def of_dictionary(name, entry):
        spans, texts = ("spans", "queries") if "spans" in entry else ("timestamps", "sentences")
        rows = zip(entry[spans], entry[texts], strict=True)
        seconds = seconds_of(entry)
        return each_usable(list(rows), lambda row: query(name, *row[0], row[1], seconds))

    def of_list(_, entry):
        name = os.path.splitext(own_name(entry["video_path"]))[0]
        (span,) = json.loads(entry["span"])
        return [query(name, *span, entry["query"], seconds_of(entry))]

    def of_line(_, line):
        match = re.fullmatch(r"(\S+) (\S+) (\S+)##(.*)", line.strip())
        return [query(*match.groups())]

    text = read_text(path)
    if text.lstrip().startswith("{"):
        form = "equally many 'timestamps' [start, end] and 'sentences'"
        return collect(path, json_entries(path), of_dictionary, report, form)
    if text.lstrip().startswith("["):
        form = "'video_path', 'query' and 'span' with one [start, end]"
        return collect(path, json_entries(path), of_list, report, form)
    lines = enumerate(text.splitlines(), 1)
    entries = [(number, None, line) for number, line in lines if line.strip()]
    form = "a name, a start, an end and a sentence, like: 3MSZA 24.3 30.4##person turn a light on."
    return collect(path, entries, of_line, report, form)


def seconds_of(entry):
    """An entry's "duration" in seconds; None where it has none, or what is no length."""
    seconds = entry.get("duration")
    usable = isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    return float(seconds) if usable else None


# ------------------------------------------------------------------------------------------------
# Where: GOT-10k
# ------------------------------------------------------------------------------------------------


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
        listed = os.path.join(path, "list.txt")
        names = read_text(listed).splitlines()
        lines = [(number, None, name) for number, name in enumerate(names, 1) if name.strip()]
        form = "a folder with frames, groundtruth.txt, absence.label and meta_info.ini"
        return collect(listed, lines, lambda _, name: [raw_sequence(path, name)], report, form)

    def make(_, entry):
        name = re.sub(r"^(.*/)?GOT-10k/", "", entry["path"])
        folder = video_path(videos, name).removesuffix(".mp4")
        boxes = boxes_in_frame(entry["gt"])
        count = len(numbered_pictures(folder)) if os.path.isdir(folder) else 0
        # Where the folder is missing, that is said when it is read.
        chosen = published_frames(enough(count, folder)) if count else ()
        name = os.path.basename(name)
        return [tracking_example(name, folder, entry["object"], boxes, chosen)]

    form = "'path', 'object' and 'gt' with 8 boxes"
    return collect(path, json_entries(path), make, report, form)


def tracking_example(name, folder, thing, boxes, chosen):
    frames = tuple(int(i) for i in chosen)
    return Example(name, "tracking", folder, sentence(thing), boxes, frames=frames)


def enough(count, folder):
    """The number of frames in a folder. Raises Malformed if they are fewer than the boxes."""
    if count < N_BOXES:
        raise Malformed(f"{folder} holds {count} frames; at least {N_BOXES} are needed")
    return count


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


def boxes_in_frame(boxes):
    """Eight normalised boxes, cut to the frame. Raises Malformed if there are not eight."""
    boxes = [tuple(float(v) for v in box) for box in boxes]
    if len(boxes) != N_BOXES or any(len(box) != 4 for box in boxes):
        raise Malformed(f"{len(boxes)} boxes instead of {N_BOXES} of 4 numbers")
    boxes = [tuple(min(1.0, max(0.0, v)) for v in box) for box in boxes]
    if any(x1 <= x0 or y1 <= y0 for x0, y0, x1, y1 in boxes):
        raise Malformed("a box has no area inside the frame")
    return boxes


def raw_sequence(split, name):
    """The Example of one raw sequence. Raises Malformed if its files are not complete."""
    name = name.strip()
    folder = video_path(split, name).removesuffix(".mp4")
    try:
        thing, width, height, pixel_boxes, absent = read_sequence_files(folder)
        frames = len(numbered_pictures(folder))
    except OSError as e:
        raise Malformed(f"{e.filename} cannot be read ({e.strerror})") from e
    except configparser.Error as e:
        raise Malformed(f"meta_info.ini: {' '.join(str(e).split())}") from e
    if not frames == len(pixel_boxes) == len(absent):
        raise Malformed(
            f"{folder} holds {frames} frames, {len(pixel_boxes)} boxes and {len(absent)} absence"
            " labels: unpack it again"
        )
    chosen = even_frames(enough(frames, folder))
    if any(absent[i] for i in chosen):
        raise Malformed("the object is out of sight at one of the eight frames")
    boxes = [
        (x / width, y / height, (x + w) / width, (y + h) / height)
        for x, y, w, h in (pixel_boxes[i] for i in chosen)
    ]
    return tracking_example(name, folder, thing, boxes_in_frame(boxes), chosen)


def read_sequence_files(folder):
    """(object, width, height, boxes (x, y, w, h) in pixels, absence labels) of a raw sequence."""
    meta = configparser.ConfigParser(interpolation=None, strict=False)
    meta.read(os.path.join(folder, "meta_info.ini"), encoding="utf-8")
    if "METAINFO" not in meta:
        raise Malformed(f"{folder} has no meta_info.ini")
    info = meta["METAINFO"]
    width, height = (float(v) for v in re.findall(r"\d+", info["resolution"]))
    with open(os.path.join(folder, "groundtruth.txt"), encoding="utf-8") as f:
        boxes = [[float(v) for v in line.split(",")] for line in f if line.strip()]
    with open(os.path.join(folder, "absence.label"), encoding="utf-8") as f:
        absent = [int(line) for line in f if line.strip()]
    return info["object_class"], width, height, boxes, absent


# ------------------------------------------------------------------------------------------------
# Why, and when it can be seen: NExT-GQA
# ------------------------------------------------------------------------------------------------


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
    if path.endswith(".csv"):
        return read_nextgqa_table(path, videos, report)

    def make(_, entry):
        options = bare_options(entry["options"])
        letter = letter_of(entry["answer"], options)
        name, group = entry["video"], entry.get("type", "")
        video = video_path(videos, name)
        question = entry["question"]
        example = gqa_example(entry["id"], video, question, options, letter, entry["glue"], group)
        example.duration = seconds_of(entry)
        return [example]

    form = "'id', 'video', 'question', 'options', 'glue' and 'answer'"
    return collect(path, json_entries(path), make, report, form)


def gqa_example(name, video, question, options, letter, evidence, group):
    evidence = [interval(*pair) for pair in evidence]
    if not evidence:
        raise Malformed("'glue' is empty")
    return Example(
        str(name), "gqa", video, sentence(question), (letter, evidence), options, group=str(group)
    )


def read_nextgqa_table(path, videos, report):
    """The three files of NExT-GQA's authors (read_nextgqa); path: of the table of questions."""
    folder, split = os.path.split(path)
    located = os.path.join(folder, f"gsub_{split.removesuffix('.csv')}.json")
    seconds = {video: entry for _, video, entry in json_entries(located)}
    folders = json_entries(os.path.join(folder, "map_vid_vidorID.json"))
    folders = {video: place for _, video, place in folders}

    def make(_, row):
        name, number = row["video_id"], row["qid"]
        options = tuple(row[f"a{k}"].strip() for k in range(5))
        if row["answer"].strip() not in options:
            raise Malformed(f"the answer {row['answer'][:60]!r} is none of the 5 options")
        letter = letter_of(options.index(row["answer"].strip()), options)
        if number not in seconds.get(name, {}).get("location", {}):
            raise Malformed(f"{located} has no seconds for question {number} about {name}")
        evidence, video = seconds[name]["location"][number], video_path(videos, folders[name])
        name, question, group = f"{name}_{number}", row["question"], row["type"]
        return [gqa_example(name, video, question, options, letter, evidence, group)]

    rows = csv.DictReader(read_text(path).splitlines(keepends=True))
    try:
        entries = [(rows.line_num, None, row) for row in rows]
    except csv.Error as e:
        raise BadInput(f"{path}, line {rows.line_num}: broken table ({e})") from e
    return collect(path, entries, make, report, "video_id, qid, question, a0 to a4, answer, type")


# ------------------------------------------------------------------------------------------------
# Quality and captions
# ------------------------------------------------------------------------------------------------


def read_quality(path, videos, report=print):
    """VidTAB's quality: [{"video": "0012.mp4", "instruction": "…", "answer": "low quality"}]."""

    def make(k, entry):
        answer = sentence(entry["answer"])
        if answer not in ("low quality", "high quality"):
            raise Malformed(f"the answer {answer!r} is neither 'low quality' nor 'high quality'")
        name = entry["video"]
        return [Example(f"{name}/{k}", "quality", video_path(videos, name), "", answer)]

    return collect(path, json_entries(path), make, report, "'video' and 'answer'")


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
        answer = event_list(events)
        return [Example(f"{name}/{k}", "caption", video_path(videos, name), "", answer)]

    form = "'video' and 'events', a list of sentences (or 'caption', a text)"
    return collect(path, json_entries(path), make, report, form)
