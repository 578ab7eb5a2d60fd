"""tasks.py: one row a task, and nearly everything that is particular to a task is in its row.

A task is: how the question is asked, in what form the answer is wanted, and which rules pay for it
(rewards.py). Training and evaluation know tasks by name alone. To add one: a row here and, where
none of those there fits, a rule (rewards.py), a reader (annotations/training_sets.py) and what a
benchmark reports (evaluation/metrics.py).
"""

from dataclasses import dataclass, replace
from numbers import Real

import rewards as r
from lib.errors import BadInput


def box_text(box):
    return "[" + ", ".join(f"{v:.2f}" for v in box) + "]"


def boxes_text(boxes):
    return "[" + ", ".join(map(box_text, boxes)) + "]"


def intervals_text(intervals):
    return "[" + ", ".join(f"({start:.1f}, {end:.1f})" for start, end in intervals) + "]"


@dataclass(frozen=True)
class Task:
    """One row of the table below."""

    data: str  # what it is trained on: a name in annotations.readers.DATASETS
    prompt: str  # the question, with {question}, {duration} in seconds, {options}, and {box}, the
    # first of the answer's boxes
    wanted: str  # in words, what to answer in which tags
    form: str  # an example of it, shown in the prompt; the format rule pays it in full
    rules: dict  # {name: rule}; a completion's reward is their sum
    ideal: object = "<answer>{}</answer>".format  # annotated answer → text that earns every reward
    answer: object = lambda example: example.answer  # of an Example read for another task: this
    # task's answer to it
    toy_tokens: int = 64  # the toy model's longest answer, thought included (others: 1024)


TASKS = {
    "grounding": Task(
        "charades",
        'The video lasts {duration:.1f} seconds. When does this happen: "{question}"?',
        "the start and the end in seconds inside <answer> tags", "<answer>12.54 to 17.83</answer>",
        {"format": r.grounding_format, "iou": r.grounding_iou},
        ideal=lambda a: f"<answer>{a[0]:.2f} to {a[1]:.2f}</answer>"),
    "tracking": Task(
        "got10k",
        "These are 8 frames of a video. In the first, the {question} is in the box {box}: left, "
        "top, right, bottom as shares of the frame's width and height. "
        "Where is it in each of the 8 frames?",
        "the 8 boxes inside <answer> tags",
        f"<answer>{boxes_text([(0.12, 0.3, 0.45, 0.81)] * 8)}</answer>",
        {"format": r.tracking_format, "iou": r.tracking_iou},
        ideal=lambda a: f"<answer>{boxes_text(a)}</answer>", toy_tokens=320),
    "gqa": Task(
        "nextgqa",
        "The video lasts {duration:.1f} seconds. {question}?\n{options}",
        "the letter of the right option inside <answer> tags, and in which seconds it can be seen "
        "inside <glue> tags",
        "<answer>B</answer><glue>[(5.2, 10.4), (12.0, 13.5)]</glue>",
        {"format": r.gqa_format, "accuracy": r.gqa_accuracy, "iou": r.gqa_iou},
        ideal=lambda a: f"<answer>{a[0]}</answer><glue>{intervals_text(a[1])}</glue>",
        # no evidence, where --clues asks for it in data with letters alone
        answer=lambda e: (e.answer, [])),
    "qa": Task(
        "nextgqa",
        "{question}?\n{options}",
        "the letter of the right option inside <answer> tags", "<answer>B</answer>",
        {"format": r.choice_format, "accuracy": r.choice_accuracy},
        answer=lambda e: e.answer[0]),  # the letter; the evidence stays with gqa
    "quality": Task(
        "quality",
        "Is the quality of this video low or high, to the eye and technically?",
        "either low quality or high quality inside <answer> tags", "<answer>high quality</answer>",
        {"format": r.phrase_format, "accuracy": r.phrase_accuracy}),
    "caption": Task(
        "caption",
        "Describe what happens in this video, one event after the other.",
        "the description inside <answer> tags",
        "<answer>A woman opens a door. Then she sits down.</answer>",
        {"format": r.caption_format, "recall": r.caption_recall},
        ideal=lambda a: f"<answer>{'. '.join(a)}.</answer>", toy_tokens=320),
}  # fmt: skip

# The same question where the answer is (events, reference text): DREAM-1K, only evaluated on.
TASKS["description"] = replace(
    TASKS["caption"],
    data="dream1k",
    rules=TASKS["caption"].rules
    | {"recall": lambda text, answer, think: r.caption_recall(text, answer[0], think)},
    ideal=lambda a: TASKS["caption"].ideal(a[0]),
)


JOINTLY = ("grounding", "tracking", "gqa")  # the paper's, `--task all` (VideoChat-R1 §3)


def as_task(examples, task):
    """A data set's Examples as questions of a task ("qa" asks NExT-GQA's for the letter alone)."""
    own = lambda e: e if e.task == task else replace(e, task=task, answer=TASKS[task].answer(e))
    return [own(example) for example in examples]


def score(task, text, answer, think):
    """All rewards of one completion by name; the completion's reward is their sum.

    Args:    task: a key of TASKS; text: the completion as decoded, without its end-of-turn token;
             answer: Example.answer; think: whether the prompt asked for a <think> block.

    >>> score("grounding", "<think>ok</think><answer>0.0 to 4.0</answer>", (2, 6), think=True)
    {'format': 1.0, 'iou': 0.3333333333333333}
    """
    return {name: paid(task, name, text, answer, think) for name in TASKS[task].rules}


def paid(task, name, text, answer, think):
    """The reward of one rule. Raises BadInput unless it is a number from 0 to 1: NaN, say, would
    silence the step."""
    reward = TASKS[task].rules[name](text, answer, think)
    if not isinstance(reward, Real) or not 0 <= reward <= 1:
        raise BadInput(
            f"rule {name} of the task {task} must pay a number from 0 to 1; it paid {reward!r} "
            f"for the completion {text[:200]!r}"
        )
    return float(reward)


def longest_answer(toy_model, tasks):
    """--max-new-tokens where it is not given: the paper's 1024; the toy model's tasks need less."""
    return max(TASKS[task].toy_tokens for task in tasks) if toy_model else 1024


def fields(example, duration):
    """What the names in the braces of a prompt stand for."""
    lettered = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", example.options)
    options = " ".join(f"({letter}) {option}" for letter, option in lettered)
    box = box_text(example.answer[0]) if "{box}" in TASKS[example.task].prompt else ""
    return {"question": example.question, "duration": duration, "options": options, "box": box}


def question_text(example, duration, think):
    """The words of the user's turn. duration: of the video as read, in seconds."""
    task = TASKS[example.task]
    words = example.question.rstrip("?")
    question = task.prompt.format(**fields(example, duration) | {"question": words})
    ask = "First reason inside <think> tags, then give" if think else "Give only"
    thought = "<think>your reasoning</think>" if think else ""
    return f"{question}\n{ask} {task.wanted}, like this: {thought}{task.form}"


def words_around(example, duration, think, template=None):
    """The user's turn as (words before the video, words after it).

    template: the user's own wording (`--prompt`), with <video> where the video stands. It is the
    whole turn: it says itself whether to think, and in what form to answer.
    """
    if template is None:
        return "", question_text(example, duration, think)
    before, after = template.split("<video>")
    named = fields(example, f"{duration:.1f}")
    return before.format(**named), after.format(**named)


def ideal_answer(example, thought=None):
    """The completion that earns every reward in full, but for rounding; thought: in <think>."""
    said = TASKS[example.task].ideal(example.answer)
    return said if thought is None else f"<think>{thought}</think>{said}"
