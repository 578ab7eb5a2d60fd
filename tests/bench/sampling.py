"""Bench 2: sampling a group. Ours against transformers' `generate(num_return_sequences=G)`.

    python tests/bench/sampling.py
    python tests/bench/sampling.py --device cuda --config 7b

The same prompts (random video, random weights), the same number of new tokens for every completion,
both at temperature 1 from the full distribution, vision included. On CUDA the last column is the
time of one decoding step over the time that reading the weights once takes at the measured memory
bandwidth.
"""

from functools import partial

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from common import (
    arguments,
    by_turns,
    make_policy,
    make_prompt,
    plain_transformers,
    repeated_inputs,
    weights_once,
)

import grpo
from model import encode_videos


def ours(model, prompts, G, C):
    with torch.no_grad():
        features = encode_videos(model, prompts)
    generators = [torch.Generator().manual_seed(b) for b in range(len(prompts))]
    never_sampled = [model.config.video_token_id]
    tokens, _, _ = grpo.sample_groups(model, prompts, features, G, C, never_sampled, generators)
    assert tokens.shape == (len(prompts), G, C)


def generate(model, prompts, G, C):
    inputs = repeated_inputs(model, prompts, 1)
    with plain_transformers(model):
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=G,
            max_new_tokens=C,
            min_new_tokens=C,
            pad_token_id=model.generation_config.eos_token_id[0],
        )
    assert out.shape == (len(prompts) * G, inputs["input_ids"].shape[1] + C)


def compare(model, prompts, G, C, args):
    """One line of the table."""
    sides = {side.__name__: partial(side, model, prompts, G, C) for side in (ours, generate)}
    t = by_turns(sides, args.repeats, args.device)
    line = f"{len(prompts[0].ids):>5} {len(prompts):>3} {G:>3} {C:>4}   {t['ours']:>6.2f} s"
    line += f" {t['generate']:>7.2f} s {t['generate'] / t['ours']:>6.1f}×"
    if args.device == "cuda":
        half = partial(ours, model, prompts, G, C // 2)
        short = by_turns({"half": half}, args.repeats, "cuda")["half"]
        step = (t["ours"] - short) / (C - C // 2)
        line += f"   {step / weights_once(model):>6.2f}×"
    return line


def main():
    args = arguments(
        __doc__,
        prompt=([256, 1024, 3584], "P"),
        group=([8], "G"),
        prompts=(1, "B"),
        new_tokens=([64], "tokens of each completion"),
    )
    model = make_policy(args.config, args.device)
    print(
        f"{'P':>5} {'B':>3} {'G':>3} {'new':>4}   {'ours':>8} {'generate':>9} {'faster':>7}"
        + "   step / floor" * (args.device == "cuda")
    )
    for P in args.prompt:
        prompts = [make_prompt(model, P, seed=b) for b in range(args.prompts)]
        for G in args.group:
            for C in args.new_tokens:
                print(compare(model, prompts, G, C, args), flush=True)


if __name__ == "__main__":
    main()
