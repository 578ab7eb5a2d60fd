"""rewards.py: from a completion's text to its rewards.

The whole teaching signal of this project is in this file, and it is plain Python on strings. Nobody
labels completions and no model judges them: a rule reads the answer and compares it with the truth.

An answer is read twice, because form and content ask for opposite things:

- *form*     is read strictly, because the policy learns whatever a rule pays for: a format rule
             that accepts two <answer> blocks teaches it to answer twice;
- *content*  is read as a person would. "From 12.5 s to 17.8 s." says when, in whatever form. A
             model that was never taught the form would otherwise score too low, and all that
             training seems to gain would be obedience.

Both are *total*: any string at all gives a number in [0, 1], in time that grows with its length
alone. A policy under training will produce every string you did not think of, and one exception
ends a run of days.

Four completions, and their rewards for the true interval (12.0, 18.0):

    "<think>She sits down.</think><answer>12.54 to 17.83</answer>"   format 1, iou 0.88
    "<answer>It happens from 12.54 to 17.83 seconds.</answer>"       format 0, iou 0.88
    "<think>...</think><answer>17.83 to 12.54</answer>"              format 1, iou 0
    "<think>...</think><answer>12 to 18, or 20 to 25</answer>"       format 0, iou 0

The other tasks answer with boxes, a letter, a letter and the intervals that show it (in <glue>
tags), a phrase, or a description; `tasks.py` says which task is paid by which rules.

    python -m doctest rewards.py -v      # runs the examples in the docstrings
"""

import re

from lib.wording import (
    MOST_INTERVALS,
    N_BOXES,
    ON_OFFER,
    parse_boxes,
    parse_interval,
    parse_intervals,
    parse_letter,
    parse_phrase,
)

# ------------------------------------------------------------------------------------------------
# Form, exactly as it was asked for
# ------------------------------------------------------------------------------------------------

THINK = r"\s*<think>(.*)</think>"
ANSWER = r"\s*<answer>(.*)</answer>\s*"
GLUE = r"<glue>(.*)</glue>\s*"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>")

# At most six digits before the point: seconds of a video, and never one that overflows a float.
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
PAIR = rf"\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)"
BOX = r"\[\s*" + r"\s*,\s*".join([NUMBER] * 4) + r"\s*\]"
SHORT = r"(?=[\s\S]{0,1000}\Z)"  # a list of more than 1,000 characters is none

INTERVAL = re.compile(rf"{NUMBER}\s+to\s+{NUMBER}")
INTERVALS = re.compile(rf"{SHORT}\[\s*{PAIR}(\s*,\s*{PAIR}){{0,{MOST_INTERVALS - 1}}}\s*\]")
BOXES = re.compile(rf"{SHORT}\[\s*{BOX}(\s*,\s*{BOX}){{{N_BOXES - 1}}}\s*\]")
LETTER = re.compile(r"\(?[A-Z]\)?\.?")
PHRASE = re.compile(r"[\s\S]{1,40}")
ANYTHING = re.compile(r"[\s\S]+")


def well_formed(text, think, glue=False):
    """Does the completion have the tags asked for, each exactly once, with nothing around them?

    think: whether a <think> block must come before the <answer> (True) or must be absent (False);
    glue: the same for a <glue> block after it.

    >>> well_formed("<think>a</think> <answer>b</answer>", think=True)
    True
    >>> well_formed("<think>a</think><answer>b</answer><answer>c</answer>", think=True)
    False
    >>> well_formed("Sure! <answer>b</answer>", think=False)
    False
    """
    expected = [int(think)] * 2 + [1] * 2 + [int(glue)] * 2
    pattern = (THINK if think else "") + ANSWER + (GLUE if glue else "")
    return [text.count(tag) for tag in TAGS] == expected and bool(
        re.fullmatch(pattern, text, re.DOTALL)
    )


def in_form(text, think, answer, glue=None):
    """1.0 if the tags are right and what is inside them matches the patterns, else 0.0."""
    good = well_formed(text, think, glue is not None)
    good = good and answer.fullmatch(inside(text, "answer"))
    return float(bool(good and (glue is None or glue.fullmatch(inside(text, "glue")))))


# ------------------------------------------------------------------------------------------------
# Content, as a person would read it
# ------------------------------------------------------------------------------------------------
# The readers parse_… are in lib/wording.py. They read what stands inside the tags: of a policy
# in training an answer without tags earns nothing. (An evaluation is more generous to models that
# were never taught them: evaluation.predictions.with_tags.)


def inside(text, tag):
    """What stands in the completion's only <tag> block; None where there is none, or more than one.

    A thought may name the tags: blocks in it count only where there is none outside.

    >>> inside("<think>in <answer> tags, B</think><answer> B </answer>", "answer")
    'B'
    """
    before, _, rest = text.partition("<think>")
    _, closed, after = rest.rpartition("</think>")
    for part in (before + after if closed else text, text):
        if part.count(f"<{tag}>") == 1 == part.count(f"</{tag}>"):
            found, closed, _ = part.partition(f"<{tag}>")[2].partition(f"</{tag}>")
            return found.strip() if closed else None
    return None


# ------------------------------------------------------------------------------------------------
# Comparing it with the truth
# ------------------------------------------------------------------------------------------------


def temporal_iou(a, b):
    """Intersection over union of two intervals (start, end) in seconds.

    IoU = max(0, min(ends) − max(starts)) / (max(ends) − min(starts)). An interval that ends where
    it starts, or before, holds nothing: 0. (With both lengths above 0 the union is too, so nothing
    is divided by 0. The hull is the union whenever the intersection is not empty; otherwise IoU is
    0.)

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


def merged(intervals):
    """The same seconds as intervals that do not overlap, in order; empty and reversed ones left
    out.

    >>> merged([(5, 7), (1, 3), (2, 4), (9, 8)])
    [(1, 4), (5, 7)]
    """
    out = []
    for start, end in sorted(interval for interval in intervals if interval[1] > interval[0]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def interval_set_iou(a, b):
    """Seconds in both sets of intervals over seconds in either (the evidence reward of
    VideoChat-R1's gqa).

    >>> interval_set_iou([(0, 2), (4, 6)], [(1, 5)])    # 1–2 and 4–5 of 0–6
    0.3333333333333333
    """
    a, b = merged(a), merged(b)
    shared = sum(
        max(0.0, min(a_end, b_end) - max(a_start, b_start))
        for a_start, a_end in a
        for b_start, b_end in b
    )
    either = sum(end - start for start, end in merged(a + b))
    return shared / either if either > 0 else 0.0


def box_iou(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1), normalised to the frame.

    What lies outside the frame, or is turned inside out, counts for nothing.

    >>> box_iou((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)), box_iou((0.5, 0.5, 0, 0), (0, 0, 1, 1))
    (0.3333333333333333, 0.0)
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        [min(1.0, max(0.0, v)) for v in box] for box in (a, b)
    )
    area_a, area_b = (
        max(0.0, ax1 - ax0) * max(0.0, ay1 - ay0),
        max(0.0, bx1 - bx0) * max(0.0, by1 - by0),
    )
    if area_a == 0 or area_b == 0:
        return 0.0
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return min(1.0, shared / (area_a + area_b - shared))


STOP_WORDS = frozenset(
    "a an the and or of in on at to from with by for is are was were be been it its this that "
    "there then he she they his her their as".split()
)


def content_words(text):
    """The words that carry meaning, without endings: a crude stem, enough to match "moves" with
    "moving".

    >>> sorted(content_words("The boy moves, then he is jumping."))
    ['boy', 'jump', 'mov']
    """
    words = re.findall(r"[a-z0-9]+", text.lower()[:20000])
    return {
        re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word) for word in words if word not in STOP_WORDS
    }


def says(caption, event):
    """The embedded judge: does one sentence of the caption hold three quarters of the event's
    content words?

    It knows no synonyms and no negation. It is here because it is deterministic, needs no second
    model and can be understood; `--judge MODEL` asks a language model instead.

    >>> event = "a boy kicking a red ball"
    >>> says("A dog runs. A boy kicks the red ball.", event), says("A boy runs.", event)
    (True, False)
    """
    wanted = content_words(event)
    sentences = re.split(r"[.;!?\n]", caption[:20000])
    return bool(wanted) and any(
        len(wanted & content_words(sentence)) >= 0.75 * len(wanted) for sentence in sentences
    )


# ------------------------------------------------------------------------------------------------
# The rules
# ------------------------------------------------------------------------------------------------
# Each takes (completion text, true answer, think) and returns a number in [0, 1] (VideoChat-R1 §3).
#
# Content earns its IoU or its accuracy even if the form is wrong: else a policy that has not found
# the form yet would learn nothing.


def grounding_format(text, answer, think):
    """'12.54 to 17.83' in <answer>."""
    return in_form(text, think, INTERVAL)


def grounding_iou(text, answer, think):
    """IoU of the answered interval with the true one."""
    interval = parse_interval(inside(text, "answer"))
    return temporal_iou(interval, answer) if interval else 0.0


def tracking_format(text, answer, think):
    """A list of eight boxes in <answer>."""
    return in_form(text, think, BOXES)


def tracking_iou(text, answer, think):
    """IoU with the true box, mean over the eight frames; another number of boxes earns 0."""
    boxes = parse_boxes(inside(text, "answer"))
    return sum(map(box_iou, boxes, answer)) / N_BOXES if boxes else 0.0


def choice_format(text, answer, think):
    """One letter in <answer>."""
    return in_form(text, think, LETTER)


def choice_accuracy(text, answer, think):
    """1.0 for the right letter; answer: it, as a Letter where it is known how many are on offer."""
    on_offer = getattr(answer, "on_offer", ON_OFFER)
    return float(parse_letter(inside(text, "answer"), on_offer) == answer)


def gqa_format(text, answer, think):
    """A letter in <answer>, then intervals in <glue>: [(5.2, 10.4), (12.0, 13.5)]."""
    return in_form(text, think, LETTER, INTERVALS)


def gqa_accuracy(text, answer, think):
    """1.0 for the right letter; answer: (letter, intervals)."""
    return choice_accuracy(text, answer[0], think)


def gqa_iou(text, answer, think):
    """IoU of the intervals given as evidence with the annotated ones."""
    return interval_set_iou(parse_intervals(inside(text, "glue")) or [], answer[1])


def phrase_format(text, answer, think):
    """A short phrase in <answer>."""
    return in_form(text, think, PHRASE)


def phrase_accuracy(text, answer, think):
    """1.0 for the true phrase."""
    return float(parse_phrase(inside(text, "answer")) == parse_phrase(answer))


def caption_format(text, answer, think):
    """Anything in <answer>."""
    return in_form(text, think, ANYTHING)


# (caption, event) → bool; `--judge MODEL` puts a language model here (annotations/judge.py)
judge = says


def caption_recall(text, answer, think):
    """The share of reference events that the judge finds in the caption; answer: a list of
    events."""
    caption = inside(text, "answer") or ""
    return sum(map(bool, (judge(caption, event) for event in answer))) / len(answer)
