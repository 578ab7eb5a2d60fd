"""metrics.py: what is reported about the answers to a benchmark, under the names of its authors.

    reported("grounding", records)  →  {"mIoU": 58.8, "R@0.3": 80.9, …}

records: [{"text": the completion, "answer": the truth, "group": a sub-task}, …]. All figures are in
percent. What cannot be read as an answer counts as wrong; nothing is left out of a mean.

Every function here reads answers by the rules of rewards.py, so that what is reported is what was
paid for.
"""

import re

import rewards as r
from lib.wording import ON_OFFER, Letter, sentences
from tasks import TASKS


def percent(values):
    return 100 * sum(values) / len(values)


def at_least(name, values, thresholds):
    """The shares of values that reach each threshold."""
    return {f"{name}@{t}": percent([value >= t for value in values]) for t in thresholds}


def reported(task, records):
    """{name: percent}. A task that is not in METRICS reports the mean of every rule that pays for
    more than the form: accuracy of quality, recall of captions."""
    if task in METRICS:
        return METRICS[task](records)
    return {
        name: percent([rule(x["text"], x["answer"], False) for x in records])
        for name, rule in TASKS[task].rules.items()
        if name != "format"
    }


def grounding_metrics(records):
    """mIoU, and R@θ: the share of questions whose answer overlaps by at least θ (Charades-STA's own
    measures)."""
    ious = [r.grounding_iou(x["text"], x["answer"], False) for x in records]
    return {"mIoU": percent(ious)} | at_least("R", ious, (0.3, 0.5, 0.7))


def tracking_metrics(records):
    """GOT-10k, with the first frame, whose box the question gives away, and without it.

    overlap   mean box IoU of the eight frames
    R@θ       share of sequences with a mean IoU of at least θ (overlap and R@θ are the paper's: its
              base has an overlap of 12.6, the given box and nothing else, and R@0.7 of 0)
    SR@θ      share of frames with IoU above θ

    and "without first" AO, the mean, and SR over the seven frames that are asked for, as GOT-10k's
    own toolkit counts them.
    """
    tables = []  # per record its eight IoUs
    for x in records:
        boxes = r.parse_boxes(r.inside(x["text"], "answer"))
        tables.append(list(map(r.box_iou, boxes, x["answer"])) if boxes else [0.0] * r.N_BOXES)
    means = [sum(ious) / r.N_BOXES for ious in tables]
    given = [iou for ious in tables for iou in ious]
    asked = [iou for ious in tables for iou in ious[1:]]
    return (
        {"overlap": percent(means)}
        | at_least("R", means, (0.5, 0.7))
        | {f"SR@{t}": percent([iou > t for iou in given]) for t in (0.5, 0.7)}
        | {"AO without first": percent(asked)}
        | {f"SR@{t} without first": percent([iou > t for iou in asked]) for t in (0.5, 0.75)}
    )


def right_letter(record, letter):
    """1.0 for the right letter among those on offer; records before "on offer" do not say these."""
    letter = Letter(letter, record.get("on offer") or ON_OFFER)
    return r.choice_accuracy(record["text"], letter, False)


def choice_metrics(records):
    """Accuracy over all questions. Where there are several groups (MVBench's sub-tasks, Video-MME's
    lengths), the accuracy of each group and the mean of these follow."""
    right = [right_letter(x, x["answer"]) for x in records]
    groups = {}
    for ok, x in zip(right, records):
        groups.setdefault(x["group"], []).append(ok)
    if len(groups) < 2:
        return {"accuracy": percent(right)}
    # "up to 60 s" before "up to 600 s"; names without a number in the order of the file
    numbered = sorted(groups, key=lambda group: [int(n) for n in re.findall(r"\d+", group)])
    by_group = {group: percent(groups[group]) for group in numbered}
    mean = sum(by_group.values()) / len(by_group)
    return {"accuracy": percent(right), "mean of groups": mean} | by_group


def overlap_with(predicted, true):
    """(IoU, IoP) of the evidence given, [(start, end), …], with one true interval (start, end).

    IoP is the share of the *predicted* seconds that are inside the true interval. Several predicted
    intervals count as the seconds that they cover together, so that naming many of them does not
    pay. A single moment covers no seconds; inside the true interval it has an IoP of 1 and an IoU
    of 0, as in the authors' script.

    >>> overlap_with([(0, 4)], (2, 6)), overlap_with([(0, 4), (4, 8)], (2, 6))
    ((0.3333333333333333, 0.5), (0.5, 0.5))
    """
    seconds = r.merged(predicted)
    moments = [start for start, end in predicted if start == end]
    if not seconds:
        inside = [true[0] <= moment <= true[1] for moment in moments]
        return 0.0, sum(inside) / len(inside) if inside else 0.0
    shared = sum(max(0.0, min(end, true[1]) - max(start, true[0])) for start, end in seconds)
    return r.interval_set_iou(seconds, [true]), shared / sum(end - start for start, end in seconds)


def gqa_metrics(records):
    """NExT-GQA, as its authors count: each question's IoU and IoP are those with the true interval
    that fits best (they predict one interval; for more see overlap_with). Acc@GQA is the share of
    questions answered rightly with an IoP of at least 0.5.

    Below them are ours, which take all true intervals as one set: VideoChat-R1's mIoU, and the
    share of questions answered rightly with such an IoU of at least 0.5. A short guess inside a
    long event passes Acc@GQA more easily.
    """
    right = [right_letter(x, x["answer"][0]) for x in records]
    sets = [r.gqa_iou(x["text"], x["answer"], False) for x in records]
    ious, iops = [], []
    for x in records:
        evidence = r.parse_intervals(r.inside(x["text"], "glue")) or []
        pairs = [overlap_with(evidence, true) for true in x["answer"][1]] or [(0.0, 0.0)]
        for best, found in zip((ious, iops), zip(*pairs)):
            best.append(max(found))
    return (
        {"accuracy": percent(right)}
        | {"Acc@GQA": percent([ok and iop >= 0.5 for ok, iop in zip(right, iops)])}
        | {"mIoP": percent(iops)}
        | at_least("IoP", iops, (0.3, 0.5))
        | {"mIoU": percent(ious)}
        | at_least("IoU", ious, (0.3, 0.5))
        | {"mIoU of sets": percent(sets)}
        | {"Acc@IoU0.5": percent([ok and iou >= 0.5 for ok, iou in zip(right, sets)])}
    )


MOST_EVENTS = 10  # of a caption, in DREAM-1K
JUDGED = ("caption", "description")  # tasks whose figures depend on --judge


def description_metrics(records):
    """DREAM-1K; answer: (events, reference text), group: the source that a clip was taken from.

    recall      share of the reference's events that follow from the caption
    precision   share of the caption's events, the first ten, that follow from the reference
    F1          2 · recall · precision / (recall + precision), of the means

    Means are over clips, then over sources. rewards.judge says whether something follows, in both
    directions. The authors have GPT-3.5 take the events out of a caption; here they are its
    sentences, whoever judges: our judge only says yes or no.
    """
    scores = {}  # {source: [(recall, precision)]}
    for x in records:
        events, reference = x["answer"]
        said = sentences(r.inside(x["text"], "answer") or "")[:MOST_EVENTS]
        follow = [bool(r.judge(reference, event)) for event in said]
        precision = sum(follow) / len(follow) if follow else 0.0
        recall = r.caption_recall(x["text"], events, False)
        scores.setdefault(x["group"], []).append((recall, precision))
    recall, precision = (
        percent([sum(column) / len(column) for column in columns])
        for columns in zip(*(zip(*pairs) for pairs in scores.values()))
    )
    both = recall + precision
    f1 = 2 * recall * precision / both if both else 0.0
    return {"F1": f1, "precision": precision, "recall": recall}


METRICS = {
    "grounding": grounding_metrics,
    "tracking": tracking_metrics,
    "qa": choice_metrics,
    "gqa": gqa_metrics,
    "description": description_metrics,
}
