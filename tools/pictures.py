"""pictures.py: what eval.py draws, and several runs in one figure.

    python -m tools.pictures runs/a runs/b runs/c --out seeds.pdf    # or .png, .svg

Three panels over the steps: reward, its spread within groups, KL. Runs with the same settings but
other seeds become one line, their mean, in a band from the smallest of them to the largest. Runs
with other settings become a line of their own, named by what differs.
"""

import argparse
import io
import json
import os
import sys

import numpy as np

import rewards
from evaluation.predictions import with_tags
from lib.errors import BadInput, first_line, read_object, run_program
from lib.files import kind_of, replace_file
from tools.report import NEEDED, evaluated_before, read_metrics
from training.checkpoint import MAY_CHANGE
from training.shown import EXPLAINED, curves_of, fit_axis, plt, running_mean

# ------------------------------------------------------------------------------------------------
# Predictions of an evaluation
# ------------------------------------------------------------------------------------------------

TRUE, BEFORE, PREDICTED = "tab:green", "tab:gray", "tab:orange"


def draw_evaluation(folder, settings, records, metrics):
    """Draws predictions.png into an evaluation's folder, or says why it cannot be drawn."""
    blind = f", {settings['look']}" if settings.get("look") else ""
    model_and_data = f"{settings['model_name']}\non {settings['data_name']}{blind}"
    title = f"{model_and_data}: mIoU {metrics['mIoU']:.1f}"
    try:
        before = said_before(folder, settings)
        draw_intervals(os.path.join(folder, "predictions.png"), records, title, before)
    except Exception as e:  # a picture is no reason to lose a score
        why = f"{type(e).__name__}: {first_line(e)}"
        print(f"predictions.png could not be drawn ({why})", file=sys.stderr)


def said_before(folder, settings):
    """{id: prediction} of the model that a run started from, under the same settings; {} where the
    evaluation is not a run's, or the base has not been evaluated so."""
    run, name = os.path.split(os.path.abspath(folder))
    if kind_of(run) != "run":
        return {}
    try:
        started_from = read_object(os.path.join(run, "settings.json"), model=str)
        made = json.loads(json.dumps(settings))  # as a file would give them: no tuples
        return evaluated_before(run, name, started_from, made)[1]
    except BadInput as e:
        print(f"predictions.png is drawn without a bar for before: {e}", file=sys.stderr)
        return {}


def draw_intervals(path, records, title, before=None, rows=14):
    """predictions.png: the first queries, each a time axis with the true interval above the
    predicted one, and between them what was predicted before training, if that is known.

    Args: records of grounding, as predictions.jsonl holds them; before: {id: record} of the base
    model's; rows: how many are drawn.
    """
    records, before = records[:rows], before or {}
    names = ["true", "before", "after"] if before else ["true", "predicted"]
    colours = [TRUE, *[BEFORE] * bool(before), PREDICTED]
    height = 0.42 + 0.15 * bool(before)
    figure, axis = plt.subplots(figsize=(9, height * len(records) + 1.3), layout="constrained")
    labels = []
    for row, record in enumerate(records):
        earlier = before.get(record.get("id"))
        draw_row(axis, row, record, earlier, len(names))
        scores = [r["iou"] for r in (earlier, record) if r and "iou" in r]
        said = " → ".join(f"{100 * iou:.0f}" for iou in scores)
        labels.append(f"{record['question'][:52]}   {said}")
    axis.set_yticks(range(len(records)), labels, fontsize=8)
    axis.set_ylim(len(records) - 0.4, -0.6)
    axis.set_xlim(left=0)
    which = ", before → after" if before else ""
    axis.set_xlabel(f"seconds   (beside each query: IoU in percent{which})", fontsize=8)
    figure.legend(
        handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=n) for n, c in zip(names, colours)],
        loc="outside lower center",
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_row(axis, row, record, earlier, bars):
    """The bars of one query, two or three: the true one, before (if there is such a record), and
    the prediction."""
    pitch = 0.68 / bars
    places = [row + pitch * (k - (bars - 1) / 2) for k in range(bars)]
    start, end = record["answer"]
    axis.barh(places[0], end - start, 0.88 * pitch, start, color=TRUE)
    for said, place, colour in ((earlier, places[1], BEFORE), (record, places[-1], PREDICTED)):
        if said is None:
            continue
        prediction = rewards.parse_interval(rewards.inside(with_tags(said["text"]), "answer"))
        if prediction is None:
            axis.text(0.1, place, "no readable answer", va="center", fontsize=7, color="tab:red")
        else:
            start, end = prediction
            axis.barh(place, max(end - start, 0.05), 0.88 * pitch, start, color=colour)


# ------------------------------------------------------------------------------------------------
# Several runs in one figure
# ------------------------------------------------------------------------------------------------

PANELS = ("reward", "spread", "kl")
FORMATS = ("pdf", "png", "svg")


def read_run(folder):
    """(settings, {panel: {step: running mean}}) of a run. Raises BadInput for anything else."""
    if not os.path.isdir(folder) or kind_of(folder) != "run":
        raise BadInput(f"{folder} is not a run folder of train.py")
    settings = read_object(os.path.join(folder, "settings.json"), **NEEDED)
    lines = read_metrics(folder)
    curves = {name: (steps, values) for name, _, steps, values in curves_of(lines)} if lines else {}
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
            values = np.array([
                [curves[name][s] for s in steps] for curves in seeds
            ])  # (runs, steps)
            axis.plot(steps, values.mean(axis=0), color=f"C{k}", linewidth=2, label=label)
            band = (values.min(axis=0), values.max(axis=0))
            axis.fill_between(steps, *band, color=f"C{k}", alpha=0.2, linewidth=0)
            all_steps += steps
            all_values += band[1].tolist()
        axis.set_title(EXPLAINED[name], fontsize=10)
        fit_axis(axis, name, all_steps, all_values)
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def start():
    p = argparse.ArgumentParser(
        prog="python -m tools.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="folder of a GRPO run of train.py")
    p.add_argument("--out", default="runs.pdf", help="the figure (default: runs.pdf)")
    args = p.parse_args()
    kind = os.path.splitext(args.out)[1][1:]
    if kind not in FORMATS:
        raise BadInput(f"--out {args.out} must end in one of .{', .'.join(FORMATS)}")
    runs = [read_run(folder) for folder in args.runs]
    data, model = ({settings[k] for settings, _ in runs} for k in ("data_name", "model_name"))
    title = f"{', '.join(sorted(data))}, from {', '.join(sorted(model))}"
    with plt.rc_context({"pdf.fonttype": 42}):  # text that can be searched and edited
        figure = draw_runs(lines_of(runs), f"{title}; running means, band: all seeds")
        figure.savefig(made := io.BytesIO(), format=kind, dpi=150)
    plt.close(figure)
    try:
        replace_file(args.out, made.getvalue())
    except OSError as e:
        raise BadInput(f"{args.out} could not be written: {e.strerror}") from e
    print(f"wrote {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
