"""pictures.py: what eval.py draws."""

import os
import sys

import rewards
from runtime.errors import first_line
from runtime.predictions import with_tags
from runtime.shown import plt

TRUE, PREDICTED = "tab:green", "tab:orange"


def draw_evaluation(folder, settings, records, metrics):
    """Draws predictions.png into an evaluation's folder, or says why it cannot be drawn."""
    blind = ", BLIND" if settings["blind"] else ""
    model_and_data = f"{settings['model_name']}\non {settings['data_name']}{blind}"
    title = f"{model_and_data}: mIoU {metrics['mIoU']:.1f}"
    try:
        draw_intervals(os.path.join(folder, "predictions.png"), records, title)
    except Exception as e:  # a picture is no reason to lose a score
        why = f"{type(e).__name__}: {first_line(e)}"
        print(f"predictions.png could not be drawn ({why})", file=sys.stderr)


def draw_intervals(path, records, title, rows=14):
    """predictions.png: the first queries, each a time axis with the true interval above the
    predicted one.

    Args: records of grounding, as predictions.jsonl holds them; rows: how many are drawn.
    """
    records = records[:rows]
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(records) + 1.3), layout="constrained")
    for row, record in enumerate(records):
        draw_row(axis, row, record)
    labels = [f"{r['question'][:52]}   {100 * r['iou']:.0f}" for r in records]
    axis.set_yticks(range(len(records)), labels, fontsize=8)
    axis.set_ylim(len(records) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds   (number beside each query: IoU in percent)", fontsize=8)
    axis.legend(
        handles=[
            plt.Rectangle((0, 0), 1, 1, color=TRUE, label="true"),
            plt.Rectangle((0, 0), 1, 1, color=PREDICTED, label="predicted"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.09),
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_row(axis, row, record):
    """The two bars of one query, or the true one and why there is no other."""
    start, end = record["answer"]
    axis.barh(row - 0.17, end - start, 0.3, start, color=TRUE)
    prediction = rewards.parse_interval(rewards.inside(with_tags(record["text"]), "answer"))
    if prediction is None:
        why = "no readable answer"
        axis.text(0.1, row + 0.17, why, va="center", fontsize=7, color="tab:red")
    else:
        start, end = prediction
        axis.barh(row + 0.17, max(end - start, 0.05), 0.3, start, color=PREDICTED)
