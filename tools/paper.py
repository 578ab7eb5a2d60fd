"""paper.py: every table of the paper on the toy, and which of its findings hold here.

    make paper                             # table 1, seed 0
    python -m tools.paper 3 5              # two tables, seeds 0, 1 and 2
    python -m tools.paper all --plan       # what that would run, and for how long; runs nothing
    python -m tools.paper all --docs       # all of it, also into docs/

tools/paper_tables.py says what is compared, beside the paper's own figures. Here its cells are run,
one per core: each is a run folder of train.py with its evaluations. What is complete is kept, and
the same command goes on from where it was stopped or killed. It leaves in --out:

    tables.md       the tables and the findings; results.json: every number in them
    CELL-seedN/     the runs; base/, base-think/: the evaluations of the toy base
    logs/           what the programs said
    evaluated.jsonl how long evaluations took; metrics.jsonl in a run: how long its steps did
"""

import argparse
import glob
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from evaluation.compare import check_alike, differences
from evaluation.predictions import metrics_of, read_predictions
from lib.errors import BadInput, read_object, run_program
from lib.files import (
    LOCK,
    append_line,
    locks_released,
    read_lines,
    replace_file,
    take,
)
from lib.flags import COUNT, FROM_0, ROOT, TOY_MODEL
from lib.identity import fingerprint
from tools import paper_tables as tables
from tools.paper_tables import CELLS, TABLES
from toy.world import ensure

# ------------------------------------------------------------------------------------------------
# What there is to do
# ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Job:
    """One cell with one seed: its training, if it is not the base, and these evaluations of it."""

    name: str
    seed: int
    evaluations: list
    args: argparse.Namespace

    def __post_init__(self):
        self.cell, out = CELLS[self.name], self.args.out
        self.folder = os.path.join(out, f"{self.name}-seed{self.seed}" * bool(self.cell.task))
        self.policy = os.path.join(self.folder, "policy")
        self.settings = {"seed": self.seed}
        if self.cell.task:
            self.settings |= tables.settings_of(self.cell, self.args.steps)
        else:
            self.folder, self.policy = os.path.join(out, self.name), TOY_MODEL

    def steps_done(self):
        return len(read_lines(os.path.join(self.folder, "metrics.jsonl")))

    def results(self, evaluation):
        return os.path.join(self.folder, f"eval-{evaluation}", "results.json")


def job_of(name, seed, args):
    """With all evaluations that any table needs."""
    return Job(name, seed, tables.wanted(TABLES)[name], args)


def jobs_of(names, args):
    """The jobs of these tables, each once. The base answers greedily: it has no seeds."""
    return [
        Job(name, seed, evaluations, args)
        for name, evaluations in tables.wanted(names).items()
        for seed in (args.seeds if CELLS[name].task else [0])
    ]


def has_begun(job):
    """Whether its folder holds a run with its settings."""
    try:
        saved = read_object(os.path.join(job.folder, "settings.json"))
    except BadInput:  # none, or damaged: it is trained anew
        return False
    given = job.settings.items()  # train.py writes how many examples it found
    return all(saved.get(name) == value for name, value in given if name != "examples")


def is_trained(job):
    if not job.cell.task:
        return True
    weights = glob.glob(os.path.join(glob.escape(job.policy), "*.safetensors"))
    return bool(weights) and has_begun(job) and job.steps_done() == job.settings["steps"]


def stands(job, evaluation):
    """Whether an evaluation of its weights as they are now is complete."""
    try:
        settings = read_object(job.results(evaluation), metrics=dict, settings=dict)["settings"]
    except BadInput:
        return False
    weights = json.loads(json.dumps(fingerprint(job.policy)))  # lists, as in the file
    return settings.get("weights") == weights and settings.get("think") == job.cell.think


def missing(job):
    """(whether it must be trained, the evaluations that must be made)."""
    if not is_trained(job):
        return True, job.evaluations
    return False, [e for e in job.evaluations if not stands(job, e)]


# ------------------------------------------------------------------------------------------------
# Doing it
# ------------------------------------------------------------------------------------------------

RUNNING, STOPPING = set(), threading.Event()


def stopped(signum, frame):
    """Hands a signal on: train.py saves after its step, and eval.py has kept every answer."""
    STOPPING.set()
    for process in list(RUNNING):
        process.terminate()


def run(words, log, args):
    """Runs one of our programs to its end. Raises BadInput if it fails.

    In a session of its own: Ctrl-C reaches it once, through `stopped`.
    """
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    how = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    with open(log, "ab") as said:
        process = subprocess.Popen([sys.executable, *words], stdout=said, env=env, **how)
        RUNNING.add(process)
        if STOPPING.is_set():  # since before it could be told
            process.terminate()
        status = process.wait()
        RUNNING.discard(process)
    if STOPPING.is_set():
        raise KeyboardInterrupt
    if status:
        raise BadInput(f"{' '.join(words)} failed; {log} says why")


def train_command(job):
    """Goes on with a run that has begun; replaces one with other settings."""
    words = [os.path.join(ROOT, "train.py"), "--out", job.folder]
    for name, value in job.settings.items():
        if name == "think":
            words.append("--think" if value else "--no-think")
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--device", "cpu", "--quiet", "--save-every", "10", "--keep", "1"]
    return [*words, "--resume" if has_begun(job) else "--overwrite"]


def flags_of(evaluation):
    return tables.EVALUATIONS.get(evaluation, f"--bench {evaluation}").split()


def eval_commands(job, evaluations):
    """Benchmarks that a run is asked in the usual way are asked in one call: a start takes long."""
    words = [os.path.join(ROOT, "eval.py"), "--device", "cpu"]
    if job.args.limit:
        words += ["--limit", str(job.args.limit)]
    if not job.cell.task:  # the base has no run folder of its own
        words += ["--model", TOY_MODEL, "--think" if job.cell.think else "--no-think", "--out"]
        return [[*words, os.path.dirname(job.results(e)), *flags_of(e)] for e in evaluations]
    words += ["--model", job.folder]
    usual = [e for e in evaluations if e not in tables.EVALUATIONS]
    commands = [[*words, "--bench", ",".join(usual)]] if usual else []
    return commands + [[*words, *flags_of(e)] for e in evaluations if e in tables.EVALUATIONS]


def work(job):
    """Trains and evaluates what is missing of a job."""
    if STOPPING.is_set():
        raise KeyboardInterrupt
    log = os.path.join(job.args.out, "logs", os.path.basename(job.folder) + ".log")
    wait_for_orphans(job)
    untrained, evaluations = missing(job)
    if untrained:
        run(train_command(job), log, job.args)
    began = time.perf_counter()
    for command in eval_commands(job, evaluations):
        run(command, log, job.args)
    took = {"seconds": round(time.perf_counter() - began, 1), "evaluations": len(evaluations)}
    path = os.path.join(job.args.out, "evaluated.jsonl")
    append_line(path, {"cell": job.name, "seed": job.seed} | took)


def wait_for_orphans(job):
    """Waits while programs that outlived an earlier, killed call are still at work there."""
    for folder in (job.folder, *(os.path.dirname(job.results(e)) for e in job.evaluations)):
        said = False
        while os.path.isdir(folder) and not STOPPING.is_set():
            try:
                with locks_released():
                    take(folder)
                break
            except BadInput as e:
                if not said:
                    tqdm.write(f"waiting: {e}", file=sys.stderr)
                said = True
                time.sleep(2)


def do(jobs, args):
    """Does the jobs, several beside each other. Raises BadInput at the end if some failed."""
    jobs = [job for job in jobs if any(missing(job))]
    for bench in sorted({flags_of(e)[1] for job in jobs for e in job.evaluations}):
        ensure(bench)  # rendered once, not by two cells at the same time
    jobs.sort(key=lambda job: (job.seed, -seconds_of(job)))  # the longest of a seed first
    failed = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    with (
        ThreadPoolExecutor(args.processes) as pool,
        tqdm(total=len(jobs), unit="cell", dynamic_ncols=True) as bar,
    ):
        running = {pool.submit(work, job): job for job in jobs}
        while running:
            bar.set_postfix_str(f"{minutes_left(running.values(), args):.0f} minutes left")
            for future in wait(running, timeout=20, return_when=FIRST_COMPLETED).done:
                running.pop(future)
                error = future.exception()
                if isinstance(error, BadInput):
                    failed.append(str(error))
                elif error and not isinstance(error, KeyboardInterrupt):
                    stopped(signal.SIGTERM, None)  # or the others would be waited for
                    raise error
                bar.update(not error)
    if STOPPING.is_set():
        raise KeyboardInterrupt
    if failed:
        raise BadInput(f"{len(failed)} cells failed; the same command tries again: {failed[0]}")


# ------------------------------------------------------------------------------------------------
# How long it takes
# ------------------------------------------------------------------------------------------------

# Guesses until there are runs to measure. Seconds of one core for a step of 16 prompts: SFT, GRPO
# with eight completions answering directly, and thinking. Seconds for one evaluation.
STEP = {
    "grounding": (0.9, 2.5, 3.0),
    "gqa": (1.0, 3.0, 4.5),
    "qa": (0.9, 2.5, 4.0),
    "tracking": (1.2, 18.0, 24.5),
    "caption": (1.2, 5.5, 8.0),
    "quality": (0.9, 2.5, 3.5),
    "grounding+gqa": (1.0, 3.0, 4.0),
    "all": (1.3, 6.5, 9.0),
}
EVALUATION = 20.0


def kind_of(settings):
    """What the seconds of a step depend on."""
    return *(settings[name] for name in ("task", "method", "think")), settings.get("group_size", 8)


def evaluated(out):
    """[{"cell", "seed", "seconds", "evaluations": how many}] of all that were made in --out."""
    path = os.path.join(out, "evaluated.jsonl")
    return read_lines(path, cell=str, seconds=(int, float), evaluations=int)


def measured(out):
    """({kind of run: seconds of a step}, seconds of an evaluation) as far as they ran in --out.

    Medians: a run that was stopped for an hour did not work for an hour.
    """
    kinds = {}
    for path in glob.glob(os.path.join(glob.escape(out), "*-seed*", "metrics.jsonl")):
        try:
            kind = kind_of(read_object(os.path.join(os.path.dirname(path), "settings.json")))
        except (BadInput, KeyError):
            continue
        kinds.setdefault(kind, []).extend(line["seconds_total"] for line in read_lines(path))
    steps = {kind: float(np.median(seconds)) for kind, seconds in kinds.items() if seconds}
    each = [line["seconds"] / line["evaluations"] for line in evaluated(out) if line["evaluations"]]
    return steps, float(np.median(each or [EVALUATION]))


def training_seconds(job):
    """Of one core, until the run is done."""
    task, method, think, group = kind = kind_of(job.settings)
    guess = STEP[task][0 if method == "sft" else 2 if think else 1]
    guess *= 0.3 + 0.7 * group / 8
    steps = job.settings["steps"] - (job.steps_done() if has_begun(job) else 0)
    return job.args.measured[0].get(kind, guess) * steps


def seconds_of(job):
    untrained, evaluations = missing(job)
    seconds = len(evaluations) * job.args.measured[1]
    return seconds + training_seconds(job) if untrained else seconds


def minutes_left(jobs, args):
    args.measured = measured(args.out)
    return sum(map(seconds_of, jobs)) / 60 / args.processes


def plan(names, args):
    """The lines of --plan. What several tables need is counted in the first of them."""
    counted, total = {}, 0.0  # {folder: the evaluations counted so far}
    for name in names:
        runs, trained, asked, answered, seconds = 0, 0, 0, 0, 0.0
        for job in jobs_of([name], args):
            first = bool(job.cell.task) and job.folder not in counted
            before = counted.setdefault(job.folder, set())
            job.evaluations = [e for e in job.evaluations if e not in before]
            before.update(job.evaluations)
            untrained, lacking = missing(job)
            runs, trained = runs + first, trained + (first and not untrained)
            asked, answered = asked + len(job.evaluations), answered - len(lacking)
            seconds += len(lacking) * args.measured[1]
            seconds += training_seconds(job) if first and untrained else 0.0
        total += seconds / 60
        yield (
            f"{name:<6} {runs:3} runs ({trained} there), {asked:4} evaluations"
            f" ({asked + answered} there), {seconds / 60:4.0f} minutes of one core"
        )
    how = "by the steps measured here" if args.measured[0] else "a guess: nothing has run here yet"
    yield f"in all {total / args.processes:.0f} minutes, {args.processes} cells at a time ({how})"


# ------------------------------------------------------------------------------------------------
# What came of it
# ------------------------------------------------------------------------------------------------

KIND = "tables of the paper"


def collect(args):
    """All that is complete in --out, whatever was asked for, as results.json has it."""
    paths = glob.glob(os.path.join(glob.escape(args.out), "*-seed*"))
    seeds = sorted({int(m[1]) for path in paths if (m := re.search(r"-seed(\d+)$", path))})
    minutes, cells = {}, {}
    for name in CELLS:
        for seed in seeds if CELLS[name].task else [0]:
            job = job_of(name, seed, args)
            if is_trained(job) and (values := values_of(job)):
                cells.setdefault(name, {})[str(seed)] = values
                minutes[name] = minutes.get(name, 0.0) + values.get("run minutes", 0.0)
    for line in evaluated(args.out):
        if line["cell"] in cells:
            minutes[line["cell"]] += line["seconds"] / 60
    findings = [tested(words, seeds, args) for words in tables.FINDINGS]
    return {
        "kind": KIND,
        "settings": size_of(args),
        "cells": cells,
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "findings": [finding for finding in findings if finding],
    }


def values_of(job):
    """{column: number} of its evaluations that are complete, and of its training."""
    values = {}
    for column in tables.columns_of(job.name):
        evaluation, _, metric = column.partition(" ")
        if evaluation == "run" or not stands(job, evaluation):
            continue
        metrics = read_object(job.results(evaluation))["metrics"]
        if metric not in metrics:
            raise BadInput(f"{job.results(evaluation)} has no {metric!r}, but {', '.join(metrics)}")
        values[column] = round(metrics[metric], 2)
    if values and job.cell.task:
        lines = read_lines(os.path.join(job.folder, "metrics.jsonl"))
        # By the median step, as `measured`.
        step = np.median([line["seconds_total"] for line in lines])
        values["run minutes"] = round(float(step) * len(lines) / 60, 2)
        if job.settings.get("beta") != 0 and job.cell.method == "grpo":
            values["run kl"] = round(sum(line["kl"] for line in lines[-10:]) / len(lines[-10:]), 4)
    return values


# ------------------------------------------------------------------------------------------------
# The findings
# ------------------------------------------------------------------------------------------------


def tested(words, seeds, args):
    """A finding with its comparisons and verdicts; None unless runs of all of them are there."""
    comparisons = [comparison(*row, seeds, args) for row in tables.FINDINGS[words]]
    if None in comparisons:
        return None
    verdict = tables.together([c["verdict"] for c in comparisons])
    return {"finding": words, "verdict": verdict, "comparisons": comparisons}


def comparison(a, b, column, wanted, seeds, args):
    """b − a by question and seed: its mean, its interval, and what that says. None without runs.

    With a the same as b: its second look minus its first.
    """
    evaluation, _, metric = column.partition(" ")
    table, ends = [], []
    for seed in seeds if CELLS[b].task else [0]:
        pair = [job_of(name, seed if CELLS[name].task else 0, args) for name in (a, b)]
        if not all(is_trained(job) and stands(job, evaluation) for job in pair):
            continue
        homes = [os.path.dirname(job.results(evaluation)) for job in pair]
        names = ["predictions.jsonl", f"predictions{'-second-look' * (a == b)}.jsonl"]
        records = [read_predictions(os.path.join(*path)) for path in zip(homes, names)]
        check_alike(*records, [], evaluation, *homes)
        task = read_object(pair[0].results(evaluation))["settings"]["task"]
        table.append(dict(differences(task, *records))[metric])
        ends.append([metrics_of(task, list(of_one.values()))[metric] for of_one in records])
    if not table:
        return None
    table, (start, end) = np.array(table), np.mean(ends, axis=0)
    low, high = interval(table, np.random.default_rng(0))
    numbers = {"from": start, "to": end, "difference": table.mean(), "low": low, "high": high}
    return (
        {"a": a, "b": b, "column": column, "wanted": wanted, "seeds": len(table)}
        | {name: round(float(value), 2) for name, value in numbers.items()}
        | {"verdict": tables.verdict(low, high, wanted)}
    )


def interval(table, rng, samples=10_000):
    """(low, high) between which the mean of a table (S, n) lies in 95 % of the samples.

    The paired bootstrap of evaluation/compare.py, over two things: n questions and S seeds are
    drawn with replacement, so that neither lucky questions nor a lucky seed decide alone.
    """
    seeds, questions = (rng.multinomial(k, [1 / k] * k, samples) / k for k in table.shape)
    means = (seeds @ table * questions).sum(axis=1)  # (samples,)
    return np.percentile(means, [2.5, 97.5])


# ------------------------------------------------------------------------------------------------
# The program
# ------------------------------------------------------------------------------------------------


def parse_args():
    p = argparse.ArgumentParser(
        prog="python -m tools.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("tables", nargs="+", metavar="TABLE", help=f"of {', '.join(TABLES)}, or all")
    shows = "run nothing: print what is there, what is missing, and the minutes that it takes"
    p.add_argument("--plan", dest="planned", action="store_true", help=shows)
    p.add_argument("--seeds", nargs="+", **FROM_0, default=[0, 1, 2])
    p.add_argument("--steps", **COUNT, default=tables.EPOCH, help="of one task in one epoch")
    p.add_argument("--limit", **COUNT, help="only the first so many questions of each benchmark")
    cores = os.cpu_count() or 1
    p.add_argument("--processes", **COUNT, default=cores, help="cells at a time (default: cores)")
    p.add_argument("--out", default=os.path.join("runs", "paper"))
    p.add_argument("--docs", action="store_true", help="write the results into docs/ as well")
    args = p.parse_args()
    if unknown := sorted(set(args.tables) - {*TABLES, "all"}):
        raise BadInput(f"there is no table {unknown[0]}; there is: {', '.join(TABLES)}, all")
    args.tables = [name for name in TABLES if name in args.tables or "all" in args.tables]
    if args.docs and (args.steps != tables.EPOCH or args.limit):
        raise BadInput("docs/ show no rehearsals: give --docs without --steps and --limit")
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


def size_of(args):
    """What all cells of a folder must have in common; base: the checksum of its weights."""
    base = fingerprint(TOY_MODEL)
    return {"steps": args.steps, "limit": args.limit, "base": f"{base:08x}"}


def check_out(args):
    """Raises BadInput if --out holds anything but cells of this size: before hours of training."""
    if not os.path.lexists(args.out):
        return
    if os.path.isdir(args.out) and set(os.listdir(args.out)) <= {LOCK}:
        return
    try:
        before = read_object(os.path.join(args.out, "results.json"), kind=str, settings=dict)
    except BadInput as e:
        raise BadInput(f"--out {args.out} is not ours ({e}): give another, or move it") from e
    if before["kind"] != KIND or before["settings"] != size_of(args):
        raise BadInput(
            f"--out {args.out} holds {before['kind']} with {before['settings']}, not {KIND} with "
            f"{size_of(args)}: give another, or the same --steps, --limit and toy base"
        )


def write(results, out):
    """results.json and tables.md; returns the first as text."""
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    replace_file(os.path.join(out, "results.json"), text)
    replace_file(os.path.join(out, "tables.md"), tables.page(results) + "\n")
    return text


def write_docs(results, text):
    """docs/results.json, and what is made of it: docs/tables.md and parts of docs/results.md."""
    home = os.path.join(ROOT, "docs")
    with open(os.path.join(home, "results.md"), encoding="utf-8") as f:
        page = tables.put_into(f.read(), results)
    replace_file(os.path.join(home, "results.json"), text)
    replace_file(os.path.join(home, "tables.md"), tables.whole_page(results))
    replace_file(os.path.join(home, "results.md"), page)


@locks_released()
def start():
    began, args = time.perf_counter(), parse_args()
    args.out = os.path.normpath(args.out)
    check_out(args)
    args.measured = measured(args.out)
    if args.planned:
        return print("\n".join(plan(args.tables, args)))
    try:
        os.makedirs(args.out, exist_ok=True)
        take(args.out)
        if not os.path.exists(os.path.join(args.out, "results.json")):  # says whose folder it is
            write(collect(args), args.out)
        os.makedirs(os.path.join(args.out, "logs"), exist_ok=True)
    except OSError as e:
        raise BadInput(f"cannot write to --out {args.out}: {e.strerror}") from e
    try:
        do(jobs_of(args.tables, args), args)
    finally:
        results = collect(args)
        text = write(results, args.out)
    if args.docs:
        write_docs(results, text)
    took = f"{(time.perf_counter() - began) / 60:.1f} minutes"
    print(f"{tables.page(results)}\n\nwrote {args.out}/tables.md and results.json: {took}")


def main():
    run_program(start, interrupted="the same command goes on from there")


if __name__ == "__main__":
    main()
