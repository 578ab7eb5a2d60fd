"""Is the grader any good? Wrong solutions, each of which it must reject with words that point at
the mistake, and right ones that are written differently from ours, which must pass.

    python tests/wrong_solutions.py          # prints the totals, and every one that went wrong
    python tests/wrong_solutions.py -v       # and what a student would read for each
    python tests/wrong_solutions.py 5 9      # of some exercises alone

wrong_solutions.txt is a table: exercise ‖ mistake ‖ a piece of our solution ‖ what stands there
instead ‖ words of the message. (⏎ is a line break. Pieces are short expressions, so that few
changes of the reference touch them.) whole_solutions.txt has those that replace a whole function,
wrong and right ones: they are added at the end of our file, where they take the place of ours.
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from course import exercises, grading  # noqa: E402


def lines_of(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return f.read().splitlines()


def solutions(number):
    """[(title, text of the file, words)] of an exercise; words: None if the solution is right."""
    made = []
    for line in lines_of("wrong_solutions.txt"):
        n, title, old, new, words = (cell.strip(" ").replace("⏎", "\n") for cell in line.split("‖"))
        if int(n) == number:
            made.append((title, solution(number, old, new), words.split()))
    for block in "\n".join(lines_of("whole_solutions.txt")).split("### ")[1:]:
        head, _, code = block.partition("\n")
        kind, _, title = head.partition(": ")
        title, _, words = title.partition(" ‖ ")
        if int(kind.split()[0]) == number:
            words = None if kind.endswith("right") else words.split()
            made.append((title, solution(number, new=code), words))
    return made


def spaced(piece):
    """A pattern for a piece of code that does not depend on where the formatter broke its lines."""
    words = re.findall(r"\w+|[^\w\s]", piece)
    return r"\s*".join((r",?\s*" if w in list(")]}") else "") + re.escape(w) for w in words)


def solution(number, old="", new=""):
    """Our solution's file with `old` exchanged for `new`; without `old`, with `new` at its end."""
    text = exercises.write_up(exercises.EXERCISES[number - 1], solved=True)
    if not old:
        return text + "\n\n" + new
    changed, count = re.subn(spaced(old), lambda _: new, text)
    assert count, f"exercise {number}: our solution no longer holds {old!r}"
    return changed


def graded(number, texts):
    """[(status, message)] of files of one exercise, with the numbers that students see."""
    exercise = exercises.EXERCISES[number - 1]
    files = [(exercise, text.encode()) for text in texts]
    results = grading.tried(files, [grading.SHOWN], limit=60)
    return [grading.summed_up(exercise, result)[:2] for result in results]


def try_all(number):
    """[(right or not, title, what went wrong or "", message)] of all solutions of an exercise."""
    made, out = solutions(number), []
    for (title, _, words), (status, said) in zip(
        made, graded(number, [text for _, text, _ in made])
    ):
        if words is None:
            fault = "" if status == "right" else "rejected"
        else:
            missing = [word for word in words if word.lower() not in said.lower()]
            fault = f"the message lacks {missing}" if missing else ""
            fault = fault if status == "wrong" else f"accepted as {status}"
        out.append((words is None, title, fault, said))
    return out


def main(verbose, numbers):
    results = []
    for number in numbers or [exercise.number for exercise in exercises.EXERCISES]:
        for right, title, fault, message in try_all(number):
            results.append((right, fault))
            if fault or verbose:
                kind, said = "right" if right else "wrong", f" → {fault}" if fault else ""
                print(f"\nexercise {number}, {kind}: {title}{said}\n{message}", flush=True)
    wrong = [fault for right, fault in results if not right]
    right = [fault for right, fault in results if right]
    mute, accepted = (sum(word in fault for fault in wrong) for word in ("lacks", "accepted"))
    print(
        f"{len(wrong)} wrong solutions, {accepted} accepted, {mute} without the right words;"
        f" {len(right)} right but different, {sum(map(bool, right))} rejected"
    )
    return int(any(fault for _, fault in results))


if __name__ == "__main__":
    sys.exit(main("-v" in sys.argv, [int(word) for word in sys.argv[1:] if word.isdigit()]))
