"""shown.py: what a run shows of itself: a group as text in the terminal, and its curves."""

import io
import os
import re
import textwrap

import matplotlib

matplotlib.use("Agg")
# A "$" in a question or a path is a dollar, not mathematics.
matplotlib.rcParams.update({"text.parse_math": False, "text.usetex": False})

import matplotlib.pyplot as plt
import numpy as np

import rewards
from lib.files import replace_file

# ------------------------------------------------------------------------------------------------
# Question and answers
# ------------------------------------------------------------------------------------------------


def asked(prompt):
    """The question in a prompt: the user's words without the last line, which describes the form of
    the answer."""
    turn = prompt.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
    words = re.sub(r"<\|vision_start\|>.*?<\|vision_end\|>", "", turn).strip()
    return words.rpartition("\n")[0] or words


def duration_of(prompt, truth):
    """Seconds that the clip lasts, as the prompt says; where it does not, up to where the true
    answer ends."""
    said = re.search(r"The video lasts ([0-9.]+) seconds", prompt)
    return float(said[1]) if said else max((end for _, end in truth["intervals"]), default=0.0)


def true_answer(answer):
    """An annotated answer as {"words", "intervals", "boxes"}: what to say of it and what to draw.
    Its shape tells its task.

    >>> true_answer((2.0, 9.7))
    {'words': '2.0 to 9.7', 'intervals': [(2.0, 9.7)], 'boxes': []}
    >>> true_answer([["a boy runs"], "A boy runs. It rains."])["words"]
    'A boy runs. It rains.'
    """
    words, intervals, boxes = "", [], []
    if not isinstance(answer, (list, tuple)):
        words = str(answer)
    elif all(isinstance(part, str) for part in answer):  # a caption's events
        words = ". ".join(answer)
    elif isinstance(answer[-1], str):  # its events, and the text that they were taken from
        words = answer[-1]
    elif isinstance(answer[0], str):
        intervals = answer[1]
        words = " ".join([answer[0], *(f"({start:.1f}, {end:.1f})" for start, end in intervals)])
    elif isinstance(answer[0], (list, tuple)):
        words, boxes = f"{len(answer)} boxes", answer
    else:
        words, intervals = f"{answer[0]:.1f} to {answer[1]:.1f}", [answer]
    return {"words": words, "intervals": intervals, "boxes": boxes}


def given_answer(text, answer):
    """The same for a completion, read by the rules that pay for it; its whole text where it has no
    answer.

    >>> given_answer("<answer>B</answer><glue>[(5.2, 10.4)]</glue>", ["C", [[1.0, 2.0]]])
    {'words': 'B [(5.2, 10.4)]', 'intervals': [(5.2, 10.4)], 'boxes': []}
    """
    said, glue = rewards.inside(text, "answer"), rewards.inside(text, "glue")
    # Where the answer is a letter, seconds count only as evidence; otherwise only as the answer.
    lettered = not isinstance(answer, (list, tuple)) or isinstance(answer[0], str)
    intervals = rewards.parse_intervals(glue) if lettered else [rewards.parse_interval(said)]
    return {
        "words": " ".join(part for part in (said, glue) if part) or text.strip() or "(nothing)",
        "intervals": [i for i in intervals or [] if i],
        "boxes": rewards.parse_boxes(said) or [],
    }


# ------------------------------------------------------------------------------------------------
# One group as text, for the terminal
# ------------------------------------------------------------------------------------------------


def group_text(step, group, width=100):
    """A group as train.py shows it: the question, then true and given answers on a time axis, the
    best first.

    Args:    group: a record of rollouts.jsonl; width: of the longest line, in characters.
    """
    truth = true_answer(group["answer"])
    given = [given_answer(c["text"], group["answer"]) for c in group["completions"]]
    duration = duration_of(group["prompt"], truth)
    cells = max(10, width - 46) if truth["intervals"] and duration else 0

    def row(label, answer):
        bar = ["·"] * cells
        for start, end in answer["intervals"] if cells else []:
            first, last = round(start / duration * cells), round(end / duration * cells)
            if start <= end:  # at least one cell; a reversed interval has none
                last = max(last, first + 1)
            for k in range(first, min(cells, last)):
                bar[k] = "█"
        # A control character could garble the terminal.
        words = "".join(c if c.isprintable() else " " for c in answer["words"])
        return shorten(f"{label:17}  {''.join(bar)}{'  ' * bool(cells)}{words}".rstrip(), width)

    lines = textwrap.wrap(f"step {step}: {asked(group['prompt'])}", width)
    lines.append(row("reward  advantage", truth | {"words": f"true: {truth['words']}"}))
    best_first = sorted(zip(group["completions"], given), key=lambda pair: -pair[0]["reward"])
    for c, answer in best_first:
        lines.append(row(f"{c['reward']:6.2f}  {c['advantage']:+9.2f}", answer))
    return "\n".join(lines)


def example_text(group):
    """A group of rollouts.jsonl as arithmetic: each answer's rewards, its advantage, and its
    log-prob before and after the step.

    The last line says the mean and the standard deviation, so that each advantage can be worked out
    by hand: (reward − mean) / (std + 1e-4), and without the division where the run had --loss
    dr_grpo.
    """
    completions = group["completions"]
    r = np.array([c["reward"] for c in completions])
    parts = " + ".join(completions[0]["rewards"])
    lines = [
        f"step {group['step']}: {asked(group['prompt'])}",
        f"the truth: {true_answer(group['answer'])['words']}",
        "",
        f"  {parts} = reward   advantage    log-prob: before → after   answer",
    ]
    for c in completions:
        parts = " + ".join(f"{v:.2f}" for v in c["rewards"].values())
        change = ""
        if "logp" in c:
            before, difference = sum(c["logp"]), sum(c["logp_change"])
            change = f"{before:8.2f} → {before + difference:7.2f} ({difference:+.2f})"
        answer = shorten(given_answer(c["text"], group["answer"])["words"], 70)
        lines.append(
            f"  {parts} = {c['reward']:.2f}   {c['advantage']:+9.2f}   {change}   {answer}"
        )
    lines += [
        "",
        f"mean {r.mean():.3f}, standard deviation {r.std(ddof=1):.3f}; "
        f"over these {len(r)} answers the advantages add up to 0",
    ]
    return "\n".join(lines)


def shorten(text, width):
    return text if len(text) <= width else text[: width - 1] + "…"


# ------------------------------------------------------------------------------------------------
# Curves
# ------------------------------------------------------------------------------------------------

EXPLAINED = {
    "reward": "reward (sum of the parts)",
    "spread": "spread of rewards within a group",
    "no_spread": "share of groups without spread",
    "kl": "KL to the reference policy (nats per token)",
    "entropy": "entropy (nats per token)",
    "length": "tokens per completion",
    "grad_norm": "gradient norm",
    "loss": "loss",
}


def curves_of(lines):
    """[(name, title, steps, values)] of what a run's metrics say, rewards first."""
    parts = sorted({k for line in lines for k in line if k.startswith("reward/")})
    names = ["loss", "grad_norm"]  # SFT
    if parts:
        names = parts + [k for k in EXPLAINED if k in lines[0] and k != "loss"]
    curves = []
    for name in names:
        mean = f"mean {name.removeprefix('reward/').replace('/', ' ')} reward"
        has = [x for x in lines if x.get(name) is not None]  # a step may lack prompts of a task
        steps, values = [x["step"] for x in has], [float(x[name]) for x in has]
        curves.append((name, EXPLAINED.get(name, mean), steps, values))
    return curves


def draw_curves(folder, lines, settings):
    """{folder}/curves.png: each quantity of a run's metrics over its steps, the values pale and
    their running mean dark.

    Args:    lines: those of metrics.jsonl, as dictionaries; settings: those of settings.json.
    """
    curves = curves_of(lines)
    columns = 3 if len(curves) > 2 else 2
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for axis, (name, title, steps, values) in zip(axes.flat, curves):
        colour = "tab:green" if name.startswith("reward") else "tab:blue"
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axis.plot(steps, running_mean(values), color=colour, linewidth=2)
        axis.set_title(title, fontsize=10)
        fit_axis(axis, name, steps, values)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    title = "{} on {data_name}, from {model_name}, seed {seed}"
    figure.suptitle(title.format(settings["method"].upper(), **settings), fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    plt.close(figure)
    replace_file(os.path.join(folder, "curves.png"), png.getvalue())


def fit_axis(axis, name, steps, values):
    """Dresses a curve's axis. A spike above its top is a mark there."""
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if is_share(name):
        axis.set_ylim(-0.02, 1.02)
        return
    top = axis_top(values)
    above = [step for step, value in zip(steps, values) if value > top]
    if above:
        bottom = np.nanmin(values)
        axis.set_ylim(bottom - 0.04 * (top - bottom), top)
        axis.plot(above, [top] * len(above), "^", color="tab:red", markersize=5, clip_on=False)


def axis_top(values):
    """Where the axis of a curve ends: at its largest value, unless that towers over the others. A
    single spike would press all the rest flat, so then it ends half as far again as 98 % of them.

    >>> axis_top([0.0, 0.1, 0.2] * 10 + [9.0])
    0.3
    >>> axis_top([0.0, 0.1, 0.2] * 10 + [0.3])
    0.3
    """
    values = [v for v in values if np.isfinite(v)] or [0.0]
    lowest, largest = min(values), max(values)
    usual = float(np.quantile(values, 0.98, method="lower")) - lowest
    towers = len(values) >= 20 and usual > 0 and largest - lowest > 3 * usual
    return round(lowest + 1.5 * usual, 12) if towers else largest


def running_mean(values):
    """At each step the mean of the values up to it: of the last len(values) // 15, or of all where
    there are fewer."""
    window = max(1, len(values) // 15)
    total = np.cumsum(np.insert(np.array(values, dtype=float), 0, 0.0))
    low = np.maximum(0, np.arange(len(values)) + 1 - window)
    return (total[1:] - total[low]) / (np.arange(len(values)) + 1 - low)


def is_share(name):
    return name.startswith("reward/") or name == "no_spread"
