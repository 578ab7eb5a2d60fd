"""curves.py: seven short runs on the toy, one healthy and six ill, and a picture of each, for
docs/curves.md.

    python -m tools.curves              # runs/curves/NAME and runs/curves/NAME.png
    python -m tools.curves high-lr      # the healthy one and this one

The rule's overlap is what the run was paid for. In "gamed" the true overlap is drawn beside it.
"""

import os
import subprocess
import sys
from functools import cache

from lib.errors import BadInput, run_program
from lib.figures import plt, save
from lib.files import read_lines, replace_file
from lib.flags import COUNT, parser_of
from rewards import grounding_iou
from tools.report import read_run

# Words in which the toy base was never asked.
STRANGE = 'When in {duration} seconds: "{question}"? Give <answer>start to end</answer>.\n<video>\n'
CASES = {
    "healthy": "train.py",
    "high-lr": "train.py --lr 1e-2",
    "no-spread": "train.py --prompt {out}/words.txt",
    "cut-off": "train.py --max-new-tokens 18",
    "format-only": "train.py --max-frames 4",
    "far": "train.py --beta 1e-3 --lr 1e-3",
    "gamed": "-m course.loose iou",
}
SMALL = "--task grounding --device cpu --group-size 4 --rollouts-every 1 --quiet --resume"
PANELS = {  # title: ({key of metrics.jsonl: its name}, top of the axis or None)
    "reward": ({"reward/grounding/format": "format", "reward/grounding/iou": "overlap"}, 1.05),
    "within groups": ({"spread": "spread", "no_spread": "share without spread"}, 1.05),
    "nats per token": ({"kl": "KL to the reference"}, None),
    "answers": ({"unfinished": "share cut off"}, 1.05),
}


FLAGS = {"what is made": [
    ("names", {"nargs": "*", "metavar": "NAME"}, f"any of {', '.join(CASES)} (default: all)"),
    ("--out", {"default": "runs/curves"}, "folder for runs and pictures"),
    ("--steps", COUNT | {"default": 30}, "of each run"),
]}  # fmt: skip


@cache
def train(name, out, steps):
    """(metrics, true overlaps of a group per step) of a case. A finished run is not run again."""
    run = os.path.join(out, name)
    flags = f"{CASES[name]} {SMALL} --steps {steps}".format(out=out).split()
    if subprocess.run([sys.executable, *flags, "--out", run]).returncode:
        raise BadInput(f"the run {name} failed, as it says above")
    groups = read_lines(os.path.join(run, "rollouts.jsonl"), completions=list)
    true = [[grounding_iou(c["text"], g["answer"], True) for c in g["completions"]] for g in groups]
    return read_run(run)[1], [sum(overlaps) / len(overlaps) for overlaps in true]


def smooth(values):
    """At each step the mean of the last five."""
    return [sum(values[max(0, i - 4) : i + 1]) / min(5, i + 1) for i in range(len(values))]


def picture(path, case, healthy):
    """A run's curves, in grey those of the healthy one."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 2.3), layout="constrained")
    for axis, (title, (curves, top)) in zip(axes, PANELS.items()):
        for k, (key, label) in enumerate(curves.items()):
            axis.plot(smooth([line[key] for line in healthy]), "0.75")
            axis.plot(smooth([line[key] for line in case[0]]), f"C{k}", label=label)
        if title == "reward" and path.endswith("gamed.png"):
            axis.plot(smooth(case[1]), "C3", label="true overlap")
        axis.set_ylim(0, top)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step", fontsize=7)
    save(figure, path)


def start():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.curves").parse_args()
    if wrong := [name for name in args.names if name not in CASES]:
        raise BadInput(f"{wrong[0]} is none of {', '.join(CASES)}")
    os.makedirs(args.out, exist_ok=True)
    replace_file(os.path.join(args.out, "words.txt"), STRANGE)
    healthy, _ = train("healthy", args.out, args.steps)
    for name in args.names or CASES:
        case = train(name, args.out, args.steps)
        picture(os.path.join(args.out, f"{name}.png"), case, healthy)


if __name__ == "__main__":
    run_program(start)
