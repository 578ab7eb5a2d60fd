"""errors.py: mistakes of the user, told in one sentence; and how every program here ends.

A mistake is `BadInput`. Whatever else is not the program's fault (no memory, no room on the disk,
another process that died) is handled here as well, once for all programs: `run_program`. Only our
own faults end with a traceback.

It imports nothing of the project, so that every file can import it.
"""

import json
import os
import sys


class BadInput(Exception):
    """A mistake in what the user gave us, told in one sentence: what is wrong, where, what to do.

    The programs here print it without a traceback and exit with status 2. An attribute `process`
    names the one process (rank) that knows about it; without it all do, and process 0 says it.
    """


# ------------------------------------------------------------------------------------------------
# Files that may be damaged
# ------------------------------------------------------------------------------------------------

NUMBER = (int, float)


def read_object(path, **types):
    """The object in a .json file. Raises BadInput if there is none, or it is not of the form asked.

    types: of the keys that must be there, e.g. seed=int.
    """
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except OSError as e:
        raise BadInput(f"{path} cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is damaged: it is no JSON ({first_line(e)})") from e
    if wrong := wrong_key(value, types):
        raise BadInput(f"{path} is damaged: {wrong}")
    return value


def wrong_key(record, types):
    """What is wrong with a JSON object that should have these keys; None if nothing is."""
    if not isinstance(record, dict):
        return f"it holds a {type(record).__name__}, not an object"
    for key, kind in types.items():
        if not isinstance(record.get(key), kind):
            return f"its {key!r} is {str(record.get(key))[:50]}"
    return None


# ------------------------------------------------------------------------------------------------
# How a program ends
# ------------------------------------------------------------------------------------------------

# PyTorch raises a RuntimeError of its own for a GPU, and a plain one for the CPU.
NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "Cannot allocate memory", "ALLOC_FAILED")
LOST = ("Connection", "gloo", "closed by peer", "Broken pipe")


def says(error, words):
    """Whether an exception is PyTorch's and holds one of some words."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(error):
    """Whether an exception says that memory was not enough, on a GPU or on the CPU."""
    return isinstance(error, MemoryError) or says(error, NO_MEMORY)


def lost_process(error):
    """Whether an exception says that another process of the run has gone."""
    shared = "WORLD_SIZE" in os.environ and says(error, LOST)
    return shared or type(error).__name__ == "DistBackendError"


def first_line(error, most=200):
    """An exception in one line, with its type where it says nothing itself."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def reason(error, memory, interrupted):
    """(exit status, sentence) of an error that is not the program's fault; None of any other."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, BadInput):  # where all processes know of the mistake, one of them says it
        speaks = rank == str(getattr(error, "process", 0))
        return 2, f"error: {error}" if speaks else None
    if isinstance(error, KeyboardInterrupt):
        return 128 + 2, f"interrupted; {interrupted}".removesuffix("; ")
    if out_of_memory(error):
        return 1, f"error: process {rank} ran out of memory: {memory}".removesuffix(": ")
    if lost_process(error):
        lost = "lost another process, which was killed or crashed (its own output says why)"
        return 1, f"error: process {rank} {lost}: {first_line(error)}"
    # Full or read-only disks, quotas, permissions, a reader of the output that has gone (`| head`).
    if isinstance(error, OSError) and error.errno:
        where = f": {error.filename}" if error.filename else ""
        return 1, f"error: the system refused ({error.strerror}){where}"
    return None


def run_program(program, memory="", interrupted=""):
    """Runs `program()` and returns what it returns, or exits with one sentence.

    memory: what to do when memory is not enough; interrupted: what to know after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a letter that the terminal cannot show
    try:
        return program()
    except (Exception, KeyboardInterrupt) as e:
        ending = reason(e, memory, interrupted)
        if ending is None:
            raise
        status, sentence = ending
        if sentence:
            print(sentence, file=sys.stderr)
        sys.exit(status)
