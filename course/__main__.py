"""python -m course list | start | check | hint | solution | handout | grade | results | gradescope

See exercises.py for the commands of students, docs/course.md for those of instructors."""

import argparse
import sys

from course import exercises
from course.exercises import EXERCISES
from lib.errors import BadInput, run_program


def chosen_by(which):
    """'5' or 'all' → exercises."""
    if which == "all":
        return EXERCISES
    if which not in [str(e.number) for e in EXERCISES]:
        raise BadInput(
            f"there is no exercise {which}: give a number from 1 to {len(EXERCISES)}, or all"
        )
    return (EXERCISES[int(which) - 1],)


def list_exercises(args):
    for e in EXERCISES:
        functions = ", ".join(f"{e.module}.{name}" for name in e.functions)
        print(f"{e.number:2}  {e.title:32} {sum(e.points):2} points  {functions}")


def start(args):
    exercises.write_files(chosen_by(args.which), args.into or "homework")


def check(args):
    from course.grading import check

    chosen = chosen_by(args.which)
    return int(check(chosen, args.into or "homework", args.limit) < len(chosen))


def show_hints(args):
    for e in chosen_by(args.which):
        print(f"{e.number}. {e.title}: {e.hints[args.level - 1]}\n")
    if args.level < 3:
        print(f"(more: --level {args.level + 1})")


def show_solutions(args):
    if args.into:
        exercises.write_files(chosen_by(args.which), args.into, solved=True)
    else:
        print("\n\n".join(exercises.write_up(e, solved=True) for e in chosen_by(args.which)))


def make_handout(args):
    from course.handout import handout

    if not args.into:
        raise BadInput("handout needs --into DIR: the folder to make")
    handout(args.into)


def grade(args):
    from course.grading import grade

    return int(grade(args.which, args.out or "grades.csv", args.limit, args.seed) > 0)


def results(args):
    from course.grading import grade_one

    return grade_one(args.which, args.out or "results.json", args.limit, args.seed)


def make_autograder(args):
    from course.handout import autograder

    autograder(args.out or "autograder.zip", args.seed)


COMMANDS = {
    "list": list_exercises,
    "start": start,
    "check": check,
    "hint": show_hints,
    "solution": show_solutions,
    "handout": make_handout,
    "grade": grade,
    "results": results,
    "gradescope": make_autograder,
}


def main(argv=None):
    """Runs one command. Returns the exit status: 1 if `check` found anything that is not right, or
    `grade` a student of whom nothing was found."""
    p = argparse.ArgumentParser(
        prog="python -m course",
        description=exercises.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("command", choices=COMMANDS)
    p.add_argument("which", nargs="?", help="a number, or all; of grade: the folder of submissions;"
                   " of results: that of one")  # fmt: skip
    p.add_argument(
        "--into", help="the student's folder (default: homework); of handout: the folder to make"
    )
    p.add_argument("--out", help="of grade, results, gradescope: the file to write")
    p.add_argument("--limit", type=float, default=20.0, help="seconds that a check may take")
    p.add_argument("--level", type=int, default=1, choices=(1, 2, 3), help="of hint: how much")
    p.add_argument("--seed", help="of grade, results, gradescope: any word, for the hidden numbers")
    args = p.parse_args(argv)
    if not 1 <= args.limit <= 86400:
        raise BadInput(f"--limit must be from 1 to 86400 seconds: got {args.limit:g}")
    if args.which is None and args.command not in ("list", "handout", "gradescope"):
        example = "FOLDER" if args.command in ("grade", "results") else "5"
        raise BadInput(f"{args.command} what? python -m course {args.command} {example}")
    try:
        return COMMANDS[args.command](args) or 0
    except OSError as e:
        raise BadInput(f"{e.filename}: {e.strerror}") from e


if __name__ == "__main__":
    sys.exit(run_program(main))
