"""The table of tasks: prompts ask for what rules pay."""

import doctest
import os
import re
import shutil
import subprocess
import sys

import pytest

import tasks
from conftest import ROOT
from data import Example
from tasks import TASKS, ideal_answer, question_text, score

BOXES = [(0.1 + 0.05 * k, 0.2, 0.5 + 0.05 * k, 0.6) for k in range(8)]
WHY, REASONS = "why did the boy run", ("to eat", "to play", "no reason")
EVENTS = ["a boy kicks a ball", "the dog runs away"]
EXAMPLES = {
    "grounding": Example("g", "grounding", "x.mp4", "a door opens", (12.0, 18.0)),
    "tracking": Example("t", "tracking", "x", "sloth", BOXES),
    "qa": Example("q", "qa", "x.mp4", WHY, "B", REASONS),
    "gqa": Example("q", "gqa", "x.mp4", WHY, ("C", [(1.0, 4.5), (7.0, 9.0)]), REASONS),
    "quality": Example("v", "quality", "x.mp4", "", "low quality"),
    "caption": Example("c", "caption", "x.mp4", "", EVENTS),
    "description": Example("d", "description", "x.mp4", "", (EVENTS, "A boy kicks a red ball.")),
}


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_ideal_answer_to_every_prompt_earns_full_marks(task, think):
    example = EXAMPLES[task]
    text = ideal_answer(example, thought="the door opens late" if think else None)
    full = dict.fromkeys(TASKS[task].rules, 1.0)
    assert score(task, text, example.answer, think) == pytest.approx(full)


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_form_shown_in_the_prompt_is_the_form_that_is_paid(task, think):
    """A prompt and a reward that disagree are a common bug; the prompt's example must pass."""
    shown = question_text(EXAMPLES[task], 30.0, think).split("like this: ")[1]
    assert score(task, shown, EXAMPLES[task].answer, think)["format"] == 1.0


def test_prompts_say_what_the_model_must_know():
    told = {"grounding": ["30.0 seconds"], "gqa": ["(C) no reason"]}
    told["tracking"] = ["sloth", "[0.10, 0.20, 0.50, 0.60]"]
    for task, words in told.items():
        assert all(said in question_text(EXAMPLES[task], 30.0, True) for said in words)


@pytest.mark.slow
def test_adding_a_task_is_adding_a_row(tmp_path, charades):
    """The example of CONTRIBUTING.md, put into tasks.py as it says: trained and evaluated."""
    for name in os.listdir(ROOT):
        if name.endswith(".py"):
            shutil.copy(os.path.join(ROOT, name), tmp_path)
        elif name == "assets" or os.path.isfile(os.path.join(ROOT, name, "__init__.py")):
            os.symlink(os.path.join(ROOT, name), tmp_path / name)
    with open(os.path.join(ROOT, "CONTRIBUTING.md"), encoding="utf-8") as f:
        (block,) = re.findall(
            r"```python\n(import re\n.*?TASKS\[\"length\"\].*?)```", f.read(), re.DOTALL
        )
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    with open(tmp_path / "tasks.py", "a", encoding="utf-8") as f:
        f.write("\n" + block)

    def run(line):
        command = [sys.executable, *line.split(), "--data", charades]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("train.py --task length --steps 2 --examples 4 --prompts-per-step 2 --group-size 2 "
               "--out runs/new")  # fmt: skip
    assert f"--bench charades --task length --data {charades} --model runs/new" in said
    with open(tmp_path / "runs" / "new" / "metrics.jsonl", encoding="utf-8") as f:
        assert "reward/length/close" in f.readline()
    said, out = run("eval.py --bench charades --task length --limit 2 --model runs/new"), "runs/new"
    assert "close  format" in said
    assert os.path.isfile(tmp_path / out / "eval-charades-length" / "results.json")


def test_examples_in_docstrings():
    assert doctest.testmod(tasks).failed == 0
