"""A million random completions through every reward, 300 damaged videos through a training run.

    python tests/bench/fuzz.py                          # both
    python tests/bench/fuzz.py --completions 10000 --videos 30

Every reward must be a number in [0, 1] and never an exception, as training pays it and as an
evaluation counts it; the run must end, with each damaged video that it drew named in skipped.jsonl.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import lib.threads  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import av

from evaluation.predictions import rewards_of
from tasks import TASKS, score

TRUTHS = {
    "description": (["a red circle moves up"], "A red circle moves up."),
    "grounding": (2.0, 6.5),
    "tracking": [(0.1, 0.2, 0.4, 0.6)] * 8,
    "qa": "B",
    "gqa": ("C", [(1.0, 4.0), (6.0, 9.5)]),
    "quality": "high quality",
    "caption": ["a red circle moves up", "a blue cross moves to the left"],
}
GOOD = [
    "<think>so</think><answer>2.0 to 6.5</answer>",
    "<answer>[" + ", ".join(["[0.1, 0.2, 0.4, 0.6]"] * 8) + "]</answer>",
    "<answer>B</answer>",
    "<answer>C</answer><glue>[(1.0, 4.0), (6.0, 9.5)]</glue>",
    "<answer>high quality</answer>",
    "<answer>A red circle moves up.</answer>",
    # right, in other words
    "<answer>It happens from 2.0 to 6.5 seconds.</answer>",
    "<think>in <answer> tags</think><answer>0:02 - 0:06.5s</answer>",
    '<answer>{"start": 2.0, "end": 6.5}</answer>',
    "<answer>**B. the answer is (B)**</answer>",
    "<answer>C) it says: Answer: C</answer><glue>(1.0, 4.0), 6.0s - 9.5s,</glue>",
    "<answer>The quality is high.</answer>",
    "The boxes: " + ", ".join(["(0.1, 0.2, 0.4, 0.6,)"] * 8),
]
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>", "[", "]", "(", ")",
    ",", ".", " to ", "nan", "inf", "-1", "1e999", "9" * 400, "0.5", "\x00", "\n", "𝟙", "²", "٣",
    "é", "\ud800", "A", "(B)", "[[" * 50, "{}", "%s", "\\", "'", '"', " " * 300, "low quality",
    "red circle moves", " and ", "-", "–", ":", "0:12", " s", "seconds", "%", "**", " ends at ",
    "B. ", "A or B", "answer is ", "not ",
]  # fmt: skip


def completion(rng):
    kind = rng.random()
    if kind < 0.3:
        return "".join(rng.choices(PIECES, k=rng.randint(0, 25)))
    if kind < 0.4:
        return "".join(chr(rng.randint(0, 0x10FFFF)) for _ in range(rng.randint(0, 40)))
    text = rng.choice(GOOD)
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        text = rng.choice((
            text[:i] + rng.choice(PIECES) + text[i:],
            text[:i] + text[j:],
            text[:j] + text[i:],
            text[:i] + chr(rng.randint(32, 0x2FFF)) + text[i + 1 :],
        ))
    return text


def fuzz_rewards(count, seed):
    rng, began, paid = random.Random(seed), time.time(), 0
    for _ in range(count):
        text, think = completion(rng), rng.random() < 0.5
        for task, truth in TRUTHS.items():
            trained, evaluated = (pay(task, text, truth, think) for pay in (score, rewards_of))
            assert trained["format"] == evaluated["format"], (task, text)
            for name, value in [*trained.items(), *evaluated.items()]:
                assert isinstance(value, float) and 0.0 <= value <= 1.0, (task, name, value, text)
            paid += sum(value > 0 for value in trained.values())
    rules = sum(len(t.rules) for t in TASKS.values())
    print(
        f"{count:,} completions through {rules} rules of {len(TASKS)} tasks: no exception,"
        f" all in [0, 1], {paid:,} above 0; {time.time() - began:.0f} s"
    )


def damage(path, good, rng, kind):
    """Writes one damaged video."""
    blob = bytearray(good)
    if kind == "truncated":
        blob = blob[: rng.randint(1, len(blob) - 1)]
    elif kind == "flipped":
        for _ in range(rng.randint(1, 200)):
            blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
    elif kind == "empty":
        blob = b""
    elif kind == "random":
        blob = rng.randbytes(rng.randint(1, 20000))
    elif kind == "other file":
        blob = b"\x89PNG\r\n\x1a\n" + rng.randbytes(500)
    elif kind == "zero size":  # the picture's size in the container set to 0 × 0
        i = blob.find(b"avc1")
        blob[i + 28 : i + 32] = b"\0\0\0\0"
    if kind in ("audio only", "one frame"):
        with av.open(path, "w") as f:
            if kind == "audio only":
                stream = f.add_stream("aac", rate=16000)
                frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
                frame.sample_rate = 16000
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                packets = [*stream.encode(frame), *stream.encode(None)]
            else:
                stream = f.add_stream("libx264", rate=8)
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                packets = [*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)]
            f.mux(packets)
        return
    with open(path, "wb") as f:
        f.write(blob)


KINDS = ("truncated", "flipped", "empty", "random")
KINDS += ("other file", "zero size", "audio only", "one frame")


def fuzz_videos(count, seed):
    """One pass of training over `count` damaged clips and 20 times as many good questions."""
    from toy import world

    rng, home = random.Random(seed), tempfile.mkdtemp()
    source = world.ensure("charades")
    folder = os.path.join(home, "charades")
    os.makedirs(os.path.join(folder, "videos"))
    names = sorted(
        name for name in os.listdir(os.path.join(source, "videos")) if name.startswith("train")
    )[:20]
    for name in names:
        shutil.copy(os.path.join(source, "videos", name), os.path.join(folder, "videos", name))
    lines = []
    for i in range(count):
        with open(os.path.join(source, "videos", rng.choice(names)), "rb") as f:
            good = f.read()
        damage(os.path.join(folder, "videos", f"bad{i:04d}.mp4"), good, rng, KINDS[i % len(KINDS)])
        lines.append(f"bad{i:04d} 1.0 3.0##a red circle moves up\n")
    times = count // len(names) * 20
    lines += [f"{name[:-4]} 1.0 3.0##a red circle moves up\n" for name in names] * times
    rng.shuffle(lines)
    for split in ("train", "test"):
        with open(os.path.join(folder, f"charades_sta_{split}.txt"), "w", encoding="utf-8") as f:
            f.writelines(lines)
    steps = -(-len(lines) // 64)
    began = time.time()
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            *("--data", folder),
            *("--out", os.path.join(home, "run")),
            *("--steps", str(steps)),
            *"--prompts-per-step 64 --method sft --decode-timeout 10 --save-every 100000".split(),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    with open(os.path.join(home, "run", "skipped.jsonl"), encoding="utf-8") as f:
        skipped = {}
        for line in f:
            record = json.loads(line)
            skipped[record["id"].split("/")[0]] = record["why"]
    with open(os.path.join(home, "run", "metrics.jsonl"), encoding="utf-8") as f:
        ended = sum(1 for _ in f)
    assert done.returncode == 0 and ended == steps, done.stderr[-1000:]
    assert all(name.startswith("bad") for name in skipped), "a good clip was skipped"
    by_kind = {
        kind: [f"bad{i:04d}" in skipped for i in range(k, count, len(KINDS))]
        for k, kind in enumerate(KINDS)
    }
    print(
        f"{count} damaged videos among {len(lines):,} questions, one pass of training in {steps}"
        f" steps: ended well, no good clip skipped; {time.time() - began:.0f} s"
    )
    for kind, named in by_kind.items():
        counts = f"{sum(named)} of {len(named)}"
        print(f"  {kind:<12} {counts} unreadable and named, the others could still be decoded")
    shutil.rmtree(home)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--completions", type=int, default=1_000_000)
    p.add_argument("--videos", type=int, default=300)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    if args.completions:
        fuzz_rewards(args.completions, args.seed)
    if args.videos:
        fuzz_videos(args.videos, args.seed)


if __name__ == "__main__":
    main()
