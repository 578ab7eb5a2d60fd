"""shown.py: what a run shows of itself: a group as text in the terminal, and its curves."""

import os
import re

import numpy as np

import rewards
from lib.figures import plt, save

# ------------------------------------------------------------------------------------------------
# One group: question, truth and answers
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


def group_text(step, group, width=79):
    """A group as train.py shows it: the question, the truth, and the answers, the best first.

    group: a record of rollouts.jsonl; width: of the longest line, in characters.
    """
    lines = [
        f"step {step}: {asked(group['prompt'])}",
        f"reward  advantage  true: {true_answer(group['answer'])['words']}",
    ]
    for c in sorted(group["completions"], key=lambda c: -c["reward"]):
        words = given_answer(c["text"], group["answer"])["words"]
        lines.append(f"{c['reward']:6.2f}  {c['advantage']:+9.2f}  {words}")
    # A control character could garble the terminal.
    shown = ("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return "\n".join(shorten(line, width) for line in shown)


def shorten(text, width):
    """A text of at most `width` characters."""
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
    """{folder}/curves.png: each quantity over the steps, its values pale, their running mean dark.

    lines: of metrics.jsonl; settings: those of settings.json.
    """
    curves = curves_of(lines)
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    size = (4.2 * columns, 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
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
    save(figure, os.path.join(folder, "curves.png"))


def fit_axis(axis, name, steps, values):
    """Dresses a curve's axis. A spike above its top is a mark there."""
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if is_share(name):
        axis.set_ylim(-0.02, 1.02)
        return
    top, bottom = axis_top(values), min(filter(np.isfinite, values), default=0.0)
    if above := [step for step, value in zip(steps, values) if value > top]:
        axis.set_ylim(bottom - 0.04 * (top - bottom), top)
        axis.plot(above, [top] * len(above), "^", color="tab:red", markersize=5, clip_on=False)


def axis_top(values):
    """Where a curve's axis ends: at its largest value, or, where a spike would press all the rest
    flat, half as far again as 98 % of the values.

    >>> axis_top([0.0, 0.1, 0.2] * 10 + [9.0])
    0.3
    >>> axis_top([0.0, 0.1, 0.2] * 10 + [0.3])
    0.3
    """
    values = [v for v in values if np.isfinite(v)] or [0.0]
    lowest, largest = min(values), max(values)
    usual = float(np.quantile(values, 0.98, method="lower")) - lowest
    towers = len(values) >= 20 and largest - lowest > 3 * usual > 0
    return round(lowest + 1.5 * usual, 12) if towers else largest


def running_mean(values):
    """At each step the mean of the last n // 15 of n values, or of all where there are fewer."""
    window = max(1, len(values) // 15)
    total = np.cumsum(np.insert(np.array(values, dtype=float), 0, 0.0))
    low = np.maximum(0, np.arange(len(values)) + 1 - window)
    return (total[1:] - total[low]) / (np.arange(len(values)) + 1 - low)


def is_share(name):
    """Whether a metric lies in 0 to 1."""
    return name.startswith("reward/") or name == "no_spread"
