"""shown.py: what a run shows of itself: a group as text in the terminal, and its curves."""

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

# ------------------------------------------------------------------------------------------------
# Question and answers
# ------------------------------------------------------------------------------------------------


def asked(prompt):
    """The question in a prompt: the user's words without the last line, which describes the form of
    the answer."""
    words = prompt.split("<|vision_end|>")[-1].split("<|im_end|>")[0]
    return words.rpartition("\n")[0] or words


def duration_of(prompt, truth):
    """Seconds that the clip lasts, as the prompt says; where it does not, up to where the true
    answer ends."""
    said = re.search(r"The video lasts ([0-9.]+) seconds", prompt)
    return float(said[1]) if said else max((end for _, end in truth["intervals"]), default=0.0)


def true_answer(answer):
    """An annotated answer as {"words", "intervals", "boxes"}: what can be said of it, and what
    drawn. Its shape tells its task.

    >>> true_answer((2.0, 9.7))
    {'words': '2.0 to 9.7', 'intervals': [(2.0, 9.7)], 'boxes': []}
    """
    words, intervals, boxes = "", [], []
    if not isinstance(answer, (list, tuple)):
        words = str(answer)
    elif all(isinstance(part, str) for part in answer):  # a caption's events
        words = ". ".join(answer)
    elif isinstance(answer[0], str):
        intervals = answer[1]
        words = " ".join([answer[0], *(f"({start:.1f}, {end:.1f})" for start, end in intervals)])
    elif isinstance(answer[0], (list, tuple)):
        words, boxes = f"{len(answer)} boxes", answer
    else:
        words, intervals = f"{answer[0]:.1f} to {answer[1]:.1f}", [answer]
    return {"words": words, "intervals": intervals, "boxes": boxes}


def given_answer(text, answer):
    """The same of a completion, read by the rules that pay for it; all of its text where it has no
    answer.

    >>> given_answer("<answer>B</answer><glue>[(5.2, 10.4)]</glue>", ["C", [[1.0, 2.0]]])
    {'words': 'B [(5.2, 10.4)]', 'intervals': [(5.2, 10.4)], 'boxes': []}
    """
    said, glue = rewards.inside(text, "answer"), rewards.inside(text, "glue")
    lettered = not isinstance(answer, (list, tuple)) or isinstance(
        answer[0], str
    )  # then seconds count as evidence alone, else as the answer alone
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

    Args:    group: a record of rollouts.jsonl; width in characters. Returns lines that are no
             wider.
    """
    truth, given = (
        true_answer(group["answer"]),
        [given_answer(c["text"], group["answer"]) for c in group["completions"]],
    )
    duration = duration_of(group["prompt"], truth)
    cells = max(10, width - 46) if truth["intervals"] and duration else 0

    def row(label, answer):
        bar = ["·"] * cells
        for start, end in answer["intervals"] if cells else []:
            first, last = round(start / duration * cells), round(end / duration * cells)
            for k in range(
                first, min(cells, max(last, first + (start <= end)))
            ):  # one cell at least, but none if it is reversed
                bar[k] = "█"
        words = "".join(
            c if c.isprintable() else " " for c in answer["words"]
        )  # a control character could garble the terminal
        return shorten(f"{label:17}  {''.join(bar)}{'  ' * bool(cells)}{words}".rstrip(), width)

    lines = textwrap.wrap(f"step {step}: {asked(group['prompt'])}", width) + [
        row("reward  advantage", truth | {"words": f"true: {truth['words']}"})
    ]
    best_first = sorted(zip(group["completions"], given), key=lambda pair: -pair[0]["reward"])
    return "\n".join(
        lines
        + [row(f"{c['reward']:6.2f}  {c['advantage']:+9.2f}", answer) for c, answer in best_first]
    )


def example_text(group):
    """A group of rollouts.jsonl as arithmetic: each answer's rewards, its advantage, and its
    log-prob before and after the step.

    The last line says the mean and the standard deviation, so that each advantage can be worked out
    by hand: (reward − mean) / (std + 1e-4), and without the division where the run had --loss
    dr_grpo.
    """
    completions = group["completions"]
    r = np.array([c["reward"] for c in completions])
    lines = [
        f"step {group['step']}: {asked(group['prompt'])}",
        f"the truth: {true_answer(group['answer'])['words']}",
        "",
    ]
    lines += [
        "  "
        + " + ".join(completions[0]["rewards"])
        + " = reward   advantage    log-prob: before → after   answer"
    ]
    for c in completions:
        parts = " + ".join(f"{v:.2f}" for v in c["rewards"].values())
        change = (
            f"{sum(c['logp']):8.2f} → {sum(c['logp']) + sum(c['logp_change']):7.2f} ({sum(c['logp_change']):+.2f})"
            if "logp" in c
            else ""
        )
        lines.append(
            f"  {parts} = {c['reward']:.2f}   {c['advantage']:+9.2f}   {change}   {shorten(given_answer(c['text'], group['answer'])['words'], 70)}"
        )
    return "\n".join([
        *lines,
        "",
        f"mean {r.mean():.3f}, standard deviation {r.std(ddof=1):.3f}; over these {len(r)} answers the advantages add up to 0",
    ])


def shorten(text, width):
    return text if len(text) <= width else text[: width - 1] + "…"


# ------------------------------------------------------------------------------------------------
# Curves
# ------------------------------------------------------------------------------------------------


def curves_of(lines):
    """[(name, title, steps, values)] of what a run's metrics say, rewards first."""
    explained = {
        "reward": "reward (sum of the parts)", "spread": "spread of rewards within a group", "no_spread": "share of groups without spread",
        "kl": "KL to the reference policy (nats per token)", "entropy": "entropy (nats per token)", "length": "tokens per completion",
        "grad_norm": "gradient norm", "loss": "loss",
    }  # fmt: skip
    parts = sorted({k for line in lines for k in line if k.startswith("reward/")})
    names = (
        parts + [k for k in explained if k in lines[0] and k != "loss"]
        if parts
        else ["loss", "grad_norm"]
    )
    titles = [
        explained.get(name, f"mean {name.removeprefix('reward/').replace('/', ' ')} reward")
        for name in names
    ]
    found = [
        [line for line in lines if line.get(name) is not None] for name in names
    ]  # not every step has prompts of every task
    return [
        (name, title, [x["step"] for x in has], [float(x[name]) for x in has])
        for name, title, has in zip(names, titles, found)
    ]


def draw_curves(folder, lines, settings):
    """{folder}/curves.png: each quantity of a run's metrics over its steps, pale as it was, dark as
    a running mean.

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
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if is_share(name):
            axis.set_ylim(-0.02, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    figure.suptitle(
        "{} on {data_name}, from {model_name}, seed {seed}".format(
            settings["method"].upper(), **settings
        ),
        fontsize=11,
    )
    path, partial = os.path.join(folder, "curves.png"), os.path.join(folder, "curves.partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    os.replace(partial, path)


def running_mean(values):
    """At each step the mean of the values up to it: of the last len(values) // 15, or of all where
    there are fewer."""
    window = max(1, len(values) // 15)
    total = np.cumsum(np.insert(np.array(values, dtype=float), 0, 0.0))
    low = np.maximum(0, np.arange(len(values)) + 1 - window)
    return (total[1:] - total[low]) / (np.arange(len(values)) + 1 - low)


def is_share(name):
    return name.startswith("reward/") or name == "no_spread"
