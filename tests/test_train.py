"""The run: steps that learn, processes that agree, and mistakes that are told in one sentence."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from conftest import BASE, ROOT
from lib.errors import BadInput
from lib.files import read_lines
from model import load
from training import loader
from training.run import check_sampler

PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
QUICK = ["--task", "grounding", "--group-size", "4", "--prompts-per-step", "4", "--lr", "1e-3"]
THREE = [*QUICK, "--steps", "3", "--updates-per-rollout", "2"]


def run(launcher, *args, timeout=300):
    return subprocess.run(
        [*launcher, "train.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def metrics(folder):
    return read_lines(os.path.join(folder, "metrics.jsonl"))


def weights(folder):
    return load(os.path.join(folder, "policy"))[0].state_dict()


@pytest.fixture(scope="module")
def one_process(charades, tmp_path_factory):
    """Three GRPO steps on one process, with two updates each."""
    out = tmp_path_factory.mktemp("run") / "one"
    done = run(PYTHON, *THREE, "--data", charades, "--out", out, "--rollouts-every", 1)
    assert done.returncode == 0, done.stderr
    return str(out), done


def test_a_run_leaves_all_that_it_promises(one_process):
    out, done = one_process
    left = {"settings.json", "metrics.jsonl", "rollouts.jsonl", "curves.png", "policy"}
    assert left <= set(os.listdir(out))
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    names = "reward spread no_spread kl clip_share entropy length grad_norm".split()
    for line in lines:
        assert set(names) <= set(line)
        assert {"data", "sample", "reward", "reference", "update", "record"} == set(line["seconds"])
        parts = line["reward/grounding/format"] + line["reward/grounding/iou"]
        assert line["reward"] == pytest.approx(parts, rel=1e-6)
    assert lines[0]["kl"] < 1e-6 < lines[2]["kl"]  # at first the policy is the reference policy
    said = " ".join((done.stderr + done.stdout).split())
    assert "of scoring differ by" in said and "The loss of step 1 is 0" in said
    with open(os.path.join(out, "settings.json"), encoding="utf-8") as f:
        settings = json.load(f)
    assert settings["seed"] == 0 and settings["versions"]["torch"] == torch.__version__
    assert settings["video_budget"]["fps"] == 2.0


def test_rollouts_add_up(one_process):
    for group in read_lines(os.path.join(one_process[0], "rollouts.jsonl")):
        assert len(group["completions"]) == 4 and "video tokens]" in group["prompt"]
        assert sum(c["advantage"] for c in group["completions"]) == pytest.approx(0, abs=1e-4)
        for c in group["completions"]:
            assert c["reward"] == pytest.approx(sum(c["rewards"].values()), abs=1e-6)


def test_the_policy_moved_and_loads_in_plain_transformers(one_process):
    from transformers import AutoModelForImageTextToText

    before, after = load(BASE)[0].state_dict(), weights(one_process[0])
    assert any(not torch.equal(before[k], after[k]) for k in before)
    policy = os.path.join(one_process[0], "policy")
    plain = AutoModelForImageTextToText.from_pretrained(policy).state_dict()
    assert all(torch.equal(plain[k], after[k]) for k in after)


def test_groups_without_spread_teach_nothing(charades, tmp_path):
    """One token is never an answer: all rewards are 0. Without a KL no weight moves, and nothing is
    scored."""
    out = str(tmp_path / "still")
    flags = "--steps 2 --beta 0 --max-new-tokens 1".split()
    train.train(train.parse_args([*QUICK, *flags, "--data", charades, "--out", out]))
    assert [(line["no_spread"], line["grad_norm"]) for line in metrics(out)] == [(1, 0), (1, 0)]
    before, after = load(BASE)[0].state_dict(), weights(out)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_two_processes_take_the_steps_of_one(one_process, charades, tmp_path):
    """Same prompts, completions and gradients: weights after 3 steps differ by rounding alone."""
    flags = [*THREE, "--data", charades, "--out", tmp_path / "two"]
    done = run([*TORCHRUN, "29511"], *flags)
    assert done.returncode == 0, done.stderr
    names = "reward kl entropy length grad_norm completion_tokens spread".split()
    for x, y in zip(metrics(one_process[0]), metrics(str(tmp_path / "two"))):
        for name in names:
            assert x[name] == pytest.approx(y[name], rel=1e-3, abs=1e-6), (x["step"], name)
    start = load(BASE)[0].state_dict()
    one, two = weights(one_process[0]), weights(str(tmp_path / "two"))
    moved = sum(float((one[k] - start[k]).square().sum()) for k in one) ** 0.5
    apart = sum(float((one[k] - two[k]).square().sum()) for k in one) ** 0.5
    assert apart < 0.01 * moved, (apart, moved)


@pytest.mark.slow
def test_killing_one_process_ends_the_other_with_a_message(charades, tmp_path):
    flags = [*QUICK, "--data", charades, "--steps", "100000", "--out", str(tmp_path / "x")]
    command = [*TORCHRUN, "29512", "train.py", *flags]
    job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not os.path.isfile(tmp_path / "x" / "metrics.jsonl"):
            assert job.poll() is None
            time.sleep(0.2)
        found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True)
        workers = found.stdout.split()
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        _, said = job.communicate(timeout=60)
        assert job.returncode != 0
        assert "lost another process" in said or "told to stop" in said
    finally:
        job.kill()


def test_sft_learns_the_true_answers(charades, tmp_path):
    flags = "--method sft --steps 8 --lr 1e-3".split()
    train.train(train.parse_args([*flags, "--data", charades, "--out", str(tmp_path / "sft")]))
    losses = [line["loss"] for line in metrics(str(tmp_path / "sft"))]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dr_grpo", "dapo", "gspo", "cispo", "gdpo"])
def test_every_variant_runs(loss, charades, tmp_path):
    flags = [*"--steps 1 --beta 0 --no-think --loss".split(), loss]
    done = run(PYTHON, *QUICK, *flags, "--data", charades, "--out", tmp_path / loss)
    assert done.returncode == 0, done.stderr
    assert metrics(str(tmp_path / loss))[0]["grad_norm"] > 0


def test_each_pass_sees_every_example_once_in_an_order_of_its_own():
    examples = list(range(50))
    turns = [loader.candidates(examples, position, seed=3) for position in range(100)]
    first, second = [c[0] for c in turns[:50]], [c[0] for c in turns[50:]]
    assert sorted(first) == sorted(second) == examples and first != second != examples != first
    # Who stands in: the next ones in this order.
    assert all(turns[i][j] == first[i + j] for i in range(40) for j in range(10))


def test_a_run_stops_when_sampler_and_scorer_disagree():
    """A few far tokens are bfloat16's; many are a mistake, and so is anything in float32."""
    healthy = torch.cat([torch.full((9_950,), 0.02), torch.full((50,), 0.6)])
    assert "2.0e-02 in the 99th percentile" in check_sampler(healthy, torch.bfloat16)
    check_sampler(torch.full((1000,), 2e-6), torch.float32)
    for gaps, dtype in ((healthy, torch.float32), (torch.full((1000,), 0.2), torch.bfloat16),
                        (torch.cat([torch.zeros(97), torch.ones(3)]), torch.bfloat16),
                        (torch.tensor([0.0, float("nan")]), torch.bfloat16)):  # fmt: skip
        with pytest.raises(BadInput, match="sampler's and the scorer's"):
            check_sampler(gaps, dtype)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, says", [
    (["--task", "juggling"], "--task juggling is unknown; there is: grounding, tracking"),
    (["--model", "/nowhere"], "neither a folder here nor a hub name"),
    (["--data", "/nowhere"], "data folder /nowhere does not exist"),
    (["--group-size", "1"], "--group-size must be at least 2"),
    (["--steps", "0"], "--steps must be a whole number in [1, inf)"),
    (["--out", os.path.join(ROOT, "README.md", "run")], "cannot write to --out"),
    (["--model", "some/model", "--task", "tracking", "--data", ""],
     "there is no data/got10k: give --data FOLDER with got10k, or --data toy"),
])  # fmt: skip
def test_a_users_mistake_is_one_sentence(args, says, charades, tmp_path, monkeypatch, capsys):
    given = args if "--data" in args else [*args, "--data", charades]
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path / "out"), *given])
    monkeypatch.chdir(tmp_path)  # where there is no data/
    # In this process: importing torch six times would take half a minute. Ctrl-C stays pytest's.
    monkeypatch.setattr(train, "stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        train.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and says in said and "Traceback" not in said
    assert said.strip().count("\n") == 0 and not os.path.exists(tmp_path / "out")
