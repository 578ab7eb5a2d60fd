"""What the README says is so: its commands are understood, its example is what the command prints."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import eval as evaluation
import train
from conftest import ROOT
from docs_check import commands

with open(os.path.join(ROOT, "README.md")) as f:
    README = f.read()


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in dict.fromkeys(commands(README))
        if re.search(r"\b(train|eval)\.py", c) and "--help" not in c
    ],
    ids=str,
)
def test_commands_have_flags_that_exist(command):
    """`make docs-check` runs all commands; here they are only read."""
    program, flags = re.search(r"\b(train|eval)\.py(.*)", command).groups()
    (train if program == "train" else evaluation).parse_args(shlex.split(flags))


def test_the_worked_example_is_what_the_command_prints():
    done = subprocess.run(
        [sys.executable, "-m", "tools.report", "assets/example", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"```\n{done.stdout.rstrip()}\n```" in README


def test_every_file_of_the_project_is_a_chapter():
    for name in os.listdir(ROOT):
        if name.endswith(".py"):
            assert f"({name})" in README or f"`{name}`" in README, name
            with open(os.path.join(ROOT, name)) as f:
                assert len(f.readlines()) <= 560, name


def test_every_picture_is_there_and_small():
    for path in re.findall(r"\((assets/[^)]+)\)", README):
        assert os.path.getsize(os.path.join(ROOT, path)) < 300_000, path
