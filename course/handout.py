"""handout.py: what an instructor gives away: a folder for the class, and Gradescope's zip.

A hand-out is the project's code with the reference in it, blank files to fill, a README, and pages
to read. Nothing in it is secret: the solutions are public, in this repository as well.
"""

import os
import secrets
import shlex
import sys
import zipfile

from course.exercises import EXERCISES, ROOT, read, write_files
from lib.errors import BadInput

NEEDED = ("", "lib", "course")  # folders of what is needed to grade
PAGES = ("lesson.md", "experiments.md", "speed.md")  # of docs/
ASSETS = ("toy-base", "example")


def ours(*path):
    return read(os.path.join(ROOT, *path))


def code_of(folders):
    """{path: bytes} of the code in some folders, with the files that it reads."""
    found = {"requirements.txt": ours("requirements.txt")}
    for folder in folders:
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith((".py", ".html")) or folder == "course" and "." in name:
                found[os.path.join(folder, name)] = ours(folder, name)
    return found


def handout(into):
    """Makes the folder for a class. Raises BadInput if `into` is not empty."""
    if os.path.exists(into) and os.listdir(into):
        raise BadInput(f"{into} is not empty: give a new folder")
    inside = lambda name: os.path.isfile(os.path.join(ROOT, name, "__init__.py"))
    rooms = [name for name in sorted(os.listdir(ROOT)) if name != "tests" and inside(name)]
    made = code_of(["", *rooms]) | {"LICENSE": ours("LICENSE")}
    python = ".".join(map(str, sys.version_info[:2]))
    made["README.md"] = ours("course", "student.md").replace(b"{python}", python.encode())
    made |= {os.path.join("docs", name): ours("docs", name) for name in PAGES}
    for asset in ASSETS:
        for folder, _, names in os.walk(os.path.join(ROOT, "assets", asset)):
            place = os.path.relpath(folder, ROOT)
            made |= {os.path.join(place, name): ours(place, name) for name in names}
    for path, content in made.items():
        os.makedirs(os.path.dirname(os.path.join(into, path)) or into, exist_ok=True)
        with open(os.path.join(into, path), "wb") as f:
            f.write(content)
    write_files(EXERCISES, os.path.join(into, "homework"))
    print(f"{into} is ready; students hand in its folder homework, which `grade` grades here")


def autograder(out, seed=None):
    """Writes the zip that Gradescope is given for a programming assignment."""
    seed = seed or secrets.token_hex(4)
    run = ours("course", "gradescope", "run_autograder").replace(
        b"SEED", shlex.quote(seed).encode()
    )
    files = {"setup.sh": ours("course", "gradescope", "setup.sh"), "run_autograder": run}
    files |= {f"project/{path}": content for path, content in code_of(NEEDED).items()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for path, content in files.items():
            info = zipfile.ZipInfo(path, date_time=(2026, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o100755 if "/" not in path else 0o100644) << 16
            z.writestr(info, content)
    whole = sum(sum(e.points) for e in EXERCISES)
    print(f"wrote {out}: {whole} points; the hidden numbers are those of --seed {seed}")
