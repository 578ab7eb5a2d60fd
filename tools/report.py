"""report.py: what a run looks like: a page to click through, its curves, and one group as text.

    python -m tools.report runs/demo      # writes runs/demo/report.html and curves.png
    python -m tools.report runs/demo 1    # prints the group of step 1 in numbers

The numbers of a group are its rewards, its advantages, and what the step did to each answer. The
page is one file that asks nothing of the network: report.html beside this file, with the run's
numbers and small pictures of its clips put in as JSON. It can be made while the run is going on;
a long run is thinned out.
"""

import argparse
import base64
import glob
import io
import json
import math
import os
import sys
from itertools import chain

import numpy as np
from PIL import Image

from annotations.training_sets import even_frames
from data import VideoBudget, read_frames
from lib.errors import NUMBER, BadInput, first_line, read_object, run_program, wrong_key
from lib.files import kind_of, read_lines, replace_file
from lib.video import numbered_pictures
from training.shown import (
    asked,
    axis_top,
    curves_of,
    draw_curves,
    duration_of,
    example_text,
    given_answer,
    is_share,
    running_mean,
    shorten,
    true_answer,
)

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
MOST_GROUPS = 60  # steps to choose from on the page
MOST_LOOKS = 60  # at the fixed prompts
MOST_POINTS = 400  # of a curve
MOST_BYTES = 9_000_000  # of the page
HELD_OUT_CLIPS = 6  # of an evaluation
# 8 frames of any clip.
THUMBNAILS = VideoBudget(
    fps=1000, max_frames=8, min_frame_pixels=28 * 28, max_frame_pixels=28 * 28 * 32
)

# ------------------------------------------------------------------------------------------------
# Reading what a run has left
# ------------------------------------------------------------------------------------------------


DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)


def usable(use, record, path):
    """use(record), or None and a message if the record is JSON but not what a run writes."""
    try:
        return use(record)
    except DAMAGED as e:
        what = record.get("step", record.get("id", "?"))
        why = f"{type(e).__name__}: {first_line(e)}"
        print(f"{path}: the record of {what} is damaged ({why}) and left out", file=sys.stderr)
        return None


def read_metrics(folder):
    """The lines of metrics.jsonl whose values are numbers, or None where a step had none."""

    def checked(line):
        values = {k: v for k, v in line.items() if v is not None and k != "seconds"}
        for name, value in values.items():
            if isinstance(value, float) and math.isnan(value):
                values[name] = 0  # a metric may be NaN
        if wrong := wrong_key(values, dict.fromkeys(values, NUMBER)):
            raise ValueError(wrong)
        return line

    path = os.path.join(folder, "metrics.jsonl")
    lines = [usable(checked, line, path) for line in read_lines(path, step=int)]
    return [line for line in lines if line]


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def evenly(items, most):
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def thumbnails(video):
    """{"duration", "frames": [{"at": seconds, "src": a JPEG as data URI}]} of a clip.

    None if the clip cannot be read here.
    """
    try:
        # of a folder of pictures those that tracking asks about, so that boxes and pictures agree
        tracked = even_frames(len(numbered_pictures(video))) if os.path.isdir(video) else ()
        frames = read_frames(video, THUMBNAILS, frames=tracked)
    except BadInput:
        return None
    shown = []
    for at, pixels in zip(frames.times, frames.pixels):
        Image.fromarray(pixels.numpy()).save(jpeg := io.BytesIO(), "JPEG", quality=70)
        encoded = base64.b64encode(jpeg.getvalue()).decode()
        shown.append({"at": float(at), "src": f"data:image/jpeg;base64,{encoded}"})
    return {"duration": frames.duration, "frames": shown}


# What a record of rollouts.jsonl must have.
GROUP = {"step": int, "prompt": str, "video": str, "completions": list}


# And one of samples.jsonl.
SAMPLE = GROUP | {"number": int}


def page_prompt(record):
    """The prompt of a record as the page takes it."""
    truth = true_answer(record["answer"])
    return {
        "step": record["step"],
        "question": asked(record["prompt"]),
        "clip": record["video"],
        "duration": duration_of(record["prompt"], truth),
        "truth": truth,
    }


def page_group(group):
    """A record of rollouts.jsonl as the page takes it, completions from best to worst."""
    completions = [
        c | {"number": i + 1, "given": given_answer(c["text"], group["answer"])}
        for i, c in enumerate(group["completions"])
    ]
    rewards = np.array([c["reward"] for c in completions])
    return page_prompt(group) | {
        "completions": sorted(completions, key=lambda c: -c["reward"]),
        "mean": float(rewards.mean()),
        "std": float(rewards.std(ddof=1)),
        "moved": moved(completions),
    }


def moved(completions):
    """[how many moved as their advantage asked, of how many]: likelier by the step where it is
    positive, less likely where it is negative. One of advantage 0 was asked nothing."""
    asked = [c for c in completions if c["advantage"]]
    return [sum(sum(c["logp_change"]) * c["advantage"] > 0 for c in asked), len(asked)]


def most_instructive(groups):
    """The step of the group that the page opens on: the one whose rewards differ most. None where
    no group has been recorded."""
    best = max(groups, key=lambda g: g["std"], default=None)
    return best and best["step"]


def page_sample(record):
    """A record of samples.jsonl as the page takes it."""

    def answer(c):
        given = given_answer(c["text"], record["answer"])
        return {"reward": c["reward"], "given": given | {"words": shorten(given["words"], 200)}}

    answers = [answer(c) for c in record["completions"]]
    mean = sum(c["reward"] for c in answers) / len(answers)
    return page_prompt(record) | {"number": record["number"], "answers": answers, "mean": mean}


def read_records(folder, name, types, use):
    """The usable records of a log of a run's, as the page takes them."""
    path = os.path.join(folder, name)
    records = [usable(use, record, path) for record in read_lines(path, **types)]
    return [record for record in records if record]


def page_looks(folder):
    """samples.jsonl: a list per step that was looked at, of what its prompts were answered."""
    by_step = {}
    for sample in read_records(folder, "samples.jsonl", SAMPLE, page_sample):
        by_step.setdefault(sample["step"], []).append(sample)
    looks = [sorted(by_step[step], key=lambda s: s["number"]) for step in sorted(by_step)]
    return evenly(looks, MOST_LOOKS)


def held_out(folder, settings):
    """The run's finished evaluations, each beside the base model's if there is a comparable one."""
    evaluations = []  # without those that were renamed to eval-….old-1
    for path in sorted(
        glob.glob(os.path.join(glob.escape(folder), "eval-*[!0-9]", "results.json"))
    ):
        try:
            evaluations.append(one_evaluation(folder, os.path.dirname(path), settings))
        except BadInput as e:
            print(f"left out: {e}", file=sys.stderr)
        except DAMAGED as e:
            why = f"{type(e).__name__}: {first_line(e)}"
            print(f"left out: {path} is damaged ({why})", file=sys.stderr)
    return evaluations


def read_results(folder):
    """(settings, metrics) of an evaluation's results.json. Raises BadInput if it is damaged."""
    path = os.path.join(folder, "results.json")
    results = read_object(path, settings=dict, metrics=dict)
    if wrong := wrong_key(results["metrics"], dict.fromkeys(results["metrics"], NUMBER)):
        raise BadInput(f"{path} is damaged: {wrong}")
    return results["settings"], results["metrics"]


def evaluated_before(folder, name, settings, made):
    """(metrics, {id: prediction}) of the model that the run started from, in the same evaluation.

    name: of the evaluation's folder; made: the settings of the run's own. Both are empty if there
    is none that was made with the same settings.
    """
    base = os.path.basename(os.path.normpath(settings["model"]))
    # eval.py puts the evaluations of a model that is no run into runs/eval: the one beside this
    # run, or the one in the working directory.
    beside = os.path.dirname(os.path.abspath(folder))
    places = [os.path.join(runs, "eval", base, name) for runs in (beside, "runs")]
    place = next(filter(os.path.isdir, places), places[0])
    if not os.path.exists(os.path.join(place, "results.json")):
        return {}, {}
    made_before, metrics = read_results(place)
    must_agree = [k for k in made if k in ("questions", "think", "video_budget")]
    if any(made_before.get(k) != made[k] for k in must_agree):
        return {}, {}
    predictions = read_lines(os.path.join(place, "predictions.jsonl"), id=str, text=str)
    return metrics, {r["id"]: r for r in predictions}


def one_evaluation(folder, path, settings):
    """One evaluation of a run, for the page.

    path: the evaluation's folder. Raises BadInput or one of DAMAGED if it is damaged.
    """
    name = os.path.basename(path)
    made, after = read_results(path)
    before, earlier = evaluated_before(folder, name, settings, made)

    def clip(r):
        answer, said_before = r["answer"], earlier.get(r["id"])
        return {
            "question": r["question"],
            "clip": r["video"],
            "truth": true_answer(answer),
            "after": given_answer(r["text"], answer),
            "before": said_before and given_answer(said_before["text"], answer),
        }

    records, predictions = [], os.path.join(path, "predictions.jsonl")
    if "-blind" not in name:
        records = read_lines(predictions, id=str, text=str, video=str, question=str)
    clips = [usable(clip, r, predictions) for r in records[:HELD_OUT_CLIPS]]
    return {
        "name": name.removeprefix("eval-"),
        "toy": "toy" in made["data_name"] + made["model_name"],
        "metrics": [[m, before.get(m), value] for m, value in after.items()],
        "clips": [c for c in clips if c],
    }


def tidy(x):
    """Numbers for the page: floats of 6 significant digits, None for what JSON cannot say (NaN).

    With fewer digits, differences of two rounded numbers would be visibly wrong.
    """
    if isinstance(x, dict):
        return {k: tidy(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [tidy(v) for v in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x


def page_curve(name, title, steps, values):
    points = list(zip(steps, values, running_mean(values).tolist()))
    finite = [p for p in points if math.isfinite(p[1])]
    largest = max(finite, key=lambda p: p[1], default=None)
    shown = evenly(points, MOST_POINTS - 1)
    if largest and largest not in shown:
        shown = sorted([*shown, largest])
    top = 1 if is_share(name) else axis_top(values)
    return {"name": name, "title": title, "share": is_share(name), "points": shown, "top": top}


def largest_kl(lines):
    """{"step", "kl"} of the step where the run's KL was largest, or None where it has none."""
    has = [
        {"step": x["step"], "kl": x.get("kl") or 0}
        for x in lines
        if math.isfinite(x.get("kl") or 0)
    ]
    largest = max(has, key=lambda x: x["kl"], default=None)
    return largest if largest and largest["kl"] else None


def write_page(folder, lines, settings):
    """Writes {folder}/report.html and returns its path.

    Fewer groups are shown until the page is small enough to be sent by mail.
    """
    rollouts = read_records(folder, "rollouts.jsonl", GROUP, page_group)
    opening, peak, looks = most_instructive(rollouts), largest_kl(lines), page_looks(folder)
    always = {opening, peak and peak["step"]}
    evaluations, pictures = held_out(folder, settings), {}
    about = "From {model_name}, seed {seed}. {} of {steps} steps so far."
    content = {
        "title": "{} on {data_name}".format(settings["method"].upper(), **settings),
        "about": about.format(lines[-1]["step"], **settings),
        "toy": "toy" in settings["data_name"] + settings["model_name"],
        "recorded": len(rollouts),
        "opening": opening,
        "peak": peak,
        "moved": [sum(pair) for pair in zip(*(g["moved"] for g in rollouts))],
        "looks": looks,
        "settings": settings,
        "curves": [page_curve(*curve) for curve in curves_of(lines)],
        "heldOut": evaluations,
    }
    with open(TEMPLATE, encoding="utf-8") as f:
        template = f.read()
    most = MOST_GROUPS
    while True:
        kept = {g["step"] for g in evenly(rollouts, most)} | always if most else {}
        groups = [g for g in rollouts if g["step"] in kept]
        asked_elsewhere = chain(*looks, *(e["clips"] for e in evaluations))
        clips = {shown["clip"] for shown in chain(groups, asked_elsewhere)}
        pictures |= {clip: thumbnails(clip) for clip in clips - set(pictures)}
        content |= {"groups": groups, "clips": {clip: pictures[clip] for clip in clips}}
        # Inside <script> only "<" could end the JSON early, and JSON has another way to write it.
        as_json = json.dumps(tidy(content), allow_nan=False).replace("<", "\\u003c")
        page = template.replace("RUN_DATA", as_json)
        if len(page) < MOST_BYTES or most == 0:
            break
        most //= 2
    path = os.path.join(folder, "report.html")
    replace_file(path, page)
    return path


# What the page needs of settings.json.
NEEDED = {
    "method": str,
    "data_name": str,
    "model_name": str,
    "model": str,
    "seed": int,
    "steps": int,
}


def start():
    p = argparse.ArgumentParser(
        prog="python -m tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("run", help="folder of a run of train.py")
    p.add_argument(
        "step",
        nargs="?",
        type=int,
        help="print the group of that step in numbers, and make no page",
    )
    args = p.parse_args()
    if args.step is not None:
        return print_group(args.run, args.step)
    not_a_run = f"{args.run} is not a run folder of train.py"
    if not os.path.isdir(args.run) or kind_of(args.run) in (None, "evaluation"):
        raise BadInput(not_a_run)
    try:
        settings = read_object(os.path.join(args.run, "settings.json"), **NEEDED)
    except BadInput as e:
        raise BadInput(f"{not_a_run}: {e}") from e
    lines = read_metrics(args.run)
    if not lines:
        raise BadInput(f"{not_a_run} with at least one step in it: metrics.jsonl has none")
    try:
        page = write_page(args.run, lines, settings)
        draw_curves(args.run, lines, settings)
    except OSError as e:
        raise BadInput(f"could not be written: {e.filename or args.run}: {e.strerror}") from e
    print(f"wrote {page}: open it in a browser")


def print_group(folder, step):
    """Prints the group of a step in numbers. Raises BadInput if it was not recorded."""
    path = os.path.join(folder, "rollouts.jsonl")
    groups = {g["step"]: g for g in read_lines(path, **GROUP)}
    if step not in groups:
        steps = ", ".join(map(str, list(groups)[:20])) or "none"
        raise BadInput(f"{folder} has no group of step {step}; it has some of: {steps}")
    text = usable(example_text, groups[step], path)
    if text is None:
        raise BadInput(f"the group of step {step} in {path} is damaged")
    print(text)


def main():
    run_program(start)


if __name__ == "__main__":
    main()
