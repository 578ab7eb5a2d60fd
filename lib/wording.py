"""wording.py: what a person would read in an answer: its interval, boxes, letter or phrase.

rewards.py pays content by these readers, whatever the form. Each of them knows several ways of
saying a thing, and the first way that finds anything decides. Where it finds two, nothing is read:
naming many answers must not pay. No pattern here repeats a part that can match in two ways, so
their time grows with the answer's length alone.
"""

import re
from itertools import pairwise

N_BOXES = 8  # frames of a tracking question (VideoChat-R1 §3)
MOST_INTERVALS = 20  # evidence of more of them is not read


def plain(answer):
    """An answer in single spaces, without bold and quotation marks; "" for None."""
    return " ".join(re.sub(r"[*_`\"“”]", " ", answer or "").split())


# A moment is 12.5, 12.5 s, 0:12.5 or 1:02:03; not -12, 12,5, 12 %, 12 minutes, or a part of a word.
CLOCK = r"((?:[0-9]{1,3}:){0,2}[0-9]{1,6}(?:\.[0-9]{1,20})?)(?: ?(?:s|secs?|seconds?)\b)?"
MOMENT = re.compile(
    rf"(?<![\w.,:])(?<!^-)(?<!\W-){CLOCK}(?!\w|[.,:][0-9]| ?(?:%|min|frame))", re.IGNORECASE
)
PAIR = re.compile(rf"[(\[] ?{CLOCK} ?, ?{CLOCK} ?,? ?[)\]]")
BETWEEN = (  # an interval's two moments: a word for "to"; no more than "and the end time is"
    re.compile(r"\.? ?(?:to|until|till|through|[-–—~]) ?", re.IGNORECASE),
    re.compile(
        r" ?[,;]? ?(?:and )?(?:(?:it |the )?end(?:s|ing)?(?: time)?(?: is| at)?)? ?[:=]? ?",
        re.IGNORECASE,
    ),
)


def parse_intervals(answer):
    """All intervals that an answer names, [(start, end), …] in seconds, at most 20; None for none.

    >>> parse_intervals("[(5.2, 10.4), (12, 13.5)]"), parse_intervals("[]")
    ([(5.2, 10.4), (12.0, 13.5)], None)
    """
    answer = PAIR.sub(r" \1 to \2 ", plain(answer))
    moments = list(MOMENT.finditer(answer))
    for between in BETWEEN:
        gaps = enumerate((a.end(), b.start()) for a, b in pairwise(moments))
        found = [i for i, gap in gaps if between.fullmatch(answer, *gap)]
        if found:
            break
    else:
        return None
    if len(found) > MOST_INTERVALS or any(j == i + 1 for i, j in pairwise(found)):  # "1 to 2 to 3"
        return None
    seconds = [sum(60**k * float(n) for k, n in enumerate(m[1].split(":")[::-1])) for m in moments]
    return [(seconds[i], seconds[i + 1]) for i in found]


def parse_interval(answer):
    """The only interval that an answer names, (start, end) in seconds; None for none or two.

    >>> parse_interval("12.54 to 17.83"), parse_interval("It lasts 30 s: from 0:12 to 0:17.5.")
    ((12.54, 17.83), (12.0, 17.5))
    >>> parse_interval("3 to 4 or 7 to 8"), parse_interval(None)
    (None, None)
    """
    found = set(parse_intervals(answer) or [])
    return found.pop() if len(found) == 1 else None


COORDINATE = r" ?(-?[0-9]{1,6}(?:\.[0-9]{1,20})?) ?"
FOUR = re.compile(r"[\[(]" + ",".join([COORDINATE] * 4) + r",? ?[\])]")


def parse_boxes(answer):
    """The eight boxes (x0, y0, x1, y1) that an answer holds; None for another number of them.

    >>> eight = ", ".join(["[0, 0.1, 0.5, 1]"] * 8)
    >>> parse_boxes(f"[{eight},]")[7], parse_boxes("[[0, 0, 1, 1]]")
    ((0.0, 0.1, 0.5, 1.0), None)
    """
    found = [tuple(map(float, box)) for box in FOUR.findall(plain(answer))]
    return found if len(found) == N_BOXES else None


EITHER = re.compile(r"\b[A-Z]\b[).]?(?: or | and | ?[/&] ?)\(?[A-Z]\b")
NAMED = (
    # a letter that is called the answer
    re.compile(r"(?i:answer|option|choice)(?i: is)?[: ] ?\(?([A-Z])\b"),
    # that begins the answer, or has brackets
    re.compile(r"(?:^\(?|\()([A-Z])[).:](?!\w)"),
    # that stands alone, and is not the word "A" or "I"
    re.compile(r"\b(?:A(?= is |[^\w ]| [^a-z]|$)|[B-HJ-Z])\b"),
)


def parse_letter(answer):
    """The only option that an answer names: B of '(B)', 'b.', 'B. a dog', 'The answer is B'.

    >>> parse_letter("B. A dog barks"), parse_letter("A dog barks"), parse_letter("B or C")
    ('B', None, None)
    """
    answer = plain(answer)
    if whole := re.fullmatch(r"\W*([A-Za-z])\W*", answer):
        return whole[1].upper()
    for pattern in NAMED if not EITHER.search(answer) else ():
        if found := set(pattern.findall(answer)):
            return found.pop() if len(found) == 1 else None
    return None


def parse_phrase(answer):
    """A phrase in small letters without marks; of a sentence about low or high quality, its
    verdict.

    >>> parse_phrase("The quality is High."), parse_phrase("not high"), parse_phrase("low or high")
    ('high quality', 'not high', 'low or high')
    """
    words = re.findall(r"[a-z0-9]+", plain(answer).lower())
    verdict = {"low", "high", "not", "isn"}.intersection(words)
    graded = len(verdict) == 1 and verdict <= {"low", "high"}
    return f"{verdict.pop()} quality" if graded else " ".join(words)
