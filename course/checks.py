"""checks.py: the cases that `python -m course check` tries, and what a failure usually means.

Each exercise is a list of cases, the smallest first. A case is a call, what it should give, and the
mistake that usually makes it fail; the student sees the first case that fails. What a call should
give is written down by hand or comes from a slow_ function, which computes it in another way than
the project does: intervals stretch by stretch, tensors by loops over Python floats, sampling
without a cache. So the checks test the reference, too.

Inputs are of every kind that a function may meet: large and small, not on a grid, with other values
of whatever is a parameter. What is easily overlooked by a student must not be overlooked here.
"""

import copy
import functools
import itertools
import math
import random
import statistics
from dataclasses import dataclass, field

import numpy as np
import torch

import grpo
import rewards


class Wrong(Exception):
    """str() is what the student reads."""


class Unfit(Wrong):
    """There is nothing to compare; the text says all."""


class Broken(Exception):
    """The check itself failed, which is no fault of the student's."""


def called_alone(function, *args):
    return function(*args)


@dataclass
class Case:
    args: tuple
    want: object  # what the call should give, or a slow_ function that computes it from args
    usually: str  # the mistake that usually fails this case
    # {what a known mistake gives here: that mistake}. The key is a number, a tuple of numbers, or
    # (label, numbers) where only the part of that name tells.
    known: dict = field(default_factory=dict)
    name: str = ""  # of the function, where an exercise has two
    call: object = called_alone  # calls the function and gives what is compared with `want`
    shown: str = ""  # the call as text, where args do not say it

    def expected(self):
        return self.want(*copy.deepcopy(self.args)) if callable(self.want) else self.want


def as_text(case, name):
    """The call as the student reads it; name: of the function."""
    return case.shown or f"{name}({', '.join(map(show, case.args))})"


def try_case(case, function, want):
    """Raises Wrong if the function does not give `want`, or changes its arguments."""
    called = f"  called   {as_text(case, function.__name__)}\n"
    args = copy.deepcopy(case.args)
    try:
        got = case.call(function, *args)
    except Broken:
        raise
    except Unfit as e:
        raise Wrong(f"{called}{e}") from None
    except Exception as e:  # Wrong, or what came back was no value that one can compute with
        said = str(e) if isinstance(e, Wrong) else f"  {type(e).__name__}: {e}"
        raise Wrong(f"{called}{said}\n  usually  {case.usually}") from None
    if different := difference(got, want):
        label, got, want, note = different
        usually = known_mistake(case, label, got) or case.usually
        label = label and label + ": "
        raise Wrong(
            f"{called}  expected {label}{show(want)}\n  got      {label}{show(got)}\n"
            + (f"  that is  {note}\n" if note else "")
            + f"  usually  {usually}"
        )
    for before, after in zip(case.args, args):
        if difference(after, before):
            raise Wrong(
                f"{called}  your function changed its argument from {show(before)} to {show(after)}"
                "\n  usually  an operation in place (+=, x[…] = …, .sort(), a method whose name"
                " ends in _): the caller still needs its values"
            )


def known_mistake(case, label, got):
    """The known mistake that gives these numbers, or None."""
    mistake = None
    for key, text in case.known.items():
        labelled = isinstance(key, tuple) and isinstance(key[0], str)
        where, values = key if labelled else (label, key)
        values = values if isinstance(values, tuple) else (values,)
        if where == label and close(flat(got), values, 1e-6):
            mistake = text
    return mistake


def need(condition, text):
    if not condition:
        raise Unfit(f"  {text}")


def difference(got, want):
    """None, or (what differs, that part of got and of want, a note or None).

    Numbers may differ by rounding. They may be Python's, numpy's, or tensors without dimensions,
    and of 32 or 64 bits.
    """
    if isinstance(want, dict):
        return next(((k, *d[1:]) for k in want if (d := difference(got.get(k), want[k]))), None)
    if got is None and want is not None:
        return "", got, want, "no value at all: a return is missing"
    if isinstance(want, torch.Tensor):
        note = wrong_tensor(got, want)
        same = not note and close(flat(got), flat(want), tolerance(got, want))
        return None if same else ("", got, want, note)
    if isinstance(want, (tuple, list)):
        same = isinstance(got, (tuple, list)) and len(got) == len(want)
        same = same and not any(difference(g, w) for g, w in zip(got, want))
        return None if same else ("", got, want, None)
    single, got = tolerance(got, want), as_python(got)
    note = wrong_kind(got, want)
    same = not note and close([got], [want], single)
    return None if same else ("", got, want, note)


def tolerance(got, want):
    """How far numbers may be apart, relative to those above 1.

    float32 has seven digits, and fewer are left where two numbers have been subtracted: of rewards
    made of seconds with three digits, or where the check itself computes in float32.
    """
    if getattr(want, "dtype", None) == torch.float32:
        return 2e-4
    if "float32" not in str(getattr(got, "dtype", "")):
        return 1e-6
    return 1e-5 if isinstance(want, torch.Tensor) else 5e-5


def as_python(x):
    """A number of numpy's or torch's as Python's own; anything else as it is."""
    is_array = isinstance(x, (torch.Tensor, np.ndarray, np.generic))
    return x.item() if is_array and x.ndim == 0 else x


def wrong_kind(got, want):
    """What is wrong with the type of a single value; None if it is of the kind of `want`."""
    if isinstance(want, bool) and not isinstance(got, bool):
        return f"a {type(got).__name__}, and True or False is asked for: bool(…) makes it one"
    if isinstance(want, (int, float)) and not isinstance(got, (int, float)):
        return f"a {type(got).__name__}, and a number is asked for"
    return None


def wrong_tensor(got, want):
    """What is wrong with the type, shape or dtype of `got`; None if it is a tensor like `want`."""
    if not isinstance(got, torch.Tensor):
        return f"a {type(got).__name__}, and a tensor is asked for"
    if got.shape != want.shape:
        return (
            f"the shape {tuple(got.shape)}, and {tuple(want.shape)} is asked for: a dimension was"
            " summed up or lost (dim=, keepdim=), or two were broadcast"
        )
    floats = (torch.float32, torch.float64)
    if got.dtype != want.dtype and not (got.dtype in floats and want.dtype in floats):
        return f"the dtype {got.dtype}, and {want.dtype} is asked for"
    return None


def flat(x):
    if isinstance(x, torch.Tensor):
        return x.detach().double().flatten().tolist()
    return [v for part in x for v in flat(part)] if isinstance(x, (tuple, list)) else [x]


def close(a, b, tolerance):
    def same(x, y):
        numbers = isinstance(x, (int, float)) and isinstance(y, (int, float))
        return x == y or numbers and abs(x - y) <= tolerance * max(1.0, abs(y))

    return len(a) == len(b) and all(map(same, a, b))


def show(x):
    """A value, short enough for a terminal."""
    if isinstance(x, torch.Tensor):
        x = (x.int() if x.dtype == torch.bool else x).tolist()
    if isinstance(x, (list, tuple)):
        inside = ", ".join(map(show, x))
        text = f"[{inside}]" if isinstance(x, list) else f"({inside})"
    else:
        text = f"{x:.6g}" if isinstance(x, float) else getattr(x, "__name__", None) or repr(x)
    return text if len(text) <= 260 else text[:230] + f" … ({len(text) - 230} more characters)"


def step(rng, low, high):
    """A length from 10^low to 10^high, as often short as long."""
    return 10 ** rng.uniform(low, high)


def numbers(rng, *shape, low=-3.0, high=0.0, dtype=torch.float64):
    """Random numbers that are the same on every machine."""
    return torch.tensor(
        [rng.uniform(low, high) for _ in range(math.prod(shape))], dtype=dtype
    ).view(shape)


def t(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def gradients(value, *inputs):
    """d value / d inputs; 0 where the value does not depend on them."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


# ------------------------------------------------------------------------------------------------
# 1, 2, 4: overlaps. Slowly: cut at every end that there is, and added up stretch by stretch
# ------------------------------------------------------------------------------------------------


def stretches(*intervals):
    """What lies between neighbouring ends: inside an interval as a whole, or outside."""
    return list(itertools.pairwise(sorted({x for interval in intervals for x in interval})))


def covered(cut, intervals):
    return {p for p in cut if any(start <= p[0] and p[1] <= end for start, end in intervals)}


def length(cut):
    return float(sum(high - low for low, high in cut))


def slow_temporal_iou(a, b):
    cut = stretches(a, b)
    a, b = covered(cut, [a]), covered(cut, [b])
    return length(a & b) / length(a | b) if a | b else 0.0


NO_STEPS = "times are any numbers: not counted in steps, not rounded, and there is no threshold"


def temporal_iou_cases():
    def case(a, b, usually, known=None):
        return Case((a, b), slow_temporal_iou, usually, known or {})

    yield case(
        (0, 4),
        (2, 6),
        "the intersection goes from the later start to the earlier end; what it is divided by is"
        " the union, 0 to 6 here",
        {
            0.25: (
                "the union holds the shared seconds once: the sum of the lengths minus the"
                " intersection"
            ),
            0.5: "divided by the length of one interval: that is coverage; the union is asked for",
            2.0: "these are seconds: divide by the union",
        },
    )
    yield case(
        (0, 1),
        (3, 5),
        "intervals that lie apart: earlier end − later start is negative, and no overlap is 0:"
        " max(0, …)",
    )
    yield case((0, 2), (2, 4), "intervals that only touch share no time")
    yield case(
        (1, 1),
        (1, 1),
        "empty intervals: the union is 0, and 0 / 0 is no reward; what holds nothing earns 0",
    )
    yield case(
        (4, 0),
        (0, 4),
        "a reversed interval holds nothing; to sort its ends would pay for a wrong answer",
    )
    yield case((0, 4), (4, 0), "a reversed interval holds nothing, on either side")
    yield case(
        (4, 0),
        (4, 0),
        "two reversed intervals: negative over negative is positive, and yet there is nothing",
    )
    yield case((0, 10), (2, 3), "one inside the other: the intersection is the inner one")
    yield case((0, 4.03), (4, 8), f"a short overlap is one: {NO_STEPS}")
    yield case((0, 0.02), (0, 0.04), f"a short interval is one: {NO_STEPS}")
    yield case((0, 10), (0, 9.95), f"nearly the same is not the same: {NO_STEPS}")
    rng = random.Random(1)
    for _ in range(150):
        a, b = (tuple(rng.randrange(-8, 24) / 4 for _ in range(2)) for _ in range(2))
        yield case(a, b, "the intersection, the union, or an interval that holds nothing")
    for _ in range(200):
        a, b = near_intervals(rng, 2)
        yield case(a, b, f"the intersection, or the union; {NO_STEPS}")


def near_intervals(rng, n):
    """Intervals, short and long, most of which begin near an end of the one before."""
    made = [(0.0, rng.uniform(-2, 2))]
    for _ in range(n):
        start = rng.choice(made[-1]) + rng.choice((-1, 1)) * step(rng, -2, 0.5)
        start = round(start if rng.random() < 0.7 else rng.uniform(-2, 4), 4)
        made.append((start, round(start + step(rng, -2, 0.7), 4)))
    return rng.sample(made[1:], n)


def slow_box_iou(a, b):
    frame = (0, 1)
    columns, rows = (stretches(frame, a[i::2], b[i::2]) for i in range(2))

    def cells(box):
        sides = (covered(cut, [box[i::2]]) for i, cut in enumerate((columns, rows)))
        x, y = (s & covered(cut, [frame]) for s, cut in zip(sides, (columns, rows)))
        return {*itertools.product(x, y)}

    def area(cells):
        return sum(length([x]) * length([y]) for x, y in cells)

    a, b = cells(a), cells(b)
    return area(a & b) / area(a | b) if a and b else 0.0


def box_iou_cases():
    def case(a, b, usually, known=None):
        return Case((a, b), slow_box_iou, usually, known or {})

    xywh = "the boxes were read as x, y, width, height; they are two corners, x0, y0, x1, y1"
    yield case(
        (0.25, 0, 0.75, 1),
        (0.5, 0, 1, 1),
        "area of the intersection over area of the union",
        {
            0.25: "the union holds the shared area once: area a + area b − shared",
            0.5: "divided by the area of one box: the union is asked for",
            0.4: xywh,
            2 / 3: xywh,
        },
    )
    yield case(
        (0, 0, 0.5, 0.5),
        (0.25, 0.25, 0.75, 0.75),
        "an intersection has a width and a height: both are needed",
        {1 / 3: "only one axis was looked at: the height counts too"},
    )
    yield case(
        (0, 0, 0.25, 1),
        (0.5, 0, 1, 1),
        "boxes side by side: the overlap in x is negative, clamp it at 0",
    )
    yield case(
        (0, 0, 0.25, 0.25),
        (0.5, 0.5, 1, 1),
        "apart in both directions: two negative overlaps multiply to a positive area; clamp each at"
        " 0 before multiplying",
    )
    yield case(
        (0.5, 0.5, 0, 0),
        (0, 0, 1, 1),
        "a box turned inside out holds nothing; its two negative sides multiply to a positive area",
    )
    usually = "two boxes turned inside out hold nothing, alike as they are"
    yield case((0.5, 0.5, 0, 0), (0.5, 0.5, 0, 0), usually)
    yield case(
        (0.5, 0, 1.5, 1),
        (0.5, 0, 1, 1),
        "what lies outside the frame [0, 1] counts for nothing: clip the coordinates first",
    )
    usually = "both outside the frame: nothing is left, and 0 / 0 is no reward"
    yield case((1.25, 0, 1.5, 1), (1.25, 0, 1.5, 1), usually)
    yield case((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), "boxes without area: 0 / 0 is no reward")
    no_steps = "coordinates are any numbers: not counted in steps, not rounded, no threshold"
    yield case((0.4, 0.4, 0.43, 0.43), (0.4, 0.4, 0.5, 0.5), f"a small box is one: {no_steps}")
    yield case((0, 0, 1, 0.51), (0, 0.5, 1, 1), f"a small overlap is one: {no_steps}")
    yield case((0, 0, 1, 1), (0, 0, 1, 0.995), f"nearly the same is not the same: {no_steps}")
    rng = random.Random(2)
    for _ in range(150):
        a, b = (tuple(rng.randrange(-2, 11) / 8 for _ in range(4)) for _ in range(2))
        yield case(a, b, "the intersection, the union, the frame, or a box that holds nothing")
    for _ in range(200):
        a, b = near_boxes(rng)
        yield case(a, b, f"the intersection, the union, or the frame; {no_steps}")


def near_boxes(rng):
    """Two boxes, small and large, of which the second begins near an edge of the first."""
    a, b = [0.0] * 4, [0.0] * 4
    for i in range(2):
        a[i] = round(rng.uniform(-0.2, 0.9), 4)
        a[i + 2] = round(a[i] + step(rng, -1.5, 0), 4)
        b[i] = round(rng.choice(a[i::2]) - rng.choice((-0.1, 1, 1, 1)) * step(rng, -2, -0.5), 4)
        b[i + 2] = round(b[i] + step(rng, -1.5, 0), 4)
    return tuple(a), tuple(b)


def slow_interval_set_iou(a, b):
    cut = stretches(*a, *b)
    a, b = covered(cut, a), covered(cut, b)
    return length(a & b) / length(a | b) if a | b else 0.0


def joined(intervals):
    """Neighbours that touch as one: whether merged leaves them two is not asked."""
    out = []
    for start, end in intervals:
        if out and out[-1][1] == start:
            start = out.pop()[0]
        out.append((start, end))
    return out


SAME_SECONDS = "in order, and joined where two touch"


def merged_as_seconds(function, intervals):
    got = function(intervals)
    need(
        isinstance(got, (list, tuple)) and all(len(i) == 2 for i in got),
        f"merged should give a list of (start, end), and gave {show(got)}",
    )
    return {SAME_SECONDS: joined(got)}


def slow_merged(intervals):
    return {SAME_SECONDS: joined(sorted(covered(stretches(*intervals), intervals)))}


def interval_set_iou_cases():
    def merge(intervals, want, usually):
        return Case((intervals,), want, usually, name="merged")

    yield merge([], [], "nothing merged is an empty list")
    yield merge(
        [(5, 7), (1, 3)], [(1, 3), (5, 7)], "intervals come in any order: sort them by their start"
    )
    yield merge(
        [(1, 3), (2, 4)],
        [(1, 4)],
        "an interval that starts before the last one ends makes it longer",
    )
    yield merge(
        [(0, 10), (2, 3)],
        [(0, 10)],
        "an interval inside the one before it: the end is the later of the two, max(end, end)",
    )
    usually = "what has grown may reach the next one, too: compare with what was put out last"
    yield merge([(0, 2), (1, 3), (2.5, 4)], [(0, 4)], usually)
    yield merge([(9, 8), (1, 1)], [], "reversed and empty intervals hold nothing and are left out")
    usually = "a gap is a gap, however short: there is no threshold"
    yield merge([(1, 2), (2.03, 3)], [(1, 2), (2.03, 3)], usually)
    usually = "an interval is one, however short, and its ends stay as they are"
    yield merge([(0.37, 0.4)], [(0.37, 0.4)], usually)
    yield from set_iou_cases()


def set_iou_cases():
    def case(a, b, usually, known=None):
        return Case((a, b), slow_interval_set_iou, usually, known or {})

    yield case(
        [(0, 2), (4, 6)],
        [(1, 5)],
        "seconds in both over seconds in either",
        {
            0.2: (
                "the mean (or best) IoU of pairs: sets of seconds are compared, not one interval"
                " with another"
            ),
            2 / 3: "the hull was taken: what lies between two intervals is in neither",
            0.25: (
                "the union holds shared seconds once: merge both sets together, then add up lengths"
            ),
        },
    )
    yield case([], [], "the union of two empty sets is 0 seconds long, and 0 / 0 is no reward")
    yield case([(3, 1)], [(0, 4)], "a reversed interval holds nothing")
    yield case(
        [(0, 4), (0, 4)],
        [(0, 8)],
        "an interval that is given twice must not be paid twice: merge each set first",
        {1.0: "paid twice: merge each set first"},
    )
    yield case([(0, 4), (2, 6)], [(0, 8)], "overlapping intervals of one set: merge each set first")
    rng = random.Random(3)
    for n in (1, 2, 3, 5, 9):
        for on_grid in (True, False) * 25:
            a, b = (
                [tuple(rng.randrange(-8, 40) / 4 for _ in range(2)) for _ in range(k)]
                if on_grid
                else near_intervals(rng, k)
                for k in (rng.randrange(n + 1), rng.randrange(n + 1))
            )
            yield Case(
                (a,),
                slow_merged,
                "the merged intervals hold the same seconds, each once, in order: however many,"
                " short, near to each other or before 0 they are",
                name="merged",
                call=merged_as_seconds,
            )
            usually = f"seconds in both over seconds in either, each counted once; {NO_STEPS}"
            yield case(a, b, usually)


# ------------------------------------------------------------------------------------------------
# 3: form. Slowly: by cutting the text at every tag
# ------------------------------------------------------------------------------------------------


def slow_well_formed(text, think, glue=False):
    pieces, tags = [""], []
    while text:
        tag = next((tag for tag in rewards.TAGS if text.startswith(tag)), None)
        if tag:
            tags.append(tag)
            pieces.append("")
        else:
            pieces[-1] += text[0]
        text = text[len(tag or "x") :]
    wanted = [
        f"<{slash}{name}>"
        for name in ["think"] * think + ["answer"] + ["glue"] * glue
        for slash in ("", "/")
    ]
    return tags == wanted and not any(piece.strip() for piece in pieces[::2])


def texts_by_hand():
    """(text, think, glue, what it tests)"""
    good, bare = "<think>a</think><answer>b</answer>", "<answer>b</answer>"
    return (
        (bare, False, False, "an answer alone is all that is asked for here"),
        (good, True, False, "a thought, then an answer: this is the form asked for"),
        ("", False, False, "no text has no answer"),
        (bare, True, False, "the <think> block is missing though it was asked for"),
        (good, False, False, "there is a <think> block though none was asked for"),
        (bare + bare, False, False,
         "two <answer> blocks: each tag must be there exactly once, or the policy learns to "
         "answer twice"),
        ("<think>a</think>" + good, True, False,
         "two <think> blocks: each tag must be there exactly once"),
        ("Sure! " + bare, False, False,
         "text before the block: all of the text must match (re.fullmatch), not only its end"),
        (bare + " I hope it helps", False, False,
         "text after the block: all of the text must match (re.fullmatch), not only its beginning"),
        ("<think>a</think> so <answer>b</answer>", True, False, "text between the blocks"),
        ("\n<think>a</think>\n <answer>b</answer>\n", True, False,
         "white space before, between and after the blocks is allowed"),
        ("<think>a\nb</think><answer>c</answer>", True, False,
         "a thought may have several lines: . matches no line break without re.DOTALL"),
        ("<answer>b</answer><think>a</think>", True, False, "the order is wrong: think first"),
        ("<think><answer>b</answer></think>", True, False, "the answer is inside the thought"),
        ("<think>is it <answer>a</answer>?</think><answer>b</answer>", True, False,
         "a second answer hides in the thought: count the tags"),
        ("<think>a<think>b</think><answer>c</answer>", True, False,
         "a tag is opened twice and closed once: count opening and closing tags, both"),
        ("<think>a</think>b</think><answer>c</answer>", True, False,
         "a tag is closed twice: count opening and closing tags, both"),
        ("<answer>b", False, False, "the answer is not closed"),
        ("</answer>b<answer>", False, False, "closing comes after opening"),
        ("<answer>x < y > z</answer>", False, False,
         "inside a block anything may stand but a tag: < alone is none"),
        ("<answer></answer>", False, False,
         "an empty block is a block: whether its content is right is another rule's business"),
        (bare + "<glue>c</glue>", False, True, "an answer and its evidence, as asked for"),
        (good + "\n<glue>c</glue>", True, True,
         "a thought, an answer and its evidence, as asked for"),
        (bare, False, True, "the <glue> block is missing though it was asked for"),
        (bare + "<glue>c</glue>", False, False,
         "there is a <glue> block though none was asked for"),
        ("<glue>c</glue>" + bare, False, True, "the order is wrong: the evidence comes last"),
        (bare + "<glue>", False, False, "a stray tag"),
        *other_texts(good, bare),
    )  # fmt: skip


def other_texts(good, bare):
    """More of texts_by_hand: what looks like the form, and what only looks as if it were not."""
    thoughtful = "<think>I think the answer is b, so I answer b</think><answer>b</answer>"
    return (
        ("<Answer>b</Answer>", False, False, "other capitals: <Answer> is not the tag <answer>"),
        (good.upper(), True, False, "other capitals: <THINK> is not the tag <think>"),
        ("< answer >b</ answer >", False, False,
         "spaces in it: < answer > is not the tag <answer>"),
        ("<answer\n>b</answer>", False, False, "a line break in it: that is not the tag <answer>"),
        ("<answer id=1>b</answer>", False, False, "<answer id=1> is not the tag <answer>"),
        (bare + "\nI hope it helps", False, False,
         "text after the last line: with re.MULTILINE $ is the end of any line; re.fullmatch"),
        ("Sure!\n\n" + good, True, False,
         "text on the line before: with re.MULTILINE ^ is the beginning of any line; re.fullmatch"),
        ("<think>a</think>\nso\n<answer>b</answer>", True, False, "a line between the blocks"),
        (thoughtful, True, False,
         "the words think and answer are no tags: count <think> with its brackets"),
        ("<think>" + "a line of the thought\n" * 99 + "</think><answer>b</answer>", True, False,
         "a block may be long, and have many lines"),
        ("\t<answer>b</answer>\r\n", False, False, "white space: tabs and \\r are, too (\\s)"),
    )  # fmt: skip


def well_formed_cases():
    for text, think, glue, usually in texts_by_hand():
        yield Case((text, think, glue), slow_well_formed, usually)
    rng = random.Random(4)
    for i in range(400):
        think, glue = rng.random() < 0.5, rng.random() < 0.3
        blocks = (
            ["<think>", "a", "</think>"] * think
            + ["<answer>", "b", "</answer>"]
            + ["<glue>", "c", "</glue>"] * glue
        )
        for _ in range(i % 3):  # up to two things are added, taken away or exchanged
            other = rng.choice([*rewards.TAGS, "x", " ", "\n", "", "\t", "<Think>", "\nx\n"])
            at = rng.randrange(len(blocks))
            blocks[at : at + rng.randrange(2)] = [other]
        yield Case(
            ("".join(blocks), think, glue),
            slow_well_formed,
            "count each tag, and match all of the text with one pattern",
        )


# ------------------------------------------------------------------------------------------------
# 5, 6, 7, 9: the algorithm. Slowly: one Python float after the other
# ------------------------------------------------------------------------------------------------


def slow_group_advantages(r, divide_by_std=True):
    groups = r.view(-1, r.shape[-1]).tolist()
    out = [
        [
            (x - statistics.fmean(g)) / (statistics.stdev(g) + 1e-4 if divide_by_std else 1)
            for x in g
        ]
        for g in groups
    ]
    return torch.tensor(out, dtype=r.dtype).view(r.shape)


def group_advantages_cases():
    population = (
        "this is the population's standard deviation (divided by n); the sample's divides by n − 1,"
        " as torch.std does unless told otherwise"
    )
    known = {
        (2 / (8 / 3) ** 0.5, 0, -2 / (8 / 3) ** 0.5): population,
        (2 / ((8 / 3) ** 0.5 + 1e-4), 0, -2 / ((8 / 3) ** 0.5 + 1e-4)): population,
        (1, 0, -1): "1e-4 is missing beside the std",
        (2 / 4.0001**0.5, 0, -2 / 4.0001**0.5): "1e-4 belongs beside the std, not under its root",
        (2 / 4.0001, 0, -2 / 4.0001): "divided by the variance: its root is the standard deviation",
        (2, 0, -2): "not divided by the standard deviation",
        (4 / 2.0001, 2 / 2.0001, 0): "the group's mean was not taken off: all would look good",
    }
    yield Case(
        (t(4, 2, 0),),
        slow_group_advantages,
        "A = (r − mean) / (std + 1e-4), with the sample's std (n − 1)",
        known,
    )
    yield Case(
        (t(0.5, 0.5, 0.5),),
        slow_group_advantages,
        "equal rewards: the std is 0, and 0 / 0 is NaN, which one step later is in every weight:"
        " 1e-4 in the denominator",
    )
    yield Case(
        (t([2, 0], [10, 0]),),
        slow_group_advantages,
        "each group has its own mean and std: over the last dimension alone, with keepdim=True, not"
        " over the whole batch or over the prompts",
    )
    yield Case(
        (t([2, 0], [10, 0]), False),
        slow_group_advantages,
        "divide_by_std=False (Dr. GRPO): r − mean and no more",
    )
    yield Case(
        (t(0.002, 0.001, 0),),
        slow_group_advantages,
        "a small std is a std: no threshold, no other minimum; beside it stands 1e-4, and no more",
    )
    yield Case(
        (t(*[0.0] * 63, 1.0),),
        slow_group_advantages,
        "an outlier's advantage is large: neither advantages nor rewards are clamped",
    )
    rng = random.Random(5)
    for shape in ((2,), (8,), (2, 3), (3, 3), (4, 8), (2, 3, 4)):
        for dtype in (torch.float64, torch.float32):
            for divide in (True, False):
                yield Case(
                    (numbers(rng, *shape, low=-1, high=2, dtype=dtype), divide),
                    slow_group_advantages,
                    "mean and std of each group, over the last dimension, whatever dimensions come"
                    " before it",
                )


def slow_kl_k3(logp, logp_ref):
    values = [math.exp(b - a) - (b - a) - 1 for a, b in zip(flat(logp), flat(logp_ref))]
    return torch.tensor(values, dtype=logp.dtype).view(logp.shape)


def kl_gradient(function, logp, logp_ref):
    x = logp.clone().requires_grad_()
    got = function(x, logp_ref)
    need(isinstance(got, torch.Tensor), f"a tensor is asked for, and this is {show(got)}")
    return gradients(got.sum(), x)[0]


def kl_over_vocabulary(function, logp, logp_ref):
    return (logp.exp() * function(logp, logp_ref)).sum()


def slow_kl_exact(logp, logp_ref):
    return t(sum(math.exp(a) * (a - b) for a, b in zip(flat(logp), flat(logp_ref))))[0]


def kl_k3_cases():
    e = math.e
    known = {
        e - 2: (
            "Δ the wrong way round: Δ = logp_ref − logp; turned, it is biased for tokens of the"
            " policy"
        ),
        1.0: (
            "logp − logp_ref (k1): unbiased, but negative for many tokens; the −1 + exp(Δ) is"
            " missing"
        ),
        -1.0: "logp_ref − logp: the sign is turned, and exp(Δ) − 1 is missing",
        0.5: "half the square (k2): never negative, but biased",
        -1 / e: "the sign is turned: a KL is never negative",
        1 + 1 / e: "the −1 is missing: where both policies agree, it would be 1 and not 0",
        1 / e - 2: "+ Δ in place of − Δ",
        1 / e - 1: "−Δ is missing: exp(Δ) − 1 alone has mean 0 whatever the policies are",
    }
    yield Case((t(-1.0), t(-2.0)), slow_kl_k3, "exp(Δ) − Δ − 1 with Δ = logp_ref − logp", known)
    yield Case((t(-1.5), t(-1.5)), slow_kl_k3, "where both policies agree the KL is 0")
    usually = "where they nearly agree the KL is small, and not 0: no threshold, no rounding"
    yield Case((t(-1.5), t(-1.53)), slow_kl_k3, usually)
    for a, b in ((-9, -1), (-1, -9), (-14, -2), (-16, -15)):
        yield Case(
            (t(a), t(b)),
            slow_kl_k3,
            "however far they are apart, and however improbable the token: nothing is clamped",
        )
    yield Case(
        (t(-1.0), t(-2.0)),
        t(1 - 1 / e),
        "no gradient arrives at logp: a detach, .item(), .data or no_grad on the way; the penalty"
        " would pull at nothing",
        {-(1 - 1 / e): "the gradient's sign is turned"},
        call=kl_gradient,
        shown="the gradient of kl_k3(logp=-1, logp_ref=-2) by logp",
    )
    yield Case(
        (t(-9.0), t(-1.0)),
        t(1 - math.exp(8)),
        "the gradient where they are far apart: nothing is clamped",
        call=kl_gradient,
        shown="the gradient of kl_k3(logp=-9, logp_ref=-1) by logp",
    )
    p, q = t(0.7, 0.2, 0.1).log(), t(0.1, 0.3, 0.6).log()
    yield Case(
        (p, q),
        slow_kl_exact,
        "it should be unbiased: Σ p · k3 over all tokens is the KL itself",
        call=kl_over_vocabulary,
        shown="Σ p · kl_k3(log p, log q) with p = 0.7, 0.2, 0.1 and q = 0.1, 0.3, 0.6",
    )
    rng, single, double = random.Random(6), torch.float32, torch.float64
    for shape, dtype in (((2, 3), double), ((4,), single), ((3, 5), double), ((2, 2, 2), double)):
        yield Case(
            (numbers(rng, *shape, dtype=dtype), numbers(rng, *shape, dtype=dtype)),
            slow_kl_k3,
            "one number for each token; their mean is the loss's business",
        )


def slow_completion_mask(tokens, stop):
    rows = []
    for row in tokens.view(-1, tokens.shape[-1]).tolist():
        ended, mask = False, []
        for token in row:
            mask.append(not ended)
            ended = ended or token in stop.tolist()
        rows.append(mask)
    return torch.tensor(rows).view(tokens.shape)


def completion_mask_cases():
    def case(rows, stop, usually, known=None):
        return Case(
            (torch.tensor(rows), torch.tensor(stop)), slow_completion_mask, usually, known or {}
        )

    excluded = (
        "the stop token itself is left out: it is sampled like any other, and without it the policy"
        " never learns to stop"
    )
    yield case(
        [[5, 9, 7, 7]],
        [9],
        "True up to and with the first stop token",
        {
            (1, 0, 0, 0): excluded,
            (1, 1, 1, 0): "one too many: what follows the stop token is padding",
            (1, 0, 1, 1): "only the stop token was masked: what follows it is padding",
            (0, 0, 1, 1): "turned round: True is for the completion's own tokens",
            (1, 1, 1, 1): "nothing was masked: what follows the stop token is padding",
        },
    )
    argmax = (
        "argmax of a row without a stop token is 0: this row looks as if it ended at once, but it"
        " ran out of room"
    )
    usually = "without a stop token the completion ran out of room, and all of it is its own"
    yield case([[5, 6, 7]], [9], usually, {(0, 0, 0): argmax, (1, 0, 0): argmax})
    usually = "a completion may stop with its first token"
    yield case([[9, 5, 5]], [9], usually, {(0, 0, 0): excluded})
    usually = "padding is the stop token again: only the first one is the completion's own"
    all_stops = (
        "all stop tokens were counted as its own: only the first one is, the others are padding"
    )
    yield case([[5, 9, 9, 9]], [9], usually, {(1, 0, 0, 0): excluded, (1, 1, 1, 1): all_stops})
    yield case(
        [[5, 9, 6, 9]],
        [9],
        "the first stop token ends it, not the last",
        {(1, 1, 1, 1): "the last stop token was looked for: the first one ends it"},
    )
    usually = "there may be several stop tokens, in any order: any of them ends a completion"
    yield case([[5, 8, 9, 5]], [9, 8], f"{usually} (torch.isin)")
    usually = "a stop token is one of these ids, and no id between them is (torch.isin)"
    yield case([[5, 6, 9, 5]], [9, 4], usually)
    usually = "there may be three stop tokens or more, in any order: any of them ends a completion"
    yield case([[5, 7, 6, 6]], [4, 7, 9], f"{usually} (torch.isin)")
    usually = "a long completion, all padding after its second token: bytes count to 255 alone"
    yield case([[5] + [9] * 600], [9], usually)
    yield case([[5, 9, 7], [5, 6, 7]], [9], "rows end at different times: each has its own mask")
    rng = random.Random(7)
    for shape in ((2, 2), (3, 4), (5,), (2, 3, 5), (4, 12)):
        for stop in ([1], [6, 3], [5, 0, 2]):
            rows = torch.tensor([rng.randrange(7) for _ in range(math.prod(shape))]).view(shape)
            yield Case(
                (rows, torch.tensor(stop)),
                slow_completion_mask,
                "along the last dimension, whatever dimensions come before it",
            )


GRADED_LOSSES = grpo.LOSSES[:4]  # what exercise 9 asks for: grpo, dr_grpo, dapo, gspo


def slow_token_weights(mask, loss, max_new_tokens, n_completions, n_tokens):
    C, rows = mask.shape[-1], []
    for row in mask.view(-1, C).tolist():
        weight = 1 / (sum(row) * n_completions)
        if loss == "dapo":
            weight = 1 / n_tokens
        if loss == "dr_grpo":
            weight = 1 / (max_new_tokens * n_completions)
        rows.append([weight if in_mask else 0.0 for in_mask in row])
    return torch.tensor(rows).view(mask.shape)


def slow_policy_loss(logp, old, ref, A, mask, weights, low, high, beta, loss="grpo"):
    G, C = logp.shape
    lp, old, w = logp.tolist(), old.tolist(), weights.tolist()
    rf = ref if ref is None else ref.tolist()
    value = 0.0
    gradient, kl = ([[0.0] * C for _ in range(G)] for _ in range(2))
    clipped = [[False] * C for _ in range(G)]
    for g in range(G):
        places = [c for c in range(C) if mask[g, c]]
        a = A[g].item()
        mean = sum(lp[g][c] - old[g][c] for c in places) / len(places)
        for c in places:
            rho = math.exp(mean if loss == "gspo" else lp[g][c] - old[g][c])
            held = min(max(rho, 1 - low), 1 + high)
            clipped[g][c] = held * a < rho * a
            value -= w[g][c] * min(rho * a, held * a)
            through = places if loss == "gspo" else [c]  # the tokens that ρ depends on
            for other in through if not clipped[g][c] else []:
                gradient[g][other] -= w[g][c] * rho * a / len(through)
            if rf is not None:
                d = rf[g][c] - lp[g][c]
                kl[g][c] = math.exp(d) - d - 1
                value += w[g][c] * beta * kl[g][c]
                gradient[g][c] += w[g][c] * beta * (1 - math.exp(d))
    double = functools.partial(torch.tensor, dtype=torch.float64)
    return {
        "loss": double(value),
        "gradient of logp": double(gradient),
        "kl": double(kl),
        "clipped": torch.tensor(clipped),
        "kl carries a gradient": False,
    }


def loss_and_gradient(function, logp, old, ref, A, mask, weights, low, high, beta, loss="grpo"):
    x = logp.clone().requires_grad_()
    got = function(x, old, ref, A, mask, weights, low, high, beta, loss)
    need(
        isinstance(got, (tuple, list))
        and len(got) == 2
        and isinstance(got[1], dict)
        and {"kl", "clipped"} <= set(got[1]),
        'two things are asked for: the loss, and a dict with "kl" and "clipped"',
    )
    total, per_token = got
    need(
        isinstance(total, torch.Tensor) and total.ndim == 0,
        "the loss should be one number, as a tensor without dimensions: the weighted sum over all"
        " tokens",
    )
    need(
        isinstance(per_token["kl"], torch.Tensor) and per_token["kl"].shape == logp.shape,
        f'"kl" should be a tensor like logp, {tuple(logp.shape)}',
    )
    kl = torch.where(mask, per_token["kl"], 0.0)  # what it is at padding is nobody's business
    return {
        "loss": total.detach(),
        "gradient of logp": gradients(total, x)[0],
        "kl": kl.detach(),
        "clipped": per_token["clipped"],
        "kl carries a gradient": kl.requires_grad,
    }


def policy_loss_cases():
    rng = random.Random(9)
    yield from token_weights_cases(rng)
    yield from one_token_cases()
    yield from two_completions_cases()
    for G, C in ((2, 3), (3, 3), (4, 6)):
        for loss in GRADED_LOSSES * 2:
            yield random_case(rng, G, C, loss)


def random_case(rng, G, C, loss):
    """Ratios, advantages, weights and both clips of any size."""
    lengths = torch.tensor([rng.randrange(1, C + 1) for _ in range(G)])
    mask = torch.arange(C) < lengths[:, None]
    logp, A = numbers(rng, G, C), numbers(rng, G, low=-2, high=2)
    # gspo's ratio is the completion's: so is its weight here
    weights = numbers(rng, G, 1 if loss == "gspo" else C, low=0.1, high=0.9)
    usually = "everything together: ratio, clip, KL, mask, weights"
    if loss == "gspo":
        usually = "everything together; for gspo the mean counts own tokens only"
    return loss_case(
        logp,
        logp + numbers(rng, G, C, low=-0.4, high=0.4),
        logp + numbers(rng, G, C, low=-1, high=1),
        A,
        mask,
        mask * weights,
        usually,
        low=rng.choice((0.05, 0.1, 0.2, 0.3)),
        high=rng.choice((0.1, 0.28, 0.5)),
        beta=rng.choice((0.04, 0.5)),
        loss=loss,
    )


def token_weights_cases(rng):
    long_short = torch.tensor([[True] * 4, [True, False, False, False]])

    def case(loss, usually, known=None, mask=long_short, n=2, room=8, n_tokens=5):
        args = (mask, loss, room, n, n_tokens)
        return Case(args, slow_token_weights, usually, known or {}, name="token_weights")

    all_tokens = (
        "the mean over all tokens: long completions would weigh more; first over each completion's"
        " own tokens, then over completions (that is dapo's)"
    )
    padding_counted = "padding counted in the length: the second completion has 1 token, not 4"
    by_length = "divided by the length, as grpo does: dr_grpo divides by max_new_tokens"
    yield case(
        "grpo",
        "1 / (length · n_completions) on a completion's own tokens",
        {
            (0.2,) * 5 + (0.0,) * 3: all_tokens,
            (0.125,) * 8: "padding has weight: 0 outside the mask",
            (0.125,) * 5 + (0.0,) * 3: padding_counted,
            (0.25,) * 4 + (1.0, 0, 0, 0): "not divided by n_completions",
        },
    )
    yield case(
        "grpo",
        "n_completions is that of the whole step, over all prompts and processes, not the mask's"
        " rows: so that losses of parts add up",
        n=16,
    )
    yield case(
        "dr_grpo",
        "dr_grpo divides by max_new_tokens, the same for all, not by the completion's length",
        {(0.125,) * 4 + (0.5, 0.0, 0.0, 0.0): by_length},
    )
    yield case("dapo", "dapo: every token of the step counts 1 / n_tokens")
    usually = "n_tokens and max_new_tokens are those of the whole step, not the mask's own"
    yield case("dapo", usually, n_tokens=12)
    yield case("dr_grpo", usually, room=16)
    yield case("gspo", "gspo weighs as grpo does")
    usually = "over the last dimension, whatever dimensions come before it"
    for G, C in ((2, 3), (3, 3), (4, 6)):
        lengths = torch.tensor([rng.randrange(1, C + 1) for _ in range(2 * G)]).view(2, G, 1)
        for loss in GRADED_LOSSES:
            mask, room = torch.arange(C) < lengths, rng.randrange(C, 20)
            yield case(loss, usually, None, mask, 2 * G, room, rng.randrange(20, 40))


def loss_case(
    logp,
    old,
    ref,
    A,
    mask,
    weights,
    usually,
    known=None,
    shown="",
    low=0.2,
    high=0.2,
    beta=0.0,
    loss="grpo",
):
    return Case(
        (logp, old, ref, A, mask, weights, low, high, beta, loss),
        slow_policy_loss,
        usually,
        known or {},
        call=loss_and_gradient,
        shown=shown,
    )


def one_token_case(ratio, A, usually, known=None, low=0.2, high=0.2, ref=None, beta=0.0):
    old = -1.0
    shown = (
        f"policy_loss of one token with ρ = {ratio:g}, A = {A:g}, clip at {1 - low:g} and"
        f" {1 + high:g}, β = {beta:g}"
    )
    if ref:
        shown += f", logp = {old:g}, logp_ref = {ref:g}"
    return loss_case(
        t([old]) + math.log(ratio),
        t([old]),
        ref and t([ref]),
        t(A),
        torch.tensor([[True]]),
        t([1.0]),
        usually,
        known,
        shown,
        low,
        high,
        beta,
    )


GONE = (
    "no gradient arrives at logp: a detach, .item(), .data or no_grad on the way. The loss may be"
    " right and the policy would learn nothing"
)
IGNORED = (
    "logp_old is ignored: ρ = exp(logp − logp_old); only before the first update the two are equal"
)
TURNED = "the ratio is turned: new over old"
CLIP_ALONE = "min(ρ A, clip(ρ) A) keeps correcting what went the wrong way"


def one_token_cases():
    yield one_token_case(
        1.0,
        1.0,
        "loss −1 with gradient −1: the objective is to grow, so the loss is its negative, and"
        " d(ρ A) = A · d logp",
        {
            ("loss", 1.0): "the sign: the objective is to grow, a loss is made small: minus",
            ("loss", 0.0): "the log of the ratio in place of the ratio: exp is missing",
            ("gradient of logp", 0.0): GONE,
            ("gradient of logp", 1.0): f"{TURNED}, exp(logp − logp_old)",
        },
    )
    yield one_token_case(
        0.7,
        1.0,
        "a good completion that became less likely is always corrected: min keeps ρ A",
        {
            -1.0: IGNORED,
            -0.8: f"clip(ρ) A alone, or the larger of the two: {CLIP_ALONE}",
            -1 - math.log(0.7): "1 + log ρ is the ratio only near 1: exp",
            -1 / 0.7: TURNED,
            0.0: GONE,
        },
    )
    yield one_token_case(
        1.3,
        1.0,
        "a good completion that has become likely enough: min takes the constant 1.2 A, and the"
        " gradient is 0",
        {-1.3: "not clipped: min(ρ A, clip(ρ) A)", -1.0: IGNORED, -1.0 / 1.3: TURNED},
    )
    larger = (
        "the larger of the two was taken, or none was clipped: with A < 0 the smaller of ρ A = −0.7"
        " and clip(ρ) A = −0.8 is −0.8"
    )
    yield one_token_case(
        0.7,
        -1.0,
        "a bad completion that has become unlikely enough: min takes the constant 0.8 A, and the"
        " gradient is 0",
        {0.7: larger},
    )
    usually = "a bad completion that became likelier is always corrected: min keeps ρ A"
    known = {1.2: f"clip(ρ) A alone, or the maximum: {CLIP_ALONE}"}
    yield one_token_case(1.3, -1.0, usually, known)
    usually = "clip_high belongs to the upper side: 1 + clip_high"
    known = {-1.2: "clip_low was used on both sides: the upper one is 1 + clip_high"}
    yield one_token_case(1.25, 1.0, usually, known, high=0.28)
    usually = "clip_low belongs to the lower side, 1 − clip_low, whatever its value"
    yield one_token_case(0.85, -1.0, usually, low=0.1)
    yield kl_penalty_case()
    yield from far_cases()


def far_cases():
    """Ratios, advantages and KLs far from the usual."""
    usually = (
        "a bad completion that became much likelier is corrected with all its weight: no dual clip"
        " on ρ A, no clamp on the log-ratio, the ratio or the gradient"
    )
    yield one_token_case(20.0, -1.0, usually)
    yield one_token_case(1e5, -1.0, usually)
    usually = "a good completion that became much less likely: no clamp on the log-ratio"
    yield one_token_case(0.001, 1.0, usually)
    for A in (7.0, -7.0, 0.01):
        yield one_token_case(1.0, A, "every advantage counts as it is: no clamp, no threshold")
    usually = "a large KL counts as it is: no clamp"
    yield one_token_case(1.0, 0.0, usually, ref=5.0, beta=0.1)


def kl_penalty_case():
    turned = (
        "the KL's sign is turned: the loss must grow with the KL, or the policy is driven away from"
        " the reference"
    )
    absent = (
        "the KL is not in the loss, or was detached before it came there: it must pull with a"
        " gradient"
    )
    watched = '"kl" is for people to watch: detach it, or the graph of every step stays in memory'
    known = {
        -0.1 * math.exp(-1): turned,
        0.0: absent,
        0.1 * (math.e - 2): "Δ the wrong way round: Δ = logp_ref − logp",
        math.exp(-1): "β is missing",
        ("kl carries a gradient", True): watched,
    }
    usually = "β · KL is a penalty: the loss grows with it"
    return one_token_case(1.0, 0.0, usually, known, ref=-2.0, beta=0.1)


def two_completions_cases():
    yes = torch.ones(2, 2, dtype=torch.bool)
    yield loss_case(
        t([-1, -2], [-1, -3]),
        t([-1, -2], [-1, -3]),
        None,
        t(1, -2),
        yes,
        t([0.1, 0.2], [0.3, 0.7]),
        "advantages (G,) belong to completions, which are rows: advantages[:, None]. With G = C the"
        " wrong way broadcasts without a word. And each token has its weight: a weighted sum, no"
        " mean, whatever the weights' sum is",
    )
    yield loss_case(
        t([-1, -1], [-1, -1]),
        t([-1, -1.5], [-0.5, -1]),
        None,
        t(1, 1),
        yes,
        t([0.5, 0.5], [0.5, 0.5]),
        "min is taken for every token by itself, before anything is summed",
    )
    for junk in (7.0, -math.inf):
        yield loss_case(
            t([-1, -2], [-1, junk]),
            t([-1.1, -1.9], [-1.1, junk]),
            t([-1.2, -1.5], [-1.3, junk]),
            t(1, -1),
            torch.tensor([[True, True], [True, False]]),
            t([0.25, 0.25], [0.5, 0.0]),
            f"padding ({junk:g} here) reached the loss or the gradient: 0 · inf is NaN, so"
            " torch.where(mask, …, 0.0) before any exp, not a product after it",
            beta=0.04,
        )
    yield loss_case(
        t([-1, -2], [-1, -3]),
        t([-1.3, -1.9], [-1, -2.9]),
        None,
        t(1, -1),
        yes,
        t([0.25, 0.25], [0.25, 0.25]),
        "gspo: one ratio for a completion, exp of the mean of logp − logp_old over its own tokens",
        loss="gspo",
    )
