"""compare.py: is it what the reference gives, and what is a student told if not?

Both sides are values that came through values.py: no object of a student's is ever looked at here.
"""

import math

import numpy as np

from course.cases import Unfit, show
from course.values import Other, Tensor


class Wrong(Exception):
    """str() is what the student reads."""


def as_text(case, name):
    """The call as the student reads it; name: of the function."""
    return case.shown or f"{name}({', '.join(map(show, case.args))})"


def judge(case, name, got, want):
    """Raises Wrong if what a function gave is not what it should give.

    got: {"raised": text, "ours": bool} or {"got": value, "changed": [numbers of arguments]};
    want: the value.
    """
    called = f"  called   {as_text(case, name)}\n"
    if "raised" in got:
        usually = f"\n  usually  {case.usually}" if got.get("usual") else ""
        raise Wrong(f"{called}  {got['raised']}{usually}")
    value = got.get("got")
    if case.judge:
        try:
            value = case.judge(case.args, value)
        except Unfit as e:
            raise Wrong(f"{called}  {e}") from None
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as e:
            raise Wrong(f"{called}  what came back cannot be looked at: {e}") from None
    if different := difference(value, want, case.rounding):
        label, value, want, note = different
        usually = known_mistake(case, label, value) or case.usually
        label = label and f"{label}: "
        raise Wrong(
            f"{called}  expected {label}{show(want)}\n  got      {label}{show(value)}\n"
            + (f"  that is  {note}\n" if note else "")
            + f"  usually  {usually}"
        )
    changed = got.get("changed")
    if isinstance(changed, list) and changed:
        which = ", ".join(str(k + 1) for k in changed if isinstance(k, int))
        raise Wrong(
            f"{called}  your function changed its argument in place, number {which}\n  usually  an"
            " operation in place (+=, x[…] = …, .sort(), a method whose name ends in _): the caller"
            " still needs its values"
        )


def known_mistake(case, label, got):
    """The known mistake that gives these numbers, or None."""
    own = flat(got)
    for (where, values), text in case.known.items():
        if where in ("", label) and len(own) == len(values):
            if all(close(x, y, 1e-6, 1e-6) for x, y in zip(own, values)):
                return text
    return None


def difference(got, want, rounding):
    """None, or (what differs, that part of got and of want, a note or None)."""
    if isinstance(want, dict):
        got = got if isinstance(got, dict) else {}
        for key in want:
            if different := difference(got.get(key), want[key], rounding):
                return key, *different[1:]
        return None
    if got is None and want is not None:
        return "", got, want, "no value at all: a return is missing"
    if isinstance(want, Tensor):
        note = wrong_tensor(got, want) or first_difference(got, want, rounding)
        return ("", got, want, note) if note else None
    if isinstance(want, list):
        same = isinstance(got, list) and len(got) == len(want)
        same = same and not any(difference(g, w, rounding) for g, w in zip(got, want))
        return None if same else ("", got, want, None)
    tolerance = tolerance_of(rounding, getattr(got, "dtype", None))
    value = as_python(got)
    note = wrong_kind(value, want)
    same = not note and close(value, want, *tolerance)
    return None if same else ("", value, want, note)


def tolerance_of(rounding, *dtypes):
    """How far numbers may be apart: (relative, absolute). rounding: the case's.

    float32 has seven digits, and fewer are left where two numbers have been subtracted.
    """
    single = {"float32", "float16", "bfloat16"} & set(map(str, dtypes))
    return (1e-4, 2e-5) if single else (1e-6, rounding)


def as_python(x):
    """A number of numpy's or torch's as Python's own; anything else as it is."""
    array = getattr(x, "array", x)
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else x


def kind_of(x):
    return x.kind if isinstance(x, Other) else type(x).__name__


def wrong_kind(got, want):
    """What is wrong with the type of a single value; None if it is of the kind of `want`."""
    given = f"a value of type {kind_of(got)}"
    if isinstance(want, bool) and not isinstance(got, bool):
        return f"{given}, and True or False is asked for: bool(…) makes it one"
    if isinstance(want, (int, float)) and not isinstance(got, (int, float)):
        return f"{given}, and a number is asked for"
    return None


def wrong_tensor(got, want):
    """What is wrong with the type, shape or dtype of `got`; None if it is a tensor like `want`."""
    if not isinstance(got, Tensor):
        return f"a value of type {kind_of(got)}, and a tensor is asked for"
    if got.array.shape != want.array.shape:
        why = "a dimension was summed up or lost (dim=, keepdim=), or two were broadcast"
        return f"the shape {got.array.shape}, and {want.array.shape} is asked for: {why}"
    if got.dtype != want.dtype and {got.dtype, want.dtype} != {"float32", "float64"}:
        return f"the dtype torch.{got.dtype}, and torch.{want.dtype} is asked for"
    return None


def first_difference(got, want, rounding):
    """Where two tensors of one shape differ first, in words; None if they do not."""
    x, y = got.array.astype(np.float64), want.array.astype(np.float64)
    relative, absolute = tolerance_of(rounding, got.dtype, want.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(x - y) <= relative * np.abs(y) + absolute
    same = (x == y) | (np.isnan(x) & np.isnan(y)) | (near & np.isfinite(x) & np.isfinite(y))
    if same.all():
        return None
    place = tuple(int(i) for i in np.argwhere(~same)[0])
    if not place:
        return "another number"
    return f"other numbers, the first at {list(place)}: {show(x[place])} for {show(y[place])}"


def flat(x):
    array = getattr(x, "array", x)  # of a Tensor, or numpy's own
    if isinstance(array, np.ndarray):
        return array.astype(np.float64).flatten().tolist() if array.size < 1000 else []
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def close(x, y, relative, absolute):
    """Whether x is y but for rounding; an infinity is only itself, and NaN is NaN."""
    numbers = all(isinstance(v, (int, float)) for v in (x, y))
    if not numbers or isinstance(x, bool) != isinstance(y, bool) or isinstance(y, bool):
        return x == y
    if not (math.isfinite(x) and math.isfinite(y)):
        return x == y or (math.isnan(x) and math.isnan(y))
    return abs(x - y) <= relative * abs(y) + absolute
