"""What the README and the pages of docs/ say is so: their commands are understood, their links lead
somewhere, the worked example is what the command prints."""

import glob
import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest

import eval as evaluation
import train
from annotations.readers import DATASETS
from conftest import ROOT
from course.exercises import EXERCISES
from docs_check import all_commands, commands, pages, smaller
from evaluation.metrics import reported
from tasks import TASKS

PAGES = pages()
README = PAGES["README.md"]
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def heading_names(text):
    """What a link may name after #: headings, lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(path):
    """The links of a page to files of the project: (path from the root, name of a heading)."""
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", PAGES[path])):
        if not re.match(r"https?://", link):
            file, _, heading = link.partition("#")
            file = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
            yield file, heading


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_commands_start_what_exists_with_flags_that_exist(command):
    """`make docs-check` runs all commands; here they are only read."""
    if match := re.search(r"\b(train|eval)\.py(.*)", command):
        if "--help" not in command:
            program = train if match[1] == "train" else evaluation
            program.parse_args(shlex.split(match[2]))
    elif match := re.search(r"-m ([\w.]+)", command):
        assert importlib.util.find_spec(match[1])
    else:
        assert os.path.isfile(os.path.join(ROOT, re.search(r"[\w/]+\.py", command)[0]))


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_docs_check_starts_the_program_that_stands_there(command):
    """Made smaller, but not only asked for its --help."""
    programs = [re.findall(r"[\w/]+\.py\b|-m [\w.]+", c)[:1] for c in (command, smaller(command))]
    assert programs[0] == programs[1] != []
    assert ("--help" in smaller(command)) == ("--help" in command)


def test_commands_are_found_in_blocks_and_in_sentences():
    text = "`python grpo.py` and\n```\npython train.py --steps 3   # short\npip install x\n```\n"
    assert list(commands(text)) == ["python grpo.py", "python train.py --steps 3"]
    assert len(all_commands()) > 40


def test_the_worked_example_is_what_the_command_prints():
    done = subprocess.run(
        [sys.executable, "-m", "tools.report", "assets/example", "1"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 0 and f"```\n{done.stdout.rstrip()}\n```" in README


def test_the_readme_names_every_chapter_and_every_room_and_is_short():
    chapters = glob.glob("*.py", root_dir=ROOT)
    rooms = [os.path.dirname(path) + "/" for path in glob.glob("*/__init__.py", root_dir=ROOT)]
    assert len(chapters) >= 7 and len(rooms) >= 6
    assert [name for name in [*chapters, *rooms] if f"`{name}`" not in README] == []
    assert len(README.split()) <= 1600


def test_the_readme_counts_the_lines_of_the_house():
    """Its tables name a chapter or room and its lines of Python, rounded."""
    rows = re.findall(r"^\| \[?`([\w/.]+)`\S* \| ([\d,]+) \|", README, re.MULTILINE)
    assert len(rows) == 16
    for name, lines in rows:
        files = f"{name}**/*.py" if name.endswith("/") else name
        counted = 0
        for path in glob.glob(files, root_dir=ROOT, recursive=True):
            with open(os.path.join(ROOT, path), encoding="utf-8") as f:
                counted += len(f.readlines())
        assert counted == pytest.approx(int(lines.replace(",", "")), rel=0.05), name


def test_the_readme_links_every_page():
    linked = {file for file, _ in links("README.md")}
    assert set(PAGES) - {"README.md"} <= linked


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    for file, heading in links(path):
        assert os.path.exists(os.path.join(ROOT, file)), f"{path}: {file}"
        assert not heading or heading in heading_names(PAGES[file]), f"{path}: {file}#{heading}"


def first_cells(table):
    """The names in the first column of a markdown table, head and line below it left out."""
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    return [name.strip() for row in rows[2:] for name in row.split(",") if name.strip()]


def test_the_page_of_data_sets_names_every_task_and_data_set_and_metric():
    tasks, reports, data_sets = PAGES["docs/datasets.md"].split("\n## ")[1:]
    assert first_cells(tasks) == list(TASKS)
    assert sorted(first_cells(data_sets)) == sorted(DATASETS)
    assert set(first_cells(reports)) == {*DATASETS, "all"}
    answers = {
        "grounding": (0.0, 1.0),
        "tracking": [(0.0, 0.0, 1.0, 1.0)] * 8,
        "gqa": ("A", [(0.0, 1.0)]),
        "description": (["a boy runs"], "A boy runs."),
    }
    for task, answer in answers.items():
        for metric in reported(task, [{"text": "", "answer": answer, "group": ""}]):
            assert re.sub(r"@[\d.]+", "@θ", metric) in reports, metric


@pytest.mark.parametrize("path", PAGES)
def test_files_that_are_named_exist(path):
    """A page's own words for files, `lib/files.py`, rot when a file moves."""
    for name in re.findall(r"`([\w/]+\.(?:py|html))`", PAGES[path]):
        places = (ROOT, os.path.join(ROOT, "tests", "bench"))
        assert any(os.path.isfile(os.path.join(place, name)) for place in places), name


@pytest.mark.parametrize("path", PAGES)
def test_make_knows_what_the_pages_ask_of_it(path):
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as f:
        targets = set(re.findall(r"^([\w-]+):", f.read(), re.MULTILINE))
    asked = re.findall(r"(?:^|`)make ([\w-]+)", PAGES[path], re.MULTILINE)
    assert set(asked) <= targets


def test_every_picture_is_there_and_small():
    most = {".png": 300_000, ".gif": 1_000_000}
    links_of_all = [file for path in PAGES for file, _ in links(path)]
    pictures = [file for file in links_of_all if os.path.splitext(file)[1] in most]
    assert len(pictures) >= 9
    for path in pictures:
        assert os.path.getsize(os.path.join(ROOT, path)) < most[os.path.splitext(path)[1]], path


def test_the_timetable_of_a_course_has_every_exercise_once():
    weeks = re.findall(r"^\| \d\. .*$", PAGES["docs/course.md"], re.MULTILINE)
    numbers = [
        int(n) for week in weeks for n in re.findall(r"\d+", week.split("|")[3].split("(")[0])
    ]
    assert sorted(numbers) == [e.number for e in EXERCISES]
    assert len(PAGES["docs/course.md"].split()) <= 1200
