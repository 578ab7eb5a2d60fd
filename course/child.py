"""child.py: the process that runs submissions, away from everything else.

    python -I child.py < job.json    # prints what students' code prints; results go to stderr

Two processes, neither of which runs a line of a student's. The first, the keeper, waits, and ends
whatever there is at the end. The second imports torch once and forks for each function: the fork
makes the cases from their seeds, reads the student's file, calls the function, and writes what came
back, a line of JSON per case. Comparing is the grader's work: no answer is here.

On Linux both are subreapers (prctl 36): what a fork leaves behind becomes their own child, whatever
session it fled into, and is ended. The project is imported in a fork alone, from a copy in which
the graded function has no body.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import json
import linecache
import os
import signal
import sys
import time
import traceback

MOST_BYTES = 64 << 20  # of a file that is written
MOST_MEMORY = 4 << 30  # of a process
MOST_PROCESSES = 32  # at a time
MOST_PRINTED = 1 << 20
UNUSUAL = (NameError, ImportError, AttributeError, SyntaxError, OSError)  # no mistake of the method


def prctl(option, value):
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def set_limits():
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))


def descendants():
    """Ids of all processes that come from this one, on Linux; elsewhere none is known."""
    parents = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    parents[int(name)] = int(f.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):  # it has ended
                pass
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def end_all(pid):
    """Ends everything that comes from this process; without /proc, the group of process `pid`."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        linux = sys.platform == "linux"
        for target in descendants() if linux else [pid]:
            with contextlib.suppress(OSError):
                (os.kill if linux else os.killpg)(target, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def watch(pid, seconds, most):
    """Waits for a child that may have `most` processes.

    Returns how it ended: "done", "hung", "died" or "crowd"; and its exit code.
    """
    parent, began, pause, counts = os.getppid(), time.monotonic(), 0.002, 1
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return ("done" if code == 0 else "died"), code
        passed = time.monotonic() - began
        if passed > seconds or os.getppid() != parent:
            return "crowd" if len(descendants()) > most else "hung", None
        if passed > counts / 4:  # looking through /proc takes milliseconds
            counts = int(4 * passed) + 1
            if len(descendants()) > most:
                return "crowd", None
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)


def apart(work, seconds, most=MOST_PROCESSES):
    """Runs work() in a session of its own, and ends all that it leaves. See `watch`."""
    if not hasattr(os, "fork"):  # Windows: here, and the grader's own limit of time holds
        work()
        return "done", 0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            prctl(1, signal.SIGKILL)  # as soon as its parent ends
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        return watch(pid, seconds, most)
    finally:
        end_all(pid)


class Raised(Exception):
    """What went wrong in the student's code, and whether the usual mistake may have caused it."""


def guarded(work, path):
    """work(); whatever it raises is told by the line of the student's file, `path`."""
    name = os.path.basename(path)
    try:
        return work()
    except SyntaxError as e:
        code = (e.text or "").strip()[:200]
        raise Raised(f"{name} line {e.lineno}: {code}\n  is no Python: {e.msg}", False) from None
    except BaseException as e:  # SystemExit too
        if type(e).__name__ == "Unfit" or isinstance(e, NotImplementedError):
            blank = "not written yet: " * str(e).startswith("write ")
            raise Raised(blank + str(e), False) from None
        frames = traceback.extract_tb(e.__traceback__)
        lines = [f.lineno for f in frames if f.filename == path]
        where = ""
        if lines:
            code = linecache.getline(path, lines[-1]).strip()[:200]
            where = f"{name} line {lines[-1]}: {code}\n  raised   "
        said = " ".join(str(e).split())[:300]
        said = f"{where}{type(e).__name__}: {said}".rstrip(": ")
        raise Raised(said, not isinstance(e, UNUSUAL)) from None


def load_file(path, name):
    """Runs a student's file and returns its function."""
    title = f"student_{os.path.basename(path)[:-3]}"
    spec = importlib.util.spec_from_file_location(title, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # where dataclasses look for the meaning of annotations
    guarded(lambda: spec.loader.exec_module(module), path)
    function = getattr(module, name, None)
    if not callable(function):
        missing = f"{os.path.basename(path)} defines no function {name}"
        raise Raised(f"{missing}: keep the names that `start` wrote", False)
    return function


class Printed(io.TextIOBase):
    """Standard output of the student's code: what comes after MOST_PRINTED bytes is dropped."""

    encoding, left = "utf-8", MOST_PRINTED

    def write(self, text):
        data = text.encode("utf-8", "replace")[: self.left]
        self.left -= len(data)
        os.write(1, data)
        return len(text)

    def fileno(self):
        return 1


def run_function(task, tell):
    """The cases of one function, of each seed up to the first that raises. tell writes a line."""
    sys.stdout = sys.stderr = Printed()
    sys.path.insert(0, task["copy"])
    os.chdir(os.path.join(task["copy"], "work"))
    os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd())
    sys.dont_write_bytecode = True
    from course.cases import cases_of
    from course.exercises import EXERCISES
    from course.values import encoded

    exercise, name = EXERCISES[task["number"] - 1], task["function"]
    path = os.path.join(os.getcwd(), exercise.file)
    encode = lambda args: [json.dumps(encoded(x)) for x in args]
    made = []  # all of them before the student's code runs
    for seed in task["seeds"]:
        for i, case in enumerate(cases_of(exercise, seed)):
            if (case.name or exercise.functions[-1]) == name:
                args = copy.deepcopy(case.args)
                made.append(({"seed": seed, "case": i}, case.call, args, encode(args)))
    try:
        function = load_file(path, name)
    except Raised as e:
        return tell(raised=e.args[0])
    given_up = set()  # seeds of which a case has raised
    for place, call, args, before in made:
        if place["seed"] in given_up:
            continue
        tell(**place, begins=True)
        try:
            value = guarded(lambda: encoded(call(function, *args)), path)  # noqa: B023
        except Raised as e:
            tell(**place, raised=e.args[0], usual=e.args[1])
            given_up.add(place["seed"])
            continue
        changed = [k for k, (old, new) in enumerate(zip(before, encode(args))) if old != new]
        tell(**place, got=value, changed=changed)


def try_function(task, tell):
    try:
        run_function(task, tell)
    except Exception as e:  # the student's mistakes are told inside: this one is ours
        tell(fault=f"{type(e).__name__}: {e}")


def run_job(job):
    """Each function of the job in a fork of its own."""
    for name in job["imports"]:
        __import__(name)
    results = os.dup(2)
    os.dup2(1, 2)  # what the student's code says as an error is printed, too

    def tell(**line):
        os.write(results, json.dumps(line).encode() + b"\n")

    tell(started=True)
    for task in job["tasks"]:
        of_task = functools.partial(tell, file=task["file"], function=task["function"])
        begins = os.lseek(1, 0, os.SEEK_END)
        how, code = apart(functools.partial(try_function, task, of_task), task["limit"])
        os.lseek(results, 0, os.SEEK_END)
        ends = os.lseek(1, 0, os.SEEK_END)
        of_task(ended=how, code=code, printed=[begins, ends])


def main():
    job = json.loads(sys.stdin.buffer.read())
    if not hasattr(os, "fork"):
        return run_job(job)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is below is ended, too
    prctl(36, 1)

    def second():
        prctl(36, 1)
        set_limits()
        run_job(job)

    how, _ = apart(second, job["limit"], most=1 << 20)
    return how != "done"


if __name__ == "__main__":
    sys.exit(main())
