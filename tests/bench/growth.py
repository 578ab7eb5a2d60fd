"""Bench 5: how the time of a step grows with prompt, group, completion, and number of processes.

    python tests/bench/growth.py
    python tests/bench/growth.py --device cuda --config 3b

A step here is: vision, sampling of C tokens, scoring, backward; for one group. All shapes are timed
by turns, in one run. The second table trains the shipped toy base for a few steps under torchrun,
with the same prompts shared by one or two processes.
"""

import json
import os
import subprocess
import sys
import tempfile

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import torch

from common import ROOT, arguments, by_turns, make_policy, make_prompt

import grpo
from model import encode_videos, group_logprobs

START = dict(P=1024, G=8, C=64)
VALUES = dict(P=(256, 1024, 3584), G=(4, 8, 16), C=(32, 64, 128))


def one_step(model, prompt, G, C):
    features = encode_videos(model, [prompt])
    generators = [torch.Generator().manual_seed(0)]
    stop_ids, given = [model.config.video_token_id], [f.detach() for f in features]
    tokens, _, _ = grpo.sample_groups(model, [prompt], given, G, C, stop_ids, generators)
    model.zero_grad()
    group_logprobs(model, prompt, features[0], tokens[0])[0].mean().backward()


def seconds_per_step(processes, steps):
    """(median seconds of a training step of the toy run, its share of waiting for data).

    The first step is left out.
    """
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [
                sys.executable,
                *("-m", "torch.distributed.run"),
                *("--nproc-per-node", str(processes)),
                *"--master-port 29617 train.py".split(),
                *("--steps", str(steps)),
                *("--out", out),
                *("--seed", "1"),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as f:
            lines = [json.loads(line) for line in f][1:]
    total = [line["seconds_total"] for line in lines]
    waiting = [line["seconds"]["data"] / line["seconds_total"] for line in lines]
    return float(np.median(total)), float(np.median(waiting))


def main():
    args = arguments(
        __doc__, processes=([1, 2], "numbers of processes"), steps=(12, "training steps with each")
    )
    model = make_policy(args.config, args.device)
    shapes = {
        tuple((START | {letter: value}).values()): None
        for letter, values in VALUES.items()
        for value in values
    }
    prompts = {P: make_prompt(model, P) for P in VALUES["P"]}
    t = by_turns(
        {shape: lambda s=shape: one_step(model, prompts[s[0]], *s[1:]) for shape in shapes},
        args.repeats,
        args.device,
    )
    start = t[tuple(START.values())]
    print(f"{'P':>5} {'G':>3} {'C':>4} {'per step':>9}   against P = 1024, G = 8, C = 64")
    for letter, values in VALUES.items():
        for value in values:
            shape = tuple((START | {letter: value}).values())
            print(
                f"{shape[0]:>5} {shape[1]:>3} {shape[2]:>4} {t[shape]:>7.2f} s"
                f"   {t[shape] / start:.2f}×   ({letter} × {value / START[letter]:g})"
            )
    print("processes per step   against one   waiting for data")
    first = None
    for n in args.processes:
        seconds, waiting = seconds_per_step(n, args.steps)
        first = first or seconds
        print(
            f"{n:>9} {seconds:>7.2f} s {first / seconds:>11.2f}× {100 * waiting:>15.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
