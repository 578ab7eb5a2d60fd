"""Every command of the README, docs/ and CONTRIBUTING.md, and of the notebook for a free GPU,
started. Long ones are cut short and large ones made small, by the rules below and no others; each
is shown as it was run.

    make docs-check             # or: python tests/docs_check.py [words that a command must hold]

Not run here: make (CI does), git, pip, the making of .venv, and step.py's --trl, which needs a venv
of its own.
"""

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTEBOOK = os.path.join("docs", "colab.ipynb")
HOME = os.path.join(ROOT, "runs", "docs-check")

# (pattern, what it is replaced by): a step and two questions in place of hundreds, the toy base in
# place of a model of the hub, two processes of one machine in place of eight or of two machines.
# The program stays the same, and none is only asked for its --help.
SMALLER = [
    (r"Qwen/Qwen2\.5-VL-[37]B-Instruct", "assets/toy-base"),
    (r"--nproc-per-node 8", "--nproc-per-node 2"),
    (r"--nnodes 2 (.*) HOST:29500", r"--nnodes 1 \1 localhost:29533"),
    (r"/shared/runs/", "runs/"),
    (r"\bruns/", "runs/docs-check/"),
    (r" merged$", " runs/docs-check/merged"),
    (r"--(into|student) homework", r"--\1 runs/docs-check/homework"),
    (r" --into DIR$", " --into runs/docs-check/handout"),
    (r"grade FOLDER --out grades", "grade runs/docs-check/class --out runs/docs-check/grades"),
    (r" --out autograder.zip", " --out runs/docs-check/autograder.zip"),
    (r"^(python -m course\.loose .*)$", r"\1 --examples 8 --prompts-per-step 4 --group-size 2"),
    (r"--steps \d+\b", "--steps 2"),
    (r"^(.*train\.py(?!.*(--help|--plan|--steps)).*)$", r"\1 --steps 2"),
    (r"^(.*train\.py(?!.*(--help|--plan)).*)$",
     r"\1 --examples 8 --prompts-per-step 4 --group-size 2 --max-new-tokens 32"),
    (r"^(.*train\.py(?!.*(--help|--plan|--out)).*)$",
     r"\1 --out runs/docs-check/unnamed --overwrite"),
    (r"^(.*eval\.py --bench(?!.*--compare).*)$", r"\1 --limit 2 --max-new-tokens 32"),
    (r"^(python -m tools\.curves)$", r"\1 gamed --steps 2 --out runs/docs-check/curves"),
    (r"^(python -m toy\.base)$", r"\1 --steps 2 --out runs/docs-check/base"),
    (r"^(python -m tools\.paper) .*$",
     r"\1 7 --seeds 0 --steps 2 --limit 2 --out runs/docs-check/paper"),
    (r"^python -m pytest (.*)$", r"python -m pytest --collect-only -q \1"),  # CI runs them
    (r"^(python tests/bench/(?:group|floor)\.py)$", r"\1 --repeats 1 --prompt 256"),
    (r"^(python tests/bench/group\.py .*)$", r"\1 --group 4 --completion 16"),
    (r"^(python tests/bench/step\.py)( --trl 1)?$", r"\1 --repeats 1 --frame-tokens 4"),
    (r"^(python tests/bench/evaluation\.py)$",
     r"\1 --repeats 1 --clips 2 --questions 2 --frame-tokens 4"),
    (r"^(python tests/bench/kills\.py)$", r"\1 --runs 1"),
    (r"^(python tests/bench/hostile\.py)$", r"\1 --first 1"),
    (r"^(python tests/bench/rehearsal\.py)( .*)?$", r"\1\2 --config toy --device cpu"),
    (r"^(python tests/bench/simulate\.py)$",
     r"\1 --layers 1 --case '3b --lora 64 --recompute --prompts-per-step 1'"),
    (r"^(python tests/bench/before\.py) CHECKOUT$", r"\1 ."),
]  # fmt: skip
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
    texts[NOTEBOOK] = ""
    with open(os.path.join(ROOT, NOTEBOOK), encoding="utf-8") as f:
        for cell in json.load(f)["cells"]:
            source, fence = "".join(cell["source"]), "```\n" * (cell["cell_type"] == "code")
            source = re.sub("^!", "", source, flags=re.MULTILINE)  # what goes to the shell
            texts[NOTEBOOK] += f"{fence}{source}\n{fence}"
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


def run(command, written=None):
    """Runs one command of ours, prints how it went, and returns whether it went well.

    written: how it stands on the page, where it was made smaller.
    """
    began = time.time()
    words = shlex.split(command)
    bin_folder = os.path.dirname(sys.executable)
    if words[0] == "torchrun" and "--rdzv-backend" not in command:
        words[1:1] = ["--standalone"]
    words[0] = os.path.join(bin_folder, words[0])
    # What is made small for two processes is for the CPU, as in conftest.py.
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, env=env)
    result = "FAILED" if done.returncode else "ok    "
    print(f"{result} {time.time() - began:5.1f} s   {command}", flush=True)
    if written and written != command:
        print(f"                 for {written}", flush=True)
    if done.returncode:
        print(done.stdout[-600:], done.stderr[-1200:], sep="\n")
    return done.returncode == 0


def main():
    shutil.rmtree(HOME, ignore_errors=True)
    wanted = [c for c in all_commands() if all(word in c for word in sys.argv[1:])]
    good = [run(command) for command in FIRST]
    for command in wanted:
        good.append(run(smaller(command), command))
        if "-m course start" in command:  # the student does the work
            good.append(run("python -m course solution all --into runs/docs-check/homework"))
            homework, submissions = os.path.join(HOME, "homework"), os.path.join(HOME, "class")
            shutil.copytree(homework, os.path.join(submissions, "a-student"))
    cut = sum(smaller(command) != command for command in wanted)
    print(f"{len(wanted)} commands of the pages, {cut} made smaller, {good.count(False)} failed")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
