"""Nothing of the user's is lost, and no run ends for a small thing."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import eval as evaluation
import train
from conftest import ROOT
from lib import errors
from lib import files as folders
from lib.errors import BadInput
from lib.weights import load
from tools import merge, paper, pictures, report
from training.checkpoint import save_checkpoint
from training.run import STOP

TINY = [
    *"--group-size 2 --prompts-per-step 1 --max-new-tokens 8 --steps 1".split(),
    *"--quiet".split(),
]
PROGRAMS = {
    "train.py": train,
    "eval.py": evaluation,
    "tools.report": report,
    "tools.merge": merge,
    "tools.paper": paper,
}


def call(name, *args, cwd=ROOT):
    """(exit status, all it said) of a program, run in this process to spare its imports."""
    said, argv, status = io.StringIO(), sys.argv, 0
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    STOP.update(signal=None, cancel=None)
    try:
        sys.argv = [name, *map(str, args)]
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            PROGRAMS[name].main()
    except SystemExit as e:
        status = e.code or 0
    finally:
        sys.argv = argv
        for s, handler in handlers.items():
            signal.signal(s, handler)
    return status, said.getvalue()


def words(program):
    """A program as the command line names it: a file at the root, or a module of a room."""
    return program if program.endswith(".py") else f"-m {program}"


def process(*args, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen([sys.executable, *map(str, args)], cwd=ROOT, **options)


def wait_for(path, job):
    while not os.path.exists(path):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)


def records(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope="module")
def finished(charades, tmp_path_factory):
    """A run of one step of adapters, and its evaluation."""
    out = str(tmp_path_factory.mktemp("folders") / "run")
    status, said = call(
        "train.py", "--data", charades, *TINY, "--lora", 2, "--rollouts-every", 1, "--out", out
    )
    assert status == 0, said
    status, said = call(
        "eval.py", "--bench", "charades", "--data", charades, "--model", out, "--max-new-tokens", 8
    )
    assert status == 0, said
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def flags_of(run, charades):
    return ["--data", charades, *TINY, "--lora", 2, "--rollouts-every", 1, "--out", run]


# Foreign files ------------------------------------------------------------------------------------


def foreign_files(home):
    """The contents of all files below that were put there by `plant`, sorted."""
    found = []
    for at, _, names in os.walk(home):
        for name in names:
            with open(os.path.join(at, name), "rb") as f:
                if (content := f.read(100)).startswith(b"mine, "):
                    found.append(content)
    return sorted(found)


def plant(home, *places):
    for k, place in enumerate(places):
        os.makedirs(os.path.join(home, os.path.dirname(place)), exist_ok=True)
        with open(os.path.join(home, place), "x", encoding="utf-8") as f:
            f.write(f"mine, number {k}: {place}")
    return foreign_files(home)


# "inside" plants files around the run as well; without them in it, --overwrite may do its work.
INSIDE = [pytest.param(True, id="inside"), pytest.param(False, id="around", marks=pytest.mark.slow)]


@pytest.mark.parametrize("inside", INSIDE)
def test_no_program_and_no_flag_loses_a_foreign_file(inside, finished, charades, tmp_path):
    home, run = str(tmp_path), str(tmp_path / "place" / "run")
    shutil.copytree(finished, run)
    within = (
        "notes.txt",
        "mine/deep/notes.txt",
        "policy/mine.gguf",
        "checkpoints/notes.txt",
        "tensorboard/notes.txt",
        "checkpoints/step-000001/notes.txt",
        "eval-charades/notes.txt",
        "eval-mine/notes.txt",
        ".hidden",
    )
    around = (
        "above.txt",
        "place/beside.txt",
        "place/policy/config.json",
        "merged/x.txt",
        "full/settings.json",
        "full/a.txt",
        "merged2.old/x.txt",
        "table/table.md",
        "place/lock",
        "results/results.json",
        "models/model.safetensors",
    )
    mine = plant(home, *around, *[f"place/run/{path}" for path in within if inside])
    assert len(mine) == len(around) + inside * len(within)
    base, ask = (
        flags_of(run, charades),
        ["--bench", "charades", "--data", charades, "--max-new-tokens", 4],
    )
    of_run = [*ask, "--model", run]
    commands = [
        ("train.py", *base),
        ("train.py", *base, "--resume"),
        ("train.py", *base, "--resume", "--keep", 1),
        ("train.py", *base, "--overwrite"),
        *[
            ("train.py", *flags_of(f"{home}/{out}", charades), *more)
            for out in ("full", "place", "merged", "", "results")
            for more in ([], ["--resume"], ["--overwrite"])
        ],
        ("eval.py", *of_run),
        ("eval.py", *of_run, "--limit", 2),
        ("eval.py", *of_run, "--blind"),
        *[
            ("eval.py", *of_run, "--limit", 1, "--out", f"{home}/{out}")
            for out in ("place/run", "place", "full", "results", "new-eval", "new-eval", "")
        ],
        ("eval.py", *of_run, "--compare", run, run),
        ("tools.report", run),
        ("tools.report", run, 1),
        ("tools.report", f"{home}/place"),
        ("tools.report", f"{home}/full"),
        *[
            ("tools.merge", f"{run}/policy", f"{home}/{out}")
            for out in (
                "merged",
                "place/run",
                "place/run/policy",
                "merged2",
                "new",
                "new",
                "place/policy",
                "models",
            )
        ],
        ("tools.paper", "7", "--out", f"{home}/table"),
    ]
    ended = {}
    for command in commands:
        status, said = call(*command)
        assert status in (0, 1, 2) and "Traceback" not in said, (command, said)
        assert foreign_files(home) == mine, command
        ended.setdefault(command, status)
    shutil.rmtree(os.path.join(run, "checkpoints"))
    mine = foreign_files(home)
    for more in (["--resume"], ["--overwrite"], ["--resume"]):
        status, said = call("train.py", *base, *more)
        assert foreign_files(home) == mine, (more, said)
    assert os.path.isfile(os.path.join(run, "policy", "adapter_model.safetensors"))
    wanted = {
        commands[0]: 2,
        commands[1]: 0,
        commands[3]: 2 if inside else 0,
        ("eval.py", *of_run): 0,
        ("tools.report", run): 0,
        ("tools.merge", f"{run}/policy", f"{home}/new"): 0,
        ("tools.paper", "7", "--out", f"{home}/table"): 2,
    }
    # What may be done is still done.
    assert {command: ended[command] for command in wanted} == wanted
    assert [ended[c] for c in commands if c[0] == "train.py" and c not in commands[:4]] == [2] * 15


def test_overwrite_removes_a_run_by_name_and_says_what_it_does_not(run, charades):
    assert "settings.json" in os.listdir(run)
    status, said = call("train.py", *flags_of(run, charades), "--overwrite", "--seed", 1)
    # The evaluation was that of the run before.
    assert status == 0 and not os.path.exists(run / "eval-charades"), said
    plant(run, "notes.txt")
    before = sorted(os.listdir(run))
    status, said = call("train.py", *flags_of(run, charades), "--overwrite")
    assert (
        status == 2
        and "also holds notes.txt (1 in all)" in said
        and sorted(os.listdir(run)) == before
    )


def test_overwrite_refuses_links_and_places_that_hold_what_is_needed(run, tmp_path, charades):
    os.symlink(charades, run / "tensorboard")
    with pytest.raises(BadInput, match="also holds tensorboard"):
        folders.clear(str(run), {})
    os.remove(run / "tensorboard")
    for inputs, says in (
        ({"--data": str(run / "checkpoints")}, "--data"),
        ({}, "the working directory"),
    ):
        with (
            contextlib.chdir(ROOT if inputs else run / "policy"),
            pytest.raises(BadInput, match=f"holds {says}"),
        ):
            folders.clear(str(run), inputs)
    for place, says in (
        ("/", "all files|the working directory"),
        (os.path.expanduser("~"), "your home|the working"),
        (ROOT, "this program|the working"),
    ):
        with pytest.raises(BadInput, match=says):
            folders.check_place(place, {})


def test_resume_without_a_checkpoint(run, charades):
    shutil.rmtree(run / "checkpoints")
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert (
        status == 2 and "holds a policy and no checkpoint" in said and os.path.isdir(run / "policy")
    )
    shutil.rmtree(run / "policy")  # stopped before its first save
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert (
        status == 0 and os.path.isdir(run / "policy") and len(records(run / "metrics.jsonl")) == 1
    )


def test_folders_from_before_kinds_were_written_down(run, charades):
    for path in (run / "settings.json", run / "eval-charades" / "settings.json"):
        settings = json.loads(path.read_text())
        del settings["kind"]
        path.write_text(json.dumps(settings))
    assert (folders.kind_of(run), folders.kind_of(run / "eval-charades")) == ("run", "evaluation")
    done = [
        json.loads(line) | {"mark": 1}
        for line in (run / "eval-charades" / "predictions.jsonl").read_text().splitlines()
    ]
    (run / "eval-charades" / "predictions.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in done)
    )
    status, said = call(
        "eval.py", "--bench", "charades", "--data", charades, "--model", run, "--max-new-tokens", 8
    )
    assert status == 0, said
    kept = records(run / "eval-charades" / "predictions.jsonl") or records(
        next(run.glob("eval-charades/earlier-*")) / "predictions.jsonl"
    )
    assert len(kept) == 6
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 0, said


def test_a_short_evaluation_does_not_cost_a_finished_one(run, charades):
    ask = ["--bench", "charades", "--data", charades, "--model", run, "--max-new-tokens", 8]
    before = (run / "eval-charades" / "predictions.jsonl").read_text()
    for _ in range(2):  # twice: the second finds its own two and adds nothing
        status, said = call("eval.py", *ask, "--limit", 2)
        assert status == 0, said
    assert len(records(run / "eval-charades" / "predictions.jsonl")) == 2
    (aside,) = run.glob("eval-charades/earlier-*")
    assert {"predictions.jsonl", "results.json", "settings.json"} <= set(os.listdir(aside))
    wanted = "".join(sorted(before.splitlines(keepends=True)))
    assert (
        "".join(sorted((aside / "predictions.jsonl").read_text().splitlines(keepends=True)))
        == wanted
    )


def test_another_kind_of_folder_is_refused(run, charades, tmp_path):
    settings = (run / "settings.json").read_text()
    status, said = call("eval.py", "--bench", "charades", "--data", charades, "--out", run)
    assert (
        status == 2
        and "holds a run of train.py, not an evaluation" in said
        and (run / "settings.json").read_text() == settings
    )
    status, said = call("train.py", *flags_of(run / "eval-charades", charades), "--overwrite")
    assert status == 2 and "holds an evaluation of eval.py, not a run" in said
    for program, path in (("tools.report", run / "eval-charades"), ("tools.merge", run)):
        args = (run / "policy", path) if program == "tools.merge" else (path,)
        assert call(program, *args)[0] == 2
    status, said = call(
        "eval.py", "--bench", "charades", "--data", charades, "--model", run / "eval-charades"
    )
    assert status == 2 and "is an evaluation of eval.py" in said


# Locks --------------------------------------------------------------------------------------------

LONG = [
    *"--task grounding --group-size 2 --prompts-per-step 1 --max-new-tokens 8".split(),
    *"--steps 100000 --save-every 100000 --quiet".split(),
]


@pytest.mark.slow
def test_two_programs_in_one_folder(charades, tmp_path):
    """Refused while the other lives, at work once it was killed, and no lock is left behind."""
    out = tmp_path / "run"
    job = process("train.py", *LONG, "--data", charades, "--out", out)
    try:
        wait_for(out / "metrics.jsonl", job)
        held = json.loads((out / "lock").read_text())
        assert held["pid"] == job.pid and held["host"] == socket.gethostname()
        for more in ([], ["--resume"], ["--overwrite"]):
            status, said = call("train.py", *LONG, "--data", charades, "--out", out, *more)
            assert status == 2 and (f"in use by process {job.pid}" in said or not more), said
        assert job.poll() is None and os.path.isfile(out / "settings.json")
    finally:
        job.kill()
    job.communicate()
    job = process("train.py", *LONG, "--data", charades, "--out", out, "--resume")
    wait_for(out / "settings.json", job)
    while (out / "lock").exists() and json.loads((out / "lock").read_text() or "{}").get(
        "pid"
    ) != job.pid:
        time.sleep(0.05)
    while not os.path.exists(out / "metrics.jsonl") or not (out / "metrics.jsonl").read_text():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert (
        job.returncode == 128 + signal.SIGTERM
        and f"took over the lock of process {held['pid']}, which is no longer there" in said
    )
    assert not (out / "lock").exists()


def test_a_lock_of_another_machine_is_not_taken_over_and_one_of_a_reused_number_is(
    tmp_path, capsys
):
    lock, mine = tmp_path / "lock", folders.born(os.getpid())
    lock.write_text(
        json.dumps({"pid": 1, "host": "another", "since": "2026-01-01 00:00:00", "born": "1"})
    )
    with pytest.raises(
        BadInput,
        match="in use by process 1 on another since 2026-01-01 .* if that machine is gone, remove",
    ):
        folders.take(str(tmp_path))
    for held in (
        {"pid": os.getpid(), "host": socket.gethostname(), "since": "x", "born": mine + "0"},
        "",
        "{",
        [1],
        {"pid": "x"},
    ):
        lock.write_text(held if isinstance(held, str) else json.dumps(held))
        with folders.locks_released():
            folders.take(str(tmp_path))
            assert "took over the lock" in capsys.readouterr().err
            with pytest.raises(BadInput, match="in use by process"):
                folders.take(str(tmp_path))
        assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), folders.locks_released():
        folders.take(str(tmp_path))
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


TAKE = """
import sys, time
sys.path.insert(0, {root!r})
from lib import errors, files as folders
try:
    while time.time() < {when}:
        pass
    folders.take({folder!r})
    print("taken")
    time.sleep(2)
except errors.BadInput:
    print("refused")
"""


@pytest.mark.slow
def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path):
    for _ in range(3):
        (tmp_path / "lock").write_text(
            json.dumps({"pid": 2**22 - 1, "host": socket.gethostname(), "since": "x", "born": "1"})
        )
        code = TAKE.format(root=ROOT, folder=str(tmp_path), when=time.time() + 0.7)
        jobs = [process("-c", code, stderr=subprocess.DEVNULL) for _ in range(6)]
        said = sorted(job.communicate()[0].strip() for job in jobs)
        assert said == ["refused"] * 5 + ["taken"]


def test_a_process_killed_while_it_took_over_a_lock_is_named(tmp_path):
    held = {"pid": 2**22 - 1, "host": socket.gethostname(), "since": "x", "born": "1"}
    (tmp_path / "lock").write_text(json.dumps(held))
    claim = tmp_path / f"lock.{held['pid']}"
    claim.touch()
    os.utime(claim, (0, 0))
    with pytest.raises(BadInput, match=rf"lock\.{held['pid']} is left of a process .*: remove it"):
        folders.take(str(tmp_path))
    claim.unlink()
    with folders.locks_released():
        folders.take(str(tmp_path))


def test_an_evaluation_holds_its_folder_and_gives_it_back(finished, charades, tmp_path):
    ask = [
        *("--bench", "charades"),
        *("--data", charades),
        *("--out", tmp_path / "out"),
        "--max-new-tokens",
        4,
    ]
    with folders.locks_released():
        os.mkdir(tmp_path / "out")
        folders.take(str(tmp_path / "out"))
        status, said = call("eval.py", *ask)
        assert status == 2 and "in use by process" in said
    assert call("eval.py", *ask, "--model", "/nowhere/x")[0] == 2
    assert os.listdir(tmp_path / "out") == []  # nothing is written for a model that is not there
    assert call("eval.py", *ask)[0] == 0 and "lock" not in os.listdir(tmp_path / "out")


# Flags --------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "device, says",
    [("cuda", "no CUDA GPU here"), ("cuda:1", "no CUDA GPU"), ("banana", "is unknown")],
)
def test_a_device_that_is_not_there(device, says):
    for program, args in (
        (train, []),
        (evaluation, ["--bench", "charades"]),
        (evaluation, ["--video", "x.mp4", "--ask", "?"]),
    ):
        with pytest.raises(BadInput, match=says):
            program.parse_args([*args, "--device", device])


# Small things that must not end a run -------------------------------------------------------------


def test_dollars_are_dollars(run, charades, tmp_path):
    out = tmp_path / r"$x_{$\frac"
    status, said = call("train.py", *flags_of(out, charades))
    assert status == 0 and "could not be" not in said and os.path.getsize(out / "curves.png") > 5000
    record = {
        "question": r"a $\frac{ costs $5_",
        "answer": [0.0, 1.0],
        "text": "<answer>0 to 1</answer>",
        "iou": 1.0,
    }
    pictures.draw_intervals(str(tmp_path / "x.png"), [record], r"model $a_{")
    assert os.path.getsize(tmp_path / "x.png") > 5000


def test_a_full_disk_while_logging(run, charades):
    """/dev/full takes nothing, as a full disk does.

    The run is begun again, and its work is saved.
    """
    for name in ("checkpoints", "policy"):
        shutil.rmtree(run / name)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        os.remove(run / name)
        os.symlink("/dev/full", run / name)
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 0 and (run / "policy" / "adapter_model.safetensors").is_file(), said
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        why = "OSError: [Errno 28] No space left on device"
        assert f"{name} could not be written ({why}); the run goes on" in said


def test_a_picture_that_cannot_be_drawn(run, charades):
    shutil.rmtree(run / "checkpoints"), shutil.rmtree(run / "policy")
    os.remove(run / "curves.png")
    os.mkdir(run / "curves.png")
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert (
        status == 0
        and "curves.png could not be written (IsADirectoryError" in said
        and (run / "policy").is_dir()
    ), said
    status, said = call("tools.report", run)
    assert (
        status == 2
        and "could not be written" in said
        and "Traceback" not in said
        and (run / "report.html").is_file()
    )


def small_files():
    # Bytes of a file: settings fit, weights do not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))


def test_when_nothing_can_be_saved_all_reasons_are_given(charades, tmp_path):
    job = process("train.py", *flags_of(tmp_path / "run", charades), preexec_fn=small_files)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 2 and "Traceback" not in said, said
    assert (
        said.count("its last save failed: checkpoint of step 1 could not be written") == 1
        and "; the policy of step 1 could not be written" in said
    )


def test_a_part_of_a_checkpoint_that_cannot_be_written(tmp_path):
    """The second of three: the rest is not written, the older checkpoint stays."""
    code = f"""
import sys
sys.path.insert(0, {ROOT!r})
import resource, torch
from training import checkpoint
checkpoint.PART_BYTES = 1000
small, large = torch.ones(300), torch.ones(10_000)
print(checkpoint.save_checkpoint({str(tmp_path)!r}, 1, dict(a=small), {{}}, 2, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(checkpoint.save_checkpoint({str(tmp_path)!r}, 2, dict(a=small, b=large, c=small), {{}}, 2, 0))
"""
    said, _ = process("-c", code).communicate(timeout=120)
    first, second = said.strip().splitlines()
    assert (
        first == "None"
        and second.startswith("checkpoint of step 2 could not be written (")
        and "File too large" in second
    ), said
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]
    assert save_checkpoint(str(tmp_path), 3, {"a": torch.ones(1)}, {}, 1, 0) is None and os.listdir(
        tmp_path / "checkpoints"
    ) == ["step-000003"]


@pytest.mark.slow
def test_the_folder_is_removed_meanwhile(charades, tmp_path):
    out = tmp_path / "run"
    job = process("train.py", *LONG, "--data", charades, "--out", out)
    wait_for(out / "metrics.jsonl", job)
    shutil.rmtree(out)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM and "Traceback" not in said, said
    assert (
        folders.kind_of(out) == "run"
        and load(str(out / "policy"))
        and os.listdir(out / "checkpoints")
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">/dev/full", "2>&1 | head -1"])
def test_nobody_listens(closed, charades, tmp_path):
    words = " ".join([
        sys.executable,
        "train.py",
        *("--data", charades),
        *TINY[:-1],
        *("--out", str(tmp_path / "run")),
    ])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} {closed}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 0
        and "Traceback" not in done.stderr
        and "Exception ignored" not in done.stderr
    ), done.stderr
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file() and len(
        records(tmp_path / "run" / "metrics.jsonl")
    ) == 1


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    ["train.py", "eval.py", "tools.report", "tools.merge", "tools.paper", "course", "grpo.py"],
)
def test_help_in_an_ascii_terminal_and_through_head(program):
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} {words(program)} --help | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | ASCII,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.slow
def test_every_program_in_an_ascii_terminal(charades, tmp_path):
    out = tmp_path / "run"
    commands = [
        ["train.py", "--data", charades, *TINY[:-1], "--rollouts-every", 1, "--out", out],
        ["train.py", "--task", "grounding", "--plan"],
        ["eval.py", "--bench", "charades", "--data", charades, "--model", out, "--limit", 2],
        ["tools.report", out, 1],
        ["grpo.py"],
        ["course", "list"],
        ["train.py", "--out", tmp_path / "zurück"],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *words(command[0]).split(), *map(str, command[1:])],
            cwd=ROOT,
            capture_output=True,
            timeout=120,
            env=os.environ | ASCII,
        )
        wanted = 2 if command == commands[-1] else 0
        assert done.returncode == wanted and b"Traceback" not in done.stderr, (command, done.stderr)
        assert done.stdout.isascii()
    assert b"set PYTHONUTF8=1" in done.stderr and not os.path.exists(tmp_path / "zurück")


def test_memory_that_is_not_enough_is_known_from_its_real_errors():
    for ask in (
        lambda: torch.empty(10**15),
        lambda: torch.empty(10**18, 10**3),
        lambda: bytearray(10**15),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as e:
            ask()
        assert errors.out_of_memory(e.value)
    assert errors.out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    ) and not errors.out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
def test_too_little_memory_is_one_sentence(charades, tmp_path):
    """A limit on the address space, as a batch system sets it."""
    code = f"""
import sys, resource
sys.path.insert(0, {ROOT!r})
import {{program}}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
sys.argv = {{args!r}}
{{program}}.main()
"""
    # A model that says it has positions for twenty million tokens, and so may be asked for them.
    shutil.copytree(os.path.join(ROOT, "assets", "toy-base"), model := tmp_path / "long")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 10**9
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    common = ["--data", charades, "--model", str(model), "--max-new-tokens", "20000000"]
    for program, args in (
        ("train", ["--task", "grounding", "--steps", "1", "--out", str(tmp_path / "t")]),
        ("eval", ["--bench", "charades", "--out", str(tmp_path / "e")]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(program=program, args=[program, *args, *common])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (
            done.returncode == 1
            and "ran out of memory: lower --" in done.stderr
            and "Traceback" not in done.stderr
        ), done.stderr[-2000:]


# Damaged files ------------------------------------------------------------------------------------

DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[: len(path.read_text()) // 2]),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "number": lambda path: path.write_text("3\n"),
    "null": lambda path: path.write_text("null\n"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "no keys": lambda path: path.write_text("{}\n"),
    "deep": lambda path: path.write_text("[" * 200_000 + "\n"),
    "folder": lambda path: (os.remove(path), os.mkdir(path)),
    "nan": lambda path: path.write_text(re.sub(r": [\d.-]+(?=[,}\n])", ": NaN", path.read_text())),
    "strings": lambda path: path.write_text(
        re.sub(r": [\d.-]+(?=[,}\n])", ': "x"', path.read_text())
    ),
}
# Of each file what reads it, and the ways to damage it: all where most is read, else the commonest.
COMMON = ("empty", "cut", "list", "binary", "folder")
FILES = {
    "settings.json": "page resume evaluate",
    "metrics.jsonl": "page resume",
    "rollouts.jsonl": "page group resume",
    "samples.jsonl": "page resume",
    "skipped.jsonl": "resume",
    "policy/video_budget.json": "evaluate",
    "checkpoints/step-000001/state.json": "resume",
    "eval-charades/predictions.jsonl": "page compare evaluate",
    "eval-charades/results.json": "page compare evaluate",
    "eval-charades/settings.json": "evaluate",
}
CASES = [
    (name, damage)
    for name, readers in FILES.items()
    for damage in (DAMAGE if " " in readers else COMMON)
]


@pytest.mark.slow
@pytest.mark.parametrize("name, damage", CASES)
def test_damaged_files_are_named_and_are_no_traceback(name, damage, run, charades):
    path = run / name
    if name == "skipped.jsonl":
        path.write_text('{"step": 1, "id": "a", "why": "b"}\n')
    DAMAGE[damage](path)
    ask = ["--bench", "charades", "--data", charades]
    commands = {
        "page": ("tools.report", run),
        "group": ("tools.report", run, 1),
        "compare": ("eval.py", *ask, "--compare", run, run),
        "resume": ("train.py", *flags_of(run, charades), "--resume"),
        "evaluate": ("eval.py", *ask, "--model", run, "--max-new-tokens", 8, "--limit", 1),
    }
    heard = ""
    for reader in FILES[name].split():
        # Any exception but a program's own end would be raised here.
        status, said = call(*commands[reader])
        assert status in (0, 2) and "Traceback" not in said, said
        if status == 2:
            assert (
                said.strip().splitlines()[-1].startswith("error: ")
                and len(said.strip().splitlines()[-1]) < 600
            ), said
        heard += said
    # A log may be empty, end within a line, and hold numbers that are not finite; nothing reads
    # skipped.jsonl but --resume.
    quiet = (
        name.endswith(".jsonl")
        and damage in ("empty", "cut", "nan")
        or (name, damage) == ("skipped.jsonl", "folder")
    )
    assert quiet or name.endswith("settings.json") or os.path.basename(name) in heard, heard
