"""compare.py: `eval.py --compare A B`: the difference of two evaluations, and how sure it is."""

import os

import numpy as np

from annotations.judge import install_judge
from annotations.readers import find_data, read_dataset
from evaluation.metrics import JUDGED
from evaluation.predictions import (
    bootstrap_interval,
    differences,
    evaluation_folder,
    folder_without_run,
    read_predictions,
    task_asked,
)
from lib.errors import BadInput, read_object


def compare(bench_name, run_a, run_b, args, stand_in):
    """Prints each metric's difference, B minus A in points, with a 95 % interval.

    An interval that holds 0 says that these questions cannot tell the two apart. Raises BadInput if
    the two were not made alike: other questions, another judge, other flags.
    """
    folder, _ = find_data(bench_name, args.data, stand_in, toy_model=True)  # its task
    usual_task = read_dataset(bench_name, "test", folder, lambda line: None)[0].task
    task = task_asked(bench_name, usual_task, args)
    name = evaluation_folder(bench_name, usual_task, args)
    folders = [find_evaluation(run, name, bench_name, args) for run in (run_a, run_b)]
    judges = [check_settings(f, bench_name, task, args).get("judge") for f in folders]
    file_name = "predictions-second-look.jsonl" if args.clues else "predictions.jsonl"
    a, b = (read_predictions(os.path.join(f, file_name)) for f in folders)
    check_alike(a, b, judges if task in JUDGED else [], bench_name, run_a, run_b)
    if task in JUDGED and judges[0] is not None:
        install_judge(judges[0], args.device)
    rows = differences(task, a, b)
    print(
        f"{bench_name}, {len(a)} questions: {run_b} minus {run_a}, in points, "
        "with the 95 % interval of a paired bootstrap"
    )
    width = max(10, *(len(label) for label, _ in rows))
    rng = np.random.default_rng(0)
    for label, difference in rows:
        low, high = bootstrap_interval(difference, rng)
        print(f"  {label:<{width}} {difference.mean():+6.1f}   [{low:+.1f}, {high:+.1f}]")


def find_evaluation(run, name, bench_name, args):
    """The folder of a run's evaluation of that name. `run` may be that folder itself (--out)."""
    places = (os.path.join(run, name), os.path.join(folder_without_run(run), name), run)
    for folder in places:
        if os.path.isfile(os.path.join(folder, "results.json")):
            return folder
    flags = f" --task {args.task}" if args.task else ""
    flags += " --blind" if args.look else ""
    flags += " --clues" if args.clues else ""
    flags += " --prompt FILE" if args.template is not None else ""
    flags += " --think both" if args.way else ""
    raise BadInput(
        f"{run} has no evaluation on {bench_name} yet: "
        f"python eval.py --bench {bench_name}{flags} --model {run}"
    )


def check_settings(folder, bench_name, task, args):
    """The settings in results.json. Raises BadInput if the flags ask for others."""
    settings = read_object(os.path.join(folder, "results.json"), settings=dict)["settings"]
    wanted = {"bench": bench_name, "task": task, "clues": args.clues, "look": args.look}
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise BadInput(
                f"{folder} holds an evaluation with {key} {settings[key]}, not {value}: "
                "give --compare the flags that both were made with"
            )
    return settings


def check_alike(a, b, judges, bench_name, run_a, run_b):
    """Raises BadInput unless both answered the same questions, judged by the same judge."""
    if not a:
        raise BadInput(
            f"{run_a} has no predictions on {bench_name} that can be read: evaluate it again"
        )
    if set(a) != set(b):
        raise BadInput(
            f"{run_a} and {run_b} were not asked the same questions ({len(a)} and {len(b)}): "
            "evaluate both again"
        )
    if len(set(judges)) > 1:
        raise BadInput(
            f"{run_a} and {run_b} were judged differently (--judge): evaluate both again"
        )
