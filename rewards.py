"""rewards.py: from a completion's text to its rewards.

The whole teaching signal of this project is in this file, and it is plain Python on strings. Nobody
labels completions and no model judges them: a rule reads the answer and compares it with the truth.

Two properties matter more than cleverness:

- *total*    any string at all gives a number in [0, 1]: a policy under training will produce every
             string you did not think of, and one exception ends a run of days;
- *strict*   what a rule pays for is what the policy becomes. A format rule that accepts two <answer>
             blocks teaches to answer twice.

What a completion looks like, and what it earns for the true interval (12.0, 18.0):

    "<think>She sits down after the door.</think><answer>12.54 to 17.83</answer>"   format 1, iou 0.88
    "<answer>12.54 to 17.83</answer>"                                              format 0, iou 0.88
    "<think>...</think><answer>17.83 to 12.54</answer>"                            format 1, iou 0
    "I think it happens around 12 seconds."                                        format 0, iou 0

(The second is perfect where thinking is not asked for.)

    python -m doctest rewards.py -v      # runs the examples in the docstrings
"""

import re

THINK_THEN_ANSWER = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
ONLY_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# At most six digits before the point: seconds of a video, and never a number that overflows a float.
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
INTERVAL = re.compile(rf"\s*({NUMBER})\s+to\s+({NUMBER})\s*")


def well_formed(text, think):
    """Does the completion have the tags asked for, each exactly once, with nothing around them?

    think: whether a <think> block must come before the <answer> (True) or must be absent (False).

    >>> well_formed("<think>a</think> <answer>b</answer>", think=True)
    True
    >>> well_formed("<think>a</think><answer>b</answer><answer>c</answer>", think=True)
    False
    >>> well_formed("Sure! <answer>b</answer>", think=False)
    False
    """
    expected = 1 if think else 0
    counts = [text.count(tag) for tag in TAGS]
    return counts == [expected, expected, 1, 1] and bool((THINK_THEN_ANSWER if think else ONLY_ANSWER).fullmatch(text))


def answer_of(text):
    """What stands in the completion's only <answer> block; None where there is none, or more than one.

    >>> answer_of("<think>hm</think><answer> B </answer>")
    'B'
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    before, _, rest = text.partition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if closed else None


def parse_interval(answer):
    """'12.54 to 17.83' → (12.54, 17.83) in seconds; None for anything else.

    >>> parse_interval("12.54 to 17.83"), parse_interval("from 3 to 4"), parse_interval(None)
    ((12.54, 17.83), None, None)
    """
    match = INTERVAL.fullmatch(answer or "")
    return (float(match[1]), float(match[2])) if match else None


def temporal_iou(a, b):
    """Intersection over union of two intervals (start, end) in seconds.

    IoU = max(0, min(ends) − max(starts)) / (max(ends) − min(starts)). An interval that ends where it
    starts, or before, holds nothing: 0. (With both lengths above 0 the union is too, so nothing is
    divided by 0. The hull is the union whenever the intersection is not empty; otherwise IoU is 0.)

    >>> temporal_iou((0, 4), (2, 6))    # 2 seconds of 6
    0.3333333333333333
    >>> temporal_iou((0, 2), (2, 4)), temporal_iou((4, 0), (0, 4)), temporal_iou((1, 1), (1, 1))
    (0.0, 0.0, 0.0)
    """
    (a_start, a_end), (b_start, b_end) = a, b
    if a_end <= a_start or b_end <= b_start:
        return 0.0
    shared = max(0.0, min(a_end, b_end) - max(a_start, b_start))
    return shared / (max(a_end, b_end) - min(a_start, b_start))


def grounding_format(text, answer, think):
    """1.0 if the tags are right and the answer reads 'a to b' in seconds, else 0.0 (VideoChat-R1 §3)."""
    return float(well_formed(text, think) and parse_interval(answer_of(text)) is not None)


def grounding_iou(text, answer, think):
    """IoU of the answered interval with the true one, whatever the tags around it (VideoChat-R1 §3).

    The answer earns its IoU without a <think> block too: else a policy that has not found the format
    yet would learn nothing about time.
    """
    interval = parse_interval(answer_of(text))
    return temporal_iou(interval, answer) if interval else 0.0


# task → {name: rule}. A rule takes (completion text, true answer, think) and returns a number in [0, 1].
REWARDS = {
    "grounding": {"format": grounding_format, "iou": grounding_iou},
}


def score(task, text, answer, think):
    """All rewards of one completion by name; the completion's reward is their sum.

    Args:    task: a key of REWARDS; text: the completion as decoded, without its end-of-turn token;
             answer: Example.answer; think: whether the prompt asked for a <think> block.

    >>> score("grounding", "<think>ok</think><answer>0.0 to 4.0</answer>", (2, 6), think=True)
    {'format': 1.0, 'iou': 0.3333333333333333}
    """
    return {name: rule(text, answer, think) for name, rule in REWARDS[task].items()}
