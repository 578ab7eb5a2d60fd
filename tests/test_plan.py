"""What --plan says, against tensors that are there, and what it refuses, against the run."""

import math
import os
import re
import shlex
import sys

import pytest
import torch

import train
from conftest import BASE, ROOT
from docs_check import all_commands
from lib import attention
from lib.adapters import add_adapters
from lib.errors import BadInput
from model import encode_videos, group_logprobs, load, prefill
from training import plan, settings
from training.optimizer import MasterAdamW

sys.path.insert(0, os.path.join(ROOT, "tests", "bench"))
from common import make_prompt, real_config  # noqa: E402

TOY = "--task grounding --group-size 4 --max-new-tokens 32 --prompts-per-step 2".split()
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@pytest.fixture(scope="module")
def folder_of_7b(tmp_path_factory):
    """A config and nothing else: there is no file to load its 17 GB of weights from."""
    folder = tmp_path_factory.mktemp("7b")
    real_config("7b").save_pretrained(folder)
    return str(folder)


def toy_plan(*flags, P=None):
    args = train.parse_args([*TOY, *flags])
    return args, plan.sizes_of(plan.empty_model(BASE, args.lora), args, 1, P)


def toy_policy(dtype, rank=None):
    """The toy base, computed in dtype; with adapters if they have a rank."""
    model = load(BASE, dtype=getattr(torch, dtype))[0]
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


def bytes_of_scoring(model):
    """Bytes that are kept of a group of 4 completions of 32 tokens, of a prompt of 400."""
    model.model.visual.requires_grad_(False)
    prompt, completions = make_prompt(model, 400, frame_tokens=4), torch.ones(4, 32).long()
    with torch.no_grad():
        features = encode_videos(model, [prompt])[0]
    return bytes_kept(model, lambda: [group_logprobs(model, prompt, features, completions)[0]])


@DTYPES
@pytest.mark.parametrize("flags", ["", "--lora 8", "--offload"])
def test_plan_counts_what_is_there(dtype, flags):
    """What stays in memory, against the model, its gradients and its optimizer after a step."""
    args, s = toy_plan("--dtype", dtype, *flags.split())
    stays, on_cpu = plan.what_stays(s, args)
    model = toy_policy(dtype, args.lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert s.N == sum(p.numel() for p in model.parameters())
    assert s.trained == sum(p.numel() for p in trained) and (s.trained == s.N) == (not args.lora)
    optimizer = MasterAdamW(model, 1e-3, args.offload)
    for p in trained:
        p.grad = torch.ones_like(p)
    assert stays["weights"] == sum(p.nbytes for p in model.parameters())
    assert stays["gradients"] == sum(p.grad.nbytes for p in trained)
    optimizer.step(1e-3, 1.0, 1)
    held = sum(m.nbytes for k, m in optimizer.masters.items() if m is not optimizer.parameters[k])
    for name, adam in optimizer.adams.items():
        state = adam.state[optimizer.masters[name]]
        held += sum(t.nbytes for key, t in state.items() if key != "step")
    assert stays["optimizer"] == (0 if args.offload else held)
    if args.offload and dtype == "bfloat16":
        frames = 3 * s.patches * s.patch * 4
        assert on_cpu == held + 12 * s.largest + frames


@DTYPES
@pytest.mark.parametrize("rank", [None, 8])
def test_activations_are_what_autograd_keeps(dtype, rank, monkeypatch):
    """With attention as on a GPU: in float32 no fast kernel lets heads share their keys."""
    monkeypatch.setattr(attention, "knows_groups", lambda query: query.dtype.itemsize == 2)
    kept = bytes_of_scoring(toy_policy(dtype, rank))
    args, s = toy_plan("--dtype", dtype, *(["--lora", str(rank)] if rank else []), P=400)
    # Not in the plan: the CPU's attention mask, cos and sin, adapters in the policy's dtype.
    assert 0.94 < s.layers * plan.layer_activations(s, args) / kept < 1.01


@DTYPES
def test_graph_of_the_vision_tower_is_what_autograd_keeps(dtype):
    model = toy_policy(dtype)
    prompt = make_prompt(model, 400, frame_tokens=4)
    kept = bytes_kept(model, lambda: encode_videos(model, [prompt]))
    args, s = toy_plan("--train-vision", "--dtype", dtype)
    s.P = len(prompt.patches) // 4
    assert 0.96 < plan.vision_graph(s, args) / kept < 1.02
    args.train_vision = False
    assert plan.vision_graph(s, args) == 0


def test_kv_cache_is_what_is_sampled_with(base):
    model = base[0]
    prompts = [make_prompt(model, 200, frame_tokens=4, seed=i) for i in range(2)]
    with torch.no_grad():
        cache = prefill(model, prompts, encode_videos(model, prompts))[1]
        cache.start_decoding(4, 32)
    of_prompts, own = plan.kv_cache(toy_plan(P=len(prompts[0].ids))[1])
    held = lambda by_layer: sum(x.nbytes for pair in by_layer.values() for x in pair)
    assert of_prompts == held(cache.prompt) and own == held(cache.completions)


@pytest.mark.parametrize(
    "flags, says",
    {
        "--plan": "8.29 billion weights, 7.616 trained.* one H100 .* DOES NOT FIT in 80 GB",
        "--lora 64 --recompute --plan": "in bfloat16.* fits in 80 .*668 steps: about ([\\d.]+) "
        "hours, \\1 GPU-hours",
        "--lora 64 --recompute --plan --gpu 24": "one 4090 .*DOES NOT FIT in 24 .*--offload, --sh",
        "--lora 64 --recompute --plan --gpu 30": "one L40S .* fits in 30 GB",
        "--lora 64 --plan --gpu A100 --dtype float32": "in float32.* DOES NOT .* copied, 7 times",
        "--lora 64 --plan --gpu T4 --dtype float16": "in float16.* keys are copied, 7 times",
        "--plan 8 --shard --recompute --steps 9": "fits in 80 .*\n9 steps: about .* hours, ",
        "--plan 8 --recompute": "DOES NOT FIT in 80 GB",
    }.items(),
)
def test_plan_of_7b_from_its_config_alone(folder_of_7b, capsys, flags, says):
    plan.show(train.parse_args(["--model", folder_of_7b, *flags.split()]))
    said = capsys.readouterr().out
    assert re.search(says, said, re.DOTALL), said


def test_plan_refuses_what_the_run_would():
    for flags, says in (
        ("--prompts-per-step 3 --plan 2", "--prompts-per-step 3 cannot be shared evenly by 2"),
        ("--shard --plan", "start with torchrun"),
        ("--plan --gpu 200", "--gpu 200 is unknown"),
        ("--plan --gpu T4", "this GPU has no bfloat16: give --dtype float16"),
        ("--plan 0", "--plan must be a whole number"),
        ("--gpu 1", "--gpu is a part of --plan"),
    ):
        with pytest.raises(BadInput, match=says):
            plan.show(train.parse_args([*TOY, *flags.split()]))


ON_SEVERAL = [c for c in all_commands() if "train.py" in c and re.search("nproc|--plan", c)]


@pytest.mark.parametrize("command", ON_SEVERAL)
def test_commands_of_the_pages_share_their_prompts_evenly(command):
    numbers = re.findall(r"--(?:nproc-per-node|nnodes) (\d+)", command)
    args = train.parse_args(shlex.split(command.split("train.py", 1)[1]))
    settings.check_processes(args, args.plan or math.prod(map(int, numbers)))
