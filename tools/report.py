"""report.py: what a run looks like: a page to click through, its curves, and one group as text.

    python -m tools.report runs/demo           # runs/demo/report.html and curves.png, from what the run has left so far
    python -m tools.report runs/demo 1         # the group of step 1 in numbers: rewards → advantages → what the step did to each answer

The page is one file that asks nothing of the network: report.html beside this file, with the run's
numbers and small pictures of its clips put in as JSON. It may be made while the run is going; a
long run is thinned out.
"""

import argparse
import base64
import glob
import io
import json
import math
import os
import sys

import numpy as np
from PIL import Image

from data import VideoBudget, read_frames
from runtime.errors import NUMBER, BadInput, first_line, read_object, run_program, wrong_key
from runtime.folders import kind_of, read_lines
from runtime.shown import (
    asked,
    curves_of,
    draw_curves,
    duration_of,
    example_text,
    given_answer,
    is_share,
    running_mean,
    true_answer,
)

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
MOST_GROUPS, MOST_POINTS, MOST_BYTES = (
    60,
    400,
    9_000_000,
)  # of the page: steps to choose from, points of a curve, size
HELD_OUT_CLIPS = 6  # of an evaluation
THUMBNAILS = VideoBudget(
    fps=1000, max_frames=8, min_frame_pixels=28 * 28, max_frame_pixels=28 * 28 * 32
)  # 8 frames of any clip

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
        print(
            f"{path}: the record of {what} is damaged ({type(e).__name__}: {first_line(e)}) and"
            " left out",
            file=sys.stderr,
        )
        return None


def read_metrics(folder):
    """The lines of metrics.jsonl whose values are numbers, or None where a step had none."""

    def checked(line):
        values = {k: v for k, v in line.items() if v is not None and k != "seconds"}
        if wrong := wrong_key(
            {k: 0 if v != v else v for k, v in values.items()}, dict.fromkeys(values, NUMBER)
        ):
            raise ValueError(wrong)
        return line

    path = os.path.join(folder, "metrics.jsonl")
    lines = [usable(checked, line, path) for line in read_lines(path, step=int)]
    return [line for line in lines if line]


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def evenly(items, most):
    """At most so many of them, evenly spaced, with the first and the last."""
    return (
        items
        if len(items) <= most
        else [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
    )


def thumbnails(video):
    """{"duration", "frames": [{"at": seconds, "src": a JPEG as data URI}]} of a clip; None where it
    cannot be read here.
    """
    try:
        frames = read_frames(video, THUMBNAILS)
    except BadInput:
        return None
    shown = []
    for at, pixels in zip(frames.times, frames.pixels):
        Image.fromarray(pixels.numpy()).save(jpeg := io.BytesIO(), "JPEG", quality=70)
        shown.append({
            "at": float(at),
            "src": "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode(),
        })
    return {"duration": frames.duration, "frames": shown}


GROUP = {
    "step": int,
    "prompt": str,
    "video": str,
    "completions": list,
}  # a record of rollouts.jsonl


def page_group(group):
    """A record of rollouts.jsonl as the page takes it, completions from best to worst."""
    truth = true_answer(group["answer"])
    completions = [
        c | {"number": i + 1, "given": given_answer(c["text"], group["answer"])}
        for i, c in enumerate(group["completions"])
    ]
    return {
        "step": group["step"],
        "question": asked(group["prompt"]),
        "clip": group["video"],
        "duration": duration_of(group["prompt"], truth),
        "truth": truth,
        "completions": sorted(completions, key=lambda c: -c["reward"]),
    }


def held_out(folder, settings):
    """The run's finished evaluations, each beside that of the model it started from where there is
    one made alike.
    """
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "eval-*", "results.json"))):
        try:
            found.append(one_evaluation(folder, os.path.dirname(path), settings))
        except BadInput as e:
            print(f"left out: {e}", file=sys.stderr)
        except DAMAGED as e:
            print(
                f"left out: {path} is damaged ({type(e).__name__}: {first_line(e)})",
                file=sys.stderr,
            )
    return found


def read_results(folder):
    """(settings, metrics) of an evaluation's results.json. Raises BadInput if it is damaged."""
    path = os.path.join(folder, "results.json")
    results = read_object(path, settings=dict, metrics=dict)
    if wrong := wrong_key(results["metrics"], dict.fromkeys(results["metrics"], NUMBER)):
        raise BadInput(f"{path} is damaged: {wrong}")
    return results["settings"], results["metrics"]


def one_evaluation(folder, path, settings):
    """One of held_out's.

    path: the evaluation's folder. Raises BadInput or one of DAMAGED if it is damaged.
    """
    name, base = os.path.basename(path), os.path.basename(os.path.normpath(settings["model"]))
    made, after = read_results(path)
    # eval.py puts the evaluations of a model that is no run into runs/eval: that beside this run,
    # or the one here.
    places = [
        os.path.join(runs, "eval", base, name)
        for runs in (os.path.dirname(os.path.abspath(folder)), "runs")
    ]
    place, before, earlier = next(filter(os.path.isdir, places), places[0]), {}, {}
    if os.path.exists(os.path.join(place, "results.json")):
        made_before, metrics = read_results(place)
        if all(
            made_before.get(k) == v
            for k, v in made.items()
            if k in ("questions", "think", "video_budget")
        ):
            before = metrics
            earlier = {
                r["id"]: r
                for r in read_lines(os.path.join(place, "predictions.jsonl"), id=str, text=str)
            }

    def clip(r):
        return {
            "question": r["question"],
            "clip": r["video"],
            "truth": true_answer(r["answer"]),
            "after": given_answer(r["text"], r["answer"]),
            "before": (
                given_answer(earlier[r["id"]]["text"], r["answer"]) if r["id"] in earlier else None
            ),
        }

    predictions = os.path.join(path, "predictions.jsonl")
    records = (
        read_lines(predictions, id=str, text=str, video=str, question=str)[:HELD_OUT_CLIPS]
        if "-blind" not in name
        else []
    )
    clips = [usable(clip, r, predictions) for r in records]
    return {
        "name": name.removeprefix("eval-"),
        "toy": "toy" in made["data_name"] + made["model_name"],
        "metrics": [[m, before.get(m), value] for m, value in after.items()],
        "clips": [c for c in clips if c],
    }


def tidy(x):
    """For the page: floats of 6 significant digits (a difference of rounded figures would be off by
    a tenth), and null for what JSON cannot say (NaN).
    """
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
    rollouts = [
        group for record in read_lines(path, **GROUP) if (group := usable(page_group, record, path))
    ]
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
            "about": "From {model_name}, seed {seed}. {} of {steps} steps so far.".format(
                lines[-1]["step"], **settings
            ),
            "toy": "toy" in settings["data_name"] + settings["model_name"],
            "recorded": len(rollouts),
            "settings": settings,
            "curves": [
                {
                    "title": title,
                    "share": is_share(name),
                    "points": evenly(
                        list(zip(steps, values, running_mean(values).tolist())), MOST_POINTS
                    ),
                }
                for name, title, steps, values in curves_of(lines)
            ],
            "groups": groups,
            "clips": {clip: pictures[clip] for clip in clips},
            "heldOut": evaluations,
        }
        # Inside <script> only "<" could end the JSON early, and JSON can say it otherwise.
        page = template.replace(
            "RUN_DATA", json.dumps(tidy(content), allow_nan=False).replace("<", "\\u003c")
        )
        if len(page) < MOST_BYTES or most == 0:
            break
        most //= 2
    path = os.path.join(folder, "report.html")
    with open(path + ".partial", "w", encoding="utf-8") as f:
        f.write(page)
    os.replace(path + ".partial", path)
    return path


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
    if not os.path.isdir(args.run) or kind_of(args.run) in (None, "evaluation"):
        raise BadInput(f"{args.run} is not a run folder of train.py")
    try:
        settings = read_object(os.path.join(args.run, "settings.json"), **NEEDED)
    except BadInput as e:
        raise BadInput(f"{args.run} is not a run folder of train.py: {e}") from e
    lines = read_metrics(args.run)
    if not lines:
        raise BadInput(
            f"{args.run} is not a run folder of train.py with at least one step in it:"
            " metrics.jsonl has none"
        )
    failed = []
    for work in (
        lambda: draw_curves(args.run, lines, settings),
        lambda: print(f"wrote {write_page(args.run, lines, settings)}: open it in a browser"),
    ):
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
        raise BadInput(
            f"{folder} has no group of step {step}; it has some of:"
            f" {', '.join(map(str, list(groups)[:20])) or 'none'}"
        )
    text = usable(example_text, groups[step], path)
    if text is None:
        raise BadInput(f"the group of step {step} in {path} is damaged")
    print(text)


def main():
    run_program(start)


if __name__ == "__main__":
    main()
