"""grading.py: checks of one exercise, and the grades of a class.

A function earns three quarters of its points with the cases that students can try themselves, and
the last quarter with the same cases and other random numbers: a file that only knows the answers to
the first ones is found out.

Every check runs in a process of its own with a time limit (apart.py): code that hangs, crashes or
exits harms only itself. It sees neither the reference nor the cases nor other students' files. That
stops accidents and cheap cheats; it is no jail: grade in a container what you do not trust.
"""

import csv
import json
import os
import random
import secrets
import tempfile
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import torch

from course import checks, checks_further, checks_model, submissions
from course.apart import Apart
from course.exercises import BLANKS, EXERCISES, blanks, in_handout, unfinished
from lib.errors import BadInput
from lib.files import replace_file

CASES = (checks, checks_model, checks_further)  # the modules
LIMIT = 20.0  # seconds that a check may take
OTHER = "With other numbers than those of `python -m course check`:\n"
Part = namedtuple("Part", "exercise function score maximum status message hidden printed")

# ------------------------------------------------------------------------------------------------
# One exercise
# ------------------------------------------------------------------------------------------------


@contextmanager
def other_numbers(seed):
    """While cases are made, their random numbers are others: random.Random(n) takes the seed, too.
    None: those that students see."""
    if seed is None:
        yield
        return

    class Other(random.Random):
        def __init__(self, n=0):
            super().__init__(f"{seed} {n}")

    for module in CASES:
        module.random = SimpleNamespace(**vars(random) | {"Random": Other})
    try:
        yield
    finally:
        for module in CASES:
            module.random = random


@cache
def cases_of(exercise, seed=None):
    """[(case, what it should give)] of an exercise.

    A hand-out has the results alone, as files: what computes them would be half a solution.
    """
    name = exercise.functions[-1] + "_cases"
    make = next(getattr(module, name) for module in CASES if hasattr(module, name))
    with other_numbers(seed):
        cases = list(make())
    if in_handout():
        path = os.path.join(BLANKS, "expected.pt")
        return list(zip(cases, torch.load(path, weights_only=True)[exercise.number]))
    return [(case, case.expected()) for case in cases]


def try_function(exercise, name, path, limit, seed=None, method=None):
    """Tries the cases of one function on a student's file, up to the first that fails.

    limit: seconds. Returns (status, message, what the code printed); the status is "right",
    "wrong", "hung", "died", or "not checked" where the fault is ours.
    """
    apart = Apart(exercise, name, path, limit, method)
    try:
        apart.load()
        for case, want in cases_of(exercise, seed):
            if (case.name or exercise.functions[-1]) == name:
                apart.at = checks.as_text(case, name)
                checks.try_case(case, apart.function, want)
        status, message = "right", ""
    except checks.Wrong as e:
        status, message = apart.ended or "wrong", f"  {apart.said}" if apart.ended else str(e)
    except Exception as e:
        status = "not checked"
        message = f"  the check itself failed, which is no fault of yours: {type(e).__name__}: {e}"
    finally:
        printed = apart.printed()
        apart.close()
    return status, message, printed


def examine(exercise, folder, limit=LIMIT, method=None):
    """Checks one exercise of a student's folder, up to the first case that fails.

    Returns (status, message, what the code printed); the status is "right", "to do", or another of
    try_function.
    """
    path, blank, printed = os.path.join(folder, exercise.file), blanks(exercise, folder), ""
    written = [name for name in exercise.functions if name not in blank]
    for name in written:
        status, message, printed = try_function(exercise, name, path, limit, method=method)
        if status != "right":
            return status, message, printed
    if blank:
        right = f"; right so far: {', '.join(written)}" if written else ""
        return "to do", unfinished(exercise, folder) + right, printed
    return "right", f"{len(cases_of(exercise))} cases", printed


def check(chosen, folder, limit):
    """Prints the result of each exercise. Returns how many are right."""
    right = 0
    for exercise in chosen:
        status, message, printed = examine(exercise, folder, limit)
        if printed and len(chosen) == 1:
            print(f"your code printed:\n{printed}\n")
        right += status == "right"
        count = f" ({message})" if status == "right" else ""
        print(f"{exercise.number:2}  {exercise.title:32} {status}{count}", flush=True)
        if status != "right":
            print(f"  {message.strip()}" + ("\n" if status != "to do" else ""))
    if len(chosen) > 1:
        done = right == len(EXERCISES)
        train = f"; now train with them: python train.py --student {folder}" if done else ""
        print(f"{right} of {len(chosen)} right{train}")
    return right


# ------------------------------------------------------------------------------------------------
# One submission
# ------------------------------------------------------------------------------------------------


def parts_of(exercise, folder, limit, seed):
    """The Parts of an exercise in a student's folder: two for each function, what students can try
    and what is hidden."""
    path, blank = os.path.join(folder, exercise.file), blanks(exercise, folder)
    why = "not written yet" if os.path.exists(path) else "no file"
    parts = []
    for name, points in zip(exercise.functions, exercise.points):
        said = ["", why]  # so far of this function
        for hidden, numbers in ((False, None), (True, seed)):
            status, message, printed = "to do", why, ""
            if name not in blank:
                status, message, printed = try_function(exercise, name, path, limit, numbers)
            if message not in said:
                said.append(message)
                message = OTHER * hidden + message
            maximum = points // 4 if hidden else points - points // 4
            score = maximum if status == "right" else 0
            parts.append(Part(exercise, name, score, maximum, status, message, hidden, printed))
    return parts


def grade_all(found, folder, limit, seed):
    """{student: its Parts} of some submissions, whose files are written into `folder`."""
    for exercise in EXERCISES:  # before the threads, which all use them
        cases_of(exercise), cases_of(exercise, seed)
    # The models of the cases count what they are given: one check of an exercise at a time.
    locks = {exercise.number: threading.Lock() for exercise in EXERCISES}

    def job(one):
        place, exercise = one
        with locks[exercise.number]:
            return parts_of(exercise, place, limit, seed)

    places = {}
    for i, submission in enumerate(found):
        places[submission.student] = os.path.join(folder, str(i))
        submissions.write(submission, places[submission.student])
    jobs = [(places[s.student], e) for s in found if s.files for e in EXERCISES]
    # As many at a time as there are processors; of one submission one, so that none waits for its
    # siblings where a platform lends less than it shows.
    with ThreadPoolExecutor(min(len(found), os.cpu_count() or 1)) as pool:
        results = dict(zip(jobs, pool.map(job, jobs)))
    return {student: [part for e in EXERCISES for part in results.get((place, e), [])]
            for student, place in places.items()}  # fmt: skip


def results_json(submission, parts):
    """A submission's results in the form that Gradescope reads.

    Where nothing was found there is no score: the platform shows that as an error, and so it is.
    """
    tests = [
        {
            "name": f"{p.exercise.number}. {p.exercise.title}: {p.function}"
            + " (other numbers)" * p.hidden,
            "score": p.score,
            "max_score": p.maximum,
            "status": "passed" if p.score == p.maximum else "failed",
            "output": p.message or p.status,
            "visibility": "after_published" if p.hidden else "visible",
        }
        for p in parts
    ]
    output = overview(submission)
    if any(p.status == "not checked" for p in parts):
        output.append("A check failed by a fault of its own: have this graded again.")
    about = {"output": "\n".join(output), "stdout_visibility": "hidden", "tests": tests}
    if parts:
        about["score"] = sum(p.score for p in parts)
    return about | {"extra_data": {"flags": submission.flags}}


def overview(submission):
    """What was found of a submission, and what was not: lines."""
    lines = list(submission.notes)
    if not submission.files:
        lines.append(f"Nothing was found to grade. The files should be named {EXERCISES[0].file} "
                     "and so on, or define the exercises' functions.")  # fmt: skip
    if submission.unmatched:
        shown = ", ".join(submission.unmatched[:20])
        more = len(submission.unmatched) - 20
        lines.append(f"files of no exercise: {shown}" + (f" and {more} more" if more > 0 else ""))
    return lines


def feedback(submission, parts):
    """What a student is given to read, as markdown."""
    got, whole = sum(p.score for p in parts), sum(p.maximum for p in parts)
    points = f"{got} of {whole} points" if parts else "not graded"
    text = [f"# {submission.student}: {points}\n", *overview(submission)]
    for exercise in EXERCISES if parts else ():
        own = [p for p in parts if p.exercise is exercise]
        points = f"{sum(p.score for p in own)} of {sum(p.maximum for p in own)}"
        text.append(f"\n## {exercise.number}. {exercise.title}: {points}\n")
        for p in own:
            numbers = "other numbers" if p.hidden else "your cases"
            text.append(f"- `{p.function}`, {numbers}: {p.score} of {p.maximum}, {p.status}")
        said = dict.fromkeys(p.message.rstrip() for p in own if p.status not in ("right", "to do"))
        text += [f"\n```text\n{message.strip(chr(10))}\n```" for message in said]
        if printed := next((p.printed for p in own if p.printed), ""):
            text.append(f"\nIt printed:\n\n```text\n{printed.rstrip()}\n```")
    return "\n".join(text) + "\n"


# ------------------------------------------------------------------------------------------------
# A class
# ------------------------------------------------------------------------------------------------


def refuse_in_handout():
    if in_handout():
        raise BadInput("this is a hand-out: grade with the whole repository")


def remarks(submission, parts):
    """All that is not right, one line per exercise."""
    lines = []
    for exercise in EXERCISES:
        said = {}
        for p in parts:
            if p.exercise is exercise and p.status != "right":
                said.setdefault(" ".join(p.message.split()), (p.function, p.status))
        for message, (function, status) in said.items():
            lines.append(f"{exercise.number} {function} {status}: {message}")
    return "\n".join(overview(submission) + lines)


def grade(folder, out, limit=LIMIT, seed=None):
    """Grades what is in a folder of submissions.

    Writes the table `out`, and beside it a folder FEEDBACK with two files per student, feedback.md
    and results.json. Returns how many students handed in nothing that was found (they have no
    points, not 0), and how many parts could not be checked.
    """
    refuse_in_handout()
    found, loose = submissions.find(folder)
    if os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or "."):
        raise BadInput(f"--out {out}: give a file in a folder that is there")
    seed = seed or secrets.token_hex(4)
    with tempfile.TemporaryDirectory() as files:
        graded = grade_all(found, files, limit, seed)
    beside = os.path.splitext(out)[0] + "-feedback"
    rows, whole = [], sum(sum(e.points) for e in EXERCISES)
    for submission in found:
        parts = graded[submission.student]
        points = {e: sum(p.score for p in parts if p.exercise is e) for e in EXERCISES}
        own = [points[e] if parts else "" for e in EXERCISES]
        rows.append([submission.student, *own, sum(own) if parts else "", whole,
                     "\n".join(submission.flags), remarks(submission, parts)])  # fmt: skip
        place = os.path.join(beside, submission.student)
        os.makedirs(place, exist_ok=True)
        replace_file(os.path.join(place, "feedback.md"), feedback(submission, parts))
        made = json.dumps(results_json(submission, parts), indent=1, ensure_ascii=False)
        replace_file(os.path.join(place, "results.json"), made + "\n")
        flagged = f"   {len(submission.flags)} flags" if submission.flags else ""
        said = f"{sum(own):3} of {whole}" if parts else "NOTHING FOUND"
        print(f"{submission.student:24} {said}{flagged}")
    with open(out, "w", newline="", encoding="utf-8-sig") as f:  # with it, Excel reads UTF-8
        writer = csv.writer(f)
        names = [f"ex{e.number:02}" for e in EXERCISES]
        writer.writerow(["student", *names, "points", "of", "flags", "remarks"])
        writer.writerows(rows)
    print(f"wrote {out} and {beside}; the hidden numbers were those of --seed {seed}")
    ours = sum(part.status == "not checked" for parts in graded.values() for part in parts)
    if ours:
        print(f"{ours} PARTS NOT CHECKED, by a fault of the checks: see the remarks, grade again")
    if loose:
        print(f"left out, since they are in no student's folder: {', '.join(loose)}")
    return ours + sum(not submission.files for submission in found)


def grade_one(folder, out, limit=LIMIT, seed=None):
    """Grades a folder that holds one submission and writes its results.json, as Gradescope asks.

    Returns 1 if nothing was found to grade, else 0.
    """
    refuse_in_handout()
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is no folder: it should hold one submission")
    submission = submissions.one("submission", submissions.walk(folder))
    parts = []
    if submission.files:
        with tempfile.TemporaryDirectory() as files:
            graded = grade_all([submission], files, limit, seed or secrets.token_hex(4))
        parts = graded["submission"]
    made = json.dumps(results_json(submission, parts), indent=1, ensure_ascii=False)
    replace_file(out, made + "\n")
    said = f"{sum(p.score for p in parts)} of {sum(p.maximum for p in parts)} points"
    print(f"{said if parts else 'nothing graded'}; wrote {out}")
    for line in overview(submission) + submission.flags:
        print(line)
    return int(not submission.files)
