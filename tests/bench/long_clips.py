"""Bench: an hour of video through the data path, beside what decord needs at the least.

    python tests/bench/long_clips.py
    python tests/bench/long_clips.py --minutes 10 60 --gop 25 250

Made here with H.264: 25 frames a second, 320 × 240, a key frame every `gop` frames (250 is usual on
the web). "ours": data.read_frames with the paper's budget, 448 frames of an hour, resized: what
training and evaluation call. "decord": opening the file, the same frames by one get_batch in its
own size, and nothing else: neither times, nor a check of the file, nor resizing. Each side is a
process of its own, with one thread; they take turns. Memory: the process's peak beyond that of one
which only imports the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

FPS, WIDTH, HEIGHT = 25, 320, 240


def make_clip(path, minutes, gop):
    """A square that moves over changing noise, so that frames cost what real ones cost."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (16, HEIGHT, WIDTH, 3), dtype=np.uint8)
    partial = path + ".partial.mp4"
    with av.open(partial, "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"g": str(gop), "preset": "ultrafast", "crf": "30"}
        for k in range(minutes * 60 * FPS):
            frame = noise[k // FPS % 16].copy()
            x, y = k * 3 % (WIDTH - 40), k // 7 % (HEIGHT - 40)
            frame[y : y + 40, x : x + 40] = (200, k % 256, 40)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode())
    os.replace(partial, path)


def work(side, path):
    """The process of one side: for every line it is sent, one read; prints seconds and bytes."""
    import time

    import decord
    import numpy as np

    from common import _resident

    import data

    budget, imported = data.VideoBudget(), _resident("VmRSS")
    for line in sys.stdin:
        index = json.loads(line)
        began = time.perf_counter()
        if side == "ours":
            seen = data.read_frames(path, budget)
            index = np.rint(seen.times * FPS).astype(int).tolist()
        else:
            reader = decord.VideoReader(path, num_threads=1)
            reader.get_batch(index).asnumpy()
        took = time.perf_counter() - began
        print(json.dumps([took, _resident("VmHWM") - imported, index]), flush=True)


def ask(process, index):
    process.stdin.write(json.dumps(index) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--minutes", type=int, nargs="+", default=[60])
    p.add_argument("--gop", type=int, nargs="+", default=[25, 250], help="frames per key frame")
    p.add_argument("--repeats", type=int, default=3, help="reads of each side; the median counts")
    p.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.work:
        return work(*args.work)
    print(f"{FPS} frames a second, {WIDTH} × {HEIGHT}")
    print(f"{'minutes':>8} {'gop':>5} {'frames':>7} {'ours':>9} {'decord':>9} {'times':>7}"
          f" {'memory: ours':>14} {'decord':>8}")  # fmt: skip
    for minutes in args.minutes:
        for gop in args.gop:
            measure(minutes, gop, args.repeats)


def measure(minutes, gop, repeats):
    """One line of the table."""
    path = os.path.join(ROOT, "data", "long", f"{minutes}-minutes-gop-{gop}.mp4")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        make_clip(path, minutes, gop)
    sides = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", side, path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for side in ("ours", "decord")
    ]  # fmt: skip
    turns, index = [], []
    for _ in range(repeats + 1):
        ours = ask(sides[0], index)
        index = ours[2]
        turns.append((ours, ask(sides[1], index)))
    for side in sides:
        side.communicate()
    seconds, memory = (
        [statistics.median(turn[k][what] for turn in turns[1:]) for k in (0, 1)] for what in (0, 1)
    )
    mega = [f"{n / 1e6:.0f} MB" for n in memory]
    print(
        f"{minutes:>8} {gop:>5} {len(index):>7} {seconds[0]:>7.1f} s {seconds[1]:>7.1f} s "
        f"{seconds[0] / seconds[1]:>6.2f}× {mega[0]:>14} {mega[1]:>8}",
        flush=True,
    )


if __name__ == "__main__":
    main()
