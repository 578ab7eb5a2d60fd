"""thoughts.py: what the toy's thoughts say already, read by a rule.

The toy base knows more than it answers (toy/base.py): its thoughts name the seconds in which a
thing is visible, or where it is. Answers made from these thoughts by a rule, without the model's
own answer, earn what GRPO could reach by no more than writing down what was thought. A score that
does not exceed this was not gained by seeing better.
"""

import re

from evaluation.predictions import rewards_of
from tasks import boxes_text

SECONDS = re.compile(r": ((?:\d+ ?)+)$")  # "red circle: 4 5 6"
CENTRE = re.compile(r"(\d\.\d+) (\d\.\d+)")  # "0.35 0.62; 0.41 0.62"


def seconds_in(thought):
    """[(4.0, 7.0)] of "… red circle: 4 5 6": the seconds named, each a second long; [] of none."""
    found = SECONDS.search(thought.strip())
    seconds = [int(s) for s in found[1].split()] if found else []
    return [(float(min(seconds)), max(seconds) + 1.0)] if seconds else []


def boxes_in(thought, given):
    """Eight boxes around the centres named, each as large as the given one; [] of fewer."""
    half = (given[2] - given[0]) / 2, (given[3] - given[1]) / 2
    centres = [(float(x), float(y)) for x, y in CENTRE.findall(thought)]
    boxes = [(x - half[0], y - half[1], x + half[0], y + half[1]) for x, y in centres]
    return boxes if len(boxes) == 8 else []


def letter_in(thought, options):
    """B of "two; red circle: 4 5 6" where option B is "two"; nothing where no option is named."""
    said = thought.replace("<think>", "").partition(";")[0].strip()
    return "ABCDEF"[options.index(said)] if said in options else ""


def answer_of(task, record, options):
    """The completion whose answer is what this record's thought says."""
    thought = record["text"].rpartition("</think>")[0]
    if task == "tracking":
        return f"<answer>{boxes_text(boxes_in(thought, record['answer'][0]))}</answer>"
    seconds = seconds_in(thought)
    if task == "gqa":
        return f"<answer>{letter_in(thought, options)}</answer><glue>{seconds}</glue>"
    return " ".join(f"<answer>{start} to {end}</answer>" for start, end in seconds)


def told(task, records, options):
    """These predictions, {id: record}, as they would be had the model answered what it thought.
    options: {id: those of the question}, for gqa."""
    made = {}
    for name, record in records.items():
        text = answer_of(task, record, options.get(name, ()))
        made[name] = record | {"text": text} | rewards_of(task, text, record["answer"], think=False)
    return made
