"""Forms of answers that real models give: what a person would read in each, whether it has the form
asked for, and what the paper's own training code pays for its content.

The last column was computed with that code (github.com/OpenGVLab/VideoChat-R1, grpo_tasks.py and
evaluate_cls_quality): where it differs from ours, docs/differences.md says why.
"""

import doctest
import random
import time

import pytest

from evaluation import predictions
from evaluation.predictions import rewards_of, right_without_form, with_tags
from lib import wording
from lib.wording import parse_boxes, parse_interval, parse_intervals, parse_letter, parse_phrase
from tasks import score

# ------------------------------------------------------------------------------------------------
# Inside the tags
# ------------------------------------------------------------------------------------------------

WHEN, WHERE, EVIDENCE = (12.0, 18.0), [(0.1, 0.2, 0.5, 0.6)] * 8, ("B", [(5.2, 10.4)])
RIGHT, BOX = (12.0, 18.0), "[0.1, 0.2, 0.5, 0.6]"
EIGHT = ", ".join([BOX] * 8)

GROUNDING = [  # what is answered, what is read, in the form?, the official IoU with 12 to 18
    ("12.0 to 18.0", RIGHT, 1, 1),
    ("12 to 18", RIGHT, 1, 1),
    ("12.0  to\n18.0", RIGHT, 1, 0),
    ("12.0 to 18.0 seconds", RIGHT, 0, 1),
    ("12.0 to 18.0,", RIGHT, 0, 1),
    ("from 12 to 18", RIGHT, 0, 1),
    ("From 12 to 18.", RIGHT, 0, 1),
    ("12.0 TO 18.0", RIGHT, 0, 1),
    ("12.0 and 18.0", RIGHT, 0, 1),
    ("between 12.0 and 18.0", RIGHT, 0, 1),
    ("12.0 - 18.0", RIGHT, 0, 0),
    ("12.0 - 18.0s", RIGHT, 0, 0),
    ("12-18", RIGHT, 0, 0),
    ("12.0–18.0 s", RIGHT, 0, 0),
    ("12.0s to 18.0s", RIGHT, 0, 0),
    ("12 seconds to 18 seconds", RIGHT, 0, 0),
    ("12.0 until 18.0", RIGHT, 0, 0),
    ("0:12 to 0:18", RIGHT, 0, 0),
    ("00:12.0 - 00:18.0", RIGHT, 0, 0),
    ("0:00:12 to 0:00:18", RIGHT, 0, 0),
    ("1:02:03 to 1:02:08", (3723.0, 3728.0), 0, 0),
    ('"12.0 to 18.0"', RIGHT, 0, 1),
    ("**12.0 to 18.0**", RIGHT, 0, 1),
    ("**12.0** to **18.0**", RIGHT, 0, 0),
    ("[12.0, 18.0]", RIGHT, 0, 0),
    ("(12.0,18.0)", RIGHT, 0, 0),
    ("start: 12.0, end: 18.0", RIGHT, 0, 0),
    ("start_time = 12.0; end_time = 18.0", RIGHT, 0, 0),
    ('{"start": 12.0, "end": 18.0}', RIGHT, 0, 0),
    ("It starts at 12.0 seconds and ends at 18.0 seconds.", RIGHT, 0, 0),
    ("The start time is 12.0 and the end time is 18.0", RIGHT, 0, 0),
    ("The man sits down from 12.0 to 18.0 in the video.", RIGHT, 0, 1),
    ("The video lasts 30.0 seconds; it happens from 12.0 to 18.0.", RIGHT, 0, 1),
    ("12.0 to 18.0 (0:12 to 0:18)", RIGHT, 0, 0),
    ("12.3333333333 to 18.0", (12.3333333333, 18.0), 0, 5.6666666667 / 6),
    ("18.0 to 12.0", (18.0, 12.0), 1, 0),
    ("12.0 to 18.0 or 20.0 to 25.0", None, 0, 0),
    ("1.0 to 2.0, 12.0 to 18.0", None, 0, 1),
    ("12 to 15 to 18", None, 0, 0.5),
    ("at 12, 15 and 18", None, 0, 0.5),
    ("12.0", None, 0, 0),
    ("-12.0 to 18.0", None, 0, 1),
    ("12,0 to 18,0", None, 0, 1 / 3),
    ("1e1 to 18.0", None, 0, 6 / 17),
    ("12% to 18%", None, 0, 0),
    ("1 to 2 minutes", None, 0, 0),
    ("frames 12 to 18 frames", None, 0, 1),
    ("nan to inf", None, 0, 0),
    ("١٢ to ١٨", None, 0, 1),  # float() takes these digits
    ("", None, 0, 0),
]

CHOICE = [  # what is answered, what is read, in the form?, the official accuracy where B is right
    ("B", "B", 1, 1),
    ("(B)", "B", 1, 1),
    ("B.", "B", 1, 1),
    ("B)", "B", 1, 1),
    ("b", "B", 0, 0),
    ("(b).", "B", 0, 0),
    ("'B'", "B", 0, 1),
    ("**B**", "B", 0, 1),
    ("\\boxed{B}", "B", 0, 1),
    ("B. the dog", "B", 0, 1),
    ("(B) the dog", "B", 0, 1),
    ("B: the dog", "B", 0, 1),
    ("**B. the dog**", "B", 0, 1),
    ("B. Vitamin C", "B", 0, 1),
    ("The answer is B", "B", 0, 1),
    ("The correct answer is (B).", "B", 0, 1),
    ("The answer is B, because A dog barks.", "B", 0, 1),
    ("Answer: B", "B", 0, 0),  # the first of A to G in it is A
    ("Answer: **B**", "B", 0, 0),
    ("Option B", "B", 0, 1),
    ("B is correct", "B", 0, 1),
    ("I think it is B", "B", 0, 1),
    ("A boy, so B", "B", 0, 0),
    ("A", "A", 1, 0),
    ("A is correct", "A", 0, 0),
    ("B or C", None, 0, 1),
    ("A or B", None, 0, 0),
    ("(A) or (B)", None, 0, 0),
    ("B and C", None, 0, 1),
    ("B, C", None, 0, 1),
    ("B/C", None, 0, 1),
    ("A, B, C or D", None, 0, 0),
    ("Both of them", None, 0, 1),
    ("A dog barks", None, 0, 0),
    ("the dog", None, 0, 0),
    ("", None, 0, 0),
]

GLUE = [  # what is answered, what is read, in the form?, the official IoU with 5.2 to 10.4
    ("[(5.2, 10.4)]", [(5.2, 10.4)], 1, 1),
    ("[(5.2,10.4)]", [(5.2, 10.4)], 1, 1),
    ("[(5.2, 10.4),]", [(5.2, 10.4)], 0, 1),
    ("(5.2, 10.4)", [(5.2, 10.4)], 0, 0),
    ("[[5.2, 10.4]]", [(5.2, 10.4)], 0, 0),
    ("5.2 to 10.4", [(5.2, 10.4)], 0, 0),
    ("5.2s - 10.4s", [(5.2, 10.4)], 0, 0),
    ("(0:05.2, 0:10.4)", [(5.2, 10.4)], 0, 0),
    ("[(5.2, 10.4), (5.2, 10.4)]", [(5.2, 10.4)] * 2, 1, 1),
    ("5.2 to 10.4 and 12 to 13.5", [(5.2, 10.4), (12.0, 13.5)], 0, 0),
    ("[5.2, 10.4, 12.0, 13.5]", None, 0, 0),
    ("[(10.4, 5.2)]", [(10.4, 5.2)], 1, 0),
    ("[]", None, 0, 0),
]

TRACKING = [  # what is answered, the box read eight times, in the form?, the official IoU
    (f"[{EIGHT}]", WHERE[0], 1, 1),
    (f"[{EIGHT}]".replace("], ", "],\n"), WHERE[0], 1, 1),
    (f"[{EIGHT},]", WHERE[0], 0, 1),
    (f"[{EIGHT}]".replace("0.6", "0.6,"), WHERE[0], 0, 1),
    (f"[{EIGHT}].", WHERE[0], 0, 0),
    (EIGHT, WHERE[0], 0, 0),
    (f"[{EIGHT}]".replace("[0", "(0").replace("6]", "6)"), WHERE[0], 0, 0),
    (f"The boxes are [{EIGHT}], as you see.", WHERE[0], 0, 0),
    (f'{{"boxes": [{EIGHT}]}}', WHERE[0], 0, 0),
    (f"[{EIGHT}]".replace("0.1", "-0.1"), (-0.1, 0.2, 0.5, 0.6), 0, 2 / 3),
    (f"[{EIGHT}, {BOX}]", None, 0, 0),
    (f"[{', '.join([BOX] * 7)}]", None, 0, 0),
    (BOX, None, 0, 0),
]

QUALITY = [  # what is answered, what is read, in the form?, the official accuracy
    ("high quality", "high quality", 1, 1),
    ("High Quality", "high quality", 1, 1),
    ("high quality.", "high quality", 1, 0),
    ("**high quality**", "high quality", 1, 0),
    ("high", "high quality", 1, 0),
    ("The quality is high", "high quality", 1, 0),
    ("The quality of this video is high, to the eye.", "high quality", 0, 0),
    ("low quality", "low quality", 1, 0),
    ("not high quality", "not high quality", 1, 0),
    ("high quality or low quality", "high quality or low quality", 1, 0),
    ("good", "good", 1, 0),
]

TABLE = [
    *(("grounding", WHEN, parse_interval, *row) for row in GROUNDING),
    *(("qa", "B", parse_letter, *row) for row in CHOICE),
    *(("gqa", EVIDENCE, parse_intervals, *row) for row in GLUE),
    *(("tracking", WHERE, parse_boxes, *row) for row in TRACKING),
    *(("quality", "high quality", parse_phrase, *row) for row in QUALITY),
]


@pytest.mark.parametrize("task, truth, read, said, content, form, official", TABLE)
def test_what_a_person_reads(task, truth, read, said, content, form, official):
    """And that the rules pay for just that: the official reward is the same, or one of the forms
    that it misses, or one that it should not pay."""
    if task == "tracking" and content:
        content = [content] * 8
    assert read(said) == content
    text = f"<answer>{said}</answer>"
    if task == "gqa":
        text = f"<answer>B</answer><glue>{said}</glue>"
    paid = score(task, f"<think>hm</think>{text}", truth, True)
    assert paid["format"] == form
    ours = paid.get("iou", paid.get("accuracy"))
    if content is None:
        assert ours == 0
    elif official and "-0.1" not in said:  # what is outside the frame counts for nothing here
        assert ours == pytest.approx(official)
    assert 0 <= official <= 1


def test_the_table_is_long_enough_to_be_one():
    assert len(TABLE) >= 60 and len({(row[0], row[3]) for row in TABLE}) == len(TABLE)


# ------------------------------------------------------------------------------------------------
# The tags
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, trained, evaluated", [
    ("<think>a</think><answer>12.0 to 18.0</answer>", 1, 1),
    ("<answer>12.0 to 18.0</answer>", 1, 1),
    ("<think>I put it in <answer> tags</think><answer>12.0 to 18.0</answer>", 1, 1),
    ("<think>is it <answer>1 to 2</answer>?</think><answer>12.0 to 18.0</answer>", 1, 1),
    ("<answer>12.0 to 18.0</answer><think>so <answer> it is</think>", 1, 1),
    ("<think><answer>12.0 to 18.0</answer></think>", 1, 1),  # the only block there is
    ("<think>so<answer>12.0 to 18.0</answer>", 1, 1),
    ("12.0 to 18.0", 0, 1),
    ("<think>Perhaps 1 to 2.</think>It happens from 12.0 to 18.0.", 0, 1),
    ("<think>in <answer> tags</think>12.0 to 18.0", 0, 1),
    ("<answer>12.0 to 18.0", 0, 1),  # cut short
    ("<think>a</think><answer>12.0 to 18.0 seconds", 0, 1),
    ("<think>from 12.0 to 18.0", 0, 0),  # a thought that did not end
    ("12.0 to 18.0</answer>", 0, 0),
    ("<answer>12.0 to 18.0</answer><answer>12.0 to 18.0</answer>", 0, 0),
    ("<think>a</think><answer>1.0 to 2.0</answer><answer>12.0 to 18.0</answer>", 0, 0),
    ("</answer>12.0 to 18.0<answer>", 0, 0),
    ("", 0, 0),
])  # fmt: skip
def test_where_an_answer_may_stand(text, trained, evaluated):
    """Training pays for what is inside the tags; an evaluation reads a model without them, too."""
    form = float(text == "<think>a</think><answer>12.0 to 18.0</answer>")
    assert score("grounding", text, WHEN, True) == {"format": form, "iou": trained}
    assert rewards_of("grounding", text, WHEN, True) == {"format": form, "iou": evaluated}
    assert with_tags(with_tags(text)) == with_tags(text)


def test_an_evaluation_counts_what_is_right_without_the_form():
    texts = ["<answer>B</answer>", "B. the dog", "The answer is B", "C", "<answer>C</answer>", ""]
    records = [{"text": t, "answer": "B", "group": ""} | rewards_of("qa", t, "B", False)
               for t in texts]  # fmt: skip
    assert right_without_form("qa", records) == 2
    figures = predictions.metrics_of("qa", records)
    assert figures == {"accuracy": pytest.approx(50), "format": pytest.approx(100 / 3)}
    both = [{"format": 0.0, "accuracy": 1.0, "iou": iou} for iou in (0.4, 0.6)]
    assert right_without_form("gqa", both) == 1
    assert right_without_form("gqa", [{"format": 0.0, "accuracy": "1"}]) == 0  # a damaged record


# ------------------------------------------------------------------------------------------------
# Any string, and how long it takes
# ------------------------------------------------------------------------------------------------

READERS = (parse_interval, parse_intervals, parse_boxes, parse_letter, parse_phrase)
PIECES = ("12", "12.5", "0:12", " ", "  ", ", ", "to", "and", "-", " ends at ", "start: ", "s", ":",
          "[", "(", ")", "]", "A", "B", "(B)", " or ", "answer is ", "option", "*", '"', ".", "%",
          "high", "-0.1", "0.2,", "1:", "9" * 30, "é", "\n", "<", "{", "/", "&")  # fmt: skip


@pytest.mark.parametrize("read", READERS)
def test_time_grows_with_the_length_alone(read):
    """Ten times as long takes no more than about ten times as long; a pattern that tries every way
    of sharing out a run of spaces would take a hundred times."""
    rng = random.Random(0)
    units = [*PIECES, *("".join(rng.choices(PIECES, k=rng.randrange(2, 6))) for _ in range(60))]
    slowest = 0.0
    for unit in units:
        text = unit * (60_000 // len(unit))
        began = time.process_time()
        read(text)
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 1, f"60,000 characters took {slowest:.1f} s"


def test_the_readers_take_any_string():
    rng = random.Random(1)
    for _ in range(20_000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(15)))
        interval, intervals, boxes, letter, phrase = (read(text) for read in READERS)
        assert interval is None or all(0 <= t < 1e7 for t in interval)
        assert intervals is None or 0 < len(intervals) <= 20
        assert boxes is None or len(boxes) == 8
        assert letter is None or letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        assert isinstance(phrase, str)
        assert (interval is not None) <= (intervals is not None)


@pytest.mark.parametrize("module", [wording, predictions])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
