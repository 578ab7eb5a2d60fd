"""paper.py: the paper's comparison in kind. Is it better to imitate right answers, or to be paid
for one's own?

    make paper                                                  # or: python -m tools.paper
    python -m tools.paper --seeds 0 1 2 --methods grpo --tasks all    # joint GRPO alone, three times

From one base policy, on the same toy samples, for as many steps of as many prompts: supervised
fine-tuning (SFT, one update a step) and GRPO (two updates a step, on one rollout), on each task
alone and on the three of the paper jointly, in three times the steps, so that each task is seen as
often. Then every benchmark, those of the trained tasks and those nobody was trained for. What was
trained for as many steps, or evaluated, before is not done again.

All of it is the toy world; the paper's figures, another model's on other data, stand beside it for
what they are: a direction to compare with.
"""

import argparse
import os
import subprocess
import sys

from annotations.readers import DATASETS
from runtime.errors import BadInput, check_flags, read_object, run_program
from runtime.folders import read_lines
from runtime.settings import TOY_MODEL
from tasks import JOINTLY

# All runs train adapters alone (scale/adapters.py). Training every weight of this small model gains
# as much on what is trained, and forgets the rest: after 300 joint steps it answered "What
# happens?" with "4.6 to 6.5". That adapters learn less and forget less is known of large models,
# too (arXiv 2405.09673). Sixteen prompts a step, not eight, because Adam makes a step of the same
# size of a noisy gradient as of a good one (what that alone does for the rest was not measured).
GENTLY = ("--lora", "16", "--prompts-per-step", "16")

# benchmark: (the task whose single-task run is evaluated on it, the metrics that are shown)
SHOWN = {
    "charades": ("grounding", ("mIoU", "R@0.5")),
    "activitynet": ("grounding", ("mIoU", "R@0.5")),
    "got10k": ("tracking", ("overlap", "SR@0.5")),
    "nextgqa": ("gqa", ("accuracy", "mIoU", "Acc@GQA")),
    **{
        name: ("gqa", ("accuracy",))
        for name in ("videomme", "mvbench", "perceptiontest", "quality")
    },
    "caption": ("gqa", ("recall",)),
}
UNSEEN = (
    "activitynet",
    "videomme",
    "mvbench",
    "perceptiontest",
    "quality",
    "caption",
)  # no run here is trained on their data

# VideoChat-R1 against Qwen2.5-VL-7B: (before, after) as far as they are known here, else the gain
# that its abstract names. (arXiv 2504.06958, abstract and results on Charades-STA and MVBench; the
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
    """One of our own programs, on as many processes as asked; its failure is ours, and it has said
    why.
    """
    print("$", " ".join(command), flush=True)
    if subprocess.run(command).returncode:
        raise BadInput(
            f"this failed, see above: {' '.join(command)}; the same command given again goes on"
            " from there"
        )


def program(name, processes):
    return (
        (
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            name,
        )
        if processes > 1
        else (sys.executable, name)
    )


def trained(method, task, seed, args):
    """The run's folder, trained unless it is there."""
    folder = os.path.join(args.out, f"{task}-{method}-seed{seed}")
    steps = args.steps * (len(JOINTLY) if task == "all" else 1)
    if not finished(folder, steps):
        run(
            *program("train.py", args.processes),
            "--task",
            task,
            "--method",
            method,
            "--seed",
            str(seed),
            "--steps",
            str(steps),
            "--examples",
            str(args.examples),
            "--out",
            folder,
            "--overwrite",
            "--quiet",
            *GENTLY,
            *(("--updates-per-rollout", "2") if method == "grpo" else ()),
        )
    return folder


def finished(folder, steps):
    """Whether it holds a run of so many steps that came to its end, and began from the base as it
    is now.
    """
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
    """When the newest weights in it were written."""
    return max(
        os.path.getmtime(os.path.join(at, f))
        for at, _, names in os.walk(folder)
        for f in names
        if f.endswith(".safetensors")
    )


def metrics(model, benches, args):
    """{benchmark: {metric: percent}} of a model, evaluated where it has not been."""
    home = (
        model if model != TOY_MODEL else os.path.join("runs", "eval", os.path.basename(TOY_MODEL))
    )
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
    """Raises BadInput if there is a file in the table's place that is no table of ours: before
    hours of training.
    """
    if os.path.lexists(path):
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                ours = f.read(len(FIRST_WORDS)) == FIRST_WORDS
        except OSError:
            ours = False
        if not ours:
            raise BadInput(
                f"{path} was not written by tools.paper: give another --out, or move it away"
            )


def table(columns, seeds):
    """columns: {name: [one {benchmark: metrics} a seed]} with "base" first → lines of markdown."""
    names = list(columns)
    yield (
        f"{FIRST_WORDS} (1.1 million parameters) on toy data, in"
        f" percent{f', means of seeds {seeds}' if len(seeds) > 1 else ''}. SFT and GRPO see the"
        " same samples in as many steps; GRPO makes two updates in each."
    )
    yield "| toy benchmark | " + " | ".join(names) + " | the paper (Qwen2.5-VL-7B, real data) |"
    yield "|---" * (len(names) + 2) + "|"
    for bench, (_, shown) in SHOWN.items():
        for metric in shown:
            cells = []
            for name in names:
                values = [m[bench][metric] for m in columns[name] if bench in m]
                base = columns["base"][0][bench][metric]
                cells.append(
                    "–"
                    if not values
                    else (
                        f"{base:.1f}"
                        if name == "base"
                        else f"{mean(values):.1f} ({mean(values) - base:+.1f})"
                    )
                )
            paper = PAPER.get((bench, metric), "–")
            if isinstance(paper, tuple):
                paper = (
                    f"{paper[0]} → {paper[1]} ({paper[1] - paper[0]:+.1f})"
                    if paper[0]
                    else f"→ {paper[1]}"
                )
            elif paper != "–":
                paper = f"{paper:+.1f}"
            yield (
                f"| {bench} {metric}{' (not trained on)' if bench in UNSEEN else ''} | "
                + " | ".join(cells)
                + f" | {paper} |"
            )


def verdicts(columns):
    """Where SFT did better on the toy, by each benchmark's first metric: the paper found GRPO
    better wherever it compared them.
    """
    for ours, theirs in (("GRPO", "SFT"), ("joint GRPO", "joint SFT")):
        if ours not in columns or theirs not in columns:
            continue
        for bench, (_, shown) in SHOWN.items():
            values = [
                [m[bench][shown[0]] for m in columns[name] if bench in m] for name in (theirs, ours)
            ]
            if all(values) and mean(values[0]) > mean(values[1]):
                yield (
                    f"On toy {bench} {theirs} did better than {ours}: {mean(values[0]):.1f} against"
                    f" {mean(values[1]):.1f} {shown[0]}. The paper found GRPO better wherever it"
                    " compared them."
                )


def start():
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--tasks", nargs="+", default=[*JOINTLY, "all"], choices=[*JOINTLY, "all"])
    p.add_argument("--methods", nargs="+", default=["sft", "grpo"], choices=["sft", "grpo"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument(
        "--steps",
        type=int,
        default=40,
        help=(
            "of a run on one task, the joint ones have three times as many; GRPO makes two updates"
            " in each"
        ),
    )
    p.add_argument(
        "--examples",
        type=int,
        default=600,
        help="of each task at most: so that none outweighs the others in joint training",
    )
    p.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() if 16 % (os.cpu_count() or 1) == 0 else 1,
        help="for training and evaluation",
    )
    p.add_argument("--out", default=os.path.join("runs", "paper"))
    args = p.parse_args()
    check_flags(args)
    check_table(table_path := os.path.join(args.out, "table.md"))

    columns = {"base": [metrics(TOY_MODEL, DATASETS, args)]}
    for method in args.methods:
        alone, jointly = [], []
        for seed in args.seeds:
            found = {}  # each benchmark of the run that was trained for it
            for task in args.tasks:
                folder = trained(method, task, seed, args)
                benches = (
                    list(DATASETS)
                    if task == "all"
                    else [name for name, (tests, _) in SHOWN.items() if tests == task]
                )
                if task == "all":
                    jointly.append(metrics(folder, benches, args))
                else:
                    found |= metrics(folder, benches, args)
            alone.append(found)
        if set(args.tasks) != {"all"}:
            columns[method.upper()] = alone
        if jointly:
            columns[f"joint {method.upper()}"] = jointly
    columns = {
        name: columns[name]
        for name in ("base", "SFT", "GRPO", "joint SFT", "joint GRPO")
        if name in columns
    }
    lines = list(table(columns, args.seeds)) + [""] + list(verdicts(columns))
    if len(args.seeds) > 1:
        for bench, (_, shown) in SHOWN.items():
            for name in list(columns)[1:]:
                gains = [
                    m[bench][shown[0]] - columns["base"][0][bench][shown[0]]
                    for m in columns[name]
                    if bench in m
                ]
                (
                    lines.append(
                        f"{bench} {shown[0]}, {name}, seed by seed: "
                        + ", ".join(f"{g:+.1f}" for g in gains)
                    )
                    if gains
                    else None
                )
    print("\n".join(lines))
    os.makedirs(args.out, exist_ok=True)
    with open(table_path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main():
    run_program(start, interrupted="the same command goes on from there")


if __name__ == "__main__":
    main()
