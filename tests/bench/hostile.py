"""Hostile cases: what people, disks, downloads and queues do to these programs, each with the end
it must have.

    python tests/bench/hostile.py                   # all of them, a quarter of an hour
    python tests/bench/hostile.py --class locks     # one class; --first 2: two of each

A case is a scratch folder with files of somebody else in it, a command, the exit status it must
have and words it must say. Besides, whatever the case: no traceback; no file of somebody else is
missing; status 2 is said in one sentence and has changed nothing; and nothing goes on for ever.

Importing torch takes longer than most cases. So each command is a fork of this process, which has
imported everything and has started no thread.
"""

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
               "COLUMNS": "100"}  # fmt: skip
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import test_container as clips
import test_folders as damaged
import test_hub as models

from annotations import readers
from lib import files
from toy import world
from training import settings

# What a command begins with: a file at the root, or the module that `python -m` is given.
PROGRAMS = {"train.py": "train", "eval.py": "eval", "course": "course.__main__"}
PROGRAMS |= {"toy": "toy.__main__"}
PROGRAMS |= {name: name for name in ("tools.report", "tools.merge", "tools.paper")}
PROGRAMS = {name: import_module(module) for name, module in PROGRAMS.items()}


class Case(NamedTuple):
    """command: words, with {name} for what MAKERS makes; "$ " begins a line for bash. within(): in
    the program's process, before it. meanwhile(pid): while it runs. setup: in the scratch folder.
    writes: it may change files and still end with status 2."""

    kind: str
    what: str
    command: str
    status: int = 2
    says: str = ""
    setup: Any = None
    within: Any = None
    meanwhile: Any = None
    writes: bool = False


HOME = ""
PATIENCE = 300  # seconds that a command may take, on a crowded machine
TINY = "--group-size 2 --prompts-per-step 2 --max-new-tokens 16 --steps 1 --quiet"
TRAIN = f"train.py --data {{data}} {TINY} --rollouts-every 1 --lora 2 --out"
LONG = TRAIN.replace("--steps 1 ", "--steps 100000 --save-every 100000 ")
EVAL = "eval.py --bench charades --data {data} --max-new-tokens 16"
ASK = "eval.py --max-new-tokens 1 --ask ? --video"
RESUME, MODEL, REPORT = f"{TRAIN} run --resume", f"{EVAL} --model run", "tools.report run"


def make_evaluated(path):
    shutil.copytree(made("run"), path)
    program(f"{EVAL} --model {path}")


MAKERS = {  # what many cases start from: made once, by the first that asks
    "data": lambda path: world.ensure("charades", path, train=4, test=2),
    "run": lambda path: program(f"{TRAIN} {path}"),  # finished: one step of adapters
    "evaluated": make_evaluated,
    "hub": models.folder_of,
    "h264.mp4": lambda path: clips.write_clip(path, "libx264", clips.TENTHS),
}


def made(name):
    path = os.path.join(HOME, name)
    if not os.path.exists(path):
        MAKERS[name](path)
    return path


class Made(dict):
    def __missing__(self, name):
        return {"python": sys.executable, "root": ROOT}.get(name) or made(name)


def program(command):
    said = os.path.join(HOME, f"made.{os.getpid()}")
    status, said = wait(start(words_of(command), HOME, said), said)
    if status:
        raise RuntimeError(f"{command}: {said[-2000:]}")


def copy(name, to):
    return lambda: shutil.copytree(made(name), to)


RUN, EVALUATED, HUB = copy("run", "run"), copy("evaluated", "run"), copy("hub", "hub")


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


def without(*names):
    return lambda: [shutil.rmtree(name) for name in names]


# ------------------------------------------------------------------------------------------------
# The ten classes: rows of (what, command, status, says, setup and more)
# ------------------------------------------------------------------------------------------------


def clip(change, name="clip.mp4"):
    """A good clip, whose bytes `change` has changed."""
    return lambda: Path(name).write_bytes(change(Path(made("h264.mp4")).read_bytes()))


def videos():
    cannot = "clip.mp4 .*(can't|cannot) be decoded|damaged|breaks off|no frame|no video"
    for what, setup, says in (
        ("an empty file", clip(lambda b: b""), cannot),
        ("half of one", clip(lambda b: b[: len(b) // 2]), cannot),
        ("a text", clip(lambda b: b"404 not found\n" * 99), cannot),
        ("noise", clip(lambda b: np.random.default_rng(0).bytes(50_000)), cannot),
        ("an unknown codec", clip(lambda b: b.replace(b"avc1", b"xxxx")), cannot),
        ("no file", None, "does not exist"),
        ("a folder without frames", after("clip.mp4/"), "holds no numbered"),
    ):
        yield what, f"{ASK} clip.mp4", 2, says, setup
    for name in ("with space.mp4", "ünï-çode.mp4", "-dash.mp4", "'quotes\".mp4", "line\nbreak.mp4"):
        ask = f"{ASK[:-8]} {shlex.quote('--video=' + name)}"
        yield f"called {name!r}", ask, 0, "12.0 s of", clip(lambda b: b, name)


def data_folder(name, file, content):
    def setup():
        os.makedirs(os.path.join("d", os.path.normpath(readers.DATASETS[name].videos)))
        Path("d", file).write_bytes(content)

    return setup


def annotation_files():
    choice = {"question": "which door", "options": ["(A) x", "(B) y"], "answer": "(A)"}
    choice |= {"id": "1", "video": "CLIP", "glue": [[1, 2]]}
    entries = {
        "got10k": ("got_val.json", [{"path": "CLIP", "object": "x", "gt": [[0, 0, 1, 1]] * 8}]),
        "nextgqa": ("nextgqa_test.json", [choice]),
    }
    ask = "eval.py --data d --bench"
    for what, change, says in (
        ("whole, but no video is there", lambda b: b, "lacks 1 of its 1 videos"),
        ("empty", lambda b: b"", "broken JSON|no usable entry"),
        ("cut", lambda b: b[:-4], "broken JSON"),
        ("binary", lambda b: b"\xff\xfe\x00\x80" * 10, "not a UTF-8 text"),
        ("200,000 deep", lambda b: b"[" * 200_000, "broken JSON|no usable entry"),
        ("it leaves the folder", lambda b: b.replace(b"CLIP", b"../C"), "no usable entry"),
    ):
        for name, (file, content) in entries.items():
            setup = data_folder(name, file, change(json.dumps(content).encode()))
            yield f"{name}: {what}", f"{ask} {name}", 2, says, setup
    yield "no folder", f"{ask} charades", 2, "data folder d does not exist"
    yield "no file", f"{ask} charades", 2, "no test annotations", after("d/videos/")


def model_folders():
    ask = f"{ASK} {{data}}/videos/test00000.mp4 --model"
    for what, (damage, says) in models.DAMAGES.items():
        yield what, f"{ask} hub", 2, says, after(HUB, lambda damage=damage: damage("hub"))
    for what, (damage, says) in models.ADAPTERS.items():
        setup = after(RUN, lambda damage=damage: damage("run/policy"))
        yield f"adapters: {what}", f"{ask} run/policy", 2, says, setup
    yield "as the hub has it", f"{ask} hub", 0, "s of video as", HUB
    yield "no folder", f"{ask} ./nowhere", 2, "neither a folder"
    yield "an empty folder", f"{ask} m", 2, "no config.json", after("m/")
    yield "a name of the hub, and no network", f"{ask} nobody/no-model", 2, "cannot be loaded"


WRONG = {
    "train.py --device cuda": "no CUDA GPU",
    "train.py --task juggling": "is unknown",
    "train.py --resume": "the run in --out",
    "train.py --group-size 1": "at least 2",
    "train.py --shard --data {data}": "start with torchrun",
    "train.py --data {data} --min-frame-pixels 9999999": "pixel budget",
    "eval.py": "give either",
    "eval.py --bench charades --clues --data {data}": "multiple-choice",
    "tools.paper 9": "there is no table 9",
    "course": "required",
}


def flags():
    for action in settings.parser_of("", settings.TRAIN_FLAGS)._actions:
        name = action.option_strings[0]
        for value in ("nan", "-1", "1e400", "word") if action.type else ():
            try:
                action.type(value)  # it means something
            except (argparse.ArgumentTypeError, ValueError):
                yield f"{name}={value}", f"train.py --out out {name}={value}", 2, name
    for command, says in WRONG.items():
        yield command, command, 2, says


def run_folders():
    mine = after("full/a.txt")
    for what, out, setup, says in (
        ("holds files of somebody else", "full", mine, "holds other files"),
        ("is an evaluation", "run/eval-charades", EVALUATED, "holds an evaluation"),
        ("is a file", "file", after("file"), "cannot write to --out"),
        ("is the working directory", ".", None, "holds other files"),
        ("is a model", "hub", HUB, "holds other files"),
        ("has a name of 300 letters", "x" * 300, None, "cannot write to --out"),
    ):
        for flag in ("", " --resume", " --overwrite"):
            yield f"train{flag}: --out {what}", f"{TRAIN} {out}{flag}", 2, says, setup
    yield "eval: --out is a run", f"{EVAL} --out run", 2, "holds a run of train.py", RUN
    yield "a run is there", f"{TRAIN} run", 2, "already holds a run", RUN
    yield "--resume of a finished one", RESUME, 0, "going on after step 1", RUN
    yield "--resume, other settings", f"{RESUME} --lr 1", 2, "begun with other settings", RUN
    gone = after(RUN, without("run/checkpoints"))
    yield "--resume, no checkpoint", RESUME, 2, "has no checkpoint that can be read", gone
    gone = after(RUN, without("run/checkpoints", "run/policy"))
    yield "--resume, neither checkpoint nor policy", RESUME, 0, "done in", gone
    yield "--overwrite", f"{TRAIN} run --overwrite", 0, "done in", EVALUATED
    there = after(RUN, "full/a.txt")
    yield "merging into foreign files", "tools.merge run/policy full", 2, "is there already", there
    yield "merging", "tools.merge run/policy new", 0, "merged into new", RUN
    yield "tables of somebody else", "tools.paper 1 --out full", 2, "holds other files", mine


def damaged_files():
    """Damaged logs cost their damaged lines; what decides how a program goes on is refused."""
    for file, command, status in (
        ("settings.json", RESUME, 2),
        ("settings.json", MODEL, 2),
        ("metrics.jsonl", REPORT, 2),
        ("rollouts.jsonl", f"{REPORT} 1", 2),
        ("checkpoints/step-000001/state.json", RESUME, 2),
        ("eval-charades/results.json", REPORT, 2),
        ("eval-charades/predictions.jsonl", f"{EVAL} --compare run run", 2),
    ):
        for damage, change in damaged.DAMAGE.items():
            setup = after(EVALUATED, lambda change=change, file=file: change(Path("run", file)))
            writes = {"writes": command == REPORT or damage == "folder"}
            yield f"{file}, {damage}", command, status, "", setup, writes


def hold(folder):
    """The bench has the folder's lock until the case ends: main releases it."""
    return lambda: files.take(folder)


def locks():
    alive, run = "in use by", after(RUN, hold("run"))
    yield "alive: train --resume", RESUME, 2, alive, run
    yield "alive: train --overwrite", f"{TRAIN} run --overwrite", 2, alive, run
    yield "alive: eval", MODEL, 2, alive, after(EVALUATED, hold("run/eval-charades"))
    yield "alive: report needs none", REPORT, 0, "wrote run/report.html", run
    stale = after(RUN, lambda: Path("run/lock").write_bytes(b'{"pid": "x"}'))
    yield "a file of an older kind of lock", RESUME, 0, "", stale


def disk():
    anew = after(RUN, without("run/checkpoints", "run/policy"))
    limit = lambda most: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    little = lambda most: {"within": limit(most), "writes": True}
    yield "no room for settings", f"{EVAL} --out out", 2, "cannot write to", None, little(100)
    yield "no room for weights", f"{TRAIN} out", 2, "could not be saved", None, little(8_000)
    yield "no room for the page", REPORT, 2, "could not be written", RUN, little(20_000)
    merged = "tools.merge run/policy new"
    yield "no room for the merged model", merged, 2, "cannot write to new", RUN, little(100_000)
    yield "where nothing can be made", f"{TRAIN} /proc/run", 2, "cannot write to --out"
    full = lambda name: lambda: (Path(name).unlink(), os.symlink("/dev/full", name))
    logs = after(anew, full("run/metrics.jsonl"))
    yield "full: logs", RESUME, 1, "the system refused .No space left on device", logs
    page = after(RUN, "run/report.html/a.txt")
    yield "the page is a folder", REPORT, 2, "could not be written", page, {"writes": True}


def terminals():
    ascii_only = "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii"
    for name in (*PROGRAMS, "grpo.py", "toy.base"):
        call = f"{{root}}/{name}" if name.endswith(".py") else f"-m {name}"
        line = f"$ export PYTHONPATH={{root}}; {ascii_only} {{python}} {call} --help | head -1"
        yield f"{name} --help | head -1", line, 0, r"\A[ -~]+\n\Z"
    begin = f"{{python}} {{root}}/{TRAIN} run"
    saved = "test -s run/policy/adapter_model.safetensors"
    yield "train.py >&-", f"$ {begin} >&- && {saved}", 0
    yield "train.py in ASCII", f"$ {ascii_only} {begin}", 0, r"\A[\x00-~]*\Z"


def wait_for(path):
    end = time.time() + PATIENCE
    while not os.path.exists(path):
        if time.time() > end:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.02)


def told(*signals, before=lambda: None):
    """Sends signals after the first step."""

    def meanwhile(pid):
        wait_for("run/metrics.jsonl")
        time.sleep(0.3)
        before()
        for number in signals:
            os.kill(pid, number)

    return {"meanwhile": meanwhile}


def signals():
    term, ctrl_c, stopped = signal.SIGTERM, signal.SIGINT, "stopped after step"
    yield "Ctrl-C in a run", f"{LONG} run", 130, stopped, None, told(ctrl_c)
    yield "SIGTERM in a run", f"{LONG} run", 143, stopped, None, told(term)
    yield "both in a run", f"{LONG} run", -ctrl_c, "told to stop", None, told(term, ctrl_c)
    removed = told(term, before=lambda: shutil.rmtree("run"))
    yield "the folder goes", f"{LONG} run", 1, "No such file or directory", None, removed


CLASSES = {"videos": videos, "annotations": annotation_files, "models": model_folders,
           "flags": flags, "run folders": run_folders, "damaged files": damaged_files,
           "locks": locks, "disk": disk, "terminals": terminals, "signals": signals}  # fmt: skip


def cases_of(kind):
    for row in CLASSES[kind]():
        *row, more = row if isinstance(row[-1], dict) else (*row, {})
        yield Case(kind, *row, **more)


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
        PROGRAMS[words[0]].main()
        status = 0
    except SystemExit as e:  # as the interpreter takes it: None is 0, a text is said and is 1
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        print(e.code if isinstance(e.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def wait(pid, said):
    """(exit status, or minus the signal, or "none in time"; what was said) of a process."""
    end, status = time.time() + PATIENCE, "none in time"
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
    """{path: (size, time of change)} of all that is there, and the files of somebody else."""
    found, foreign = {}, []
    for path in Path(here).rglob("*"):
        about = path.lstat()
        regular = stat.S_ISREG(about.st_mode)
        found[str(path)] = (about.st_size, about.st_mtime_ns) if regular else ()
        if regular and (content := path.read_bytes()[:200]).startswith(b"mine, "):
            foreign.append(content)
    return found, sorted(foreign)


def run_case(case, here):
    """What is unexpected about a case, a sentence each, and what it said."""
    os.makedirs(here)
    os.chdir(here)
    after("mine.txt", "beside/mine.txt", case.setup or after())()
    words, said = words_of(case.command), here + ".said"
    before, mine = files_in(here)
    pid = start(words, here, said, case.within)
    try:
        late = case.meanwhile and case.meanwhile(pid)
    except TimeoutError as e:
        late = str(e)
    status, text = wait(pid, said)
    now, left = files_in(here)
    lines = [line for line in text.splitlines() if line.strip()]
    sentence = [line for line in lines if re.match(r"(python -m )?(\S+: )?error: ", line)]
    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    one = len(sentence) == 1 and lines[-1:] == sentence and len(sentence[0]) < 1500
    problems = {
        f"{late}": late,
        f"exit status {status}, not {case.status}": status != case.status,
        f"it does not say {case.says!r}": not re.search(case.says, text, re.DOTALL),
        "a traceback": re.search("Traceback|Exception ignored|Segmentation fault", text),
        f"files of somebody else are missing: {set(mine) - set(left)}": left != mine,
        "its error is not one sentence at the end": status == 2 and not one,
        f"changed: {', '.join(changed[:5])}": status == 2 and not case.writes and changed,
    }
    return [problem for problem, is_there in problems.items() if is_there], text


def main():
    global HOME
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    p.add_argument("--class", dest="kind", choices=CLASSES, help="only the cases of this class")
    p.add_argument("--first", type=int, help="only so many of each class")
    args = p.parse_args()
    began, HOME = time.time(), os.path.realpath(tempfile.mkdtemp(prefix="hostile-"))
    counts, wrong = Counter(), Counter()
    for kind in [args.kind] if args.kind else CLASSES:
        for case in list(cases_of(kind))[: args.first]:
            with files.locks_released():
                problems, said = run_case(case, os.path.join(HOME, str(counts.total())))
            counts[kind] += 1
            if problems:
                wrong[kind] += 1
                said = [f"    | {line[:300]}" for line in said.splitlines()[-8:]]
                print(f"UNEXPECTED {kind}: {case.what}\n  {case.command}")
                print(*(f"  {problem}" for problem in problems), *said, sep="\n", flush=True)
        n, bad = counts[kind], wrong[kind]
        print(f"{kind:<14} {n:>4} cases, {n - bad:>4} as expected, {bad:>2} unexpected", flush=True)
    os.chdir(ROOT)
    shutil.rmtree(HOME, ignore_errors=True)
    seconds = time.time() - began
    print(f"{counts.total()} cases, {wrong.total()} unexpected, {seconds:.0f} s")
    sys.exit(wrong.total() > 0)


if __name__ == "__main__":
    main()
