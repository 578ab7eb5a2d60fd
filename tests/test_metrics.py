"""What is reported: by hand, and against slow and obvious computations on random answers."""

import doctest
import json
import random

import pytest

import rewards
import tasks
from evaluation import metrics
from evaluation.metrics import reported


def record(text, answer, group=""):
    return {"text": text, "answer": answer, "group": group}


# By hand ------------------------------------------------------------------------------------------


def test_grounding():
    records = [
        record("<answer>0.0 to 5.0</answer>", (0, 10)),
        record("<answer>0 to 10</answer>", (0, 10)),
        record("about 5", (0, 10)),
        record("", (0, 10)),
    ]
    # 0.5 itself counts.
    expected = {"mIoU": 37.5, "R@0.3": 50, "R@0.5": 50, "R@0.7": 25}
    assert reported("grounding", records) == pytest.approx(expected)


def test_tracking_with_and_without_the_frame_that_is_given():
    truth = [(0.0, 0.0, 0.4, 0.4)] * 8
    away = (0.6, 0.6, 1.0, 1.0)
    answers = [truth, truth[:4] + [away] * 4, truth[:1] + [away] * 7, None]
    texts = [f"<answer>{tasks.boxes_text(boxes)}</answer>" if boxes else "?" for boxes in answers]
    assert reported("tracking", [record(text, truth) for text in texts]) == pytest.approx({
        "overlap": 100 * (8 + 4 + 1) / 32,
        "R@0.5": 50,  # the second's mean is 0.5 itself
        "R@0.7": 25,
        "SR@0.5": 100 * 13 / 32,
        "SR@0.7": 100 * 13 / 32,
        "AO without first": 100 * (7 + 3) / 28,
        "SR@0.5 without first": 100 * 10 / 28,
        "SR@0.75 without first": 100 * 10 / 28,
    })


def test_a_box_of_which_half_is_right_is_no_success():
    """GOT-10k counts overlaps above the threshold, Charades-STA those at it."""
    text = f"<answer>{tasks.boxes_text([(0, 0, 1, 0.5)] * 8)}</answer>"
    found = reported("tracking", [record(text, [(0.0, 0.0, 1.0, 1.0)] * 8)])
    assert found["overlap"] == found["AO without first"] == 50
    assert found["SR@0.5"] == found["SR@0.5 without first"] == 0
    half = record("<answer>0 to 5</answer>", (0.0, 10.0))
    assert reported("grounding", [half])["R@0.5"] == 100


def test_tasks_without_a_function_report_the_mean_of_their_rules():
    texts = ["<answer>Low quality</answer>", "<answer>high quality</answer>", "low", ""]
    quality = [record(text, "low quality") for text in texts]
    assert reported("quality", quality) == {"accuracy": 25}
    events = ["a boy kicks a ball", "the dog runs away"]
    texts = [
        "<answer>A boy kicks a ball. Then the dog runs away.</answer>",
        "<answer>A boy kicks a ball.</answer>",
        "",
        "<answer></answer>",
    ]
    assert reported("caption", [record(text, events) for text in texts]) == {"recall": 37.5}


def test_choice():
    records = [
        record("<answer>B</answer>", "B", "short"),
        record("<answer>A</answer>", "B", "short"),
        record("<answer>(C)</answer>", "C", "long"),
        record("", "C", "long"),
    ]
    expected = {"accuracy": 50, "mean of groups": 50, "short": 50, "long": 50}
    assert reported("qa", records) == expected
    some = reported("qa", records[:3])
    assert some["accuracy"] == pytest.approx(200 / 3) and some["mean of groups"] == 75
    assert reported("qa", records[:1]) == {"accuracy": 100}


def test_lengths_are_shown_from_the_shortest():
    """Those without a number as the file has them."""
    for groups, order in (
        (["short", "medium", "long"], [0, 1, 2]),
        (["up to 3600 s", "up to 15 s", "up to 600 s", "up to 60 s"], [1, 3, 2, 0]),
    ):
        found = reported("qa", [record("<answer>A</answer>", "A", group) for group in groups])
        assert list(found) == ["accuracy", "mean of groups", *(groups[k] for k in order)]


def test_gqa():
    truth = ("B", [(0.0, 10.0)])
    texts = [
        "<answer>B</answer><glue>[(0, 5)]</glue>",  # half of the truth, and all of it true
        "<answer>B</answer><glue>[(0, 4)]</glue>",
        "<answer>A</answer><glue>[(0, 10)]</glue>",
        "<answer>B</answer>",
    ]
    assert reported("gqa", [record(text, truth) for text in texts]) == pytest.approx({
        "accuracy": 75,
        "Acc@GQA": 50,
        "mIoP": 75,
        "IoP@0.3": 75,
        "IoP@0.5": 75,
        "mIoU": 100 * (0.5 + 0.4 + 1.0) / 4,
        "IoU@0.3": 75,
        "IoU@0.5": 50,
        "mIoU of sets": 100 * (0.5 + 0.4 + 1.0) / 4,
        "Acc@IoU0.5": 25,
    })


def test_the_best_of_several_true_intervals_counts():
    """The authors compare with each and take the best; the set of both is another question."""
    truth = ("B", [(0.0, 2.0), (10.0, 14.0)])
    found = reported("gqa", [record("<answer>B</answer><glue>[(10, 14)]</glue>", truth)])
    assert found["mIoU"] == found["mIoP"] == found["Acc@GQA"] == 100
    assert found["mIoU of sets"] == pytest.approx(100 * 4 / 6)


def test_questions_without_evidence():
    """With --clues, in data that has letters alone."""
    found = reported("gqa", [record("<answer>B</answer><glue>[(1, 4)]</glue>", ("B", []))])
    assert found["accuracy"] == 100 and found["mIoP"] == found["Acc@GQA"] == 0


def test_descriptions_both_ways_and_by_source():
    a = (["a boy kicks a ball", "the dog runs away"], "A boy kicks a ball. The dog runs away.")
    b = (["a cat sleeps"], "A cat sleeps. It rains.")
    records = [
        record("<answer>A boy kicks a ball. A plane lands.</answer>", a, "stock"),  # r 1/2, p 1/2
        record("<answer>A boy kicks a ball!\nThe dog runs away.</answer>", a, "stock"),  # 1, 1
        record("<answer>A cat sleeps. It rains. Snow melts. Birds fly.</answer>", b, "film"),
        record("", b, "film"),  # 0, 0; the one before it has r 1, p 1/2
    ]
    r, p = (0.75 + 0.5) / 2, (0.75 + 0.25) / 2
    expected = {"F1": 200 * r * p / (r + p), "precision": 100 * p, "recall": 100 * r}
    assert reported("description", records) == pytest.approx(expected)
    uneven = reported("description", records[:3])  # sources count the same
    assert uneven["recall"] == pytest.approx(100 * (0.75 + 1) / 2)
    assert reported("description", records[3:]) == {"F1": 0, "precision": 0, "recall": 0}


def test_ten_events_of_a_caption_are_judged_by_whoever_judges(monkeypatch):
    asked = []

    def judge(caption, event):
        asked.append((caption, event))
        return event.endswith(("1", "2"))

    monkeypatch.setattr(rewards, "judge", judge)
    text = "<answer>" + " ".join(f"Event {k}." for k in range(1, 15)) + "</answer>"
    found = reported("description", [record(text, (["event 1"], "the text"), "film")])
    said = [event for caption, event in asked if caption == "the text"]
    assert said == [f"Event {k}" for k in range(1, 11)]
    assert found == {"F1": pytest.approx(100 / 3), "precision": 20, "recall": 100}


# Slow and obvious -------------------------------------------------------------------------------

SEED = 17


def some_intervals(rng, most):
    """Intervals on a grid of quarter seconds, which floats hold exactly; also empty ones."""
    starts = [rng.randrange(60) for _ in range(rng.randint(1, most))]
    return [(s / 4, (s + rng.choice([0, 1, 2, 5, 11, 20])) / 4) for s in starts]


def cells(interval):
    """The quarter seconds that an interval holds."""
    return set(range(int(4 * interval[0]), int(4 * interval[1])))


def slow_evidence(predicted, true):
    """(best IoU, best IoP, IoU of the sets), counted in quarter seconds."""
    seconds = set().union(*map(cells, predicted))
    ious, iops = [0], [0]
    for interval in true:
        shared = seconds & cells(interval)
        if seconds:
            ious.append(len(shared) / len(seconds | cells(interval)))
            iops.append(len(shared) / len(seconds))
        else:  # moments alone
            iops.append(sum(interval[0] <= s <= interval[1] for s, _ in predicted) / len(predicted))
    everything = set().union(*map(cells, true))
    sets = len(seconds & everything) / len(seconds | everything) if seconds | everything else 0
    return max(ious), max(iops), sets


def mean(values):
    return pytest.approx(100 * sum(values) / len(values))


@pytest.mark.parametrize("most", [1, 4])
def test_nextgqa_on_500_random_answers(most):
    """most: predicted intervals. With one, these are the numbers of the authors' script."""
    rng, records, slow = random.Random(SEED), [], []
    for _ in range(500):
        true = [i for i in some_intervals(rng, 4) if i[1] > i[0]] or [(1.0, 2.0)]
        predicted, letter = some_intervals(rng, most), rng.choice("AB")
        pairs = ", ".join(f"({a}, {b})" for a, b in predicted)
        text = f"<answer>{letter}</answer><glue>[{pairs}]</glue>"
        records.append(record(text, ("A", true)))
        slow.append((letter == "A", *slow_evidence(predicted, true)))
    records = json.loads(json.dumps(records))  # as predictions.jsonl gives them back
    right, ious, iops, sets = map(list, zip(*slow))
    assert 0.05 < sum(iou >= 0.5 for iou in ious) / 500 < 0.95  # both sides of the threshold
    assert ious != sets
    assert reported("gqa", records) == {
        "accuracy": mean(right),
        "Acc@GQA": mean([ok and iop >= 0.5 for ok, iop in zip(right, iops)]),
        "mIoP": mean(iops),
        "IoP@0.3": mean([iop >= 0.3 for iop in iops]),
        "IoP@0.5": mean([iop >= 0.5 for iop in iops]),
        "mIoU": mean(ious),
        "IoU@0.3": mean([iou >= 0.3 for iou in ious]),
        "IoU@0.5": mean([iou >= 0.5 for iou in ious]),
        "mIoU of sets": mean(sets),
        "Acc@IoU0.5": mean([ok and iou >= 0.5 for ok, iou in zip(right, sets)]),
    }


def some_box(rng):
    x0, y0 = rng.randrange(12), rng.randrange(12)
    return x0 / 16, y0 / 16, rng.randint(x0 + 1, 16) / 16, rng.randint(y0 + 1, 16) / 16


def pixels(box):
    x0, y0, x1, y1 = (int(16 * v) for v in box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def test_tracking_on_500_random_answers():
    """Boxes on a grid of 16 × 16 pixels, counted pixel by pixel."""
    rng, records, rows = random.Random(SEED), [], []
    for k in range(500):
        true, skill = [some_box(rng) for _ in range(8)], rng.random()
        near = [box if rng.random() < skill else some_box(rng) for box in true]
        listed = ", ".join(f"[{', '.join(map(str, box))}]" for box in near)
        records.append(record(f"<answer>[{listed}]</answer>" if k % 10 else "lost it", true))
        overlaps = [
            len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)) for a, b in zip(near, true)
        ]
        rows.append(overlaps if k % 10 else [0.0] * 8)
    given, asked = [v for row in rows for v in row], [v for row in rows for v in row[1:]]
    assert 50 < sum(sum(row) / 8 >= 0.7 for row in rows) < 450
    assert reported("tracking", json.loads(json.dumps(records))) == {
        "overlap": mean(given),
        "R@0.5": mean([sum(row) / 8 >= 0.5 for row in rows]),
        "R@0.7": mean([sum(row) / 8 >= 0.7 for row in rows]),
        "SR@0.5": mean([v > 0.5 for v in given]),
        "SR@0.7": mean([v > 0.7 for v in given]),
        "AO without first": mean(asked),
        "SR@0.5 without first": mean([v > 0.5 for v in asked]),
        "SR@0.75 without first": mean([v > 0.75 for v in asked]),
    }


def test_examples_in_docstrings():
    assert doctest.testmod(metrics).failed == 0
