"""paper.py: the paper's comparison at toy scale: imitate right answers, or be paid for one's own?

    make paper                                     # or: python -m tools.paper
    python -m tools.paper --seeds 0 1 2 --methods grpo --tasks all    # joint GRPO, three times

Supervised fine-tuning (SFT, one update per step) and GRPO (two updates per step, on one rollout)
start from the same base policy and see the same toy samples, for as many steps of as many prompts:
on each task alone, and on the paper's three tasks jointly, in three times the steps, so that each
task is seen as often. Then every benchmark is run, those of the trained tasks and those that nobody
was trained for. A run or evaluation that is complete is not repeated.

All of it is the toy world. The paper's numbers, for another model on other data, stand beside it
for what they are: a direction to compare with.
"""

import argparse
import glob
import os
import subprocess
import sys

from runtime.errors import BadInput, check_flags, read_object, run_program
from runtime.folders import read_lines
from runtime.settings import TOY_MODEL
from tasks import JOINTLY

# All runs train adapters alone (scale/adapters.py). Training every weight of this small model gains
# as much on the trained tasks and forgets the others: after 300 joint steps it answered "What
# happens?" with "4.6 to 6.5". Adapters are known to learn less and forget less in large models, too
# (arXiv 2405.09673). Sixteen prompts per step, not eight, because Adam's steps are as large for a
# noisy gradient as for a good one (what that alone does for the other tasks was not measured).
GENTLY = ("--lora", "16", "--prompts-per-step", "16")

# benchmark: (the task whose single-task run is evaluated on it, the metrics that are shown)
SHOWN = {
    "charades": ("grounding", ("mIoU", "R@0.5")),
    "activitynet": ("grounding", ("mIoU", "R@0.5")),
    "got10k": ("tracking", ("overlap", "SR@0.5")),
    "nextgqa": ("gqa", ("accuracy", "mIoU", "Acc@GQA")),
    "videomme": ("gqa", ("accuracy",)),
    "mvbench": ("gqa", ("accuracy",)),
    "perceptiontest": ("gqa", ("accuracy",)),
    "quality": ("gqa", ("accuracy",)),
    "caption": ("gqa", ("recall",)),
}
# No run here is trained on the data of these.
UNSEEN = ("activitynet", "videomme", "mvbench", "perceptiontest", "quality", "caption")

# VideoChat-R1 against Qwen2.5-VL-7B: (before, after) where we know them, else the gain that its
# abstract names. (arXiv 2504.06958, abstract and results on Charades-STA and MVBench; the
# two R@0.5 as wizwand.com lists them.)
PAPER = {
    ("charades", "mIoU"): (29.0, 60.8),
    ("charades", "R@0.5"): (None, 71.7),
    ("activitynet", "R@0.5"): (None, 33.4),
    ("got10k", "overlap"): 31.2,
    ("videomme", "accuracy"): 0.9,
    ("mvbench", "accuracy"): (66.9, 67.9),
    ("perceptiontest", "accuracy"): 0.9,
}


def run(*command):
    """Runs one of our programs. Raises BadInput if it fails; it has said why itself."""
    print("$", " ".join(command), flush=True)
    if subprocess.run(command).returncode:
        raise BadInput(
            f"this failed, see above: {' '.join(command)}; the same command given again goes on"
            " from there"
        )


def program(name, processes):
    """The words that start one of our programs on so many processes."""
    if processes == 1:
        return [sys.executable, name]
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node".split()
    return [sys.executable, *torchrun, str(processes), name]


def trained(method, task, seed, args):
    """The run's folder, trained unless it is there."""
    folder = os.path.join(args.out, f"{task}-{method}-seed{seed}")
    steps = args.steps * (len(JOINTLY) if task == "all" else 1)
    if not finished(folder, steps):
        what = ["--task", task, "--method", method, "--seed", str(seed), "--steps", str(steps)]
        where = ["--examples", str(args.examples), "--out", folder, "--overwrite", "--quiet"]
        updates = ["--updates-per-rollout", "2"] if method == "grpo" else []
        run(*program("train.py", args.processes), *what, *where, *GENTLY, *updates)
    return folder


def finished(folder, steps):
    """Whether it holds a complete run of so many steps that began from the base as it is now."""
    if not os.path.isfile(os.path.join(folder, "policy", "adapter_model.safetensors")):
        return False
    settings = os.path.join(folder, "settings.json")
    if not os.path.isfile(settings) or os.path.getmtime(settings) < weights_written(TOY_MODEL):
        return False
    try:
        planned = read_object(settings, steps=int)["steps"]
        return len(read_lines(os.path.join(folder, "metrics.jsonl"))) == planned == steps
    except BadInput:  # damaged: it is trained again
        return False


def weights_written(folder):
    """When the newest weights in a folder were written."""
    paths = glob.glob(os.path.join(glob.escape(folder), "**", "*.safetensors"), recursive=True)
    return max(map(os.path.getmtime, paths))


def metrics(model, benches, args):
    """{benchmark: {metric: percent}} of a model, evaluated where it has not been."""
    home = model
    if model == TOY_MODEL:
        home = os.path.join("runs", "eval", os.path.basename(TOY_MODEL))
    files = {name: os.path.join(home, f"eval-{name}", "results.json") for name in benches}
    newest = weights_written(model)

    def stands(path):
        """Whether an evaluation of the weights as they are now can be read."""
        try:
            return os.path.getmtime(path) >= newest and bool(read_object(path, metrics=dict))
        except (OSError, BadInput):
            return False

    missing = [name for name, path in files.items() if not stands(path)]
    if missing:
        run(*program("eval.py", args.processes), "--bench", ",".join(missing), "--model", model)
    return {name: read_object(path, metrics=dict)["metrics"] for name, path in files.items()}


def mean(values):
    return sum(values) / len(values)


FIRST_WORDS = "All but the last column: the toy base"  # of the table


def check_table(path):
    """Raises BadInput if there is a file in the table's place that we did not write.

    It is called first: before hours of training.
    """
    if not os.path.lexists(path):
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            ours = f.read(len(FIRST_WORDS)) == FIRST_WORDS
    except OSError:
        ours = False
    if not ours:
        raise BadInput(
            f"{path} was not written by tools.paper: give another --out, or move it away"
        )


def values_of(columns, name, bench, metric):
    """What the runs of a column reached, those that were evaluated on this benchmark."""
    return [m[bench][metric] for m in columns[name] if bench in m]


def cell(columns, name, bench, metric):
    """A result in the table: the mean over seeds, and its difference from the base."""
    values = values_of(columns, name, bench, metric)
    if not values:
        return "–"
    base = columns["base"][0][bench][metric]
    if name == "base":
        return f"{base:.1f}"
    return f"{mean(values):.1f} ({mean(values) - base:+.1f})"


def paper_cell(bench, metric):
    """The paper's result, as far as it is known."""
    paper = PAPER.get((bench, metric))
    if paper is None:
        return "–"
    if not isinstance(paper, tuple):
        return f"{paper:+.1f}"
    before, after = paper
    return f"{before} → {after} ({after - before:+.1f})" if before else f"→ {after}"


def table(columns, seeds):
    """The lines of a markdown table.

    columns: {name: [{benchmark: {metric: percent}} per seed]}, "base" first.
    """
    names = list(columns)
    means = f", means of seeds {seeds}" if len(seeds) > 1 else ""
    yield (
        f"{FIRST_WORDS} (1.1 million parameters) on toy data, in percent{means}. SFT and GRPO see"
        " the same samples in as many steps; GRPO makes two updates in each."
    )
    yield "| toy benchmark | " + " | ".join(names) + " | the paper (Qwen2.5-VL-7B, real data) |"
    yield "|---" * (len(names) + 2) + "|"
    for bench, (_, shown) in SHOWN.items():
        unseen = " (not trained on)" if bench in UNSEEN else ""
        for metric in shown:
            cells = [cell(columns, name, bench, metric) for name in names]
            cells.append(paper_cell(bench, metric))
            yield f"| {bench} {metric}{unseen} | " + " | ".join(cells) + " |"


def verdicts(columns):
    """The benchmarks on which SFT did better on the toy, by their first metric."""
    for ours, theirs in (("GRPO", "SFT"), ("joint GRPO", "joint SFT")):
        if ours not in columns or theirs not in columns:
            continue
        for bench, (_, (metric, *_)) in SHOWN.items():
            grpo, sft = (values_of(columns, name, bench, metric) for name in (ours, theirs))
            if grpo and sft and mean(sft) > mean(grpo):
                yield (
                    f"On toy {bench} {theirs} did better than {ours}: {mean(sft):.1f} against"
                    f" {mean(grpo):.1f} {metric}. The paper found GRPO better wherever it compared"
                    " them."
                )


def seed_by_seed(columns):
    """The gain over the base of each seed's run, by each benchmark's first metric."""
    for bench, (_, (metric, *_)) in SHOWN.items():
        base = columns["base"][0][bench][metric]
        for name in list(columns)[1:]:
            gains = [f"{v - base:+.1f}" for v in values_of(columns, name, bench, metric)]
            if gains:
                yield f"{bench} {metric}, {name}, seed by seed: {', '.join(gains)}"


def parse_args():
    p = argparse.ArgumentParser(
        prog="python -m tools.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--tasks", nargs="+", default=[*JOINTLY, "all"], choices=[*JOINTLY, "all"])
    p.add_argument("--methods", nargs="+", default=["sft", "grpo"], choices=["sft", "grpo"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    steps = (
        "of a run on one task; joint runs have three times as many; GRPO makes two updates in each"
    )
    p.add_argument("--steps", type=int, default=40, help=steps)
    examples = "of each task at most: so that none outweighs the others in joint training"
    p.add_argument("--examples", type=int, default=600, help=examples)
    cores = os.cpu_count() or 1
    processes = cores if 16 % cores == 0 else 1  # they share 16 prompts per step
    p.add_argument("--processes", type=int, default=processes, help="for training and evaluation")
    p.add_argument("--out", default=os.path.join("runs", "paper"))
    args = p.parse_args()
    check_flags(args)
    return args


def results_of(args):
    """Trains and evaluates all that is asked for. Returns {column: [metrics per seed]}."""
    columns = {"base": [metrics(TOY_MODEL, list(SHOWN), args)]}
    for method in args.methods:
        alone, jointly = [], []
        for seed in args.seeds:
            of_seed = {}  # the results of each benchmark, from the run trained for it
            for task in args.tasks:
                folder = trained(method, task, seed, args)
                if task == "all":
                    jointly.append(metrics(folder, list(SHOWN), args))
                else:
                    benches = [name for name, (tests, _) in SHOWN.items() if tests == task]
                    of_seed |= metrics(folder, benches, args)
            alone.append(of_seed)
        if set(args.tasks) != {"all"}:
            columns[method.upper()] = alone
        if jointly:
            columns[f"joint {method.upper()}"] = jointly
    order = ("base", "SFT", "GRPO", "joint SFT", "joint GRPO")
    return {name: columns[name] for name in order if name in columns}


def start():
    args = parse_args()
    path = os.path.join(args.out, "table.md")
    check_table(path)
    columns = results_of(args)
    lines = [*table(columns, args.seeds), "", *verdicts(columns)]
    if len(args.seeds) > 1:
        lines += seed_by_seed(columns)
    print("\n".join(lines))
    os.makedirs(args.out, exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main():
    run_program(start, interrupted="the same command goes on from there")


if __name__ == "__main__":
    main()
