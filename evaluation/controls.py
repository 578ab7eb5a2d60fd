"""controls.py: scores of answers that do not look, and the table that puts them above the models.

A gain shows that a model looks only if the score exceeds what can be had without looking:

    constant   the best answer that is the same for every video; no model is run
    grey       the model's own answers, every frame replaced by grey: what it knows without looking
    shuffled   the frames in random order at the old times: whether it looks at time
    middle     the middle frame alone, repeated (multiple choice)
"""

import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

import rewards
from annotations.readers import read_dataset
from evaluation.predictions import bootstrap_interval, differences, metrics_of, rewards_of
from lib.errors import BadInput
from tasks import as_task

# ------------------------------------------------------------------------------------------------
# The constant answer
# ------------------------------------------------------------------------------------------------


@dataclass
class Constant:
    """The constant answer to a benchmark, in words, and its records: one per question."""

    said: str
    records: list


def best_share(examples, truths):
    """The interval, in shares of the clip, with the highest mean IoU.

    Args:    examples: n of them; truths: of each its true intervals [(start, end), …] in seconds.
    Returns: (from, to), in steps of 5 %.
    """
    n, most = len(truths), max(map(len, truths))
    starts, ends = np.zeros((n, most)), np.zeros((n, most))  # an empty interval holds nothing
    for i, intervals in enumerate(truths):
        for k, (start, end) in enumerate(rewards.merged(intervals)):
            starts[i, k], ends[i, k] = start, end
    seconds = np.array([e.duration for e in examples])
    length = (ends - starts).sum(axis=1)  # (n,)

    def mean_iou(share):
        low, high = (x * seconds[:, None] for x in share)
        shared = np.clip(np.minimum(high, ends) - np.maximum(low, starts), 0, None).sum(axis=1)
        return np.mean(shared / ((high - low)[:, 0] + length - shared))

    grid = [k / 20 for k in range(21)]
    return max(((a, b) for a in grid for b in grid if a < b), key=mean_iou)


def most_frequent(values):
    return Counter(values).most_common(1)[0][0]


# Each takes the examples that it is fitted on, and returns (the answer in words, a function: an
# example → the completion that gives this answer).


def constant_interval(examples):
    low, high = best_share(examples, [[e.answer] for e in examples])
    answer = lambda e: f"<answer>{low * e.duration:.3f} to {high * e.duration:.3f}</answer>"
    return f"from {low:.0%} to {high:.0%} of the clip", answer


def constant_box(examples):
    """The first box, which the question gives."""
    box = lambda e: [round(v, 6) for v in e.answer[0]]
    answer = lambda e: f"<answer>{[box(e)] * rewards.N_BOXES}</answer>"
    return "the given box, eight times", answer


def constant_words(examples):
    words = most_frequent(e.answer for e in examples)
    return f"always {words}", lambda e: f"<answer>{words}</answer>"


def constant_evidence(examples):
    letter = most_frequent(e.answer[0] for e in examples)
    low, high = best_share(examples, [e.answer[1] for e in examples])

    def answer(e):
        start, end = (round(x * e.duration, 3) for x in (low, high))
        return f"<answer>{letter}</answer><glue>[({start}, {end})]</glue>"

    return f"always {letter}, from {low:.0%} to {high:.0%} of the clip", answer


def constant_caption(examples):
    """The ten events that stand in most captions."""
    # a description's answer: (events, reference)
    told = [e.answer[0] if isinstance(e.answer, tuple) else e.answer for e in examples]
    counts = Counter(event for events in told for event in set(events))
    events = [event for event, _ in counts.most_common(10)]
    return "the ten most frequent events", lambda e: f"<answer>{'. '.join(events)}</answer>"


CONSTANTS = {
    "grounding": constant_interval,
    "tracking": constant_box,
    "qa": constant_words,
    "gqa": constant_evidence,
    "quality": constant_words,
    "caption": constant_caption,
    "description": constant_caption,
}


def constant_of(bench_name, folder, examples):
    """The Constant of a benchmark; None where it has none: a task of no row above, no duration.

    It is fitted on the data set's training file where there is one, else on the test file itself,
    which flatters it. examples: the test questions. An interval needs the clips' durations: it is
    fitted where they are annotated, and a clip without one gets no answer, which counts as wrong.
    """
    task, records = examples[0].task, []
    if task not in CONSTANTS:
        return None
    usable = [e for e in examples if answerable(e, task)]
    given = task == "tracking"  # its constant stands in the question: nothing is fitted
    if not given and (fitted := fitted_on_training(bench_name, folder, task)):
        words, answer, count = fitted
        where = f"; fitted on {count} training questions"
    elif usable:
        words, answer = CONSTANTS[task](usable)
        where = "" if given else "; fitted on these questions"
    else:
        return None
    for e in examples:
        text = answer(e) if answerable(e, task) else ""
        record = {"id": e.id, "group": e.group, "text": text, "answer": e.answer}
        records.append(record | rewards_of(task, text, e.answer, False))
    return Constant(f"constant ({words}{where})", records)


def answerable(example, task):
    """Whether a constant can answer: an interval is a share of the clip's duration."""
    return example.duration is not None or task not in ("grounding", "gqa")


@cache  # every model and every look of a program has the same
def fitted_on_training(bench_name, folder, task):
    """(words, answer, how many questions) of the training file; None where there is none to use."""
    try:
        examples = as_task(read_dataset(bench_name, "train", folder, lambda line: None), task)
    except BadInput:
        return None
    fit = [e for e in examples if answerable(e, task)]
    return (*CONSTANTS[task](fit), len(fit)) if fit else None


# ------------------------------------------------------------------------------------------------
# The table
# ------------------------------------------------------------------------------------------------

WIDE = 79  # characters of a row
KEY_METRICS = ("mIoU", "overlap", "accuracy", "recall")  # those that a gain is told of


def compared(task, records, control):
    """{metric: (difference to a control in points, low, high of its 95 % interval)}."""
    by_id = [{r["id"]: r for r in x} for x in (control, records)]
    of_metric, found = dict(differences(task, *by_id)), {}
    for metric in [m for m in KEY_METRICS if m in of_metric]:
        low, high = bootstrap_interval(of_metric[metric], np.random.default_rng(0))
        found[metric] = float(of_metric[metric].mean()), float(low), float(high)
    return found


@dataclass
class Scored:
    """One model's answers to one benchmark. look: "" where it saw its videos, else one of LOOKS."""

    name: str
    look: str
    data_name: str
    task: str
    records: list
    metrics: dict  # {name: percent}
    constant: Constant


def print_benchmark(scored):
    """The figures of one benchmark: the constant, then the controls, then the models.

    scored: a list of Scored. The difference to the constant stands in brackets.
    """
    first = scored[0]
    base = metrics_of(first.task, first.constant.records) if first.constant else {}
    rows = [("constant", base)] * bool(base)
    for x in sorted(scored, key=lambda x: x.look == ""):
        rows.append((f"{x.name}, {x.look}" if x.look else x.name, x.metrics))

    def cell(m, metrics):
        if m in KEY_METRICS and m in base and metrics is not base:
            return f"{metrics[m]:.1f} ({metrics[m] - base[m]:+.1f})"
        return f"{metrics[m]:.1f}"

    print(f"\n{first.data_name}: {len(first.records)} questions, in percent")
    if first.constant:
        print(f"{first.constant.said}\nin brackets: the difference to the constant")
    width = max(len(name) for name, _ in rows)
    lines = empty = [name.ljust(width) for name in ("", *(name for name, _ in rows))]
    for m in first.metrics:
        column = [m, *(cell(m, metrics) if m in metrics else "–" for _, metrics in rows)]
        width = max(map(len, column)) + 2
        if lines != empty and len(lines[0]) + width > WIDE:
            print(*lines, sep="\n")
            lines = empty
        lines = [line + text.rjust(width) for line, text in zip(lines, column)]
    print(*lines, sep="\n")
    for x in scored:
        for sentence in doubts(x, scored) if not x.look else ():
            print(textwrap.fill(sentence, WIDE))


def doubts(model, scored):
    """A sentence about every control that a model does not exceed by more than the interval."""
    controls = {"the constant": model.constant.records} if model.constant else {}
    controls |= {
        f"its own {x.look} answers": x.records for x in scored if x.look and x.name == model.name
    }
    few = " (few questions make wide intervals)" if len(model.records) < 100 else ""
    for control, records in controls.items():
        for metric, (mean, low, high) in compared(model.task, model.records, records).items():
            if low <= 0:
                yield (
                    f"{model.name} does not exceed {control} by more than chance: {metric} "
                    f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{few}"
                )


def earned(task, constant, records):
    """What results.json says of the constant: its words and figures, and of KEY_METRICS the
    difference of these records to it, with its interval. None where there is no constant."""
    if constant is None:
        return None
    return {
        "answer": constant.said,
        "metrics": metrics_of(task, constant.records),
        "difference": compared(task, records, constant.records),
    }
