"""What `--plan` says of memory against what is then used: a policy of 60 million random weights on the CPU, float32.

    python tests/bench/plan_check.py

Peak memory of a process that takes one step like a run's (reference policy, optimizer, a group scored with its
gradient), less what it had before there was a model; beside it the plan's sum.
"""

import argparse
import multiprocessing
import resource

import torch
from common import make_prompt
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import plan
import train
from lora import add_adapters
from model import encode_videos, group_logprobs, prepare
from scale import MasterAdamW, recompute_activations

P, G, C = 1500, 8, 256


def config():
    return Qwen2_5_VLConfig(
        text_config=dict(vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2,
                         max_position_embeddings=32000, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12])),
        vision_config=dict(depth=4, hidden_size=256, intermediate_size=512, num_heads=4, out_hidden_size=512, fullatt_block_indexes=[3], window_size=112, tokens_per_second=2),
        image_token_id=15999, video_token_id=15998, vision_start_token_id=15997, vision_end_token_id=15996, tie_word_embeddings=True)  # fmt: skip


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(flags, answer):
    args = train.parse_args(flags)
    torch.set_num_threads(1)
    torch.ones(500, 500) @ torch.ones(500, 500)
    before = peak()
    torch.manual_seed(0)
    policy = prepare(Qwen2_5_VLForConditionalGeneration(config())).eval()
    reference = None
    if args.lora:
        add_adapters(policy, args.lora)
    else:
        reference = prepare(Qwen2_5_VLForConditionalGeneration(config())).eval().requires_grad_(False)
    if args.recompute:
        recompute_activations(policy)
    policy.model.visual.requires_grad_(False)
    optimizer = MasterAdamW(policy, 1e-6)
    prompt, completions = make_prompt(policy, P), torch.randint(20, 400, (G, C))
    for _ in range(2):  # the optimizer's moments are there from the second step on
        with torch.no_grad():
            features = encode_videos(policy, [prompt])[0]
        group_logprobs(policy, prompt, features, completions)[0].sum().backward()
        optimizer.step(1e-6, 1.0, 1)
    answer.put(peak() - before)
    del reference


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, flags in (("all weights", []), ("--recompute", ["--recompute"]), ("--lora 16", ["--lora", "16"]), ("--lora 16 --recompute", ["--lora", "16", "--recompute"])):
        flags = [*flags, "--no-train-vision", "--max-new-tokens", str(C), "--prompts-per-step", "1"]
        args = train.parse_args(flags)
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(config())
            model.tie_weights()
            model = add_adapters(model, args.lora) if args.lora else model
        weights, moving, *_ = plan.estimate(model, args, 1, cuda=False, P=P)
        said = sum(weights.values()) + moving["scoring: activations and logits"]
        context = multiprocessing.get_context("spawn")
        answer = context.Queue()
        process = context.Process(target=measured, args=(flags, answer))
        process.start()
        used = answer.get(timeout=300)
        process.join()
        print(f"{name:<24} plan {said / 1e9:5.2f} GB (of which activations and logits {moving['scoring: activations and logits'] / 1e9:.2f})   measured {used / 1e9:5.2f} GB   plan / measured {said / used:.2f}", flush=True)


if __name__ == "__main__":
    main()
