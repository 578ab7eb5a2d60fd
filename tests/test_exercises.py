"""The exercises: made from the reference, graded rightly, safe to run, of use in a real run."""

import ast
import json
import os
import runpy
import subprocess
import sys
from functools import partial

import pytest
import torch

import grpo
import rewards
import wrong_solutions
from conftest import ROOT
from course import exercises, further, grading
from course.__main__ import main
from course.bandit import three_armed_bandit
from course.exercises import EXERCISES
from lib.errors import BadInput, run_program


def run(*args, cwd=ROOT, timeout=600):
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def written(folder, solved=True):
    exercises.write_files(EXERCISES, str(folder), solved)
    return str(folder)


# The grader ---------------------------------------------------------------------------------------


QUICK = (1,)  # the others are slow


@pytest.mark.parametrize(
    "number",
    [pytest.param(e.number, marks=[pytest.mark.slow] * (e.number not in QUICK)) for e in EXERCISES],
)
def test_wrong_solutions_are_rejected_by_name_and_right_ones_pass(number):
    results = wrong_solutions.try_all(number)
    assert not [result for result in results if result[2]]
    kinds = [right for right, *_ in results]
    assert kinds.count(False) >= 15 and kinds.count(True) >= 2


def test_there_are_enough_of_them():
    made = [words for e in EXERCISES for *_, words in wrong_solutions.solutions(e.number)]
    assert len(made) - made.count(None) >= 360 and made.count(None) >= 44


def test_a_check_is_the_command_that_students_use(tmp_path, capsys):
    folder = written(tmp_path)
    assert main(["check", "1", "--into", folder, "--limit", "60"]) == 0
    assert "right (180 cases)" in capsys.readouterr().out
    os.remove(os.path.join(folder, EXERCISES[1].file))
    assert main(["check", "2", "--into", folder]) == 1
    assert "is not there: python -m course start 2" in capsys.readouterr().out


# From the reference -------------------------------------------------------------------------------


def test_what_start_writes_is_the_reference_without_its_bodies(tmp_path):
    folder = written(tmp_path, solved=False)
    for e in EXERCISES:
        with open(os.path.join(folder, e.file), encoding="utf-8") as f:
            blank = exercises.functions_of(f.read())
        with open(os.path.join(ROOT, exercises.source_of(e.module)), encoding="utf-8") as f:
            ours = exercises.functions_of(f.read())
        assert list(blank) == list(e.functions)
        for name in e.functions:
            assert len(blank[name].body) == 2
            assert ast.get_docstring(blank[name]) == ast.get_docstring(ours[name])
            assert ast.dump(blank[name].args) == ast.dump(ours[name].args)
        has_example = ">>> " in "".join(map(ast.get_docstring, blank.values()))
        lesson, hints = exercises.prose(e)
        assert has_example or "Example" in lesson, f"exercise {e.number} has no worked example"
        assert len(hints) == 3
        exercises.load_functions(e, folder)  # the imports are all there
        with open(os.path.join(folder, e.file), "rb") as f:
            assert grading.tried([(e, f.read())], [grading.SHOWN], 9) == [{}]
        assert exercises.unfinished(e, folder).endswith("not written yet")


def test_a_file_imports_nothing_that_it_shadows_or_does_not_use(tmp_path):
    folder = written(tmp_path)
    for e in EXERCISES:
        with open(os.path.join(folder, e.file), encoding="utf-8") as f:
            tree = ast.parse(f.read())
        found = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [a.asname or a.name for node in found for a in node.names]
        inside = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        docs = " ".join(ast.get_docstring(n) or "" for n in tree.body if hasattr(n, "args"))
        assert all(name in inside or name in docs for name in names), (e.number, names)
        parameters = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        assert not parameters & set(names), (e.number, names)


def test_start_leaves_work_alone(tmp_path, capsys):
    folder = written(tmp_path, solved=False)
    path = os.path.join(folder, EXERCISES[5].file)
    with open(path, "a", encoding="utf-8") as f:
        f.write("\n\ndef kl_k3(a, b):\n    return 0\n")
    written(tmp_path, solved=False)
    with open(path, encoding="utf-8") as f:
        assert "return 0" in f.read()
    assert "stays as it is" in capsys.readouterr().out


def test_every_command_line_mistake_is_one_sentence(tmp_path, capsys):
    for args, says in (
        (["check", "15"], "from 1 to 14"),
        (["hint"], "hint what?"),
        (["handout"], "--into"),
        (["results"], "results what?"),
        (["start", "x"], "no exercise x"),
        (["check", "1", "--limit", "nan"], "from 1 to 86400 seconds"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_program(partial(main, args))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and says in error and error.count("\n") == 1
    for args in (["list"], ["hint", "all", "--level", "3"], ["solution", "7"]):
        assert main(args) == 0
    assert "def completion_mask" in capsys.readouterr().out


# A real run ---------------------------------------------------------------------------------------


def test_train_runs_with_the_students_functions(charades, tmp_path):
    """Each solution notes that it was called.

    A run on grounding calls all but those of boxes and sets of intervals.
    """
    folder, note = written(tmp_path / "homework"), tmp_path / "called"
    for e in EXERCISES:
        with open(os.path.join(folder, e.file), "a", encoding="utf-8") as f:
            for name in e.functions:
                f.write(
                    f"\n\n_{name} = {name}\ndef {name}(*args, **kwargs):\n"
                    f"    open({str(note)!r}, 'a').write('{name}\\n')\n"
                    f"    return _{name}(*args, **kwargs)\n"
                )
    flags = "--steps 1 --prompts-per-step 2 --group-size 4".split()
    out = tmp_path / "run"
    done = run("train.py", "--student", folder, "--data", charades, *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "yours: rewards.temporal_iou" in done.stdout and "the reference's: none" in done.stdout
    with open(note, encoding="utf-8") as f:
        called = set(f.read().split())
    not_called = {"box_iou", "merged", "interval_set_iou", "caption_f1", "cispo_loss"}
    assert called == {name for e in EXERCISES for name in e.functions} - not_called
    with open(out / "metrics.jsonl", encoding="utf-8") as f:
        assert len([json.loads(line) for line in f]) == 1


def test_cheap_captions_earn_everything_from_recall_and_little_from_f1():
    events = ["a boy jumps", "a dog climbs over a fence"]
    honest = "<answer>A boy jumps.</answer>"
    cheap = {
        "everything that may happen": "A boy jumps. A girl jumps. A man jumps. A dog climbs over a "
        "fence. A cat climbs over a fence. A boy climbs over a fence. A dog jumps.",
        "again and again": "A boy jumps. A dog climbs over a fence. " * 4,
        "one sentence of all": "boy girl man dog cat jumps climbs over fence falls",
    }
    for name, said in cheap.items():
        said = f"<answer>{said}</answer>"
        assert rewards.caption_recall(said, events, False) == 1.0, name
        assert further.caption_f1(said, events, False) < further.caption_f1(honest, events, False)


def test_cispo_alone_is_the_loss_of_the_chapter():
    torch.manual_seed(0)
    logp, old = -3 * torch.rand(4, 6), -3 * torch.rand(4, 6)
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [5]])
    A, weights = torch.randn(4), grpo.token_weights(mask, "cispo", 8, 4, 15)
    results = []
    for loss in (
        lambda x: further.cispo_loss(x, old, A, mask, weights, 0.2, 0.28),
        lambda x: grpo.policy_loss(x, old, None, A, mask, weights, 0.2, 0.28, 0.0, "cispo")[0],
    ):
        x = logp.clone().requires_grad_()
        loss(x).backward()
        results.append((loss(x).item(), x.grad.tolist()))
    assert results[0] == results[1]


def test_no_folder_and_broken_files_are_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="is no folder: python -m course start all"):
        exercises.install(str(tmp_path / "nowhere"))
    (tmp_path / EXERCISES[0].file).write_text("def temporal_iou(a, b:\n", encoding="utf-8")
    with pytest.raises(BadInput, match="ex01_temporal_iou.py cannot be loaded: SyntaxError"):
        exercises.install(str(tmp_path))
    (tmp_path / EXERCISES[0].file).write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    with pytest.raises(BadInput, match="ex01_temporal_iou.py cannot be loaded: SystemExit"):
        exercises.install(str(tmp_path))


# Before the video ---------------------------------------------------------------------------------


def test_the_bandit_learns_which_arm_pays_best(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grpo.py"])
    runpy.run_path(os.path.join(ROOT, "grpo.py"), run_name="__main__")  # `python grpo.py`
    printed = capsys.readouterr().out
    assert "advantage" in printed and "KL" in printed and "Arm c" in printed
    p = three_armed_bandit()
    assert p.argmax() == 2 and p[2] > 0.8


def test_an_exercise_that_there_is_not_is_one_sentence():
    with pytest.raises(BadInput, match="there is no exercise x: give a number from 1 to 14"):
        main(["check", "x"])
