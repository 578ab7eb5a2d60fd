"""Bench: an evaluation by clip, against the same questions one by one.

    python tests/bench/evaluation.py
    python tests/bench/evaluation.py --questions 1 3 5 --clips 8 16 --frame-tokens 4 64

The toy base answers made-up questions about toy clips, each with its interval, thinking, greedily:
from the video file to the record in predictions.jsonl, by eval.py's own functions. "by clip": 64
questions together, each clip read, seen and prefilled once, the next ones while the model answers.
"one by one": 16 together, each clip once per question, and nothing ahead, as eval.py did before.

P: tokens of a prompt; frames of 4 tokens are the toy's own, 64 bring P to the length of a short
real clip's. Both sides of a line in turns; last the answers that differ.
"""

import os
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from common import TOKENIZER, arguments, by_turns

import data
import eval as evaluation
from annotations.readers import read_dataset
from evaluation.predictions import read_predictions
from lib.decoder import Decoder
from lib.files import append_line
from model import load
from toy import world

WORDS = ("{}", "{}, the first time", "{} (from beginning to end)", "the moment when {}", "how {}",
         "{}, as far as it can be seen", "{}, all of it", "whether {}")  # fmt: skip


def questions_about(clips, number):
    """`number` questions about each of so many toy clips: Examples."""
    examples = {e.video: e for e in read_dataset("charades", "test", world.ensure("charades"))}
    first = list(examples.values())[:clips]
    asked = [[replace(e, id=f"{e.id}-{k}", question=w.format(e.question))
              for k, w in enumerate(WORDS[:number])] for e in first]  # fmt: skip
    return [e for same in asked for e in same]


def by_clip(asked, examples, budget, path):
    evaluation.answer_all(asked, examples, budget, path)


def one_by_one(asked, examples, budget, path):
    """16 questions at a time; each has its clip read, seen and prefilled for itself, and nothing is
    read ahead."""
    for i in range(0, len(examples), 16):
        batch = [[e] for e in examples[i : i + 16]]
        for record in evaluation.answer_batch(asked, evaluation.read_clips(asked, batch, budget)):
            append_line(path, record)


def anew(answer, asked, examples, budget, path):
    if os.path.exists(path):
        os.remove(path)
    answer(asked, examples, budget, path)


def main():
    args = arguments(
        __doc__,
        "trained",
        clips=([16], "numbers of clips"),
        questions=([1, 2, 3, 5, 8], "questions about each"),
        frame_tokens=([4, 64], "tokens of a pair of frames"),
    )
    model, tokenizer = load(TOKENIZER, args.device)
    decoder = Decoder(600, data.read_frames)
    settings = {"bench": "toy", "think": True, "look": "", "template": None}
    settings["max_new_tokens"] = 64
    asked = SimpleNamespace(model=model, tokenizer=tokenizer, settings=settings, decoder=decoder)
    asked.__dict__.update(batch_size=64, rank=1, world=1)  # rank 1: without a bar
    print(f"{'P':>5} {'clips':>6} {'questions':>10}   {'by clip':>9} {'one by one':>11}   faster"
          "   answers that differ")  # fmt: skip
    with TemporaryDirectory() as folder:
        for tokens in args.frame_tokens:
            n = tokens * 28 * 28
            budget = data.VideoBudget(max_frames=64, min_frame_pixels=n, max_frame_pixels=n)
            for clips in args.clips:
                for number in args.questions:
                    examples = questions_about(clips, number)
                    sides = {
                        side.__name__: partial(anew, side, asked, examples, budget,
                                               os.path.join(folder, side.__name__))
                        for side in (by_clip, one_by_one)
                    }  # fmt: skip
                    t = by_turns(sides, args.repeats, args.device)
                    said = [read_predictions(os.path.join(folder, name)) for name in sides]
                    differ = sum(said[0][e.id]["text"] != said[1][e.id]["text"] for e in examples)
                    prompt = data.load_prompt(examples[0], budget, tokenizer)
                    per_second = {name: len(examples) / seconds for name, seconds in t.items()}
                    print(f"{len(prompt.ids):>5} {clips:>6} {number:>10}   "
                          f"{per_second['by_clip']:>7.1f}/s {per_second['one_by_one']:>9.1f}/s   "
                          f"{t['one_by_one'] / t['by_clip']:>5.1f}×   {differ} of {len(examples)}",
                          flush=True)  # fmt: skip
    decoder.close()


if __name__ == "__main__":
    main()
