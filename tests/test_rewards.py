"""The rules of rewards.py: what must earn full marks, and everything that must not."""

import doctest
import random

import pytest

import data
import rewards
from data import Example
from rewards import score, temporal_iou

TRUE = (12.0, 18.0)


def example(answer=TRUE):
    return Example("x/0", "grounding", "x.mp4", "a door opens", answer)


@pytest.mark.parametrize("think", [True, False])
def test_the_ideal_answer_to_every_prompt_earns_full_marks(think):
    for task in data.PROMPTS:
        text = data.ideal_answer(example(), thought="the door opens late" if think else None)
        assert score(task, text, TRUE, think) == dict.fromkeys(rewards.REWARDS[task], 1.0)


@pytest.mark.parametrize("think", [True, False])
def test_the_form_shown_in_the_prompt_is_the_form_that_is_paid(think):
    """A prompt and a reward that disagree are the commonest bug of such projects; the prompt's own example must pass."""
    for task in data.PROMPTS:
        shown = data.question_text(example(), 30.0, think).split("like this: ")[1]
        assert score(task, shown, TRUE, think)["format"] == 1.0


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
    assert score("grounding", "<think>a</think><answer>12.0 to 18.0</answer>", TRUE, think=False)["format"] == 0.0


@pytest.mark.parametrize("answer", ["18.0 to 12.0", "15.0 to 15.0", "0.0 to 0.0"])
def test_reversed_and_empty_intervals_have_the_form_but_earn_no_iou(answer):
    assert score("grounding", f"<think>a</think><answer>{answer}</answer>", TRUE, True) == {"format": 1.0, "iou": 0.0}


def test_two_answers_earn_no_iou():
    """Otherwise a policy could list many intervals and be paid for the best, or the last."""
    assert score("grounding", "<answer>12.0 to 18.0</answer><answer>1.0 to 2.0</answer>", TRUE, False) == {"format": 0.0, "iou": 0.0}


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
        assert temporal_iou([x / 10 for x in a], [x / 10 for x in b]) == pytest.approx(len(both) / len(either))


def test_any_string_gives_numbers_between_0_and_1():
    rng = random.Random(0)
    pieces = [*rewards.TAGS, "12.0", " to ", "9" * 400, ".", "-", "nan", "inf", "1e999", "[" * 50, "\n", "é", "\x00", "💥", " ", "<", ">", "12.0 to 18.0"]
    for _ in range(20000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        for think in (True, False):
            for value in score("grounding", text, TRUE, think).values():
                assert 0.0 <= value <= 1.0


def test_long_junk_is_scored_quickly_enough_to_be_harmless():
    """Regular expressions can take exponential time; ours must not."""
    for text in ("<think>" * 20000, "<answer>" + "1" * 100000 + "</answer>", "<think></think><answer>" + " " * 100000 + "</answer>"):
        assert score("grounding", text, TRUE, True)["iou"] == 0.0


def test_examples_in_docstrings():
    assert doctest.testmod(rewards).failed == 0
