"""Hostile cases: what people, disks, downloads and queues do to these programs, each with the end
it must have.

    python tests/bench/hostile.py                   # all of them, in minutes on 2 cores
    python tests/bench/hostile.py --class locks     # one class
    python tests/bench/hostile.py --first 2         # two of each class: what `make test` runs
    python tests/bench/hostile.py --list

A case is a scratch folder with files of somebody else in it, a command, the exit status it must
have and words it must say. Besides, whatever the case: no traceback; no file of somebody else is
missing; status 2 is said in one sentence and has changed nothing in the folder (unless the case
says so); and nothing goes on for longer than --patience.

Importing torch takes longer than most cases. So each command is a fork of this process, which has
imported everything and has started no thread; only what is about the process itself (its terminal,
its standard output) is a process from scratch.
"""

import argparse
import ctypes
import fcntl
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
}
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import lib.threads  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import av
import numpy as np
import test_container as clips
import test_folders as damaged
import test_hub as models
from PIL import Image

import eval as evaluation
import train
from annotations import __main__ as readers_command
from annotations import readers
from course import __main__ as course
from lib import errors
from lib import files as folders
from tools import merge, paper, report
from toy import __main__ as world_command
from toy import world
from training import settings

# What a command begins with: a file at the root, or the module that `python -m` is given.
PROGRAMS = {
    "train.py": train,
    "eval.py": evaluation,
    "tools.report": report,
    "tools.merge": merge,
    "tools.paper": paper,
    "course": course,
    "annotations": readers_command,
    "toy": world_command,
}


def start_of(program):
    """How a new process starts it."""
    return f"{{root}}/{program}" if program.endswith(".py") else f"-m {program}"


class Case(NamedTuple):
    """command: words, with {name} for what MAKERS makes; one that begins with "$ " is a line for
    bash, in a new process. within(): in the program's process, before it. meanwhile(pid): while it
    runs. setup and meanwhile are called in the scratch folder. writes: it may change files and
    still end with status 2."""

    kind: str
    what: str
    command: str
    status: Any = 2  # or a tuple of them
    says: str = ""
    setup: Any = None
    within: Any = None
    meanwhile: Any = None
    writes: bool = False


# ------------------------------------------------------------------------------------------------
# What many cases start from: made once, by the first that asks
# ------------------------------------------------------------------------------------------------

HOME = ""
TINY = (
    "--group-size 2 --prompts-per-step 2 --max-new-tokens 16 --steps 1 --rollouts-every 1 --quiet"
)
TRAIN = f"train.py --data {{data}} {TINY} --lora 2 --out"
LONG = TRAIN.replace("--steps 1", "--steps 100000 --save-every 100000")
EVAL = "eval.py --bench charades --data {data} --max-new-tokens 16"
ASK = "eval.py --max-new-tokens 1 --ask ? --video"


def make_run(path):
    """A finished run of one step of adapters."""
    program(f"{TRAIN} {path}.partial")
    os.rename(path + ".partial", path)


def make_evaluated(path):
    shutil.copytree(made("run"), path)
    program(f"{EVAL} --model {path}")


def make_hub(path):
    models.folder_of(path)


MAKERS = {
    "data": lambda path: world.ensure("charades", path, train=4, test=2),
    "run": make_run,
    "evaluated": make_evaluated,
    "hub": make_hub,
    "clip": lambda path: shutil.copy(os.path.join(made("data"), "videos", "test00000.mp4"), path),
    "h264.mp4": lambda path: clips.write_clip(path, "libx264", clips.TENTHS),
}


def made(name):
    path = os.path.join(HOME, name)
    with open(path + ".lock", "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        if not os.path.exists(path):
            MAKERS[name](path)
    return path


class Made(dict):
    def __missing__(self, name):
        return {"python": sys.executable, "root": ROOT}.get(name) or made(name)


def program(command):
    said = os.path.join(HOME, f"made.{os.getpid()}")
    status, said = wait(start(words_of(command), HOME, said), said, 300)
    if status:
        raise RuntimeError(f"{command}: {said[-2000:]}")


def copy(name, to):
    return lambda: shutil.copytree(made(name), to)


RUN, EVALUATED = copy("run", "run"), copy("evaluated", "run")


def after(*steps):
    """A setup of several; a text makes a file of that name, a folder where it ends with a slash."""

    def setup():
        for step in steps:
            if callable(step):
                step()
            elif step.endswith("/"):
                os.makedirs(step)
            else:
                os.makedirs(os.path.dirname(step) or ".", exist_ok=True)
                Path(step).write_text(f"mine, {step}", encoding="utf-8")

    return setup


# ------------------------------------------------------------------------------------------------
# Videos
# ------------------------------------------------------------------------------------------------


def good_clip(name):
    codec, times, options, *more = clips.CLIPS[name]
    return lambda: clips.write_clip(name, codec, times, options, **(more[0] if more else {}))


def changed_clip(change):
    """clip.mp4: a good one, whose bytes `change` has changed."""
    return lambda: Path("clip.mp4").write_bytes(change(Path(made("h264.mp4")).read_bytes()))


def flipped(seed):
    def change(content):
        rng, content = np.random.default_rng(seed), bytearray(content)
        for at in rng.integers(0, len(content), 40):
            content[at] ^= 1 << rng.integers(8)
        return bytes(content)

    return change


def pictures(sizes, name="clip.mp4"):
    os.mkdir(name)
    for k, size in enumerate(sizes, 1):
        Image.new("RGB", size).save(f"{name}/{k:08}.png")


def tiny_clip(frames, width=64, height=64, codec="libx264"):
    def setup():
        with av.open("clip.mp4", "w") as file:
            stream = file.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(frames):
                file.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
            file.mux(stream.encode())

    return setup


def only_sound():
    with av.open("clip.mp4", "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())


CANNOT = (
    "video file clip.mp4 .*(cannot be decoded|can't be decoded|is damaged|breaks off|no frame"
    "|no video|no duration)"
)
BAD_CLIPS = {
    "an empty file": (changed_clip(lambda b: b""), "is empty"),
    "half of one": (changed_clip(lambda b: b[: len(b) // 2]), CANNOT),
    "a tenth of one": (changed_clip(lambda b: b[: len(b) // 10]), CANNOT),
    "without its first half": (changed_clip(lambda b: b[len(b) // 2 :]), CANNOT),
    "a text": (changed_clip(lambda b: b"404 not found\n" * 99), CANNOT),
    "zeros": (changed_clip(lambda b: bytes(99_999)), CANNOT),
    "noise": (changed_clip(lambda b: np.random.default_rng(0).bytes(50_000)), CANNOT),
    "a codec that nobody knows": (changed_clip(lambda b: b.replace(b"avc1", b"xxxx")), CANNOT),
    "sound alone": (only_sound, "holds no video"),
    "a stream without a container": (
        lambda: clips.write_clip("clip.mp4", "libx264", clips.TENTHS, form="h264"),
        "does not say when",
    ),
    "too narrow": (tiny_clip(8, 16, 3600, "mpeg4"), "too narrow"),
    "no file": (None, "does not exist"),
    "a pipe": (lambda: os.mkfifo("clip.mp4"), "does not exist"),
    "a link to itself": (lambda: os.symlink("clip.mp4", "clip.mp4"), "does not exist"),
    "a folder without frames": (lambda: os.mkdir("clip.mp4"), "holds no numbered"),
    "frames of two sizes": (lambda: pictures([(56, 56)] * 7 + [(56, 84)]), "different sizes"),
    "a frame of 20,000 x 20,000": (
        lambda: pictures([(20_000, 20_000)] + [(8, 8)] * 7),
        "more than the .* can be read",
    ),
    "a broken frame": (
        after(
            lambda: pictures([(56, 56)] * 8),
            lambda: Path("clip.mp4/00000001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)),
        ),
        "cannot be read",
    ),
}
NAMES = [
    "with space.mp4",
    "$x_{$\\frac.mp4",
    "ünï-çode.mp4",
    "-dash.mp4",
    "'quotes\".mp4",
    "%s{}.mp4",
    "line\nbreak.mp4",
]


def videos():
    for what, (setup, says) in BAD_CLIPS.items():
        yield Case("videos", what, f"{ASK} clip.mp4", 2, says, setup)
    seven = after(lambda: pictures([(56, 56)] * 7))
    yield Case(
        "videos", "a folder of seven frames", f"{ASK} clip.mp4", 0, "2.3 s of video as", seven
    )
    for name in clips.CLIPS:
        yield Case("videos", f"a good {name}", f"{ASK} {name}", 0, "s of video as", good_clip(name))
    for name in NAMES:
        put = lambda name=name: shutil.copy(made("h264.mp4"), name)
        yield Case(
            "videos",
            f"called {name!r}",
            f"{ASK[:-8]} {shlex.quote('--video=' + name)}".replace("{}", "{{}}").replace(
                "_{", "_{{"
            ),
            0,
            "12.0 s of video",
            put,
        )
    for seed in range(6):
        yield Case(
            "videos",
            f"40 flipped bits, {seed}",
            f"{ASK} clip.mp4",
            (0, 2),
            "",
            changed_clip(flipped(seed)),
        )
    unsized = changed_clip(lambda content: content.replace(b"\0\x80\0\x40", b"\0\0\0\0"))
    yield Case(
        "videos",
        "a head that says 0 x 0, the frames do not",
        f"{ASK} clip.mp4",
        0,
        "s of video as",
        unsized,
    )
    yield Case("videos", "one frame", f"{ASK} clip.mp4", 0, "s of video", tiny_clip(1))


# ------------------------------------------------------------------------------------------------
# Annotations
# ------------------------------------------------------------------------------------------------

CHOICE = {"question": "which door", "options": ["(A) x", "(B) y", "(C) z"]}
STATED = {"CLIP": {"timestamps": [[1, 2]], "sentences": ["a door opens"]}}
ENTRIES = {
    "charades": ("charades_test.json", STATED),
    "activitynet": ("test.json", STATED),
    "timelens-charades": (
        "charades-timelens.json",
        {"CLIP": {"spans": [[1, 2]], "queries": ["a door opens"]}},
    ),
    "timelens-activitynet": (
        "activitynet-timelens.json",
        [{"video_path": "CLIP", "query": "a door opens", "span": "[[1, 2]]"}],
    ),
    "got10k": ("got_val.json", [{"path": "CLIP", "object": "door", "gt": [[0, 0, 1, 1]] * 8}]),
    "nextgqa": (
        "nextgqa_test.json",
        [CHOICE | {"id": "1", "video": "CLIP", "glue": [[1, 2]], "answer": "(A)"}],
    ),
    "quality": ("quality_test.json", [{"video": "CLIP", "answer": "low quality"}]),
    "caption": ("captions_test.json", [{"video": "CLIP", "events": ["a door opens"]}]),
    "dream1k": (
        "metadata.json",
        [
            {
                "idx": 1,
                "video_file": "CLIP",
                "source": "film",
                "description": "a door opens",
                "events": ["a door opens"],
            }
        ],
    ),
    "longvideobench": (
        "lvb_val.json",
        [
            {
                "id": "1",
                "video_path": "CLIP",
                "question": "which door",
                "candidates": ["x", "y"],
                "correct_choice": 1,
                "duration_group": 60,
            }
        ],
    ),
    "videomme": (
        "videomme.json",
        [CHOICE | {"question_id": "1", "videoID": "CLIP", "duration": "short", "answer": "A"}],
    ),
    "mvbench": (
        "json/action_count.json",
        [{"video": "CLIP", "question": "which door", "candidates": ["x", "y"], "answer": "x"}],
    ),
    "perceptiontest": (
        "mc_question_valid.json",
        {"CLIP": {"mc_question": [CHOICE | {"id": 0, "answer_id": 1}]}},
    ),
}
TEXTS = {
    "whole, but no video is there": (lambda text: text, "1 of the 1 videos of .* are missing"),
    "empty": (lambda text: "", "is not JSON|no usable entry"),
    "without entries": (lambda text: text[0] + text[-1], "no usable entry"),
    "cut": (lambda text: text[:-4], "broken JSON"),
    "a text": (lambda text: "<html>404</html>", "is not JSON|no usable entry"),
    "binary": (lambda text: b"\xff\xfe\x00\x80" * 99, "not a UTF-8 text"),
    "200,000 deep": (lambda text: "[" * 200_000, "broken JSON|no usable entry"),
    "other fields": (lambda text: re.sub(r'"(?!CLIP)(\w+)":', r'"\1x":', text), "no usable entry"),
    "numbers in the place of all else": (
        lambda text: text[0] + '"CLIP": ' * (text[0] == "{") + "7" + text[-1],
        "no usable entry",
    ),
    "a name that leaves the folder": (
        lambda text: text.replace("CLIP", "../../CLIP"),
        "no usable entry",
    ),
}
LINES = {
    "lines without form": ("nonsense\nmore\n", "no usable entry"),
    "an end before its start": ("A 5 2##x\n", "no usable entry"),
    "times that are no numbers": ("A nan inf##x\n", "no usable entry"),
    "a binary file": (b"\xff\xfe\x00\x80" * 10, "not a UTF-8 text"),
}


def data_folder(name, file, content):
    def setup():
        os.makedirs(
            os.path.join("d", os.path.normpath(readers.DATASETS[name].videos)), exist_ok=True
        )
        path = Path("d", file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))

    return setup


def annotation_files():
    ask = "eval.py --data d --bench"
    for what, (change, says) in TEXTS.items():
        for name, (file, entries) in ENTRIES.items():
            setup = data_folder(name, file, change(json.dumps(entries)))
            yield Case("annotations", f"{name}: {what}", f"{ask} {name}", 2, says, setup)
    for what, (content, says) in LINES.items():
        yield Case(
            "annotations",
            f"charades: {what}",
            f"{ask} charades",
            2,
            says,
            data_folder("charades", "charades_sta_test.txt", content),
        )
    twice = json.dumps(ENTRIES["nextgqa"][1] * 2)
    half = twice.replace("which door", "\\ud800", 1)
    for what, says, text in (
        ("an id that comes twice", "have the id of an earlier one", twice),
        ("half a character", "half a character", half),
    ):
        yield Case(
            "annotations",
            what,
            f"{ask} nextgqa",
            2,
            says,
            data_folder("nextgqa", "nextgqa_test.json", text),
        )
    yield Case("annotations", "no folder", f"{ask} charades", 2, "data folder d does not exist")
    yield Case(
        "annotations", "no file", f"{ask} charades", 2, "no test annotations", after("d/videos/")
    )
    yield Case(
        "annotations",
        "no videos",
        f"{ask} charades",
        2,
        "no folder d/videos",
        after("d/charades_sta_test.txt"),
    )
    yield Case(
        "annotations",
        "a file in the folder's place",
        f"{ask} charades",
        2,
        "does not exist",
        after("d"),
    )
    yield Case(
        "annotations",
        "trained on a test set",
        "train.py --task qa --data {data} --out out",
        2,
        "annotations of",
    )
    yield Case(
        "annotations",
        "the command, no file",
        "annotations charades no.txt",
        2,
        "error: annotation file no.txt does not exist",
    )
    yield Case("annotations", "the command, no name", "annotations nowhere x", 2, "invalid choice")


# ------------------------------------------------------------------------------------------------
# Model folders
# ------------------------------------------------------------------------------------------------


def judge(**config):
    """A folder that brings code of its own, which would leave a file behind."""

    def setup():
        os.mkdir("judge")
        for name in ("config.json", "tokenizer_config.json"):
            auto = {
                "AutoConfig": "code.C",
                "AutoModelForCausalLM": "code.M",
                "AutoTokenizer": ["code.C", "code.C"],
            }
            Path("judge", name).write_text(
                json.dumps(config | {"auto_map": auto}), encoding="utf-8"
            )
        Path("judge/code.py").write_text(
            "open('ran', 'w').close()\nclass C: pass\nclass M: pass\n", encoding="utf-8"
        )

    return setup


def circle():
    for name, other in (("a", "b"), ("b", "a")):
        shutil.copytree(os.path.join(made("run"), "policy"), name)
        models.rewrite(name, "adapter_config.json", base_model_name_or_path=other)


def model_folders():
    ask = f"{ASK} {{clip}} --model"
    for what, (damage, says) in models.DAMAGES.items():
        yield Case(
            "models",
            what,
            f"{ask} hub",
            2,
            says,
            after(copy("hub", "hub"), lambda damage=damage: damage("hub")),
        )
    for what, (damage, says) in models.ADAPTERS.items():
        yield Case(
            "models",
            f"adapters: {what}",
            f"{ask} run/policy",
            2,
            says,
            after(RUN, lambda damage=damage: damage("run/policy")),
        )
    yield Case("models", "adapters in a circle", f"{ask} a", 2, "lead back to themselves", circle)
    yield Case("models", "as the hub has it", f"{ask} hub", 0, "s of video as", copy("hub", "hub"))
    yield Case("models", "no folder", f"{ask} ./nowhere", 2, "neither a folder")
    yield Case("models", "an empty folder", f"{ask} m", 2, "no config.json", after("m/"))
    yield Case(
        "models", "no name", f"{EVAL} --model '' --out out", 2, "neither a folder", writes=True
    )
    yield Case("models", "a file", f"{ask} m", 2, "neither a folder", after("m"))
    yield Case(
        "models",
        "a name of the hub, and no network",
        f"{ask} nobody/no-such-model",
        2,
        "cannot be loaded",
    )
    yield Case(
        "models",
        "trained from a damaged one",
        f"{TRAIN} out --model hub",
        2,
        "cannot be loaded",
        after(copy("hub", "hub"), lambda: models.cut(0.5)("hub")),
    )
    for what, config in (
        ("a judge with code", {"model_type": "never_heard_of"}),
        ("a judge of no kind", {}),
    ):
        yield Case(
            "models",
            what,
            f"{EVAL} --judge judge --out out",
            2,
            "--judge judge is not a language model",
            judge(**config),
        )
    yield Case(
        "models",
        "a judge that is an empty folder",
        f"{EVAL} --judge j --out out",
        2,
        "--judge j",
        after("j/"),
    )
    yield Case(
        "models",
        "merging what are no adapters",
        "tools.merge hub out",
        2,
        "no adapter_config.json",
        copy("hub", "hub"),
    )


# ------------------------------------------------------------------------------------------------
# Flags
# ------------------------------------------------------------------------------------------------

VALUES = ("nan", "inf", "-1", "0", "1e400", "", "word")
WRONG = {
    "train.py --device banana": "is unknown",
    "train.py --device cuda": "no CUDA GPU",
    "train.py --device cuda:-1": "is unknown",
    "train.py --task juggling": "is unknown",
    "train.py --task ''": "is unknown",
    "train.py --task grounding+": "is unknown",
    "train.py --loss x": "invalid choice",
    "train.py --resume": "needs --out",
    "train.py --resume --overwrite --out x": "needs --out",
    "train.py --group-size 1": "at least 2",
    "train.py --step 3": "unrecognized",
    "train.py --nonsense": "unrecognized",
    "train.py --steps 9999999999999999999999 --data nowhere": "does not exist",
    "train.py --data nowhere": "does not exist",
    "train.py --shard --data {data}": "start with torchrun",
    "train.py --student nowhere": "nowhere",
    "train.py --attn flash_attention_2 --data {data}": "runs on CUDA only",
    "train.py --judge nowhere --task caption --data {data}": "",
    "train.py --data {data} --min-frame-pixels 9999999": "pixel budget",
    "eval.py": "give either",
    "eval.py --bench": "expected one",
    "eval.py --bench x": "is unknown",
    "eval.py --bench ''": "is unknown",
    "eval.py --bench charades --video x": "give either",
    "eval.py --video x": "needs a question",
    "eval.py --ask x": "give either",
    "eval.py --bench charades --compare a": "expected 2",
    "eval.py --bench charades --compare a b --data {data}": "no evaluation",
    "eval.py --bench charades --clues --data {data}": "multiple-choice",
    "eval.py --bench charades --task qa --data {data}": "is asked about",
    "eval.py --bench all --out x": "one folder",
    "eval.py --video '' --ask x": "does not exist",
    "eval.py --bench charades --device cuda": "no CUDA GPU",
    "eval.py --bench charades --compare a b --judge j": "leave --judge away",
    "eval.py --bench charades --student nowhere": "nowhere",
    "tools.report": "required",
    "tools.report nowhere": "is not a run",
    "tools.report nowhere one": "invalid int",
    "tools.merge": "required",
    "tools.merge nowhere out": "no adapter_config",
    "tools.paper 1 --seeds -1": "at least 0",
    "tools.paper 1 --steps 0": "at least 1",
    "tools.paper 9": "there is no table 9",
    "course": "required",
}


def numeric_flags(program):
    """(name, "int" or "float") of each numeric flag of train.py or eval.py."""
    table = settings.TRAIN_FLAGS if program == "train.py" else settings.EVAL_FLAGS
    for action in settings.new_parser("", table)._actions:
        if action.type in (int, float):
            yield action.option_strings[0].removeprefix("--"), action.type.__name__


def means_something(name, kind, value):
    try:
        return errors.is_within(
            {"int": int, "float": float}[kind](value), errors.RANGES[name.replace("-", "_")]
        )
    except ValueError:
        return False


def flags():
    for program, needs in (("train.py", "--out out"), ("eval.py", "--bench charades --out out")):
        for name, kind in numeric_flags(program):
            for value in VALUES:
                if not means_something(name, kind, value):
                    yield Case(
                        "flags",
                        f"{program} --{name}={value or repr(value)}",
                        f"{program} {needs} --{name}={value}",
                        2,
                        f"--{name}",
                    )
    for command, says in WRONG.items():
        yield Case("flags", command, command, 2, says)


# ------------------------------------------------------------------------------------------------
# Folders to write into
# ------------------------------------------------------------------------------------------------


def without(*names):
    return lambda: [
        shutil.rmtree(name) if os.path.isdir(name) else os.remove(name) for name in names
    ]


CHECKPOINTS, POLICY = "run/checkpoints", "run/policy"
NOT_A_RUN = {  # what --out is: (its name, setup, words)
    "holds files of somebody else": ("full", after("full/a.txt"), "holds other files"),
    "holds settings of somebody else": (
        "full",
        after("full/settings.json"),
        "holds other files|is damaged",
    ),
    "is an evaluation": ("run/eval-charades", EVALUATED, "holds an evaluation"),
    "is a file": ("file", after("file"), "cannot write to --out"),
    "is inside a file": ("file/run", after("file"), "cannot write to --out"),
    "is the working directory": (".", None, "holds other files"),
    "is above the working directory": ("..", None, "holds other files"),
    "holds the data": (
        "d",
        after(lambda: shutil.copytree(made("data"), "d/charades")),
        "holds other files",
    ),
    "is the data": ("d", copy("data", "d"), "holds other files"),
    "is a link to nowhere": (
        "link",
        lambda: os.symlink("nowhere/at/all", "link"),
        "cannot write to --out",
    ),
    "is a model": ("hub", copy("hub", "hub"), "holds other files"),
    "has a name of 300 letters": ("x" * 300, None, "cannot write to --out"),
}


def run_folders():
    for what, (out, setup, says) in NOT_A_RUN.items():
        for flag in ("", " --resume", " --overwrite"):
            yield Case(
                "run folders", f"train{flag}: --out {what}", f"{TRAIN} {out}{flag}", 2, says, setup
            )
        if "evaluation" not in what:
            yield Case("run folders", f"eval: --out {what}", f"{EVAL} --out {out}", 2, says, setup)
    of_run = [
        ("eval: --out is a run", f"{EVAL} --out run", 2, "holds a run of train.py", RUN),
        ("a run is there", f"{TRAIN} run", 2, "already holds a run", RUN),
        ("--resume of a finished one", f"{TRAIN} run --resume", 0, "going on after step 1", RUN),
        (
            "--resume with other settings",
            f"{TRAIN} run --resume --lr 1",
            2,
            "begun with other settings",
            RUN,
        ),
        (
            "--resume, and no checkpoint",
            f"{TRAIN} run --resume",
            2,
            "a policy and no checkpoint",
            after(RUN, without(CHECKPOINTS)),
        ),
        (
            "--resume, and no file of a checkpoint",
            f"{TRAIN} run --resume",
            2,
            "none of the checkpoints",
            after(RUN, lambda: os.remove("run/checkpoints/step-000001/part-000.safetensors")),
        ),
        (
            "--resume, neither checkpoint nor policy",
            f"{TRAIN} run --resume",
            0,
            "done in",
            after(RUN, without(CHECKPOINTS, POLICY)),
        ),
        ("--overwrite", f"{TRAIN} run --overwrite", 0, "done in", EVALUATED),
        (
            "--overwrite, and a foreign file",
            f"{TRAIN} run --overwrite",
            2,
            "also holds notes.txt",
            after(RUN, "run/notes.txt"),
        ),
        (
            "--overwrite, and one deep inside",
            f"{TRAIN} run --overwrite",
            2,
            "also holds",
            after(RUN, "run/policy/mine.gguf"),
        ),
        (
            "--overwrite, and a hidden one",
            f"{TRAIN} run --overwrite",
            2,
            "also holds .hidden",
            after(RUN, "run/.hidden"),
        ),
        (
            "--overwrite, and a link",
            f"{TRAIN} run --overwrite",
            2,
            "also holds tensorboard",
            after(RUN, "d/a.txt", lambda: os.symlink("../d", "run/tensorboard")),
        ),
        (
            "--overwrite of its own model",
            f"{TRAIN} run --overwrite --model run/policy",
            2,
            "holds --model",
            RUN,
        ),
        (
            "a foreign file in the policy",
            f"{TRAIN} run --resume --steps 2",
            0,
            "kept-from-policy",
            after(
                RUN, lambda: models.rewrite("run", "settings.json", steps=2), "run/policy/mine.gguf"
            ),
        ),
        (
            "foreign files beside the policy",
            f"{TRAIN} run --resume",
            0,
            "kept-from-policy.old",
            after(
                RUN,
                without(CHECKPOINTS, POLICY),
                "run/policy.old/mine.gguf",
                "run/policy.partial/mine.gguf",
            ),
        ),
        (
            "a shorter evaluation",
            f"{EVAL} --model run --limit 1",
            0,
            "they are now in earlier-",
            EVALUATED,
        ),
        (
            "an evaluation as --model",
            f"{EVAL} --model run/eval-charades",
            2,
            "is an evaluation",
            EVALUATED,
        ),
        (
            "a run without a policy",
            f"{EVAL} --model run",
            2,
            "no policy",
            after(RUN, without(POLICY)),
        ),
        ("report of an evaluation", "tools.report run/eval-charades", 2, "is not a run", EVALUATED),
        ("report of a file", "tools.report file", 2, "is not a run", after("file")),
        ("report of an empty folder", "tools.report e", 2, "is not a run", after("e/")),
        ("report of a step that is not there", "tools.report run 9", 2, "no group of step 9", RUN),
        ("merging into a run", "tools.merge run/policy run", 2, "not made by tools.merge", RUN),
        (
            "merging into its own source",
            "tools.merge run/policy run/policy",
            2,
            "not made by tools.merge",
            RUN,
        ),
        (
            "merging into foreign files",
            "tools.merge run/policy full",
            2,
            "not made by tools.merge",
            after(RUN, "full/a.txt"),
        ),
        ("merging into a file", "tools.merge run/policy file", 2, "is a file", after(RUN, "file")),
        (
            "merging beside a foreign .old",
            "tools.merge run/policy new",
            2,
            "not made by tools.merge",
            after(RUN, "new.old/a.txt"),
        ),
        ("merging", "tools.merge run/policy new", 0, "merged into new", RUN),
        (
            "a table of somebody else",
            "tools.paper 1 --out t",
            2,
            "is not ours",
            after("t/table.md"),
        ),
        (
            "toy data where other files are",
            "toy charades",
            2,
            "were not made by python -m toy",
            after("data/toy/charades/a.txt"),
        ),
    ]
    for what, command, status, says, setup in of_run:
        yield Case("run folders", what, command, status, says, setup)


# ------------------------------------------------------------------------------------------------
# Damaged files of a run
# ------------------------------------------------------------------------------------------------

REPORT, RESUME, MODEL, COMPARE = (
    "tools.report run",
    f"{TRAIN} run --resume",
    f"{EVAL} --model run",
    f"{EVAL} --compare run run",
)
STEP = "tools.report run 1"
# file: {command that reads it: exit status, or with "damage" after it, that of one damage}
READERS = {
    "settings.json": {REPORT: 2, RESUME: 2, MODEL: 2},
    "metrics.jsonl": {REPORT: 2, RESUME: 0, f"{RESUME} folder": 2},
    "rollouts.jsonl": {REPORT: 0, STEP: 2, RESUME: 0, f"{REPORT} folder": 2},
    "policy/video_budget.json": {MODEL: 2, "tools.merge run/policy new": 2},
    "checkpoints/step-000001/state.json": {RESUME: 2},
    "eval-charades/predictions.jsonl": {COMPARE: 2, REPORT: 0},
    "eval-charades/results.json": {
        COMPARE: 2,
        REPORT: 0,
        f"{COMPARE} nan": 0,
        f"{COMPARE} strings": 0,
    },
    "eval-charades/settings.json": {MODEL: 0, f"{MODEL} no keys": 2, f"{MODEL} folder": 2},
}
SEEN = (
    "damaged|cannot be read|left out|cannot be used|other settings|not a run|has no"
    "|holds other files"
)


def damaged_files():
    """Logs that are damaged cost their damaged lines; what decides how a program goes on is
    refused."""
    for file, commands in READERS.items():
        for command in (REPORT, STEP, RESUME, MODEL, COMPARE, "tools.merge run/policy new"):
            for damage, change in damaged.DAMAGE.items() if command in commands else ():
                setup = after(EVALUATED, lambda change=change, file=file: change(Path("run", file)))
                status = commands.get(f"{command} {damage}", commands[command])
                said = status == 2 or damage in (
                    "list",
                    "number",
                    "null",
                    "binary",
                )  # else perhaps a last line
                what = f"{file}, {damage}: {command.replace('{data} ', '')[:16]}"
                yield Case(
                    "damaged files",
                    what,
                    command,
                    status,
                    SEEN if said else "",
                    setup,
                    writes=command == REPORT or damage == "folder",
                )


# ------------------------------------------------------------------------------------------------
# Locks, disks, terminals, signals
# ------------------------------------------------------------------------------------------------


def lock(folder, **changes):
    held = {
        "pid": 2**22 - 1,
        "host": socket.gethostname(),
        "since": "2026-01-01 00:00:00",
        "born": "1",
    } | changes
    return lambda: Path(folder, "lock").write_text(json.dumps(held), encoding="utf-8")


def hold(folder):
    """A process that lives and holds the folder's lock."""

    def setup():
        if os.fork() == 0:
            folders.take(folder)
            time.sleep(1000)
        wait_for(os.path.join(folder, "lock"))

    return setup


def locks():
    alive, took = "in use by process", "took over the lock"
    for what, make, status, says in (
        ("alive", hold, 2, alive),
        (
            "another machine's",
            lambda f: lock(f, host="another"),
            2,
            "if that machine is gone, remove",
        ),
        ("stale", lock, 0, took),
        ("of a number used again", lambda f: lock(f, pid=os.getpid()), 0, took),
        ("empty", lambda f: lambda: Path(f, "lock").touch(), 0, took),
        ("of another form", lambda f: lock(f, pid="x"), 0, took),
        ("binary", lambda f: lambda: Path(f, "lock").write_bytes(bytes(range(256))), 0, took),
        ("a folder", lambda f: after(f"{f}/lock/mine.txt"), 2, "lock is a folder"),
    ):
        yield Case(
            "locks", f"{what}: train --resume", RESUME, status, says, after(RUN, make("run"))
        )
        yield Case(
            "locks",
            f"{what}: eval",
            MODEL,
            status,
            says,
            after(EVALUATED, make("run/eval-charades")),
        )
    yield Case(
        "locks",
        "alive: train --overwrite",
        f"{TRAIN} run --overwrite",
        2,
        alive,
        after(RUN, hold("run")),
    )
    yield Case(
        "locks",
        "alive, of an evaluation inside: train --overwrite",
        f"{TRAIN} run --overwrite",
        2,
        alive,
        after(EVALUATED, hold("run/eval-charades")),
    )
    yield Case(
        "locks",
        "alive: report needs none",
        REPORT,
        0,
        "wrote run/report.html",
        after(RUN, hold("run")),
    )


def small_files(most):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def mounted(options):
    """disk/ is one of its own, seen by this process alone."""

    def within():
        os.mkdir("disk")
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(0x20000):  # CLONE_NEWNS
                raise OSError(ctypes.get_errno(), "unshare")
            for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", options, "none", "disk"]):
                subprocess.run(["mount", *words], check=True, capture_output=True)
        except (OSError, AttributeError, subprocess.CalledProcessError):
            os._exit(LEFT_OUT)

    return within


LEFT_OUT = 77


def full(*names):
    return lambda: [
        (Path("run", name).unlink(missing_ok=True), os.symlink("/dev/full", f"run/{name}"))
        for name in names
    ]


def disk():
    anew = after(RUN, without(CHECKPOINTS, POLICY))
    yield Case(
        "disk",
        "no room for a folder's settings",
        f"{EVAL} --out out",
        2,
        "cannot be written",
        within=small_files(100),
        writes=True,
    )
    yield Case(
        "disk",
        "too small for the run",
        f"{TRAIN} disk/run",
        2,
        "GB left and this run's",
        within=mounted("size=300k"),
        writes=True,
    )
    yield Case(
        "disk",
        "no room for weights",
        f"{TRAIN} out",
        2,
        "last save failed: checkpoint .*; the policy",
        within=small_files(8_000),
        writes=True,
    )
    yield Case(
        "disk",
        "no room for the policy alone",
        f"{TRAIN.replace('--lora 2', '')} out",
        2,
        "last save failed",
        within=small_files(3_000_000),
        writes=True,
    )
    yield Case(
        "disk",
        "read-only",
        f"{TRAIN} disk/run",
        2,
        "cannot write to --out disk/run",
        within=mounted("ro"),
        writes=True,
    )
    yield Case(
        "disk",
        "read-only: eval",
        f"{EVAL} --out disk/e",
        2,
        "cannot write to --out disk/e",
        within=mounted("ro"),
        writes=True,
    )
    yield Case(
        "disk",
        "read-only: lora",
        "tools.merge run/policy disk/new",
        2,
        "cannot write to disk/new",
        RUN,
        mounted("ro"),
        writes=True,
    )
    yield Case(
        "disk", "where nothing can be made", f"{TRAIN} /proc/run", 2, "cannot write to --out"
    )
    yield Case(
        "disk",
        "full: logs",
        f"{RESUME}",
        0,
        "metrics.jsonl could not be written .*the run goes on",
        after(anew, full("metrics.jsonl", "rollouts.jsonl")),
    )
    yield Case(
        "disk", "full: pictures", f"{RESUME}", 0, "done in", after(anew, full("curves.partial.png"))
    )
    yield Case(
        "disk",
        "full: the page",
        REPORT,
        2,
        "could not be written",
        RUN,
        small_files(20_000),
        writes=True,
    )
    yield Case(
        "disk",
        "the page is a folder",
        REPORT,
        2,
        "could not be written",
        after(RUN, "run/report.html/a.txt"),
        writes=True,
    )
    yield Case(
        "disk",
        "full: the merged model",
        "tools.merge run/policy new",
        2,
        "cannot write to new",
        RUN,
        small_files(100_000),
    )
    yield Case(
        "disk",
        "full: predictions",
        f"{EVAL} --out disk/e",
        1,
        r"the system refused \(No space left",
        within=mounted("size=8k"),
    )
    yield Case(
        "disk",
        "a picture is a folder",
        RESUME,
        0,
        "curves.png could not be written",
        after(anew, lambda: os.remove("run/curves.png"), "run/curves.png/a.txt"),
    )


ASCII = "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii"


def terminals():
    for name in (*PROGRAMS, "grpo.py", "toy.base"):
        yield Case(
            "terminals",
            f"{name} --help | head -1",
            f"$ export PYTHONPATH={{root}}; {ASCII} {{python}} {start_of(name)} --help | head -1",
            0,
            r"\A[ -~]+\n\Z",
        )
    begin = f"{{python}} {{root}}/{TRAIN} run".replace("run", "{}").format(
        "run", data="{data}", python="{python}", root="{root}"
    )
    for end in (">&-", ">/dev/full", "2>&1 | head -1", ">&- 2>&-"):
        yield Case(
            "terminals",
            f"train.py {end}",
            f"$ {begin} {end} && test -s run/policy/adapter_model.safetensors",
            0,
        )
    yield Case("terminals", "train.py in ASCII", f"$ {ASCII} {begin}", 0, r"\A[\x00-~]*\Z")
    yield Case(
        "terminals",
        "a path that ASCII has not",
        f"$ {ASCII} {{python}} {{root}}/train.py --out zurück",
        2,
        "set PYTHONUTF8=1",
    )
    yield Case(
        "terminals",
        "eval.py in ASCII",
        f"$ {ASCII} {{python}} {{root}}/{MODEL}",
        0,
        r"\A[\x00-~]*\Z",
        EVALUATED,
    )
    yield Case(
        "terminals",
        "tools.report in ASCII, stdout closed",
        f"$ export PYTHONPATH={{root}}; {ASCII} {{python}} -m tools.report run 1 >&-",
        0,
        "",
        RUN,
    )


def wait_for(path, patience=100):
    end = time.time() + patience
    while not os.path.exists(path):
        if time.time() > end:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.02)


def told(*signals, once="run/metrics.jsonl", rest=0.3):
    """Sends signals as soon as there is a file."""

    def meanwhile(pid):
        wait_for(once)
        time.sleep(rest)
        for number in signals:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    return meanwhile


def hanging():
    """Data whose fourth clip never comes: a playlist of a pipe that nobody writes to. The first
    three are read before the first step."""
    os.makedirs("d/videos")
    shutil.copy(made("clip"), "d/videos/good.mp4")
    os.mkfifo("d/videos/part.ts")
    Path("d/videos/hangs.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\npart.ts\n#EXT-X-ENDLIST\n", encoding="utf-8"
    )
    names = ["good.mp4"] * 3 + ["hangs.m3u8"]
    entries = [{"video": name, "events": ["a shape moves"]} for name in names]
    for split in ("train", "test"):
        Path(f"d/captions_{split}.json").write_text(json.dumps(entries), encoding="utf-8")


def kill_decoder(pid):
    wait_for("run/metrics.jsonl")
    for _ in range(3):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
        time.sleep(1)
    os.kill(pid, signal.SIGTERM)


def signals():
    term, ctrl_c = signal.SIGTERM, signal.SIGINT
    yield Case(
        "signals",
        "SIGTERM before the first step",
        f"{LONG} run",
        143,
        "stopped after step [01]",
        meanwhile=told(term, once="run/settings.json", rest=0),
    )
    yield Case(
        "signals",
        "Ctrl-C in a run",
        f"{LONG} run",
        130,
        "stopped after step",
        meanwhile=told(ctrl_c),
    )
    yield Case(
        "signals",
        "SIGTERM in a run",
        f"{LONG} run",
        143,
        "stopped after step",
        meanwhile=told(term),
    )
    yield Case(
        "signals",
        "both in a run",
        f"{LONG} run",
        1,
        "told to stop twice",
        meanwhile=told(term, ctrl_c),
    )
    hang = (
        "train.py --task caption --prompts-per-step 1 --group-size 2 --max-new-tokens 16 "
        "--steps 9 --lora 2 --data d --out run --seed"
    )
    seed = next(s for s in range(99) if last(s) == 3)
    yield Case(
        "signals",
        "SIGTERM while a decoder hangs",
        f"{hang} {seed}",
        143,
        "stopped after step 3",
        hanging,
        meanwhile=told(term, rest=5),
    )
    yield Case(
        "signals",
        "Ctrl-C while a decoder hangs",
        f"{hang} {seed}",
        130,
        "stopped after step 3",
        hanging,
        meanwhile=told(ctrl_c, rest=5),
    )
    yield Case(
        "signals",
        "decoders killed again and again",
        f"{LONG} run",
        143,
        "stopped after step",
        meanwhile=kill_decoder,
    )
    yield Case(
        "signals",
        "a clip that hangs, and --decode-timeout",
        f"{hang} {seed} --decode-timeout 1 --steps 4",
        0,
        "done in",
        hanging,
    )
    yield Case(
        "signals",
        "Ctrl-C in an evaluation",
        "eval.py --bench caption --data d --out e",
        130,
        "the same command continues",
        hanging,
        meanwhile=told(ctrl_c, once="e/settings.json", rest=1),
    )
    yield Case(
        "signals",
        "SIGTERM in an evaluation",
        "eval.py --bench caption --data d --out e",
        -15,
        "",
        hanging,
        meanwhile=told(term, once="e/settings.json", rest=1),
    )
    yield Case(
        "signals",
        "the folder goes, and SIGTERM",
        f"{LONG} run",
        143,
        "stopped after step",
        meanwhile=lambda pid: (told(rest=0)(pid), shutil.rmtree("run"), os.kill(pid, term)),
    )


def last(seed):
    """Which of the four clips of `hanging` comes last."""
    from training.loader import order_of

    return order_of(4, seed, 0)[3]


CLASSES = (
    videos,
    annotation_files,
    model_folders,
    flags,
    run_folders,
    damaged_files,
    locks,
    disk,
    terminals,
    signals,
)


# ------------------------------------------------------------------------------------------------
# Running a case
# ------------------------------------------------------------------------------------------------


def words_of(command):
    """The words of a command, or of bash where it begins with "$ "."""
    if command.startswith("$ "):
        return ["bash", "-o", "pipefail", "-c", command[2:].format_map(Made())]
    return [word.format_map(Made()) for word in shlex.split(command)]


def start(words, here, said, within=None):
    """Starts a program in a fork of this process, or bash; its output goes to the file `said`.
    Returns its pid."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(here)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(file, 1), os.dup2(file, 2)
        if words[0] == "bash":
            os.execvp("bash", words)
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))
        sys.argv = words
        if within:
            within()
        status = ended(PROGRAMS[words[0]].main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def ended(main):
    """The exit status of a program, as the interpreter would give it."""
    try:
        code = main()
    except SystemExit as e:
        code = e.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    return code if isinstance(code, int) else int(code is not None)


def wait(pid, said, patience):
    """(exit status, or minus the signal, or "none in time"; what was said) of a process."""
    end, status = time.time() + patience, "none in time"
    while time.time() < end:
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # with what it started
    if status == "none in time":
        os.waitpid(pid, 0)
    with open(said, encoding="utf-8", errors="replace") as f:
        return status, f.read()


def files_in(here):
    """{path: (size, time of change)} of all that is there, and the sorted contents of the files of
    somebody else."""
    found, foreign = {}, []
    for at, names, files in os.walk(here):
        for path in (os.path.join(at, name) for name in names + files):
            about = os.lstat(path)
            regular = stat.S_ISREG(about.st_mode)
            found[os.path.relpath(path, here)] = (
                (about.st_size, about.st_mtime_ns) if regular else ()
            )
            if regular:
                with open(path, "rb") as f:
                    foreign += [content] if (content := f.read(200)).startswith(b"mine, ") else []
    return found, sorted(foreign)


def run_case(case, here, patience):
    """What is unexpected about a case, a sentence each, and what it said."""
    os.makedirs(here)
    os.chdir(here)
    after("mine.txt", "beside/mine.txt", case.setup or after())()
    words, said = words_of(case.command), here + ".said"
    before, mine = files_in(here)
    pid = start(words, here, said, case.within)
    if case.meanwhile:
        case.meanwhile(pid)
    status, text = wait(pid, said, patience)
    if status == LEFT_OUT:
        return None, text
    now, left = files_in(here)
    lines = [line for line in text.splitlines() if line.strip()]
    sentence = [line for line in lines if re.match(r"(python -m )?(\S+: )?error: ", line)]
    wanted = case.status if isinstance(case.status, tuple) else (case.status,)
    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    return [
        problem
        for wrong, problem in (
            (status not in wanted, f"exit status {status}, not {' or '.join(map(str, wanted))}"),
            (not re.search(case.says, text, re.DOTALL), f"it does not say {case.says!r}"),
            (re.search("Traceback|Exception ignored|Segmentation fault", text), "a traceback"),
            (left != mine, f"files of somebody else are missing: {set(mine) - set(left)}"),
            (
                status == 2 and (len(sentence) != 1 or lines[-1:] != sentence),
                "its error is not one sentence at the end",
            ),
            (any(len(line) > 1500 for line in sentence), "a sentence of over 1500 letters"),
            (status == 2 and not case.writes and changed, f"changed: {', '.join(changed[:5])}"),
            (os.path.exists("ran"), "code of a model folder was run"),
        )
        if wrong
    ], text


def begin(case, number, patience):
    """Runs a case in a process group of its own. Returns its pid; the verdict will be in
    HOME/NUMBER.json."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1), os.dup2(null, 2)  # encoders talk
        here = os.path.join(HOME, str(number))
        try:
            verdict = run_case(case, here, patience)
        except BaseException:
            verdict = [f"the case itself failed: {traceback.format_exc()}"], ""
        with open(here + ".json", "w", encoding="utf-8") as f:
            json.dump(verdict, f)
    finally:
        os._exit(0)


def run_all(cases, jobs, patience):
    """Yields (case, problems or None where it was left out, what it said) as they end, `jobs` at a
    time."""
    waiting, running = list(enumerate(cases)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, case = waiting.pop(0)
            running[begin(case, number, patience)] = number, case
        pid, _ = os.wait()
        number, case = running.pop(pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        here = os.path.join(HOME, str(number))
        with open(here + ".json", encoding="utf-8") as f:
            problems, said = json.load(f)
        shutil.rmtree(here, ignore_errors=True)
        yield case, problems, said


def main():
    global HOME
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--class", dest="kind", help="only the cases of this class")
    p.add_argument("--first", type=int, help="only so many of each class")
    p.add_argument("--match", default="", help="only those whose description matches")
    p.add_argument("--list", action="store_true")
    p.add_argument("--jobs", type=int, default=2, help="cases at a time")
    p.add_argument("--patience", type=float, default=120, help="seconds that a command may take")
    args = p.parse_args()
    groups = [list(make())[: args.first] for make in CLASSES]
    cases = [
        case
        for group in groups
        for case in group
        if args.kind in (None, case.kind) and re.search(args.match, case.what)
    ]
    if args.list:
        for case in cases:
            print(f"{case.kind:<14} {case.status!s:<7} {case.what}")
        return
    began, HOME = time.time(), os.path.realpath(tempfile.mkdtemp(prefix="hostile-"))
    counts, wrong = Counter(), Counter()
    try:
        for case, problems, said in run_all(cases, args.jobs, args.patience):
            counts[case.kind, problems is None] += 1
            if problems:
                wrong[case.kind] += 1
                print(f"UNEXPECTED {case.kind}: {case.what}\n  {case.command}")
                print("".join(f"  {problem}\n" for problem in problems), end="")
                print(
                    "".join(f"    | {line[:300]}\n" for line in said.splitlines()[-8:]),
                    end="",
                    flush=True,
                )
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
    for kind in dict.fromkeys(case.kind for case in cases):
        left_out = (
            f", {counts[kind, True]} left out: this machine may not mount"
            if counts[kind, True]
            else ""
        )
        print(
            f"{kind:<14} {counts[kind, False]:>4} cases, "
            f"{counts[kind, False] - wrong[kind]:>4} as expected, "
            f"{wrong[kind]:>2} unexpected{left_out}"
        )
    print(
        f"{sum(n for (_, out), n in counts.items() if not out)} cases, "
        f"{wrong.total()} unexpected, {time.time() - began:.0f} s"
    )
    sys.exit(wrong.total() > 0)


if __name__ == "__main__":
    main()
