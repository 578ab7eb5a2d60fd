"""values.py: what a function returned, as JSON, and back as plain values: no pickles, no objects.

A student's process writes values; the grader reads them as numbers, strings, lists, dicts, numpy's
arrays, and Tensors. Whatever else came back arrives as the name of its type. The grader sends its
own results the same way, so that two values of one kind are compared.
"""

import base64
import json
import math
import sys
from dataclasses import dataclass

import numpy as np

MOST_NUMBERS, DEEPEST = 2_000_000, 12
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")


@dataclass
class Tensor:
    """torch's tensor, as far as it is compared. dtype: its name in torch."""

    dtype: str
    array: np.ndarray


@dataclass
class Other:
    """What is none of the values above: its type, in words."""

    kind: str


def to_json(value):
    return json.dumps(encoded(value))


def from_json(text):
    """Raises ValueError for what `to_json` cannot have written."""
    try:
        return decoded(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError, MemoryError) as e:
        raise ValueError(f"no value: {e}") from None


def encoded(x, depth=0):
    torch = sys.modules.get("torch")  # where it was never imported there are no tensors
    if x is None or isinstance(x, (bool, str, float)):
        return x
    if isinstance(x, int):
        return x if -(1 << 63) <= x < 1 << 63 else {"other": f"int of {x.bit_length()} bits"}
    if torch and isinstance(x, torch.Tensor):
        return array_of(x, str(x.dtype).removeprefix("torch."), "tensor")
    if isinstance(x, (np.ndarray, np.generic)):
        return array_of(x, x.dtype.name, "array")
    if isinstance(x, (list, tuple, dict)):
        if depth == DEEPEST or len(x) > MOST_NUMBERS:
            return {"other": f"{type(x).__name__} that is too long, too deep, or holds itself"}
        if isinstance(x, dict):
            return {"dict": [[encoded(k, depth + 1), encoded(v, depth + 1)] for k, v in x.items()]}
        return [encoded(v, depth + 1) for v in x]
    return {"other": type(x).__name__}


def array_of(x, dtype, kind):
    if dtype in ("float16", "bfloat16") and kind == "tensor":
        x = x.float()
    if math.prod(x.shape) > MOST_NUMBERS or dtype not in (*DTYPES, "float16", "bfloat16"):
        return {"other": f"{kind} of {dtype} {tuple(x.shape)}"}
    x = np.asarray(x.detach().cpu().numpy() if kind == "tensor" else x)
    raw = base64.b64encode(x.tobytes()).decode()
    return {kind: dtype, "stored": x.dtype.name, "shape": list(x.shape), "bytes": raw}


def decoded(x):
    if isinstance(x, list):
        return [decoded(v) for v in x]
    if not isinstance(x, dict):
        return x
    if "other" in x:
        return Other(str(x["other"])[:200])
    if "dict" in x:
        return {k if isinstance(k, (str, int, bool)) else str(k): decoded(v) for k, v in x["dict"]}
    if x["stored"] not in (*DTYPES, "float16"):
        raise ValueError("no such dtype")
    array = np.frombuffer(base64.b64decode(x["bytes"]), dtype=x["stored"])
    array = array.reshape([int(n) for n in x["shape"]])
    return Tensor(str(x["tensor"])[:20], array) if "tensor" in x else array
