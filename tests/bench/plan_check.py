"""What `--plan` says of memory against what is then used: a policy of 60 million random weights on the CPU, float32.

    python tests/bench/plan_check.py

The most bytes that tensors hold at any moment of two steps like a run's (reference policy, optimizer, two groups
scored with their gradients, the reference's log-probs), counted at every allocation; beside it the plan's sum. What the
process takes from the system is more: the C library keeps pages that tensors gave back, CUDA keeps blocks.
"""

import argparse
import gc
import json
import os
import tempfile

import torch
from common import make_prompt
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import plan
import train
from lora import add_adapters, reference_policy
from model import encode_videos, group_logprobs, prepare
from scale import MasterAdamW, recompute_activations

P, G, C, PROMPTS = 1500, 8, 256, 2


def config():
    return Qwen2_5_VLConfig(
        text_config=dict(vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2,
                         max_position_embeddings=32000, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12])),
        vision_config=dict(depth=4, hidden_size=256, intermediate_size=512, num_heads=4, out_hidden_size=512, fullatt_block_indexes=[3], window_size=112, tokens_per_second=2),
        image_token_id=15999, video_token_id=15998, vision_start_token_id=15997, vision_end_token_id=15996, tie_word_embeddings=True)  # fmt: skip


def two_steps(args):
    torch.manual_seed(0)
    policy = prepare(Qwen2_5_VLForConditionalGeneration(config())).eval()
    if args.lora:
        add_adapters(policy, args.lora)
    reference = policy if args.lora else prepare(Qwen2_5_VLForConditionalGeneration(config())).eval().requires_grad_(False)
    if args.recompute:
        recompute_activations(policy)
    policy.model.visual.requires_grad_(False)
    optimizer = MasterAdamW(policy, 1e-6)
    prompt, completions = make_prompt(policy, P), torch.randint(20, 400, (G, C))
    with torch.no_grad():
        features = encode_videos(policy, [prompt])[0]
    for _ in range(2):  # the optimizer's moments are there from the second step on
        for _ in range(PROMPTS):
            with torch.no_grad(), reference_policy(reference):
                group_logprobs(reference, prompt, features, completions)
            group_logprobs(policy, prompt, features, completions)[0].sum().backward()
        optimizer.step(1e-6, 1.0, 1)


def most_bytes(work, *args):
    """The largest sum of the sizes of all tensors alive at once while work(*args) runs, on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work(*args)
        gc.collect()  # what is freed after the count has ended would still be in the next one
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(os.path.join(folder, "trace.json"))
        with open(os.path.join(folder, "trace.json")) as f:
            return max(e["args"]["Total Allocated"] for e in json.load(f)["traceEvents"] if e.get("name") == "[memory]")


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, flags in (("all weights", []), ("--recompute", ["--recompute"]), ("--lora 16", ["--lora", "16"]), ("--lora 16 --recompute", ["--lora", "16", "--recompute"])):
        flags = [*flags, "--no-train-vision", "--max-new-tokens", str(C), "--prompts-per-step", str(PROMPTS)]
        args = train.parse_args(flags)
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(config())
            model.tie_weights()
            model = add_adapters(model, args.lora) if args.lora else model
        weights, moving, *_ = plan.estimate(model, args, 1, cuda=False, P=P)
        said = sum(weights.values()) + moving["scoring: activations and logits"]
        used = most_bytes(two_steps, args)
        print(f"{name:<24} plan {said / 1e9:5.2f} GB (of which activations and logits {moving['scoring: activations and logits'] / 1e9:.2f})   measured {used / 1e9:5.2f} GB   plan / measured {said / used:.2f}", flush=True)


if __name__ == "__main__":
    main()
