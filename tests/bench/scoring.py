"""Bench 1: scoring a group, forward and backward. Packed (ours) against repeated.

    python tests/bench/scoring.py             # all shapes; a quarter of an hour on 2 cores
    python tests/bench/scoring.py --prompt 1024 --group 8 --completion 64
    python tests/bench/scoring.py --device cuda --config 7b

Both sides start from the patches, so vision is in it: once for the group (ours), once per row.
Measured are time and peak memory.
"""

import gc

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from common import arguments, by_turns, make_policy, make_prompt, peak_memory, repeated_logprobs

from model import encode_videos, group_logprobs


def make_side(side, size, device, P, G, C):
    """A function that scores one group, one backward included."""
    model, rng = make_policy(size, device), torch.Generator(device).manual_seed(1)
    completions = torch.randint(20, 400, (G, C), device=device, generator=rng)
    return side_of(side, model, make_prompt(model, P), completions)


def side_of(side, model, prompt, completions):
    def work():
        model.zero_grad()
        if side == "packed":
            logp = group_logprobs(model, prompt, encode_videos(model, [prompt])[0], completions)[0]
        else:
            logp = repeated_logprobs(model, [prompt], len(completions), completions[None])
        logp.mean().backward()

    return work


def main():
    args = arguments(
        __doc__,
        prompt=([256, 1024, 3584], "P"),
        group=([4, 8, 16], "G"),
        completion=([64, 256], "C"),
    )
    model = make_policy(args.config, args.device)
    print(
        f"{'P':>5} {'G':>3} {'C':>4}   {'packed':>9} {'repeated':>9} {'faster':>7}"
        f"   {'packed':>9} {'repeated':>9} {'memory':>7}"
    )
    for P in args.prompt:
        prompt = make_prompt(model, P)
        for G in args.group:
            for C in args.completion:
                completions = torch.randint(20, 400, (G, C), device=args.device)
                given = (model, prompt, completions)
                sides = {side: side_of(side, *given) for side in ("packed", "repeated")}
                t = by_turns(sides, args.repeats, args.device)
                model.zero_grad()
                gc.collect()
                m = {}
                for side in sides:
                    if args.device == "cuda":
                        m[side] = peak_memory(side_of, (side, *given), "cuda")
                    else:
                        shape = (side, args.config, "cpu", P, G, C)
                        m[side] = peak_memory(make_side, shape, "cpu")
                    m[side] /= 2**20  # MiB
                print(
                    f"{P:>5} {G:>3} {C:>4}   {t['packed']:>7.2f} s {t['repeated']:>7.2f} s"
                    f" {t['repeated'] / t['packed']:>6.1f}×"
                    f"   {m['packed']:>5.0f} MiB {m['repeated']:>5.0f} MiB"
                    f" {m['packed'] / m['repeated']:>6.2f}×",
                    flush=True,
                )


if __name__ == "__main__":
    main()
