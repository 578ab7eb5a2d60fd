"""paper.py: every table of the paper on the toy, and which of its findings hold here.

    make paper                             # table 1, seed 0
    python -m tools.paper 3 5              # two tables, seeds 0, 1 and 2
    python -m tools.paper all --docs       # all of it, also into docs/

tools/paper.md says what is compared, beside the paper's own figures. Here its cells are run, one
per core: each is a run folder of train.py with its evaluations. What has results is kept, and the
same command goes on from where it was stopped or killed. --out will hold tables.md, the numbers in
it (results.json), a folder per run and a log of each.
"""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache

import numpy as np

from annotations.readers import read_dataset
from evaluation.compare import check_alike
from evaluation.predictions import differences, metrics_of, read_predictions
from lib.errors import BadInput, read_object, run_program
from lib.files import read_lines, replace_file
from lib.flags import COUNT, FROM_0, ROOT, TOY_MODEL, YES, parser_of
from lib.identity import fingerprint
from lib.processes import Progress, cores
from tools import paper_tables as tables
from tools.paper_tables import BASES, CELLS, EPOCH, EVALUATIONS, FINDINGS, ROWS, TABLES
from tools.thoughts import told
from toy.world import ensure

# ------------------------------------------------------------------------------------------------
# Running
# ------------------------------------------------------------------------------------------------


def home(cell, seed, args):
    """The folder of a cell's run. The base answers greedily: it has no seeds."""
    return os.path.join(args.out, cell if without_seeds(cell) else f"{cell}-seed{seed}")


def results_of(row, seed, evaluation, args):
    """The results.json that a row's figures are of; the constant answer's stand in the base's."""
    cell, _, look = row.replace("constant", BASES[1]).partition(", ")
    folder = f"eval-{evaluation}" + (f"-{look}" if look not in ("", "thoughts") else "")
    return os.path.join(home(cell, seed, args), folder, "results.json")


def missing(cell, seed, args):
    """{evaluation: [looks]} that the asked tables need of a cell and that have no results."""
    found = {}
    for evaluation, look in tables.looks_of(cell, args.tables):
        row = f"{cell}, {look}" if look else cell
        if not os.path.exists(results_of(row, seed, evaluation, args)):
            found.setdefault(evaluation, []).append(look)
    return found


def work(cell, seed, args):
    """Trains and evaluates a cell. Both programs go on by themselves where they were stopped."""
    wanted, folder, base = missing(cell, seed, args), home(cell, seed, args), cell in BASES
    if not base:
        how = ["--seed", str(seed), *tables.train_flags(cell, args.steps), "--quiet", "--resume"]
        call(["train.py", "--out", folder, *how], folder)
    asked = ["eval.py", "--model", TOY_MODEL if base else folder]
    asked += ["--think" if tables.thinks(cell) else "--no-think"]
    asked += ["--limit", str(args.limit)] if args.limit else []
    alone = [e for e in wanted if base or e in EVALUATIONS or any(wanted[e])]
    if others := [e for e in wanted if e not in alone]:  # in one call: a start takes long
        call([*asked, "--bench", ",".join(others)], folder)
    for e in alone:
        out = os.path.dirname(results_of(cell, seed, e, args))
        which = EVALUATIONS.get(e, f"--bench {e}").split()
        looks = [look for look in wanted[e] if look]
        which += ["--controls", *looks] if looks else []
        call([*asked, *which, "--out", out], folder)


STOPPED = threading.Event()  # by Ctrl-C: a cell whose program has just ended begins no other one


def call(words, folder):
    """Runs one of our programs to its end. Raises BadInput if it fails, or after Ctrl-C."""
    if STOPPED.is_set():
        raise BadInput(f"{folder} was stopped")
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, os.path.join(ROOT, words[0]), *words[1:], "--device", "cpu"]
    with open(f"{folder}.log", "ab") as log:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
    if done.returncode:
        said = f"{folder}.log says why; the same command tries again"
        raise BadInput(f"{' '.join(words)} failed: {said}")


def run_all(args):
    """Runs what is missing, a cell per core. Raises BadInput at the end if one failed.

    Ctrl-C reaches the programs too: train.py saves after its step, eval.py keeps every answer.
    """
    pairs = [(c, s) for s in args.seeds for c in CELLS if s == args.seeds[0] or c not in BASES]
    asked = {pair: missing(*pair, args) for pair in pairs}
    for evaluation in set().union(*asked.values()):
        ensure(evaluation.split("-")[0])  # rendered once, not by two cells at the same time
    with ThreadPoolExecutor(cores()) as pool:
        jobs = [pool.submit(work, *pair, args) for pair in pairs if asked[pair]]
        try:
            ended = Progress(len(jobs), "cell").over(as_completed(jobs))
            failed = [error for job in ended if (error := job.exception())]
        except KeyboardInterrupt:
            STOPPED.set()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise failed[0]


# ------------------------------------------------------------------------------------------------
# What came of it
# ------------------------------------------------------------------------------------------------


def collect(args):
    """All that has results in --out, with any of these seeds, as results.json holds it."""
    cells = {}
    for row in ROWS:
        for seed in args.seeds[:1] if without_seeds(row) else args.seeds:
            if values := values_of(row, seed, args):
                cells.setdefault(row, {})[str(seed)] = values
    findings = [tested(finding, rows, args) for finding, rows in FINDINGS.items()]
    return {"settings": size_of(args), "cells": cells, "findings": [f for f in findings if f]}


THOUGHTS = ", thoughts"  # of a row: its answers are made from what it thought


def without_seeds(row):
    """Whether a row is of the base, which answers greedily, or of no model."""
    return row.partition(",")[0] in (*BASES, "constant")


def metrics_at(row, path):
    """{metric: percent} of a row, from its results.json."""
    results = read_object(path, metrics=dict)
    if row == "constant":
        return results["constant"]["metrics"]
    if row.endswith(THOUGHTS):
        task = results["settings"]["task"]
        return metrics_of(task, list(records_at(row, path, task).values()))
    return results["metrics"]


def records_at(row, path, task, name="predictions.jsonl"):
    """{id: record} of a row, beside its results.json."""
    records = read_predictions(os.path.join(os.path.dirname(path), name))
    if not row.endswith(THOUGHTS):
        return records
    settings = read_object(path, settings=dict)["settings"]
    return told(task, records, options_in(settings["data"]) if task == "gqa" else {})


@cache  # every cell and seed answers the same questions
def options_in(folder):
    """{id: options} of toy nextgqa's questions, which its records do not hold."""
    return {e.id: e.options for e in read_dataset("nextgqa", "test", folder)}


def values_of(row, seed, args):
    """{column: number} of a row's evaluations that are there, and of its training."""
    values, columns = {}, [column.partition(" ")[::2] for column in tables.columns_of(row)]
    for evaluation, metric in columns:
        path = results_of(row, seed, evaluation, args)
        if os.path.exists(path):
            values[f"{evaluation} {metric}"] = round(metrics_at(row, path)[metric], 2)
    last = read_lines(os.path.join(home(row, seed, args), "metrics.jsonl"))[-10:]
    for evaluation, metric in columns if values and last else []:
        if evaluation == "run":
            numbers = [line[metric] for line in last if line[metric] is not None]
            values[f"run {metric}"] = round(float(np.mean(numbers)), 4)
    return values


def tested(finding, rows, args):
    """A finding with its comparisons; None unless runs of all of them are there. It holds if all
    comparisons do, and does not if one of them says the opposite."""
    found = [compared(*row, args) for row in rows]
    if None in found:
        return None
    worst = max((c["verdict"] for c in found), key=VERDICTS.index)
    return {"finding": finding, "verdict": worst, "comparisons": found}


def compared(column, a, b, expected, args):
    """b − a by question and seed: its mean, its interval, and what that says. None without runs."""
    evaluation, _, metric = column.partition(" ")
    table = []
    for seed in args.seeds[:1] if without_seeds(a) and without_seeds(b) else args.seeds:
        paths = [results_of(cell, seed, evaluation, args) for cell in (a, b)]
        if not all(map(os.path.exists, paths)):
            continue
        task = read_object(paths[0])["settings"]["task"]
        names = ["predictions.jsonl", f"predictions{'-second-look' * (a == b)}.jsonl"]
        records = [records_at(r, p, task, name) for r, p, name in zip((a, b), paths, names)]
        check_alike(*records, [], evaluation, *map(os.path.dirname, paths))
        table.append(dict(differences(task, *records))[metric])
    if not table:
        return None
    low, high = interval(np.array(table))
    numbers = {"difference": np.mean(table), "low": low, "high": high}
    return (
        {"a": a, "b": b, "column": column, "expected": expected, "seeds": len(table)}
        | {name: round(float(value), 2) for name, value in numbers.items()}
        | {"verdict": verdict(low, high, expected)}
    )


def interval(table, samples=10_000):
    """(low, high) between which the mean of a table (S, n) lies in 95 % of the samples.

    The paired bootstrap of evaluation/compare.py, over two things: n questions and S seeds are
    drawn with replacement, so that neither lucky questions nor a lucky seed decide alone.
    """
    rng = np.random.default_rng(0)
    seeds, questions = (rng.multinomial(k, [1 / k] * k, samples) / k for k in table.shape)
    means = (seeds @ table * questions).sum(axis=1)  # (samples,)
    return np.percentile(means, [2.5, 97.5])


VERDICTS = ("holds here", "cannot tell", "does not hold here")
MARGIN = 3.0  # points: "hardly a difference" means one below


def verdict(low, high, expected):
    """What a 95 % interval of b − a, in points, says of "+" (above 0), "-" (below), "0" (hardly).

    >>> verdict(0.5, 3.0, "+"), verdict(-4.0, -1.0, "+"), verdict(-1.0, 2.0, "+")
    ('holds here', 'does not hold here', 'cannot tell')
    """
    if expected == "0":
        holds, against = -MARGIN < low and high < MARGIN, low > MARGIN or high < -MARGIN
    else:
        low, high = (low, high) if expected == "+" else (-high, -low)
        holds, against = low > 0, high < 0
    return VERDICTS[0 if holds else 2 if against else 1]


# ------------------------------------------------------------------------------------------------
# The program
# ------------------------------------------------------------------------------------------------


FLAGS = {"what is run": [
    ("tables", {"nargs": "+", "metavar": "TABLE"}, f"of {', '.join(TABLES)}, or all"),
    ("--seeds", {"nargs": "+", "default": [0, 1, 2]} | FROM_0, "of every training"),
    ("--steps", {"default": EPOCH} | COUNT, "of one task in one epoch"),
    ("--limit", COUNT, "only the first so many questions of each benchmark"),
    ("--out", {"default": os.path.join("runs", "paper")}, "folder of the runs and the tables"),
    ("--docs", YES, "write the results into docs/ as well"),
]}  # fmt: skip


def parse_args():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.paper").parse_args()
    if unknown := sorted(set(args.tables) - {*TABLES, "all"}):
        raise BadInput(f"there is no table {unknown[0]}; there is: {', '.join(TABLES)}, all")
    args.tables = [name for name in TABLES if name in args.tables or "all" in args.tables]
    if args.docs and (args.steps != EPOCH or args.limit):
        raise BadInput("docs/ show no rehearsals: give --docs without --steps and --limit")
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


def size_of(args):
    """What all cells of a folder have in common; base: which weights they start from."""
    return {"steps": args.steps, "limit": args.limit, "base": fingerprint(TOY_MODEL)}


def check_out(args):
    """Raises BadInput if --out holds anything but cells of this size."""
    path, wanted = os.path.join(args.out, "results.json"), size_of(args)
    if os.path.isdir(args.out) and os.listdir(args.out):
        there = os.path.exists(path)
        held = read_object(path, settings=dict, cells=dict)["settings"] if there else "other files"
        if held != wanted:
            raise BadInput(f"--out {args.out} holds {held}, not cells of {wanted}: give another")


def write(results, out):
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    replace_file(os.path.join(out, "results.json"), text)
    replace_file(os.path.join(out, "tables.md"), tables.page(results))


def start():
    args = parse_args()
    check_out(args)
    try:
        os.makedirs(args.out, exist_ok=True)
        write(collect(args), args.out)  # says whose folder it is
    except OSError as e:
        raise BadInput(f"cannot write to --out {args.out}: {e.strerror}") from e
    try:
        run_all(args)
    finally:
        write(results := collect(args), args.out)
    if args.docs:
        write(results, os.path.join(ROOT, "docs"))
    print(f"{tables.page(results)}\nwrote {args.out}/tables.md and results.json")


def main():
    run_program(start, interrupted="the same command goes on from there")


if __name__ == "__main__":
    main()
