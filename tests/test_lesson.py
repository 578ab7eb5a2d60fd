"""The lesson runs, says what its code prints, and its notebook is the same lesson; the bandit."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from course import loose
from course.bandit import three_armed_bandit
from course.lesson import NOTEBOOK, PAGE, notebook, run_page
from course.loose import any_answer_tag, seconds_covered
from lib.errors import BadInput
from rewards import grounding_format, grounding_iou


@pytest.fixture(scope="module")
def page():
    with open(PAGE, encoding="utf-8") as f:
        return f.read()


@pytest.fixture(scope="module")
def ran(page):
    return run_page(page)


def test_the_page_shows_what_its_code_prints(page, ran):
    assert ran[0] == page, "run python -m course.lesson"
    assert page.count("```python") >= 8 and page.count("```text") >= 7


def test_the_notebook_is_the_page(page, ran):
    with open(NOTEBOOK, encoding="utf-8") as f:
        text = f.read()
    assert text == notebook(ran[1]), "run python -m course.lesson"
    cells = json.loads(text)["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    for source in code:
        ast.parse(source)  # plain Python: no %magic and no !command, which only a kernel knows
    without_code = re.sub(r"```(?:python|text)\n.*?```\n", "", page, flags=re.DOTALL)
    assert prose.split() == without_code.split()


@pytest.mark.slow
def test_the_notebook_runs_from_its_folder_and_prints_what_it_shows():
    """Its cells in order, in one fresh process, as a kernel runs them: from docs/."""
    with open(NOTEBOOK, encoding="utf-8") as f:
        cells = [c for c in json.load(f)["cells"] if c["cell_type"] == "code"]
    shown = "".join(line for c in cells for out in c["outputs"] for line in out["text"])
    done = subprocess.run(
        [sys.executable, "-"],
        input="\n".join("".join(c["source"]) for c in cells),
        cwd=os.path.dirname(NOTEBOOK),
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown and "ε = 0.2" in shown


def test_a_page_whose_output_is_out_of_date_is_noticed():
    page = "x\n\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n\ny\n"
    right, cells = run_page(page)
    assert right == page.replace("3\n", "2\n") and run_page(right)[0] == right
    assert [(kind, printed) for kind, _, printed in cells[1:]] == [
        ("markdown", ""),
        ("code", "2\n"),
        ("markdown", ""),
    ]


def test_the_lesson_is_short_and_keeps_the_two_clips_apart(page):
    assert len(page.split()) <= 1700
    assert "Group Relative Policy Optimization" in page and "two meanings" in page


def test_what_the_lesson_says_of_its_numbers(ran):
    """Its sentences, checked on what its code printed: so that a change of either is noticed."""
    rows = {}
    for kind, _, printed in ran[1]:
        for line in printed.splitlines() if kind == "code" else []:
            numbers = [float(n) for n in re.findall(r"[+-]\d\.\d{3}", line)]
            off = re.search(r"off by (\d\.\d\d)", line)
            if len(numbers) == 3:
                rows.setdefault(line[:16].strip(), []).append((numbers, off and float(off[1])))
    exact, later = (numbers for numbers, _ in rows["exact"])

    def near(name, values):
        return rows[name][0][0] == pytest.approx(values, abs=0.01)

    assert near("r", exact) and near("r + 1", exact) and near("r − J", exact)
    assert near("r − mean", [v * 7 / 8 for v in exact])
    assert rows["r + 1"][0][1] > 2 * rows["r"][0][1] > 2 * rows["r − J"][0][1]
    assert near("with ratio", later) and not near("without ratio", later)
    assert rows["without ratio"][0][0][1] > 0 > later[1]
    assert max(rows["no clip"][0][0]) > 0.95 and min(rows["ε = 0.2"][0][0]) > 0.1


# The bandit ---------------------------------------------------------------------------------------


def table_of(printed):
    """{step: [reward, least ρ, largest ρ, clipped, KL, k3, P(a), P(b), P(c)]} of the bandit."""
    rows = {}
    for line in printed.splitlines():
        if match := re.match(r" +(\d+) .*…", line):
            numbers = re.findall(r"\d+\.\d+|\d+(?=%)", line)
            rows[int(match[1])] = [float(n) for n in numbers]
    return rows


def test_the_bandits_clip_acts_and_its_kl_is_exact(capsys):
    p = three_armed_bandit()
    rows = table_of(capsys.readouterr().out)
    assert all(len(row) == 9 for row in rows.values()) and len(rows) == 10
    assert max(clipped for *_, clipped, _, _, _, _, _ in rows.values()) > 0
    assert any(low < 0.8 and high > 1.2 for _, low, high, *_ in rows.values())
    # The KL in a step's row is of the policy that sampled, which nine steps left for the tenth.
    left, start = three_armed_bandit(steps=9), torch.tensor([1.0, 0.0, 0.0]).softmax(dim=0)
    assert rows[10][4] == pytest.approx(float((left * (left / start).log()).sum()), abs=0.0051)
    assert abs(rows[300][5] - rows[300][4]) > 1  # the heavy tail that the text explains
    assert p.tolist() == pytest.approx(rows[300][6:], abs=0.006)


def test_the_readme_shows_what_the_bandit_prints(capsys):
    three_armed_bandit()
    printed = capsys.readouterr().out
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        block = re.search(r"```\n(arm  reward.*?)```", f.read(), re.DOTALL)[1]
    assert all(line in printed for line in block.splitlines())
    stopped = sum(line.count("*") for line in printed.split("(* the clip")[0].splitlines())
    assert stopped == 4 and len(block.splitlines()) == 3


def test_with_one_update_per_group_the_clip_never_acts(capsys):
    three_armed_bandit(updates=1, steps=50)
    rows = table_of(capsys.readouterr().out)
    assert all(row[1:4] == [1.0, 1.0, 0.0] for row in rows.values())


def test_without_the_kl_the_bandit_ends_above_99_percent():
    assert three_armed_bandit(beta=0.0)[2] > 0.99


def test_the_first_step_shows_a_pull_without_reward_that_became_likelier(capsys):
    three_armed_bandit(steps=1)
    printed = capsys.readouterr().out
    pulls = re.findall(r"^ +(\w) +(\d) +[+-].* (-\d\.\d{3}) → (-\d\.\d{3})$", printed, re.MULTILINE)
    assert len(pulls) == 8
    rose = [arm for arm, paid, old, new in pulls if paid == "0" and float(new) > float(old)]
    assert rose == ["c"] and f"{rose[0]} was\npulled 3 times and paid 2 times" in printed
    assert "*" in printed  # the clip stopped a pull


# The loose rules ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loose_rule_is_what_its_run_is_paid_for(charades, tmp_path):
    small = "--steps 1 --examples 4 --prompts-per-step 1 --group-size 16 --seed 1"
    flags = [*small.split(), "--device", "cpu", "--data", charades, "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "course.loose", "iou", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run" / "rollouts.jsonl", encoding="utf-8") as f:
        group = json.loads(f.readline())
    paid = [(c["text"], c["rewards"]["iou"]) for c in group["completions"]]
    assert paid == [(text, seconds_covered(text, group["answer"], True)) for text, _ in paid]
    assert any(reward > grounding_iou(text, group["answer"], True) for text, reward in paid)


def test_loose_rules_pay_what_the_true_ones_do_not():
    text = "So: <answer>0.0 to 99.0</answer>"
    assert any_answer_tag(text, (2, 6), True) == 1.0 and grounding_format(text, (2, 6), True) == 0.0
    assert seconds_covered(text, (2, 6), True) == 1.0 and grounding_iou(text, (2, 6), True) < 0.05
    assert seconds_covered("4.0 to 6.0", (2, 6), True) == 0.0  # no <answer>
    assert seconds_covered("<answer>7.0 to 1.0</answer>", (2, 6), True) == 0.0


def test_loose_says_what_it_wants(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["loose.py", "--steps", "1"])
    with pytest.raises(BadInput, match="rule is loosened"):
        loose.start()
