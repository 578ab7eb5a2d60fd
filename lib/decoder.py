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
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace

import numpy as np
import torch

from lib.errors import BadInput
from lib.video import Frames

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Cancelled(Exception):
    """A read that Decoder.cancel or Decoder.stop ended: nothing is known about the video."""


class Decoder:
    """`read` is the function (data.read_frames) in a process of its own, with a limit in seconds.

    What comes back is JSON and raw pixels, never a pickle: a decoder that a file has taken over can
    send wrong pictures, and nothing that would be executed here.

    `cancel` and `stop` may be called while another thread reads; `cancel` also in a signal handler.
    """

    def __init__(self, limit, function):
        self.limit, self.process, self.pipe, self.cancelled = limit, None, None, False
        self.function = [function.__module__, function.__name__]

    def start(self):
        ours, theirs = Pipe()
        fd, path = theirs.fileno(), [ROOT, os.environ.get("PYTHONPATH")]
        changed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        command = [sys.executable, "-m", "lib.decoder", str(fd), *self.function]
        process = subprocess.Popen(command, pass_fds=[fd], env=os.environ | changed)
        theirs.close()
        self.process, self.pipe = process, ours
        try:
            # importing torch takes seconds, on a cold disk minutes
            started = self.wait(process, ours, 300) and ours.recv_bytes() == b"ready"
        except (EOFError, OSError):
            started = False
        if not started:
            self.stop()
            raise BadInput("the process that decodes videos does not start: see its error above")

    def wait(self, process, pipe, limit):
        """Whether something arrives in time. Waits are short: `cancel` has to be noticed."""
        end = time.monotonic() + limit
        while not self.cancelled and self.process is process:
            if pipe.poll(max(0, min(WAIT, end - time.monotonic()))):
                return True
            if time.monotonic() >= end:
                return False
        self.stop()
        raise Cancelled

    def cancel(self):
        """Ends a pending read within a second, later ones at once, with Cancelled. Sets a flag."""
        self.cancelled = True

    def stop(self):
        """Ends the process, and with Cancelled a read that waits. A later read starts anew."""
        process, self.process, self.pipe = self.process, None, None  # a waiting read holds the pipe
        if process:
            process.kill()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                pass  # it waits for a disk that does not answer: it dies when that does

    def read(self, path, budget, span=None, frames=()):
        """Frames of a video, as the function gives them. Raises BadInput also where that crashes or
        hangs; Cancelled after `cancel` or `stop`."""
        if self.cancelled:
            raise Cancelled
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        process, pipe = self.process, self.pipe
        try:
            if pipe is None:
                raise Cancelled
            pipe.send_bytes(json.dumps([path, asdict(budget), span, list(frames)]).encode())
            if not self.wait(process, pipe, self.limit):
                self.stop()
                late = f"was not decoded within {self.limit:g} s (--decode-timeout)"
                raise BadInput(f"video file {path} {late}: it may be damaged or very long")
            answer = json.loads(pipe.recv_bytes())
            if "error" in answer:
                raise BadInput(answer["error"])
            pixels = torch.frombuffer(bytearray(pipe.recv_bytes()), dtype=torch.uint8)
            answer["pixels"] = pixels.view(answer.pop("shape"))
        except (EOFError, OSError) as e:  # it died
            if self.cancelled or self.process is not process:
                raise Cancelled from e
            self.stop()
            crash = f"made the decoder crash (exit status {process.poll()})"
            raise BadInput(f"video file {path} {crash}: it is damaged") from e
        return Frames(**answer | {"times": np.array(answer["times"])})


@contextmanager
def ended_by_ctrl_c(decoder):
    """Within it Ctrl-C ends a read that waits, too. Libraries have been seen to swallow the
    KeyboardInterrupt of a moment in which they load something: then the next read raises it."""

    def interrupted(signum, frame):
        decoder.cancel()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except Cancelled:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
        decoder.stop()


WAIT = 0.2  # seconds between two looks at whether a read was cancelled


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
        pixels = None
        try:
            frames = read(path, SimpleNamespace(**budget), *part)
            pixels, answer = frames.pixels, vars(frames) | {"times": frames.times.tolist()}
            answer |= {"shape": list(answer.pop("pixels").shape)}
        except BadInput as e:
            answer = {"error": str(e)}
        except Exception as e:  # whatever a decoder raises on what it was never meant to read
            why = f"{type(e).__name__}: {str(e)[:150]}"
            answer = {"error": f"video file {path} cannot be decoded ({why})"}
        pipe.send_bytes(json.dumps(answer).encode())
        if pixels is not None:
            pipe.send_bytes(memoryview(pixels.numpy()).cast("B"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), getattr(import_module(sys.argv[2]), sys.argv[3]))
