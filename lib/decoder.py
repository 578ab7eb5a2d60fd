"""decoder.py: videos are read in a process that may die.

Video decoders are C code that meets whatever the internet has: a damaged file can make them crash
or never return. In the run's own process that would be the end of the run. So another process
decodes. If it dies or takes too long it is replaced, and the one video counts as unreadable. It
does not outlive the run's process.

    python -m lib.decoder FD MODULE FUNCTION      # that process; started by Decoder alone
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace

import numpy as np
import torch

from lib.errors import BadInput, first_line
from lib.flags import ROOT
from lib.video import Frames


class Decoder:
    """`read` is the function (data.read_frames) in a process of its own, with a limit in seconds.

    What comes back is JSON and raw pixels, never a pickle: a decoder that a file has taken over can
    send wrong pictures, and nothing that would be executed here.

    One thread reads at a time; `close` may be called by another one meanwhile.
    """

    def __init__(self, limit, function):
        self.limit, self.process, self.pipe, self.closed = limit, None, None, False
        self.function = [function.__module__, function.__name__]

    def start(self):
        """Starts the process. Raises BadInput if it does not come to life."""
        ours, theirs = Pipe()
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        changed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
        command = [sys.executable, "-m", "lib.decoder", str(theirs.fileno()), *self.function]
        how = {"pass_fds": [theirs.fileno()], "env": os.environ | changed}
        self.process, self.pipe = subprocess.Popen(command, **how), ours
        theirs.close()
        with suppress(EOFError, OSError):
            if ours.poll(300):  # importing torch: seconds, on a cold disk minutes
                return ours.recv_bytes()  # "ready"
        self.end()
        raise BadInput("the process that decodes videos does not start: see its error above")

    def end(self):
        """Ends the process and returns its exit status. The next read starts another."""
        process, self.process = self.process, None
        if process:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a disk that does not answer: it dies later
                return process.wait(5)

    def close(self):
        """Ends the process for good, and with EOFError a read that waits in another thread."""
        self.closed = True
        self.end()

    def read(self, path, budget, span=None, frames=()):
        """Frames of a video, as the function gives them. Raises BadInput also where that crashes or
        hangs. After `close`, which says nothing about the video, it raises EOFError."""
        if self.closed:
            raise EOFError
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.pipe.send_bytes(json.dumps([path, asdict(budget), span, list(frames)]).encode())
            if not self.pipe.poll(self.limit):
                self.end()
                late = f"was not decoded within {self.limit:g} s (--decode-timeout)"
                raise BadInput(f"video file {path} {late}: it may be damaged or very long")
            answer = json.loads(self.pipe.recv_bytes())
            if "error" in answer:
                raise BadInput(answer["error"])
            pixels = torch.frombuffer(bytearray(self.pipe.recv_bytes()), dtype=torch.uint8)
            answer["pixels"] = pixels.view(answer["pixels"])
        except (EOFError, OSError) as e:  # it died
            if self.closed:
                raise EOFError from e
            crash = f"made the decoder crash (exit status {self.end()})"
            raise BadInput(f"video file {path} {crash}: it is damaged") from e
        return Frames(**answer | {"times": np.array(answer["times"])})


def end_with(parent):
    """Ends this process when the one that started it is gone, even while it decodes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(pipe, read):
    """Reads videos until the other end is closed."""
    for told in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the run decides
        signal.signal(told, signal.SIG_IGN)
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    pipe.send_bytes(b"ready")
    while True:
        try:
            path, budget, *part = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        raw = []
        try:
            frames = read(path, SimpleNamespace(**budget), *part)
            raw, shape = [memoryview(frames.pixels.numpy()).cast("B")], list(frames.pixels.shape)
            answer = vars(frames) | {"pixels": shape, "times": frames.times.tolist()}
        except BadInput as e:
            answer = {"error": str(e)}
        except Exception as e:  # whatever a decoder raises on what it was never meant to read
            answer = {"error": f"video file {path} cannot be decoded ({first_line(e)})"}
        for message in (json.dumps(answer).encode(), *raw):
            pipe.send_bytes(message)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), getattr(import_module(sys.argv[2]), sys.argv[3]))
