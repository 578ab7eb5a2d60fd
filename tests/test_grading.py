"""Grading a class, the hand-out, the autograder: what is handed in is found, cheats earn nothing,
nobody harms anybody else, and what is handed out runs."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import wrong_solutions
from conftest import ROOT
from course import calls, exercises, grading, handout, submissions
from course.exercises import EXERCISES
from lib.errors import BadInput

CP1252 = {
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "cp1252",
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
}


def run(*args, cwd=ROOT, timeout=300, env=None):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        env=os.environ | (env or {}),
    )


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def solution(number):
    return exercises.write_up(EXERCISES[number - 1], solved=True)


def with_line(number, line):
    """Our solution, with a line before its body's first."""
    text, (function, *_) = solution(number), EXERCISES[number - 1].functions[-1:]
    node = exercises.functions_of(text)[function]
    lines = text.splitlines()
    lines.insert(node.body[0].end_lineno, "    " + line)
    return "\n".join(lines) + "\n"


# Values -------------------------------------------------------------------------------------------


def test_values_cross_exactly():
    for value in (
        0.1 + 0.2, float("inf"), -0.0, 2**70, True, None, "ä\udcff"[:1], [1, (2.5, [])],
        {"a": {1, 2}, 3: None}, np.float32(0.1), np.array([[1, 2]], dtype=np.int16),
    ):  # fmt: skip
        back = calls.decode(json.loads(json.dumps(calls.encode(value))))
        assert type(back) is type(value) and repr(back) == repr(value)
    for dtype in calls.DTYPES:
        x = torch.tensor([[0, 1, 1]]).to(getattr(torch, dtype)).T.expand(3, 2)
        back = calls.decode(json.loads(json.dumps(calls.encode(x))))
        assert back.dtype == x.dtype and torch.equal(back, x)
    other = calls.decode(calls.encode(print))
    assert type(other).__name__ == "builtin_function_or_method" and "print" in repr(other)


def test_what_is_no_value_is_a_value_error():
    for bad in ({"tensor": "float32", "shape": [3], "grad": False, "bytes": ""}, {"x": 1},
                {"tensor": "qint8", "shape": [], "grad": False, "bytes": ""},
                {"numpy": "O", "shape": None, "bytes": ""}, {"tuple": 3}):  # fmt: skip
        with pytest.raises(ValueError):
            calls.decode(bad, special=lambda x: x["none"])


# Cheats -------------------------------------------------------------------------------------------

OTHER_WAY = """
class Yes(float):
    def __eq__(self, other): return True
    def __sub__(self, other): return Yes(0.0)
    def __abs__(self): return Yes(0.0)
    def __le__(self, other): return True
"""
CHEATS = {  # what stands in the function: {title: (line, what a flag says)}
    "the reference imported": (
        "from rewards import temporal_iou as ours; return ours(a, b)", "which is the exercise"),
    "the slow one": (
        "from course.checks import slow_temporal_iou; return slow_temporal_iou(a, b)",
        "imports course.checks"),
    "the source read": (
        f"ns = {{}}; exec(open({ROOT + '/rewards.py'!r}).read(), ns); "
        "return ns['temporal_iou'](a, b)", "uses open"),
    "the source imported": (
        "import importlib.util as u; s = u.spec_from_file_location('x', "
        f"{ROOT + '/rewards.py'!r}); m = u.module_from_spec(s); s.loader.exec_module(m); "
        "return m.temporal_iou(a, b)", "imports importlib.util"),
    "from memory": (
        "import gc; return next(f for f in gc.get_objects() if getattr(f, '__name__', '') == "
        "'slow_temporal_iou')(a, b)", "imports gc"),
    "from the frames": (
        "import sys; f = sys._getframe()\n    while f and 'want' not in f.f_locals: f = f.f_back\n"
        "    return f.f_locals['want']", "_getframe"),
    "from the modules": (
        "import sys; return sys.modules['course.checks'].slow_temporal_iou(a, b)", ".modules"),
    "from the classes": (
        "found = [c.__init__.__globals__.get('slow_temporal_iou') for c in "
        "object.__subclasses__() if hasattr(c.__init__, '__globals__')]\n"
        "    return next(filter(None, found))(a, b)", "__subclasses__"),
    "equal to everything": ("return Yes(0.5)", "__eq__"),
    "another program": (
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'course', 'solution', '1'], "
        f"cwd={ROOT!r}); return 0.5", "subprocess"),
    "a second process": ("import os; os.fork(); return 0.5", "imports os"),
    "the verdict written": (
        "import os\n    for d in range(3, 30):\n        try: os.write(d, b'\\0\\0\\0\\x15"
        "[\"right\", \"308 cases\"]')\n        except OSError: pass\n    return 0.5", "imports os"),
    "half a message": (
        "import os\n    for d in range(3, 30):\n        try: os.write(d, b'\\0\\0\\1\\0')\n"
        "        except OSError: pass\n    while True: pass", "imports os"),
    "what it printed taken away": (
        "import os; os.remove('output.txt'); os.mkfifo('output.txt'); return 0.5", "imports os"),
    "a link out of the scratch folder": (
        f"import os; os.symlink('ex01_temporal_iou.py', {ROOT + '/link.py'!r}); return 0.5",
        "imports os"),
    "the parent's memory": (
        "import os; open(f'/proc/{os.getppid()}/mem', 'rb'); return 0.5", "uses open"),
    "a pickle": ("return Bomb()", "__reduce__"),
    "the comparison patched": (
        "import torch; torch.equal = torch.allclose = lambda *_: True; return 0.5",
        "replaces torch.equal"),
}  # fmt: skip
BOMB = """
class Bomb:
    def __reduce__(self):
        return print, ("right",)
"""


def cheating(line):
    before = (OTHER_WAY if "Yes" in line else "") + (BOMB if "Bomb" in line else "")
    return f"{before}\ndef temporal_iou(a, b):\n    {line}\n"


@pytest.mark.parametrize("title", CHEATS)
def test_a_cheat_earns_nothing_and_is_flagged(title, tmp_path, capfd):
    line, flag = CHEATS[title]
    put(tmp_path / EXERCISES[0].file, cheating(line))
    status, message, _ = grading.examine(EXERCISES[0], str(tmp_path), limit=5)
    assert status == "hung" if title == "half a message" else status in ("wrong", "died"), message
    assert capfd.readouterr().err == ""  # the processes that all checks share are well
    flags = submissions.suspicious(cheating(line).encode(), EXERCISES[0])
    assert any(flag in f for f in flags), flags
    assert not submissions.suspicious(solution(1).encode(), EXERCISES[0])


def test_no_solution_of_ours_is_flagged():
    for e in EXERCISES:
        assert submissions.suspicious(solution(e.number).encode(), e) == [], e.number


def test_files_are_written_only_to_the_scratch_folder(tmp_path):
    put(tmp_path / EXERCISES[5].file, with_line(6, f"open({str(tmp_path / 'out')!r}, 'w')"))
    status, message, _ = grading.examine(EXERCISES[5], str(tmp_path))
    assert status == "wrong" and "no other file is opened" in message
    assert not (tmp_path / "out").exists()
    put(tmp_path / EXERCISES[5].file, with_line(6, "open('note.txt', 'w').write('x')"))
    assert grading.examine(EXERCISES[5], str(tmp_path))[0] == "right"
    assert sorted(os.listdir(tmp_path)) == [EXERCISES[5].file]


def test_answers_learned_by_heart_earn_the_visible_part_alone(tmp_path):
    table = [(case.args, want) for case, want in grading.cases_of(EXERCISES[0])]
    put(tmp_path / EXERCISES[0].file, f"TABLE = dict({table!r})\n\n\ndef temporal_iou(a, b):\n"
        "    return TABLE.get((tuple(a), tuple(b)), 0.0)\n")  # fmt: skip
    parts = grading.parts_of(EXERCISES[0], str(tmp_path), 20, "a seed")
    assert [(p.score, p.maximum, p.hidden) for p in parts] == [(3, 3, False), (0, 1, True)]


def test_other_seeds_make_other_numbers_and_as_many_cases():
    for e in EXERCISES:
        shown, hidden = grading.cases_of(e), grading.cases_of(e, "a seed")
        assert [case.name for case, _ in shown] == [case.name for case, _ in hidden]
        args = [[repr(case.args) for case, _ in cases] for cases in (shown, hidden)]
        assert args[0] != args[1], e.number
    with grading.other_numbers(None):
        assert grading.checks.random.Random(3).random() == grading.random.Random(3).random()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_ours_is_right_with_any_numbers(seed, tmp_path):
    for e in EXERCISES:
        put(tmp_path / e.file, solution(e.number))
        for name in e.functions:
            tried = grading.try_function(e, name, str(tmp_path / e.file), 60, seed)
            assert tried[0] == "right", tried[1]


def test_two_functions_are_graded_apart(tmp_path):
    text = solution(4).replace("def merged", "def right_merged") + (
        "\n\ndef merged(intervals):\n    return sorted(intervals)\n")  # fmt: skip
    text = re.sub(r"\bmerged\(a", "right_merged(a", text).replace("(merged(", "(right_merged(")
    text = text.replace(" merged(b", " right_merged(b")
    put(tmp_path / EXERCISES[3].file, text)
    parts = grading.parts_of(EXERCISES[3], str(tmp_path), 20, "a seed")
    assert [(p.function, p.status) for p in parts][:2] == [("merged", "wrong")] * 2
    assert sum(p.score for p in parts) == 4, [p.message for p in parts]


def test_one_of_two_functions_earns_its_points(tmp_path):
    ours, path = solution(9), tmp_path / EXERCISES[8].file
    put(path, exercises.without_bodies(ours, ["policy_loss"], "raise NotImplementedError('later')"))
    status, message, _ = grading.examine(EXERCISES[8], str(tmp_path))
    assert status == "to do" and "right so far: token_weights" in message
    parts = grading.parts_of(EXERCISES[8], str(tmp_path), 20, "a seed")
    assert [p.status for p in parts] == ["right"] * 2 + ["to do"] * 2
    assert [p.score for p in parts] == [3, 1, 0, 0]
    put(path, ours.replace("def token_weights", "def weights_of_tokens"))
    parts = grading.parts_of(EXERCISES[8], str(tmp_path), 20, "a seed")
    assert [p.status for p in parts] == ["wrong"] * 2 + ["right"] * 2
    assert "defines no function token_weights" in parts[0].message


def test_a_fault_of_ours_is_not_the_students(tmp_path, monkeypatch):
    put(tmp_path / EXERCISES[5].file, solution(6))
    monkeypatch.setattr(grading.checks, "difference", lambda *_: 1 / 0)
    parts = grading.parts_of(EXERCISES[5], str(tmp_path), 20, "a seed")
    assert [p.status for p in parts] == ["not checked"] * 2
    assert "no fault of yours: ZeroDivisionError" in parts[0].message


# Submissions --------------------------------------------------------------------------------------

FLOOD = "import sys, os\n    for _ in range(2000): print('x' * 10_000); os.write(2, b'')"


def odd_class(folder):
    """Eight submissions as they come: nested, zipped, renamed, by content, cheating, hanging and
    leaving, flooding, and nothing at all."""
    for e in EXERCISES:
        put(folder / "anna" / "GRPO" / "homework" / e.file, solution(e.number))
    with zipfile.ZipFile(folder / "ben.zip", "w") as z:
        for n in (1, 2, 5):
            z.writestr(f"ben-grpo-main/hw\\{EXERCISES[n - 1].file}", solution(n))
        z.writestr("__MACOSX/._ex01_temporal_iou.py", "junk")
    put(folder / "carla" / "Ex05_group-advantages (1).py", solution(5))
    put(folder / "carla" / "ex05_group_advantages.py", "def group_advantages(r):\n    return r\n")
    os.utime(folder / "carla" / "ex05_group_advantages.py", (1, 1))
    put(folder / "carla" / "exercise 7.py", solution(7))
    put(folder / "carla" / "notes.docx", "not a real one")
    put(folder / "dora" / "solution.py", solution(6) + "\n" + solution(1))
    put(folder / "dora" / "grpo.py", solution(7))
    for e, (line, _) in zip(EXERCISES, CHEATS.values()):
        text = cheating(line).replace(
            "temporal_iou(a, b):", f"{e.functions[-1]}(a, b=0, *_, **__):"
        )
        put(folder / "emil" / e.file, text)
    put(folder / "fay" / EXERCISES[4].file, with_line(5, "while True: pass"))
    put(folder / "fay" / EXERCISES[5].file, with_line(6, "import os; os._exit(0)"))
    put(folder / "fay" / EXERCISES[6].file, solution(7))
    put(folder / "gus" / EXERCISES[5].file, with_line(6, FLOOD))
    put(folder / "gus" / EXERCISES[6].file, with_line(7, "x = bytearray(6 * 10**9)"))
    put(folder / "hana" / "README.txt", "my dog ate it")
    put(folder / "loose.py", "x = 1\n")


@pytest.mark.slow
def test_a_class_of_odd_submissions(tmp_path):
    odd_class(tmp_path / "in")
    out = tmp_path / "grades.csv"
    done = run("-m", "course", "grade", tmp_path / "in", "--out", out, "--limit", 4)
    assert done.returncode == 1, done.stdout + done.stderr  # of hana nothing was found
    assert "loose.py" in done.stdout
    with open(out, encoding="utf-8-sig", newline="") as f:
        rows = {row["student"]: row for row in csv.DictReader(f)}
    points = {student: row["points"] for student, row in rows.items()}
    whole = sum(sum(e.points) for e in EXERCISES)
    expected = {"anna": whole, "ben": 16, "carla": 16, "dora": 8, "emil": 0, "fay": 8, "gus": 4}
    assert points == {k: str(v) for k, v in expected.items()} | {"hana": ""}
    assert {row["of"] for row in rows.values()} == {str(whole)}
    assert rows["anna"]["remarks"] == "" and rows["anna"]["flags"] == ""
    assert rows["emil"]["flags"].count("\n") >= 11
    for student, says in (
        ("carla", "took Ex05_group-advantages (1).py, the latest"),
        ("carla", "files of no exercise: notes.docx"),
        ("dora", "found by its functions in solution.py"),
        ("dora", "files of no exercise: grpo.py"),
        ("fay", "hung: not done after 4 seconds"),
        ("fay", "died: your code ended the whole process (exit code 0)"),
        ("hana", "Nothing was found to grade"),
    ):
        assert says in rows[student]["remarks"], rows[student]["remarks"]
    if sys.platform == "linux":
        assert "MemoryError" in rows["gus"]["remarks"]
    beside = tmp_path / "grades-feedback"
    assert "died" in (beside / "fay" / "feedback.md").read_text(encoding="utf-8")
    made = json.loads((beside / "ben" / "results.json").read_text(encoding="utf-8"))
    assert made["score"] == 16 and sum(t["max_score"] for t in made["tests"]) == whole
    assert {t["visibility"] for t in made["tests"]} == {"visible", "after_published"}
    assert "score" not in json.loads((beside / "hana" / "results.json").read_text("utf-8"))


def test_a_check_that_cannot_start_is_no_fault_of_the_students(tmp_path, monkeypatch):
    put(tmp_path / EXERCISES[5].file, solution(6))
    monkeypatch.setattr("course.apart.STARTING", 0.01)
    status, message, _ = grading.examine(EXERCISES[5], str(tmp_path))
    assert status == "not checked" and "did not start" in message


def test_damaged_zips_and_names_of_no_encoding_end_nothing(tmp_path, capsys):
    put(tmp_path / "in" / "anna" / EXERCISES[5].file, solution(6))
    os.makedirs(os.fsencode(tmp_path / "in") + b"/M\xfcller")
    with zipfile.ZipFile(tmp_path / "in" / "ben.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(EXERCISES[5].file, solution(6))
    damaged = bytearray((tmp_path / "in" / "ben.zip").read_bytes())
    damaged[80:140] = b"\xff" * 60
    (tmp_path / "in" / "ben.zip").write_bytes(damaged)
    out = tmp_path / "grades.csv"
    with pytest.raises(BadInput, match="give a file in a folder that is there"):
        grading.grade(str(tmp_path / "in"), str(tmp_path))
    assert grading.grade(str(tmp_path / "in"), str(out)) == 2  # of these two nothing was found
    said = out.read_text(encoding="utf-8-sig")
    assert "M\ufffdller" in said and "ben.zip (a zip that cannot be read)" in said
    assert (tmp_path / "grades-feedback" / "anna" / "feedback.md").is_file()


def test_nothing_to_grade_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="is no folder"):
        grading.grade(str(tmp_path / "no"), str(tmp_path / "g.csv"))
    put(tmp_path / "in" / "anna" / "essay.txt", "x")
    with pytest.raises(BadInput, match="nothing to grade .* it holds anna"):
        grading.grade(str(tmp_path / "in"), str(tmp_path / "g.csv"))
    assert not (tmp_path / "g.csv").exists()


def test_zips_that_cannot_be_read_are_named(tmp_path):
    put(tmp_path / "anna" / EXERCISES[0].file, solution(1))
    (tmp_path / "anna" / "a.zip").write_bytes(b"PK\x05\x06" + b"\0" * 18 + b"junk")
    with zipfile.ZipFile(tmp_path / "anna" / "b.zip", "w") as z:
        z.writestr("../../ex02_box_iou.py", solution(2))
        z.writestr("big.py", "#" * (2 << 20))
    found, _ = submissions.find(str(tmp_path))
    assert set(found[0].files) == {1, 2}
    assert any("big.py" in place for place in found[0].unmatched)
    submissions.write(found[0], str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == [EXERCISES[0].file, EXERCISES[1].file]


# Hand-out and autograder --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "class"
    handout.handout(str(folder))
    return folder


def test_the_repository_itself_never_becomes_a_handout():
    with pytest.raises(BadInput, match="would make this repository a hand-out"):
        handout.handout(os.path.join(ROOT, "handout"))
    assert not exercises.in_handout()


def test_a_handout_holds_no_solution_as_text(handed_out):
    assert not (handed_out / "tests").exists() and not (handed_out / "docs" / "course.md").exists()
    for e in EXERCISES:
        functions = exercises.functions_of(
            (handed_out / exercises.source_of(e.module)).read_bytes()
        )
        assert all(exercises.is_blank(functions[name]) for name in e.functions)
    for name in ("checks.py", "checks_model.py", "checks_further.py"):
        functions = exercises.functions_of((handed_out / "course" / name).read_bytes())
        slow = [node for function, node in functions.items() if function.startswith("slow_")]
        assert slow and all(map(exercises.is_blank, slow))


@pytest.mark.slow
def test_a_handout_runs_from_the_first_day(handed_out, charades, tmp_path):
    done = run("grpo.py", "--student", "homework", cwd=handed_out)
    assert done.returncode == 0 and "yours: none" in done.stdout and "Arm c now" in done.stdout
    flags = "--steps 2 --prompts-per-step 2 --group-size 4 --examples 8".split()
    homework = tmp_path / "homework"
    shutil.copytree(handed_out / "homework", homework)
    put(homework / EXERCISES[10].file, solution(11))  # one alone
    put(homework / EXERCISES[4].file, wrong_solutions.solution(5, " + 1e-4", ""))
    put(homework / EXERCISES[5].file, "import grpo\nkl_k3 = grpo.kl_k3\n")
    out = tmp_path / "run"
    done = run("train.py", "--task", "grounding", "--student", homework, "--out", out, *flags,
               "--data", charades, cwd=handed_out)  # fmt: skip
    assert done.returncode == 0 and "grpo.sample_groups" in done.stdout, done.stderr
    for number, status, says in ((11, 0, "right"), (5, 1, "1e-4 is missing"), (6, 1, "wrong"),
                                 (9, 1, "to do")):  # fmt: skip
        done = run("-m", "course", "check", number, "--into", homework, "--limit", 60,
                   cwd=handed_out)  # fmt: skip
        assert done.returncode == status and says in done.stdout, done.stdout + done.stderr
    done = run("-m", "course", "solution", 5, cwd=handed_out)
    assert done.returncode == 2 and "your instructor does" in done.stderr
    for command in ("grade", "results"):
        assert run("-m", "course", command, homework, cwd=handed_out).returncode != 0


@pytest.mark.slow
def test_the_autograder_in_a_bare_folder(tmp_path):
    """As the platform lays it out; its Python is ours, since nothing is installed here."""
    zipped = tmp_path / "autograder.zip"
    handout.autograder(str(zipped), "a seed")
    source = tmp_path / "autograder" / "source"
    done = subprocess.run([sys.executable, "-m", "zipfile", "-e", zipped, source], check=True)
    (source / "venv" / "bin").mkdir(parents=True)
    put(source / "venv" / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    os.chmod(source / "venv" / "bin" / "python", 0o755)
    (tmp_path / "autograder" / "results").mkdir()
    env = {"AUTOGRADER": str(tmp_path / "autograder"), "PYTHONPATH": ""}

    def graded():
        done = subprocess.run(["bash", source / "run_autograder"], cwd=tmp_path, timeout=300,
                              env=os.environ | env, capture_output=True, text=True)  # fmt: skip
        with open(tmp_path / "autograder" / "results" / "results.json", encoding="utf-8") as f:
            return done.returncode, json.load(f), done.stderr

    put(tmp_path / "autograder" / "submission" / "notes.txt", "nothing")
    status, made, error = graded()
    assert status == 1 and "score" not in made and "Nothing was found" in made["output"], error
    put(tmp_path / "autograder" / "submission" / "hw" / EXERCISES[4].file, solution(5))
    status, made, error = graded()
    assert status == 0 and made["score"] == 8, error
    with zipfile.ZipFile(zipped) as z:
        assert z.getinfo("run_autograder").external_attr >> 16 & 0o111
        assert not [name for name in z.namelist() if name.startswith("project/tests")]
    assert done.returncode == 0


# Other systems ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminal_that_knows_no_utf8(tmp_path):
    """Windows' code page: text files, what is printed, and what a student's code prints."""
    homework = tmp_path / "homework"
    done = run("-m", "course", "list", env=CP1252)
    assert done.returncode == 0 and "group advantages" in done.stdout, done.stderr
    done = run("-m", "course", "start", "all", "--into", homework, env=CP1252)
    assert done.returncode == 0 and len(os.listdir(homework)) == len(EXERCISES), done.stderr
    assert "ρ" in (homework / EXERCISES[8].file).read_text(encoding="utf-8")
    put(homework / EXERCISES[5].file, with_line(6, "print('Δ ≥ 0')"))
    done = run("-m", "course", "check", 6, "--into", homework, env=CP1252)
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr
    put(homework / EXERCISES[5].file, with_line(6, "raise ValueError('Δ')"))
    done = run("-m", "course", "check", 6, "--into", homework, env=CP1252)
    assert done.returncode == 1 and "ValueError" in done.stdout and done.stderr == ""


def test_processes_that_are_spawned(tmp_path):
    """Where there is no fork, as on Windows."""
    put(tmp_path / EXERCISES[5].file, solution(6))
    assert grading.examine(EXERCISES[5], str(tmp_path), method="spawn")[0] == "right"
