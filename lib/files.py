"""folders.py: the folders that the programs here write into, and what they may remove there.

No program removes a file that it did not write itself. So each kind of folder says what it is
("kind" in its settings.json; older ones are known by what they hold), a folder of another kind is
refused, and what is replaced is removed name by name (`OWN`), never as a whole. A lock keeps two
programs out of one folder.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

from lib.errors import BadInput, read_object, wrong_key

# ------------------------------------------------------------------------------------------------
# What kind of folder it is, and which files in it are ours
# ------------------------------------------------------------------------------------------------

LOCK = "lock"
MODEL = (r"(config|generation_config|adapter_config|video_budget|merged|tokenizer|tokenizer_config"
         r"|special_tokens_map|added_tokens|vocab|model\.safetensors\.index)\.json|merges\.txt"
         r"|chat_template\.jinja|(model(-\d+-of-\d+)?|adapter_model)\.safetensors")  # fmt: skip
EVALUATION = (r"(earlier-[\d-]+/)?(predictions\.png|((settings|results)\.json"
              r"|predictions(-second-look)?\.jsonl)(\.partial)?)|lock(\.\d+)?")  # fmt: skip

# Regular expressions of all paths inside a folder that its kind may hold.
OWN = {
    "model": MODEL,
    "evaluation": EVALUATION,
    "checkpoint": r"part-\d+\.safetensors|state\.json",
    "run": (r"(settings\.json|(metrics|rollouts|samples|skipped)\.jsonl|report\.html)(\.partial)?"
            r"|curves\.png(\.partial)?|curves\.partial\.png|lock(\.\d+)?"
            r"|tensorboard/events\.out\.tfevents\.[^/]+"
            r"|checkpoints/step-\d+(\.partial)?/(part-\d+\.safetensors|state\.json)"
            rf"|policy(\.partial|\.old)?/({MODEL})|eval-[^/]+/({EVALUATION})"),
}  # fmt: skip
OWN_FOLDERS = {
    "model": "",
    "evaluation": r"earlier-[\d-]+",
    "checkpoint": "",
    "run": (r"tensorboard|checkpoints(/step-\d+(\.partial)?)?|policy(\.partial|\.old)?"
            r"|eval-[^/]+(/earlier-[\d-]+)?"),
}  # fmt: skip
CALLED = {
    "run": "a run of train.py",
    "evaluation": "an evaluation of eval.py",
    "other": "other files",
}


def own_and_foreign(folder, kind):
    """(own, foreign): relative paths in a folder, of files that its kind writes and of all else.

    A link, and a folder that is none of ours, is foreign as a whole and is not looked into.
    """
    own, foreign = [], []
    for at, folders, files in os.walk(folder):
        path = lambda name: os.path.relpath(os.path.join(at, name), folder)  # noqa: B023
        for name in list(folders):
            full = os.path.join(at, name)
            ours = re.fullmatch(OWN_FOLDERS[kind], path(name)) and not os.path.islink(full)
            if ours and kind == "run" and at == folder and name.startswith("eval-"):
                ours = kind_of(full) in (None, "evaluation")
            if not ours:
                folders.remove(name)
                foreign.append(path(name))
        for name in files:
            is_link = os.path.islink(os.path.join(at, name))
            ours = re.fullmatch(OWN[kind], path(name)) and not is_link
            (own if ours else foreign).append(path(name))
    return own, foreign


def kind_of(folder):
    """The kind of a folder: "run", "evaluation" or "other"; None where it is empty or not there.

    A folder from before kinds were written down is known by its settings; one whose settings are
    damaged is known by its other files, if they are all of one kind.
    """
    if not os.path.isdir(folder) or not set(os.listdir(folder)) - {LOCK, "settings.json.partial"}:
        return None
    if not os.path.isfile(path := os.path.join(folder, "settings.json")):
        return "other"
    try:
        settings = read_object(path)
    except BadInput:
        for kind, typical in (("run", "metrics.jsonl"), ("evaluation", "predictions.jsonl")):
            own, foreign = own_and_foreign(folder, kind)
            if typical in own and not foreign:
                return kind
        return "other"
    for kind, keys in (("run", {"method", "data_name"}), ("evaluation", {"bench", "data_name"})):
        if settings.get("kind", kind if keys <= set(settings) else None) == kind:
            return kind
    return "other"


def expect_kind(folder, kind, flag="--out"):
    """Raises BadInput if a folder holds anything else. Returns whether it holds that kind."""
    actual = kind_of(folder)
    if actual not in (None, kind):
        raise BadInput(
            f"{flag} {folder} holds {CALLED[actual]}, not {CALLED[kind]}: give another folder"
        )
    return actual == kind


MERGED = "merged.json"  # what tools/merge.py puts into the model folders that it makes


def expect_merged(folder):
    """Raises BadInput unless a folder is new, empty, or a merged model and nothing else."""
    if os.path.isdir(folder) and os.listdir(folder):
        own, foreign = own_and_foreign(folder, "model")
        if MERGED not in own or foreign:
            held = f"also holds {foreign[0]}" if MERGED in own else "was not made by tools.merge"
            raise BadInput(f"{folder} is not empty and {held}: give a new folder")
    elif os.path.lexists(folder) and not os.path.isdir(folder):
        raise BadInput(f"{folder} is a file: give a new folder")


# ------------------------------------------------------------------------------------------------
# Removing and putting aside
# ------------------------------------------------------------------------------------------------


def check_place(folder, inputs):
    """Raises BadInput for folders that no flag should empty: those that hold what is needed.

    inputs: {what: path} of what the program reads; None, and what is not there, is passed over.
    """
    needed = {"the working directory": os.getcwd(), "your home": os.path.expanduser("~"),
              "this program": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
              "all files": "/"}  # fmt: skip
    folder = os.path.realpath(folder)
    for what, path in (needed | inputs).items():
        if path and os.path.exists(path):
            if os.path.commonpath([folder, os.path.realpath(path)]) == folder:
                raise BadInput(
                    f"--overwrite does not empty {folder}, which is or holds {what} ({path}): "
                    "give another --out"
                )


def clear(folder, inputs):
    """Removes a run's own files by name. Raises BadInput, and removes none, if there are others."""
    check_place(folder, inputs)
    own, foreign = own_and_foreign(folder, "run")
    if foreign:
        named = ", ".join(sorted(foreign)[:3]) + " …" * (len(foreign) > 3)
        raise BadInput(
            f"--overwrite removes only what a run has written, and {folder} also holds {named} "
            f"({len(foreign)} in all): give another --out, or move that away"
        )
    for path in own:
        if os.path.basename(path) == LOCK and os.path.dirname(path):  # of an evaluation in it
            check_free(os.path.join(folder, os.path.dirname(path)))
    remove(folder, [path for path in own if path != LOCK], last="settings.json")


def remove(folder, paths, last=None):
    """Removes files by name, then the folders below that are empty. last: the file removed last."""
    for path in sorted(paths, key=lambda path: path == last):
        os.remove(os.path.join(folder, path))
    for at, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            with suppress(OSError):  # not empty
                os.rmdir(os.path.join(at, name))


def remove_checkpoint(folder):
    """Removes a checkpoint's files, and its folder if that is empty then; never raises OSError."""
    with suppress(OSError):
        remove(folder, own_and_foreign(folder, "checkpoint")[0])
        os.rmdir(folder)


def free_name(path):
    """The path itself, or the path with -2, -3, … where it is taken."""
    k, free = 1, path
    while os.path.lexists(free):
        k += 1
        free = f"{path}-{k}"
    return free


def rescue(run, name, kind="model"):
    """Moves what is not ours out of a folder of a run that will be replaced. Returns where to, or
    None."""
    foreign = own_and_foreign(os.path.join(run, name), kind)[1]
    if not foreign:
        return None
    place = os.path.join(run, f"kept-from-{name}")
    os.makedirs(place, exist_ok=True)
    for path in foreign:
        kept = free_name(os.path.join(place, os.path.basename(path)))
        os.rename(os.path.join(run, name, path), kept)
    return place


def set_aside(folder):
    """Moves an evaluation's files into a dated folder inside it. Returns that folder's name."""
    name = time.strftime("earlier-%Y%m%d-%H%M%S")
    place = free_name(os.path.join(folder, name))
    os.mkdir(place)
    for path in own_and_foreign(folder, "evaluation")[0]:
        if os.sep not in path and not path.startswith(LOCK):
            os.rename(os.path.join(folder, path), os.path.join(place, path))
    return os.path.basename(place)


# ------------------------------------------------------------------------------------------------
# One program in one folder
# ------------------------------------------------------------------------------------------------


def born(pid):
    """When a process was started, in some unit; None if there is none, or only its exit status."""
    try:
        if os.path.isdir("/proc/self"):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
                state, *fields = f.read().rpartition(")")[2].split()
            return None if state == "Z" else fields[18]
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() or None
    except OSError:
        return None


def read_lock(path):
    """Who holds a lock; {} if it cannot be read, None if there is none."""
    for _ in range(3):
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                held = json.load(f)
            if not wrong_key(held, {"pid": int, "host": str, "since": str}):
                return held
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, OSError):
            pass
        time.sleep(0.1)  # its owner may still be writing it
    return {}


def check_free(folder):
    """Raises BadInput if a process that may be alive holds the lock. Returns what read_lock gives
    for a stale one."""
    path = os.path.join(folder, LOCK)
    if os.path.isdir(path):
        raise BadInput(f"{path} is a folder, and the lock of {folder} has that name: move it away")
    held = read_lock(path)
    if not held:
        return held
    if held["host"] != socket.gethostname():  # whether it lives cannot be seen from here
        raise BadInput(
            f"{folder} is in use by process {held['pid']} on {held['host']} since {held['since']}: "
            f"wait for it or give another folder; if that machine is gone, remove {path}"
        )
    if born(held["pid"]) is not None and born(held["pid"]) == held.get("born"):
        raise BadInput(
            f"{folder} is in use by process {held['pid']} since {held['since']}: "
            "wait for it, or give another folder"
        )
    return held


HELD = []  # the locks of this process


def take(folder):
    """Locks a folder for this process, or raises BadInput. Says so if it takes over a lock."""
    path, pid = os.path.join(folder, LOCK), os.getpid()
    me = {
        "pid": pid,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "born": born(pid),
    }
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            break
        except FileExistsError:
            stale = check_free(folder)
        if stale is None:  # released meanwhile
            continue
        # Several may find it stale at once. One claims the dead owner's lock by creating a second
        # file, looks whether it is still that lock, and removes it: whoever removed a lock that it
        # had only read before could remove a new owner's.
        claim = f"{path}.{stale.get('pid', 0)}"
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - os.stat(claim).st_mtime > 10:
                    left = f"{claim} is left of a process that was killed: remove it"
                    raise BadInput(left) from None
            time.sleep(0.05)
            continue
        try:
            if read_lock(path) == stale:
                os.remove(path)
                whose = "nobody knows whom"
                if stale:
                    whose = f"process {stale['pid']}, which is no longer there"
                print(f"{folder}: took over the lock of {whose}", file=sys.stderr)
        finally:
            os.remove(claim)
    with os.fdopen(file, "w", encoding="utf-8") as f:
        json.dump(me, f)
    HELD.append((path, me))


@contextmanager
def locks_released():
    """Gives back the locks that were taken within, however the block ends."""
    before = len(HELD)
    try:
        yield
    finally:
        while len(HELD) > before:
            path, me = HELD.pop()
            if read_lock(path) == me:
                with suppress(OSError):
                    os.remove(path)


# ------------------------------------------------------------------------------------------------
# Files: replaced as a whole, or one JSON object per line
# ------------------------------------------------------------------------------------------------


def replace_file(path, content):
    """Writes a file aside (FILE.partial) and renames it, so that nobody ever sees half of it.

    content: str, written as UTF-8, or bytes. Raises OSError, and keeps the old file, if the disk is
    full.
    """
    with open(path + ".partial", "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
    try:
        os.replace(path + ".partial", path)
    except OSError:  # a folder stands in its place
        os.remove(path + ".partial")
        raise


def read_lines(path, **types):
    """The records of a .jsonl file; [] where there is no file.

    types: of the keys that each record must have. A damaged line is named and left out; a last line
    that is still being written is left out without a word.
    """
    records = []
    if not os.path.exists(path):
        return records
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            lines = f.readlines()
    except OSError as e:
        raise BadInput(f"{path} cannot be read ({e.strerror})") from e
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n") and number == len(lines):
            line = line if line.rstrip().endswith("}") else ""
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
    """Adds one record to a .jsonl file. After a line that was cut short (a kill, a full disk) it
    begins a new one."""
    line = json.dumps(record) + "\n"
    with open(path, "ab+") as f:
        size = f.seek(0, os.SEEK_END)
        if size:
            f.seek(size - 1)
            line = line if f.read(1) == b"\n" else "\n" + line
        f.write(line.encode())


def remove_lines(path, keep):
    """Rewrites a .jsonl file with the records that `keep` is true of. Atomic."""
    kept = [record for record in read_lines(path) if keep(record)]
    replace_file(path, "".join(json.dumps(record) + "\n" for record in kept))
