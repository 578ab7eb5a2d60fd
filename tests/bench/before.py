"""Bench: one GRPO step of this checkout against that of another commit, by turns, in one run.

    git worktree add ../before 6145a85
    python tests/bench/before.py ../before                  # toy clips, P of about 150
    python tests/bench/before.py ../before --prompt 1024 3584

Each side is a process of its own with the settings of step.py (8 prompts, G = 8, 64 tokens, β =
0.04); they take turns, one step at a time, after two that do not count. With --prompt weights and
videos are random, so that both sides decode all 64 tokens. Memory: the peak of a process's first
step, beyond what it held before. (Later ones reuse what the first one freed.)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def work(checkout, P, clips, settings):
    """The process of one side: for every line it is sent, one step; prints seconds and bytes.

    It uses what all commits of tests/bench/step.py have had under the same name.
    """
    os.chdir(checkout)
    sys.path[:0] = [checkout, os.path.join(checkout, "tests", "bench")]
    import copy

    import step as bench

    from common import _resident, make_policy, make_prompt

    if P:
        policy, tokenizer = make_policy("toy", "cpu"), bench.NoTokenizer()
        examples = [bench.data.Example("", "grounding", "", "", (0.0, 1.0))] * 8
        prompts = [make_prompt(policy, P, seed=b) for b in range(8)]
    else:
        policy, tokenizer = bench.load(bench.TOKENIZER, "cpu")
        examples = bench.read_dataset("charades", "train", clips)[:8]
        n = 4 * 28 * 28
        budget = bench.data.VideoBudget(max_frames=64, min_frame_pixels=n, max_frame_pixels=n)
        load_prompt = getattr(bench.data, "load_prompt", None) or bench.tasks.load_prompt
        prompts = [load_prompt(e, budget, tokenizer, True) for e in examples]
    reference = copy.deepcopy(policy).requires_grad_(False)
    job = (policy, reference, tokenizer, list(enumerate(examples)), prompts)
    job += (bench.MasterAdamW(policy, 0.0), SimpleNamespace(**settings))
    for _ in sys.stdin:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as f:
            f.write("5")  # the high-water mark starts again from here
        before, began = _resident("VmRSS"), time.perf_counter()
        bench.ours(*job)
        took = time.perf_counter() - began
        print(json.dumps([took, _resident("VmHWM") - before]), flush=True)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("before", help="a checkout of the other commit")
    p.add_argument("--prompt", type=int, nargs="+", default=[0], help="P, with random weights")
    p.add_argument("--repeats", type=int, default=5, help="steps of each side; the median counts")
    p.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.work:
        P, clips, settings = args.work
        return work(args.before, int(P), clips, json.loads(settings))
    from step import SETTINGS, world

    clips = os.path.abspath(world.ensure("charades"))
    settings = json.dumps(SETTINGS | {"device": "cpu", "config": "toy"})
    named = subprocess.run(
        ["git", "-C", args.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(f"toy policy, CPU; before: {named}")
    print(f"{'P':>6} {'before':>9} {'here':>9} {'faster':>7} {'memory: before':>16} {'here':>8}")
    for P in args.prompt:
        own = ["--work", str(P), clips, settings]
        sides = [
            subprocess.Popen(
                [sys.executable, __file__, os.path.abspath(folder), *own],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for folder in (args.before, ROOT)
        ]  # fmt: skip
        first, _, *turns = [[step(side) for side in sides] for _ in range(args.repeats + 2)]
        for side in sides:
            side.communicate()
        before, here = (statistics.median(turn[k][0] for turn in turns) for k in (0, 1))
        mega = [f"{memory / 1e6:.0f} MB" for _, memory in first]
        print(
            f"{P or 'clips':>6} {before:>7.2f} s {here:>7.2f} s {before / here:>6.2f}× "
            f"{mega[0]:>16} {mega[1]:>8}",
            flush=True,
        )


def step(side):
    side.stdin.write("step\n")
    side.stdin.flush()
    return json.loads(side.stdout.readline())


if __name__ == "__main__":
    main()
