"""ladder.py: GRPO and what later papers changed in it, on the toy: same base, steps and seeds.

    python tests/bench/ladder.py                         # 27 runs, 35 minutes of one core
    python tests/bench/ladder.py --variants grpo cispo   # only these rows
    python tests/bench/ladder.py --seeds 0               # a first look

Each row is one run per seed and its evaluation on the 200 toy charades test clips. A row's
difference is taken seed by seed from the row named beside it, which saw the same clips in the same
order; its interval is Student's t over the seeds, 95 %. With three seeds that interval is wide, and
says so. What is complete is not run again, so the same command goes on after a stop.
"""

import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from lib.errors import BadInput, read_object, run_program
from lib.files import read_lines

# row: (the row it is compared with, its flags). The clips are those of the papers.
VARIANTS = {
    "grpo": (None, ""),
    "dr_grpo": ("grpo", "--loss dr_grpo"),
    "dapo": ("grpo", "--loss dapo --clip-high 0.28"),
    "gspo": ("grpo", "--loss gspo --clip 3e-4 --clip-high 4e-4"),
    "cispo": ("grpo", "--loss cispo --clip 1 --clip-high 0.28"),
    "gdpo": ("grpo", "--loss gdpo"),
    "masked": ("grpo", "--mask-unfinished"),
    # At 64 tokens hardly an answer of the toy is unfinished; at 30 many are.
    "grpo-30": ("grpo", "--max-new-tokens 30"),
    "masked-30": ("grpo-30", "--max-new-tokens 30 --mask-unfinished"),
}
ALL = "--task grounding --updates-per-rollout 2 --device cpu --quiet --overwrite"
MEASURED = ("reward", "length", "unfinished", "kl", "clip_share", "mIoU")
LAST = 10  # steps over which the training metrics are averaged
# Student's t at 97.5 % for 1, 2, … degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def run(*command):
    print("$", " ".join(command[1:]), flush=True)
    if subprocess.run(command, cwd=ROOT).returncode:
        raise BadInput("this failed, see above; the same command given again goes on from there")


def measured(name, seed, args):
    """{quantity: value} of one run, trained and evaluated where it is not complete."""
    folder = os.path.join(args.out, f"{name}-seed{seed}")
    log = os.path.join(folder, "metrics.jsonl")
    results = os.path.join(folder, "eval-charades", "results.json")
    wanted = ["--seed", str(seed), "--steps", str(args.steps), "--out", folder]
    if len(read_lines(log)) != args.steps or not os.path.isdir(os.path.join(folder, "policy")):
        run(sys.executable, "train.py", *ALL.split(), *VARIANTS[name][1].split(), *wanted)
    if not os.path.isfile(results):
        run(sys.executable, "eval.py", "--bench", "charades", "--device", "cpu", "--model", folder)
    last = read_lines(log)[-LAST:]
    values = {key: sum(line[key] for line in last) / len(last) for key in MEASURED[:-1]}
    return values | {"mIoU": read_object(results, metrics=dict)["metrics"]["mIoU"]}


def interval(values):
    """(mean, half width of its 95 % interval) by Student's t; None for the width of one value."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, T[n - 2] * (variance / n) ** 0.5


def cell(values, others, digits):
    """A mean, and in brackets the mean difference from the other row, seed by seed."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    if others is None:
        return mean
    difference, width = interval([v - o for v, o in zip(values, others)])
    if width is None:
        return f"{mean} ({difference:+.{digits}f})"
    star = "**" if abs(difference) > width else ""
    return f"{mean} ({star}{difference:+.{digits}f} ± {width:.{digits}f}{star})"


def table(rows, args):
    """The lines of a markdown table. rows: {name: [{quantity: value} per seed]}."""
    yield (
        f"Toy, {args.steps} steps of 8 × 8 completions with 2 updates each, seeds {args.seeds}. "
        f"Training figures: mean of the last {LAST} steps. In brackets the difference from the "
        "row named, paired by seed, ± Student's 95 % interval; bold where that excludes 0."
    )
    yield "| row | against | " + " | ".join(MEASURED) + " |"
    yield "|---" * (len(MEASURED) + 2) + "|"
    for name, of_seeds in rows.items():
        against = VARIANTS[name][0]
        against = against if against in rows else None
        cells = []
        for key in MEASURED:
            others = [m[key] for m in rows[against]] if against else None
            digits = 1 if key in ("length", "mIoU") else 3
            cells.append(cell([m[key] for m in of_seeds], others, digits))
        yield f"| {name} | {against or '–'} | " + " | ".join(cells) + " |"


def start():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--out", default=os.path.join("runs", "ladder"))
    args = p.parse_args()
    if len(args.seeds) > len(T) + 1:
        raise BadInput(f"--seeds: at most {len(T) + 1} of them")
    rows = {name: [] for name in args.variants}
    for seed in args.seeds:  # seed by seed: a stop leaves whole ladders
        for name in args.variants:
            rows[name].append(measured(name, seed, args))
    print("\n".join(table(rows, args)))


if __name__ == "__main__":
    run_program(start, interrupted="the same command goes on from there")
