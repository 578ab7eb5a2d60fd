"""Did a change of form change a number? Short runs in two checkouts, equal to the last digit.

    git worktree add ../before 6145a85
    python tests/bench/same.py ../before        # this checkout against that one; about 15 minutes

On one process, on the CPU, seed 0: 20 steps of grounding, 5 of all tasks, 5 of SFT, each with and
without --lora 4; then every benchmark with the first 20 questions. Compared are the lines of
metrics.jsonl, but for seconds and memory, and of predictions.jsonl. A field that only one side has
is named and not compared.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RUNS = {
    "grounding": ["--task", "grounding", "--steps", "20"],
    "all": ["--task", "all", "--steps", "5"],
    "sft": ["--method", "sft", "--steps", "5"],
}
BENCHES = (
    "charades activitynet got10k nextgqa quality caption videomme mvbench perceptiontest".split()
)
MACHINE = ("seconds", "seconds_total", "memory_gb")  # and whatever is per second


def run(checkout, *command):
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=os.environ | threads,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"error: in {checkout}: {' '.join(command)}\n{done.stderr[-2000:]}")


def lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def numbers(line):
    return {k: v for k, v in line.items() if k not in MACHINE and not k.endswith("_per_second")}


def compare(name, ours, theirs):
    """Prints one line, returns whether all fields that both have are equal."""
    only = {k for a, b in zip(ours, theirs) for k in set(a) ^ set(b)}
    different = {k for a, b in zip(ours, theirs) for k in set(a) & set(b) if a[k] != b[k]}
    good = not different and len(ours) == len(theirs)
    print(
        f"{'equal ' if good else 'DIFFER'} {name}: {len(ours)} and {len(theirs)} lines"
        + f"; different: {', '.join(sorted(different))}" * bool(different)
        + f"; on one side only: {', '.join(sorted(only))}" * bool(only),
        flush=True,
    )
    return good


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("other", help="folder of the other checkout")
    p.add_argument(
        "--keep", help="folder in which the other checkout's results are kept and found again"
    )
    args = p.parse_args()
    home, good = tempfile.mkdtemp(), True
    sides = {
        ROOT: os.path.join(home, "ours"),
        os.path.abspath(args.other): args.keep or os.path.join(home, "theirs"),
    }
    for checkout, out in sides.items():
        for name, flags in RUNS.items():
            for lora in ([], ["--lora", "4"]):
                folder = os.path.join(out, name + "-lora" * bool(lora))
                if not os.path.isfile(os.path.join(folder, "metrics.jsonl")):
                    place = os.path.abspath(folder)
                    run(checkout, "train.py", *flags, *lora, "--quiet", "--out", place)
        if not glob.glob(os.path.join(out, "eval-all", "*")):
            base = os.path.abspath(os.path.join(out, "eval-all"))
            for bench in BENCHES:
                place = os.path.join(base, bench)
                run(checkout, "eval.py", "--bench", bench, "--limit", "20", "--out", place)
    ours, theirs = sides.values()
    for path in sorted(glob.glob(os.path.join(theirs, "**", "*.jsonl"), recursive=True)):
        kind, inside = os.path.basename(path), os.path.relpath(path, theirs)
        if kind in ("metrics.jsonl", "predictions.jsonl"):
            pair = [
                [numbers(line) for line in lines(os.path.join(side, inside))]
                for side in (ours, theirs)
            ]
            good &= compare(inside, *pair)
    sys.exit(not good)


if __name__ == "__main__":
    main()
