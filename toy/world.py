"""world.py: a made-up world that fits in a laptop, as every data set of the project.

Coloured shapes come, move and go. Each data set of `annotations/readers.py` has a counterpart here,
rendered as real files in that data set's own format, so that the rest of the project cannot tell
them from the real ones: H.264 clips, folders of jpg frames, text and JSON annotations. `base.py`
trains the small model that lives in this world. MAKERS, below, lists the data sets; train.py and
eval.py render those that they need.

    python -m toy                   # renders all of them into data/toy
    python -m toy charades got10k   # renders two

Looking must pay here, and nothing else: a thing is on screen for 1.5 to 4 of 12 to 20 seconds, and
nobody can know when; what is tracked roams from corner to corner; in each kind of question every
option is right equally often; no word stands in every event. The best answers that never look
(evaluation/controls.py) earn 22 mIoU in charades and activitynet, 23 in timelens-charades and in
nextgqa's evidence, 15 in got10k, half of quality, a fifth of caption's events, and with letters at
most 1.13 times what guessing does. tests/test_toy.py holds that.
"""

import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass, field

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from annotations import MARK
from lib.errors import BadInput
from lib.files import put_aside, replace_file

# ------------------------------------------------------------------------------------------------
# The world
# ------------------------------------------------------------------------------------------------

COLOURS = {
    "red": (222, 60, 60),
    "green": (60, 190, 80),
    "blue": (70, 110, 235),
    "yellow": (235, 205, 60),
    "purple": (170, 80, 205),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
PATHS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
SENTENCES = (
    "a {thing} moves {path}.",
    "the {thing} goes {path}",
    "a {thing} appears and moves {path}.",
    "{thing} moving {path}.",
)

SIDE = 112  # pixels; the toy model looks at 56 × 56, which is 4 tokens for a pair of frames
FPS = 8


@dataclass
class Thing:
    """Something that is on screen for a while and moves. Lengths are shares of the frame's side."""

    colour: str
    shape: str
    path: str  # one of PATHS
    start: float  # seconds
    end: float
    points: tuple  # (x, y) of its centre, evenly spaced in time, with straight lines between them
    radius: float

    @property
    def name(self):
        return f"{self.colour} {self.shape}"

    def visible(self, t):
        return self.start <= t < self.end

    def centre(self, t):
        times = np.linspace(self.start, self.end, len(self.points))
        return tuple(float(np.interp(t, times, axis)) for axis in zip(*self.points))

    def box(self, t):
        (x, y), r = self.centre(t), self.radius
        return tuple(min(1.0, max(0.0, v)) for v in (x - r, y - r, x + r, y + r))


@dataclass
class Clip:
    """A clip before it is rendered."""

    name: str  # of the file
    duration: float  # seconds
    grey: int  # level of the background, 0 to 255
    things: list = field(default_factory=list)
    strange: bool = False  # colours a shade off, a background that changes from side to side
    damage: str = ""  # or "blur", "noise", "pale"

    @property
    def in_order(self):
        """Its things in the order in which they appear."""
        return sorted(self.things, key=lambda thing: thing.start)


KINDS = "train test base activitynet got10k nextgqa quality caption exam long".split()
# Seconds of a clip (others: 12 to 20), and of a thing on screen (others: 1.5 to 4).
SECONDS = {"activitynet": (20, 30), "long": (40, 80)}
ON_SCREEN = {"activitynet": (2, 6), "long": (4, 12), "nextgqa": (1.5, 3.5)}


def make_clip(kind, index, seed=0):
    """The clip number `index` of a kind, always the same for the same arguments.

    It has two to four things, no two of the same name, so that a name picks out one interval. In
    clips for tracking, the first thing is on screen from beginning to end and roams.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind), index])
    duration = round(rng.uniform(*SECONDS.get(kind, (12, 20))), 1)
    names = [(c, s) for c in COLOURS for s in SHAPES]
    things = []
    for k, i in enumerate(rng.choice(len(names), size=rng.integers(2, 5), replace=False)):
        length = rng.uniform(*ON_SCREEN.get(kind, (1.5, 4)))
        start = rng.uniform(0, duration - length)
        path = str(rng.choice(list(PATHS)))
        points, radius = crossing(PATHS[path], rng), rng.uniform(0.17, 0.21)
        if kind == "got10k" and k == 0:
            start, length, points, radius = 0, duration, roaming(rng), rng.uniform(0.15, 0.18)
        end = min(duration, round(start + length, 1))
        things.append(Thing(*names[i], path, round(start, 1), end, points, radius))
    damaged = kind == "quality" and index % 2
    damage = str(rng.choice(("blur", "noise", "pale"))) if damaged else ""
    grey, strange = int(rng.integers(20, 110)), kind == "activitynet"
    return Clip(f"{kind}{index:05d}", duration, grey, things, strange, damage)


def crossing(direction, rng):
    """A straight line through about the middle: where it begins, where it ends."""
    middle, reach = rng.uniform(0.25, 0.75, size=2), rng.uniform(0.15, 0.32)
    middle = np.where(np.abs(direction), 0.5 + rng.uniform(-0.05, 0.05), middle)
    ends = middle - reach * np.array(direction), middle + reach * np.array(direction)
    return tuple(tuple(end.tolist()) for end in ends)


def roaming(rng):
    """Four places, each far from the one before and from the first: none can be foretold."""
    while True:
        points = rng.uniform(0.16, 0.84, size=(4, 2))
        legs, away = np.diff(points, axis=0), points[1:] - points[0]
        if min(np.hypot(*legs.T).min(), np.hypot(*away.T).min()) > 0.4:
            return tuple(map(tuple, points.tolist()))


def draw(clip, t):
    """The frame at t seconds: (SIDE, SIDE, 3) uint8."""
    image = Image.new("RGB", (SIDE, SIDE), (clip.grey,) * 3)
    if clip.strange:  # brighter from left to right, and warmer from top to bottom
        x, y = np.meshgrid(np.linspace(0, 60, SIDE), np.linspace(0, 40, SIDE))
        background = np.stack([clip.grey + x + y, clip.grey + x, clip.grey + x - y], axis=2)
        image = Image.fromarray(np.clip(background, 0, 150).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for thing in clip.things:
        if not thing.visible(t):
            continue
        x, y = (SIDE * p for p in thing.centre(t))
        r, colour = SIDE * thing.radius, COLOURS[thing.colour]
        if clip.strange:
            colour = tuple(int(0.85 * v + 0.15 * w) for v, w in zip(colour, (255, 160, 120)))
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "triangle":
            pen.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=colour)
        else:
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
    if clip.damage == "blur":
        image = image.filter(ImageFilter.GaussianBlur(7))
    pixels = np.asarray(image)
    if clip.damage == "noise":
        grains = np.random.default_rng([int(1000 * t), len(clip.name)])
        noise = grains.normal(0, 60, (SIDE // 4, SIDE // 4, 1)).repeat(4, axis=0).repeat(4, axis=1)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if clip.damage == "pale":
        pixels = (0.25 * pixels + 160).astype(np.uint8)
    return pixels


def render(clip, path):
    """Writes the clip as an H.264 mp4, under its name only once it is complete."""
    partial, options = path + ".partial.mp4", {"preset": "ultrafast", "crf": "20", "threads": "1"}
    with av.open(partial, "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(round(clip.duration * FPS)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(draw(clip, i / FPS), "rgb24")))
        file.mux(stream.encode())
    os.replace(partial, path)


ANNO_FPS = 2  # pictures per second in a toy GOT-10k folder


def render_folder(clip, path):
    """Writes the clip as a GOT-10k sequence of its first thing: frames and three text files."""
    partial = path + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    times = np.arange(int(clip.duration * ANNO_FPS)) / ANNO_FPS
    thing, lines = clip.things[0], []
    for i, t in enumerate(times):
        Image.fromarray(draw(clip, t)).save(os.path.join(partial, f"{i + 1:08d}.jpg"), quality=92)
        x0, y0, x1, y1 = (SIDE * v for v in thing.box(t))
        lines.append(f"{x0:.4f},{y0:.4f},{x1 - x0:.4f},{y1 - y0:.4f}\n")
    replace_file(os.path.join(partial, "groundtruth.txt"), "".join(lines))
    replace_file(os.path.join(partial, "absence.label"), "0\n" * len(times))
    about = f"[METAINFO]\nanno_fps: {ANNO_FPS}Hz\nobject_class: {thing.name}\n"
    about += f"resolution: ({SIDE}, {SIDE})\n"
    replace_file(os.path.join(partial, "meta_info.ini"), about)
    os.replace(partial, path)


def render_job(job):
    """Renders one clip, unless it is there. job: (kind, number, seed, folder). Returns its path."""
    kind, index, seed, folder = job
    clip, tracked = make_clip(kind, index, seed), kind == "got10k"
    path = os.path.join(folder, clip.name if tracked else clip.name + ".mp4")
    if not os.path.exists(path):
        (render_folder if tracked else render)(clip, path)
    return path


def render_clips(jobs):
    """Renders the clips of [(kind, number, seed, folder)]; if there are many, on all cores."""
    for folder in {job[3] for job in jobs}:
        os.makedirs(folder, exist_ok=True)
    if len(jobs) < 100:
        return [render_job(job) for job in jobs]
    from lib.processes import Progress, cores  # torch, which the pool does without

    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        done = pool.imap_unordered(render_job, jobs, chunksize=8)
        return list(Progress(len(jobs), "clip", "rendering").over(done))


# ------------------------------------------------------------------------------------------------
# Questions about it
# ------------------------------------------------------------------------------------------------


def caption(thing, rng):
    return str(rng.choice(SENTENCES)).format(thing=thing.name, path=thing.path)


def events(clip):
    """What happens, in order: a headline for each thing.

    It holds nothing but colour, shape and path. A verb that is the same in every event would be a
    word that the judge (rewards.says) finds without a look: three headlines would find a third.
    """
    return [f"a {thing.name} {thing.path}" for thing in clip.in_order]


# Each ask_ function returns (question, options, the right option, the thing it is about).
#
# A kind of question always has its options in the same order. A model of a million parameters
# cannot look up which letter stands before an option: after 1,000 steps of practice it still
# guessed.


def ask_existence(clip, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    name, right = thing.name, "yes"
    if rng.random() >= 0.5:
        in_clip = {t.name for t in clip.things}
        name, right = rng.choice([n for n in NAMES if n not in in_clip]), "no"
    return f"is there a {name} in the video", ["yes", "no"], right, thing


def ask_direction(clip, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    return f"how does the {thing.name} move", list(PATHS), thing.path, thing


def ask_first(clip, rng):
    thing = clip.in_order[0]
    return "which shape appears first", list(SHAPES), thing.shape, thing


def ask_colour(clip, rng):
    """Asks for the colour of a shape that is there once, or else of the thing that comes first."""
    shapes = [t.shape for t in clip.things]
    alone = [t for t in clip.things if shapes.count(t.shape) == 1]
    if not alone:
        thing = clip.in_order[0]
        return "which colour appears first", list(COLOURS), thing.colour, thing
    thing = alone[rng.integers(len(alone))]
    return f"which colour has the {thing.shape}", list(COLOURS), thing.colour, thing


def ask_count(clip, rng):
    question = "how many things appear in the whole video"
    return question, ["2", "3", "4"], str(len(clip.things)), clip.things[0]


QUESTIONS = {
    "object_existence": ask_existence,
    "moving_direction": ask_direction,
    "character_order": ask_first,
    "moving_attribute": ask_colour,
    "action_count": ask_count,
}
# The kinds of question whose evidence is one thing's time on screen.
GROUNDED = ("moving_direction", "character_order", "moving_attribute")


# ------------------------------------------------------------------------------------------------
# The data sets
# ------------------------------------------------------------------------------------------------
# Each make_ function returns a data set's annotations, {file name: text or what its JSON holds},
# and the clips to render, [(kind, number, seed, folder)]. train, test: how many clips. The clip's
# number alone draws what is asked about it.


def clips_of(kind, numbers, seed, folder="videos"):
    return [(kind, i, seed, folder) for i in numbers]


def make_charades(seed, train=1000, test=200):
    """A training clip has one query per thing; a test clip has one: 200 clips are 200 queries."""
    files, jobs = {}, []
    for split, count in (("train", train), ("test", test)):
        lines = []
        for i in range(count):
            clip, rng = make_clip(split, i, seed), np.random.default_rng([seed, i])
            for thing in clip.things if split == "train" else clip.things[:1]:
                lines.append(f"{clip.name} {thing.start} {thing.end}##{caption(thing, rng)}\n")
        files[f"charades_sta_{split}.txt"] = "".join(lines)
        jobs += clips_of(split, range(count), seed)
    return files, jobs


def queries(file, kind, which, spans, sentences, count):
    """A query about thing number `which` of each clip. spans, sentences: the keys of the form."""

    def make(seed, train=0, test=count):
        entries = {}
        for i in range(test):
            clip, rng = make_clip(kind, i, seed), np.random.default_rng([seed, i])
            thing = clip.things[which]
            entry = {"duration": clip.duration, spans: [[thing.start, thing.end]]}
            entries[clip.name] = entry | {sentences: [caption(thing, rng)]}
        return {file: entries}, clips_of(kind, range(test), seed)

    return make


def make_got10k(seed, train=600, test=100):
    files, jobs = {}, []
    for split, numbers in (("train", range(test, test + train)), ("val", range(test))):
        names = [make_clip("got10k", i, seed).name for i in numbers]
        files[f"{split}/list.txt"] = "".join(f"{name}\n" for name in names)
        jobs += clips_of("got10k", numbers, seed, split)
    return files, jobs


def balanced(clips, kinds, first, count, seed):
    """[(clip's number, clip, kind, question, options, number of the right one, thing)].

    In each kind of question every option is right equally often. Clips are taken in order from
    number `first` on; one in which the answer that is due is not right is left out.
    """
    asked, number = [], first
    while len(asked) < count:
        turn, kind = divmod(len(asked), len(kinds))
        clip, rng = make_clip(clips, number, seed), np.random.default_rng([seed, number])
        question, options, right, thing = QUESTIONS[kinds[kind]](clip, rng)
        k = options.index(right)
        if k == turn % len(options):
            asked.append((number, clip, kinds[kind], question, options, k, thing))
        number += 1
    return asked


def exam(first, count, seed, clips="exam"):
    """Multiple choice of every kind, and its clips; each benchmark begins at a clip of its own."""
    asked = balanced(clips, list(QUESTIONS), first, count, seed)
    return asked, clips_of(clips, [number for number, *_ in asked], seed)


def lettered(options, form="({}) {}"):
    return [form.format(letter, option) for letter, option in zip("ABCDEF", options)]


def make_nextgqa(seed, train=800, test=200):
    """Questions whose evidence is the time in which the thing is there.

    The training file is called val, because the paper trains on NExT-GQA's val file.
    """
    files, jobs = {}, []
    for split, first, count in (("val", 5000, train), ("test", 0, test)):
        asked = balanced("nextgqa", GROUNDED, first, count, seed)
        files[f"nextgqa_{split}.json"] = [
            {
                "id": f"{clip.name}_0",
                "video": f"{clip.name}.mp4",
                "question": question,
                "options": lettered(options),
                "duration": round(clip.duration),
                "glue": [[thing.start, thing.end]],
                "type": kind,
                "answer": f"({'ABCDEF'[k]})",
            }
            for _, clip, kind, question, options, k, thing in asked
        ]
        jobs += clips_of("nextgqa", [number for number, *_ in asked], seed)
    return files, jobs


def judged(clip):
    answer = "low quality" if clip.damage else "high quality"
    return {"instruction": "low or high quality?", "answer": answer}


def told(clip):
    return {"events": events(clip)}


def entries_of(kind, file, about):
    """An entry for each clip. about: a clip → what its entry says."""

    def make(seed, train=200, test=100):
        files = {}
        for split, numbers in (("train", range(test, test + train)), ("test", range(test))):
            clips = [make_clip(kind, i, seed) for i in numbers]
            entries = [{"video": f"{clip.name}.mp4"} | about(clip) for clip in clips]
            files[f"{file}_{split}.json"] = entries
        return files, clips_of(kind, range(train + test), seed)

    return make


def make_dream1k(seed, train=0, test=50):
    """Two sources, so that their means are told apart from the mean over clips."""
    entries, numbers = [], range(1000, 1000 + test)
    for clip in (make_clip("caption", i, seed) for i in numbers):
        happens = events(clip)
        entries.append({
            "idx": len(entries) + 1,
            "video_file": f"video/{clip.name}.mp4",
            "source": "movie_live_action" if len(clip.things) > 2 else "stock",
            "duration": clip.duration,
            "description": " ".join(["The background is grey.", *(f"{e}." for e in happens)]),
            "events": happens,
        })
    return {"metadata.json": entries}, clips_of("caption", numbers, seed)


def make_videomme(seed, train=0, test=150):
    asked, jobs = exam(0, test, seed)
    entries = [
        {
            "question_id": f"{number:03d}-1",
            "videoID": clip.name,
            "duration": ("short", "medium", "long")[int(clip.duration > 15) + (clip.duration > 18)],
            "task_type": kind,
            "question": question,
            "options": lettered(options, "{}. {}"),
            "answer": "ABCDEF"[k],
        }
        for number, clip, kind, question, options, k, _ in asked
    ]
    return {"videomme.json": entries}, jobs


def make_longvideobench(seed, train=0, test=50):
    """Longer than what fits into the toy model's 64 frames at two per second: it sees one frame
    every 0.6 to 1.3 seconds, and a second look sees more of them."""
    asked, jobs = exam(0, test, seed, "long")
    entries = [
        {
            "id": f"{clip.name}_0",
            "video_path": f"{clip.name}.mp4",
            "question": question,
            "question_category": kind,
            "duration": clip.duration,
            "duration_group": 60 if clip.duration <= 60 else 600,
            "candidates": options,
            "correct_choice": k,
        }
        for _, clip, kind, question, options, k, _ in asked
    ]
    return {"lvb_val.json": entries}, jobs


def make_mvbench(seed, train=0, test=200):
    # Imported here, because the processes that render need no torch.
    from annotations.benchmarks import MVBENCH_FOLDERS

    asked, _ = exam(2000, test, seed)
    files, jobs = {f"json/{subtask}.json": [] for subtask in QUESTIONS}, []
    for number, clip, subtask, question, options, k, _ in asked:
        entry = {"video": f"{clip.name}.mp4", "question": question, "candidates": options}
        files[f"json/{subtask}.json"].append(entry | {"answer": options[k]})
        jobs += clips_of("exam", [number], seed, f"video/{MVBENCH_FOLDERS[subtask]}")
    return files, jobs


def make_perceptiontest(seed, train=0, test=150):
    (asked, jobs), entries = exam(4000, test, seed), {}
    for _, clip, kind, question, options, k, _ in asked:
        area = "memory" if kind in ("character_order", "action_count") else "semantics"
        asks = {"id": 0, "question": question, "options": options, "answer_id": k, "area": area}
        entries[clip.name] = {"metadata": {"video_id": clip.name}, "mc_question": [asks]}
    return {"mc_question_valid.json": entries}, jobs


# TimeLens annotates clips of other data sets again: here the last thing instead of the first, so
# that no question is asked twice.
TIMELENS = (-1, "spans", "queries", 50)
MAKERS = {
    "charades": make_charades,  # when a shape is there
    "activitynet": queries("test.json", "activitynet", 0, "timestamps", "sentences", 100),
    "timelens-charades": queries("charades-timelens.json", "test", *TIMELENS),
    "timelens-activitynet": queries("activitynet-timelens.json", "activitynet", *TIMELENS),
    "got10k": make_got10k,  # where a shape is, as folders of jpg frames
    "nextgqa": make_nextgqa,  # multiple choice with evidence
    "quality": entries_of("quality", "quality", judged),  # blurred, noisy, pale against clean
    "caption": entries_of("caption", "captions", told),  # what happens, as a list of events
    "dream1k": make_dream1k,  # the same, with the text that they were taken from
    "videomme": make_videomme,  # multiple choice of several kinds
    "longvideobench": make_longvideobench,  # the same, in clips of 40 to 80 seconds
    "mvbench": make_mvbench,
    "perceptiontest": make_perceptiontest,
}


def annotate(name, folder, seed, **counts):
    """Writes a data set's annotations into `folder`. Returns the clips to render."""
    files, jobs = MAKERS[name](seed, **counts)
    for file_name, content in files.items():
        path = os.path.join(folder, file_name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        replace_file(path, text)
    return jobs


def read_mark(folder):
    """The version that a data set made here has; None if there is none."""
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as f:
            return f.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def ensure(name, folder=None, seed=0, **counts):
    """Makes the toy data set of that name unless it is there. Returns its folder, data/toy/NAME.

    counts: train=…, test=…: how many clips, if other than usual.

    It is rendered aside and renamed when it is complete: several programs may start at the same
    time, and one that is cut short leaves nothing that looks finished. Nothing is removed: another
    version becomes FOLDER.old-1. Raises BadInput if what is there was not made here.
    """
    folder = os.path.normpath(folder or os.path.join("data", "toy", name))
    version = f"toy {name}, seed {seed}, {counts}, {SIDE} px, {FPS} fps, version 6\n"
    if read_mark(folder) == version:
        return folder
    refuse_foreign(folder)
    aside = f"{folder}.partial-{os.getpid()}-{os.urandom(4).hex()}"
    os.makedirs(aside)
    try:
        replace_file(os.path.join(aside, MARK), version)
        jobs = annotate(name, aside, seed, **counts)
        render_clips([(kind, i, s, os.path.join(aside, inside)) for kind, i, s, inside in jobs])
        put_in_place(aside, folder, version)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def refuse_foreign(folder):
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise BadInput(f"{folder}, where the toy data belongs, is a file: move it away")
    if os.path.isdir(folder) and os.listdir(folder) and read_mark(folder) is None:
        foreign = "holds files that were not made by python -m toy: move them away"
        raise BadInput(f"folder {folder}, where the toy data belongs, {foreign}")


def put_in_place(aside, folder, version):
    """Renames a finished data set to its place, unless another process was faster."""
    for _ in range(5):
        if read_mark(folder) == version:
            return
        refuse_foreign(folder)
        try:
            if os.path.lexists(folder):
                put_aside(folder)
            return os.rename(aside, folder)
        except OSError as e:  # another process renamed something in between: look again
            problem = e
    raise problem
