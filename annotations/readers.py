"""readers.py: the files that data sets come as → Examples.

Each reader takes one annotation file (or folder, for GOT-10k) and the folder of its videos, and
gives a list of Examples, in the file's order. It leaves out every entry that it cannot use and
reports it in one sentence, with file and line. A file without any usable entry is an error.

    data set        read_…          file                              videos
    Charades-STA    charades        charades_sta_train.txt, or JSON   videos/3MSZA.mp4
    ActivityNet     charades        test.json                         videos/v_uqiMw7tQ1Cc.mp4
    GOT-10k         got10k          val/ (list.txt), or 8-box JSON    val/GOT-10k_Val_000010/….jpg
    NExT-GQA        nextgqa         nextgqa_val.json                  videos/1101/2574374895.mp4
    VidTAB quality  quality         quality_test.json                 videos/0012.mp4
    captions        captions        captions_train.json (our own)     videos/…
    Video-MME       videomme        test-….parquet, or JSON           videos/fFjv93ACGo8.mp4
    MVBench         mvbench         json/action_sequence.json, …      video/star/Charades_v1_480/…
    Perception Test perceptiontest  mc_question_valid.json            videos/video_8241.mp4

    python -m annotations charades FILE …    # how many examples, and the first one

with the name of a data set: charades, activitynet, got10k, nextgqa, quality, caption, videomme,
mvbench or perceptiontest. Videos are looked for beside the file.
"""

import configparser
import json
import os
import re
from dataclasses import dataclass

import numpy as np

from annotations import MARK
from data import Example
from rewards import N_BOXES
from runtime.container import numbered_pictures
from runtime.errors import BadInput

# ------------------------------------------------------------------------------------------------
# Reading files with line numbers
# ------------------------------------------------------------------------------------------------


class Malformed(Exception):
    """One entry that cannot be used: what it should have been."""


def read_text(path):
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        with open(path, encoding="utf-8-sig") as f:  # with or without a byte order mark
            return f.read()
    except UnicodeDecodeError as e:
        raise BadInput(f"annotation file {path} is not a UTF-8 text file") from e


def json_entries(path):
    """The top-level entries of a JSON list or dictionary, as [(line number, key, value)].

    The keys of a list are 0, 1, …. json.loads would forget where an entry stands, and an error
    without a line helps nobody in a file of ten thousand questions.
    """
    text, decoder, space = read_text(path), json.JSONDecoder(), re.compile(r"[\s,]*")
    at = space.match(text).end()
    opening, entries = text[at : at + 1], []
    if opening not in ("[", "{"):
        raise BadInput(f"{path} is not JSON: it begins with {text[:20]!r}")
    line, counted, at = 1, 0, at + 1
    try:
        while True:
            at = space.match(text, at).end()
            if at == len(text):
                raise ValueError("the closing bracket is missing")
            if text[at] in "]}":
                return entries
            line, counted, key = line + text.count("\n", counted, at), at, len(entries)
            if opening == "{":
                key, at = decoder.raw_decode(text, at)
                at = re.compile(r"\s*:\s*").match(text, at).end()
            value, at = decoder.raw_decode(text, at)
            entries.append((line, key, value))
    except (ValueError, AttributeError, RecursionError) as e:
        # ValueError: no JSON, or a number of thousands of digits; RecursionError: nested too deep
        line = text.count("\n", 0, at) + 1
        raise BadInput(
            f"{path}, line {line}: broken JSON after {len(entries)} entries; download the file"
            " again"
        ) from e


# What a reader raises when an entry has another form.
UNUSABLE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


def each_usable(rows, make):
    """For an entry with several questions: `make(row)` of each, or a Malformed in its place."""
    made = []
    for k, row in enumerate(rows):
        try:
            made.append(make(row))
        except Malformed as e:
            made.append(Malformed(f"number {k}: skipped, {e}"))
        except UNUSABLE as e:
            made.append(Malformed(f"number {k}: skipped, {type(e).__name__}: {e}"))
    return made


def collect(path, entries, make, report, form):
    """The Examples of all entries that can be used; the others are reported.

    Args:    entries: [(line, key, value)]; make(key, value) gives a list of Examples, with a
             Malformed in place of one that cannot be used, or raises; form: what an entry looks
             like, for the errors.
    Raises BadInput if no entry is usable.
    """
    examples = []
    for line, key, value in entries:
        try:
            for made in map(whole_text, make(key, value)):
                if isinstance(made, Malformed):
                    report(f"{path}, line {line}: entry {key!r}, {made}")
                else:
                    examples.append(made)
        except Malformed as e:
            report(f"{path}, line {line}: skipped, {e}")
        except UNUSABLE as e:
            report(f"{path}, line {line}: skipped, needs {form} ({type(e).__name__}: {e})")
    if not examples:
        raise BadInput(f"{path} holds no usable entry; one has {form}")
    return examples


def whole_text(made):
    """An Example, or a Malformed in its place if it holds half a character, JSON's "\\ud800" alone.

    No tokenizer, file or terminal takes one: it would end a run hours later.
    """
    try:
        if not isinstance(made, Malformed):
            json.dumps(vars(made), ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as e:
        half = f"half a character (\\u{ord(e.object[e.start]):04x} alone)"
        return Malformed(f"skipped, a text in it holds {half}: write the file again as UTF-8")
    return made


def video_path(folder, name):
    """`name` inside `folder`, with the extension that exists there.

    Where none exists it is .mp4: an error names that file later. Names come from downloaded files
    and become paths, so a name that could lead out of the folder is refused.
    """
    name = str(name)
    if not re.fullmatch(r"[\w-][\w.() -]*(/[\w-][\w.() -]*)*", name):
        raise Malformed(f"{name[:60]!r} is no name of a file inside the data folder")
    for extension in ("", ".mp4", ".mkv", ".webm", ".avi", ".mov"):
        if os.path.exists(path := os.path.join(folder, name + extension)):
            return path
    return os.path.join(folder, name if re.search(r"\.\w{3,4}$", name) else name + ".mp4")


def interval(start, end):
    start, end = float(start), float(end)
    if not 0 <= start < end < float("inf"):
        raise Malformed(f"{start:g} to {end:g} is no interval in seconds")
    return start, end


def sentence(text):
    text = " ".join(str(text).split()).rstrip(".")
    if not text:
        raise Malformed("the sentence is empty")
    return text


def letter_of(answer, options):
    """The letter of the right option, given as "(C)", "C", "C. text", its number, or its text."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    if isinstance(answer, int) and 0 <= answer < len(options):
        return letters[answer]
    match = re.fullmatch(r"\(?([A-Z])(\)|\.|$).*", str(answer).strip(), re.DOTALL)
    if match and match[1] in letters:
        return match[1]
    if str(answer) in options:
        return letters[options.index(str(answer))]
    raise Malformed(f"the answer {str(answer)[:60]!r} is none of the {len(options)} options")


def bare_options(options):
    """["(A) a cat", "B. a dog"] → ("a cat", "a dog")"""
    options = tuple(re.sub(r"^\s*\(?[A-Z][).]\s*", "", str(option)).strip() for option in options)
    if not 2 <= len(options) <= 26:
        raise Malformed(f"{len(options)} options")
    return options


# ------------------------------------------------------------------------------------------------
# When: Charades-STA, ActivityNet Captions
# ------------------------------------------------------------------------------------------------


def read_charades(path, videos, report=print):
    """Charades-STA annotations, in either of the two forms in circulation.

    The original text file, one query per line, times in seconds:

        3MSZA 24.3 30.4##person turn a light on.

    and the JSON dictionary, which ActivityNet Captions uses too:

        {"3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4]],
                   "sentences": ["person turn a light on."]}}

    Args:    path of the file; videos: the folder of the clips; report: called with one sentence for
             every malformed entry, which is then skipped.
    Returns: list of Example. Raises BadInput if the file is missing or holds no valid entry.

    End times may exceed the clip (30.0 in a clip of 29.46 s): annotators worked in whole steps.
    They are kept as they are, as everyone who reports scores on this data does.
    """
    counts = {}

    def query(name, start, end, text):
        example = Example(
            "", "grounding", video_path(videos, name), sentence(text), interval(start, end)
        )
        k = counts[name] = counts.get(name, -1) + 1
        example.id = f"{name}/{k}"
        return example

    def of_json(name, entry):
        rows = zip(entry["timestamps"], entry["sentences"], strict=True)
        return each_usable(list(rows), lambda row: query(name, *row[0], row[1]))

    def of_line(_, line):
        match = re.fullmatch(r"(\S+) (\S+) (\S+)##(.*)", line.strip())
        return [query(*match.groups())]

    text = read_text(path)
    if text.lstrip().startswith("{"):
        form = "equally many 'timestamps' [start, end] and 'sentences'"
        return collect(path, json_entries(path), of_json, report, form)
    lines = enumerate(text.splitlines(), 1)
    entries = [(number, None, line) for number, line in lines if line.strip()]
    form = "a name, a start, an end and a sentence, like: 3MSZA 24.3 30.4##person turn a light on."
    return collect(path, entries, of_line, report, form)


# ------------------------------------------------------------------------------------------------
# Where: GOT-10k
# ------------------------------------------------------------------------------------------------


def read_got10k(path, videos, report=print):
    """GOT-10k, as its authors' raw folders or as the JSON that VideoChat-R1 published.

    Raw: `path` is the folder of a split. It holds list.txt with one sequence name per line, and for
    each sequence a folder of frames 00000001.jpg …, groundtruth.txt (one line per frame: x, y,
    width, height in pixels), absence.label (one line per frame: 1 where the object cannot be seen)
    and meta_info.ini (object_class, resolution).

    JSON: [{"path": "GOT-10k/val/GOT-10k_Val_000010", "object": "sloth",
            "gt": [[x0, y0, x1, y1], … 8]}]
    with boxes normalised to the frame, at eight frames spaced uniformly.

    Either way an Example's answer is eight boxes (x0, y0, x1, y1) in [0, 1], its question the
    object's name and its video the folder of frames. A raw sequence is left out if its object is
    absent at one of the eight frames, or if the numbers of frames, boxes and absence labels differ:
    they would be paired wrongly.
    """
    if os.path.isdir(path):
        listed = os.path.join(path, "list.txt")
        names = read_text(listed).splitlines()
        lines = [(number, None, name) for number, name in enumerate(names, 1) if name.strip()]
        form = "a folder with frames, groundtruth.txt, absence.label and meta_info.ini"
        return collect(listed, lines, lambda _, name: [raw_sequence(path, name)], report, form)

    def make(_, entry):
        name = re.sub(r"^(.*/)?GOT-10k/", "", entry["path"])  # published with its authors' paths
        folder = video_path(videos, name).removesuffix(".mp4")
        boxes = boxes_in_frame(entry["gt"])
        count = len(numbered_pictures(folder)) if os.path.isdir(folder) else 0
        example = tracking_example(os.path.basename(name), folder, entry["object"], boxes, count)
        return [example]

    form = "'path', 'object' and 'gt' with 8 boxes"
    return collect(path, json_entries(path), make, report, form)


def tracking_example(name, folder, thing, boxes, count):
    """count: frames in the folder; 0 where it is missing, which is said when it is read."""
    if 0 < count < N_BOXES:
        raise Malformed(f"{folder} holds {count} frames; at least {N_BOXES} are needed")
    frames = tuple(uniform_indices(count).tolist()) if count else ()
    return Example(name, "tracking", folder, sentence(thing), boxes, frames=frames)


def uniform_indices(count):
    """Which of `count` frames are asked about: (8,) from the first to the last.

    >>> uniform_indices(100).tolist()
    [0, 14, 28, 42, 57, 71, 85, 99]
    """
    return np.linspace(0, count - 1, N_BOXES).round().astype(int)


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
        frames = sum(bool(re.fullmatch(r"\d+\.jpg", f.lower())) for f in os.listdir(folder))
    except OSError as e:
        raise Malformed(f"{e.filename} cannot be read ({e.strerror})") from e
    except configparser.Error as e:
        raise Malformed(f"meta_info.ini: {' '.join(str(e).split())}") from e
    if not frames == len(pixel_boxes) == len(absent):
        raise Malformed(
            f"{folder} holds {frames} frames, {len(pixel_boxes)} boxes and {len(absent)} absence"
            " labels: unpack it again"
        )
    if frames < N_BOXES:
        raise Malformed(f"{folder} holds {frames} frames; at least {N_BOXES} are needed")
    chosen = uniform_indices(frames)
    if any(absent[i] for i in chosen):
        raise Malformed("the object is out of sight at one of the eight frames")
    boxes = [
        (x / width, y / height, (x + w) / width, (y + h) / height)
        for x, y, w, h in (pixel_boxes[i] for i in chosen)
    ]
    return tracking_example(name, folder, thing, boxes_in_frame(boxes), frames)


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
# Questions: NExT-GQA, Video-MME, MVBench, Perception Test
# ------------------------------------------------------------------------------------------------


def read_nextgqa(path, videos, report=print):
    """NExT-GQA: [{"id", "video": "1101/2574374895.mp4", "question", "options": ["(A) …", …],
                  "glue": [[23.0, 27.7]], "answer": "(C)"}].

    answer: (letter, [(start, end), …] in seconds). Its training split has no intervals: the paper
    trains on the validation file and evaluates on the test file, and so do we.
    """

    def make(_, entry):
        options = bare_options(entry["options"])
        evidence = [interval(*pair) for pair in entry["glue"]]
        if not evidence:
            raise Malformed("'glue' is empty")
        answer = (letter_of(entry["answer"], options), evidence)
        return [
            Example(
                str(entry["id"]),
                "gqa",
                video_path(videos, entry["video"]),
                sentence(entry["question"]),
                answer,
                options,
                group=str(entry.get("type", "")),
            )
        ]

    form = "'id', 'video', 'question', 'options', 'glue' and 'answer'"
    return collect(path, json_entries(path), make, report, form)


def read_videomme(path, videos, report=print):
    """Video-MME, from its parquet file (with pyarrow installed) or a JSON list of the same columns.

    group: its split by length, "short", "medium" or "long".
    """

    def make(_, entry):
        options = bare_options(entry["options"])
        return [
            Example(
                str(entry["question_id"]),
                "qa",
                video_path(videos, entry["videoID"]),
                sentence(entry["question"]),
                letter_of(entry["answer"], options),
                options,
                group=str(entry["duration"]),
            )
        ]

    entries = parquet_entries(path) if path.endswith(".parquet") else json_entries(path)
    form = "'question_id', 'videoID', 'duration', 'question', 'options' and 'answer'"
    return collect(path, entries, make, report, form)


def parquet_entries(path):
    """The rows of a parquet file as [(number from 1, number from 0, {column: value})]."""
    try:
        from pyarrow.parquet import read_table
    except ImportError as e:
        raise BadInput(f"{path} is a parquet file: pip install pyarrow, or save it as JSON") from e
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        return [(k + 1, k, row) for k, row in enumerate(read_table(path).to_pylist())]
    # pyarrow's own errors are kinds of these.
    except (ValueError, OSError, NotImplementedError) as e:
        said = " ".join(str(e).split())
        raise BadInput(f"{path} cannot be read as parquet; download it again ({said})") from e


# Where MVBench's own archive keeps the clips of each of its 20 sub-tasks.
MVBENCH_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "object_interaction": "star/Charades_v1_480",
    "object_existence": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "counterfactual_inference": "clevrer/video_validation",
    "object_shuffle": "perception/videos",
    "action_count": "perception/videos",
    "state_change": "perception/videos",
    "character_order": "perception/videos",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
}


def read_mvbench(path, videos, report=print):
    """MVBench, one of its 20 JSON files:
    [{"video", "question", "candidates": […], "answer": "…", "start", "end"}].

    group: the sub-task, which is the file's name. start and end, where given, are the seconds of
    the video that the question is about. The clips of episodic_reasoning are folders of frames,
    three per second.
    """
    subtask = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(videos, MVBENCH_FOLDERS.get(subtask, subtask))

    def make(k, entry):
        options, candidates = bare_options(entry["candidates"]), list(map(str, entry["candidates"]))
        answer = str(entry["answer"])
        if answer not in candidates:
            raise Malformed(f"the answer {answer[:60]!r} is none of the candidates")
        letter = letter_of(candidates.index(answer), options)
        span = interval(entry["start"], entry["end"]) if entry.get("end") is not None else None
        video = video_path(folder, entry["video"])
        return [
            Example(
                f"{subtask}/{k}",
                "qa",
                video.removesuffix(".mp4") if "frames" in folder else video,
                sentence(entry["question"]),
                letter,
                options,
                span,
                subtask,
            )
        ]

    form = "'video', 'question', 'candidates' and 'answer'"
    return collect(path, json_entries(path), make, report, form)


def read_perceptiontest(path, videos, report=print):
    """Perception Test: {"video_8241": {"mc_question": [
    {"id", "question", "options": [3 of them], "answer_id", "area"}]}}.
    """

    def make(name, entry):
        def ask(question):
            options = bare_options(question["options"])
            return Example(
                f"{name}/{question['id']}",
                "qa",
                video_path(videos, name),
                sentence(question["question"]),
                letter_of(int(question["answer_id"]), options),
                options,
                group=str(question.get("area", "")),
            )

        return each_usable(entry["mc_question"], ask)

    form = "'mc_question', each with 'id', 'question', 'options' and 'answer_id'"
    return collect(path, json_entries(path), make, report, form)


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
    """Captions, in our own form, because none is published:
    [{"video": "a.mp4", "events": ["a boy kicks a ball", "the dog runs away"]}].
    """

    def make(k, entry):
        if not isinstance(entry["events"], list) or not entry["events"]:
            raise Malformed("'events' is no list of sentences, or an empty one")
        events = [sentence(event) for event in entry["events"]]
        name = entry["video"]
        return [Example(f"{name}/{k}", "caption", video_path(videos, name), "", events)]

    form = "'video' and 'events', a list of sentences"
    return collect(path, json_entries(path), make, report, form)


# ------------------------------------------------------------------------------------------------
# Which file of which data set
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    reader: object  # the function that reads its files
    train: str  # pattern of the training files' names in the data set's folder; None: has none
    test: str
    videos: str  # its folder of videos
    source: str  # where people get it


DATASETS = {
    "charades": Dataset(
        read_charades,
        train=r"charades(_sta)?_train\b.*\.(txt|json)",
        test=r"charades(_sta)?_test\b.*\.(txt|json)",
        videos="videos",
        source=(
            "charades_sta_train.txt and charades_sta_test.txt from github.com/jiyanggao/TALL;"
            " Charades_v1_480.zip from prior.allenai.org/projects/charades, unpacked as"
            " videos/*.mp4"
        ),
    ),
    "activitynet": Dataset(
        read_charades,
        train=None,
        test=r"(activitynet_)?(test|val_2)\b.*\.json",
        videos="videos",
        source=(
            "test.json of ActivityNet Captions' grounding split; the videos from activity-net.org"
            " as videos/v_*.mp4"
        ),
    ),
    "got10k": Dataset(
        read_got10k,
        train=r"train|got_train.*\.json",
        test=r"val|got_val.*\.json",
        videos=".",
        source=(
            "full_data.zip from got-10k.aitestunion.com: folders train/ and val/, each with"
            " list.txt"
        ),
    ),
    "nextgqa": Dataset(
        read_nextgqa,
        train=r"nextgqa_val.*\.json",
        test=r"nextgqa_test.*\.json",
        videos="videos",
        source=(
            "nextgqa_val.json and nextgqa_test.json from"
            " huggingface.co/datasets/OpenGVLab/VideoChat-R1-training-annotations; NExT-QA's videos"
            " as videos/1101/*.mp4"
        ),
    ),
    "quality": Dataset(
        read_quality,
        train=r"quality_train.*\.json",
        test=r"quality_test.*\.json",
        videos="videos",
        source=(
            "VidTAB's video quality task, from"
            " huggingface.co/datasets/OpenGVLab/VideoChat-R1-training-annotations; videos/*.mp4"
        ),
    ),
    "caption": Dataset(
        read_captions,
        train=r"captions_train.*\.json",
        test=r"captions_test.*\.json",
        videos="videos",
        source=(
            'your own: captions_train.json and captions_test.json, [{"video": "a.mp4", "events":'
            ' ["…"]}]; videos/*.mp4'
        ),
    ),
    "videomme": Dataset(
        read_videomme,
        train=None,
        test=r"(test|videomme).*\.(parquet|json)",
        videos="videos",
        source=(
            "huggingface.co/datasets/lmms-lab/Video-MME: test-00000-of-00001.parquet, and the"
            " videos as videos/*.mp4"
        ),
    ),
    "mvbench": Dataset(
        read_mvbench,
        train=None,
        test=r"[a-z_-]+\.json",
        videos="video",
        source=(
            "huggingface.co/datasets/OpenGVLab/MVBench: json/*.json, and the archives unpacked"
            " under video/"
        ),
    ),
    "perceptiontest": Dataset(
        read_perceptiontest,
        train=None,
        test=r"(all|mc_question)_valid.*\.json",
        videos="videos",
        source=(
            "mc_question_valid.json and valid videos from"
            " github.com/google-deepmind/perception_test; videos/*.mp4"
        ),
    ),
}


def read_dataset(name, split, folder, report=print):
    """All Examples of a data set's split, "train" or "test", from the files in `folder`.

    MVBench has 20 files, in json/; of the others the first that fits is read, text before JSON.
    Ids are unique: a repeated id is numbered (the second "x" is "x#2"), and that is reported.
    Raises BadInput, which says where to get what is missing.
    """
    dataset = DATASETS[name]
    pattern = getattr(dataset, split)
    if pattern is None:
        raise BadInput(f"{name} is only evaluated on, never trained on")
    if not os.path.isdir(folder):
        raise BadInput(f"data folder {folder} does not exist. What belongs in it: {dataset.source}")
    files = os.path.join(folder, "json") if name == "mvbench" else folder
    belongs = f"What belongs in {folder}: {dataset.source}"
    names = os.listdir(files) if os.path.isdir(files) else []
    names = [n for n in names if re.fullmatch(pattern, n)]
    if not names:
        raise BadInput(f"no {split} annotations of {name} in {files}. {belongs}")
    videos = os.path.join(folder, dataset.videos)
    if not os.path.isdir(videos):
        raise BadInput(f"no folder {videos} with the clips. {belongs}")
    names.sort(key=lambda n: (not n.endswith(".txt"), n))
    paths = [os.path.join(files, n) for n in (names if name == "mvbench" else names[:1])]
    examples = [e for path in paths for e in dataset.reader(path, videos, report)]
    source = paths[0] if len(paths) == 1 else f"{paths[0]} and the files beside it"
    number_repeated(examples, source, report)
    return examples


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
