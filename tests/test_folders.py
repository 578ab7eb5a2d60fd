"""Nothing of the user's is lost, and what goes wrong is one sentence."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import eval as evaluation
import train
from conftest import BASE, ROOT, wait_for
from evaluation.pictures import draw_intervals
from lib import errors, figures, files
from lib.errors import BadInput
from lib.files import read_lines
from tools import merge, paper, report
from training.checkpoint import save_checkpoint
from training.run import STOP

TINY = "--group-size 2 --prompts-per-step 1 --max-new-tokens 8 --steps 1 --quiet".split()
PROGRAMS = {"train.py": train, "eval.py": evaluation, "tools.report": report,
            "tools.merge": merge, "tools.paper": paper}  # fmt: skip


def call(name, *args, cwd=ROOT):
    """(exit status, all it said) of a program, run in this process to spare its imports."""
    said, argv, status = io.StringIO(), sys.argv, 0
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    STOP.update(signal=None)
    to_said = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    try:
        sys.argv = [name, *map(str, args)]
        with contextlib.chdir(cwd), to_said[0], to_said[1]:
            PROGRAMS[name].main()
    except SystemExit as e:
        status = e.code or 0
    finally:
        sys.argv = argv
        for s, handler in handlers.items():
            signal.signal(s, handler)
    return status, said.getvalue()


def process(*args, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen([sys.executable, *map(str, args)], cwd=ROOT, **options)


@pytest.fixture(scope="module")
def finished(charades, tmp_path_factory):
    """A run of one step of adapters, and its evaluation."""
    out = str(tmp_path_factory.mktemp("folders") / "run")
    for command in (("train.py", *flags_of(out, charades)), ("eval.py", *ask_of(out, charades))):
        status, said = call(*command)
        assert status == 0, said
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def flags_of(run, charades):
    return ["--data", charades, *TINY, "--lora", 2, "--rollouts-every", 1, "--out", run]


def ask_of(run, charades):
    ask = ["--bench", "charades", "--data", charades, "--max-new-tokens", 8]
    return [*ask, "--model", run]


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


WITHIN = """notes.txt mine/deep/notes.txt policy/mine.gguf checkpoints/notes.txt .hidden
            checkpoints/step-000001/notes.txt eval-charades/notes.txt eval-mine/notes.txt"""
AROUND = """above.txt place/beside.txt place/policy/config.json merged/x.txt full/a.txt
            table/table.md place/lock models/model.safetensors place/run.old-1/a.txt"""


def test_no_program_and_no_flag_loses_a_foreign_file(finished, charades, tmp_path):
    """Files may move with their folder, as --overwrite renames it. None may be gone."""
    home, run = str(tmp_path), str(tmp_path / "place" / "run")
    shutil.copytree(finished, run)
    mine = plant(home, *AROUND.split(), *[f"place/run/{path}" for path in WITHIN.split()])
    assert len(mine) == 17
    base, ask = flags_of(run, charades), ask_of(run, charades)
    others = [f"{home}/{out}" for out in ("full", "place", "merged", "models")]
    flags = ([], ["--resume"], ["--overwrite"])
    commands = [
        (2, "train.py", *base),
        (0, "train.py", *base, "--resume", "--keep", 1),
        *[(2, "train.py", *flags_of(out, charades), *more) for out in others for more in flags],
        (0, "eval.py", *ask),
        (0, "eval.py", *ask, "--limit", 2),
        (0, "eval.py", *ask, "--blind", "--limit", 1),
        *[(2, "eval.py", *ask, "--limit", 1, "--out", out) for out in [run, *others]],
        (0, "tools.report", run),
        (0, "tools.merge", f"{run}/policy", f"{home}/new"),
        *[(2, "tools.merge", f"{run}/policy", out) for out in (f"{home}/new", run, *others)],
        (0, "train.py", *base, "--overwrite"),
        (0, "train.py", *base, "--overwrite"),
    ]
    for status, *command in commands:
        ended, said = call(*command)
        assert ended == status and "Traceback" not in said, (command, said)
        assert foreign_files(home) == mine, command
    assert os.path.isfile(os.path.join(home, "place", "run.old-3", "metrics.jsonl"))


def test_overwrite_renames_the_old_run(run, charades):
    before = {at: names for at, _, names in os.walk(run)}
    status, said = call("train.py", *flags_of(run, charades), "--overwrite", "--seed", 1)
    assert status == 0 and f"the run before is now {run}.old-1" in said
    for at, names in before.items():
        assert set(names) <= set(os.listdir(at.replace(str(run), f"{run}.old-1")))
    assert not os.path.exists(run / "eval-charades")  # the evaluation was of the run before


def test_a_file_of_the_users_in_the_policy_moves_along_and_a_kill_loses_nothing(tmp_path):
    names = lambda folder: sorted(os.listdir(tmp_path / folder))
    plant(tmp_path, "policy/mine.gguf", "policy/config.json")
    plant(tmp_path, "policy/model-00001-of-00002.safetensors")
    plant(tmp_path, "policy.partial/config.json", "policy.partial/model.safetensors")
    new, policy = str(tmp_path / "policy.partial"), str(tmp_path / "policy")
    files.replace_folder(new, policy)
    assert names("policy") == ["config.json", "mine.gguf", "model.safetensors"]
    os.rename(policy, policy + ".old")  # killed between the renames
    plant(tmp_path, "policy.partial/config.json")
    files.replace_folder(new, policy)
    assert names("policy") == ["config.json", "mine.gguf"] and names("") == ["policy"]
    plant(tmp_path, "policy.old/other.txt", "policy.old/config.json")  # before the old one is gone
    plant(tmp_path, "policy.partial/config.json")
    files.replace_folder(new, policy)
    assert names("policy") == ["config.json", "mine.gguf", "other.txt"] and names("") == ["policy"]


def test_resume_without_a_checkpoint(run, charades):
    shutil.rmtree(run / "checkpoints")
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 2 and "has no checkpoint that can be read" in said
    assert os.path.isdir(run / "policy")
    shutil.rmtree(run / "policy")  # stopped before its first save
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 0 and os.path.isdir(run / "policy"), said
    assert len(read_lines(run / "metrics.jsonl")) == 1


def test_a_run_of_an_older_version_is_refused_and_its_policy_opens(run, charades):
    settings = json.loads((run / "settings.json").read_text())
    del settings["layout"], settings["model_fingerprint"]
    (run / "settings.json").write_text(json.dumps(settings))
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 2 and "is a run of an older version" in said and said.count("\n") == 1
    del settings["kind"]
    (run / "settings.json").write_text(json.dumps(settings))
    status, said = call("eval.py", *ask_of(run, charades), "--limit", 1)
    assert status == 0 and "toy base + GRPO" in said, said


def test_a_short_evaluation_does_not_cost_a_finished_one(run, charades):
    before = (run / "eval-charades" / "predictions.jsonl").read_text()
    for _ in range(2):  # twice: the second finds its own two and adds nothing
        status, said = call("eval.py", *ask_of(run, charades), "--limit", 2)
        assert status == 0, said
    assert len(read_lines(run / "eval-charades" / "predictions.jsonl")) == 2
    aside = run / "eval-charades.old-1"
    assert (aside / "predictions.jsonl").read_text() == before
    assert {"results.json", "settings.json"} <= set(os.listdir(aside))
    assert not os.path.exists(run / "eval-charades.old-2")


def test_another_kind_of_folder_is_refused(run, charades):
    settings = (run / "settings.json").read_text()
    inside = run / "eval-charades"
    for says, *command in (
        ("holds a run of train.py, not an eval", "eval.py", *ask_of(run, charades), "--out", run),
        ("holds an evaluation of eval.py", "train.py", *flags_of(inside, charades), "--overwrite"),
        ("is an evaluation of eval.py", "eval.py", *ask_of(inside, charades)),
        ("", "tools.report", inside),
    ):
        status, said = call(*command)
        assert status == 2 and says in said, said
    assert (run / "settings.json").read_text() == settings


LONG = [*"--task grounding --group-size 2 --prompts-per-step 1 --max-new-tokens 8".split(),
        *"--steps 100000 --save-every 100000 --quiet".split()]  # fmt: skip


@pytest.mark.slow
def test_two_programs_in_one_folder(charades, tmp_path):
    """Refused while the other lives, at work at once when it was killed."""
    out = tmp_path / "run"
    job = process("train.py", *LONG, "--data", charades, "--out", out)
    try:
        wait_for(out / "metrics.jsonl", job)
        for more in ([], ["--resume"], ["--overwrite"]):
            began = time.time()
            status, said = call("train.py", *LONG, "--data", charades, "--out", out, *more)
            assert status == 2 and ("in use by another process" in said or not more), said
            assert time.time() - began < 30
        assert job.poll() is None and os.path.isfile(out / "settings.json")
    finally:
        job.kill()
    job.communicate()
    with files.locks_released():
        files.take(str(out))


def test_a_lock_ends_with_its_block_or_its_process(tmp_path):
    code = (
        "import sys; from lib import files; files.take(sys.argv[1]); print('taken', flush=True); "
    )
    job = process("-c", code + "sys.stdin.read()", tmp_path, stdin=subprocess.PIPE)
    assert job.stdout.readline() == "taken\n"
    with pytest.raises(BadInput, match="is in use by another process: wait for it"):
        files.take(str(tmp_path))
    job.kill()
    job.communicate()
    with pytest.raises(ZeroDivisionError), files.locks_released():
        files.take(str(tmp_path))
        with pytest.raises(BadInput, match="in use"):
            files.take(str(tmp_path))
        raise ZeroDivisionError
    with files.locks_released():
        files.take(str(tmp_path))


def test_an_evaluation_holds_its_folder_and_gives_it_back(charades, tmp_path):
    ask = [*ask_of(BASE, charades), "--out", tmp_path, "--limit", 1]
    with files.locks_released():
        files.take(str(tmp_path))
        status, said = call("eval.py", *ask)
        assert status == 2 and "in use by another process" in said
    assert call("eval.py", *ask, "--model", "/nowhere/x")[0] == 2
    assert os.listdir(tmp_path) == [files.LOCK]  # nothing is written for a model that is not there
    assert call("eval.py", *ask)[0] == 0
    with files.locks_released():
        files.take(str(tmp_path))


def test_dollars_are_dollars(tmp_path):
    record = {"question": r"a $\frac{ costs $5_", "answer": [0.0, 1.0], "iou": 1.0}
    record["text"] = "<answer>0 to 1</answer>"
    figures.save(draw_intervals([record], r"model $a_{"), str(tmp_path / "x.png"))
    assert os.path.getsize(tmp_path / "x.png") > 5000


def test_a_full_disk_ends_the_run_with_one_sentence(run, charades):
    """/dev/full takes nothing, as a full disk does. The run is begun again."""
    for name in ("checkpoints", "policy"):
        shutil.rmtree(run / name)
    os.remove(run / "metrics.jsonl")
    os.symlink("/dev/full", run / "metrics.jsonl")
    status, said = call("train.py", *flags_of(run, charades), "--resume")
    assert status == 1 and said.endswith("the system refused (No space left on device)\n"), said


def test_when_nothing_can_be_saved_the_run_ends(charades, tmp_path):
    # Bytes of a file: settings fit, weights do not.
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
    job = process("train.py", *flags_of(tmp_path / "run", charades), preexec_fn=small)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 2 and "Traceback" not in said, said
    assert "error: step 1 could not be saved (" in said and "--resume goes on from there" in said


def test_a_part_of_a_checkpoint_that_cannot_be_written(tmp_path):
    """The second of three: the older checkpoint stays, and the next save clears up."""
    code = f"""
import resource, torch
from training import checkpoint
checkpoint.TENSORS = 1
small, large = torch.ones(300), torch.ones(10_000)
checkpoint.save_checkpoint({str(tmp_path)!r}, 1, dict(a=small), {{}}, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoint.save_checkpoint({str(tmp_path)!r}, 2, dict(a=small, b=large, c=small), {{}}, 2)
"""
    said, _ = process("-c", code).communicate(timeout=120)
    assert "SafetensorError" in said and "File too large" in said, said
    made = tmp_path / "checkpoints"
    assert sorted(os.listdir(made)) == ["step-000001", "step-000002.partial"]
    save_checkpoint(str(tmp_path), 2, {"a": torch.ones(1)}, {}, 1)
    assert os.listdir(made) == ["step-000002"]


def test_memory_that_is_not_enough_is_known_from_its_real_errors():
    huge = (
        lambda: torch.empty(10**15),
        lambda: bytearray(10**15),
    )
    for ask in huge:
        with pytest.raises((RuntimeError, MemoryError)) as e:
            ask()
        assert errors.out_of_memory(e.value)
    assert errors.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not errors.out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
def test_too_little_memory_is_one_sentence(charades, tmp_path):
    """A limit on the address space, as a batch system sets it."""
    code = """
import sys, resource
import {program}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
sys.argv = {args!r}
{program}.main()
"""
    # A model that says it has positions for twenty million tokens, and so may be asked for them.
    model = shutil.copytree(BASE, tmp_path / "long")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 10**9
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    common = ["--data", charades, "--model", str(model), "--max-new-tokens", "20000000"]
    for program, args in (
        ("train", ["--task", "grounding", "--steps", "1", "--out", str(tmp_path / "t")]),
        ("eval", ["--bench", "charades", "--out", str(tmp_path / "e")]),
    ):
        words = [program, *args, *common]
        job = process("-c", code.format(program=program, args=words))
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 1 and "Traceback" not in said, said[-2000:]
        assert "ran out of memory: lower --" in said


DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[: len(path.read_text()) // 2]),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "folder": lambda path: (os.remove(path), os.mkdir(path)),
}
FILES = {  # of each file what reads it
    "settings.json": "page resume evaluate",
    "metrics.jsonl": "page resume",
    "rollouts.jsonl": "page resume",
    "policy/video_budget.json": "evaluate",
    "checkpoints/step-000001/state.json": "resume",
    "checkpoints/step-000001/part-000.safetensors": "resume",
    "eval-charades/predictions.jsonl": "compare evaluate",
    "eval-charades/results.json": "page compare",
    "eval-charades/settings.json": "evaluate",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named_and_are_no_traceback(name, damage, run, charades):
    if damage == "cut" and name.endswith("safetensors"):
        os.truncate(run / name, 1000)
    else:
        DAMAGE[damage](run / name)
    ask = ["--bench", "charades", "--data", charades]
    commands = {
        "page": ("tools.report", run),
        "compare": ("eval.py", *ask, "--compare", run, run),
        "resume": ("train.py", *flags_of(run, charades), "--resume"),
        "evaluate": ("eval.py", *ask_of(run, charades), "--limit", 1),
    }
    heard = ""
    for reader in FILES[name].split():
        # Any exception but a program's own end would be raised here.
        status, said = call(*commands[reader])
        assert status in (0, 1, 2) and "Traceback" not in said, said
        last = said.strip().splitlines()[-1]
        assert status == 0 or (last.startswith("error: ") and len(last) < 600), said
        heard += said
    # A log may be empty, and may end within a line.
    quiet = name.endswith(".jsonl") and damage in ("empty", "cut")
    assert quiet or os.path.basename(name) in heard or "step-000001" in name, heard


def test_a_folder_where_lines_should_be_is_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="is a folder, where a file should be"):
        read_lines(str(tmp_path))
