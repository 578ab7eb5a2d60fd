"""second_look.py: `eval.py --clues` asks again, about the seconds that the first answer named.

This is VideoChat-R1's "temporal clue-driven reasoning".
"""

from dataclasses import replace

import rewards

SHORTEST = 2.0  # seconds that are looked at again, as far as the video goes


def second_look(examples, records, budget):
    """Returns (examples, budget) of the second round.

    Args:    examples that were asked; records: {id: record of the first answer}; budget: a
             VideoBudget, that of the first look.

    Each question is about the interval that its first answer named; several intervals are taken as
    one, from the first start to the last end. The budget has twice the frames per second and twice
    the pixels per frame, as far as --total-pixels allows.
    """
    doubled = ("fps", "min_frame_pixels", "max_frame_pixels")
    closer = replace(budget, **{name: 2 * getattr(budget, name) for name in doubled})
    return [replace(e, span=span_named(e, records[e.id])) for e in examples], closer


def span_named(example, record):
    """(start, end) in seconds of the file that an answer points to.

    An answer that names no interval, or one beyond the video's end, keeps the whole span.
    """
    duration = record.get("seconds", 0.0)
    named = rewards.parse_intervals(rewards.inside(record["text"], "glue"))
    intervals = rewards.merged(named or [])
    if not intervals or intervals[0][0] >= duration:
        return example.span
    start, end = intervals[0][0], min(intervals[-1][1], duration)
    middle, half = (start + end) / 2, max(SHORTEST / 2, (end - start) / 2)
    offset = example.span[0] if example.span else 0.0  # answers count from the span's start
    return offset + max(0.0, middle - half), offset + min(duration, middle + half)
