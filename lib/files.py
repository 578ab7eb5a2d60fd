"""files.py: folders that belong to one program at a time, and files that are whole or not there.

No program here removes a file that it did not write. A folder of another kind is refused ("kind" in
its settings.json says what it is), and one that is to be begun anew is renamed, not emptied.
"""

import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from itertools import count

from filelock import FileLock, Timeout

from lib.errors import BadInput, read_object, wrong_key

LOCK = "lock"
CALLED = {"run": "a run of train.py", "evaluation": "an evaluation of eval.py"}


def kind_of(folder):
    """What a folder holds: "run", "evaluation", "other", or None. Raises BadInput (read_object)."""
    if not os.path.isdir(folder) or not set(os.listdir(folder)) - {LOCK, "settings.json.partial"}:
        return None
    if not os.path.exists(path := os.path.join(folder, "settings.json")):
        return "other"
    kind = read_object(path).get("kind")
    return kind if kind in CALLED else "other"


def expect_kind(folder, kind):
    """Raises BadInput if a folder holds anything else. Returns whether it holds that kind."""
    actual = kind_of(folder)
    if actual not in (None, kind):
        held = CALLED.get(actual, "other files")
        raise BadInput(f"--out {folder} holds {held}, not {CALLED[kind]}: give another folder")
    return actual == kind


def put_aside(folder):
    """Renames a folder to FOLDER.old-1, or the first number that is free. Returns the new name."""
    folder = os.path.abspath(folder)
    aside = next(path for k in count(1) if not os.path.lexists(path := f"{folder}.old-{k}"))
    os.rename(folder, aside)
    return aside


# Files of a model that a new one replaces under other names: in more parts, or in fewer.
WEIGHTS = r"(model(-\d+-of-\d+)?|adapter_model)\.safetensors|model\.safetensors\.index\.json"


def replace_folder(new, folder):
    """Renames the folder `new` to `folder`. After a kill in between, FOLDER.old is the old one."""
    old = folder + ".old"
    if os.path.isdir(folder):
        remove_replaced(old, folder)
        os.rename(folder, old)
    os.rename(new, folder)
    remove_replaced(old, folder)


def remove_replaced(old, folder):
    """Removes a folder. What `folder` lacks, as a file that a user has put there, moves to it."""
    moving = set(os.listdir(old)) - set(os.listdir(folder)) if os.path.isdir(old) else ()
    for name in moving:
        if not re.fullmatch(WEIGHTS, name):
            os.rename(os.path.join(old, name), os.path.join(folder, name))
    shutil.rmtree(old, ignore_errors=True)


HELD = []  # the locks of this process


def take(folder):
    """Locks a folder until `locks_released` ends, or raises BadInput: another program has it. The
    system frees the lock however its process ends (flock)."""
    lock = FileLock(os.path.join(folder, LOCK))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        why = f"{folder} is in use by another process: wait for it, or give another folder"
        raise BadInput(why) from None
    HELD.append(lock)


@contextmanager
def locks_released():
    """Gives back the locks that were taken within, however the block ends."""
    before = len(HELD)
    try:
        yield
    finally:
        while len(HELD) > before:
            HELD.pop().release()


def replace_file(path, content):
    """Writes str or bytes aside (FILE.partial) and renames that, so that nobody sees half a file.
    Raises OSError, and keeps the old file, if the disk is full."""
    with open(path + ".partial", "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
    os.replace(path + ".partial", path)


def read_lines(path, **types):
    """The records of a .jsonl file; [] where there is no file.

    types: of the keys that each record must have. A damaged line is named and left out. Raises
    BadInput for a folder.
    """
    records = []
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            lines = f.readlines()
    except FileNotFoundError:
        return records
    except IsADirectoryError as e:
        raise BadInput(f"{path} is a folder, where a file should be: move it away") from e
    for number, line in enumerate(lines, 1):
        try:
            wrong = wrong_key(record := json.loads(line), types) if line.strip() else ""
        except (ValueError, RecursionError):
            wrong = "it is no JSON"
        if wrong:
            print(f"{path}, line {number} is damaged ({wrong}) and left out", file=sys.stderr)
        elif wrong is None:
            records.append(record)
    return records


def append_line(path, record):
    """Adds a record to a .jsonl file. Programs begin with remove_lines: a last line that a kill has
    cut short would otherwise spoil the next one."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(record) + "\n")


def remove_lines(path, keep, **types):
    """Rewrites a .jsonl file, if it is there, with the records that `keep` is true of. Atomic."""
    if os.path.isfile(path):
        kept = filter(keep, read_lines(path, **types))
        replace_file(path, "".join(json.dumps(record) + "\n" for record in kept))
