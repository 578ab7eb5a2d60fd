"""submissions.py: what was handed in → one file per exercise and student, and what to look at.

A class hands in folders within folders, zips, "ex05_group_advantages (1).py" and solution.py. A
file belongs to an exercise if its name says so, or else if it defines the exercise's functions.
Whatever belongs to none is listed, and a student of whom nothing was found has no score.
"""

import ast
import lzma
import os
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from time import mktime

from course.exercises import CHAPTERS, EXERCISES, functions_of, is_blank, source_of
from lib.errors import BadInput

MOST_BYTES, MOST_FILES = 1 << 20, 2000  # of one file; of one zip
SOURCE = (".py", ".py.txt")  # the second is what some editors make of it
SKIPPED = {"__pycache__", "__MACOSX", "site-packages", "node_modules"}  # and what starts with a dot


@dataclass
class Submission:
    student: str
    files: dict = field(default_factory=dict)  # {number of the exercise: (place, text as bytes)}
    notes: list = field(default_factory=list)  # what was decided where there was a choice
    unmatched: list = field(default_factory=list)  # files of no exercise
    flags: list = field(default_factory=list)  # what a person should look at


def readable(name):
    """A file's name as text that can be written, where it is no UTF-8 (some zips, unpacked)."""
    return os.fsencode(name).decode("utf-8", "replace")


def walk(folder, place=""):
    """(place, time, bytes) of every file below a folder, those in zips too."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        where = os.path.join(place, readable(entry.name))
        if entry.name.startswith(".") or entry.name in SKIPPED:
            continue
        if entry.is_symlink():
            yield where + " (a link, not followed)", 0, b""
        elif entry.is_dir():
            yield from walk(entry.path, where)
        else:
            yield from read(entry.path, where)


def read(path, place):
    """(place, time, bytes) of one file, or of those in it if it is a zip."""
    if place.lower().endswith(".zip"):
        yield from unpack(path, place)
    elif os.path.getsize(path) > MOST_BYTES or not place.lower().endswith(SOURCE):
        yield place, 0, b""
    else:
        with open(path, "rb") as f:
            yield place, os.path.getmtime(path), f.read()


def unpack(source, place, depth=0):
    """(place, time, bytes) of the files in a zip, and of a zip in it. Nothing is written."""
    try:
        with zipfile.ZipFile(source) as z:
            for info in z.infolist()[:MOST_FILES]:
                parts = info.filename.replace("\\", "/").split("/")
                hidden = any(p in SKIPPED or p.startswith(".") and p != ".." for p in parts)
                if info.is_dir() or hidden:
                    continue
                name, where = parts[-1].lower(), f"{place}/{'/'.join(parts)}"
                wanted = name.endswith(SOURCE) or name.endswith(".zip") and depth < 2
                if not wanted or info.file_size > MOST_BYTES * (20 if name.endswith(".zip") else 1):
                    yield where, 0, b""
                elif name.endswith(".zip"):
                    yield from unpack(BytesIO(z.read(info)), where, depth + 1)
                else:
                    yield where, mktime((*info.date_time, 0, 0, -1)), z.read(info)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError,
            OSError, ValueError, EOFError):  # fmt: skip
        yield place + " (a zip that cannot be read)", 0, b""


def named(place):
    """The exercise that a file's name belongs to, however the name was changed on the way: `Ex05
    group-advantages (1).py`, `lee_123_ex05_group_advantages-2.py`; None if there is none."""
    name = re.sub(r"[^a-z0-9]+", "_", os.path.basename(place.replace("\\", "/")).lower())
    for exercise in EXERCISES:
        if exercise.file[:-3] in name:
            return exercise
    number = re.match(r"(?:ex|exercise)_?0*(\d+)(?:_|$)", name)
    return next((e for e in EXERCISES if number and e.number == int(number[1])), None)


def defines(text):
    """({names of functions that are written}, {names of those that are left blank}) of a file."""
    try:
        functions = functions_of(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    blank = {name for name, node in functions.items() if is_blank(node)}
    return set(functions) - blank, blank


def sort_files(student, files):
    """A Submission from (place, time, bytes) of all that a student handed in."""
    made, candidates, left = Submission(student), {}, []
    for place, time, text in files:
        exercise = named(place) if text else None
        if exercise:
            finished = set(exercise.functions) <= defines(text)[0]
            rank = finished, time, place
            candidates.setdefault(exercise.number, []).append((rank, place, text))
        else:
            left.append((place, text))
    for number, several in sorted(candidates.items()):
        several.sort(key=lambda c: c[0])
        _, place, text = several[-1]
        made.files[number] = place, text
        others = [c for c in several[:-1] if c[2] != text]
        if others:
            names = ", ".join(place for _, place, _ in others)
            made.notes.append(f"exercise {number}: took {place}, the latest; left {names}")
    match_by_content(made, left)
    made.unmatched = [place for place, _ in left]
    return made


def match_by_content(made, left):
    """Gives exercises without a file those that define their functions; takes them from `left`."""
    chapters = {os.path.basename(source_of(chapter)) for chapter in CHAPTERS}
    used = set()
    for exercise in EXERCISES:
        for place, text in left if exercise.number not in made.files else []:
            if os.path.basename(place) in chapters or not text:
                continue
            if set(exercise.functions) <= defines(text)[0]:
                made.files[exercise.number] = place, text
                made.notes.append(f"exercise {exercise.number}: found by its functions in {place}")
                used.add(place)
                break
    left[:] = [(place, text) for place, text in left if place not in used]


def find(folder):
    """The submissions in a folder: one of each sub-folder and each zip. Raises BadInput if there is
    nothing in it that could be graded."""
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is no folder: it should hold one folder or zip for each student")
    files, loose = {}, []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or entry.name in SKIPPED:
            continue
        name = readable(entry.name)
        if entry.is_dir():
            files.setdefault(name, []).extend(walk(entry.path))
        elif name.lower().endswith(".zip"):
            files.setdefault(name[:-4], []).extend(unpack(entry.path, name))
        else:
            loose.append(name)
    found = [one(student, several) for student, several in files.items()]
    if not any(submission.files for submission in found):
        seen = ", ".join([*files, *loose][:8]) or "nothing"
        raise BadInput(f"nothing to grade in {folder}: it should hold a folder or a zip for each "
                       f"student, with {EXERCISES[0].file} and so on; it holds {seen}")  # fmt: skip
    return found, loose


def one(student, files):
    """A student's Submission, with its flags."""
    made = sort_files(student, files)
    for number, (_, text) in sorted(made.files.items()):
        for flag in suspicious(text, EXERCISES[number - 1]):
            made.flags.append(f"exercise {number}, {flag}")
    return made


def write(submission, folder):
    """Writes the files under the names that the exercises give them."""
    os.makedirs(folder)
    for number, (_, text) in submission.files.items():
        with open(os.path.join(folder, EXERCISES[number - 1].file), "wb") as f:
            f.write(text)


# ------------------------------------------------------------------------------------------------
# What a person should look at
# ------------------------------------------------------------------------------------------------

# No exercise needs them. That a file names one proves nothing, and costs no points.
MODULES = set("course tests tools handout checks gc inspect ctypes subprocess socket importlib "
              "multiprocessing pickle marshal signal resource builtins sys os posix shutil pathlib "
              "atexit threading traceback io tempfile glob linecache runpy pkgutil zipimport mmap "
              "code faulthandler asyncio concurrent".split())  # fmt: skip
NAMES = set("eval exec compile open globals vars getattr setattr __import__ __builtins__ "
            "__loader__ __spec__".split())  # fmt: skip
ATTRIBUTES = set("_getframe f_back f_globals f_locals f_code tb_frame gi_frame __globals__ "
                 "__code__ __closure__ __subclasses__ __bases__ __mro__ __dict__ modules "
                 "get_rope_index load_state_dict set_rng_state from_file fromfile memmap "
                 "load_library cpp_extension".split())  # fmt: skip
METHODS = set("__eq__ __reduce__ __reduce_ex__ __torch_function__ __float__ __bool__ "
              "__getattr__ __del__".split())  # fmt: skip
WORDS = ("slow_", "_cases", "expected.pt", "/proc", "checks", "solution", ".pyc")


def suspicious(text, exercise):
    """What a file names that no exercise needs: ["line 3: imports gc", …]."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    flags = []
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if says := flag_of(node, exercise):
            flags.append((node.lineno, f"line {node.lineno}: {says}"))
    return [flag for _, flag in sorted(set(flags))]


def flag_of(node, exercise):
    """What is unusual about one node of a syntax tree, or None."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        for root in roots:
            if (root or "").split(".")[0] in MODULES:
                return f"imports {root}"
        own = [a.name for a in node.names if a.name in exercise.functions]
        return f"imports {own[0]}, which is the exercise" if own else None
    if isinstance(node, ast.Name) and node.id in NAMES:
        return f"uses {node.id}"
    if isinstance(node, ast.Attribute):
        if node.attr in ATTRIBUTES:
            return f"uses .{node.attr}"
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            return f"replaces {node.value.id}.{node.attr}" if node.value.id == "torch" else None
    if isinstance(node, ast.FunctionDef) and node.name in METHODS:
        return f"defines {node.name}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        word = next((w for w in WORDS if w in node.value), None)
        return f"a text that names {word}" if word else None
    return None
