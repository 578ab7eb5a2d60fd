"""Many processes, sharded weights, adapters, master copies: the numbers of one plain process."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import train
from conftest import BASE, ROOT
from data import VideoBudget
from lib import adapters, processes, sharding
from lib.errors import BadInput
from lib.files import read_lines
from lib.weights import load
from model import encode_videos, group_logprobs
from training.optimizer import MasterAdamW

STEPS = ["--task", "grounding", "--group-size", "4", "--prompts-per-step", "4", "--steps", "3"]


def launch(processes, *args):
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    return subprocess.run(
        [sys.executable, *torchrun, "train.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def relative_distance(a, b):
    a, b = (load_file(os.path.join(x, "policy", "model.safetensors")) for x in (a, b))
    assert a.keys() == b.keys()
    return (
        (sum((a[k] - b[k]).square().sum() for k in a) / sum(a[k].square().sum() for k in a))
        .sqrt()
        .item()
    )


def prompt_of(charades, tokenizer):
    video = data.load_video(
        os.path.join(charades, "videos", "test00000.mp4"), VideoBudget.of_model(BASE)
    )
    return data.build_prompt("When?", video, tokenizer)


def score(model, prompt, completions):
    return group_logprobs(model, prompt, encode_videos(model, [prompt])[0], completions)[0]


@pytest.mark.slow
def test_four_processes_copied_or_sharded_take_the_steps_of_one(charades, tmp_path):
    train.train(train.parse_args([*STEPS, "--data", charades, "--out", str(tmp_path / "one")]))
    for name, flags in (("copied", []), ("sharded", ["--shard", "--recompute"])):
        done = launch(4, *STEPS, *flags, "--data", charades, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert relative_distance(tmp_path / "one", tmp_path / name) < 1e-5


@pytest.mark.slow
def test_where_nothing_is_taught_two_processes_step_as_one(charades, tmp_path):
    """β = 0, and a step without spread after one with: Adam goes on by its momentum."""
    flags = [*STEPS, "--steps", "5", "--prompts-per-step", "2", "--group-size", "2", "--lr", "1e-3"]
    flags += ["--beta", "0", "--max-new-tokens", "22", "--data", charades]
    train.train(train.parse_args([*flags, "--out", str(tmp_path / "one")]))
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert 1 in [line["no_spread"] for line in lines[1:]] and lines[0]["no_spread"] < 1
    for name, more in (("copied", []), ("sharded", ["--shard"])):
        done = launch(2, *flags, *more, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert relative_distance(tmp_path / "one", tmp_path / name) < 1e-5


@pytest.mark.slow
def test_a_sharded_run_resumes(charades, tmp_path):
    """With adapters: the two features that touch every weight, together."""
    flags = [*STEPS, "--shard", "--lora", "4", "--save-every", "1", "--data", charades]
    assert launch(2, *flags, "--out", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "policy")
    last = tmp_path / "cut" / "checkpoints" / "step-000003"
    (last / "state.json").write_text("{")
    done = launch(2, *flags, "--resume", "--out", tmp_path / "cut")
    assert done.returncode == 0 and "going on after step 2" in done.stdout, done.stderr
    a, b = (
        load_file(tmp_path / name / "policy" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and any(
        t.abs().max() > 0 for k, t in a.items() if "lora_B" in k
    )


GIVES_UP = """
import sys
from lib.errors import BadInput
from lib import processes

processes.start_processes("cpu")

def work():
    if processes.rank() == 1:
        raise BadInput("its model is missing")

try:
    processes.on_each(work)
except BadInput as e:
    sys.exit(f"process {processes.rank()} heard: {e}")
"""


def test_what_one_process_cannot_do_all_hear_of(tmp_path):
    """Else the others would wait for it, and its sentence would be lost."""
    (tmp_path / "work.py").write_text(GIVES_UP)
    launcher = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    done = subprocess.run(
        [*launcher, str(tmp_path / "work.py")],
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode and "process 0 heard: process 1: its model is missing" in done.stderr


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"2 processes and {torch.cuda.device_count()} GPU"):
        processes.start_processes("cuda")


def test_recomputing_activations_changes_no_gradient(charades, base):
    prompt, completions = prompt_of(charades, base[1]), torch.randint(20, 200, (3, 7))
    gradients = []
    for recompute in (False, True):
        model = load(BASE)[0]
        if recompute:
            sharding.recompute_activations(model)
        score(model, prompt, completions).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_adapters(charades, base, tmp_path):
    """Without effect at first; switched off they are gone; saved and merged they say the same."""
    model, tokenizer = load(BASE)
    prompt, completions = prompt_of(charades, tokenizer), torch.randint(20, 200, (3, 7))
    with torch.no_grad():
        before = score(model, prompt, completions)
        adapters.add_adapters(model, 4)
        assert torch.equal(score(model, prompt, completions), before)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert (
        set(n.rpartition(".")[2] for n in trained) == {"lora_A", "lora_B"}
        and len(trained) == 2 * 7 * model.config.text_config.num_hidden_layers
    )
    for p in trained.values():
        torch.nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        after = score(model, prompt, completions)
        with adapters.reference_policy(model) as fixed:
            assert torch.equal(score(fixed, prompt, completions), before)
        assert (
            torch.equal(score(model, prompt, completions), after)
            and (after - before).abs().max() > 0.1
        )
        adapters.save_adapters({n: p.detach() for n, p in trained.items()}, str(tmp_path), BASE, 4)
        merged = load(str(tmp_path))[0]
        assert (
            not adapters.detours(merged)
            and (score(merged, prompt, completions) - after).abs().max() < 1e-4
        )
    kept = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {k.replace("layers.0", "layers.9"): t for k, t in kept.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(BadInput, match="belong to other layers"):
        load(str(tmp_path))


def test_adapters_have_a_learning_rate_of_their_own():
    lr = lambda *flags: train.parse_args(list(flags)).lr
    assert lr() == 3e-4 and lr("--lora", "8") == 1e-3 and lr("--lora", "8", "--lr", "1e-4") == 1e-4
    assert (
        lr("--model", "some/model") == 1e-6 and lr("--model", "some/model", "--lora", "8") == 1e-5
    )


@pytest.mark.slow
def test_merged_folder_loads_in_plain_transformers(charades, tmp_path):
    from transformers import AutoModelForImageTextToText

    out = str(tmp_path / "run")
    train.train(
        train.parse_args([
            *STEPS[:-1],
            *"1 --lora 4 --lr 1e-2".split(),
            *("--data", charades),
            *("--out", out),
        ])
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tools.merge",
            os.path.join(out, "policy"),
            str(tmp_path / "merged"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plain, ours = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict(),
        load(os.path.join(out, "policy"))[0].state_dict(),
    )
    start = load(BASE)[0].state_dict()
    assert all(torch.equal(plain[k], ours[k]) for k in ours) and any(
        not torch.equal(start[k], ours[k]) for k in ours
    )


def test_master_copies_learn_what_bfloat16_cannot():
    """200 steps of 1e-5 from 1.0: bfloat16 rounds each away; the master copy adds them up."""
    policy = torch.nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(policy.weight)
    plain = torch.nn.Parameter(torch.ones(1, 4))
    expected = torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0)
    optimizer = MasterAdamW(policy, 1e-5)
    for _ in range(200):
        policy.weight.grad = torch.full_like(policy.weight, 0.5)
        plain.grad = torch.full_like(plain, 0.5)
        optimizer.step(1e-5, 10.0, 1)
        expected.step()
    master = optimizer.masters["weight"]
    assert torch.allclose(master, plain, rtol=1e-6) and master[0, 0] < 0.9985
    assert torch.equal(policy.weight, master.to(torch.bfloat16))
    again = MasterAdamW(policy, 1e-5)
    again.load_tensors({k: v.clone() for k, v in optimizer.tensors().items()}.__getitem__)
    for o in (optimizer, again):
        policy.weight.grad = torch.full_like(policy.weight, -0.25)
        o.step(1e-5, 10.0, 1)
    assert torch.equal(again.masters["weight"], optimizer.masters["weight"])


def test_a_step_without_any_gradient_changes_nothing():
    policy = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    before = policy.weight.clone()
    assert MasterAdamW(policy, 1.0).step(1.0, 1.0, 1) == 0 and torch.equal(policy.weight, before)


def test_a_gradient_that_is_not_finite_changes_nothing():
    policy = torch.nn.Linear(2, 1)
    before = policy.weight.clone()
    optimizer = MasterAdamW(policy, 1.0)
    policy.weight.grad, policy.bias.grad = torch.tensor([[float("nan"), 1.0]]), torch.zeros(1)
    norm = optimizer.step(1.0, 1.0, 1)
    assert norm != norm and torch.equal(policy.weight, before) and policy.weight.grad is None
