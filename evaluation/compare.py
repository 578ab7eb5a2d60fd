"""compare.py: `eval.py --compare A B`: the difference of two evaluations, and how sure it is."""

import os

import numpy as np

from annotations.judge import install_judge
from annotations.readers import find_data, read_dataset
from evaluation import predictions
from evaluation.metrics import JUDGED
from lib.errors import BadInput, read_object


def compare(bench_name, run_a, run_b, args, stand_in):
    """Prints each metric's difference, B minus A in points, with a 95 % interval.

    An interval that holds 0 says that these questions cannot tell the two apart. Raises BadInput if
    the two were not made alike: other questions, another judge.
    """
    folder, _ = find_data(bench_name, args.data, stand_in, toy_model=True)  # its task
    usual_task = read_dataset(bench_name, "test", folder, lambda line: None)[0].task
    task = predictions.task_asked(bench_name, usual_task, args)
    name = predictions.evaluation_folder(bench_name, usual_task, args)
    folders = [find_evaluation(run, name, bench_name) for run in (run_a, run_b)]
    results = [read_object(os.path.join(f, "results.json"), settings=dict) for f in folders]
    judges = [x["settings"].get("judge") for x in results]
    file_name = "predictions-second-look.jsonl" if args.clues else "predictions.jsonl"
    a, b = (predictions.read_predictions(os.path.join(f, file_name)) for f in folders)
    check_alike(a, b, judges if task in JUDGED else [], bench_name, run_a, run_b)
    if task in JUDGED and judges[0] is not None:
        install_judge(judges[0], args.device)
    rows = predictions.differences(task, a, b)
    print(
        f"{bench_name}, {len(a)} questions: {run_b} minus {run_a}, in points, "
        "with the 95 % interval of a paired bootstrap"
    )
    width = max(10, *(len(label) for label, _ in rows))
    rng = np.random.default_rng(0)
    for label, difference in rows:
        low, high = predictions.bootstrap_interval(difference, rng)
        print(f"  {label:<{width}} {difference.mean():+6.1f}   [{low:+.1f}, {high:+.1f}]")


def find_evaluation(run, name, bench_name):
    """The folder of a run's evaluation of that name. `run` may be that folder itself (--out)."""
    places = (os.path.join(run, name), os.path.join(predictions.folder_without_run(run), name), run)
    for folder in places:
        if os.path.isfile(os.path.join(folder, "results.json")):
            return folder
    command = f"python eval.py --bench {bench_name} --model {run}"
    raise BadInput(f"{run} has no {name}/ yet: {command}, with the flags that --compare has")


def check_alike(a, b, judges, bench_name, run_a, run_b):
    """Raises BadInput unless both answered the same questions, judged by the same judge."""
    why = ""
    if not a or set(a) != set(b):
        why = f"were not asked the same questions of {bench_name} ({len(a)} and {len(b)})"
    if len(set(judges)) > 1:
        why = "were judged differently (--judge)"
    if why:
        raise BadInput(f"{run_a} and {run_b} {why}: evaluate both again")
