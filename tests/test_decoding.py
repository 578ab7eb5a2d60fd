"""The process that decodes: a read of it can be ended, and it ends with the run."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from annotations.readers import read_dataset
from conftest import ROOT
from data import read_frames
from lib.decoder import Decoder
from toy.base import TOY_BUDGET


@pytest.fixture
def hanging(tmp_path):
    """A playlist whose only part is a pipe that nobody writes to: opening it never returns."""
    os.mkfifo(tmp_path / "part.ts")
    path = tmp_path / "hanging.m3u8"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\npart.ts\n#EXT-X-ENDLIST\n", encoding="utf-8"
    )
    return str(path)


def test_another_thread_ends_a_read_that_hangs(hanging, charades):
    good = read_dataset("charades", "test", charades)[0].video
    decoder, ends = Decoder(60, read_frames), []

    def read():
        try:
            ends.append(decoder.read(hanging, TOY_BUDGET))
        except Exception as e:
            ends.append(e)

    with closing(decoder):
        decoder.read(good, TOY_BUDGET)
        process = decoder.process
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(1)
        assert reader.is_alive() and process.poll() is None  # it hangs
        begun = time.monotonic()
        decoder.close()
        reader.join(5)
        assert time.monotonic() - begun < 1 and [type(e) for e in ends] == [EOFError]
        assert process.poll() == -signal.SIGKILL
        with pytest.raises(EOFError):
            decoder.read(good, TOY_BUDGET)  # and no later one begins
        assert decoder.process is None


PARENT = """
import sys
from data import read_frames
from lib.decoder import Decoder
from toy.base import TOY_BUDGET
decoder = Decoder(600, read_frames)
decoder.start()
print(decoder.process.pid, flush=True)
decoder.read(sys.argv[1], TOY_BUDGET)
"""


def test_it_is_no_orphan_and_leaves_ctrl_c_to_the_run(hanging):
    """The run is killed while a video hangs: within seconds its decoder is gone.

    Before that, what a terminal or a queue sends to all processes must not kill it: its clip would
    count as damaged.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, hanging], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = int(parent.stdout.readline())
        time.sleep(1)
        for told in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, told)
        time.sleep(0.5)
        assert lives(pid) and parent.poll() is None
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    for _ in range(50):
        if not lives(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the decoder outlives its run")


def lives(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not os.path.exists(f"/proc/{pid}/stat"):  # no Linux: it was collected by now
        return True
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        return f.read().rpartition(")")[2].split()[0] != "Z"
