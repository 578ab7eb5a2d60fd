"""report.py: shows a run as a page to click through, with its curves, or one group as text.

    python -m tools.report runs/demo      # writes runs/demo/report.html and curves.png
    python -m tools.report runs/demo 1    # prints the group of step 1 in numbers

The numbers of a group are its rewards, its advantages, and what the step did to each answer. The
page is one file that asks nothing of the network: report.html beside this file, with the run's
numbers and small pictures of its clips put in as JSON. It can be made while the run is going on;
a long run is thinned out.
"""

import base64
import io
import json
import math
import os
from glob import escape, glob
from itertools import chain

import numpy as np
from PIL import Image

from annotations.training_sets import even_frames
from data import VideoBudget, read_frames
from lib.errors import BadInput, read_object, run_program
from lib.files import kind_of, read_lines, replace_file
from lib.flags import parser_of
from lib.video import numbered_pictures
from training import shown

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
MOST_STEPS = 60  # to choose from on the page
MOST_POINTS = 400  # of a curve
GROUP_BYTES = 7_000_000  # of all groups on the page
HELD_OUT_CLIPS = 6  # of an evaluation
# 8 frames of any clip, of at most 32 tokens (28 × 28 pixels).
THUMBNAILS = VideoBudget(fps=1000, max_frames=8, min_frame_pixels=784, max_frame_pixels=25_088)

# ------------------------------------------------------------------------------------------------
# Reading what a run has left
# ------------------------------------------------------------------------------------------------

# Keys that the page needs: in settings.json, in a record of rollouts.jsonl and of samples.jsonl.
NEEDED = dict.fromkeys(("method", "data_name", "model_name", "model"), str)
NEEDED |= {"seed": int, "steps": int}
GROUP = {"step": int, "prompt": str, "video": str, "completions": list}
SAMPLE = GROUP | {"number": int}


def read_run(folder):
    """(settings, lines of metrics.jsonl) of a run. Raises BadInput for any other folder."""
    not_a_run = f"{folder} is not a run folder of train.py"
    if not os.path.isdir(folder) or kind_of(folder) != "run":
        raise BadInput(not_a_run)
    settings = read_object(os.path.join(folder, "settings.json"), **NEEDED)
    lines = read_lines(os.path.join(folder, "metrics.jsonl"), step=int)
    if not lines:
        raise BadInput(f"{not_a_run} with at least one step in it: metrics.jsonl has none")
    return settings, lines


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
    pictures = []
    for at, pixels in zip(frames.times, frames.pixels):
        Image.fromarray(pixels.numpy()).save(jpeg := io.BytesIO(), "JPEG", quality=70)
        encoded = base64.b64encode(jpeg.getvalue()).decode()
        pictures.append({"at": float(at), "src": f"data:image/jpeg;base64,{encoded}"})
    return {"duration": frames.duration, "frames": pictures}


def page_prompt(record):
    """The prompt of a record as the page takes it."""
    truth = shown.true_answer(record["answer"])
    return {
        "step": record["step"],
        "question": shown.asked(record["prompt"]),
        "clip": record["video"],
        "duration": shown.duration_of(record["prompt"], truth),
        "truth": truth,
    }


def page_group(group):
    """A record of rollouts.jsonl as the page takes it, completions from best to worst.

    moved: [how many moved as their advantage asked, of how many]: likelier by the step where it is
    positive, less likely where it is negative. One of advantage 0 was asked nothing.
    """
    completions = [
        c | {"number": i + 1, "given": shown.given_answer(c["text"], group["answer"])}
        for i, c in enumerate(group["completions"])
    ]
    rewards = np.array([c["reward"] for c in completions])
    asked = [c for c in completions if c["advantage"]]
    return page_prompt(group) | {
        "completions": sorted(completions, key=lambda c: -c["reward"]),
        "mean": float(rewards.mean()),
        "std": float(rewards.std(ddof=1)),
        "moved": [sum(sum(c["logp_change"]) * c["advantage"] > 0 for c in asked), len(asked)],
    }


def page_sample(record):
    """A record of samples.jsonl as the page takes it."""
    answers = []
    for c in record["completions"]:
        given = shown.given_answer(c["text"], record["answer"])
        given["words"] = shown.shorten(given["words"], 200)
        answers.append({"reward": c["reward"], "given": given})
    mean = sum(c["reward"] for c in answers) / len(answers)
    return page_prompt(record) | {"number": record["number"], "answers": answers, "mean": mean}


def page_looks(folder):
    """samples.jsonl as a list per step that was looked at: the answers to its prompts."""
    by_step = {}
    for record in read_lines(os.path.join(folder, "samples.jsonl"), **SAMPLE):
        by_step.setdefault(record["step"], []).append(page_sample(record))
    looks = [sorted(by_step[step], key=lambda s: s["number"]) for step in sorted(by_step)]
    return evenly(looks, MOST_STEPS)


def held_out(folder, settings):
    """The run's finished evaluations, each beside what it has to exceed."""
    by_name = {}  # {name of the folder without the look: {look: results.json}}
    # without those that were renamed to eval-….old-1
    for path in sorted(glob(os.path.join(escape(folder), "eval-*[!0-9]", "results.json"))):
        results = read_object(path, settings=dict, metrics=dict)
        name, look = os.path.basename(os.path.dirname(path)), results["settings"].get("look", "")
        name = name.replace(f"-{look}", "", 1) if look else name
        by_name.setdefault(name, {})[look] = results
    return [one_evaluation(folder, name, of_it, settings) for name, of_it in by_name.items()]


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
    if not os.path.exists(path := os.path.join(place, "results.json")):
        return {}, {}
    before = read_object(path, settings=dict, metrics=dict)
    must_agree = ("questions", "think", "video_budget")
    if any(before["settings"].get(k) != made.get(k) for k in must_agree):
        return {}, {}
    predictions = read_lines(os.path.join(place, "predictions.jsonl"), id=str, text=str)
    return before["metrics"], {r["id"]: r for r in predictions}


def one_evaluation(folder, name, of_it, settings):
    """One evaluation of a run, for the page: a table and some clips. The table's columns are the
    base model, the run, the constant and the controls (evaluation/controls.py).

    name: the folder's; of_it: {look: results.json}; "" is the evaluation, other looks its controls.
    """
    made = next(iter(of_it.values()))["settings"]
    before, earlier = evaluated_before(folder, name, settings, made)
    own, looks = of_it.get("", {}), sorted(look for look in of_it if look)
    after, constant = own.get("metrics", {}), own.get("constant")
    difference = {m: value - before[m] for m, value in after.items() if m in before}
    table = {"before": before, "after": after, "difference": difference}
    table |= {"constant": constant["metrics"]} if constant else {}
    table |= {look: of_it[look]["metrics"] for look in looks}

    def clip(r):
        answer, said_before = r["answer"], earlier.get(r["id"])
        return {
            "question": r["question"],
            "clip": r["video"],
            "truth": shown.true_answer(answer),
            "after": shown.given_answer(r["text"], answer),
            "before": said_before and shown.given_answer(said_before["text"], answer),
        }

    predictions = os.path.join(folder, name, "predictions.jsonl")
    records = read_lines(predictions, id=str, text=str, video=str, question=str)
    metrics = dict.fromkeys(chain(*table.values()))
    return {
        "name": name.removeprefix("eval-"),
        "toy": "toy" in made["data_name"] + made["model_name"],
        "columns": list(table),
        "rows": [[m, *(column.get(m) for column in table.values())] for m in metrics],
        "constant": constant,
        "clips": [clip(record) for record in records[:HELD_OUT_CLIPS]],
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
    points = list(zip(steps, values, shown.running_mean(values).tolist()))
    kept = evenly(points, MOST_POINTS - 1)
    largest = max(points, key=lambda p: p[1] if math.isfinite(p[1]) else -math.inf, default=None)
    if largest and largest not in kept:
        kept = sorted([*kept, largest])
    top = 1 if shown.is_share(name) else shown.axis_top(values)
    return {"name": name, "title": title, "share": shown.is_share(name), "points": kept, "top": top}


def largest_kl(lines):
    """{"step", "kl"} of the step where the run's KL was largest, or None where it has none."""
    has = [{"step": x["step"], "kl": x["kl"]} for x in lines if x.get("kl")]
    finite = [x for x in has if math.isfinite(x["kl"])]
    return max(finite, key=lambda x: x["kl"], default=None)


def write_page(folder, lines, settings):
    """Writes {folder}/report.html and returns its path. It opens where rewards differ most."""
    rollouts = [page_group(g) for g in read_lines(os.path.join(folder, "rollouts.jsonl"), **GROUP)]
    opening = max(rollouts, key=lambda g: g["std"], default={"step": None})["step"]
    peak, looks = largest_kl(lines), page_looks(folder)
    always = {opening, peak and peak["step"]}
    evaluations = held_out(folder, settings)
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
        "curves": [page_curve(*curve) for curve in shown.curves_of(lines)],
        "heldOut": evaluations,
    }
    # Fewer groups where they are large: the page should be small enough to be sent by mail.
    size = max((len(json.dumps(group)) for group in rollouts), default=1)
    kept = {g["step"] for g in evenly(rollouts, min(MOST_STEPS, GROUP_BYTES // size))} | always
    groups = [g for g in rollouts if g["step"] in kept]
    all_asked = chain(groups, *looks, *(evaluation["clips"] for evaluation in evaluations))
    content["groups"] = groups
    content["clips"] = {clip: thumbnails(clip) for clip in {asked["clip"] for asked in all_asked}}
    # Inside <script> only "<" could end the JSON early, and JSON has another way to write it.
    as_json = json.dumps(tidy(content), allow_nan=False).replace("<", "\\u003c")
    with open(TEMPLATE, encoding="utf-8") as f:
        page = f.read().replace("RUN_DATA", as_json)
    path = os.path.join(folder, "report.html")
    replace_file(path, page)
    return path


# ------------------------------------------------------------------------------------------------
# One group in numbers
# ------------------------------------------------------------------------------------------------


def group_in_numbers(group):
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
        f"step {group['step']}: {shown.asked(group['prompt'])}",
        f"the truth: {shown.true_answer(group['answer'])['words']}",
        "",
        f"  {parts} = reward   advantage    log-prob: before → after   answer",
    ]
    for c in completions:
        parts = " + ".join(f"{v:.2f}" for v in c["rewards"].values())
        before, change = sum(c["logp"]), sum(c["logp_change"])
        moved = f"{before:8.2f} → {before + change:7.2f} ({change:+.2f})"
        answer = shown.shorten(shown.given_answer(c["text"], group["answer"])["words"], 70)
        lines.append(f"  {parts} = {c['reward']:.2f}   {c['advantage']:+9.2f}   {moved}   {answer}")
    mean = f"mean {r.mean():.3f}, standard deviation {r.std(ddof=1):.3f}"
    lines += ["", f"{mean}; over these {len(r)} answers the advantages add up to 0"]
    return "\n".join(lines)


def print_group(folder, step):
    """Prints the group of a step in numbers. Raises BadInput if it was not recorded."""
    groups = {g["step"]: g for g in read_lines(os.path.join(folder, "rollouts.jsonl"), **GROUP)}
    if step not in groups:
        steps = ", ".join(map(str, list(groups)[:20])) or "none"
        raise BadInput(f"{folder} has no group of step {step}; it has some of: {steps}")
    print(group_in_numbers(groups[step]))


FLAGS = {"what is shown": [
    ("run", {}, "folder of a run of train.py"),
    ("step", {"nargs": "?", "type": int}, "print the group of that step in numbers, make no page"),
]}  # fmt: skip


def start():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.report").parse_args()
    if args.step is not None:
        return print_group(args.run, args.step)
    settings, lines = read_run(args.run)
    try:
        page = write_page(args.run, lines, settings)
        shown.draw_curves(args.run, lines, settings)
    except OSError as e:
        raise BadInput(f"could not be written: {e.filename or args.run}: {e.strerror}") from e
    print(f"wrote {page}: open it in a browser")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
