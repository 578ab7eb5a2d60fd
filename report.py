"""report.py: what a run looks like: a page to click through, its curves, and one group as text.

    python report.py runs/demo           # runs/demo/report.html and curves.png, from what the run has left so far
    python report.py runs/demo 1         # the group of step 1 in numbers: rewards → advantages → what the step did to each answer

The page is one file that asks nothing of the network: report.html beside this file, with the run's numbers and
small pictures of its clips put in as JSON. It may be made while the run is going; a long run is thinned out.
"""

import argparse
import base64
import glob
import io
import json
import math
import os
import re
import sys
import textwrap

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update({"text.parse_math": False, "text.usetex": False})  # a "$" in a question or a path is a dollar
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import rewards
from data import VideoBudget, read_frames
from errors import NUMBER, BadInput, first_line, read_object, run_program, wrong_key
from folders import kind_of, read_lines

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
MOST_GROUPS, MOST_POINTS, MOST_BYTES = 60, 400, 9_000_000  # of the page: steps to choose from, points of a curve, size
HELD_OUT_CLIPS = 6  # of an evaluation
THUMBNAILS = VideoBudget(fps=1000, max_frames=8, min_frame_pixels=28 * 28, max_frame_pixels=28 * 28 * 32)  # 8 frames of any clip

# ------------------------------------------------------------------------------------------------
# Reading what a run has left
# ------------------------------------------------------------------------------------------------


DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def usable(use, record, path):
    """use(record), or None where a record that can be read is still not what a run writes; says so."""
    try:
        return use(record)
    except DAMAGED as e:
        what = record.get("step", record.get("id", "?"))
        print(f"{path}: the record of {what} is damaged ({type(e).__name__}: {first_line(e)}) and left out", file=sys.stderr)
        return None


def read_metrics(folder):
    """The lines of metrics.jsonl whose values are numbers, or None where a step had none."""

    def checked(line):
        values = {k: v for k, v in line.items() if v is not None and k != "seconds"}
        if wrong := wrong_key({k: 0 if v != v else v for k, v in values.items()}, dict.fromkeys(values, NUMBER)):
            raise ValueError(wrong)
        return line

    path = os.path.join(folder, "metrics.jsonl")
    lines = [usable(checked, line, path) for line in read_lines(path, step=int)]
    return [line for line in lines if line]


def asked(prompt):
    """The question in a prompt: the user's words without the last line, which describes the form of the answer."""
    words = prompt.split("<|vision_end|>")[-1].split("<|im_end|>")[0]
    return words.rpartition("\n")[0] or words


def duration_of(prompt, truth):
    """Seconds that the clip lasts, as the prompt says; where it does not, up to where the true answer ends."""
    said = re.search(r"The video lasts ([0-9.]+) seconds", prompt)
    return float(said[1]) if said else max((end for _, end in truth["intervals"]), default=0.0)


def true_answer(answer):
    """An annotated answer as {"words", "intervals", "boxes"}: what can be said of it, and what drawn. Its shape tells its task.

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
    """The same of a completion, read by the rules that pay for it; all of its text where it has no answer.

    >>> given_answer("<answer>B</answer><glue>[(5.2, 10.4)]</glue>", ["C", [[1.0, 2.0]]])
    {'words': 'B [(5.2, 10.4)]', 'intervals': [(5.2, 10.4)], 'boxes': []}
    """
    said, glue = rewards.inside(text, "answer"), rewards.inside(text, "glue")
    lettered = not isinstance(answer, (list, tuple)) or isinstance(answer[0], str)  # then seconds count as evidence alone, else as the answer alone
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
    """A group as train.py shows it: the question, then true and given answers on a time axis, the best first.

    Args:    group: a record of rollouts.jsonl; width in characters. Returns lines that are no wider.
    """
    truth, given = true_answer(group["answer"]), [given_answer(c["text"], group["answer"]) for c in group["completions"]]
    duration = duration_of(group["prompt"], truth)
    cells = max(10, width - 46) if truth["intervals"] and duration else 0

    def row(label, answer):
        bar = ["·"] * cells
        for start, end in answer["intervals"] if cells else []:
            first, last = round(start / duration * cells), round(end / duration * cells)
            for k in range(first, min(cells, max(last, first + (start <= end)))):  # one cell at least, but none if it is reversed
                bar[k] = "█"
        words = "".join(c if c.isprintable() else " " for c in answer["words"])  # a control character could garble the terminal
        return shorten(f"{label:17}  {''.join(bar)}{'  ' * bool(cells)}{words}".rstrip(), width)

    lines = textwrap.wrap(f"step {step}: {asked(group['prompt'])}", width) + [row("reward  advantage", truth | {"words": f"true: {truth['words']}"})]
    best_first = sorted(zip(group["completions"], given), key=lambda pair: -pair[0]["reward"])
    return "\n".join(lines + [row(f"{c['reward']:6.2f}  {c['advantage']:+9.2f}", answer) for c, answer in best_first])


def example_text(group):
    """A group of rollouts.jsonl as arithmetic: each answer's rewards, its advantage, and its log-prob before and after the step.

    The last line says the mean and the standard deviation, so that each advantage can be worked out by hand:
    (reward − mean) / (std + 1e-4), and without the division where the run had --loss dr_grpo.
    """
    completions = group["completions"]
    r = np.array([c["reward"] for c in completions])
    lines = [f"step {group['step']}: {asked(group['prompt'])}", f"the truth: {true_answer(group['answer'])['words']}", ""]
    lines += ["  " + " + ".join(completions[0]["rewards"]) + " = reward   advantage    log-prob: before → after   answer"]
    for c in completions:
        parts = " + ".join(f"{v:.2f}" for v in c["rewards"].values())
        change = f"{sum(c['logp']):8.2f} → {sum(c['logp']) + sum(c['logp_change']):7.2f} ({sum(c['logp_change']):+.2f})" if "logp" in c else ""
        lines.append(f"  {parts} = {c['reward']:.2f}   {c['advantage']:+9.2f}   {change}   {shorten(given_answer(c['text'], group['answer'])['words'], 70)}")
    return "\n".join([*lines, "", f"mean {r.mean():.3f}, standard deviation {r.std(ddof=1):.3f}; over these {len(r)} answers the advantages add up to 0"])


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
    names = parts + [k for k in explained if k in lines[0] and k != "loss"] if parts else ["loss", "grad_norm"]
    titles = [explained.get(name, f"mean {name.removeprefix('reward/').replace('/', ' ')} reward") for name in names]
    found = [[line for line in lines if line.get(name) is not None] for name in names]  # not every step has prompts of every task
    return [(name, title, [x["step"] for x in has], [float(x[name]) for x in has]) for name, title, has in zip(names, titles, found)]


def draw_curves(folder, lines, settings):
    """{folder}/curves.png: each quantity of a run's metrics over its steps, pale as it was, dark as a running mean.

    Args:    lines: those of metrics.jsonl, as dictionaries; settings: those of settings.json.
    """
    curves = curves_of(lines)
    columns = 3 if len(curves) > 2 else 2
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.7 * rows), squeeze=False, layout="constrained")
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
    for axis in axes.flat[len(curves):]:
        axis.axis("off")
    figure.suptitle("{} on {data_name}, from {model_name}, seed {seed}".format(settings["method"].upper(), **settings), fontsize=11)
    path, partial = os.path.join(folder, "curves.png"), os.path.join(folder, "curves.partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    os.replace(partial, path)


def running_mean(values):
    """At each step the mean of the values up to it: of the last len(values) // 15, or of all where there are fewer."""
    window = max(1, len(values) // 15)
    total = np.cumsum(np.insert(np.array(values, dtype=float), 0, 0.0))
    low = np.maximum(0, np.arange(len(values)) + 1 - window)
    return (total[1:] - total[low]) / (np.arange(len(values)) + 1 - low)


def is_share(name):
    return name.startswith("reward/") or name == "no_spread"


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def evenly(items, most):
    """At most so many of them, evenly spaced, with the first and the last."""
    return items if len(items) <= most else [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def thumbnails(video):
    """{"duration", "frames": [{"at": seconds, "src": a JPEG as data URI}]} of a clip; None where it cannot be read here."""
    try:
        frames = read_frames(video, THUMBNAILS)
    except BadInput:
        return None
    shown = []
    for at, pixels in zip(frames.times, frames.pixels):
        Image.fromarray(pixels.numpy()).save(jpeg := io.BytesIO(), "JPEG", quality=70)
        shown.append({"at": float(at), "src": "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()})
    return {"duration": frames.duration, "frames": shown}


GROUP = {"step": int, "prompt": str, "video": str, "completions": list}  # a record of rollouts.jsonl


def page_group(group):
    """A record of rollouts.jsonl as the page takes it, completions from best to worst."""
    truth = true_answer(group["answer"])
    completions = [c | {"number": i + 1, "given": given_answer(c["text"], group["answer"])} for i, c in enumerate(group["completions"])]
    return {
        "step": group["step"], "question": asked(group["prompt"]), "clip": group["video"], "duration": duration_of(group["prompt"], truth),
        "truth": truth, "completions": sorted(completions, key=lambda c: -c["reward"]),
    }  # fmt: skip


def held_out(folder, settings):
    """The run's finished evaluations, each beside that of the model it started from where there is one made alike."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "eval-*", "results.json"))):
        try:
            found.append(one_evaluation(folder, os.path.dirname(path), settings))
        except BadInput as e:
            print(f"left out: {e}", file=sys.stderr)
        except DAMAGED as e:
            print(f"left out: {path} is damaged ({type(e).__name__}: {first_line(e)})", file=sys.stderr)
    return found


def read_results(folder):
    """(settings, metrics) of an evaluation's results.json. Raises BadInput if it is damaged."""
    path = os.path.join(folder, "results.json")
    results = read_object(path, settings=dict, metrics=dict)
    if wrong := wrong_key(results["metrics"], dict.fromkeys(results["metrics"], NUMBER)):
        raise BadInput(f"{path} is damaged: {wrong}")
    return results["settings"], results["metrics"]


def one_evaluation(folder, path, settings):
    """One of held_out's. path: the evaluation's folder. Raises BadInput or one of DAMAGED if it is damaged."""
    name, base = os.path.basename(path), os.path.basename(os.path.normpath(settings["model"]))
    made, after = read_results(path)
    # eval.py puts the evaluations of a model that is no run into runs/eval: that beside this run, or the one here.
    places = [os.path.join(runs, "eval", base, name) for runs in (os.path.dirname(os.path.abspath(folder)), "runs")]
    place, before, earlier = next(filter(os.path.isdir, places), places[0]), {}, {}
    if os.path.exists(os.path.join(place, "results.json")):
        made_before, metrics = read_results(place)
        if all(made_before.get(k) == v for k, v in made.items() if k in ("questions", "think", "video_budget")):
            before = metrics
            earlier = {r["id"]: r for r in read_lines(os.path.join(place, "predictions.jsonl"), id=str, text=str)}

    def clip(r):
        return {
            "question": r["question"], "clip": r["video"], "truth": true_answer(r["answer"]), "after": given_answer(r["text"], r["answer"]),
            "before": given_answer(earlier[r["id"]]["text"], r["answer"]) if r["id"] in earlier else None}  # fmt: skip

    predictions = os.path.join(path, "predictions.jsonl")
    records = read_lines(predictions, id=str, text=str, video=str, question=str)[:HELD_OUT_CLIPS] if "-blind" not in name else []
    clips = [usable(clip, r, predictions) for r in records]
    return {
        "name": name.removeprefix("eval-"), "toy": "toy" in made["data_name"] + made["model_name"],
        "metrics": [[m, before.get(m), value] for m, value in after.items()],
        "clips": [c for c in clips if c],
    }  # fmt: skip


def tidy(x):
    """For the page: floats of 6 significant digits (a difference of rounded figures would be off by a tenth), and null for what JSON cannot say (NaN)."""
    if isinstance(x, dict):
        return {k: tidy(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [tidy(v) for v in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x


def write_page(folder, lines, settings):
    """{folder}/report.html. Fewer groups are shown until it is small enough to be sent by mail."""
    path = os.path.join(folder, "rollouts.jsonl")
    rollouts = [group for record in read_lines(path, **GROUP) if (group := usable(page_group, record, path))]
    evaluations, pictures = held_out(folder, settings), {}
    with open(TEMPLATE, encoding="utf-8") as f:
        template = f.read()
    most = MOST_GROUPS
    while True:
        groups = evenly(rollouts, most) if most else []
        clips = {shown["clip"] for shown in groups + [c for e in evaluations for c in e["clips"]]}
        pictures |= {clip: thumbnails(clip) for clip in clips - set(pictures)}
        content = {
            "title": "{} on {data_name}".format(settings["method"].upper(), **settings),
            "about": "From {model_name}, seed {seed}. {} of {steps} steps so far.".format(lines[-1]["step"], **settings),
            "toy": "toy" in settings["data_name"] + settings["model_name"], "recorded": len(rollouts), "settings": settings,
            "curves": [{"title": title, "share": is_share(name), "points": evenly(list(zip(steps, values, running_mean(values).tolist())), MOST_POINTS)}
                       for name, title, steps, values in curves_of(lines)],
            "groups": groups, "clips": {clip: pictures[clip] for clip in clips}, "heldOut": evaluations,
        }  # fmt: skip
        # Inside <script> only "<" could end the JSON early, and JSON can say it otherwise.
        page = template.replace("RUN_DATA", json.dumps(tidy(content), allow_nan=False).replace("<", "\\u003c"))
        if len(page) < MOST_BYTES or most == 0:
            break
        most //= 2
    path = os.path.join(folder, "report.html")
    with open(path + ".partial", "w", encoding="utf-8") as f:
        f.write(page)
    os.replace(path + ".partial", path)
    return path


NEEDED = {"method": str, "data_name": str, "model_name": str, "model": str, "seed": int, "steps": int}


def start():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("run", help="folder of a run of train.py")
    p.add_argument("step", nargs="?", type=int, help="print the group of that step in numbers, and make no page")
    args = p.parse_args()
    if args.step is not None:
        return print_group(args.run, args.step)
    if not os.path.isdir(args.run) or kind_of(args.run) in (None, "evaluation"):
        raise BadInput(f"{args.run} is not a run folder of train.py")
    try:
        settings = read_object(os.path.join(args.run, "settings.json"), **NEEDED)
    except BadInput as e:
        raise BadInput(f"{args.run} is not a run folder of train.py: {e}") from e
    lines = read_metrics(args.run)
    if not lines:
        raise BadInput(f"{args.run} is not a run folder of train.py with at least one step in it: metrics.jsonl has none")
    failed = []
    for work in (lambda: draw_curves(args.run, lines, settings), lambda: print(f"wrote {write_page(args.run, lines, settings)}: open it in a browser")):
        try:
            work()
        except OSError as e:
            failed.append(f"{e.filename or args.run}: {e.strerror}")
    if failed:
        raise BadInput(f"could not be written: {'; '.join(failed)}")


def print_group(folder, step):
    path = os.path.join(folder, "rollouts.jsonl")
    groups = {g["step"]: g for g in read_lines(path, **GROUP)}
    if step not in groups:
        raise BadInput(f"{folder} has no group of step {step}; it has some of: {', '.join(map(str, list(groups)[:20])) or 'none'}")
    text = usable(example_text, groups[step], path)
    if text is None:
        raise BadInput(f"the group of step {step} in {path} is damaged")
    print(text)


def main():
    run_program(start)


if __name__ == "__main__":
    main()
