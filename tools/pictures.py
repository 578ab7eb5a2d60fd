"""pictures.py: several runs in one figure.

    python -m tools.pictures runs/a-seed0 runs/a-seed1 runs/b --out runs.pdf    # or .png, .svg

Three panels over the steps: reward, its spread within groups, KL. Runs whose folders' names differ
in the seed at their end alone become one line, their mean, in a band from the smallest of them to
the largest.
"""

import os
import re

import numpy as np

from lib.errors import BadInput, run_program
from lib.figures import plt, save
from lib.flags import parser_of
from tools.report import read_run
from training.shown import EXPLAINED, curves_of, fit_axis, running_mean

PANELS = ("reward", "spread", "kl")


def panels_of(folder):
    """{panel: {step: running mean}} of a run. Raises BadInput for anything else."""
    curves = {name: (steps, values) for name, _, steps, values in curves_of(read_run(folder)[1])}
    if any(not curves.get(name, ((),))[0] for name in PANELS):
        raise BadInput(f"{folder} has no steps with {', '.join(PANELS)}: give runs of GRPO")
    return {k: dict(zip(curves[k][0], running_mean(curves[k][1]).tolist())) for k in PANELS}


def draw_runs(lines):
    """A figure of three panels. lines: {label: [panels_of(run) of each seed]}. A step that one
    seed of the line lacks is left out."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, name in zip(axes, PANELS):
        all_steps, all_values = [], []
        for k, (label, seeds) in enumerate(lines.items()):
            steps = sorted(set.intersection(*(set(curves[name]) for curves in seeds)))
            values = np.array([[c[name][s] for s in steps] for c in seeds])  # (seeds, steps)
            axis.plot(steps, values.mean(axis=0), color=f"C{k}", linewidth=2, label=label)
            low, high = values.min(axis=0), values.max(axis=0)
            axis.fill_between(steps, low, high, color=f"C{k}", alpha=0.2, linewidth=0)
            all_steps += steps
            all_values += high.tolist()
        axis.set_title(EXPLAINED[name], fontsize=10)
        fit_axis(axis, name, all_steps, all_values)
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("running means; band: all seeds", fontsize=11)
    return figure


FLAGS = {"what is drawn": [
    ("runs", {"nargs": "+", "metavar": "RUN"}, "folder of a GRPO run of train.py"),
    ("--out", {"default": "runs.pdf"}, "the figure"),
]}  # fmt: skip


def start():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.pictures").parse_args()
    lines = {}
    for folder in args.runs:
        name = os.path.basename(os.path.normpath(folder))
        lines.setdefault(re.sub(r"-seed\d+$", "", name), []).append(panels_of(folder))
    figure = draw_runs(lines)
    try:
        save(figure, args.out)
    except (OSError, ValueError) as e:  # ValueError: a format that matplotlib does not know
        raise BadInput(f"{args.out} could not be written: {e}") from e
    print(f"wrote {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
