"""Many processes, sharded weights, adapters, master copies: the numbers of one plain process."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import data
import eval as evaluation
import train
from conftest import BASE, ROOT
from data import VideoBudget
from evaluation.ask import ask
from lib import adapters, processes, sharding
from lib.errors import BadInput
from lib.files import read_lines
from model import encode_videos, group_logprobs, load
from training.optimizer import MasterAdamW

STEPS = ["--task", "grounding", "--group-size", "4", "--prompts-per-step", "4", "--steps", "3"]
GPU = ["--device", "cuda:1"]
BENCH = ["--bench", "charades"]
ASK = ["--video", "clip.mp4", "--ask", "When?"]


def launch(processes, *program):
    """Runs a program in several processes under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return subprocess.run(
        [sys.executable, *map(str, [*torchrun, *program])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=200,
    )


def relative_distance(a, b):
    a, b = (load_file(os.path.join(x, "policy", "model.safetensors")) for x in (a, b))
    assert a.keys() == b.keys()
    apart, size = (
        sum(x.square().sum() for x in xs) for xs in ([a[k] - b[k] for k in a], a.values())
    )
    return (apart / size).sqrt().item()


def prompt_of(charades, tokenizer):
    clip = os.path.join(charades, "videos", "test00000.mp4")
    return data.build_prompt("When?", data.load_video(clip, VideoBudget.of_model(BASE)), tokenizer)


def score(model, prompt, completions):
    return group_logprobs(model, prompt, encode_videos(model, [prompt])[0], completions)[0]


@pytest.mark.slow
def test_four_processes_copied_or_sharded_take_the_steps_of_one(charades, tmp_path):
    train.train(train.parse_args([*STEPS, "--data", charades, "--out", str(tmp_path / "one")]))
    for name, flags in (("copied", []), ("sharded", ["--shard", "--recompute"])):
        done = launch(4, "train.py", *STEPS, *flags, "--data", charades, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert relative_distance(tmp_path / "one", tmp_path / name) < 1e-5


@pytest.mark.slow
def test_where_nothing_is_taught_two_processes_step_as_one(charades, tmp_path):
    """β = 0, and a step without spread after one with: Adam goes on by its momentum."""
    flags = [*STEPS, *"--steps 10 --prompts-per-step 2 --group-size 2 --lr 1e-3".split()]
    flags += ["--beta", "0", "--max-new-tokens", "21", "--data", charades]
    train.train(train.parse_args([*flags, "--out", str(tmp_path / "one")]))
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert 1 in [line["no_spread"] for line in lines[1:]] and lines[0]["no_spread"] < 1
    for name, more in (("copied", []), ("sharded", ["--shard"])):
        done = launch(2, "train.py", *flags, *more, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert relative_distance(tmp_path / "one", tmp_path / name) < 1e-5


@pytest.mark.slow
def test_a_sharded_run_resumes(charades, tmp_path):
    """With adapters: the two features that touch every weight, together."""
    flags = [*STEPS, "--shard", "--lora", "4", "--save-every", "1", "--data", charades]
    assert launch(2, "train.py", *flags, "--out", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "policy")
    last = tmp_path / "cut" / "checkpoints" / "step-000003"
    (last / "state.json").write_text("{")
    done = launch(2, "train.py", *flags, "--resume", "--out", tmp_path / "cut")
    assert done.returncode == 0 and "going on after step 2" in done.stdout, done.stderr
    a, b = (
        load_file(tmp_path / name / "policy" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and any(
        t.abs().max() > 0 for k, t in a.items() if "lora_B" in k
    )


SHARDED = r"""
import os, resource, sys, types
import torch
import torch.distributed as dist
from data import VideoBudget
from evaluation.ask import ask
from lib import processes, sharding, weights
from lib.adapters import add_adapters
from model import prepare
from training.policy import save_policy

torch.distributed.fsdp._fully_shard._fully_shard._init_default_mesh = None  # nobody guesses it
base, nan, out = sys.argv[1:]
said = []
device, rank = processes.start_processes("cpu"), processes.rank()

def numbers(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}

for adapters in (None, 4):
    policy, tokenizer = sharding.load_sharded(base, device, torch.float32, adapters=adapters)
    plain = weights.load(base)[0]
    theirs = numbers(add_adapters(plain, adapters) if adapters else plain)
    for name, x in numbers(policy).items():
        one = theirs.pop(name)
        assert torch.equal(processes.whole(x.detach()), one.detach()), name
        assert x.requires_grad == one.requires_grad and x.dtype == one.dtype, name
    assert not theirs and policy.n_tokens == plain.n_tokens
    said.append("equal")

try:
    sharding.load_sharded(nan, device, torch.float32)
except weights.BadInput as e:
    said.append(str(e))

# Kept in float32, computed and saved in bfloat16, as on CUDA. First the disk fills up.
policy, tokenizer = sharding.load_sharded(base, device, torch.bfloat16)
about = dict(lora=None, shard=True, dtype="bfloat16", model=base, method="grpo", loss="grpo")
about |= dict(task="grounding", think=False, lr=1e-3, prompts_per_step=4, seed=0)
what = prepare(policy), tokenizer, VideoBudget()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
try:
    save_policy(*what, os.path.join(out, "full"), types.SimpleNamespace(**about), rank)
except OSError:
    said.append("full")
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
save_policy(*what, os.path.join(out, "run"), types.SimpleNamespace(**about), rank)
open(os.path.join(out, f"process-{rank}"), "w").write("\n".join(said))
dist.barrier()  # nobody leaves while the other still reads
os._exit(0)  # not by gloo's own way out, which was seen to abort on a busy machine, all work done
"""


@pytest.mark.slow
def test_two_processes_hold_and_save_the_model_of_one(tmp_path):
    """Weights and rotary frequencies are equal, bit for bit. A damaged model and a full disk are
    told once and leave no process waiting for the other."""
    nan = shutil.copytree(BASE, str(tmp_path / "nan"))
    tensors = load_file(os.path.join(nan, "model.safetensors"))
    tensors["model.norm.weight"][-1] = float("nan")
    save_file(tensors, os.path.join(nan, "model.safetensors"), metadata={"format": "pt"})
    (tmp_path / "program.py").write_text(SHARDED, encoding="utf-8")
    done = launch(2, tmp_path / "program.py", BASE, nan, tmp_path)
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / f"process-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert said[0][:2] == ["equal"] * 2 and said[1] == said[0][:3] and said[0][3] == "full"
    assert f"model {nan} cannot be loaded: numbers that are not finite" in said[0][2]
    assert not os.listdir(tmp_path / "full")
    kept = load_file(tmp_path / "run" / "policy" / "model.safetensors")
    start = load_file(os.path.join(BASE, "model.safetensors"))
    assert kept.keys() == start.keys()
    assert all(torch.equal(kept[k], start[k].to(torch.bfloat16)) for k in start)
    config = AutoConfig.from_pretrained(tmp_path / "run" / "policy")
    assert config.dtype == torch.bfloat16 and config.architectures == [type(load(BASE)[0]).__name__]


def test_sharded_from_adapters_is_one_sentence(tmp_path):
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{BASE}"}}')
    with pytest.raises(BadInput, match="--shard cannot start from adapters"):
        sharding.load_sharded(str(tmp_path), "cpu", torch.float32)


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


@pytest.mark.slow
def test_what_one_process_cannot_do_all_hear_of(tmp_path):
    """Else the others would wait for it, and its sentence would be lost."""
    (tmp_path / "work.py").write_text(GIVES_UP)
    done = launch(2, tmp_path / "work.py")
    assert done.returncode and "process 0 heard: its model is missing" in done.stderr


@pytest.mark.parametrize(
    "device, says", [("cuda", "GPUs here: 1, processes: 2"), ("cuda:1", "one GPU")]
)
def test_processes_that_would_share_a_gpu_are_one_sentence(device, says, monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match=says):
        processes.start_processes(device)


class Chosen(Exception):
    """Raised where a program would choose its GPU."""


@pytest.mark.parametrize("program", ["train", "eval", "ask"])
def test_every_program_computes_on_the_gpu_that_was_asked_for(program, charades, monkeypatch):
    """--device cuda:1 becomes the current device before anything is loaded: graphs, streams and
    memory figures are of the current device, and would be of GPU 0."""

    def chosen(device):
        raise Chosen(str(device))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen)
    run = {
        "train": lambda: train.train(train.parse_args([*STEPS, "--device", "cuda:1"])),
        "eval": lambda: evaluation.run_benchmarks(
            evaluation.parse_args(["--device", "cuda:1", *BENCH])
        ),
        "ask": lambda: ask(evaluation.parse_args(["--device", "cuda:1", *ASK])),
    }
    with pytest.raises(Chosen, match="^cuda:1$"):
        run[program]()


def test_threads_are_counted_as_this_process_may_use_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert processes.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processes.cores() == os.cpu_count()


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
    assert {n.rpartition(".")[2] for n in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 * 7 * model.config.text_config.num_hidden_layers
    for p in trained.values():
        torch.nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        after = score(model, prompt, completions)
        with adapters.reference_policy(model) as fixed:
            assert torch.equal(score(fixed, prompt, completions), before)
        assert torch.equal(score(model, prompt, completions), after)
        assert (after - before).abs().max() > 0.1
        adapters.save_adapters({n: p.detach() for n, p in trained.items()}, str(tmp_path), BASE, 4)
        merged = load(str(tmp_path))[0]
        assert not adapters.detours(merged)
        assert (score(merged, prompt, completions) - after).abs().max() < 1e-4


def test_adapters_have_a_learning_rate_of_their_own():
    lr = lambda *flags: train.parse_args(list(flags)).lr
    assert lr() == 3e-4 and lr("--lora", "8") == 1e-3 and lr("--lora", "8", "--lr", "1e-4") == 1e-4
    assert (
        lr("--model", "some/model") == 1e-6 and lr("--model", "some/model", "--lora", "8") == 1e-5
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
