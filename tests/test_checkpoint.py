"""Runs that are stopped, killed and damaged go on to the weights that they would have had."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import grpo
import train
from conftest import BASE, ROOT, wait_for
from data import VideoBudget
from lib.errors import BadInput
from lib.files import read_lines
from training.run import STOP

QUICK = [
    *"--task grounding --group-size 2 --prompts-per-step 2 --max-new-tokens 16".split(),
    *"--steps 6 --save-every 2 --rollouts-every 1".split(),
]


def run(charades, out, *more):
    """In this process: most of a short run's time would be spent on imports."""
    STOP.update(signal=None)
    train.train(train.parse_args([*QUICK, "--data", str(charades), "--out", str(out), *more]))


def start(charades, out, *more):
    return subprocess.Popen(
        [sys.executable, "train.py", *QUICK, "--data", charades, "--out", str(out), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(out, name="metrics.jsonl"):
    return read_lines(os.path.join(out, name))


def weights(out):
    return load_file(os.path.join(out, "policy", "model.safetensors"))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values()))


@pytest.fixture(scope="module")
def unstopped(charades, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("run") / "unstopped")
    run(charades, out)
    kept = sorted(os.listdir(os.path.join(out, "checkpoints")))
    assert kept == ["step-000004", "step-000006"]  # --keep 2
    return out


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(charades, unstopped, tmp_path, capsys):
    out = tmp_path / "killed"
    job = start(charades, out)
    wait_for(out / "checkpoints" / "step-000002", job)
    job.send_signal(signal.SIGKILL)
    job.wait()
    run(charades, out, "--resume")
    assert "going on after step" in capsys.readouterr().out
    assert same(out, unstopped)
    run(charades, out, "--resume")  # there is nothing left to do
    assert "going on after step 6" in capsys.readouterr().out and same(out, unstopped)
    drop = lambda line: {k: v for k, v in line.items() if "second" not in k and k != "memory_gb"}
    assert [drop(a) for a in lines(out)] == [drop(b) for b in lines(unstopped)]
    assert [r["step"] for r in lines(out, "rollouts.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sigterm_saves_and_exits(charades, unstopped, tmp_path):
    out = tmp_path / "told"
    job = start(charades, out)
    wait_for(out / "metrics.jsonl", job)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM and "stopped after step" in said
    steps = len(lines(out))
    assert 1 <= steps < 6 and os.path.isdir(out / "checkpoints" / f"step-{steps:06d}")
    run(charades, out, "--resume")
    assert same(out, unstopped)


def test_damaged_checkpoint_is_passed_over(charades, unstopped, tmp_path, capsys):
    out = tmp_path / "damaged"
    shutil.copytree(unstopped, out)
    os.truncate(out / "checkpoints" / "step-000006" / "part-000.safetensors", 10_000)
    run(charades, out, "--resume")
    said = capsys.readouterr()
    assert "step-000006 cannot be read" in said.err and "after step 4" in said.out
    assert same(out, unstopped)
    for folder in os.listdir(out / "checkpoints"):
        (out / "checkpoints" / folder / "state.json").write_text("{")
    with pytest.raises(BadInput, match="has no checkpoint that can be read: give --overwrite"):
        run(charades, out, "--resume")
    assert (out / "policy").is_dir()  # nothing was removed


def test_resume_refuses_other_settings_and_starts_where_nothing_is(charades, unstopped, tmp_path):
    out = tmp_path / "other"
    shutil.copytree(unstopped, out)
    with pytest.raises(BadInput, match="lr was 0.0003, now 1e-05"):
        run(charades, out, "--resume", "--lr", "1e-5")
    with pytest.raises(BadInput, match="already holds a run: .*--resume"):
        run(charades, out)
    run(charades, tmp_path / "new", "--resume", "--steps", "1")
    assert len(lines(tmp_path / "new")) == 1


def test_resume_compares_contents(charades, tmp_path):
    """Two labels swapped in the file, or one weight of the base changed in place."""
    data = shutil.copytree(charades, tmp_path / "charades")
    base = shutil.copytree(BASE, tmp_path / "base")
    flags = ["--steps", "1", "--model", str(base), "--resume"]
    run(data, tmp_path / "run", *flags)
    run(data, tmp_path / "run", *flags)
    (path,) = data.glob("*train*.txt")
    labels = path.read_text().splitlines()
    names, texts = zip(*(line.split(" ", 1) for line in labels))
    swapped = [f"{a} {b}\n" for a, b in zip(names, (texts[1], texts[0], *texts[2:]))]
    path.write_text("".join(swapped))
    with pytest.raises(BadInput, match="cannot go on: other examples"):
        run(data, tmp_path / "run", *flags)
    path.write_text("\n".join(labels) + "\n")
    weights = load_file(base / "model.safetensors")
    weights["visual.merger.ln_q.weight"][3] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="cannot go on: --model has other weights"):
        run(data, tmp_path / "run", *flags)


@pytest.mark.slow
def test_unreadable_videos_are_replaced_and_named(charades, tmp_path):
    """One of 12 training clips is damaged: whoever draws it takes the next; the run ends well."""
    broken = tmp_path / "charades"
    shutil.copytree(charades, broken)
    (broken / "videos" / "train00003.mp4").write_bytes(b"not a video")
    out = tmp_path / "run"
    run(broken, out, "--steps", "8")
    skipped = lines(out, "skipped.jsonl")
    assert {s["id"].split("/")[0] for s in skipped} == {"train00003"}
    assert "cannot be decoded" in skipped[0]["why"]
    assert lines(out)[-1]["skipped"] == len(skipped)


def test_many_unreadable_videos_stop_the_run(charades, tmp_path):
    broken = tmp_path / "charades"
    shutil.copytree(charades, broken)
    for i in range(0, 12, 2):
        (broken / "videos" / f"train{i:05d}.mp4").write_bytes(b"")
    with pytest.raises(BadInput, match="could not be read, and above 5% the run stops"):
        run(broken, tmp_path / "run", "--steps", "20")


def test_steps_that_are_not_finite_are_dropped_and_ten_in_a_row_stop(
    charades, tmp_path, monkeypatch
):
    loss = grpo.policy_loss

    def infinite(*args):
        value, per_token = loss(*args)
        return value * float("inf"), per_token

    monkeypatch.setattr(grpo, "policy_loss", infinite)
    with pytest.raises(BadInput, match="10 steps in a row"):
        run(charades, tmp_path / "x", *"--steps 12 --save-every 100".split())
    assert [line["dropped"] for line in lines(tmp_path / "x")] == list(range(1, 11))


@pytest.mark.slow
def test_a_decoder_that_hangs_or_dies_costs_one_video(charades, tmp_path, monkeypatch):
    from data import read_frames
    from lib.decoder import Decoder

    good = os.path.join(charades, "videos", "train00000.mp4")
    budget, decoder = VideoBudget.of_model(BASE), Decoder(20, read_frames)
    try:
        ours, theirs = decoder.read(good, budget), read_frames(good, budget)
        assert torch.equal(ours.pixels, theirs.pixels) and ours.duration == theirs.duration
        assert np.array_equal(ours.times, theirs.times)
        with pytest.raises(BadInput, match="does not exist"):
            decoder.read(str(tmp_path / "none.mp4"), budget)
        decoder.process.send_signal(signal.SIGSTOP)  # hangs
        decoder.limit = 0.5
        with pytest.raises(BadInput, match="not decoded within 0.5 s"):
            decoder.read(good, budget)
        decoder.limit = 20
        assert torch.equal(decoder.read(good, budget).pixels, theirs.pixels)
        decoder.process.send_signal(signal.SIGSTOP)
        os.kill(decoder.process.pid, signal.SIGSEGV)  # crashes as soon as it is asked
        decoder.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        assert torch.equal(decoder.read(good, budget).pixels, theirs.pixels)  # a new one is there
        decoder.end()
        monkeypatch.setenv("PYTHONHOME", "/nowhere")  # a Python that cannot even begin
        with pytest.raises(BadInput, match="does not start"):
            decoder.read(good, budget)
    finally:
        decoder.close()
