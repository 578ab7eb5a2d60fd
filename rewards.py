"""rewards.py: from a completion's text to its rewards.

The whole teaching signal of this project is in this file, and it is plain Python on strings. Nobody
labels completions and no model judges them: a rule reads the answer and compares it with the truth.

Two properties matter more than cleverness:

- *total*    any string at all gives a number in [0, 1]: a policy under training will produce every
             string you did not think of, and one exception ends a run of days;
- *strict*   what a rule pays for is what the policy becomes. A format rule that accepts two
             <answer> blocks teaches to answer twice.

What a completion looks like, and what it earns for the true interval (12.0, 18.0):

    "<think>She sits down.</think><answer>12.54 to 17.83</answer>"   format 1, iou 0.88
    "<answer>12.54 to 17.83</answer>"                                format 0, iou 0.88
    "<think>...</think><answer>17.83 to 12.54</answer>"              format 1, iou 0
    "I think it happens around 12 seconds."                          format 0, iou 0

(Here a <think> block was asked for. Where it is not, the second earns format 1.) The other tasks
answer with boxes, a letter, a letter and the intervals that show it (in <glue> tags), a phrase, or
a description; `tasks.py` says which task is paid by which rules.

    python -m doctest rewards.py -v      # runs the examples in the docstrings
"""

import re

THINK = r"\s*<think>(.*)</think>"
ANSWER = r"\s*<answer>(.*)</answer>\s*"
GLUE = r"<glue>(.*)</glue>\s*"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>")

# At most six digits before the point: seconds of a video, and never one that overflows a float.
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
INTERVAL = re.compile(rf"\s*({NUMBER})\s+to\s+({NUMBER})\s*")
PAIR = rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)"
INTERVALS = re.compile(rf"\[\s*{PAIR}(?:\s*,\s*{PAIR})*\s*\]")
BOX = rf"\[\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\]"
BOXES = re.compile(rf"\[\s*{BOX}(?:\s*,\s*{BOX})*\s*\]")
N_BOXES = 8  # frames of a tracking question (VideoChat-R1 §3)
MOST_INTERVALS = 20  # an answer with more of them is not read: it earns 0

# ------------------------------------------------------------------------------------------------
# Reading an answer
# ------------------------------------------------------------------------------------------------


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


def inside(text, tag):
    """What stands in the completion's only <tag> block; None where there is none, or more than one.

    >>> inside("<think>hm</think><answer> B </answer>", "answer")
    'B'
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    _, _, rest = text.partition(opening)
    found, closed, _ = rest.partition(closing)
    return found.strip() if closed else None


def parse_interval(answer):
    """'12.54 to 17.83' → (12.54, 17.83) in seconds; None for anything else.

    >>> parse_interval("12.54 to 17.83"), parse_interval("from 3 to 4"), parse_interval(None)
    ((12.54, 17.83), None, None)
    """
    match = INTERVAL.fullmatch(answer or "")
    return (float(match[1]), float(match[2])) if match else None


def parse_intervals(answer):
    """'[(5.2, 10.4), (12, 13.5)]' → [(5.2, 10.4), (12.0, 13.5)]; None for anything else, also for
    more than 20.

    >>> parse_intervals("[(5.2, 10.4), (12, 13.5)]"), parse_intervals("[]")
    ([(5.2, 10.4), (12.0, 13.5)], None)
    """
    if not answer or len(answer) > 1000 or not INTERVALS.fullmatch(answer):
        return None
    found = [(float(a), float(b)) for a, b in re.findall(PAIR, answer)]
    return found if len(found) <= MOST_INTERVALS else None


def parse_boxes(answer):
    """'[[0.1, 0.2, 0.5, 0.6], …]' → eight boxes (x0, y0, x1, y1); None for anything else.

    >>> eight = ", ".join(["[0, 0.1, 0.5, 1]"] * 8)
    >>> parse_boxes(f"[{eight}]")[7], parse_boxes("[[0, 0, 1, 1]]")
    ((0.0, 0.1, 0.5, 1.0), None)
    """
    if not answer or len(answer) > 1000 or not BOXES.fullmatch(answer):
        return None
    found = [tuple(float(v) for v in box) for box in re.findall(BOX, answer)]
    return found if len(found) == N_BOXES else None


def parse_letter(answer):
    """'B', '(B)' or 'B.' → 'B', each bracket and the point being optional; None for anything else.

    >>> parse_letter("(B)"), parse_letter("B or C"), parse_letter("b")
    ('B', None, None)
    """
    match = re.fullmatch(r"\(?([A-Z])\)?\.?", answer or "")
    return match[1] if match else None


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
# Each takes (completion text, true answer, think) and returns a number in [0, 1].
#
# What stands in the only <answer> block (<glue> block, for a gqa's intervals) earns its IoU or its
# accuracy even if the rest of the form is wrong: else a policy that has not found it yet would
# learn nothing.


def grounding_format(text, answer, think):
    """1.0 if the tags are right and the answer reads 'a to b' in seconds, else 0.0 (VideoChat-R1
    §3)."""
    return float(well_formed(text, think) and parse_interval(inside(text, "answer")) is not None)


def grounding_iou(text, answer, think):
    """IoU of the answered interval with the true one (VideoChat-R1 §3)."""
    interval = parse_interval(inside(text, "answer"))
    return temporal_iou(interval, answer) if interval else 0.0


def tracking_format(text, answer, think):
    """1.0 if the tags are right and the answer is a list of eight boxes."""
    return float(well_formed(text, think) and parse_boxes(inside(text, "answer")) is not None)


def tracking_iou(text, answer, think):
    """IoU with the true box, mean over the eight frames; a list of another length earns 0."""
    boxes = parse_boxes(inside(text, "answer"))
    return sum(map(box_iou, boxes, answer)) / N_BOXES if boxes else 0.0


def choice_format(text, answer, think):
    """1.0 if the tags are right and the answer is one letter."""
    return float(well_formed(text, think) and parse_letter(inside(text, "answer")) is not None)


def choice_accuracy(text, answer, think):
    """1.0 for the right letter."""
    return float(parse_letter(inside(text, "answer")) == answer)


def gqa_format(text, answer, think):
    """1.0 for a letter in <answer>, then intervals in <glue>: [(5.2, 10.4), (12.0, 13.5)]."""
    letter, intervals = parse_letter(inside(text, "answer")), parse_intervals(inside(text, "glue"))
    good = well_formed(text, think, glue=True) and letter is not None and intervals is not None
    return float(good)


def gqa_accuracy(text, answer, think):
    """1.0 for the right letter; answer: (letter, intervals)."""
    return choice_accuracy(text, answer[0], think)


def gqa_iou(text, answer, think):
    """IoU of the intervals given as evidence with the annotated ones."""
    return interval_set_iou(parse_intervals(inside(text, "glue")) or [], answer[1])


def phrase_format(text, answer, think):
    """1.0 if the tags are right and the answer is a short phrase."""
    return float(well_formed(text, think) and 0 < len(inside(text, "answer") or "") <= 40)


def phrase_accuracy(text, answer, think):
    """1.0 for the true phrase, capitals aside."""
    return float((inside(text, "answer") or "").lower() == answer.lower())


def caption_format(text, answer, think):
    """1.0 if the tags are right and something is said."""
    return float(well_formed(text, think) and bool(inside(text, "answer")))


# (caption, event) → bool; `--judge MODEL` puts a language model here (annotations/judge.py)
judge = says


def caption_recall(text, answer, think):
    """The share of reference events that the judge finds in the caption (VideoChat-R1 §3); answer:
    a list of events."""
    caption = inside(text, "answer") or ""
    return sum(map(bool, (judge(caption, event) for event in answer))) / len(answer)
