"""The rules of rewards.py: what must earn full marks, and everything that must not."""

import doctest
import random

import pytest

import rewards
from rewards import box_iou, interval_set_iou, temporal_iou
from tasks import TASKS, score

TRUE = (12.0, 18.0)


NEAR_MISSES_THINKING = [
    "<answer>12.0 to 18.0</answer>",  # no thought
    "<think>a</think>12.0 to 18.0",  # no answer tags
    "<think>a</think><answer>12.0 to 18.0</answer><answer>12.0 to 18.0</answer>",  # two answers
    "<think>a</think><think>b</think><answer>12.0 to 18.0</answer>",  # two thoughts
    "<answer>12.0 to 18.0</answer><think>a</think>",  # the wrong way round
    "<think><answer>12.0 to 18.0</answer></think>",  # one inside the other
    "<think>a<answer></think>12.0 to 18.0</answer>",  # crossed
    "Sure: <think>a</think><answer>12.0 to 18.0</answer>",  # words before
    "<think>a</think><answer>12.0 to 18.0</answer> I hope this helps",  # words after
    "<think>a</think> so <answer>12.0 to 18.0</answer>",  # words between
    "<think>a</think><answer>12.0 to 18.0</answer><|im_start|>",  # a special token after
    "<think>a</think><answer>12.0 to 18.0",  # never closed
    "<think>a</think><answer>12.0 - 18.0</answer>",
    "<think>a</think><answer>from 12.0 to 18.0</answer>",
    "<think>a</think><answer>12.0 to 18.0 seconds</answer>",
    "<think>a</think><answer>12,0 to 18,0</answer>",
    "<think>a</think><answer>-12.0 to 18.0</answer>",
    "<think>a</think><answer>1e1 to 18.0</answer>",
    "<think>a</think><answer>nan to inf</answer>",
    "<think>a</think><answer>١٢ to ١٨</answer>",  # digits, but not ours
    "<think>a</think><answer></answer>",
    "<Think>a</Think><Answer>12.0 to 18.0</Answer>",
    "",
]


@pytest.mark.parametrize("text", NEAR_MISSES_THINKING)
def test_near_misses_fail_the_format(text):
    assert score("grounding", text, TRUE, think=True)["format"] == 0.0


def test_a_thought_that_was_not_asked_for_fails_the_format():
    text = "<think>a</think><answer>12.0 to 18.0</answer>"
    assert score("grounding", text, TRUE, think=False)["format"] == 0.0


@pytest.mark.parametrize("answer", ["18.0 to 12.0", "15.0 to 15.0", "0.0 to 0.0"])
def test_reversed_and_empty_intervals_have_the_form_but_earn_no_iou(answer):
    text = f"<think>a</think><answer>{answer}</answer>"
    assert score("grounding", text, TRUE, True) == {"format": 1.0, "iou": 0.0}


def test_two_answers_earn_no_iou():
    """Otherwise a policy could list many intervals and be paid for the best, or the last."""
    text = "<answer>12.0 to 18.0</answer><answer>1.0 to 2.0</answer>"
    assert score("grounding", text, TRUE, False) == {"format": 0.0, "iou": 0.0}


def test_iou_by_hand():
    assert temporal_iou((0, 10), (0, 10)) == 1.0
    assert temporal_iou((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert temporal_iou((2, 4), (0, 10)) == pytest.approx(0.2)  # inside
    assert temporal_iou((0, 2), (2, 4)) == 0.0  # touching
    assert temporal_iou((0, 2), (8, 10)) == 0.0  # apart
    assert temporal_iou((5, 3), (3, 5)) == 0.0  # reversed: not read as (3, 5)
    assert temporal_iou((3, 5), (5, 3)) == 0.0


def test_iou_agrees_with_counting_on_a_grid():
    """A slow and obvious version: count the tenths of a second in both, and in either."""
    rng = random.Random(0)
    for _ in range(300):
        a, b = (sorted(rng.sample(range(200), 2)) for _ in "ab")
        both, either = set(range(*a)) & set(range(*b)), set(range(*a)) | set(range(*b))
        assert temporal_iou([x / 10 for x in a], [x / 10 for x in b]) == pytest.approx(
            len(both) / len(either)
        )


def test_interval_sets_agree_with_counting_on_a_grid():
    rng = random.Random(1)
    for _ in range(300):
        sets = [
            [tuple(sorted(rng.sample(range(100), 2))) for _ in range(rng.randrange(1, 5))]
            for _ in "ab"
        ]
        a, b = ({t for interval in s for t in range(*interval)} for s in sets)
        assert interval_set_iou(*sets) == pytest.approx(len(a & b) / len(a | b))
    assert (
        interval_set_iou([], [(1, 2)])
        == interval_set_iou([], [])
        == interval_set_iou([(3, 1)], [(1, 3)])
        == 0.0
    )


def test_boxes_agree_with_counting_pixels():
    rng = random.Random(2)
    for _ in range(300):
        boxes = []
        for _ in "ab":
            (x0, x1), (y0, y1) = (
                sorted(rng.sample(range(-4, 25), 2)),
                sorted(rng.sample(range(-4, 25), 2)),
            )
            boxes.append((x0, y0, x1, y1))
        inside = [
            {(x, y) for x in range(max(0, x0), min(20, x1)) for y in range(max(0, y0), min(20, y1))}
            for x0, y0, x1, y1 in boxes
        ]
        either = inside[0] | inside[1]
        expected = len(inside[0] & inside[1]) / len(either) if inside[0] and inside[1] else 0.0
        assert box_iou(*([v / 20 for v in box] for box in boxes)) == pytest.approx(expected)


TRUTHS = {
    "grounding": TRUE,
    "tracking": [(0.1, 0.2, 0.5, 0.6)] * 8,
    "qa": "B",
    "gqa": ("B", [(5.2, 10.4), (12.0, 13.5)]),
    "quality": "high quality",
    "caption": ["a boy kicks a ball", "the dog runs away"],
    "description": (["a boy kicks a ball"], "A boy kicks a ball."),
}

EIGHT = "[" + ", ".join(["[0.1, 0.2, 0.5, 0.6]"] * 8) + "]"


@pytest.mark.parametrize("task, text, expected", [
    ("tracking", f"<answer>{EIGHT}</answer>", {"format": 1, "iou": 1}),
    ("tracking", f"<answer>{EIGHT[:-1]}, [0, 0, 1, 1]]</answer>", {"format": 0, "iou": 0}),  # nine
    ("tracking", "<answer>" + "[" * 3000 + "</answer>", {"format": 0, "iou": 0}),
    ("tracking", f"<answer>{EIGHT.replace('0.6', '1e9')}</answer>", {"format": 0, "iou": 0}),
    ("tracking", f"<answer>{EIGHT.replace('0.1, 0.2, 0.5, 0.6', '0.5, 0.6, 0.1, 0.2')}</answer>",
        {"format": 1, "iou": 0}),  # inside out
    ("tracking", f"I see it: {EIGHT}", {"format": 0, "iou": 0}),
    ("qa", "<answer>B</answer>", {"format": 1, "accuracy": 1}),
    ("qa", "<answer>(B)</answer>", {"format": 1, "accuracy": 1}),
    ("qa", "<answer>C</answer>", {"format": 1, "accuracy": 0}),
    ("qa", "<answer>B or C</answer>", {"format": 0, "accuracy": 0}),
    ("qa", "<answer>B</answer><answer>C</answer>", {"format": 0, "accuracy": 0}),
    ("qa", "B", {"format": 0, "accuracy": 0}),
    ("gqa", "<answer>B</answer><glue>[(5.2, 10.4), (12.0, 13.5)]</glue>",
        {"format": 1, "accuracy": 1, "iou": 1}),
    ("gqa", "<answer>B</answer>", {"format": 0, "accuracy": 1, "iou": 0}),
    ("gqa", "<glue>[(5.2, 10.4), (12.0, 13.5)]</glue><answer>B</answer>",
        {"format": 0, "accuracy": 1, "iou": 1}),
    ("gqa", "<answer>B</answer><glue>[]</glue>", {"format": 0, "accuracy": 1, "iou": 0}),
    ("gqa", "<answer>B</answer><glue>[(10.4, 5.2)]</glue>", {"format": 1, "accuracy": 1, "iou": 0}),
    ("quality", "<answer>High quality</answer>", {"format": 1, "accuracy": 1}),
    ("quality", "<answer>low quality</answer>", {"format": 1, "accuracy": 0}),
    ("quality", "<answer>high quality low quality</answer>", {"format": 1, "accuracy": 0}),
    ("caption", "<answer>A boy is kicking the ball. Then it rains.</answer>",
        {"format": 1, "recall": 0.5}),
    ("caption", "<answer>the dog runs away and a boy kicks a ball</answer>",
        {"format": 1, "recall": 1}),
    ("caption", "<answer></answer>", {"format": 0, "recall": 0}),
    ("caption", "a boy kicks a ball", {"format": 0, "recall": 0}),
])  # fmt: skip
def test_what_other_tasks_pay(task, text, expected):
    assert score(task, text, TRUTHS[task], False) == expected
    assert score(task, "<think>hm</think>" + text, TRUTHS[task], True) == expected


@pytest.mark.parametrize("task", TASKS)
def test_any_string_gives_numbers_between_0_and_1(task):
    rng = random.Random(0)
    pieces = (*rewards.TAGS, "12.0", " to ", "9" * 400, ".", "-", "nan", "inf", "1e999", "[" * 50,
              "\n", "é", "\x00", "💥", " ", "<", ">", "12.0 to 18.0", EIGHT, "B", "(B)", "[(1, 2)]",
              "[(2, 1), (3, 4)]", "high quality", "a boy kicks a ball.", ", ")  # fmt: skip
    for _ in range(8000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        for think in (True, False):
            for value in score(task, text, TRUTHS[task], think).values():
                assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("task", TASKS)
def test_long_junk_is_scored_quickly_enough_to_be_harmless(task):
    """Regular expressions can take exponential time; ours must not."""
    for inside in ("<think>" * 20000, "1" * 100000, " " * 100000, "[" + "[0,0,0,0]," * 20000,
                   "[(1, 2)" + ", (1, 2)" * 20000, "a. " * 50000):  # fmt: skip
        answer, evidence = f"<answer>{inside}</answer>", f"<answer>B</answer><glue>{inside}</glue>"
        for text in (answer, f"<think></think>{evidence}", inside):
            assert all(0.0 <= v <= 1.0 for v in score(task, text, TRUTHS[task], True).values())


def test_examples_in_docstrings():
    assert doctest.testmod(rewards).failed == 0
