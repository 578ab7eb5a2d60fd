"""loose.py: training with a rule that is easier to please than it should be (docs/experiments.md).

    python -m course.loose format --steps 40 --out runs/loose-format    # any <answer> is enough
    python -m course.loose iou --steps 40 --out runs/loose-iou          # seconds covered, no union

The first word names the rule of grounding that is replaced, the others are train.py's flags.
eval.py scores with the true rules: what the run was paid for and what it can do are two numbers.
"""

import sys

import train
from lib.errors import BadInput, run_program
from rewards import inside, parse_interval
from tasks import TASKS


def any_answer_tag(text, answer, think):
    """1.0 for every completion that opens an <answer>, whatever else it holds."""
    return float("<answer>" in text)


def seconds_covered(text, answer, think):
    """The share of the true interval that the answered one covers: IoU without its union.

    >>> seconds_covered("<answer>0.0 to 99.0</answer>", (2.0, 6.0), think=False)
    1.0
    """
    said = parse_interval(inside(text, "answer"))
    if said is None:
        return 0.0
    shared = max(0.0, min(said[1], answer[1]) - max(said[0], answer[0]))
    return shared / (answer[1] - answer[0])


RULES = {"format": any_answer_tag, "iou": seconds_covered}


def start():
    if len(sys.argv) < 2 or sys.argv[1] not in RULES:
        raise BadInput(f"say which rule is loosened, before train.py's flags: {', '.join(RULES)}")
    name = sys.argv.pop(1)
    TASKS["grounding"].rules[name] = RULES[name]
    print(f"grounding's rule {name} is {RULES[name].__name__} in this run")
    train.main()


if __name__ == "__main__":
    run_program(start)
