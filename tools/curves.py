"""curves.py: seven short runs on the toy, one healthy and six ill, and a picture of each, for
docs/curves.md.

    python -m tools.curves              # runs/curves/NAME, then assets/curves/NAME.png
    python -m tools.curves high-lr      # the healthy one and this one

The rule's overlap is what the run was paid for. In "gamed" the true overlap is drawn beside it.
"""

import os
import subprocess
import sys

from lib.errors import run_program
from lib.figures import plt, save
from lib.files import read_lines
from rewards import grounding_iou
from tools.report import read_run

HOME = os.path.join("runs", "curves")
WORDS = os.path.join(HOME, "words.txt")  # in which the toy base was never asked
STRANGE = 'When in {duration} seconds: "{question}"? Give <answer>start to end</answer>.\n<video>\n'
CASES = {
    "healthy": "train.py",
    "high-lr": "train.py --lr 1e-2",
    "no-spread": f"train.py --prompt {WORDS}",
    "cut-off": "train.py --max-new-tokens 18",
    "format-only": "train.py --max-frames 4",
    "far": "train.py --beta 1e-3 --lr 1e-3",
    "gamed": "-m course.loose iou",
}
SMALL = "--task grounding --device cpu --steps 30 --group-size 4 --rollouts-every 1 --quiet"
PANELS = {  # title: ({key of metrics.jsonl: its name}, top of the axis or None)
    "reward": ({"reward/grounding/format": "format", "reward/grounding/iou": "overlap"}, 1.05),
    "within groups": ({"spread": "spread", "no_spread": "share without spread"}, 1.05),
    "nats per token": ({"kl": "KL to the reference"}, None),
    "answers": ({"unfinished": "share cut off"}, 1.05),
}


def train(name):
    """(metrics, true overlaps of a group per step) of a case. A finished run is not run again."""
    out = os.path.join(HOME, name)
    flags = [*CASES[name].split(), *SMALL.split(), "--out", out, "--resume"]
    subprocess.run([sys.executable, *flags], check=True)
    groups = read_lines(os.path.join(out, "rollouts.jsonl"), completions=list)
    true = [[grounding_iou(c["text"], g["answer"], True) for c in g["completions"]] for g in groups]
    return read_run(out)[1], [sum(overlaps) / len(overlaps) for overlaps in true]


def smooth(values):
    """At each step the mean of the last five."""
    return [sum(values[max(0, i - 4) : i + 1]) / min(5, i + 1) for i in range(len(values))]


def picture(name, case, healthy):
    """assets/curves/{name}.png: a run's curves, in grey those of the healthy one."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 2.3), layout="constrained")
    for axis, (title, (curves, top)) in zip(axes, PANELS.items()):
        for k, (key, label) in enumerate(curves.items()):
            axis.plot(smooth([line[key] for line in healthy]), "0.75")
            axis.plot(smooth([line[key] for line in case[0]]), f"C{k}", label=label)
        if title == "reward" and name == "gamed":
            axis.plot(smooth(case[1]), "C3", label="true overlap")
        axis.set_ylim(0, top)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step", fontsize=7)
    save(figure, os.path.join("assets", "curves", f"{name}.png"))


def start():
    os.makedirs(HOME, exist_ok=True)
    with open(WORDS, "w", encoding="utf-8") as f:
        f.write(STRANGE)
    healthy = train("healthy")
    for name in sys.argv[1:] or CASES:
        picture(name, train(name), healthy[0])


if __name__ == "__main__":
    run_program(start)
