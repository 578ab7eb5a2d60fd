"""flags.py: a program's flags as a table, and the rows that train.py and eval.py share.

A table is {title: [(flag, options of argparse's add_argument, help)]}. A number's range stands in
its row, and --help adds the default to every row that has one. Every mistake is one BadInput.
"""

import argparse
import math
import os
import re
from string import Formatter

import torch

from lib.errors import BadInput

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOY_MODEL = os.path.join(ROOT, "assets", "toy-base")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ------------------------------------------------------------------------------------------------
# Kinds of values
# ------------------------------------------------------------------------------------------------


def number(kind, interval):
    """A type for argparse: an int or a float in an interval, as "[1, inf)".

    [ ] hold their ends, ( ) do not; NaN is in none.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    wanted = f"{'a whole number' if kind is int else 'a number'} in {interval}"

    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise argparse.ArgumentTypeError(f"must be {wanted}: got {text}")
        return value

    return {"type": read}


YES = {"action": "store_true"}
YES_OR_NO = {"action": argparse.BooleanOptionalAction}
COUNT = number(int, "[1, inf)")
POSITIVE = number(float, "(0, inf)")
FROM_0 = number(int, "[0, inf)")
PATIENCE = number(float, "[1, 86400]")  # seconds


def device(text):
    """A type for argparse: the CPU, or a GPU that PyTorch finds here."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *["cuda"][:found], *(f"cuda:{k}" for k in range(found))]
    if text not in known:
        gpus = "" if found else " and no CUDA GPU"
        raise argparse.ArgumentTypeError(f"{text}: PyTorch finds {', '.join(known)}{gpus} here")
    return text


# ------------------------------------------------------------------------------------------------
# Rows that train.py and eval.py share
# ------------------------------------------------------------------------------------------------

PROMPT = (
    "--prompt",
    {"metavar": "FILE", "dest": "template"},
    "ask in your own words: a text file that is all of the user's turn, with <video> where the "
    "video stands, and {question}, {options} or {box} as the task has them, {duration} in seconds",
)
JUDGE = (
    "--judge",
    {},
    "captions: a local language model that decides whether a caption tells of an event (default: "
    "matching content words; noisy:0.2: these, wrong in a fifth of their decisions)",
)
ATTN = (
    "--attn",
    {"default": "sdpa", "choices": ("sdpa", "flash_attention_2")},
    "sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA",
)
STUDENT = ("--student", {"metavar": "DIR"}, "with the functions that you wrote in DIR (course/)")
DEVICES = ("--device", {"default": DEVICE, "type": device}, "cuda, cuda:1 or cpu")

BUDGET_FLAGS = {  # a data.VideoBudget; a flag that is not given stays None
    "how much video the model sees (default: what is saved beside the model, else the paper's)": [
        ("--fps", number(float, "(0, 1000]"), "frames looked at per second"),
        ("--max-frames", number(int, "[4, inf)"), "frames at most"),
        # at least two pairs of frames, a token each: 2 · 28 · 28
        ("--total-pixels", number(int, "[1568, inf)"), "pixels at most, of all pairs of frames"),
        ("--min-frame-pixels", number(int, "[784, inf)"), "pixels of a frame at least"),
        ("--max-frame-pixels", number(int, "[784, inf)"), "pixels of a frame at most"),
    ],
}


# ------------------------------------------------------------------------------------------------
# From a table to the values
# ------------------------------------------------------------------------------------------------


def parser_of(description, table, **options):
    """The argparse parser of a table. It raises BadInput where argparse would exit."""
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(
        description=description, formatter_class=form, allow_abbrev=False, **options
    )
    for title, rows in table.items():
        group = p.add_argument_group(title)
        for flag, how, text in rows:
            default = how.get("default")
            if default is not None and "(default" not in text:
                shown = ("no", "yes")[default] if isinstance(default, bool) else default
                text += f" (default: {shown})"
            group.add_argument(flag, help=text.replace("%", "%%"), **how)
    p.error = refuse
    return p


def refuse(message):
    """argparse's complaint as one sentence that begins with the flag."""
    raise BadInput(re.sub(r"^argument ([^:]+): (must)?", r"\1 \2", message))


# ------------------------------------------------------------------------------------------------
# The user's own wording
# ------------------------------------------------------------------------------------------------

FIELDS = ("question", "duration", "options", "box")


def read_template(path):
    """The text of --prompt FILE. Raises BadInput for a file that cannot be read or asked."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read().rstrip("\n")
        text.format(**dict.fromkeys(FIELDS, ""))
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"--prompt {path} cannot be read as UTF-8: {e}") from e
    except (ValueError, LookupError, AttributeError) as e:  # str.format's
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        why = f"braces hold one of {known}; write {{{{ or }}}} for one that is to be seen ({e})"
        raise BadInput(f"--prompt {path}: {why}") from e
    if text.count("<video>") != 1:
        where = "must be there once, where the video stands; it is there"
        raise BadInput(f"--prompt {path}: <video> {where} {text.count('<video>')} times")
    if "<|" in text:
        raise BadInput(f"--prompt {path}: <|…|> are the model's own marks, and cannot be words")
    return text


def check_template(template, task, prompt):
    """Raises BadInput unless a wording names what the task's prompt names, and nothing else."""
    names = lambda text: {name for _, name, _, _ in Formatter().parse(text)} - {None, "duration"}
    given, wanted = names(template), names(prompt)
    for field in sorted(wanted - given):
        raise BadInput(f"--prompt does not name {{{field}}}, which the task {task} asks about")
    for field in sorted(given - wanted):
        raise BadInput(f"--prompt names {{{field}}}, which the task {task} does not have")
