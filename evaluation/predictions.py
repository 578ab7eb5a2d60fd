"""predictions.py: the folder of an evaluation, and the answers in it.

    settings.json                     all that the answers depend on
    predictions.jsonl                 one record per question, appended as it is answered
    predictions-second-look.jsonl     with --clues: the answers after the second look
    results.json                      the metrics, with the settings they were made with

An evaluation that was interrupted goes on with the answers it has. So answers made with other
settings, by other weights or to other questions must never be continued: they are moved aside.
"""

import json
import os
import sys

import numpy as np

import rewards
from evaluation.metrics import reported
from lib import files
from lib.errors import NUMBER, BadInput, read_object
from lib.flags import check_template
from lib.identity import hash_of_examples, is_toy, shown_name, versions
from tasks import TASKS, longest_answer, paid, score, words_around

# ------------------------------------------------------------------------------------------------
# Which model, which questions
# ------------------------------------------------------------------------------------------------


def find_model(name):
    """A run folder, a model folder or a hub name → (what `load` takes, name to show, settings).

    settings: those that the run was trained with; {} of a model that is no run. Raises BadInput for
    an evaluation's folder, and for a run that has not saved a policy yet.
    """
    settings_file, policy = os.path.join(name, "settings.json"), os.path.join(name, "policy")
    if not os.path.isfile(settings_file):
        return name, shown_name(name), {}
    if files.kind_of(name) == "evaluation":
        why = "is an evaluation of eval.py: give the run or the model that was evaluated"
        raise BadInput(f"--model {name} {why}")
    if not os.path.isdir(policy):
        raise BadInput(f"run folder {name} has no policy/ yet: see --save-every of train.py")
    wanted = {"model_name": str, "method": str, "think": bool, "max_new_tokens": int}
    settings = read_object(settings_file, **wanted)
    return policy, f"{settings['model_name']} + {settings['method'].upper()} ({name})", settings


def task_asked(bench_name, usual_task, args):
    """The task as which a benchmark's questions are asked: its usual one, or what the flags say.

    Raises BadInput if the questions of this benchmark cannot be asked as that task.
    """
    task = "gqa" if args.clues else args.task or usual_task
    own = f"the questions of {bench_name} are of the task {usual_task}"
    if args.clues and (args.task or usual_task not in ("qa", "gqa")):
        raise BadInput(f"--clues asks a multiple-choice question twice; it knows no --task; {own}")
    seconds = task == "gqa" and usual_task == "qa" and not args.clues  # are not annotated
    if seconds or TASKS[task].data != TASKS[usual_task].data:
        raise BadInput(f"--task {task} cannot be asked: {own}")
    return task


def settings_of(args, budget, model, data, task, examples):
    """All that an evaluation's answers depend on, as it is saved beside them.

    model: (path, name to show, settings of its training), as find_model gives them; data: (name of
    the benchmark, its folder, name to show).
    """
    (path, shown, run), (bench_name, folder, data_name) = model, data
    template = args.template
    if template is not None:
        check_template(template, task, TASKS[task].prompt)
    elif task in run.get("tasks", []):  # in the words that it was trained on
        template = run.get("template")
    think = run.get("think", True) if args.think is None else args.think
    if args.template is not None and args.think is None:
        think = "<think>" in template
    longest = max(longest_answer(is_toy(path), [task]), run.get("max_new_tokens", 0))
    return {
        "bench": bench_name,
        "data": folder,
        "data_name": data_name,
        "task": task,
        "questions": len(examples),
        "asked": hash_of_examples(examples),
        "model": path,
        "model_name": shown,
        "think": think,
        "look": args.look,
        "clues": args.clues,
        "judge": args.judge,
        "decoding": "greedy",
        "max_new_tokens": args.max_new_tokens or longest,
        "video_budget": vars(budget),
        "template": template,
        "prompt": "<video>".join(words_around(examples[0], 30.0, think, template)),
        "device": args.device,
        "versions": versions(),
    }


# ------------------------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------------------------


def evaluation_folder(bench_name, usual_task, args):
    """The name of an evaluation's folder, which says what was asked and how."""
    parts = ["eval", bench_name]
    parts += [args.task] if args.task not in (None, usual_task) else []
    parts += ["prompt"] if args.template is not None else []
    parts += [args.look] if args.look else []
    parts += ["clues"] if args.clues else []
    return "-".join(parts) + args.way.replace(", ", "-").replace(" ", "-")


def folder_without_run(model):
    """Where the evaluations of a model go that is no run of train.py."""
    return os.path.join("runs", "eval", os.path.basename(os.path.normpath(model)))


def open_evaluation(out, settings):
    """Makes the folder and locks it. One with predictions that other settings made is renamed."""
    path = os.path.join(out, "settings.json")
    settings = json.loads(json.dumps(settings))  # as the file has them: lists, no tuples
    try:
        if files.expect_kind(out, "evaluation"):
            before = read_object(path)
            # "weights" are a fingerprint: a copy of the model, under another name, has the same.
            compared = [k for k in settings if k not in ("model", "model_name")]
            if changed := [k for k in compared if before.get(k) != settings[k]]:
                with files.locks_released():
                    files.take(out)
                    aside = files.put_aside(out)
                made = f"{out} holds predictions made with other settings ({', '.join(changed)})"
                print(f"{made}: starting anew, it is now {aside}", file=sys.stderr)
        os.makedirs(out, exist_ok=True)
        files.take(out)
        files.replace_file(path, json.dumps(settings | {"kind": "evaluation"}, indent=2))
    except OSError as e:
        raise BadInput(f"cannot write to --out {out}: {e.strerror}") from e


# ------------------------------------------------------------------------------------------------
# The answers
# ------------------------------------------------------------------------------------------------


def read_predictions(path):
    """predictions.jsonl as {id: record}, without damaged lines and one that is half-written."""
    wanted = {"id": str, "group": str, "text": str, "format": NUMBER}
    return {r["id"]: r for r in files.read_lines(path, **wanted) if "answer" in r}


def answered(path):
    """The ids of the questions that predictions.jsonl holds an answer to.

    The file is cleaned, so that more can be appended: of a last line that was cut short, and of
    questions whose video could not be read. It may be there by now, so they are asked again.
    """
    records = read_predictions(path)
    done = {id for id, record in records.items() if "error" not in record}
    files.remove_lines(path, lambda record: record.get("id") in done and "error" not in record)
    return done


def with_tags(text):
    """The completion with <answer> tags around what it answers, if it has no such block: after the
    thought, before the evidence.

    A model that was never taught the tags may know the answer. VideoChat-R1's own script for
    grounding and lmms-eval's for multiple choice read one without tags, too. A thought that never
    ended answers nothing.

    >>> with_tags("12.5 to 17.8"), with_tags("<think>hm</think>B <glue>[(1, 2)]</glue>")
    ('<answer>12.5 to 17.8</answer>', '<think>hm</think><answer>B </answer><glue>[(1, 2)]</glue>')
    """
    thought, closed, said = text.rpartition("</think>")
    if rewards.inside(text, "answer") is not None or "</answer>" in said or "<think>" in said:
        return text
    said, evidence, rest = said.partition("<glue>")
    return f"{thought}{closed}<answer>{said.rpartition('<answer>')[2]}</answer>{evidence}{rest}"


def rewards_of(task, text, answer, think):
    """tasks.score as an evaluation counts it: the form as it was written, the content with_tags."""
    form = paid(task, "format", text, answer, think)
    return score(task, with_tags(text), answer, think) | {"format": form}


def metrics_of(task, records):
    """{name: percent}: the task's metrics, and the share of answers in the right form."""
    right_form = 100 * sum(r["format"] for r in records) / len(records)
    records = [r | {"text": with_tags(r["text"])} for r in records]
    return reported(task, records) | {"format": right_form}


def say_what_was_written(results, records, out):
    """Says where the results are; names the first videos that could not be read, and counts what
    is not in the form."""
    for r in [r for r in records if "error" in r][:5]:
        print(f"counted as wrong: {r['id']}: {r['error']}", file=sys.stderr)
    unread, other = len(results["failed"]), len(results["not in the form"])
    said = [f"wrote {out}/", *[f"videos not read: {unread}"] * bool(unread)]
    print("; ".join([*said, *[f"answers not in the right form: {other}"] * bool(other)]))


# ------------------------------------------------------------------------------------------------
# How sure a difference is
# ------------------------------------------------------------------------------------------------


def differences(task, a, b):
    """[(metric, (n,) its difference per question in points)]; a, b: {id: record}.

    Where the questions are of several groups, the first metric of each group follows.
    """
    of_a = [metrics_of(task, [a[id]]) for id in a]
    of_b = [metrics_of(task, [b[id]]) for id in a]
    by_metric = {m: np.array([y[m] - x[m] for x, y in zip(of_a, of_b)]) for m in of_a[0]}
    rows = list(by_metric.items())
    groups = np.array([record["group"] for record in a.values()])
    if len(set(groups)) > 1:
        rows += [(group, rows[0][1][groups == group]) for group in sorted(set(groups))]
    return rows


def bootstrap_interval(difference, rng, samples=10_000):
    """(low, high) between which the mean lies in 95 % of the samples.

    Paired bootstrap: questions are drawn with replacement, the same ones for both models, and the
    mean difference (n,) is taken anew each time. (100 samples at a time: all of them would be 3 GB
    for ActivityNet's 17,031 questions.)
    """
    n, parts = len(difference), range(0, samples, 100)
    means = [difference[rng.integers(0, n, size=(100, n))].mean(axis=1) for _ in parts]
    return np.percentile(means, [2.5, 97.5])
