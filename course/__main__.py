"""python -m course list | start | check | hint | solution | handout | grade: see exercises.py."""

import sys

from course.exercises import main
from runtime.errors import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
