"""decoding.py: videos are read in a process that may die.

Video decoders are C code that meets whatever the internet has: a damaged file can make them crash or never return.
In the run's own process that would be the end of the run. So another process decodes, and if it dies or takes too
long it is replaced, and the one video counts as unreadable.

    python decoding.py FD      # that process; started by Decoder alone
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import torch

import data
from data import BadInput, Frames, VideoBudget


class Decoder:
    """`read` is data.read_frames in a process of its own, with a time limit in seconds.

    What comes back is JSON and raw pixels, never a pickle: a decoder that a file has taken over can send wrong
    pictures, and nothing that would be executed here.
    """

    def __init__(self, limit):
        self.limit, self.process = limit, None

    def start(self):
        ours, theirs = Pipe()
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
        theirs.close()
        self.pipe = ours
        try:
            started = self.pipe.poll(300) and self.pipe.recv_bytes() == b"ready"  # importing torch takes seconds, on a cold disk minutes
        except (EOFError, OSError):
            started = False
        if not started:
            self.stop()
            raise BadInput("the process that decodes videos does not start: see its error above")

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.pipe.close()
        self.process = None

    def read(self, path, budget, span=None):
        """Frames of a video, as data.read_frames gives them. Raises BadInput also where that crashes or hangs."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        try:
            self.pipe.send_bytes(json.dumps([path, asdict(budget), span]).encode())
            if not self.pipe.poll(self.limit):
                self.stop()
                raise BadInput(f"video file {path} was not decoded within {self.limit:g} s (--decode-timeout): it may be damaged or very long")
            answer = json.loads(self.pipe.recv_bytes())
            if "error" in answer:
                raise BadInput(answer["error"])
            pixels = torch.frombuffer(bytearray(self.pipe.recv_bytes()), dtype=torch.uint8).view(answer["shape"])
        except (EOFError, OSError) as e:  # it died
            code = self.process.wait() if self.process else "?"
            self.stop()
            raise BadInput(f"video file {path} made the decoder crash (exit status {code}): it is damaged") from e
        return Frames(pixels, np.array(answer["times"]), answer["spacing"], answer["duration"], tuple(answer["original_size"]))


def serve(pipe):
    """Reads videos until the other end is closed."""
    pipe.send_bytes(b"ready")
    while True:
        try:
            path, budget, span = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            frames = data.read_frames(path, VideoBudget(**budget), span)
        except BadInput as e:
            pipe.send_bytes(json.dumps({"error": str(e)}).encode())
            continue
        except Exception as e:  # whatever a decoder raises on what it was never meant to read
            pipe.send_bytes(json.dumps({"error": f"video file {path} cannot be decoded ({type(e).__name__}: {str(e)[:150]})"}).encode())
            continue
        about = {"shape": list(frames.pixels.shape), "times": frames.times.tolist(), "spacing": frames.spacing,
                 "duration": frames.duration, "original_size": [int(n) for n in frames.original_size]}  # fmt: skip
        pipe.send_bytes(json.dumps(about).encode())
        pipe.send_bytes(memoryview(frames.pixels.numpy()).cast("B"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
