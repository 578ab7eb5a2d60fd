"""grading.py: checks of one exercise, and the grades of a class.

A function earns three quarters of its points with the cases that students can try themselves, and
the last quarter with the same cases and other random numbers: a file that only knows the answers to
the first ones is found out. How a student's code is run: apart.py.
"""

import csv
import io
import json
import os
import secrets
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

from course import apart, submissions
from course.exercises import EXERCISES, blanks, read, unfinished
from course.submissions import clean
from lib.errors import BadInput
from lib.files import replace_file
from lib.processes import cores

SHOWN = "the numbers of `check`"  # the seed of what students can try
OTHER = "With other numbers than those of `python -m course check`:\n"
Part = namedtuple("Part", "exercise function score maximum status message hidden printed")


def tried(files, seeds, limit):
    """Tries all functions of files, [(Exercise, text as bytes)], on the cases of some seeds.

    Returns for each file {(function, seed): (status, message, what was printed)}; functions that
    are not written yet are not in it.
    """
    results, runnable = [{} for _ in files], []
    for result, (exercise, text) in zip(results, files):
        names = [name for name in exercise.functions if name not in blanks(exercise, text)]
        if said := submissions.wrong_encoding(text):
            result.update({(name, seed): ("wrong", said, "") for name in names for seed in seeds})
        elif names:
            runnable.append((result, exercise, text, names))
    outcomes = apart.run([file for _, *file in runnable], seeds, limit) if runnable else []
    for (result, exercise, _, names), outcome in zip(runnable, outcomes):
        for name in names:
            for seed in seeds:
                said = apart.verdict(exercise, name, outcome[name], seed, limit)
                result[name, seed] = (*said, outcome[name].printed)
    return results


def summed_up(exercise, result):
    """(status, message, what was printed) of a whole file, up to the first function that fails."""
    blank, said = [name for name in exercise.functions if (name, SHOWN) not in result], ("", "", "")
    for said in result.values():
        if said[0] != "right":
            return said
    if blank:
        right = "; right so far: " + ", ".join(name for name, _ in result) if result else ""
        return "to do", f"not written yet: {', '.join(blank)}{right}", said[2]
    return "right", f"{len(apart.wanted(exercise, SHOWN))} cases", said[2]


def check(chosen, folder, limit):
    """Prints the result of each exercise. Returns how many are right."""
    right, files = 0, []
    for exercise in chosen:
        path = os.path.join(folder, exercise.file)
        if os.path.isfile(path):
            files.append((exercise, read(path)))
    results = {e: summed_up(e, said) for (e, _), said in zip(files, tried(files, [SHOWN], limit))}
    for exercise in chosen:
        missing = "to do", unfinished(exercise, folder), ""
        status, message, printed = results.get(exercise, missing)
        if printed and len(chosen) == 1:
            print(f"your code printed:\n{clean(printed)}\n")
        right += status == "right"
        count = f" ({message})" if status == "right" else ""
        print(f"{exercise.number:2}  {exercise.title:32} {status}{count}")
        if status != "right":
            print(f"  {clean(message).strip()}" + ("\n" if status != "to do" else ""))
    if len(chosen) > 1:
        done = right == len(EXERCISES)
        train = f"; now train with them: python train.py --student {folder}" if done else ""
        print(f"{right} of {len(chosen)} right{train}")
    return right


def grade_submission(submission, seed, limit):
    """Its Parts: two for each function, what students can try and what is hidden."""
    results, why = {}, ""
    try:
        for result in tried(list(submission.files.items()), [SHOWN, seed], limit):
            results |= result
    except Exception as e:  # whatever it is, it is this student's row alone
        why = f"  the check itself failed, no fault of yours: {type(e).__name__}: {e}"
    parts = []
    for exercise in EXERCISES if submission.files else ():
        missing = "  not written yet" if exercise in submission.files else "  no file"
        other = ("not checked", why, "") if why else ("to do", missing, "")
        for name, points in zip(exercise.functions, exercise.points):
            said = [results.get((name, numbers), other) for numbers in (SHOWN, seed)]
            for hidden, (status, message, printed) in enumerate(said):
                again = hidden and message == said[0][1]
                message = "" if again else clean(OTHER * bool(hidden and message) + message)
                most = points // 4 if hidden else points - points // 4
                score = most if status == "right" else 0
                about = (score, most, status, message, bool(hidden), clean(printed))
                parts.append(Part(exercise, name, *about))
            if [status for status, *_ in said] == ["right", "wrong"]:
                odd = f"{name} is right with the students' numbers alone"
                submission.flags.append(f"exercise {exercise.number}: {odd}")
    return parts


def grade_all(found, limit, seed):
    """{student: Parts}, as many submissions at a time as there are processors."""
    for exercise in EXERCISES:  # before the threads, and before any student's code runs
        apart.copy_of(exercise)
        for numbers in (SHOWN, seed):
            apart.wanted(exercise, numbers)
    with ThreadPoolExecutor(min(len(found), cores())) as pool:
        graded = list(pool.map(lambda one: grade_submission(one, seed, limit), found))
    submissions.flag(found)
    return {submission.student: parts for submission, parts in zip(found, graded)}


def overview(submission):
    """What was found of a submission, and what was not: lines."""
    lines = submission.notes[:20]
    if len(submission.notes) > 20:
        lines.append(f"and {len(submission.notes) - 20} more such files")
    if not submission.files:
        named = f"The files should be named {EXERCISES[0].file} and so on"
        lines.append(f"Nothing was found to grade. {named}, or define the exercises' functions.")
    return [clean(line) for line in lines]


def results_json(submission, parts):
    """A submission's results in the form that Gradescope reads.

    Where nothing was found there is no score: the platform shows that as an error, and so it is.
    """
    tests = []
    for p in parts:
        name = f"{p.exercise.number}. {p.exercise.title}: {p.function}"
        about = {"name": name + " (other numbers)" * p.hidden, "output": p.message or p.status}
        about["visibility"] = "after_published" if p.hidden else "visible"
        about["status"] = "passed" if p.score == p.maximum else "failed"
        tests.append(about | {"score": p.score, "max_score": p.maximum})
    output = overview(submission)
    if any(p.status == "not checked" for p in parts):
        output.append("A check failed by a fault of its own: have this graded again.")
    about = {"output": "\n".join(output), "stdout_visibility": "hidden", "tests": tests}
    if parts:
        about["score"] = sum(p.score for p in parts)
    about["extra_data"] = {"flags": [clean(flag) for flag in submission.flags]}
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def feedback(submission, parts):
    """What a student is given to read, as markdown."""
    got, whole = sum(p.score for p in parts), sum(p.maximum for p in parts)
    points = f"{got} of {whole} points" if parts else "not graded"
    text = [f"# {clean(submission.student)}: {points}\n", *overview(submission)]
    block = lambda said: "\n```text\n" + said.strip("\n").replace("```", "'''") + "\n```"
    for exercise in EXERCISES if parts else ():
        own = [p for p in parts if p.exercise is exercise]
        points = f"{sum(p.score for p in own)} of {sum(p.maximum for p in own)}"
        text.append(f"\n## {exercise.number}. {exercise.title}: {points}\n")
        for p in own:
            numbers = "other numbers" if p.hidden else "your cases"
            text.append(f"- `{p.function}`, {numbers}: {p.score} of {p.maximum}, {p.status}")
        said = dict.fromkeys(p.message for p in own if p.status not in ("right", "to do"))
        text += [block(message) for message in said if message]
        if printed := next((p.printed for p in own if p.printed), ""):
            text.append(f"\nIt printed:\n{block(printed)}")
    return "\n".join(text) + "\n"


def remarks(submission, parts):
    """All that is wrong, one line per function."""
    lines = overview(submission)
    for p in parts:
        if p.status not in ("right", "to do") and p.message:
            said = " ".join(p.message.split())
            lines.append(f"{p.exercise.number} {p.function} {p.status}: {said}")
    return "\n".join(lines)


def cell(value):
    """A cell of a table: text that a spreadsheet would run as a formula is quoted."""
    text = clean(value)
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t")) else text


def row_of(submission, parts):
    points = [sum(p.score for p in parts if p.exercise is e) if parts else "" for e in EXERCISES]
    whole = sum(sum(e.points) for e in EXERCISES)
    flags = "\n".join(submission.flags)
    total, said = sum(points) if parts else "", remarks(submission, parts)
    return [cell(x) for x in (submission.student, *points, total, whole, flags, said)]


def grade(folder, out, limit=20.0, seed=None):
    """Grades what is in a folder of submissions.

    Writes the table `out`, and beside it a folder FEEDBACK with two files per student, feedback.md
    and results.json. Returns how many students handed in nothing that was found (they have no
    points, not 0), and how many parts could not be checked.
    """
    found, loose = submissions.find(folder)
    if os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or "."):
        raise BadInput(f"--out {out}: give a file in a folder that is there")
    seed = seed or secrets.token_hex(4)
    graded = grade_all(found, limit, seed)
    beside, ours = os.path.splitext(out)[0] + "-feedback", 0
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    names = [f"ex{e.number:02}" for e in EXERCISES]
    writer.writerow(["student", *names, "points", "of", "flags", "remarks"])
    for submission in found:
        parts = graded[submission.student]
        row = row_of(submission, parts)
        writer.writerow(row)
        name = clean(submission.student).replace("/", "_")
        place = os.path.join(beside, name if name.strip(".") else f"student {name}")
        os.makedirs(place, exist_ok=True)
        replace_file(os.path.join(place, "feedback.md"), feedback(submission, parts))
        replace_file(os.path.join(place, "results.json"), results_json(submission, parts))
        flagged = f"   {len(submission.flags)} flags" if submission.flags else ""
        said = f"{row[-4]:>3} of {row[-3]}" if parts else "NOTHING FOUND"
        print(f"{clean(submission.student):24} {said}{flagged}")
        ours += sum(part.status == "not checked" for part in parts)
    replace_file(out, "\ufeff" + table.getvalue())  # with this mark Excel reads UTF-8
    print(f"wrote {out} and {beside}; the hidden numbers were those of --seed {seed}")
    if ours:
        print(f"{ours} PARTS NOT CHECKED, by a fault of the checks: see the remarks, grade again")
    if loose:
        print(f"left out, since they are in no student's folder: {', '.join(loose)}")
    return ours + sum(not submission.files for submission in found)


def grade_one(folder, out, limit=20.0, seed=None):
    """Grades a folder that holds one submission and writes its results.json, as Gradescope asks.

    Returns 1 if nothing was found to grade, else 0.
    """
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is no folder: it should hold one submission")
    submission = submissions.one(folder)
    parts = grade_all([submission], limit, seed or secrets.token_hex(4))["submission"]
    replace_file(out, results_json(submission, parts))
    said = f"{sum(p.score for p in parts)} of {sum(p.maximum for p in parts)} points"
    print(f"{said if parts else 'nothing graded'}; wrote {out}")
    for line in overview(submission) + submission.flags:
        print(clean(line))
    return int(not submission.files)
