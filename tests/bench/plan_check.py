"""What `--plan` says of memory against what is then used: 46 million random weights on the CPU.

    python tests/bench/plan_check.py                                 # one process
    torchrun --nproc-per-node 2 tests/bench/plan_check.py            # --shard, two processes

Two steps like a run's: the videos are read, groups are sampled and scored with their gradients, the
reference's log-probs are taken, the optimizer steps. For each of these phases: the plan's sum, and
the most bytes that tensors hold at any moment of it, counted at every allocation. What the process
takes from the system is more: the C library keeps pages that tensors gave back, CUDA keeps blocks.

bfloat16 is the arithmetic of a GPU, with float32 master copies; float32 that of a run on the CPU.
Attention's masks, which the CPU makes and a flash kernel does not, are in what is measured and not
in the plan.
"""

import argparse
import gc
import json
import os
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from common import make_prompt

import train
from lib.adapters import add_adapters, reference_policy
from lib.decoding import gathered
from lib.processes import rank as own_rank
from lib.processes import start_processes
from lib.processes import world as how_many
from lib.sharding import recompute_activations, shard
from model import prepare
from training import plan
from training.optimizer import MasterAdamW
from training.policy import as_policy

P, G, C, PROMPTS = 1500, 8, 128, 2  # PROMPTS: of each process
PHASES = ("reading", "sampling", "scoring", "optimizer")  # the first words of the plan's lines
ONE_PROCESS = ("", "--recompute", "--lora 16", "--lora 16 --recompute", "--train-vision")
SHARDED = ("--shard", "--shard --recompute", "--shard --lora 16")


def config():
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12])
    text = dict(vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=12)
    text |= dict(num_attention_heads=8, num_key_value_heads=2, rope_parameters=rope)
    text |= dict(max_position_embeddings=32000, tie_word_embeddings=True)
    vision = dict(depth=4, hidden_size=256, intermediate_size=512, num_heads=4, out_hidden_size=512)
    vision |= dict(fullatt_block_indexes=[3], window_size=112, tokens_per_second=2)
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    ids = {f"{name}_id": 15999 - i for i, name in enumerate(names)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def make_models(args, dtype):
    """(policy, reference), as scale.load_models makes them from a folder."""

    def make():
        torch.set_default_dtype(torch.float32 if args.shard and not args.lora else dtype)
        model = prepare(Qwen2_5_VLForConditionalGeneration(config())).eval()
        torch.set_default_dtype(torch.float32)
        return model

    policy = make()
    if args.lora:
        add_adapters(policy, args.lora)
    reference = policy if args.lora else make().to(dtype).requires_grad_(False)
    if args.recompute:
        recompute_activations(policy)
    if args.shard:
        for model in {policy, reference}:
            shard(model, dtype)
    if not args.train_vision:
        policy.model.visual.requires_grad_(False)
    return as_policy(policy), as_policy(reference)


def two_steps(args, dtype, world):
    """The phases of a step as train.grpo_step goes through them; each is a range in the profile."""
    torch.manual_seed(0)
    policy, reference = make_models(args, dtype)
    optimizer = MasterAdamW(policy, 1e-6)
    prompts = [make_prompt(policy, P, seed=i) for i in range(PROMPTS)]
    completions = torch.randint(20, 400, (G, C))
    stop, generators = [1], [torch.Generator().manual_seed(i) for i in range(PROMPTS)]
    for step in range(2):  # the optimizer's moments are there from the second step on
        with record_function("reading"), torch.no_grad():
            features = policy.features(prompts)
        if step == 1:
            with record_function("sampling"), gathered(policy):
                policy.sample(prompts, features, G, C, stop, generators)
        if args.train_vision:
            features = [None] * PROMPTS
        groups = [
            SimpleNamespace(prompt=prompt, features=seen, completions=completions)
            for prompt, seen in zip(prompts, features)
        ]
        with record_function("scoring"):
            for group in groups:
                with torch.no_grad(), reference_policy(reference) if args.lora else nullcontext():
                    reference.logprobs(group)
            for group in groups:
                policy.logprobs(group)[0].sum().backward()
        with record_function("optimizer"):
            optimizer.step(1e-6, 1.0, world)


def most_bytes(work, *args):
    """{phase: the most bytes of tensors alive at once in it} while work(*args) runs."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(*args)
        gc.collect()  # what is freed after the count has ended would still be in the next one
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(os.path.join(folder, "trace.json"))
        with open(os.path.join(folder, "trace.json"), encoding="utf-8") as f:
            events = json.load(f)["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    ranges = [
        (e["name"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("name") in PHASES and "dur" in e
    ]
    most, alive, total = dict.fromkeys(PHASES, 0), {}, 0
    # By address, because what another thread frees (gloo's do) is not in the trace.
    for event in memory:
        address, n = event["args"]["Addr"], event["args"]["Bytes"]
        total -= alive.pop(address, 0)
        if n > 0:
            alive[address] = n
            total += n
        for phase, start, end in ranges:
            if start <= event["ts"] <= end:
                most[phase] = max(most[phase], total)
    return most


def planned(args, dtype, world):
    """{phase: bytes}. There are no gradients yet while videos are read and groups are sampled."""
    model = plan.model_of(config(), args.lora)
    stays, moving, *_ = plan.estimate(model, args, world, cuda=False, P=P, number=dtype.itemsize)
    by_phase = {name.split(":")[0]: n for name, n in moving.items()}
    without = dict.fromkeys(("reading", "sampling"), stays["gradients"])
    return {
        phase: sum(stays.values()) + by_phase[phase] - without.get(phase, 0) for phase in PHASES
    }


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", help="the cases that have these words")
    only = p.parse_args().only or ""
    start_processes("cpu")
    rank, world = own_rank(), how_many()
    for dtype in (torch.float32, torch.bfloat16):
        for flags in ONE_PROCESS if world == 1 else SHARDED:
            name = f"{str(dtype).removeprefix('torch.')} {flags or 'all weights'}"
            if only not in name:
                continue
            fixed = ["--max-new-tokens", str(C), "--prompts-per-step", str(PROMPTS * world)]
            vision = [] if "--train-vision" in flags else ["--no-train-vision"]
            args = train.parse_args([*flags.split(), *vision, *fixed])
            said, used = planned(args, dtype, world), most_bytes(two_steps, args, dtype, world)
            if rank == 0:
                each = "   ".join(
                    f"{x} {said[x] / 1e9:.2f} / {used[x] / 1e9:.2f} GB = {said[x] / used[x]:.2f}"
                    for x in PHASES
                )
                print(
                    f"{name:<32} at most {max(said.values()) / max(used.values()):.2f}   {each}",
                    flush=True,
                )
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
