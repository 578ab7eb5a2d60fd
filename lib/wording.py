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
ON_OFFER = 5  # options of a question whose options are not known: A to E
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOT = r"\b(?:not|never|neither|nor|cannot|[a-z]{2,6}n['’]t)\b"


def plain(answer):
    """An answer in single spaces, without bold and quotation marks; "" for None."""
    return " ".join(re.sub(r"[*_`\"“”]", " ", answer or "").split())


def sentences(text):
    """A text's sentences, without their full stops.

    >>> sentences("A boy waits 2.5 seconds. Then he runs!")
    ['A boy waits 2.5 seconds', 'Then he runs']
    """
    parts = (part.strip() for part in re.split(r"[.;!?]+(?:\s|$)|\n", str(text)))
    return [part for part in parts if part]


# ------------------------------------------------------------------------------------------------
# Intervals: moment, joiner, moment
# ------------------------------------------------------------------------------------------------

# A moment is 12.5, 12.5 s, 0:12.5, 1:02:03, 1m5s, 1 minute 5 seconds or 12th second; not -12, 12,5,
# 12 %, 12 minutes, frame 12 or a part of a word.
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,20})?"
UNIT = r"(?:st|nd|rd|th)?[ -]?(?:s|secs?|seconds?)\b"
CLOCK = rf"((?:[0-9]{{1,3}}:){{0,2}}{NUMBER})(?:{UNIT})?"
HOURS = r"(?:([0-9]{1,2}) ?h(?:ours?)? ?)?"
SPELT = rf"{HOURS}([0-9]{{1,3}}) ?m(?:ins?|inutes?)?,? ?(?:and )?({NUMBER}){UNIT}"
MOMENT = re.compile(
    rf"(?<![\w.,:])(?<!^-)(?<!\W-)(?<!frame )(?<!frames )(?:{SPELT}|{CLOCK})"
    r"(?!\w|[.,:][0-9]| ?(?:%|min|frame))"
)
PAIR = re.compile(rf"[(\[] ?{CLOCK} ?, ?{CLOCK} ?,? ?[)\]]")
LIST_NUMBER = re.compile(
    r"^\W{0,3}[0-9]{1,2}[.)](?=\s+\W{0,3}\w)(?!\s+(?:to|and|until|till|through)\b)", re.MULTILINE
)

# Words that change nothing between two moments, and the joiners that the rest has to be. The first
# joiner that is found anywhere decides: "to", then "ends at", then "and" or a comma.
ABOUT = r"(?:about|around|approximately|approx\.?|roughly|[~≈])"
FILLER = re.compile(
    r"\b(?:about|around|approximately|approx\b\.?|roughly|the|at|is|was|mark|seconds?|into|in|of"
    r"|video|clip|time|timestamp|event|action|it|on)\b|\((?:start|end)\)|[:={}()\[\]≈]"
)
AND = r"[.,;]{0,2} ?(?:and )?(?:then )?"
TO = r"(?:to|until|till|through|[-–—~→]|-{0,2}>)"
JOINERS = (
    re.compile(rf"{AND}(?:lasts |lasting |continues )?(?:up )?{TO}(?: end)?(?: ?~)?"),
    re.compile(rf"{AND}(?:end(?:s|ed|ing)?|finish(?:es|ed)?|stop(?:s|ped)?)(?: ?~)?"),
    re.compile(rf"[,;]? ?(?:and|&)? ?{ABOUT}?"),
)
OF = re.compile(r"(?:out )?of|/")
START = re.compile(r"\b(?:start|begin)(?:s|ing|ning)?$")
CLAUSE = re.compile(r"[.;!?] |\bbut\b|\binstead\b")
DENIED = re.compile(r" ?(?:is|are|was|would be)(?:n['’]t| not| wrong| incorrect)\b")


def joined(gaps):
    """Which moments end an interval: indices into the words before each moment."""
    fewer = [" ".join(FILLER.sub(" ", gap).split()) for gap in gaps]
    bare = [gap.strip() for gap in gaps]
    for joiner, between in zip(JOINERS, (fewer, fewer, bare)):
        found = [i for i in range(1, len(gaps)) if joiner.fullmatch(between[i])]
        if joiner is JOINERS[-1] and len(gaps) > 2:  # nothing between them, but others around them
            found = [i for i in found if bare[i]]
        if found:
            break
    starts = [i + 1 for i, gap in enumerate(fewer) if START.search(gap)]
    chained = any(j == i + 1 for i, j in pairwise(found))  # "1 to 2 to 3", "12 of 30 s to 18"
    chained |= any(OF.fullmatch(bare[i - 1]) for i in found)
    other = joiner is JOINERS[1] and starts and starts != found  # "step 1 start 5 step 2 end 9"
    return [] if chained or other or len(found) > MOST_INTERVALS else found


def seconds(moment):
    """A match of MOMENT in seconds."""
    hours, minutes, rest, clock = moment.groups()
    units = clock.split(":") if clock else [hours or 0, minutes, rest]
    return sum(60**k * float(n) for k, n in enumerate(units[::-1]))


def parse_intervals(answer):
    """All intervals that an answer names, [(start, end), …] in seconds, at most 20; None for none.

    >>> parse_intervals("[(5.2, 10.4), (12, 13.5)]"), parse_intervals("[]")
    ([(5.2, 10.4), (12.0, 13.5)], None)
    """
    answer = plain(LIST_NUMBER.sub(" ", answer or "")).lower()
    answer = re.sub(r"'(?!\w)|(?<!\w)'", "", answer)  # ['00:12', '00:18']
    answer = PAIR.sub(r" \1 to \2 ", answer)
    moments = list(MOMENT.finditer(answer))
    ends = [0, *(m.end() for m in moments)]
    found, read, denied = joined([answer[a : m.start()] for a, m in zip(ends, moments)]), [], False
    at = 0  # where the interval before ends: a denial in between holds up to the clause's end
    for i in found:
        *earlier, clause = CLAUSE.split(answer[at : moments[i - 1].start()])
        at, denied = moments[i].end(), bool(re.search(NOT, clause)) or (denied and not earlier)
        if not denied and not DENIED.match(answer, at):
            read.append((seconds(moments[i - 1]), seconds(moments[i])))
    return read or None


def parse_interval(answer):
    """The only interval that an answer names, (start, end) in seconds; None for none or two.

    >>> parse_interval("12.54 to 17.83"), parse_interval("It lasts 30 s: from 0:12 to 0:17.5.")
    ((12.54, 17.83), (12.0, 17.5))
    >>> parse_interval("3 to 4 or 7 to 8"), parse_interval("not 3 to 4"), parse_interval(None)
    (None, None, None)
    """
    found = set(parse_intervals(answer) or [])
    return found.pop() if len(found) == 1 else None


COORDINATE = rf"(-?(?:{NUMBER}|\.[0-9]{{1,20}}))"
KEYS = ("x[01]|left", "y[01]|top", "x[12]|right", "y[12]|bottom")  # of a box as a dictionary
NUMBERS = " ?, ?".join(rf"(?:'?(?:{key}) ?'? ?: ?)?{COORDINATE}" for key in KEYS)
FOUR = re.compile(rf"[\[({{] ?{NUMBERS} ?,? ?[\])}}]")


def parse_boxes(answer):
    """The eight boxes (x0, y0, x1, y1) that an answer holds; None for another number of them.

    The question's box may be told once more before the eight.

    >>> eight = ", ".join(["[0, 0.1, 0.5, 1]"] * 8)
    >>> parse_boxes(f"[{eight},]")[7], parse_boxes("[[0, 0, 1, 1]]")
    ((0.0, 0.1, 0.5, 1.0), None)
    """
    answer = plain(answer)
    matches = list(FOUR.finditer(answer))
    found = [tuple(map(float, m.groups())) for m in matches]
    if len(found) == N_BOXES + 1 and found[0] == found[1]:
        between = answer[matches[0].end() : matches[1].start()]
        found = found[1:] if re.search("[a-z]", between, re.IGNORECASE) else found
    return found if len(found) == N_BOXES else None


# ------------------------------------------------------------------------------------------------
# Letters and phrases
# ------------------------------------------------------------------------------------------------

NAMED = (
    # what is called the answer, in words or by a line of its own ...
    re.compile(
        r"(?i:answer|(?:correct|right|best) (?:option|choice))"
        r"(?: is| would be| should be| must be)?[:=]? ?(?:[Oo]ption |[Cc]hoice )?"
        r"\(?(?:([A-Z])\b|([a-z])(?=[).,]|\W{0,3}$))"
        r"|\b([A-Z])\)? (?:is|must be)(?: the)? (?:correct|right|best|answer)\b"
        r"|boxed\{\(?([A-Z])\)?\}|^[^\w\n]{0,5}([A-Za-z])[^\w\n]{0,5}$",
        re.MULTILINE,
    ),
    re.compile(r"\A\W{0,3}([A-Za-z])[).:](?!\w)"),  # ... what begins the answer ...
    re.compile(r"\(([A-Z])\)"),  # ... what has brackets ...
    # ... what stands alone, and is no word ("A dog", "I") or a part of one ("T-shirt")
    re.compile(r"(?<![\w'’-])(A(?= is | [^a-z]|[^\w '’-]|$)|[B-HJ-Z](?![\w'’-]))"),
)
LABEL = re.compile(r"(?:^|\s)\(?([A-Z])[).:] ", re.MULTILINE)
DENIED_LETTER = (
    re.compile(rf"(?i:{NOT}|\bthan\b|\bof\b)(?: be| the| option| answer)* ?\(?$"),
    re.compile(r"\)? ?(?:is|would be|can)(?:n['’]t| ?not| wrong| incorrect| false)\b"),
)
OR = r"[).]{0,2},?(?: or | and | ?[/&] ?)(?:option )?\(?"
HEDGED = (
    re.compile(rf"\b([A-Z]){OR}$"),
    re.compile(rf"(?:{OR}|, \(?(?=[A-Z]\W*\Z))([A-Z])\b(?! is)"),
)


class Letter(str):
    """The letter of the right option, which knows how many options there are: a str to all else."""

    def __new__(cls, letter, on_offer):
        made = super().__new__(cls, "" + letter)  # a number is no letter
        made.on_offer = on_offer
        return made


def beside(patterns, text, match):
    """Matches of patterns (before, after) directly before and after the letter of a NAMED match."""
    start, end = match.span(match.lastindex)
    return patterns[0].search(text[max(0, start - 40) : start]), patterns[1].match(text, end)


def parse_letter(answer, on_offer=ON_OFFER):
    """The only option that an answer names: B of '(B)', 'b.', 'B. a dog', 'The answer is B'.

    on_offer: how many options there are; a letter beyond them is no answer.

    >>> parse_letter("B. A dog barks"), parse_letter("A dog barks"), parse_letter("B or C")
    ('B', None, None)
    >>> parse_letter("It is B, not C"), parse_letter("C", on_offer=2)
    ('B', None)
    """
    text = "\n".join(filter(None, map(plain, (answer or "").splitlines())))
    listed = LABEL.findall(text)[:2] == ["A", "B"]  # the question's options, told once more
    offered = set(LETTERS[:on_offer])
    for pattern in NAMED:
        if listed and pattern in NAMED[1:3]:
            continue
        found = {}
        for match in pattern.finditer(text):
            letter = match[match.lastindex].upper()
            if letter in offered and not any(beside(DENIED_LETTER, text, match)):
                found.setdefault(letter, []).append(match)
        if found:
            ((letter, matches), *others) = found.items()
            hedges = [other[1] for m in matches for other in beside(HEDGED, text, m) if other]
            return None if others or offered.intersection(hedges) - {letter} else letter
    return None


def parse_phrase(answer):
    """A phrase in small letters without marks. A sentence about low or high quality becomes its
    verdict.

    >>> parse_phrase("The quality is High."), parse_phrase("not high"), parse_phrase("low or high")
    ('high quality', 'not high', 'low or high')
    """
    words = re.findall(r"[a-z0-9]+", plain(answer).lower())
    verdict = {"low", "high", "not", "isn"}.intersection(words)
    graded = len(verdict) == 1 and verdict <= {"low", "high"}
    return f"{verdict.pop()} quality" if graded else " ".join(words)
