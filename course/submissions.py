"""submissions.py: what was handed in → one text per exercise and student, and what to look at.

A class hands in folders within folders, zips, "ex05_group_advantages (1).py" and solution.py. A
file belongs to an exercise if its name begins with the exercise's number (ex05…), or else if it
defines the exercise's functions. Nothing is run or parsed here: names are found by patterns.
"""

import builtins
import calendar
import keyword
import os
import re
import stat
import zipfile
from dataclasses import dataclass, field
from functools import cache

from course.exercises import EXERCISES, blanks, read, write_up
from lib.errors import BadInput

MOST_BYTES = 1 << 20  # of one file
MOST_FILES, MOST_UNPACKED = 500, 20 << 20  # of one submission
SKIPPED = {"__pycache__", "__MACOSX", "site-packages", "node_modules"}  # and what starts with a dot


@dataclass
class Submission:
    student: str
    files: dict = field(default_factory=dict)  # {Exercise: its file's text, as bytes}
    notes: list = field(default_factory=list)  # which files were taken, and which were not
    flags: list = field(default_factory=list)  # for a person to look at; they take no points
    left: int = MOST_FILES  # files that may still be looked at
    room: int = MOST_UNPACKED  # bytes that may still be unpacked


def clean(text):
    """Text without control characters and without bytes that are no letters."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def is_skipped(name):
    return name in SKIPPED or name.startswith(".") and name != ".."


def walk(made, folder, place=""):
    """(place, time, text) of every Python file below a folder, those in zips too."""
    for entry in sorted(os.scandir(folder), key=lambda e: os.fsencode(e.name)):
        where = f"{place}/{entry.name}".lstrip("/")
        if is_skipped(entry.name) or not counted(made):
            continue
        about = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(about.st_mode):
            if where.count("/") < 8:
                yield from walk(made, entry.path, where)
        elif not stat.S_ISREG(about.st_mode):
            made.notes.append(f"{where} is no ordinary file (a link, a pipe or a device): left out")
        elif where.lower().endswith(".zip"):
            yield from unpack(made, entry.path, where)
        elif not where.lower().endswith(".py") or about.st_size > MOST_BYTES:
            made.notes.append(f"{where} is of no exercise")
        else:
            yield where, about.st_mtime, read(entry.path)


def counted(made):
    """Whether one more file may be looked at."""
    made.left -= 1
    if made.left == 0:
        made.notes.append(f"more than {MOST_FILES} files: the rest was not looked at")
    return made.left > 0


def unpack(made, path, place):
    """The same of the files in a zip, as far as there is room; zips in it are left out."""
    try:
        with zipfile.ZipFile(path) as z:
            for info in z.infolist():
                where, parts = f"{place}/{info.filename}", re.split(r"[/\\]", info.filename)
                if info.is_dir() or any(map(is_skipped, parts)):
                    continue
                if not counted(made):
                    return
                wanted = where.lower().endswith(".py")
                text = read_member(made, z, info) if wanted else None
                if text is None:
                    why = "too large" if wanted else "of no exercise"
                    made.notes.append(f"{where} is {why}")
                else:
                    yield where, calendar.timegm(info.date_time), text
    except Exception as e:  # there is no end to what a damaged zip makes zipfile raise
        made.notes.append(f"{place} is a zip that cannot be read: {type(e).__name__}: {e}")


def read_member(made, z, info):
    """The bytes of a file in a zip; None if there are too many, whatever its header says."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("compressed by something else than deflate")
    most = min(made.room, MOST_BYTES)
    with z.open(info) as f:
        text = f.read(most + 1)
    made.room -= len(text)
    return text if len(text) <= most else None


def number_of(place):
    """The exercise that a file's name begins with: lee_ex05 advantages (1).py → 5; or None."""
    name = place.replace("\\", "/").rpartition("/")[2].lower()
    found = re.search(r"(?:^|[^a-z])ex(?:ercise)?[ _-]*0*(\d{1,2})(?:\D|$)", name)
    return int(found[1]) if found else None


def defined(text):
    return {name.decode() for name in re.findall(rb"^def (\w+)", text, re.MULTILINE)}


def sort_files(made, files):
    """Gives each exercise its file: that which is finished, of several the latest."""
    files, used = list(files), set()
    for exercise in EXERCISES:
        wanted = set(exercise.functions)
        named = [f for f in files if number_of(f[0]) == exercise.number]
        others = [f for f in files if number_of(f[0]) is None and wanted <= defined(f[2])]
        ranked = []
        for place, time, text in named or others:
            finished = wanted <= defined(text) and not blanks(exercise, text)
            ranked.append((finished, time, place, text))
        ranked.sort()
        for *_, place, text in ranked[-1:]:
            made.files[exercise] = text
            if not named:
                made.notes.append(f"exercise {exercise.number}: found by its functions in {place}")
            if len({text for *_, text in ranked}) > 1:
                left = ", ".join(place for _, _, place, _ in ranked[:-1])
                made.notes.append(f"exercise {exercise.number}: took {place}, left {left}")
        used |= {place for _, _, place, _ in ranked}
    made.notes += [f"{f[0]} is of no exercise" for f in files if f[0] not in used]


MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def wrong_encoding(text):
    """Why a file is no UTF-8, by the name of what it probably is; None if it is, or says itself."""
    head = text[:200]
    if re.search(rb"coding[:=]\s*[-\w.]+", b"\n".join(head.split(b"\n")[:2])):
        return None
    name = next((name for mark, name in MARKS.items() if text.startswith(mark)), None)
    if name is None and b"\0" in head:
        name = "UTF-16 without a mark" if head.count(b"\0") > len(head) // 3 else "no text"
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as e:
        line = text[: e.start].count(b"\n") + 1
        name = name or f"another encoding, perhaps Windows-1252 or Latin-1 (line {line})"
    return name and f"  the file is saved as {name}: save it as UTF-8"


def find(folder):
    """The submissions in a folder: one of each sub-folder and each zip; and names of loose files.

    Raises BadInput if there is nothing in it that could be graded.
    """
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is no folder: it should hold one folder or zip for each student")
    made, files, loose = {}, {}, []
    for entry in sorted(os.scandir(folder), key=lambda e: os.fsencode(e.name)):
        is_zip = entry.name.lower().endswith(".zip") and entry.is_file(follow_symlinks=False)
        if is_skipped(entry.name):
            continue
        if not is_zip and not entry.is_dir(follow_symlinks=False):
            loose.append(clean(entry.name))
            continue
        student = entry.name[:-4] if is_zip else entry.name
        own = made.setdefault(student, Submission(student))
        inside = unpack(own, entry.path, entry.name) if is_zip else walk(own, entry.path)
        files.setdefault(student, []).extend(readable(own, inside))
    for student, submission in made.items():
        sort_files(submission, files[student])
    if not any(submission.files for submission in made.values()):
        seen = ", ".join([*map(clean, made), *loose][:8]) or "nothing"
        asked = f"a folder or a zip for each student, with {EXERCISES[0].file} and so on"
        raise BadInput(f"nothing to grade in {folder}: it should hold {asked}; it holds {seen}")
    return list(made.values()), loose


def readable(made, files):
    """Files up to the first that the system refuses."""
    try:
        yield from files
    except OSError as e:
        made.notes.append(f"{e.filename}: {e.strerror}: what comes after it was not looked at")


def one(folder):
    """The submission in a folder."""
    made = Submission("submission")
    sort_files(made, readable(made, walk(made, folder)))
    return made


USUAL = set("torch numpy math re __future__ rewards tasks data model grpo variants lib".split())
IMPORT = re.compile(rb"^[ \t]*(?:import|from)[ \t]+([\w.]+)|\b(?:__import__|importlib)\b", re.M)
ALIKE = 40  # words and signs of a solution, at least, that may be called alike


def flag(found):
    """Adds flags to submissions: imports that no exercise needs, and files alike."""
    seen = {}
    for submission in found:
        for exercise, text in submission.files.items():
            roots = {(m[1] or m[0]).decode().split(".")[0] for m in IMPORT.finditer(text)}
            for root in sorted(roots - USUAL):
                submission.flags.append(f"exercise {exercise.number}: imports {root}")
            shape = shape_of(text, exercise)
            if shape.count(" ") >= ALIKE:
                seen.setdefault((exercise, shape), []).append(submission)
    for (exercise, _), alike in sorted(seen.items(), key=lambda item: item[0][0].number):
        for one in alike if len(alike) > 1 else ():
            names = sorted(other.student for other in alike if other is not one)
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            said = f"the same as that of {', '.join(names[:4])}{more}"
            one.flags.append(f"exercise {exercise.number}: {said}")


given = cache(lambda exercise: {line.strip() for line in write_up(exercise).splitlines()})


def shape_of(text, exercise):
    """A file's code but for what `start` wrote, imports, comments and the choice of names."""
    text = re.sub(r"#.*|^[ \t]*(from|import) .*", "", text.decode("utf-8", "replace"), flags=re.M)
    code = " ".join(line for line in text.splitlines() if line.strip() not in given(exercise))
    names, known = {}, {*keyword.kwlist, *dir(builtins), *exercise.functions}
    own = lambda w: w.isidentifier() and w not in known
    words = re.findall(r"\w+|[^\w\s]", code)
    return " ".join(names.setdefault(w, f"v{len(names)}") if own(w) else w for w in words)
