"""calls.py: the side of a check that runs a student's code, in a process of its own.

It computes and judges nothing. apart.py sends a call, gets what the function returned, and knows
what it should be; so there is nothing here that a student's code could look up or overwrite:

    → {"args": […], "kwargs": {…}}                     call the function
    ← {"value": …, "changed": {"0": …}, "graph": 3}    changed: arguments that are different now
    ← {"raised": "ex06_kl_k3.py line 9: …", "unfit": false}
    → {"backward": 3, "grads": […]}                    the gradients of call 3's arguments
    ← {"callback": 0, "args": […]}                     an argument that is a function was called

All of it is JSON. Numbers and tensors are exact; of any other object a student's function returns,
its type's name and a short text arrive. Nothing that arrives is unpickled, imported or run.

This file imports nothing of the project: its process finds the chapters in a folder in which the
exercise's functions have no bodies (apart.room_for), and may read no other.
"""

import base64
import dataclasses
import importlib
import importlib.util
import io
import json
import linecache
import os
import sys
import traceback
import warnings
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

MOST_BYTES = 64 << 20  # of one message
MOST_OUTPUT = 1 << 20  # bytes that a student's code may print, or write into one file
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64",
          "float16", "bfloat16", "float32", "float64")  # fmt: skip

# ------------------------------------------------------------------------------------------------
# Values on their way
# ------------------------------------------------------------------------------------------------


class Other:
    """What stands for an object that is neither number, text, tensor nor a list of them. Its type
    has the name of the object's type, its text is the object's."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


def encode(x, special=None, grads=None):
    """A value as something that JSON holds exactly.

    special: is asked about objects that are not plain, and gives a dict, or None for an `Other`.
    grads: a list to which tensors with a gradient are appended, in the order in which `decode`
    meets them.
    """
    if x is None or type(x) is bool:
        return x
    if isinstance(x, torch.Tensor) and str(x.dtype)[6:] in DTYPES and x.layout == torch.strided:
        if x.requires_grad and grads is not None:
            grads.append(x)
        flat = x.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        raw = base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode("ascii")
        return {"tensor": str(x.dtype)[6:], "shape": list(x.shape), "grad": x.requires_grad,
                "bytes": raw}  # fmt: skip
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "biuf":
        raw = base64.b64encode(np.ascontiguousarray(x).tobytes()).decode("ascii")
        shape = list(x.shape) if isinstance(x, np.ndarray) else None
        return {"numpy": x.dtype.str, "shape": shape, "bytes": raw}
    for kind in (int, float, str):
        if isinstance(x, kind):
            return kind(x)
    inner = [special, grads]
    if isinstance(x, list):
        return [encode(v, *inner) for v in x]
    if isinstance(x, (tuple, set, frozenset)):
        return {"tuple" if isinstance(x, tuple) else "set": [encode(v, *inner) for v in x]}
    if isinstance(x, dict):
        return {"dict": [[encode(k, *inner), encode(v, *inner)] for k, v in x.items()]}
    if isinstance(x, SimpleNamespace):
        return {"namespace": [[k, encode(v, *inner)] for k, v in vars(x).items()]}
    known = special(x) if special else None
    return known or {"other": type(x).__name__, "text": repr(x)[:200]}


def decode(x, special=None, with_grad=torch.Tensor.requires_grad_):
    """The value that `encode` was given. Raises ValueError for what it cannot have made.

    special: is asked about dicts that are not of a plain value; with_grad: what becomes of a
    tensor that carries a gradient.
    """
    inner = [special, with_grad]
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, list):
        return [decode(v, *inner) for v in x]
    try:
        if "tensor" in x:
            value = decode_tensor(x)
            return with_grad(value) if x["grad"] is True else value
        if "numpy" in x:
            return decode_array(x)
        if "tuple" in x or "set" in x:
            values = [decode(v, *inner) for v in x.get("tuple", x.get("set"))]
            return tuple(values) if "tuple" in x else set(values)
        if "dict" in x:
            return {decode(k, *inner): decode(v, *inner) for k, v in x["dict"]}
        if "namespace" in x:
            return SimpleNamespace(**{k: decode(v, *inner) for k, v in x["namespace"]})
        if "other" in x:
            return type(str(x["other"])[:80], (Other,), {})(str(x["text"])[:200])
        return special(x)
    except (KeyError, TypeError, AttributeError, RuntimeError) as e:
        raise ValueError(f"not a value: {e}") from None


def decode_tensor(x):
    if x["tensor"] not in DTYPES:
        raise ValueError("no such dtype")
    raw, dtype = bytearray(base64.b64decode(x["bytes"])), getattr(torch, x["tensor"])
    made = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return made.reshape([int(n) for n in x["shape"]])


def decode_array(x):
    dtype = np.dtype(x["numpy"])
    if dtype.kind not in "biuf":
        raise ValueError("no such dtype")
    made = np.frombuffer(base64.b64decode(x["bytes"]), dtype=dtype)
    return made[0] if x["shape"] is None else made.reshape([int(n) for n in x["shape"]]).copy()


# ------------------------------------------------------------------------------------------------
# Calls
# ------------------------------------------------------------------------------------------------


class Calls:
    """A student's function, and what it needs between one message and the next."""

    def __init__(self, connection, function, path):
        self.connection, self.function, self.path = connection, function, path
        self.graphs, self.models = [], []  # (arguments, results) that carry gradients; models
        self.read, self.generators = [], []  # of one call: what the models read; its generators

    def answer(self, message):
        """What is sent back. Raises Raised for what goes wrong in the student's code."""
        if "model" in message:
            return self.make_model(message)
        if "backward" in message:
            return guard(lambda: self.backward(message["backward"], message["grads"]), self.path)
        self.read, self.generators, leaves = [], [], []

        def leaf(tensor):
            leaves.append(tensor.requires_grad_())
            return tensor

        args = [decode(x, self.object_of, leaf) for x in message["args"]]
        kwargs = {k: decode(x, self.object_of, leaf) for k, x in message["kwargs"].items()}
        before, results = [encode(x) for x in args], []
        with torch.set_grad_enabled(message["grad"]):
            value = guard(lambda: encode(self.function(*args, **kwargs), grads=results), self.path)
        self.graphs.append((leaves, results))
        after = [encode(x) for x in args]
        changed = {str(i): after[i] for i in range(len(args)) if after[i] != before[i]}
        states = [encode(g.get_state()) for g in self.generators]
        return {"value": value, "changed": changed, "graph": len(self.graphs) - 1,
                "read": self.read, "generators": states}  # fmt: skip

    def backward(self, graph, grads):
        leaves, results = self.graphs[graph]
        found = torch.autograd.grad(results, leaves, [decode(g) for g in grads],
                                    allow_unused=True, retain_graph=True)  # fmt: skip
        return {"value": [encode(g) for g in found]}

    def make_model(self, message):
        """A model of the config and the weights that are sent; it notes how much it is given."""
        from model import prepare

        config = Qwen2_5_VLConfig.from_dict(message["config"])
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.load_state_dict({name: decode(x) for name, x in message["model"].items()})
        model = prepare(model).eval()
        model.get_input_embeddings().register_forward_hook(
            lambda module, args, out: self.read.append(list(args[0].shape))
        )
        self.models.append(model)
        return {"value": None}

    def object_of(self, x):
        """The argument that a dict stands for, where it is no plain value."""
        if "of" in x:
            return self.models[x["of"]]
        if "generator" in x:
            generator = torch.Generator()
            generator.set_state(decode(x["generator"]))
            self.generators.append(generator)
            return generator
        if "callback" in x:
            return lambda *args: self.call_back(x["callback"], args)
        value = getattr(importlib.import_module(x["module"]), x["name"])
        if "fields" not in x:  # a function of the project
            return value
        return value(**{k: decode(v, self.object_of) for k, v in x["fields"]})

    def call_back(self, number, args):
        message = {"callback": number, "args": [encode(x) for x in args]}
        self.connection.send_bytes(json.dumps(message).encode())
        return decode(json.loads(self.connection.recv_bytes())["value"])


def special_of(x):
    """An argument that a class or a function of the project makes, as a dict; else None."""
    module = getattr(x if callable(x) else type(x), "__module__", None)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        values = [[f.name, encode(getattr(x, f.name))] for f in dataclasses.fields(x)]
        return {"module": module, "name": type(x).__name__, "fields": values}
    return {"module": module, "name": x.__name__}


# ------------------------------------------------------------------------------------------------
# A student's exceptions and files
# ------------------------------------------------------------------------------------------------


class Raised(Exception):
    """What went wrong in a student's code, told by the line of the file."""

    def __init__(self, text, unfit=False):
        super().__init__(text)
        self.unfit = unfit  # the text says all: there is no usual mistake


def guard(work, path):
    """work(); whatever goes wrong in it is told by the line of the student's file, `path`."""
    path = os.path.abspath(path)
    name = os.path.basename(path)
    try:
        return work()
    except SyntaxError as e:
        saved = "the file is not saved as UTF-8: " * ("utf-8" in str(e.msg))
        said = f"  {name} line {e.lineno}: {saved}{e.msg}: {(e.text or '').strip()}"
        raise Raised(said) from None
    except NotImplementedError as e:
        raise Raised(f"  {e}", unfit=True) from None
    except BaseException as e:  # SystemExit too
        frames = traceback.extract_tb(e.__traceback__)
        lines = [f.lineno for f in frames if os.path.abspath(f.filename) == path]
        where = ""
        if lines:
            code = linecache.getline(path, lines[-1]).strip()
            where = f"{name} line {lines[-1]}: {code}\n  raised   "
        said = " ".join(str(e).split())[:300]
        raise Raised(f"  {where}{type(e).__name__}: {said}".rstrip(": ")) from None


def load_file(path, name):
    """Runs a student's file and returns its function. Raises Raised for what goes wrong in it."""
    title = os.path.basename(path)[:-3]
    spec = importlib.util.spec_from_file_location(f"student_{title}", os.path.abspath(path))
    module = importlib.util.module_from_spec(spec)
    guard(lambda: spec.loader.exec_module(module), path)
    function = getattr(module, name, None)
    if not callable(function):
        file = os.path.basename(path)
        said = f"  {file} defines no function {name}: keep the names that `start` wrote"
        raise Raised(said, unfit=True)
    return function


# ------------------------------------------------------------------------------------------------
# The process
# ------------------------------------------------------------------------------------------------


class Printed(io.TextIOBase):
    """Standard output and error: a file of MOST_OUTPUT bytes. What comes after that is dropped."""

    encoding, left = "utf-8", MOST_OUTPUT

    def write(self, text):
        data = text.encode("utf-8", "replace")[: self.left]
        self.left -= len(data)
        os.write(1, data)
        return len(text)

    def fileno(self):
        return 1


def serve(connection, room, scratch, path, name, chapters, root):
    """What the process does: answers calls until it is killed.

    room: the folder of chapters; scratch: the only folder it may write into, which holds the
    student's file, `path`; root: the repository, which it may not read.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # so that whatever the student's code starts can be ended with it
        # Descriptors that multiprocessing shares among its processes: writing into them would harm
        # the checks of others.
        os.closerange(3, connection.fileno())
        os.closerange(connection.fileno() + 1, 1 << 16)
    output = os.open(os.path.join(scratch, "output.txt"), os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)  # also what C++ prints
    sys.stdout = sys.stderr = Printed()
    os.chdir(scratch)
    os.environ.pop("PYTHONPATH", None)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    try:
        forget(room, root)
        for chapter in chapters:
            importlib.import_module(chapter)
        limits()
        fence(scratch, room)
    except Exception as e:
        connection.send_bytes(json.dumps({"broken": f"{type(e).__name__}: {e}"}).encode())
        return
    # Time counts from here on: loading torch is not the student's fault.
    connection.send_bytes(b'{"ready": true}')
    try:
        calls = Calls(connection, load_file(path, name), path)
        response = {"loaded": True}
        while True:
            connection.send_bytes(json.dumps(response).encode())
            message = json.loads(connection.recv_bytes())
            try:
                response = calls.answer(message)
            except Raised as e:
                response = {"raised": str(e), "unfit": e.unfit}
            except Exception as e:
                response = {"broken": f"{type(e).__name__}: {e}"}
    except Raised as e:
        connection.send_bytes(json.dumps({"raised": str(e), "unfit": e.unfit}).encode())
    except EOFError:  # the parent has gone
        pass


def forget(room, root):
    """Takes the repository out of this process: its path, and what was imported from it."""

    def ours(path):
        path = os.path.abspath(path or ".")
        return path.startswith(root) and not path.startswith(sys.prefix)

    sys.path[:] = [room] + [p for p in sys.path if not ours(p)]
    sys.path_importer_cache.clear()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and ours(file):
            del sys.modules[name]
    sys.modules.pop("__mp_main__", None)
    sys.argv[:] = [""]


def limits():
    """Small files; where the system can limit it, 4 GB of memory."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_OUTPUT, MOST_OUTPUT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))


# Events of sys.audit: no other programs, no network, nobody else's processes, no other library.
FORBIDDEN = ("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile",
             "os.kill", "subprocess.", "pty.", "socket.", "ctypes.", "signal.pthread_kill",
             "resource.setrlimit", "resource.prlimit", "gc.get_")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
           "os.truncate", "os.chmod", "os.chown", "os.utime")  # fmt: skip
LISTS = ("os.listdir", "os.scandir", "os.chdir")


def fence(scratch, room):
    """From here on Python refuses what no exercise needs: other programs, other people's files.

    It stops cheats and accidents. A jail it is not: C++ below Python is not asked.
    """
    own = [scratch, os.devnull]
    python = {sys.prefix, sys.base_prefix, *sys.path, *(os.path.dirname(m.__file__) for m in
              (os, np, torch))}  # fmt: skip
    writable = [os.path.realpath(p) for p in own]
    readable = writable + [os.path.realpath(p) for p in (*python, room, "/dev/urandom")]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def need(path, folders, says):
        if isinstance(path, int) or path is None:
            return  # a descriptor: it was allowed when it was opened
        path = os.path.realpath(os.fsdecode(path))
        if not any(path == f or path.startswith(f.rstrip(os.sep) + os.sep) for f in folders):
            raise PermissionError(f"{says} while an exercise is checked: {path}")

    def hook(event, args):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed while an exercise is checked")
        if event == "open":
            need(
                args[0],
                writable if (args[2] or 0) & writing else readable,
                "no other file is opened",
            )
        elif event in LISTS:
            need(args[0], readable, "no other folder is read")
        elif event.startswith(CHANGES):
            two = event.startswith(("os.rename", "os.link", "os.symlink"))
            for path in args[: 1 + two]:
                need(path, writable, "no other file is changed")

    sys.addaudithook(hook)
