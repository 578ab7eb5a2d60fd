"""What all tests share: real objects at a size that a laptop runs in seconds."""

import os
import sys
import time

# The tests compare float32 numbers of one, two and four processes: they run on the CPU, and so do
# the processes that they start. Set before torch is imported. TEST_GPU=1 is for tests of a GPU.
if os.environ.get("TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
SHARED = os.path.join(os.path.dirname(ROOT), "shared", "data")

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import pytest
import torch

from lib.decoder import Decoder  # noqa: E402
from model import load, prepare  # noqa: E402
from toy import world  # noqa: E402
from toy.base import make_model  # noqa: E402

BASE = os.path.join(ROOT, "assets", "toy-base")


def wait_for(path, job):
    """Waits for a file or folder of a process that was started."""
    while not os.path.exists(path):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="session", autouse=True)
def decoders_serve_again():
    """A run in the tests' own process leaves its decoder's process to the next such run: to start
    one takes two seconds, and there are hundreds. One that still reads ends, as it should."""
    start, close, read, idle = Decoder.start, Decoder.close, Decoder.read, []

    def start_or_take(self):
        while idle:
            self.process, self.pipe = idle.pop()
            if self.process.poll() is None:
                return b"ready"
        return start(self)

    def read_and_say_so(self, *what, **how):
        self.reading = True
        try:
            return read(self, *what, **how)
        finally:
            self.reading = False

    def keep_or_close(self):
        lives = self.process and self.process.poll() is None
        if lives and not getattr(self, "reading", False):
            idle.append((self.process, self.pipe))
            self.process = None
        close(self)

    Decoder.start, Decoder.close, Decoder.read = start_or_take, keep_or_close, read_and_say_so
    yield
    for process, _ in idle:
        process.kill()


@pytest.fixture(scope="session")
def base():
    """(model, tokenizer) of the shipped toy base. Tests must not change its weights."""
    return load(BASE)


@pytest.fixture(scope="session")
def charades(tmp_path_factory):
    """A small toy Charades-STA: 12 training clips and 6 test clips as real mp4 files."""
    return world.ensure(
        "charades", str(tmp_path_factory.mktemp("data") / "charades"), train=12, test=6
    )


@pytest.fixture
def fresh(base):
    """A policy of random weights and the toy's tokenizer: whatever holds for it was not learned."""
    torch.manual_seed(0)
    return prepare(make_model(base[1])).eval(), base[1]


@pytest.fixture(scope="session")
def shared():
    if not os.path.isdir(SHARED):
        pytest.skip("../shared/data is not here")
    return SHARED
