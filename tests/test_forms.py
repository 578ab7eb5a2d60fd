"""Forms of answers that real models give: what a person would read in each, whether it has the form
asked for, and what the paper's own training code pays for its content.

The last column was computed with that code (github.com/OpenGVLab/VideoChat-R1, grpo_tasks.py and
evaluate_cls_quality): where it differs from ours, docs/differences.md says why.
"""

import doctest
import json
import random
import time

import pytest

from evaluation import predictions
from evaluation.metrics import reported
from evaluation.predictions import rewards_of, right_without_form, with_tags
from lib import wording
from lib.wording import (
    Letter,
    parse_boxes,
    parse_interval,
    parse_intervals,
    parse_letter,
    parse_phrase,
)
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

# Forms that were met later: what is answered, what is read. None of them is the form asked for, and
# the paper's code was not asked about them.
T, R = (12.5, 17.8), (24.3, 30.4)
INTERVALS = [
    ("1. Start: 24.3\n2. End: 30.4", R),
    ("- Start: 24.3 s\n- End: 30.4 s", R),
    ("1. 24.3\n2. 30.4", R),
    ("1) 24.3 to 30.4", R),
    ("Starting time: 24.3. Ending time: 30.4.", R),
    ("Starting time: 24.3\nEnding time: 30.4", R),
    ("It starts at 24.3 s. It ends at 30.4 s.", R),
    ("{'start': '24.3', 'end': '30.4'}", R),
    ("start: 24.3s - end: 30.4s", R),
    ("from around 12.5 seconds to around 17.8 seconds", T),
    ("12.5 to approximately 17.8", T),
    ("between about 12.5 and about 17.8", T),
    ("~12.5 to ~17.8", T),
    ("starts at 12.5 seconds into the video and ends at 17.8 seconds", T),
    ("It starts at 12.5 seconds and lasts until 17.8 seconds", T),
    ("from second 12.5 to second 17.8", T),
    ("the 12.5-second mark to the 17.8-second mark", T),
    ("12.5 -> 17.8", T),
    ("12.5 (start) to 17.8 (end)", T),
    ("12.5 sec. to 17.8 sec.", T),
    ("begins at 12.5 and finishes at 17.8", T),
    ("start: 12.5\nend: 17.8\nduration: 5.3", T),
    ("Scene 2: 12.5, 17.8", T),
    ("12.5 to 17.8, not 20 to 25", T),
    ("not 1 to 2 but 12.5 to 17.8", T),
    ("00:12 --> 00:18", RIGHT),
    ("['00:12', '00:18']", RIGHT),
    ("from the 12th second to the 17th second", (12.0, 17.0)),
    ("1m5s to 1m20s", (65.0, 80.0)),
    ("1 minute 5 seconds to 1 minute 20 seconds", (65.0, 80.0)),
    ("1h 2 min 3 s to 1h 2 min and 8 s", (3723.0, 3728.0)),
    ("not 12.5 to 17.8", None),
    ("It does not happen from 12.5 to 17.8", None),
    ("not in 1 to 2, 12.5 to 17.8", None),
    ("12.5 to 17.8 is wrong", None),
    ("1. Start: 24.3 2. End: 30.4", None),
    ("Step 1 start 24.3 step 2 end 30.4", None),
    ("Scene 2: 12.5", None),
    ("12.5 of 30 s to 17.8 of 30 s", None),
    ("starts at 12.5 and lasts 5 seconds", None),
    ("1 minute to 1 minute 20 seconds", None),
    ("frames 12 to 18", None),
]
LETTERS = [
    ("The correct answer is (B). Option A is incorrect because the man sits", "B"),
    ("Option B is correct, because option A shows a cat", "B"),
    ("B\n\nThe man in the T-shirt sits down.", "B"),
    ("(A) cat (B) dog (C) bird (D) fish\n\n**B**", "B"),
    ("A. cat\nB. dog\n\nThe answer is B", "B"),
    ("D. Both A and B", "D"),
    ("B. He gave it to D. Smith", "B"),
    ("answer: b", "B"),
    ("b. 4", "B"),
    ("It is B, not C", "B"),
    ("B rather than C", "B"),
    ("The answer is not A but B", "B"),
    ("The answer is B, not A or C", "B"),
    ("The answer is B and C is wrong", "B"),
    ("Options A, C and D are wrong; the answer is B", "B"),
    ("The answer is A because the dog barks", "A"),
    ("**Answer:** B", "B"),
    ("Final answer\nB", "B"),
    ("The answer is E. Vitamin K", "E"),
    ("The answer is not B.", None),
    ("The answer isn't B", None),
    ("not B", None),
    ("B is not correct", None),
    ("neither A nor B", None),
    ("The answer is A or B", None),
    ("Both A and B", None),
    ("A\nB", None),
    ("(A) cat (B) dog", None),
    ("A. cat B. dog", None),
    ("answer is a dog", None),
    ("A person in a T-shirt", None),
    ("F", None),  # A to E, where it is not known how many are on offer
    ("The answer is F", None),
    ("I", None),
]
NAMES = ('"x0": 0.1', '"y0": 0.2', '"x1": 0.5', '"y1": 0.6')
BOXES = [
    (f"The box {BOX} in the first frame. Then: [{EIGHT}]", WHERE[0]),
    (f"[{EIGHT}]".replace("0.", "."), WHERE[0]),
    (f"[{', '.join(['{' + ', '.join(NAMES) + '}'] * 8)}]", WHERE[0]),
    (f"[{', '.join(['{' + ', '.join(NAMES) + '}'] * 8)}]".replace('"', "'"), WHERE[0]),
    (f"[{', '.join(['{' + ', '.join(NAMES[::-1]) + '}'] * 8)}]", None),
    (f"[{BOX}, {EIGHT}]", None),
]

TABLE = [
    *(("grounding", WHEN, parse_interval, *row) for row in GROUNDING),
    *(("grounding", WHEN, parse_interval, *row, 0, None) for row in INTERVALS),
    *(("qa", "B", parse_letter, *row) for row in CHOICE),
    *(("qa", "B", parse_letter, *row, int(len(row[0]) == 1), None) for row in LETTERS),
    *(("gqa", EVIDENCE, parse_intervals, *row) for row in GLUE),
    *(("tracking", WHERE, parse_boxes, *row) for row in TRACKING),
    *(("tracking", WHERE, parse_boxes, *row, 0, None) for row in BOXES),
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


def test_only_letters_on_offer_count():
    """They come with the example: Letter("C", 2) is a question's third letter of two options."""
    for text, letter, on_offer, paid in (
        ("B", "B", 2, 1), ("F", "F", 5, 0), ("F", "F", 6, 1), ("The answer is G, not F", "G", 7, 1),
        ("It is B, and not D", "B", 3, 1), ("B or F", "B", 5, 1), ("B or F", "B", 6, 0),
    ):  # fmt: skip
        said = score("qa", f"<answer>{text}</answer>", Letter(letter, on_offer), False)
        assert said["accuracy"] == paid, (text, on_offer)
        record = {"text": f"<answer>{text}</answer>", "answer": letter, "on offer": on_offer}
        record = json.loads(json.dumps(record | {"group": ""}))  # as an evaluation keeps it
        assert reported("qa", [record]) == {"accuracy": 100 * paid}
        record["answer"] = (letter, [])
        assert reported("gqa", [record])["accuracy"] == 100 * paid


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
          "high", "-0.1", "0.2,", "1:", "9" * 30, "é", "\n", "<", "{", "/", "&", "not ", "but ",
          "1. ", "1m5s", " is wrong", "start", "'", "(A) cat ", "\nB\n", "B is ",
          "{'x0': .1, ")  # fmt: skip


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
