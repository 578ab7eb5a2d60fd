"""What --plan says, against tensors that are there, and what it refuses, against the run."""

import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import train
from conftest import BASE, ROOT
from docs_check import all_commands
from grpo import sample_groups
from lib.adapters import add_adapters
from lib.errors import BadInput
from lib.weights import load
from model import encode_videos, group_logprobs, prefill
from training import plan, settings
from training.optimizer import MasterAdamW

sys.path.insert(0, os.path.join(ROOT, "tests", "bench"))
from common import make_prompt, real_config  # noqa: E402

TOY = "--task grounding --group-size 4 --max-new-tokens 32 --prompts-per-step 2".split()


@pytest.fixture(scope="module")
def folder_of_7b(tmp_path_factory):
    """A config and nothing else: there is no file to load its 17 GB of weights from."""
    folder = tmp_path_factory.mktemp("7b")
    real_config("7b").save_pretrained(folder)
    return str(folder)


def toy_plan(*flags, P=None, number=4):
    args = train.parse_args([*TOY, *flags])
    found = plan.estimate(
        plan.empty_model(BASE, args.lora), args, 1, cuda=False, P=P, number=number
    )
    return args, *found


def toy_policy(dtype, rank=None):
    """The toy base, computed in dtype; with adapters if they have a rank."""
    model = load(BASE, dtype=dtype)[0]
    return add_adapters(model, rank) if rank else model


def bytes_kept(model, work):
    """Bytes of all that autograd keeps for the backward pass of work(), without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    assert torch.cat([r.flatten() for r in result]).requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def states_of(optimizer):
    """Adam's moments of each master."""
    return [adam.state[optimizer.masters[name]] for name, adam in optimizer.adams.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plan_counts_what_is_there(dtype):
    """Parameters and what stays in memory, against the model, its gradients and its optimizer."""
    args, stays, moving, operations, sizes = toy_plan(number=dtype.itemsize)
    model = toy_policy(dtype)
    assert sizes["N"] == sum(p.numel() for p in model.parameters()) == sizes["trained"]
    optimizer = MasterAdamW(model, 1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    held = sum(p.grad.nbytes for p in model.parameters())
    assert (
        stays["weights"] == sum(p.nbytes for p in model.parameters()) and stays["gradients"] == held
    )
    optimizer.step(1e-3, 1.0, 1)
    moments = sum(
        t.nbytes for state in states_of(optimizer) for name, t in state.items() if name != "step"
    )
    masters = sum(
        m.nbytes for name, m in optimizer.masters.items() if m is not optimizer.parameters[name]
    )
    assert stays["optimizer"] == moments + masters and (masters > 0) == (dtype == torch.bfloat16)
    assert all(n > 0 for n in (*moving.values(), *operations.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [None, 8])
def test_activations_are_what_autograd_keeps(dtype, rank):
    model = toy_policy(dtype, rank)
    model.model.visual.requires_grad_(False)
    prompt = make_prompt(model, 400, frame_tokens=4)
    with torch.no_grad():
        features = encode_videos(model, [prompt])[0]
    completions = torch.randint(20, 200, (4, 32))
    kept = bytes_kept(model, lambda: group_logprobs(model, prompt, features, completions)[:1])
    args, *_, sizes = toy_plan(
        *(["--lora", str(rank)] if rank else []),
        *("--prompts-per-step", "4"),
        P=len(prompt.ids),
        number=dtype.itemsize,
    )
    said = model.config.text_config.num_hidden_layers * plan.layer_activations(
        SimpleNamespace(**sizes), args
    )
    # Not in the plan: the mask that attention makes on the CPU, cos and sin, adapters in the
    # policy's dtype.
    assert 0.94 < said / kept < 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graph_of_the_vision_tower_is_what_autograd_keeps(dtype):
    model = toy_policy(dtype)
    prompt = make_prompt(model, 400, frame_tokens=4)
    kept = bytes_kept(model, lambda: encode_videos(model, [prompt]))
    args, *_, sizes = toy_plan("--train-vision", number=dtype.itemsize)
    sizes["P"] = len(prompt.patches) // 4
    assert 0.96 < plan.vision_graph(SimpleNamespace(**sizes), args) / kept < 1.02
    args.train_vision = False
    assert plan.vision_graph(SimpleNamespace(**sizes), args) == 0


def test_kv_cache_is_what_is_sampled_with(base):
    model = base[0]
    prompts = [make_prompt(model, 200, frame_tokens=4, seed=i) for i in range(2)]
    with torch.no_grad():
        features = encode_videos(model, prompts)
        cache = prefill(model, prompts, features)[1]
        listed = sum(x.nbytes for pairs in cache.read.values() for pair in pairs for x in pair)
        cache.start_decoding(4, 32)
    args, stays, moving, _, sizes = toy_plan(P=len(prompts[0].ids))
    of_prompts, own = plan.kv_cache(SimpleNamespace(**sizes))
    held = lambda by_layer: sum(x.nbytes for pair in by_layer.values() for x in pair)
    assert of_prompts == listed == held(cache.prompt) and own == held(cache.completions)
    assert moving["sampling: KV cache"] >= max(2 * of_prompts, of_prompts + own)
    # Such prompts can be sampled from.
    assert sample_groups(model, prompts, features, 4, 2, [1])[0].shape == (
        2,
        4,
        2,
    )


def test_offloaded_weights_are_in_the_cpu_memory(folder_of_7b, capsys):
    """12 bytes per trained weight in every process, or a share of all weights and all else."""
    policy = toy_policy(torch.bfloat16)
    optimizer = MasterAdamW(policy, 1e-3, offload=True)
    for p in policy.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(1e-3, 1.0, 1)
    held = sum(m.nbytes for m in optimizer.masters.values())
    held += sum(
        t.nbytes for state in states_of(optimizer) for name, t in state.items() if name != "step"
    )
    args, stays, *_, sizes = toy_plan("--offload", number=2)
    plain = toy_plan(number=2)
    assert stays["optimizer"] == 0
    assert (
        plan.cpu_memory(sizes, args) - plan.cpu_memory(plain[-1], plain[0])
        == held + 12 * sizes["largest"]
    )

    n, trained = 8.29, 7.616  # billions
    largest = 152064 * 3584 / 1e9  # the embeddings, or the head

    def said():  # GB of a process, of a node
        line = r"CPU memory of a process +([\d.]+) GB +([\d.]+) GB"
        return map(float, re.search(line, capsys.readouterr().out).groups())

    big = ["--task", "grounding", "--model", folder_of_7b, "--offload", "--total-pixels", "25088"]
    plan.show(train.parse_args([*big, "--plan", "8"]))
    a_process, a_node = said()
    assert a_process == pytest.approx(
        12 * trained + 12 * largest, rel=2e-3
    ) and a_node == pytest.approx(8 * a_process, rel=1e-3)
    plan.show(train.parse_args([*big, "--shard", "--prompts-per-step", "16", "--plan", "16"]))
    a_process, a_node = said()
    assert a_process == pytest.approx((4 * n + 12 * trained + 8 * largest) / 16, rel=5e-3)
    assert a_node == pytest.approx(8 * a_process, rel=1e-2)  # of two nodes


@pytest.mark.parametrize(
    "flags, verdict",
    [
        (["--plan"], "DOES NOT FIT in 80"),
        (["--plan", "--lora", "64", "--recompute"], "fits in 80"),
        (["--plan", "8", "--shard", "--recompute"], "fits in 80"),
        (["--plan", "8", "--recompute"], "DOES NOT FIT in 80"),
    ],
    ids=" ".join,
)
def test_plan_of_7b_from_its_config_alone(folder_of_7b, capsys, flags, verdict):
    plan.show(train.parse_args(["--model", folder_of_7b, *flags]))
    said = capsys.readouterr().out
    assert "8.29 billion weights" in said or "8.45 billion weights" in said
    assert verdict in said and ("try:" in said) == ("NOT" in verdict)
    assert f"; {flags[1] if flags[1:2] == ['8'] else 1} process(es)" in said


def test_plan_refuses_what_the_run_would():
    """Prompts that cannot be shared evenly, in the same words; sharding without processes."""
    uneven = ["--prompts-per-step", "3", "--group-size", "2"]
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    run = subprocess.run(
        [*torchrun, "train.py", *uneven], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    for flag in (["--plan", "2"], ["--plan", "2", "--shard"]):
        with pytest.raises(
            BadInput, match="--prompts-per-step 3 cannot be shared evenly by 2 processes"
        ) as planned:
            plan.show(train.parse_args([*uneven, *flag]))
        assert (
            run.returncode
            and f"error: {planned.value}\n" in run.stderr
            and run.stderr.count("error: --prompts") == 1
        )
    for ask in (
        lambda: plan.show(train.parse_args(["--shard", "--plan"])),
        lambda: train.train(train.parse_args(["--shard"])),
    ):
        with pytest.raises(BadInput, match="start with torchrun"):
            ask()
    with pytest.raises(BadInput, match="--plan must be at least 1"):
        train.parse_args(["--plan", "0"])


@pytest.mark.parametrize(
    "command",
    [c for c in all_commands() if "train.py" in c and re.search("nproc|--plan", c)],
    ids=str,
)
def test_commands_of_the_pages_share_their_prompts_evenly(command):
    per_node, nodes = (
        int(re.search(rf"--{flag} (\d+)", command + f" --{flag} 1")[1])
        for flag in ("nproc-per-node", "nnodes")
    )
    args = train.parse_args(shlex.split(command.split("train.py", 1)[1]))
    settings.check_processes(args, args.plan or per_node * nodes)


def test_the_demo_asks_for_no_gpu_and_neither_do_the_tests():
    """Two processes on one GPU is what neither may start."""
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as f:
        demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", f.read(), re.MULTILINE)[1]
    assert (
        re.findall(r"(\w+)\.py .*--device cpu", demo)
        == re.findall(r"(\w+)\.py ", demo)
        == ["eval", "train", "eval"]
    )
    if os.environ.get("TEST_GPU") != "1":
        asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "0\n"
