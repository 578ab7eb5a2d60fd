"""apart.py: a student's functions in a process of their own, called from here like any other.

The cases of checks.py call what looks like the student's function. It sends the arguments to the
process (calls.py) and returns what comes back, so that whatever is compared is compared here, out
of reach. Gradients pass, too: autograd asks the process for those of the arguments.
"""

import atexit
import compileall
import json
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cache

import torch

from course import calls
from course.checks import Broken, Unfit, Wrong
from course.exercises import BLANKS, CHAPTERS, ROOT, in_handout, source_of, without_bodies

STARTING = 180  # seconds that a process may take to import torch


@cache
def room_for(exercise):
    """A folder with the chapters, in which the exercise's functions have no bodies.

    It is all of the project that the process of a check sees; it goes when this program ends.
    """
    room = tempfile.mkdtemp(prefix="course-")
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    for chapter in CHAPTERS:
        with open(os.path.join(ROOT, source_of(chapter)), encoding="utf-8") as f:
            source = f.read()
        if chapter == exercise.module and not in_handout():
            said = f"this is exercise {exercise.number} itself: ours does not answer to yours"
            instead = f'raise NotImplementedError("{said}")'
            source = without_bodies(source, exercise.functions, instead)
        path = os.path.join(room, source_of(chapter))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(source)
    away = shutil.ignore_patterns("__pycache__")
    for folder in ("lib", "training"):
        shutil.copytree(os.path.join(ROOT, folder), os.path.join(room, folder), ignore=away)
    if in_handout():  # where the chapters' functions are compiled files, one for each
        own = [f"{exercise.module}.{name}.pyc" for name in exercise.functions]
        kept = shutil.ignore_patterns("__pycache__", "expected.pt", "ex*.py", *own)
        shutil.copytree(BLANKS, os.path.join(room, os.path.basename(BLANKS)), ignore=kept)
    compileall.compile_dir(room, quiet=2)
    return room


class Link(torch.autograd.Function):
    """The results of a call as functions of its arguments: the process knows their gradients."""

    @staticmethod
    def forward(ctx, apart, graph, results, *args):
        ctx.apart, ctx.graph = apart, graph
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        message = {"backward": ctx.graph, "grads": [calls.encode(g) for g in grads]}
        found = calls.decode(ctx.apart.ask(message)["value"])
        return None, None, None, *found


def started(args, method=None):
    """(connection, process) of a process that serves calls; args: of calls.serve, after it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *paths])
    # A server that imports torch once and forks for each check saves seconds per check.
    method = method or ("forkserver" if hasattr(os, "fork") else "spawn")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["course.calls"])
    connection, theirs = context.Pipe()
    process = context.Process(target=calls.serve, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return connection, process


class Apart:
    """A process for one function of a student's file; `function` calls it.

    limit: seconds that the student's code may take, all calls together. `ended` becomes "hung" or
    "died", with `said`. Raises Wrong for what goes wrong in the student's code, Broken for what
    goes wrong in ours. method: of starting it, as multiprocessing calls it.
    """

    def __init__(self, exercise, name, path, limit, method=None):
        self.limit = self.left = limit
        self.ended, self.said, self.at = "", "", "reading the file"
        self.models = []
        self.scratch = tempfile.mkdtemp(prefix="course-")
        inside = os.path.join(self.scratch, exercise.file)
        shutil.copyfile(path, inside)
        # Opened here first, so that it can be read whatever becomes of its name.
        self.output = open(os.path.join(self.scratch, "output.txt"), "w+b")
        self.function = self.function_called(name)
        args = (room_for(exercise), self.scratch, inside, name, CHAPTERS, ROOT)
        self.connection, self.process = started(args, method)

    def close(self):
        self.kill()
        self.connection.close()
        self.output.close()
        self.process.join()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def kill(self):
        """Ends the process and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (AttributeError, OSError):  # no process groups on this system, or it has ended
            self.process.kill()

    @contextmanager
    def watched(self):
        """The student's time runs, and the process is killed when it is over: a message that never
        comes, or of which half has come, or that is not taken off, is not waited for."""
        began, watch = time.monotonic(), threading.Timer(max(0.0, self.left), self.kill)
        watch.start()
        try:
            yield
        finally:
            watch.cancel()
            self.left -= time.monotonic() - began

    def load(self):
        """Waits for the process, and has it read the student's file."""
        self.left = STARTING
        first = self.receive()
        if self.ended:  # no line of the student's has run yet
            raise Broken(f"the process of the check did not start: {self.said.splitlines()[0]}")
        self.judged(first)
        self.left = self.limit
        self.judged(self.receive())

    def printed(self, most=2000):
        """What the student's code printed, its beginning."""
        self.output.seek(0)
        text = self.output.read(most + 1).decode("utf-8", "replace")
        return text if len(text) <= most else text[:most] + " …"

    def receive(self):
        """The next message. What is not of the agreed form is the student's doing."""
        try:
            with self.watched():
                raw = self.connection.recv_bytes(calls.MOST_BYTES)
        except (EOFError, OSError):
            return self.gone()
        try:
            message = json.loads(raw)
            if isinstance(message, dict):
                return message
        except (ValueError, RecursionError):
            pass
        return self.end("died", "your code wrote into the connection of the check")

    def gone(self):
        """The process has ended, or closed its connection, or its time is over."""
        if self.left <= 0:
            usually = "a loop whose end never comes, or Python loops over what tensors do at once"
            return self.end("hung", f"not done after {self.limit:g} seconds", usually)
        self.process.join(5)
        said = f"your code ended the whole process (exit code {self.process.exitcode})"
        return self.end("died", said, "a call of exit, or no memory left")

    def end(self, how, said, usually=""):
        self.ended, self.said = how, f"{said}; it was at: {self.at}"
        if usually:
            self.said += f"\n  usually  {usually}"
        return {}

    def judged(self, message):
        """The message, or Wrong for what the process says of the student's code."""
        if self.ended:
            raise Unfit(self.said)
        if "broken" in message:
            raise Broken(str(message["broken"])[:2000])
        if "raised" in message:
            kind = Unfit if message.get("unfit") is True else Wrong
            raise kind(str(message["raised"])[:2000])
        return message

    def ask(self, message, callbacks=()):
        """Sends a message and returns the response; answers the callbacks that come before it."""
        if self.ended:
            raise Unfit(self.said)
        try:
            while True:
                with self.watched():
                    self.connection.send_bytes(json.dumps(message).encode())
                response = self.judged(self.receive())
                if "callback" not in response:
                    return response
                called = callbacks[response["callback"]]
                message = {"value": calls.encode(called(*map(calls.decode, response["args"])))}
        except OSError:  # it takes no message off
            self.gone()
            raise Unfit(self.said) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as e:
            self.end("died", f"your code upset the connection of the check ({type(e).__name__})")
            raise Unfit(self.said) from None

    def function_called(self, name):
        """What stands for the student's function."""

        def call(*args, **kwargs):
            given, models, generators, callbacks = [], [], [], []

            def special(x):
                if isinstance(x, torch.nn.Module):
                    models.append(x)
                    return {"of": self.hand_over(x)}
                if isinstance(x, torch.Generator):
                    generators.append(x)
                    return {"generator": calls.encode(x.get_state())}
                module = getattr(x, "__module__", "").split(".")[0]
                if callable(x) and (module not in (*CHAPTERS, "lib") or "<" in x.__qualname__):
                    callbacks.append(x)
                    return {"callback": len(callbacks) - 1}
                return calls.special_of(x)

            message = {
                "args": [calls.encode(x, special, given) for x in args],
                "kwargs": {k: calls.encode(x, special, given) for k, x in kwargs.items()},
                "grad": torch.is_grad_enabled(),
            }
            response = self.ask(message, callbacks)
            try:
                return self.returned(response, args, given, models, generators)
            except (LookupError, TypeError, ValueError, RecursionError, RuntimeError) as e:
                raise Unfit(f"  what came back is no value: {e}") from None

        call.__name__ = name
        return call

    def hand_over(self, model):
        """The number under which the process knows a model, which it is sent once."""
        if model not in self.models:
            weights = {name: calls.encode(x) for name, x in model.state_dict().items()}
            self.ask({"model": weights, "config": json.loads(model.config.to_json_string())})
            self.models.append(model)
        return self.models.index(model)

    def returned(self, response, args, given, models, generators):
        """The value of a response; and all that the call did to its arguments is done to ours."""
        for i, x in response["changed"].items():
            take_over(args[int(i)], calls.decode(x))
        for generator, state in zip(generators, response["generators"]):
            generator.set_state(calls.decode(state))
        for shape in response["read"] if models else []:
            # so that what hangs on the embedding here hears what the other model was given
            if math.prod(shape) > 1 << 20:
                raise ValueError("a model that was given more tokens than there are")
            models[0].get_input_embeddings()(torch.zeros(shape, dtype=torch.int64))
        results = []
        calls.decode(response["value"], with_grad=lambda x: results.append(x) or x)
        if not results or not given or not torch.is_grad_enabled():
            return calls.decode(response["value"])
        linked = iter(Link.apply(self, response["graph"], results, *given))
        return calls.decode(response["value"], with_grad=lambda x: next(linked))


def take_over(old, new):
    """Gives an argument the content that it has in the process after the call."""
    if isinstance(old, torch.Tensor):
        old.data = new.data
    elif isinstance(old, list):
        old[:] = new
    elif isinstance(old, dict):
        old.clear()
        old.update(new)
