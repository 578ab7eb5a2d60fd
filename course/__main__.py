"""python -m course list | start | check | hint | solution | handout | grade: see exercises.py."""

import sys

from course import exercises
from runtime.errors import run_program


def main():
    return run_program(exercises.main)


if __name__ == "__main__":
    sys.exit(main())
