"""pictures.py: several runs in one figure.

    python -m tools.pictures runs/a runs/b runs/c --out seeds.pdf    # or .png, .svg

Three panels over the steps: reward, its spread within groups, KL. Runs with the same settings but
other seeds become one line, their mean, in a band from the smallest of them to the largest. Runs
with other settings become a line of their own, named by what differs.
"""

import json

import numpy as np

from lib.errors import BadInput, run_program
from lib.figures import plt, save
from lib.flags import parser_of
from tools.report import read_run
from training.checkpoint import MAY_CHANGE
from training.shown import EXPLAINED, curves_of, fit_axis, running_mean

PANELS = ("reward", "spread", "kl")
FORMATS = (".pdf", ".png", ".svg")


def panels_of(folder):
    """(settings, {panel: {step: running mean}}) of a run. Raises BadInput for anything else."""
    settings, lines = read_run(folder)
    curves = {name: (steps, values) for name, _, steps, values in curves_of(lines)}
    if any(not curves.get(name, ((),))[0] for name in PANELS):
        raise BadInput(f"{folder} has no steps with {', '.join(PANELS)}: give runs of GRPO")
    smooth = lambda steps, values: dict(zip(steps, running_mean(values).tolist()))
    return settings, {name: smooth(*curves[name]) for name in PANELS}


def lines_of(runs):
    """Runs → [(label, [{panel: {step: value}} of each seed])], a line of the figure each."""
    of = lambda settings: {k: v for k, v in settings.items() if k not in (*MAY_CHANGE, "seed")}
    groups = {}
    for settings, curves in runs:
        key = json.dumps(of(settings), sort_keys=True)
        seeds = groups.setdefault(key, (of(settings), {}))[1]
        if settings["seed"] in seeds:
            raise BadInput(f"two of the runs have the same settings and seed {settings['seed']}")
        seeds[settings["seed"]] = curves
    every = [settings for settings, _ in groups.values()]
    differ = [k for k in every[0] if any(s.get(k) != every[0][k] for s in every)]
    lines = []
    for settings, seeds in groups.values():
        what = ", ".join(f"{k} {settings.get(k)}" for k in differ[:3])
        count = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
        lines.append((f"{what} ({count})" if what else count, list(seeds.values())))
    return lines


def draw_runs(lines, title):
    """A figure of three panels. Steps that not all seeds of a line have are left out."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, name in zip(axes, PANELS):
        all_steps, all_values = [], []
        for k, (label, seeds) in enumerate(lines):
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
    figure.suptitle(title, fontsize=11)
    return figure


FLAGS = {"what is drawn": [
    ("runs", {"nargs": "+", "metavar": "RUN"}, "folder of a GRPO run of train.py"),
    ("--out", {"default": "runs.pdf"}, "the figure"),
]}  # fmt: skip


def start():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.pictures").parse_args()
    if not args.out.endswith(FORMATS):
        raise BadInput(f"--out {args.out} must end in one of {', '.join(FORMATS)}")
    runs = [panels_of(folder) for folder in args.runs]
    data, model = ({settings[k] for settings, _ in runs} for k in ("data_name", "model_name"))
    title = f"{', '.join(sorted(data))}, from {', '.join(sorted(model))}"
    figure = draw_runs(lines_of(runs), f"{title}; running means, band: all seeds")
    try:
        save(figure, args.out)
    except OSError as e:
        raise BadInput(f"{args.out} could not be written: {e.strerror}") from e
    print(f"wrote {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
