"""What a run records of itself: nothing twice, nothing lost, and training feels nothing of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import grpo
import train
from annotations.readers import read_dataset
from conftest import ROOT
from lib.errors import BadInput
from lib.files import read_lines
from training import loader
from training import run as run_module
from training.loader import FIXED
from training.run import STOP, Run

QUICK = "--task grounding --prompts-per-step 4 --group-size 4 --lr 1e-3 --quiet".split()


def run(charades, out, flags):
    """A run in this process. Returns its folder's files by name: metrics, rollouts, samples."""
    STOP.update(signal=None)
    more = ["--data", charades, "--out", str(out), *flags.split()]
    train.train(train.parse_args([*QUICK, *more]))
    return logs(out)


def logs(out):
    return {
        n: read_lines(os.path.join(out, n + ".jsonl")) for n in ("metrics", "rollouts", "samples")
    }


def learned(metrics):
    """The lines without what is measured by a clock or a memory gauge."""
    timed = lambda name: "second" in name or name == "memory_gb"
    return [{k: v for k, v in line.items() if not timed(k)} for line in metrics]


def texts(records):
    return [[c["text"] for c in r["completions"]] for r in records]


def when(samples):
    return sorted((r["step"], r["number"]) for r in samples)


def test_recording_changes_no_number_of_a_run(charades, tmp_path, monkeypatch):
    """The same lines and the same bits of the policy, with a look at every step and without any.
    A step scores each of its 4 groups by the reference and with gradient; the group that is looked
    at once more, after the update."""
    scored, score = [], grpo.group_logprobs
    monkeypatch.setattr(grpo, "group_logprobs", lambda *a: scored.append(1) or score(*a))
    monkeypatch.setattr(run_module, "SAMPLED_EVERY", 1)
    watched = run(charades, tmp_path / "watched", "--steps 3 --rollouts-every 1")
    assert len(watched["rollouts"]) == 3 and len(watched["samples"]) == 4 * FIXED
    assert len(scored) == 3 * (2 * 4 + 1)
    monkeypatch.setattr(Run, "record_samples", lambda *_: None)
    monkeypatch.setattr(Run, "record_group", lambda *_: None)
    alone = run(charades, tmp_path / "alone", "--steps 3 --rollouts-every 1")
    assert alone["rollouts"] == alone["samples"] == [] and len(scored) == 27 + 3 * 2 * 4
    assert learned(watched["metrics"]) == learned(alone["metrics"])
    a, b = (
        load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("watched", "alone")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_prompts_are_answered_again(charades, tmp_path, monkeypatch):
    """First as the first step's own groups were, later by a policy that has moved."""
    monkeypatch.setattr(run_module, "SAMPLED_EVERY", 2)
    made = run(charades, tmp_path / "r", "--steps 3 --rollouts-every 1")
    assert when(made["samples"]) == [(s, n) for s in (0, 2, 3) for n in range(FIXED)]
    by_step = {s: [r for r in made["samples"] if r["step"] == s] for s in (0, 2, 3)}
    assert texts(by_step[0])[0] == texts(made["rollouts"])[0]
    assert by_step[0][0]["id"] == made["rollouts"][0]["id"]
    for now in by_step.values():
        assert [r["id"] for r in now] == [r["id"] for r in by_step[0]]
        for c in (c for r in now for c in r["completions"]):
            assert c["reward"] == pytest.approx(sum(c["rewards"].values()))
    assert texts(by_step[0]) != texts(by_step[3])


@pytest.mark.parametrize(
    "step_between, bad_ones", [(1, 2), pytest.param(3, 10, marks=pytest.mark.slow)]
)
def test_clips_that_cannot_be_read(charades, tmp_path, monkeypatch, step_between, bad_ones):
    """The first examples: three prompts that differ. All that may stand in for the first: the run
    ends, as it does where a step finds nothing to read."""
    examples = read_dataset("charades", "train", charades)
    order = loader.order_of(len(examples), 0, 0)
    bad = {examples[i].id for i in order[::step_between][:bad_ones]}
    load_prompt = loader.load_prompt

    def load(example, *args, **kwargs):
        if example.id in bad:
            raise BadInput("it is damaged")
        return load_prompt(example, *args, **kwargs)

    monkeypatch.setattr(loader, "load_prompt", load)
    if bad_ones == 10:
        with pytest.raises(BadInput, match="examples in a row cannot be read, the last because"):
            run(charades, tmp_path / "r", "--steps 1")
        return
    made = run(charades, tmp_path / "r", "--steps 1")
    assert len({r["id"] for r in made["samples"]}) == 3 and len(made["metrics"]) == 1


def test_a_killed_run_records_nothing_twice_and_loses_nothing(charades, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "SAMPLED_EVERY", 2)
    out, flags = tmp_path / "r", "--steps 5 --save-every 2 --keep 9 --rollouts-every 100"
    whole = run(charades, out, flags)
    assert when(whole["samples"]) == [(s, n) for s in (0, 2, 4, 5) for n in range(FIXED)]
    for lost in ("step-000005", "step-000004"):  # as if killed in step 5; as if killed in step 4
        shutil.rmtree(out / "checkpoints" / lost)
        again = run(charades, out, flags + " --resume")
        for name in ("rollouts", "samples"):
            assert again[name] == whole[name], (lost, name)
    assert when(run(charades, out, flags + " --resume")["samples"]) == when(whole["samples"])


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--shard"])
def test_two_processes_record_as_one(charades, tmp_path, more):
    """Three prompts on two processes do not come out even, and no process waits for the other."""
    flags = "--steps 3 --rollouts-every 100"
    alone = run(charades, tmp_path / "one", flags)
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    two += ["--standalone", "train.py", *QUICK, *flags.split(), *more.split()]
    two += ["--data", charades, "--out", str(tmp_path / "two"), "--device", "cpu"]
    done = subprocess.run(two, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shared = logs(tmp_path / "two")
    assert when(shared["samples"]) == when(alone["samples"])
    assert [g["step"] for g in shared["rollouts"]] == [1]
    for a in shared["samples"]:
        (b,) = [b for b in alone["samples"] if (b["step"], b["number"]) == (a["step"], a["number"])]
        assert a["id"] == b["id"] and json.dumps(a["answer"]) == json.dumps(b["answer"])
        if a["step"] == 0:  # later the weights differ by rounding
            assert texts([a]) == texts([b])
