"""Every command of the README, docs/ and CONTRIBUTING.md, run. Long ones are cut short and large
ones made small, by the rules below and no others.

    make docs-check             # or: python tests/docs_check.py [words that a command must hold]

Not run here: make (CI does), git, pip, the making of .venv, and the speed scripts' --trl, which
needs a venv of its own.
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, "runs", "docs-check")

SMALLER = [
    (r"Qwen/Qwen2\.5-VL-7B-Instruct", "assets/toy-base"),
    (r"--nproc-per-node 8", "--nproc-per-node 2"),
    (
        r"--nnodes 2 (.*) HOST:29500",
        r"--nnodes 1 \1 localhost:29533",
    ),  # two nodes: the same rendezvous, of one
    (r"/shared/runs/", "runs/"),
    (r"\bruns/", "runs/docs-check/"),
    (r"--into homework", "--into runs/docs-check/homework"),
    (r"--student homework", "--student runs/docs-check/homework"),
    (r"\bmerged$", "runs/docs-check/merged"),
    (
        r"(.*-m course grade) FOLDER --out grades.csv",
        r"\1 runs/docs-check/class --out runs/docs-check/grades.csv",
    ),
    (r" --out autograder.zip", " --out runs/docs-check/autograder.zip"),
    (r" --trl 1", ""),
    (r"--steps 40\b", "--steps 2"),
    (r"^(python -m course\.loose .*)$", r"\1 --examples 8 --prompts-per-step 4 --group-size 2"),
    (r"^(python tests/bench/ladder\.py)$", r"\1 --help"),  # half an hour
    (
        r"^(python tests/bench/(?:kills|worlds|fuzz|plan_check|rehearsal)\.py)( .*)?$",
        r"\1 --help",
    ),  # minutes each, and run as they stand for the figures of docs/
    (r"^(python -m toy\.base)$", r"\1 --help"),  # hours
    (r"^python -m pytest (.*)$", r"python -m pytest --collect-only -q \1"),  # are there such tests?
    (
        r"^python -m tools\.paper .*$",
        "python -m tools.paper --help",
    ),  # an hour; `make paper` is its own check
    (r" --into DIR$", " --into runs/docs-check/handout"),
    (r"^(.*train\.py(?!.*(--help|--plan|--steps)).*)$", r"\1 --steps 2"),
    (
        r"^(.*train\.py(?!.*(--help|--plan)).*)$",
        r"\1 --examples 8 --prompts-per-step 4 --group-size 2 --max-new-tokens 32",
    ),
    (
        r"^(.*train\.py(?!.*(--help|--plan|--out)).*)$",
        r"\1 --out runs/docs-check/unnamed --overwrite",
    ),
    (r"^(.*eval\.py --bench(?!.*--compare).*)$", r"\1 --limit 2 --max-new-tokens 32"),
    (
        r"^(python tests/bench/scoring\.py)$",
        r"\1 --repeats 1 --prompt 256 --group 8 --completion 64",
    ),
    (r"^(python tests/bench/(?:sampling|floor)\.py)$", r"\1 --repeats 1 --prompt 256"),
    (r"^(python tests/bench/step\.py)$", r"\1 --repeats 1 --frame-tokens 4"),
    (r"^(python tests/bench/(?:growth|busy|long_clips)\.py)$", r"\1 --help"),  # many minutes
    (
        r"^(python tests/bench/evaluation\.py)$",
        r"\1 --repeats 1 --clips 2 --questions 2 --frame-tokens 4",
    ),
]
# What must be there before: a short run, its evaluation, and somebody's solved homework in a folder
# of submissions.
FIRST = [
    "python train.py --task grounding --out runs/docs-check/demo --overwrite --steps 2 "
    "--examples 8 --prompts-per-step 4 --group-size 2",
    "python eval.py --bench charades --model assets/toy-base runs/docs-check/demo --limit 2 "
    "--max-new-tokens 32",
]


def pages():
    """{path in the repository: text} of all pages, the README first."""
    found = sorted(glob.glob("docs/*.md", root_dir=ROOT))
    texts = {}
    for path in ["README.md", *found, "CONTRIBUTING.md"]:
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            texts[path] = f.read()
    return texts


def commands(text):
    """What starts one of our programs: lines of fenced blocks without their comments, and words in
    backticks."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced and re.match(r"(python|torchrun) ", line):
            yield re.split(r"\s+# ", line)[0].strip()
        elif not fenced:
            yield from re.findall(r"`((?:python|torchrun) [^`]*(?:\.py|-m )[^`]*)`", line)


def all_commands():
    """The commands of all pages in their order, each once."""
    return list(dict.fromkeys(c for text in pages().values() for c in commands(text)))


def smaller(command):
    for pattern, replacement in SMALLER:
        command = re.sub(pattern, replacement, command)
    return command


def run(command):
    """Runs one command of ours, prints how it went, and returns whether it went well."""
    began = time.time()
    words = shlex.split(command)
    bin_folder = os.path.dirname(sys.executable)
    if words[0] == "torchrun" and "--rdzv-backend" not in command:
        words[1:1] = ["--standalone"]
    words[0] = os.path.join(bin_folder, words[0])
    # What is made small for two processes is for the CPU, as in conftest.py.
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, env=env)
    result = "FAILED" if done.returncode else "ok    "
    print(f"{result} {time.time() - began:5.1f} s   {command}", flush=True)
    if done.returncode:
        print(done.stdout[-600:], done.stderr[-1200:], sep="\n")
    return done.returncode == 0


def main():
    shutil.rmtree(HOME, ignore_errors=True)
    wanted = [c for c in all_commands() if all(word in c for word in sys.argv[1:])]
    good = [run(command) for command in FIRST]
    for command in wanted:
        good.append(run(smaller(command)))
        if "-m course start" in command:  # the student does the work
            good.append(run("python -m course solution all --into runs/docs-check/homework"))
            homework, submissions = os.path.join(HOME, "homework"), os.path.join(HOME, "class")
            shutil.copytree(homework, os.path.join(submissions, "a-student"))
    print(f"{len(wanted)} commands of the pages, {good.count(False)} failed")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
