"""Bench: every kind of program alone, and beside other work.

    python tests/bench/busy.py               # beside as many busy loops as there are cores
    python tests/bench/busy.py --loops 8

A busy loop takes half of a core that a program wants, so twice the time is what must be. Threads
that spin while they wait for each other (the usual setting) take up to 200 times;
lib/threads.py is the one place that says otherwise. Each program is timed from its start to
its end, alone and beside the loops by turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

PROGRAMS = {
    "train.py, 4 steps": "train.py --task grounding --steps 4 --quiet --overwrite --out {out}/run",
    "eval.py, 48 questions": "eval.py --bench charades --limit 48 --out {out}/eval",
    "grpo.py": "grpo.py",
    "python -m course check 10": "-m course check 10 --into {out}/solved",
    "python -m tools.report": "-m tools.report {out}/run",
    "bench: sampling.py": "tests/bench/sampling.py --repeats 1",
}


def seconds(command, out):
    """Of a program, from its start to its end."""
    if command.startswith("eval.py"):  # what is answered is not asked again
        subprocess.run(["rm", "-rf", f"{out}/eval"], check=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command.format(out=out).split()], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--loops", type=int, default=cores, help="busy loops (default: cores)")
    p.add_argument("--repeats", type=int, default=3, help="runs of each side; the median counts")
    args = p.parse_args()
    print(f"{cores} cores, {args.loops} busy loops; toy policy")
    print(f"{'':<24} {'alone':>8} {'beside':>8} {'times':>6}")
    with tempfile.TemporaryDirectory() as out:
        seconds("-m course solution all --into {out}/solved", out)
        for name, command in PROGRAMS.items():
            seconds(command, out)  # what a first run makes or reads from a cold disk
            turns = [(seconds(command, out), beside(args.loops, command, out))
                     for _ in range(args.repeats)]  # fmt: skip
            alone, busy = map(statistics.median, zip(*turns))
            print(f"{name:<24} {alone:>6.1f} s {busy:>6.1f} s {busy / alone:>5.1f}×", flush=True)


def beside(n, command, out):
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        return seconds(command, out)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
