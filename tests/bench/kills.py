"""Runs killed with SIGKILL at random moments, some during a save, and resumed: none may be lost.

    python tests/bench/kills.py            # 20 runs, about ten minutes on 2 cores

Each must end with weights that are, bit for bit, those of a run that nobody killed.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RUN = [
    sys.executable,
    *"train.py --task grounding --group-size 2 --prompts-per-step 2".split(),
    *"--max-new-tokens 16 --steps 12 --save-every 1 --quiet --resume".split(),
]


def weights(out):
    with open(os.path.join(out, "policy", "model.safetensors"), "rb") as f:
        return f.read()


def start(out):
    return subprocess.Popen(
        [*RUN, "--out", out], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def saving(out):
    """Whether a checkpoint or the policy is being written at this moment."""
    places = (out, os.path.join(out, "checkpoints"))
    return any(
        name.endswith((".partial", ".old"))
        for place in places
        if os.path.isdir(place)
        for name in os.listdir(place)
    )


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    rng, home = random.Random(args.seed), tempfile.mkdtemp()
    expected = os.path.join(home, "unkilled")
    assert start(expected).wait() == 0
    killed = during_save = lost = 0
    for number in range(args.runs):
        out = os.path.join(home, f"run{number}")
        for attempt in range(3):
            job = start(out)
            if attempt == 2:  # two kills per run, then it may end
                _, said = job.communicate()
                if job.returncode:
                    print(said[-500:])
                break
            while not os.path.isfile(os.path.join(out, "metrics.jsonl")) and job.poll() is None:
                time.sleep(0.02)
            deadline = time.time() + rng.uniform(0, 2.0)
            wait_for_save = rng.random() < 0.5
            while job.poll() is None and (
                time.time() < deadline
                or (wait_for_save and not saving(out) and time.time() < deadline + 5)
            ):
                time.sleep(0.0005)
            if job.poll() is None:
                during_save += saving(out)
                killed += 1
            job.send_signal(signal.SIGKILL)
            job.communicate()
        good = os.path.isdir(os.path.join(out, "policy")) and weights(out) == weights(expected)
        lost += not good
        so_far = f"{killed} kills so far, {during_save} of them during a save"
        print(f"run {number + 1}: {'same weights' if good else 'LOST'}   ({so_far})", flush=True)
        shutil.rmtree(out)
    print(f"{args.runs} runs, {killed} kills, {during_save} during a save; {lost} lost")
    shutil.rmtree(home)
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
