"""The first of each class of tests/bench/hostile.py, which tries all of them."""

import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_hostile_cases_end_as_expected():
    command = [sys.executable, os.path.join("tests", "bench", "hostile.py"), "--first", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    classes = re.findall(r"^(.+?) +2 cases, +2 as expected, +0 unexpected$", done.stdout, re.M)
    assert len(classes) == 10 and "20 cases, 0 unexpected" in done.stdout, done.stdout


def test_an_unexpected_end_is_told():
    """A case whose expectation is wrong: the bench must say so and fail."""
    code = (
        "import sys; sys.path.insert(0, 'tests/bench'); import hostile\n"
        "rows = [('x', 'toy nowhere', *end) for end in ((1,), (2, 'other words'), (2,))]\n"
        "hostile.CLASSES = {'flags': lambda: rows}\n"
        "sys.argv = ['hostile.py']; hostile.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "3 cases,    1 as expected,  2 unexpected" in done.stdout
    assert "exit status 2, not 1" in done.stdout and "it does not say 'other words'" in done.stdout
