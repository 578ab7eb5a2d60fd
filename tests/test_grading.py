"""Grading a class, the hand-out, the autograder: each submission by itself, whatever it does; flags
take no points; what is handed out runs."""

import csv
import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

import wrong_solutions
from conftest import ROOT
from course import apart, compare, exercises, grading, handout, submissions, values
from course.exercises import EXERCISES
from lib.errors import BadInput

CP1252 = {
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "cp1252",
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
}
ONE, WHOLE = EXERCISES[0], sum(sum(e.points) for e in EXERCISES)


def run(*args, cwd=ROOT, timeout=600, env=None):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", errors="replace",
                          timeout=timeout, env=os.environ | (env or {}))  # fmt: skip


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def solution(number):
    return exercises.write_up(EXERCISES[number - 1], solved=True)


def with_line(number, line):
    """Our solution, with a line before its body's first."""
    text, function = solution(number), EXERCISES[number - 1].functions[-1]
    node, lines = exercises.functions_of(text)[function], text.splitlines()
    lines.insert(node.body[0].end_lineno, "    " + line)
    return "\n".join(lines) + "\n"


def tried(number, text, seeds=(grading.SHOWN,), limit=30):
    """{(function, seed): (status, message, what was printed)} of one file."""
    file = EXERCISES[number - 1], text if isinstance(text, bytes) else text.encode()
    return grading.tried([file], list(seeds), limit)[0]


def one(number, text, **how):
    """(status, message) of the last function of a file."""
    return tried(number, text, **how)[EXERCISES[number - 1].functions[-1], grading.SHOWN][:2]


# Values and their comparison ----------------------------------------------------------------------


def test_values_cross_exactly_and_other_things_by_name():
    for value in (0.1 + 0.2, float("inf"), 2**62, True, None, "ä", [1, [2.5, []]], {"a": 1}):
        assert values.from_json(values.to_json(value)) == value
    for x in (torch.tensor([[0, 1, 1]]).T.expand(3, 2), torch.tensor(1.5), torch.ones(2).bool()):
        back = values.from_json(values.to_json(x))
        assert f"torch.{back.dtype}" == str(x.dtype) and np.array_equal(back.array, x.numpy())
    itself = []
    itself.append(itself)
    for odd, kind in ((10**400, "int of 1329 bits"), (print, "builtin"), ({1, 2}, "set"),
                      (torch.empty(10**7, dtype=torch.int8), "tensor of int8")):  # fmt: skip
        assert kind in values.from_json(values.to_json(odd)).kind
    assert "holds itself" in str(values.from_json(values.to_json(itself)))


@pytest.mark.parametrize("bad", [
    '{"tensor": "float32", "stored": "object", "shape": [1], "bytes": "AAAA"}',
    '{"tensor": "float32", "stored": "float32", "shape": [3], "bytes": ""}', '{"x": 1}',
    '{"dict": 3}', "[" * 100_000, "no JSON"])  # fmt: skip
def test_what_is_no_value_is_a_value_error(bad):
    with pytest.raises(ValueError):
        values.from_json(bad)


def test_an_infinity_is_only_itself():
    inf, nan = float("inf"), float("nan")
    same = [(inf, inf), (nan, nan), (1.0, 1.0 + 1e-9), (0, 0.0)]
    other = [(1e300, inf), (-inf, inf), (inf, 1.0), (nan, 1.0), (1.0, nan), (1, 1.01)]
    for pairs, want in ((same, True), (other, False)):
        for x, y in pairs:
            assert compare.close(x, y, 1e-6, 1e-12) is want, (x, y)
            if not isinstance(x, bool):
                made = [values.Tensor("float64", np.array([float(v)])) for v in (x, y)]
                assert (compare.first_difference(*made, 1e-12) is None) is want, (x, y)


# A hostile class ----------------------------------------------------------------------------------

MARK = "asleep-in-a-session-of-its-own"
FLEES = f"""import subprocess, sys
    if (a, b) == ((0, 4), (2, 6)):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # {MARK}"],
                         start_new_session=True)"""
OVERWRITES = """import glob, rewards
    if (a, b) == ((0, 4), (2, 6)):
        for path in [rewards.__file__, *glob.glob("../*.py"), *glob.glob("../course/*")]:
            open(path, "w").write("1 / 0")"""
ENDLESS = "import os\n    while True: print('x' * 100_000); os.write(1, b'y' * 100_000)"
POINTS = {  # the student: points for exercises 1 and 2, of 4 each; words of the row
    "right": (8, ""), "wrong": (4, "wrong: called temporal_iou"),
    "deep": (4, "RecursionError"), "huge": (4, "int of 1329 bits"),
    "itself": (4, "holds itself"), "pipe": (4, "is no ordinary file"),
    "bomb": (4, "ex01.py is too large"), "endless-zip": (4, ""),
    "overwrites": (8, ""), "flees": (8, ""), "prints": (4, "File too large"),
    "utf16": (4, "saved as UTF-16"), '=cmd|"x"': (8, ""), "killer": (0, "and those of the check"),
}  # fmt: skip


def hostile_class(folder):
    """Everybody hands in exercise 2 solved, and something as exercise 1."""
    itself = "x = []\n    x.append(x)\n    return x"
    texts = {
        "right": solution(1), "wrong": "def temporal_iou(a, b):\n    return 0.5\n",
        "deep": "x = " + "1 + " * 3000 + "1\n" + solution(1), "itself": with_line(1, itself),
        "huge": with_line(1, "return 10**400"), "overwrites": with_line(1, OVERWRITES),
        "flees": with_line(1, FLEES), "prints": with_line(1, ENDLESS),
        "utf16": solution(1).encode("utf-16"), '=cmd|"x"': solution(1),
        "killer": with_line(1, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"),
    }  # fmt: skip
    for student in POINTS:
        put(folder / student / "homework" / EXERCISES[1].file, solution(2))
        if student in texts:
            put(folder / student / ONE.file, texts[student])
    os.mkfifo(folder / "pipe" / ONE.file)
    with zipfile.ZipFile(folder / "bomb" / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("ex01.py", b"#" * (64 << 20))
    inner = b""
    for _ in range(12):  # a zip in a zip in a zip …, many times over
        path = folder / "endless-zip" / "r.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for k in range(30):
                z.writestr(f"{k}.zip", inner)
        inner = path.read_bytes()


def rows_of(found, limit):
    """{student: the row} of submissions, graded in this order."""
    graded = grading.grade_all(found, limit, "a seed")
    return {s.student: grading.row_of(s, graded[s.student]) for s in found}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_hostile_class_forwards_backwards_and_each_alone(tmp_path):
    hostile_class(tmp_path / "in")
    with open(os.path.join(ROOT, "rewards.py"), "rb") as f:
        before = f.read()
    make = lambda: submissions.find(str(tmp_path / "in"))[0]
    rows = rows_of(make(), limit=20)
    assert rows == rows_of(make()[::-1], limit=20)
    for k in range(len(POINTS)):
        (row,) = rows_of([alone := make()[k]], limit=20).values()
        *marks, flags, remarks = rows[alone.student]
        assert (row[:-2], row[-1]) == (marks, remarks)  # alike is nobody then
    for student, (points, says) in POINTS.items():
        name, *_, total, whole, flags, remarks = rows[student]
        assert int(total) == points and says in remarks, rows[student]
    assert rows['=cmd|"x"'][0] == '\'=cmd|"x"'
    assert "imports subprocess" in rows["flees"][-2]
    left = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if MARK in command_of(pid)]
    assert not left
    with open(os.path.join(ROOT, "rewards.py"), "rb") as f:
        assert f.read() == before


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().decode("utf-8", "replace")
    except OSError:
        return ""


@pytest.mark.parametrize("line, says", [
    ("while True: pass", "not done after 3 seconds"),
    ("import os; os._exit(0)", "ended its whole process"),
    ("import os; os._exit(7)", "exit code 7"),
    ("raise SystemExit(3)", "raised   SystemExit"),
    ("import os\n    while True: os.fork()", "started too many processes"),
    ("x = bytearray(6 * 10**9)", "MemoryError"),
    ("import os; os.write(2, b'{\"started\": 1}'); return nowhere", "NameError"),
    ("return type('Yes', (float,), {'__eq__': lambda *_: True})(0.5)", "expected"),
    ("open('big', 'wb').write(b'x' * (80 << 20))", "OSError"),
])  # fmt: skip
def test_limits_of_time_memory_processes_and_files(line, says):
    limit = 3 if "3 seconds" in says else 30  # a busy machine takes seconds over the others, too
    status, message = one(1, with_line(1, line), limit=limit)
    assert status in ("wrong", "hung", "died") and says in message, message


def test_it_sees_a_copy_and_no_key_of_the_graders(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    line = "import os, rewards; print(os.environ.get('PYTHONPATH'), rewards.__file__)"
    status, _, printed = tried(1, with_line(1, line))["temporal_iou", grading.SHOWN]
    assert status == "right" and printed.startswith("None ") and ROOT + "/" not in printed


def test_a_fault_of_ours_is_not_the_students(monkeypatch):
    monkeypatch.setattr(apart, "copy_of", lambda exercise: {"course/cases.py": "1 / 0\n"})
    status, message = one(1, solution(1))
    assert status == "not checked" and "no fault of yours" in message
    monkeypatch.setattr(grading, "tried", lambda *_: 1 / 0)
    parts = grading.grade_submission(submissions.Submission("x", {ONE: b""}), "a seed", 9)
    assert {p.status for p in parts} == {"not checked"} and "ZeroDivisionError" in parts[0].message


# What a student is told ---------------------------------------------------------------------------


def test_an_exception_shows_the_students_line_and_its_error_first():
    status, said = one(
        6, "def kl_k3(logp, logp_ref):\n    delta = logp - nowhere\n    return delta\n"
    )
    assert status == "wrong" and "line 2: delta = logp - nowhere\n  raised   NameError" in said
    assert "usually" not in said and "Traceback" not in said and "child.py" not in said
    _, said = one(1, with_line(1, "return 1 / 0"))
    assert said.index("return 1 / 0") < said.index("ZeroDivisionError") < said.index("usually")
    assert "line 1" in one(1, "def temporal_iou(a, b:\n    pass\n")[1]
    assert "no function temporal_iou" in one(1, "def iou(a, b):\n    pass\n")[1]
    assert one(1, solution(1).encode("utf-16"))[1].strip().startswith("the file is saved as UTF-16")


@pytest.mark.parametrize("text, name", [
    (solution(1).encode("utf-16"), "UTF-16"), (solution(1).encode("utf-16-le"), "UTF-16 without"),
    (solution(1).encode("utf-32"), "UTF-32"), ("# é\n".encode("latin-1"), "Latin-1 (line 1)"),
    ("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"), None), (solution(1).encode(), None),
    (solution(1).encode("utf-8-sig"), None)])  # fmt: skip
def test_encodings_are_said_by_name(text, name):
    said = submissions.wrong_encoding(text)
    assert said is None if name is None else name in said


def test_a_difference_is_told_by_its_place():
    wrong = wrong_solutions.solution(
        10, "h, w = h // merge, w // merge", "w, h = h // merge, w // merge"
    )
    assert "rows of the video's tokens" in one(10, wrong)[1]
    wrong = wrong_solutions.solution(11, "position + step", "position + step + 1")
    assert "the first at [0, 0, " in one(11, wrong, limit=120)[1]


def test_dataclasses_with_string_annotations_work():
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\n"
    assert one(1, text + "class Span:\n    start: float\n\n\n" + solution(1))[0] == "right"


# Points, flags, files -----------------------------------------------------------------------------


def test_answers_learned_by_heart_earn_the_visible_part_alone_and_a_flag(tmp_path):
    table = [(case.args, want) for case, want in apart.wanted(ONE, grading.SHOWN)]
    text = (f"TABLE = dict({table!r})\n\n\ndef temporal_iou(a, b):\n"
            "    return TABLE.get((tuple(a), tuple(b)), 0.0)\n")  # fmt: skip
    student = submissions.Submission("x", {ONE: text.encode()})
    parts = grading.grade_submission(student, "a seed", 20)
    assert [(p.score, p.maximum, p.hidden) for p in parts[:2]] == [(3, 3, False), (0, 1, True)]
    assert student.flags == ["exercise 1: temporal_iou is right with the students' numbers alone"]


def test_two_functions_are_graded_apart():
    text = (
        solution(4).replace("def merged", "def right_merged").replace("merged(a", "right_merged(a")
    )
    text = text.replace("right_right", "right").replace(" merged(b", " right_merged(b")
    text += "\n\ndef merged(intervals):\n    return sorted(intervals)\n"
    results = tried(4, text)
    assert [said[0] for said in results.values()] == ["wrong", "right"], results
    blank = exercises.without_bodies(solution(9), ["policy_loss"], exercises.blank_line)
    results = tried(9, blank)
    assert list(results) == [("token_weights", grading.SHOWN)]
    assert grading.summed_up(EXERCISES[8], results)[0] == "to do"


def test_flags_take_no_points(tmp_path):
    same = "def temporal_iou(a, b):\n    (s, e), (t, f) = a, b\n    if e <= s or f <= t:\n"
    same += "        return 0.0\n    x = max(0.0, min(e, f) - max(s, t))\n"
    same += "    return x / (max(e, f) - min(s, t))\n"
    put(tmp_path / "in" / "anna" / ONE.file, "import itertools\n" + same)
    other = same.replace(" x", " both").replace("e, f", "end, f").replace("e <=", "end <=")
    put(tmp_path / "in" / "ben" / ONE.file, "# mine\n" + other.replace("(s, e)", "(s, end)"))
    put(tmp_path / "in" / "carla" / ONE.file, solution(1))
    rows = rows_of(submissions.find(str(tmp_path / "in"))[0], limit=20)
    assert {row[-4] for row in rows.values()} == {"4"}
    assert rows["anna"][-2] == "exercise 1: imports itertools\nexercise 1: the same as that of ben"
    assert "that of anna" in rows["ben"][-2] and rows["carla"][-2] == ""


def test_files_are_found_however_they_were_named(tmp_path):
    for n in (1, 2, 5):
        with zipfile.ZipFile(tmp_path / "ben.zip", "a") as z:
            z.writestr(f"ben-main/hw\\{EXERCISES[n - 1].file}", solution(n))
            z.writestr(f"__MACOSX/._{EXERCISES[n - 1].file}", "junk")
    put(tmp_path / "carla" / "Ex05_group-advantages (1).py", solution(5))
    put(tmp_path / "carla" / "ex05_group_advantages.py", exercises.write_up(EXERCISES[4]))
    put(tmp_path / "carla" / "lee_ex7.py", solution(7))
    put(tmp_path / "dora" / "solution.py", solution(6) + "\n" + solution(1))
    put(tmp_path / "hana" / "README.txt", "my dog ate it")
    os.makedirs(os.fsencode(tmp_path) + b"/M\xfcller")
    put(tmp_path / "loose.py", "x = 1\n")
    (tmp_path / "erik.zip").write_bytes(b"PK\x03\x04 no zip")
    found, loose = submissions.find(str(tmp_path))
    got = {s.student: sorted(e.number for e in s.files) for s in found}
    assert got.pop(os.fsdecode(b"M\xfcller")) == []
    assert got == {"ben": [1, 2, 5], "carla": [5, 7], "dora": [1, 6], "hana": [], "erik": []}
    assert loose == ["loose.py"]
    notes = {s.student: " ".join(grading.overview(s)) for s in found}
    assert "took carla/Ex05" not in notes["carla"] and "took Ex05_group-adv" in notes["carla"]
    assert "found by its functions in solution.py" in notes["dora"]
    assert "cannot be read" in notes["erik"] and "Nothing was found" in notes["hana"]


def test_the_files_of_a_class(tmp_path, capsys):
    put(tmp_path / "in" / "=1+2" / ONE.file, with_line(1, r"print('```\n\x1b[31m@', 'Δ')"))
    put(tmp_path / "in" / "hana" / "README.txt", "")
    out = tmp_path / "grades.csv"
    with pytest.raises(BadInput, match="give a file in a folder that is there"):
        grading.grade(str(tmp_path / "in"), str(tmp_path))
    assert grading.grade(str(tmp_path / "in"), str(out), seed="x") == 1  # of hana nothing was found
    with open(out, encoding="utf-8-sig", newline="") as f:
        rows = {row["student"]: row for row in csv.DictReader(f)}
    assert rows["'=1+2"]["points"] == "4" and rows["hana"]["points"] == ""
    beside = tmp_path / "grades-feedback"
    said = (beside / "=1+2" / "feedback.md").read_text(encoding="utf-8")
    assert "'''" in said and "\x1b" not in said and "Δ" in said and said.count("```") == 2
    made = json.loads((beside / "=1+2" / "results.json").read_text(encoding="utf-8"))
    assert made["score"] == 4 and sum(t["max_score"] for t in made["tests"]) == WHOLE
    assert {t["visibility"] for t in made["tests"]} == {"visible", "after_published"}
    assert "score" not in json.loads((beside / "hana" / "results.json").read_text("utf-8"))
    with pytest.raises(BadInput, match="is no folder"):
        grading.grade(str(tmp_path / "no"), str(out))
    with pytest.raises(BadInput, match=r"nothing to grade .* it holds =1\+2, hana"):
        (tmp_path / "in" / "=1+2" / ONE.file).unlink()
        grading.grade(str(tmp_path / "in"), str(out))


def test_cells_that_a_spreadsheet_would_run_are_quoted():
    for text in ("=1+1", "+1", "-1", "@x", "\t=1"):
        assert grading.cell(text) == "'" + text
    assert grading.cell("a\x00\x1bb") == "a��b" and grading.cell(12) == "12"


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_ours_is_right_with_any_numbers(seed):
    files = [(e, solution(e.number).encode()) for e in EXERCISES]
    for result in grading.tried(files, [seed], 120):
        assert all(status == "right" for status, *_ in result.values()), result
    for e in EXERCISES:
        shown, hidden = apart.cases_of(e, grading.SHOWN), apart.cases_of(e, seed)
        assert [case.name for case in shown] == [case.name for case in hidden]
        assert repr([case.args for case in shown]) != repr([case.args for case in hidden])


@pytest.mark.slow
def test_a_whole_class(tmp_path):
    """The time is printed (pytest -s); CLASS=30 is a real one's size."""
    size = int(os.environ.get("CLASS", 6))
    for k in range(size):
        for e in EXERCISES:
            put(tmp_path / "in" / f"s{k:02}" / e.file, f"# {k}\n" + solution(e.number))
    began = time.monotonic()
    assert grading.grade(str(tmp_path / "in"), str(tmp_path / "grades.csv"), limit=120) == 0
    print(f"{size} submissions in {time.monotonic() - began:.0f} s")
    with open(tmp_path / "grades.csv", encoding="utf-8-sig", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == size and {row["points"] for row in rows} == {str(WHOLE)}


# Hand-out and autograder --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_handout_runs_from_the_first_day(charades, tmp_path):
    folder = tmp_path / "class"
    handout.handout(str(folder))
    assert not (folder / "tests").exists() and not (folder / "docs" / "course.md").exists()
    with pytest.raises(BadInput, match="is not empty"):
        handout.handout(str(folder))
    done = run("grpo.py", "--student", "homework", cwd=folder)
    assert done.returncode == 0 and "yours: none" in done.stdout and "Arm c now" in done.stdout
    put(folder / "homework" / EXERCISES[10].file, solution(11))
    put(folder / "homework" / EXERCISES[4].file, wrong_solutions.solution(5, " + 1e-4", ""))
    flags = "--steps 1 --prompts-per-step 2 --group-size 4 --examples 8 --data".split()
    done = run("train.py", "--student", "homework", "--out", tmp_path / "run", *flags, charades,
               cwd=folder)  # fmt: skip
    assert done.returncode == 0 and "grpo.sample_groups" in done.stdout, done.stderr
    done = run("-m", "course", "check", "all", "--into", "homework", "--limit", 120, cwd=folder)
    assert done.returncode == 1 and "1 of 14 right" in done.stdout, done.stdout + done.stderr
    assert "1e-4 is missing" in done.stdout and "not written yet" in done.stdout


@pytest.mark.slow
def test_the_autograder_in_a_bare_folder(tmp_path):
    """As the platform lays it out; its Python is ours, since nothing is installed here."""
    zipped = tmp_path / "autograder.zip"
    handout.autograder(str(zipped), "a seed")
    with zipfile.ZipFile(zipped) as z:
        assert z.getinfo("run_autograder").external_attr >> 16 & 0o111
        assert not [name for name in z.namelist() if name.startswith("project/tests")]
    source = tmp_path / "autograder" / "source"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", zipped, source], check=True)
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


@pytest.mark.slow
def test_a_terminal_that_knows_no_utf8(tmp_path):
    """Windows' code page: text files, what is printed, and what a student's code prints."""
    homework = tmp_path / "homework"
    done = run("-m", "course", "start", "all", "--into", homework, env=CP1252)
    assert done.returncode == 0 and len(os.listdir(homework)) == len(EXERCISES), done.stderr
    assert "ρ" in (homework / EXERCISES[8].file).read_text(encoding="utf-8")
    put(homework / ONE.file, with_line(1, "print('Δ ≥ 0')"))
    done = run("-m", "course", "check", 1, "--into", homework, env=CP1252)
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr
    put(homework / ONE.file, with_line(1, "raise ValueError('Δ')"))
    done = run("-m", "course", "check", 1, "--into", homework, env=CP1252)
    assert done.returncode == 1 and "ValueError" in done.stdout and done.stderr == ""
