"""cases.py: what a check tries. A case is made from a seed, by grader and student's process alike.

The student's process calls the student's function with a case's arguments and writes down what came
back; the grader calls the reference with the same arguments and compares (compare.py). So a case
holds no answer. It holds the mistake that usually makes it fail.

Each exercise is a list of cases, the smallest first: the generator NAME_cases(rng), NAME being the
last of its functions. Those that were thought of one by one are in cases.jsonl, in a form that the
generator knows. Inputs are of every kind that a function may meet: large and small, not on a
grid, with other values of whatever is a parameter, and infinite where that has a meaning. What a
student easily overlooks must not be overlooked here.
"""

import importlib
import json
import math
import os
import random
from dataclasses import dataclass, field

MODULES = ("cases_rewards", "cases_grpo", "cases_model", "cases_sampling")


class Unfit(Exception):
    """What a function returned cannot be looked at any further; the text says why."""


def called_alone(function, *args):
    return function(*args)


@dataclass
class Case:
    args: tuple
    usually: str  # the mistake that usually fails this case
    # {(label, numbers): the mistake that gives these numbers here}; label: of the part of the value
    known: dict = field(default_factory=dict)
    name: str = ""  # of the function, where an exercise has two
    call: object = called_alone  # calls the function; what it returns is compared
    # What came back → {property: value}, where more than one answer is right; the grader asks it,
    # of the student's values alone, and `want` says what the properties have to be.
    judge: object = None
    want: object = None
    rounding: float = 1e-12  # by how much a number of 64 bits may be off, beside a millionth of it
    shown: str = ""  # the call as text, where args do not say it


def cases_of(exercise, seed):
    """The cases of an exercise: the same list for the same seed."""
    name = exercise.functions[-1] + "_cases"
    for module in MODULES[: 1 if exercise.plain else None]:
        made = importlib.import_module(f"course.{module}")
        if hasattr(made, name):
            return list(getattr(made, name)(random.Random(f"{seed} {exercise.number}")))
    raise LookupError(name)


def written(kind):
    """[(args, usually, known)] of the lines of cases.jsonl of a kind.

    A line: {"of": kind, "args": [of one case, of the next, …], "usually": their text, "known":
    [[label, what a known mistake gives, that mistake], …]}.
    """
    with open(os.path.join(os.path.dirname(__file__), "cases.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    for line in lines:
        if line["of"] == kind:
            known = {(at, tuple(gives)): text for at, gives, text in line.get("known", [])}
            yield from ((args, line["usually"], known) for args in line["args"])


def tuples(x):
    return tuple(map(tuples, x)) if isinstance(x, list) else x


def need(condition, text):
    if not condition:
        raise Unfit(text)


def a_tensor(x):
    import torch

    need(isinstance(x, torch.Tensor), f"a tensor is asked for, and this is {show(x)}")
    return x


def numbers(rng, *shape, low=-3.0, high=0.0, dtype=None):
    """A tensor of random numbers, float64 unless told otherwise."""
    import torch

    generator = torch.Generator().manual_seed(rng.randrange(1 << 31))
    made = torch.rand(*shape, dtype=torch.float64, generator=generator) * (high - low) + low
    return made.to(dtype or torch.float64)


def t(*values, dtype=None):
    import torch

    return torch.tensor(values, dtype=dtype or torch.float64)


def gradients(value, *inputs):
    """d value / d inputs; 0 where the value does not depend on them."""
    import torch

    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


def show(x):
    """A value, short enough for a terminal."""
    x = getattr(x, "array", x)  # values.Tensor
    if hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, (list, tuple)):
        inside = ", ".join(map(show, x[:60]))
        text = f"[{inside}]" if isinstance(x, list) else f"({inside})"
    elif isinstance(x, float):
        text = f"{x:.6g}" if abs(x - round(x, 4)) < 1e-9 or not math.isfinite(x) else f"{x:.9g}"
    else:
        kind = getattr(x, "kind", None)  # values.Other
        text = f"a value of type {kind}" if kind else getattr(x, "__name__", None) or repr(x)
    return text if len(text) <= 260 else text[:230] + f" … ({len(text) - 230} more characters)"
