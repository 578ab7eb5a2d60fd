"""report.py: what a run looks like, from the numbers that it left in its folder.

    python report.py runs/demo           # redraws runs/demo/curves.png from runs/demo/metrics.jsonl
"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw_curves(folder, lines, settings):
    """{folder}/curves.png: each quantity of a run's metrics over its steps, pale as it was, dark as a running mean.

    Args:    lines: those of metrics.jsonl, as dictionaries; settings: those of settings.json.
    """
    explained = {
        "reward": "reward (sum of the parts)", "spread": "spread of rewards within a group", "no_spread": "share of groups without spread",
        "kl": "KL to the reference policy\n(nats per token)", "entropy": "entropy (nats per token)", "length": "tokens per completion",
        "grad_norm": "gradient norm", "loss": "loss",
    }  # fmt: skip
    parts = sorted({k for line in lines for k in line if k.startswith("reward/")})
    names = parts + [k for k in explained if k in lines[0] and k != "loss"] if parts else ["loss", "grad_norm"]
    columns = 3 if parts else 2
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.7 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names):
        steps = np.array([line["step"] for line in lines if line.get(name) is not None])  # not every step has prompts of every task
        y = np.array([line[name] for line in lines if line.get(name) is not None], dtype=float)
        window = max(1, len(y) // 15)
        total = np.cumsum(np.insert(y, 0, 0.0))
        low = np.maximum(0, np.arange(len(y)) + 1 - window)
        smooth = (total[1:] - total[low]) / (np.arange(len(y)) + 1 - low)
        colour = "tab:green" if name.startswith("reward") else "tab:blue"
        axis.plot(steps, y, color=colour, alpha=0.25, linewidth=1)
        axis.plot(steps, smooth, color=colour, linewidth=2)
        axis.set_title(explained.get(name, f"mean {name.removeprefix('reward/').replace('/', ' ')} reward"), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if name in parts or name == "no_spread":
            axis.set_ylim(-0.02, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names):]:
        axis.axis("off")
    figure.suptitle("{} on {data_name}, from {model_name}, seed {seed}".format(settings["method"].upper(), **settings), fontsize=11)
    path, partial = os.path.join(folder, "curves.png"), os.path.join(folder, "curves.partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    os.replace(partial, path)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    try:
        with open(os.path.join(folder, "settings.json")) as f:
            settings = json.load(f)
        with open(os.path.join(folder, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        draw_curves(folder, lines, settings)
    except (OSError, KeyError, IndexError, ValueError) as e:
        sys.exit(f"error: {folder} is not a run folder of train.py with at least one step in it ({type(e).__name__}: {e})")


if __name__ == "__main__":
    main()
