"""The table of tasks: prompts ask for what rules pay; metrics are those of a slow computation."""

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
EXAMPLES = {
    "grounding": Example("g", "grounding", "x.mp4", "a door opens", (12.0, 18.0)),
    "tracking": Example("t", "tracking", "x", "sloth", BOXES),
    "qa": Example(
        "q", "qa", "x.mp4", "why did the boy run", "B", ("to eat", "to play", "no reason")
    ),
    "gqa": Example(
        "q",
        "gqa",
        "x.mp4",
        "why did the boy run",
        ("C", [(1.0, 4.5), (7.0, 9.0)]),
        ("to eat", "to play", "no reason"),
    ),
    "quality": Example("v", "quality", "x.mp4", "", "low quality"),
    "caption": Example("c", "caption", "x.mp4", "", ["a boy kicks a ball", "the dog runs away"]),
}


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_ideal_answer_to_every_prompt_earns_full_marks(task, think):
    example = EXAMPLES[task]
    text = ideal_answer(example, thought="the door opens late" if think else None)
    assert score(task, text, example.answer, think) == pytest.approx(
        dict.fromkeys(TASKS[task].rules, 1.0)
    )


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_form_shown_in_the_prompt_is_the_form_that_is_paid(task, think):
    """A prompt and a reward that disagree are a common bug; the prompt's example must pass."""
    shown = question_text(EXAMPLES[task], 30.0, think).split("like this: ")[1]
    assert score(task, shown, EXAMPLES[task].answer, think)["format"] == 1.0


def test_prompts_say_what_the_model_must_know():
    assert "30.0 seconds" in question_text(
        EXAMPLES["grounding"], 30.0, True
    ) and "(C) no reason" in question_text(EXAMPLES["gqa"], 30.0, True)
    assert "sloth" in question_text(
        EXAMPLES["tracking"], 30.0, True
    ) and "[0.10, 0.20, 0.50, 0.60]" in question_text(EXAMPLES["tracking"], 30.0, True)


def record(text, answer, group=""):
    return {"text": text, "answer": answer, "group": group}


def test_grounding_metrics_by_hand():
    records = [
        record("<answer>0.0 to 5.0</answer>", (0, 10)),
        record("<answer>0 to 10</answer>", (0, 10)),
        record("about 5", (0, 10)),
        record("", (0, 10)),
    ]
    # 0.5 itself counts.
    assert TASKS["grounding"].metrics(records) == pytest.approx({
        "mIoU": 37.5,
        "R@0.3": 50,
        "R@0.5": 50,
        "R@0.7": 25,
    })


def test_tracking_metrics_by_hand():
    right, half = (
        [(0.0, 0.0, 0.4, 0.4)] * 8,
        [(0.0, 0.0, 0.4, 0.4)] * 4 + [(0.6, 0.6, 1.0, 1.0)] * 4,
    )
    texts = [
        "<answer>[" + ", ".join(map(tasks.box_text, boxes)) + "]</answer>"
        for boxes in (right, half)
    ] + ["[[1]]", ""]
    metrics = TASKS["tracking"].metrics([record(text, right) for text in texts])
    assert metrics == pytest.approx({
        "overlap": 37.5,
        "SR@0.5": 37.5,
        "SR@0.7": 37.5,
        "SR@0.75": 37.5,
    })


def test_a_box_of_which_half_is_right_is_no_success():
    """GOT-10k counts overlaps above the threshold, Charades-STA those at it."""
    metrics = TASKS["tracking"].metrics([
        record(
            f"<answer>{tasks.boxes_text([(0, 0, 1, 0.5)] * 8)}</answer>", [(0.0, 0.0, 1.0, 1.0)] * 8
        )
    ])
    assert metrics == {"overlap": 50, "SR@0.5": 0, "SR@0.7": 0, "SR@0.75": 0}
    assert (
        TASKS["grounding"].metrics([record("<answer>0 to 5</answer>", (0.0, 10.0))])["R@0.5"] == 100
    )


def test_quality_and_caption_metrics_by_hand():
    texts = ["<answer>Low quality</answer>", "<answer>high quality</answer>", "low quality", ""]
    assert TASKS["quality"].metrics([record(text, "low quality") for text in texts]) == {
        "accuracy": 25
    }
    events = ["a boy kicks a ball", "the dog runs away"]
    texts = [
        "<answer>A boy kicks a ball. Then the dog runs away.</answer>",
        "<answer>A boy kicks a ball.</answer>",
        "",
        "<answer></answer>",
    ]
    assert TASKS["caption"].metrics([record(text, events) for text in texts]) == {"recall": 37.5}


def test_choice_metrics_by_hand():
    records = [
        record("<answer>B</answer>", "B", "short"),
        record("<answer>A</answer>", "B", "short"),
        record("<answer>(C)</answer>", "C", "long"),
        record("C", "C", "long"),
    ]
    assert TASKS["qa"].metrics(records) == {
        "accuracy": 50,
        "mean of groups": 50,
        "long": 50,
        "short": 50,
    }
    assert (
        TASKS["qa"].metrics(records[:3])["accuracy"] == pytest.approx(200 / 3)
        and TASKS["qa"].metrics(records[:3])["mean of groups"] == 75
    )
    assert TASKS["qa"].metrics(records[:1]) == {"accuracy": 100}


def test_gqa_metrics_by_hand():
    truth = ("B", [(0.0, 10.0)])
    texts = [
        "<answer>B</answer><glue>[(0, 5)]</glue>",
        "<answer>B</answer><glue>[(0, 4)]</glue>",
        "<answer>A</answer><glue>[(0, 10)]</glue>",
        "<answer>B</answer>",
    ]
    metrics = TASKS["gqa"].metrics([record(text, truth) for text in texts])
    assert metrics == pytest.approx({
        "accuracy": 75,
        "mIoU": 100 * (0.5 + 0.4 + 1.0) / 4,
        "Acc@GQA": 25,
    })


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

    def run(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run(
        *"train.py --task length".split(),
        *("--data", charades),
        *("--steps", 2),
        *("--examples", 4),
        *("--prompts-per-step", 2),
        "--group-size",
        2,
        *("--out", "runs/new"),
    )
    assert "--bench charades --task length --model runs/new" in said
    with open(tmp_path / "runs" / "new" / "metrics.jsonl", encoding="utf-8") as f:
        assert "reward/length/close" in f.readline()
    said = run(
        *"eval.py --bench charades --task length".split(),
        *("--data", charades),
        *("--limit", 2),
        *("--model", "runs/new"),
    )
    assert "closeness" in said and os.path.isfile(
        tmp_path / "runs" / "new" / "eval-charades-length" / "results.json"
    )


def test_examples_in_docstrings():
    assert doctest.testmod(tasks).failed == 0
