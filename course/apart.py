"""apart.py: one submission's functions, run by child.py in a folder and processes of their own.

The folder is a fresh copy of what the functions need, made from the sources as they were when the
grader started. In the copy of an exercise no exercise has a body, but for those that it may build
on. Student's code is never imported, run or parsed here; what it wrote is read as plain values.
"""

import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache

from course import compare, values
from course.cases import cases_of
from course.exercises import EXERCISES, ROOT, read, source_of, without_bodies

STARTING = 180  # seconds that the process may take to import torch
MOST_RESULTS = 64 << 20  # bytes
NEEDED = ("__init__.py", "exercises.py", "further.py", "values.py", "child.py")  # of course/
# By exercise: functions of others that it may call; (module, function) that would give it away.
USES = {9: ("kl_k3",), 11: ("completion_mask", "mrope_positions", "packed_attention")}
HIDDEN = {14: [("variants", "weighted")]}


@dataclass
class Outcome:
    """What child.py told about one function. cases: {(seed, number of the case): line}."""

    cases: dict = field(default_factory=dict)
    load: str = ""  # why the file could not be loaded
    fault: str = ""  # what failed on our side
    ended: str = ""  # done, hung, died or crowd; "": nothing was told
    code: object = None
    running: tuple = None  # (seed, number) of the case that was begun last
    printed: str = ""


@cache
def sources():
    """{path from the root: text} of the modules that a copy holds."""
    found = {}
    for folder in ("", "lib", "course"):
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            wanted = name.endswith(".py")
            if folder == "course":
                wanted = name in NEEDED or name.startswith("cases")
            if wanted:
                found[os.path.join(folder, name)] = read(os.path.join(ROOT, folder, name)).decode()
    return found


@cache
def copy_of(exercise):
    """The same, without the bodies of all exercises but those that this one may use."""
    made = dict(sources())
    for other in EXERCISES:
        names = [name for name in other.functions if name not in USES.get(exercise.number, ())]
        path, said = source_of(other.module), f"exercise {other.number}, which is not this one"
        if other is exercise:
            said = f"exercise {other.number} itself: ours does not answer to yours"
        made[path] = without_bodies(made[path], names, f'raise NotImplementedError("{said}")')
    for module, name in HIDDEN.get(exercise.number, ()):
        path = source_of(module)
        made[path] = without_bodies(made[path], [name], f'raise NotImplementedError("{module}")')
    return made


def write_copy(folder, exercise, text):
    files = {path: source.encode() for path, source in copy_of(exercise).items()}
    for path, content in (files | {os.path.join("work", exercise.file): text}).items():
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "wb") as f:
            f.write(content)


def run(files, seeds, limit):
    """Runs the functions of files on the cases of some seeds, in one process for all of them.

    files: [(Exercise, its text as bytes, names of functions)]; limit: seconds for each function.
    Returns for each file {name: Outcome}.
    """
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as folder:
        tasks = []
        for k, (exercise, text, names) in enumerate(files):
            place = os.path.join(folder, str(k))
            write_copy(place, exercise, text)
            about = dict(copy=place, number=exercise.number, seeds=seeds, limit=limit)
            tasks += [about | dict(file=k, function=name) for name in names]
        plain = all(exercise.plain for exercise, _, _ in files)
        imports = [] if plain else ["torch", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]
        whole = STARTING + limit * len(tasks)
        job = json.dumps(dict(tasks=tasks, imports=imports, limit=whole)).encode()
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as results:
            start_and_wait(job, printed, results, folder, whole + 60)
            return outcomes(files, results, printed)


def start_and_wait(job, printed, results, folder, seconds):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    command = [sys.executable, "-I", "-X", "utf8", os.path.join(ROOT, "course", "child.py")]
    streams = dict(stdin=subprocess.PIPE, stdout=printed, stderr=results)
    own = dict(cwd=folder, env=environ, start_new_session=True)
    with subprocess.Popen(command, **streams, **own) as process:
        try:
            process.communicate(job, timeout=seconds)
        except BaseException as e:
            process.terminate()
            if not isinstance(e, (subprocess.TimeoutExpired, BrokenPipeError)):
                raise


def outcomes(files, results, printed):
    """Reads the lines of the child's results. What is no line of its own is the student's doing."""
    made = [{name: Outcome() for name in names} for _, _, names in files]
    other, started = [], False
    results.seek(0)
    for raw in results.read(MOST_RESULTS).split(b"\n"):
        try:
            line = json.loads(raw)
            started = started or "started" in line
            outcome = made[line["file"]][line["function"]]
            if "ended" in line:
                outcome.ended, outcome.code = str(line["ended"]), line["code"]
                outcome.printed = text_between(printed, *line["printed"])
            elif "case" in line:
                outcome.running = line["seed"], line["case"]
                if "begins" not in line:
                    outcome.cases[outcome.running] = line
            else:
                outcome.load = str(line.get("raised", ""))
                outcome.fault = str(line.get("fault", ""))
        except (ValueError, LookupError, TypeError, RecursionError):
            other.append(raw)
    if not started:
        said = b" ".join(other)[-300:].decode("utf-8", "replace")
        fault = f"the process of the check did not start: {said}"
        return [{name: Outcome(fault=fault) for name in outcome} for outcome in made]
    return made


def text_between(file, begins, ends, most=2000):
    file.seek(int(begins))
    text = file.read(max(0, min(int(ends) - int(begins), most + 1))).decode("utf-8", "replace")
    return text if len(text) <= most else text[:most] + " …"


@cache
def wanted(exercise, seed):
    """[(case, what it should give)]: what the reference gives, as values.py sends it."""
    made = []
    for case in cases_of(exercise, seed):
        want = case.want
        if not case.judge:
            module = importlib.import_module(exercise.module)
            function = getattr(module, case.name or exercise.functions[-1])
            got = case.call(function, *copy.deepcopy(case.args))
            want = values.from_json(values.to_json(got))
        made.append((case, want))
    return made


def verdict(exercise, name, outcome, seed, limit):
    """(status, message) of a function and the cases of a seed, up to the first that fails."""
    if outcome.fault:
        return "not checked", f"  the check itself failed, no fault of yours: {outcome.fault}"
    if not outcome.ended:
        return ended_early(outcome, "", limit)
    if outcome.load:
        return status_of(outcome.load), f"  {outcome.load}"
    for i, (case, want) in enumerate(wanted(exercise, seed)):
        if (case.name or exercise.functions[-1]) != name:
            continue
        line = outcome.cases.get((seed, i))
        if line is None:
            called = compare.as_text(case, name) if outcome.running == (seed, i) else ""
            return ended_early(outcome, called, limit)
        try:
            if "got" in line:
                line = line | {"got": values.from_json(json.dumps(line["got"]))}
            compare.judge(case, name, line, want)
        except compare.Wrong as e:
            return status_of(line.get("raised")), str(e)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
            return "wrong", f"  what came back cannot be read: {type(e).__name__}: {e}"[:300]
    return "right", ""


def status_of(raised):
    return "to do" if str(raised or "").startswith("not written yet") else "wrong"


def ended_early(outcome, called, limit):
    called = f"  called   {called}\n" if called else ""
    if outcome.ended == "hung":
        usually = "a loop whose end never comes, or Python loops over what tensors do at once"
        return "hung", f"{called}  not done after {limit:g} seconds\n  usually  {usually}"
    if outcome.ended == "crowd":
        return "died", f"{called}  your code started too many processes"
    said = f"exit code {outcome.code}" if outcome.ended else "and those of the check"
    said = f"{called}  your code ended its whole process ({said})"
    return "died", f"{said}\n  usually  a call of exit, or no memory left"
