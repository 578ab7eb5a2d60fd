"""Bench 1: a group's completions and their log-probs, against the usual way.

    python tests/bench/group.py               # all shapes; a quarter of an hour on 2 cores
    python tests/bench/group.py --prompt 1024 --group 8 --completion 64
    python tests/bench/group.py --device cuda --config 7b

Sampling: ours against transformers' `generate(num_return_sequences=G)`, the same number of new
tokens for every completion, at temperature 1 from the full distribution, vision included. On CUDA
also the time of one decoding step over that of reading the weights once at the measured bandwidth.

Scoring, forward and backward: packed (ours) against every row with its whole prompt. Both start
from the patches, so vision is in it: once for the group, once per row. Time and peak memory.
"""

import gc
from functools import partial

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from common import (
    arguments,
    by_turns,
    make_policy,
    make_prompt,
    peak_memory,
    plain_transformers,
    repeated_inputs,
    repeated_logprobs,
    weights_once,
)

import grpo
from model import encode_videos, group_logprobs


def ours(model, prompt, G, C):
    with torch.no_grad():
        features = encode_videos(model, [prompt])
    never_sampled, generators = [model.config.video_token_id], [torch.Generator().manual_seed(0)]
    tokens, *_ = grpo.sample_groups(model, [prompt], features, G, C, never_sampled, generators)
    assert tokens.shape == (1, G, C)


def generate(model, prompt, G, C):
    inputs = repeated_inputs(model, [prompt], 1)
    end = model.generation_config.eos_token_id[0]
    how = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=end)
    how |= dict(num_return_sequences=G, max_new_tokens=C, min_new_tokens=C)
    with plain_transformers(model):
        out = model.generate(**inputs, **how)
    assert out.shape == (G, inputs["input_ids"].shape[1] + C)


def sampling(model, prompt, G, C, args):
    t = by_turns({side.__name__: partial(side, model, prompt, G, C) for side in (ours, generate)},
                 args.repeats, args.device)  # fmt: skip
    said = f"{t['ours']:>6.2f} s {t['generate']:>6.2f} s {t['generate'] / t['ours']:>5.1f}×"
    if args.device == "cuda":
        half = by_turns({"half": partial(ours, model, prompt, G, C // 2)}, args.repeats, "cuda")
        step = (t["ours"] - half["half"]) / (C - C // 2)
        said += f" (a step {step / weights_once(model):.2f}× its floor)"
    return said


def scorer(side, model, prompt, completions):
    """A function that scores one group, one backward included."""

    def work():
        model.zero_grad()
        if side == "packed":
            logp = group_logprobs(model, prompt, encode_videos(model, [prompt])[0], completions)[0]
        else:
            logp = repeated_logprobs(model, [prompt], len(completions), completions[None])
        logp.mean().backward()

    return work


def scorer_anew(side, size, P, G, C):
    """The same in a process that has nothing else in its memory."""
    model, rng = make_policy(size, "cpu"), torch.Generator().manual_seed(1)
    completions = torch.randint(20, 400, (G, C), generator=rng)
    return scorer(side, model, make_prompt(model, P), completions)


def scoring(model, prompt, G, C, args):
    given = model, prompt, torch.randint(20, 400, (G, C), device=args.device)
    sides = {side: scorer(side, *given) for side in ("packed", "repeated")}
    t = by_turns(sides, args.repeats, args.device)
    model.zero_grad()
    gc.collect()
    cuda, m = args.device == "cuda", {}
    for side in sides:
        make, shape = (scorer, given) if cuda else (
            scorer_anew, (args.config, len(prompt.ids), G, C))  # fmt: skip
        m[side] = peak_memory(make, (side, *shape), args.device) / 2**20  # MiB
    return (
        f"{t['packed']:>6.2f} s {t['repeated']:>6.2f} s {t['repeated'] / t['packed']:>5.1f}×   "
        f"{m['packed']:>5.0f} of {m['repeated']:.0f} MiB = {m['packed'] / m['repeated']:.2f}"
    )


def main():
    args = arguments(
        __doc__,
        prompt=([256, 1024, 3584], "P"),
        group=([4, 8, 16], "G"),
        completion=([64, 256], "C"),
    )
    model = make_policy(args.config, args.device)
    for work, sides in ((sampling, "ours and generate"), (scoring, "packed and repeated")):
        print(f"{work.__name__}: {sides}, times faster" + ", memory" * (work is scoring))
        print(f"{'P':>5} {'G':>3} {'C':>4}")
        for P in args.prompt:
            for G in args.group:
                for C in args.completion:
                    said = work(model, make_prompt(model, P), G, C, args)
                    print(f"{P:>5} {G:>3} {C:>4}   {said}", flush=True)


if __name__ == "__main__":
    main()
