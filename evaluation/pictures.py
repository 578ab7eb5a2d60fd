"""pictures.py: predictions.png, the first answers of an evaluation on a time axis."""

import os
import sys

import rewards
from evaluation.predictions import with_tags
from lib.errors import first_line
from lib.figures import plt, save

COLOURS = {"true": "tab:green", "predicted": "tab:orange"}


def draw_predictions(folder, settings, records, metrics):
    """Draws predictions.png into an evaluation's folder, or says why it cannot be drawn."""
    look = f", {settings['look']}" if settings["look"] else ""
    made_with = f"{settings['model_name']}\non {settings['data_name']}{look}"
    try:
        figure = draw_intervals(records[:14], f"{made_with}: mIoU {metrics['mIoU']:.1f}")
        save(figure, os.path.join(folder, "predictions.png"))
    except Exception as e:  # a picture is no reason to lose a score
        why = f"{type(e).__name__}: {first_line(e)}"
        print(f"predictions.png could not be drawn ({why})", file=sys.stderr)


def draw_intervals(records, title):
    """A figure: each query a time axis, with the true interval above the predicted one."""
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(records) + 1.3), layout="constrained")
    for row, record in enumerate(records):
        said = rewards.parse_interval(rewards.inside(with_tags(record["text"]), "answer"))
        for place, interval, name in ((-0.17, record["answer"], "true"), (0.17, said, "predicted")):
            if interval is None:
                axis.text(0.1, row + place, "no readable answer", va="center", fontsize=7)
                continue
            start, end = interval
            axis.barh(row + place, max(end - start, 0.05), 0.3, start, color=COLOURS[name])
    labels = [f"{r['question'][:52]}   {100 * r['iou']:.0f}" for r in records]
    axis.set_yticks(range(len(records)), labels, fontsize=8)
    axis.set_ylim(len(records) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds   (beside each query: IoU in percent)", fontsize=8)
    keys = [plt.Rectangle((0, 0), 1, 1, color=c, label=name) for name, c in COLOURS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(title, fontsize=10)
    return figure
