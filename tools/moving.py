"""moving.py: a run as a moving picture: a clip that no step has seen, and when its event is, as the
policy answers from checkpoint to checkpoint.

    python -m tools.moving runs/demo      # writes runs/demo/learning.gif

The run needs `--save-every 20 --keep 10` and an evaluation on charades. The question is not chosen:
its overlap is the median of that evaluation. Each look samples with the same random numbers.
"""

import os
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw, ImageFont

from data import Example, VideoBudget, load_prompt, read_frames
from lib.errors import BadInput, run_program
from lib.files import read_lines
from lib.flags import parser_of
from tools.report import read_run
from training.checkpoint import folders, read_checkpoint
from training.loader import generator_for
from training.log import sampled_again
from training.optimizer import MasterAdamW
from training.policy import load_models
from training.shown import given_answer

CLIP, LEFT, RIGHT = 230, 270, 740  # pixels: size of the clip, ends of the time axis
PLAYED = 12  # frames of the clip in each look
FLAGS = {"what is drawn": [("run", {"metavar": "RUN"}, "folder of a GRPO run on grounding")]}


def looks(run, example):
    """[(step, {"text", "reward", …} of each answer)] of the model that the run began with and of
    each checkpoint."""
    settings = SimpleNamespace(**read_run(run)[0])
    policy, tokenizer, _ = load_models(settings, torch.device("cpu"))
    optimizer = MasterAdamW(policy, settings.lr)
    how = (VideoBudget(**settings.video_budget), tokenizer, settings.think)
    prompt = load_prompt(example, *how, template=settings.template)

    def answers():
        asked = (settings, example, prompt, generator_for(settings.seed, 0, 0))
        return sampled_again(policy, tokenizer, *asked)["completions"]

    seen = [(0, answers())]
    for folder in reversed(folders(run)):
        state, tensor = read_checkpoint(folder)
        optimizer.load_tensors(tensor)
        seen.append((state["step"], answers()))
    return seen


def drawn(example, duration, moment, step, answers):
    """One frame: the clip at a moment, (seconds, pixels); the truth, and the answers of a look."""
    at, pixels = moment
    picture = Image.new("RGB", (RIGHT + 20, 300), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    shown = Image.fromarray(pixels.numpy()).resize((CLIP, CLIP), Image.NEAREST)
    picture.paste(shown, (20, 40))
    overlap = sum(c["rewards"]["iou"] for c in answers) / len(answers)
    said = (
        f"after {step} steps: mean overlap {overlap:.2f}     (green: true; {duration:.0f} seconds)"
    )
    pen.text((20, 10), f'When does this happen: "{example.question}"?', "black", font)
    pen.text((LEFT, 275), said, "black", font)
    x = lambda second: LEFT + (RIGHT - LEFT) * min(second, duration) / duration
    given = [given_answer(c["text"], example.answer)["intervals"] for c in answers]
    for row, intervals in enumerate([[example.answer], *given]):
        y, colour = 42 + 25 * row + 6 * (row > 0), "#f28e2b" if row else "#2a9d4a"
        pen.line((LEFT, y + 8, RIGHT, y + 8), "#dddddd")
        for start, end in intervals:
            pen.rectangle((x(start), y, max(x(start), x(end)) + 1, y + 16), colour)
    pen.line((x(at), 38, x(at), 270), "#444444", 2)
    return picture


def start():
    run = parser_of(__doc__, FLAGS, prog="python -m tools.moving").parse_args().run
    path = os.path.join(run, "eval-charades", "predictions.jsonl")
    records = sorted(read_lines(path, iou=float), key=lambda r: r["iou"])
    if not records:
        raise BadInput(f"{path} holds no predictions: evaluate the run first")
    r = records[len(records) // 2]
    example = Example(r["id"], "grounding", r["video"], r["question"], r["answer"])
    clip = read_frames(r["video"], VideoBudget(fps=1000, max_frames=PLAYED))
    moments = list(zip(clip.times, clip.pixels))
    seen = looks(run, example)
    first, *others = [drawn(example, clip.duration, m, *look) for look in seen for m in moments]
    out, milliseconds = os.path.join(run, "learning.gif"), [120] * len(others) + [3000]
    first.save(out, save_all=True, append_images=others, duration=milliseconds, loop=0)
    print(f"wrote {out}: {r['id']}, the median of {len(records)} questions")


if __name__ == "__main__":
    run_program(start)
