"""cases_rewards.py: the cases of exercises 1 to 4 and 13: rules on intervals, boxes and texts.

Ends of intervals and corners of boxes are multiples of a power of two with few digits, so that
sums are exact in 32 bits too: what differs by a millionth is wrong, in whatever precision it was
computed.
"""

import rewards
from course.cases import Case, need, show, tuples, written

NO_STEPS = "times are any numbers: not counted in steps, not rounded, and there is no threshold"


def temporal_iou_cases(rng):
    for args, usually, known in written("1"):
        yield Case(tuples(args), usually, known)
    for _ in range(60):
        a, b = on_grid(rng, 2, -8, 24)
        yield Case((a, b), "the intersection, the union, or an interval that holds nothing")
    for _ in range(100):
        a, b = near_intervals(rng, 2)
        yield Case((a, b), f"the intersection, or the union; {NO_STEPS}")


def on_grid(rng, n, low, high):
    """n intervals with ends on one grid, fine or coarse: some touch, some are empty or reversed."""
    unit = 2.0 ** rng.choice((-12, -6, -2, -2, 0, 5, 12))
    return [tuple(rng.randrange(low, high) * unit for _ in range(2)) for _ in range(n)]


def near_intervals(rng, n):
    """Intervals, short and long, most of which begin near an end of the one before."""
    made = [(0.0, rng.randrange(1, 16) / 8)]
    for _ in range(n):
        start = rng.choice(made[-1]) + rng.choice((-1, 0, 1)) * 2.0 ** rng.randrange(-14, 2)
        start = start if rng.random() < 0.8 else rng.randrange(-16, 32) / 8
        made.append((start, start + rng.randrange(1, 32) * 2.0 ** rng.randrange(-14, -2)))
    return rng.sample(made[1:], n)


def box_iou_cases(rng):
    for args, usually, known in written("2"):
        yield Case(tuples(args), usually, known)
    no_steps = "coordinates are any numbers: not counted in steps, not rounded, no threshold"
    for _ in range(60):
        a, b = (tuple(rng.randrange(-2, 11) / 8 for _ in range(4)) for _ in range(2))
        yield Case((a, b), "the intersection, the union, the frame, or a box that holds nothing")
    for _ in range(100):
        yield Case(near_boxes(rng), f"the intersection, the union, or the frame; {no_steps}")


def near_boxes(rng):
    """Two boxes, small and large, of which the second begins near an edge of the first."""
    a, b = [0.0] * 4, [0.0] * 4
    for i in range(2):
        a[i] = rng.randrange(-200, 900) / 1024
        a[i + 2] = a[i] + rng.randrange(1, 33) * 2.0 ** rng.randrange(-10, -4)
        b[i] = rng.choice(a[i::2]) - rng.choice((-1, 1, 1, 1)) * 2.0 ** rng.randrange(-10, -3)
        b[i + 2] = b[i] + rng.randrange(1, 33) * 2.0 ** rng.randrange(-10, -4)
    return tuple(a), tuple(b)


def merged_as_seconds(function, intervals):
    """Whether `merged` leaves two intervals that touch two is not asked: they are joined here."""
    got, out = function(intervals), []
    rows = (list, tuple)
    pairs = isinstance(got, rows) and all(isinstance(i, rows) and len(i) == 2 for i in got)
    need(pairs, f"merged should give a list of (start, end), and gave {show(got)}")
    for start, end in got:
        if out and out[-1][1] == start:
            start = out.pop()[0]
        out.append((start, end))
    return {"in order, and joined where two touch": out}


def interval_set_iou_cases(rng):
    def sets(args):
        return tuple([tuple(interval) for interval in intervals] for intervals in args)

    merge = {"name": "merged", "call": merged_as_seconds}
    for args, usually, _ in written("4m"):
        yield Case(sets(args), usually, **merge)
    for args, usually, known in written("4"):
        yield Case(sets(args), usually, known)
    for n in (1, 2, 3, 5, 9):
        for make in (lambda rng, k: on_grid(rng, k, -8, 40), near_intervals) * 10:
            a, b = (make(rng, rng.randrange(n + 1)) for _ in range(2))
            usually = (
                "the merged intervals hold the same seconds, each once, in order: however many,"
                " short, near to each other or before 0 they are"
            )
            yield Case((a,), usually, **merge)
            usually = f"seconds in both over seconds in either, each counted once; {NO_STEPS}"
            yield Case((a, b), usually)


def well_formed_cases(rng):
    for args, usually, _ in written("3"):
        yield Case(tuple(args), usually)
    usually = "a block may be long, and have many lines: there is no longest"
    lines, answer = "a line of the thought\n" * 99, "so long an answer " * 999
    yield Case((f"<think>{lines}</think><answer>b</answer>", True, False), usually)
    yield Case((f"<answer>{answer}</answer>", False, False), usually)
    yield Case(("<answer>b</answer>" + "\n" * 300, False, False), "white space: however much of it")
    yield Case(("<answer>b</answer>", False), "glue may be left out: it is False then")
    for i in range(300):
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
        usually = "count each tag, and match all of the text with one pattern"
        yield Case(("".join(blocks), think, glue), usually)


def caption_f1_cases(rng):
    for (said, events), usually, known in written("13"):
        yield Case((f"<answer>{said}</answer>", events, False), usually, known)
    for args, usually, _ in written("13t"):
        yield Case(tuple(args), usually)
    said = "<answer>A boy jumps. " + "A girl sleeps. " * 2000 + "</answer>"
    yield Case((said, ["a boy jumps"], False), "a long text is read to its end: 2 · 1 / (2001 + 1)")
    for n, m in ((40, 3), (3, 40)):
        said = f"<answer>{'. '.join(['a boy jumps'] * n)}</answer>"
        yield Case(
            (said, ["a boy jumps"] * m, False), f"many claims or events: 2 · 3 / ({n} + {m})"
        )
    for _ in range(120):
        said, events = random_caption(rng)
        usually = "pairs over claims and events, all together"
        yield Case((f"<answer>{said}</answer>", events, rng.random() < 0.5), usually)


def random_caption(rng):
    """(what is said, events): some of it true, some told twice, some with a word more or less."""
    words = "boy girl dog ball door red small runs kicks opens falls".split()
    events = [" ".join(rng.sample(words, rng.randrange(2, 6))) for _ in range(rng.randrange(1, 5))]
    said = []
    for _ in range(rng.randrange(6)):
        claim = rng.choice(events).split() if rng.random() < 0.7 else rng.sample(words, 3)
        if rng.random() < 0.4:
            claim = claim + [rng.choice(words)] if rng.random() < 0.5 else claim[:-1]
        said.append(" ".join(claim))
    return "".join(claim + rng.choice((". ", "; ", "!", "?\n")) for claim in said), events
