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

SETTINGS = dict(
    device="cpu", config="toy", score_every_group=True, score_tokens=4096, task="grounding",
    tasks=["grounding"], think=True, train_vision=True, shard=False, group_size=8,
    max_new_tokens=64, beta=0.04, loss="grpo", updates_per_rollout=1, clip=0.2, clip_high=0.2,
    grad_clip=1.0, mask_unfinished=False,
)  # fmt: skip


def work(checkout, P, clips):
    """The process of one side: for every line it is sent, one step; prints seconds and bytes.

    It uses what all commits of tests/bench/step.py have had under the same name.
    """
    os.chdir(checkout)
    sys.path[:0] = [checkout, os.path.join(checkout, "tests", "bench")]
    import copy

    import step as bench

    from common import make_policy, make_prompt

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
    job += (bench.MasterAdamW(policy, 0.0), SimpleNamespace(**SETTINGS))
    for _ in sys.stdin:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as f:
            f.write("5")  # the high-water mark starts again from here
        before, began = resident("VmRSS"), time.perf_counter()
        bench.ours(*job)
        took = time.perf_counter() - began
        print(json.dumps([took, resident("VmHWM") - before]), flush=True)


def resident(field):
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("before", help="a checkout of the other commit")
    p.add_argument("--prompt", type=int, nargs="+", default=[0], help="P, with random weights")
    p.add_argument("--repeats", type=int, default=5, help="steps of each side; the median counts")
    p.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.work:
        return work(args.before, int(args.work[0]), args.work[1])
    sys.path.insert(0, ROOT)
    from toy import world

    clips = os.path.abspath(world.ensure("charades"))
    named = subprocess.run(
        ["git", "-C", args.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(f"toy policy, CPU; before: {named}")
    print(f"{'P':>6} {'before':>9} {'here':>9} {'faster':>7} {'memory: before':>16} {'here':>8}")
    for P in args.prompt:
        sides = [
            subprocess.Popen(
                [sys.executable, __file__, os.path.abspath(folder), "--work", str(P), clips],
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
