"""handout.py: what an instructor gives away: the repository for a class, and Gradescope's zip.

A hand-out has no solutions as text, no tests and no history. handout/ in it holds the students'
blank files, what the checks' cases should give (expected.pt), and the exercises' functions,
compiled: one file each, which its chapter runs in place of the missing body. So everything works
from the first day. Compiled is not secret: whoever can read Python's bytecode can read them, and
grading (apart.py) does not rely on it.
"""

import ast
import importlib.util
import marshal
import os
import secrets
import shlex
import shutil
import sys
import zipfile

import torch

from course.exercises import (
    BLANKS,
    CHAPTERS,
    EXERCISES,
    ROOT,
    functions_of,
    in_handout,
    source_of,
    without_bodies,
    write_files,
    write_up,
)
from course.grading import cases_of
from lib.errors import BadInput

COPIED = ("CONTRIBUTING.md", "LICENSE", "requirements.txt", "pyproject.toml",
          "tools/report.html")  # fmt: skip
ROOMS = (
    "",
    "lib",
    "training",
    "evaluation",
    "annotations",
    "toy",
    "course",
    "tools",
)  # all but the tests
NEEDED = ("", "lib", "training", "evaluation", "annotations", "course")  # to grade

# handout/__init__.py, of which a chapter's last line is a call.
FILL = '''"""The exercises' functions, compiled: they run where no body is written."""

import importlib.machinery
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def fill(chapter, namespace):
    """Puts the compiled functions of a chapter into it."""
    for name in sorted(os.listdir(HERE)):
        if name.startswith(chapter + ".") and name.endswith(".pyc"):
            loader = importlib.machinery.SourcelessFileLoader(chapter, os.path.join(HERE, name))
            try:
                exec(loader.get_code(chapter), namespace)
            except ImportError:
                have = ".".join(map(str, sys.version_info[:2]))
                sys.exit(
                    "error: this hand-out was made for Python {python}, and this is Python "
                    f"{{have}}: use {python}, or ask for a hand-out made with {{have}}"
                )
'''


def source_files(rooms=ROOMS):
    """(folder, file name) of all Python files in some rooms."""
    for folder in rooms:
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith(".py"):
                yield folder, name


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def without_solutions(folder, name):
    """A source file as a hand-out has it.

    Of the checks' own slow computations a hand-out holds only the results: without_solutions takes
    their bodies out, as it does with those of the exercises' functions.
    """
    source, chapter = read(folder, name), f"{folder}.{name[:-3]}".lstrip(".")
    if chapter in CHAPTERS:
        for exercise in EXERCISES:
            if exercise.module == chapter:
                said = f"exercise {exercise.number}: see homework/{exercise.file}"
                instead = f'raise NotImplementedError("{said}")'
                source = without_bodies(source, exercise.functions, instead)
        source = filled(source, chapter)
    if folder == "course" and name.startswith("checks"):
        slow = [function for function in functions_of(source) if function.startswith("slow_")]
        instead = 'raise NotImplementedError("not in a hand-out: see handout/expected.pt")'
        source = without_bodies(source, slow, instead)
    return source


def filled(source, chapter):
    """A chapter that takes its compiled functions, before it does anything as a program."""
    call = (
        f'\nfrom handout import fill  # the exercises, compiled\n\nfill("{chapter}", globals())\n'
    )
    before, program, after = source.partition('\n\nif __name__ == "__main__":')
    return before.rstrip("\n") + "\n\n" + call + program + after


def compiled(exercise, name):
    """The .pyc file of one function: its magic number, no source to compare with, its code."""
    node = functions_of(read(source_of(exercise.module)))[name]
    tree = ast.Module(body=[node], type_ignores=[])
    code = compile(tree, f"exercise {exercise.number}, compiled", "exec")
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def handout(into):
    """Makes a copy of the repository for a class. Raises BadInput if `into` is not empty."""
    if in_handout():
        raise BadInput("this is a hand-out already")
    if os.path.realpath(into) == os.path.realpath(BLANKS):
        raise BadInput(f"{into}: a folder of this name would make this repository a hand-out")
    if os.path.exists(into) and os.listdir(into):
        raise BadInput(f"{into} is not empty: give a new folder")
    python = ".".join(map(str, sys.version_info[:2]))
    made = {}  # path from `into`: content
    for folder, name in source_files():
        made[os.path.join(folder, name)] = without_solutions(folder, name)
    blanks = os.path.basename(BLANKS)
    for exercise in EXERCISES:
        made[os.path.join(blanks, exercise.file)] = write_up(exercise)
        for name in exercise.functions:
            made[os.path.join(blanks, f"{exercise.module}.{name}.pyc")] = compiled(exercise, name)
    made[os.path.join(blanks, "__init__.py")] = FILL.format(python=python)
    made["README.md"] = read("course", "student.md").format(python=python)
    expected = {e.number: [want for _, want in cases_of(e)] for e in EXERCISES}
    for path, content in made.items():
        os.makedirs(os.path.dirname(os.path.join(into, path)), exist_ok=True)
        with open(os.path.join(into, path), "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
    torch.save(expected, os.path.join(into, blanks, "expected.pt"))
    for name in COPIED:
        shutil.copy(os.path.join(ROOT, name), os.path.join(into, name))
    shutil.copytree(os.path.join(ROOT, "assets"), os.path.join(into, "assets"))
    instructors = shutil.ignore_patterns("course.md")
    shutil.copytree(os.path.join(ROOT, "docs"), os.path.join(into, "docs"), ignore=instructors)
    write_files(EXERCISES, os.path.join(into, "homework"))
    print(
        f"{into} is ready to be handed out, for Python {python}; its students hand in the folder"
        " homework, and `python -m course grade` here grades them"
    )


# ------------------------------------------------------------------------------------------------
# Gradescope: a zip with a script that sets up the machine and one that grades
# ------------------------------------------------------------------------------------------------

# Both are run by the platform with /autograder as it lays it out: source/ is the zip, unpacked,
# submission/ a student's files. AUTOGRADER names another place, PYTHON another Python (to try it).
SETUP = """#!/usr/bin/env bash
set -eu
cd "${AUTOGRADER:-/autograder}/source"
python="${PYTHON:-}"
[ -n "$python" ] || apt-get update
for version in 3.13 3.12 3.11; do
    [ -n "$python" ] && break
    apt-get install -y "python$version" "python$version-venv" && python="python$version"
done
"$python" -m venv venv
# The build without CUDA is a tenth of the size; if it cannot be had, the next line takes the other.
torch="$(grep ^torch== project/requirements.txt)"
venv/bin/pip install --quiet "$torch" --index-url https://download.pytorch.org/whl/cpu || true
venv/bin/pip install --quiet -r project/requirements.txt
"""
RUN = """#!/usr/bin/env bash
# The hidden numbers are the same for the whole class: those of this seed.
set -u
here="${AUTOGRADER:-/autograder}"
cd "$here/source/project"
exec ../venv/bin/python -m course results "$here/submission" --out "$here/results/results.json" \\
    --seed SEED
"""


def autograder(out, seed=None):
    """Writes the zip that Gradescope is given for a programming assignment."""
    if in_handout():
        raise BadInput("this is a hand-out: the whole repository makes the autograder")
    seed = seed or secrets.token_hex(4)
    files = {"setup.sh": SETUP, "run_autograder": RUN.replace("SEED", shlex.quote(seed))}
    for folder, name in source_files(NEEDED):
        path = f"project/{folder}/{name}" if folder else f"project/{name}"
        files[path] = read(folder, name)
    files["project/requirements.txt"] = read("requirements.txt")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for path, content in files.items():
            info = zipfile.ZipInfo(path, date_time=(2026, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o100755 if "/" not in path else 0o100644) << 16
            z.writestr(info, content)
    whole = sum(sum(e.points) for e in EXERCISES)
    print(f"wrote {out}: {whole} points; the hidden numbers are those of --seed {seed}")
