"""python -m course list | start | check | hint | solution | handout | grade | results | gradescope

See exercises.py for the commands of students, docs/course.md for those of instructors."""

import argparse
import sys

from course import exercises
from course.exercises import EXERCISES
from lib.errors import BadInput, run_program


def chosen_by(which):
    """'5' or 'all' → exercises."""
    chosen = [e for e in EXERCISES if which in ("all", str(e.number))]
    if not chosen:
        most = len(EXERCISES)
        raise BadInput(f"there is no exercise {which}: give a number from 1 to {most}, or all")
    return chosen


def for_students(args):
    """list, start, check, hint, solution. Returns 1 if a check found anything that is not right."""
    if args.command == "list":
        for e in EXERCISES:
            functions = ", ".join(f"{e.module}.{name}" for name in e.functions)
            print(f"{e.number:2}  {e.title:32} {sum(e.points):2} points  {functions}")
        return 0
    chosen = chosen_by(args.which)
    if args.command == "start":
        exercises.write_files(chosen, args.into or "homework")
    elif args.command == "check":
        from course.grading import check

        return int(check(chosen, args.into or "homework", args.limit) < len(chosen))
    elif args.command == "hint":
        for e in chosen:
            print(f"{e.number}. {e.title}: {exercises.prose(e)[1][args.level - 1]}\n")
        if args.level < 3:
            print(f"(more: --level {args.level + 1})")
    elif args.into:
        exercises.write_files(chosen, args.into, solved=True)
    else:
        print("\n\n".join(exercises.write_up(e, solved=True) for e in chosen))
    return 0


def for_instructors(args):
    """handout, gradescope, grade, results. Returns 1 if of a student nothing was found."""
    from course import grading, handout

    if args.command == "handout":
        if not args.into:
            raise BadInput("handout needs --into DIR: the folder to make")
        handout.handout(args.into)
    elif args.command == "gradescope":
        handout.autograder(args.out or "autograder.zip", args.seed)
    elif args.command == "grade":
        return int(grading.grade(args.which, args.out or "grades.csv", args.limit, args.seed) > 0)
    else:
        return grading.grade_one(args.which, args.out or "results.json", args.limit, args.seed)
    return 0


STUDENTS = ("list", "start", "check", "hint", "solution")
INSTRUCTORS = ("handout", "grade", "results", "gradescope")


def main(argv=None):
    """Runs one command. Returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("python -m course", None, exercises.__doc__, formatter_class=form)
    p.add_argument("command", choices=STUDENTS + INSTRUCTORS)
    which = "a number, or all; of grade: the folder of submissions; of results: that of one"
    p.add_argument("which", nargs="?", help=which)
    into = "the student's folder (default: homework); of handout: the folder to make"
    p.add_argument("--into", help=into)
    p.add_argument("--out", help="of grade, results, gradescope: the file to write")
    p.add_argument("--limit", type=float, default=20.0, help="seconds that a function may take")
    p.add_argument("--level", type=int, default=1, choices=(1, 2, 3), help="of hint: how much")
    p.add_argument("--seed", help="of grade, results, gradescope: any word, for the hidden numbers")
    args = p.parse_args(argv)
    if not 1 <= args.limit <= 86400:
        raise BadInput(f"--limit must be from 1 to 86400 seconds: got {args.limit:g}")
    if args.which is None and args.command not in ("list", "handout", "gradescope"):
        example = "FOLDER" if args.command in ("grade", "results") else "5"
        raise BadInput(f"{args.command} what? python -m course {args.command} {example}")
    try:
        return (for_students if args.command in STUDENTS else for_instructors)(args)
    except OSError as e:
        raise BadInput(f"{e.filename}: {e.strerror}") from e


if __name__ == "__main__":
    sys.exit(run_program(main))
