"""video.py: a video → when each of its frames is on screen, and the pictures themselves.

Every answer of the model is in seconds, so a frame shown at the wrong second is a wrong lesson that
nothing would report. A file is read in one of two ways:

    H.264 in mp4 or mov whose packets prove that jumps are exact   decord jumps to what is asked for
    everything else                                                PyAV decodes from the beginning

decord jumps to a key frame and counts from there. That goes wrong where frames follow a key frame
but are shown before it, where stamps are missing or an edit list hides frames, and in containers
without an exact index: 5 s in MPEG-TS. `jumps_are_exact` decides from the packets, which are read
without decoding them.

Second 0 is where the file begins, not its pictures: a part that was cut out can have sound from 0
and pictures from 3 s on. The first picture then stands from 0, as on a player.

A folder of numbered pictures is a video too: GOT-10k and a part of MVBench come as such.
"""

import os
import re
from collections import namedtuple
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import av
import decord
import numpy as np
import torch
from PIL import Image

from lib.errors import BadInput

decord.logging.set_level(decord.logging.QUIET)  # C++ errors would interleave with our one sentence
av.logging.set_level(av.logging.PANIC)

BATCH = 16  # pictures at a time: a long video at full size would not fit in memory
REFUSED = (av.FFmpegError, decord.DECORDError, RuntimeError, IndexError)  # what PyAV, decord raise
GUESSED = ("avi", "mpeg")  # containers that do not hold every frame's time: libraries guess
CONVERT = "convert it with ffmpeg -i IN -c:v libx264 OUT.mp4"
UNTIMED = f"does not say when its frames are shown (stamps missing or out of order): {CONVERT}"


@dataclass
class Frames:
    """What was looked at: pixels (T, H, W, 3) uint8, times (T,) in seconds at which each frame went
    on screen, spacing between the moments asked for, and duration."""

    pixels: torch.Tensor
    times: np.ndarray
    spacing: float
    duration: float


class Unreadable(Exception):
    """Why a file cannot be used, in words that follow its name."""


@contextmanager
def opened(path):
    """The clip at a path, for reading within the block. Whatever goes wrong there is BadInput.

    A clip has `on_screen` (F,), the seconds at which each frame goes on screen, from 0, `duration`
    in seconds, `size` (height, width) as shown and `pictures(index)` as stored: see Jumping,
    InOrder and Folder.
    """
    is_folder = os.path.isdir(path)
    what = f"folder {path}" if is_folder else f"video file {path}"
    if not is_folder and not os.path.isfile(path):  # a pipe would be waited for
        raise BadInput(f"{what} does not exist: check the path")
    try:
        clip = Folder(path) if is_folder else open_clip(path)
        clip.on_screen[0] = 0.0
        if not 0 < clip.duration < float("inf"):
            raise Unreadable(f"has no duration: it holds {len(clip.on_screen)} frame(s)")
        yield clip
    except Unreadable as e:
        raise BadInput(f"{what} {e}") from e
    except REFUSED as e:
        reason = str(e).strip().splitlines()[-1][:150] if str(e).strip() else type(e).__name__
        raise BadInput(f"{what} cannot be decoded, it may be damaged ({reason})") from e


def open_clip(path):
    """A Jumping or InOrder clip of a file. Raises Unreadable, or one of REFUSED."""
    packets = look(path)
    end = np.fmax.reduce(packets.pts) + packets.last
    if not packets.discard.any() and end < 0.9 * packets.stated - 0.5:
        raise Unreadable(f"breaks off after {end:.1f} of {packets.stated:.1f} s: download it again")
    if jumps_are_exact(packets):
        with suppress(Unreadable, *REFUSED):  # decord refuses tracks that begin late, for one
            return Jumping(path, packets)
    return InOrder(path, packets)


# ------------------------------------------------------------------------------------------------
# A look at the packets
# ------------------------------------------------------------------------------------------------


class Packets(namedtuple("Packets", "container codec zero pts dts key discard last stated pixel")):
    """What the video stream's packets say, in the file's order.

    zero: where the file begins, on the clock of its stamps; pts, dts (F,): in seconds from there,
    nan where missing; key, discard (F,) bool; last: seconds that the last frame stays; stated: the
    end of the video that the head of an mp4 promises, or nan; pixel: a pixel's width over its
    height.
    """


def look(path):
    """Packets of a video file; no frame is decoded. Raises Unreadable, or one of REFUSED."""
    with av.open(path) as file:
        stream = file.streams.best("video")
        if stream is None:
            raise Unreadable("holds no video")
        codec, tick = stream.codec_context, float(stream.time_base)
        if codec is None:
            raise Unreadable(f"holds video of a kind that cannot be decoded here: {CONVERT}")
        seconds = lambda ticks: np.nan if ticks is None else ticks * tick
        rows = [
            (seconds(p.pts), seconds(p.dts), p.is_keyframe, p.is_discard, (p.duration or 0) * tick)
            for p in file.demux(stream)
            if p.size
        ]
        if not rows:
            raise Unreadable("holds no frame")
        pts, dts, key, discard, length = (np.array(column) for column in zip(*rows))
        last = length[np.argmax(np.nan_to_num(pts, nan=-np.inf))]
        shown = pts[np.isfinite(pts) & ~discard]
        zero = shown.min() if len(shown) else 0.0
        if file.start_time is not None:  # sound may begin earlier
            zero = min(zero, file.start_time / av.time_base)
        stated = np.nan
        if "mp4" in file.format.name and stream.duration is not None:
            stated = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        stamps = zero, pts - zero, dts - zero, key, discard, last, stated - zero
        pixel = float(stream.sample_aspect_ratio or 1)
        return Packets(file.format.name, codec.name, *stamps, pixel)


def jumps_are_exact(packets):
    """Whether decord shows the right frame after a jump, proven from the packets.

    A jump to key frame K asks for its pts and is looked up among dts. It ends at K if the next key
    frame's dts is later than that. Counting on from there is right if nothing crosses a key frame:
    what stands before it in the file is shown before it, what follows, later.
    """
    pts, dts, key = packets.pts, packets.dts, np.flatnonzero(packets.key)
    usual = "mp4" in packets.container and packets.codec == "h264" and packets.pixel == 1
    timed = increasing(np.sort(pts)) and np.isfinite(dts).all() and not packets.discard.any()
    if not (usual and timed and packets.key[0]):
        return False
    earlier = np.maximum.accumulate(np.r_[-np.inf, pts[:-1]])  # the latest pts before each packet
    later = np.minimum.accumulate(pts[::-1])[::-1]
    uncrossed = (earlier[key] < pts[key]).all() and (later[key] == pts[key]).all()
    return bool(uncrossed and (dts[key[1:]] > pts[key[:-1]] + 1e-6).all())


# ------------------------------------------------------------------------------------------------
# Two ways of reading
# ------------------------------------------------------------------------------------------------


class Jumping:
    """A file read with decord. Raises Unreadable where decord's times are not the packets'."""

    def __init__(self, path, packets):
        self.reader = decord.VideoReader(path, num_threads=1)
        stamps = self.reader.get_frame_timestamp(np.arange(len(self.reader)))  # (F, 2): on, off
        stamps = np.asarray(stamps, dtype=np.float64)
        begin = packets.pts.min()  # decord's own zero is its first frame, or the file's: it varies
        self.on_screen = stamps[:, 0] - stamps[0, 0] + begin
        self.duration = float(stamps[-1, 1] - stamps[0, 0] + begin)
        self.size, pts = self.reader[0].shape[:2], np.sort(packets.pts)
        near = 1e-3 + 1e-6 * pts[-1]  # decord's are float32
        if len(pts) != len(stamps) or not np.abs(self.on_screen - pts).max() < near:
            raise Unreadable("has other times in decord")

    def pictures(self, index):
        """Yields (≤ 16, H, W, 3) uint8 arrays of the frames `index`, which is sorted."""
        for i in range(0, len(index), BATCH):
            yield self.reader.get_batch(index[i : i + BATCH]).asnumpy()


class InOrder:
    """A file decoded with PyAV from its beginning. Times come from the packets if they have all of
    them, otherwise from decoding the file once more."""

    def __init__(self, path, packets):
        self.path, self.zero = path, packets.zero
        first = next(self.frames(), None)
        if first is None:
            raise Unreadable(f"holds no frame that can be decoded here: {CONVERT}")
        height, width = picture(first[1]).shape[:2]
        wide = (packets.pixel, 1) if round(first[1].rotation / 90) % 2 else (1, packets.pixel)
        self.size = round(height * wide[0]), round(width * wide[1])
        times, last = np.sort(packets.pts), packets.last
        if packets.container in GUESSED or packets.discard.any() or not increasing(times):
            shown = [(at, (f.duration or 0) * f.time_base) for at, f in self.frames()]
            times, last = np.array([at for at, _ in shown]), float(shown[-1][1])
            if not increasing(times):
                raise Unreadable(UNTIMED)
            self.zero, times = self.zero + times[0], times - times[0]
        self.on_screen = times
        if not last and len(times) > 1:
            last = np.median(np.diff(times))
        self.duration = float(times[-1] + last)

    def frames(self):
        """Yields (seconds, frame) of all frames that are shown, in order; nan: no stamp."""
        with av.open(self.path) as file:
            for frame in file.decode(file.streams.best("video")):
                stamp = np.nan if frame.pts is None else float(frame.pts * frame.time_base)
                yield stamp - self.zero, frame

    def pictures(self, index):
        """Yields (1, H, W, 3) uint8 arrays of the frames `index`, which is sorted."""
        wanted, before, reached = list(self.on_screen[index]), None, -np.inf
        for seconds, frame in self.frames():
            if not seconds > reached:
                raise Unreadable(UNTIMED)
            while wanted and before is not None and seconds > wanted[0] + 1e-6:
                wanted.pop(0)
                yield picture(before)[None]
            if not wanted:
                return
            before, reached = frame, seconds
        if before is None or wanted[-1] > reached + 1:
            raise Unreadable("is damaged: frames are missing at its end; download it again")
        for _ in wanted:
            yield picture(before)[None]


def increasing(times):
    """Whether all times are known, and each is later than the one before."""
    return np.isfinite(times).all() and (np.diff(times) > 0).all()


def picture(frame):
    """(H, W, 3) uint8, upright."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


FOLDER_FPS = 3  # of a folder that does not say: MVBench's one subset of frames has three a second


def numbered_pictures(folder):
    """The names of a folder's frames in their order: 00000001.jpg, …, or png."""
    numbered = re.compile(r"\d+\.(jpg|jpeg|png)", re.IGNORECASE)
    return sorted(name for name in os.listdir(folder) if numbered.fullmatch(name))


class Folder:
    """A folder of numbered pictures. Their rate is `anno_fps` of meta_info.ini (GOT-10k) where
    there is one, else FOLDER_FPS."""

    def __init__(self, path):
        self.path, self.names = path, numbered_pictures(path)
        if not self.names:
            raise Unreadable("holds no numbered jpg or png frames")
        fps = FOLDER_FPS
        if os.path.isfile(meta := os.path.join(path, "meta_info.ini")):
            with open(meta, encoding="utf-8", errors="replace") as f:
                stated = re.search(r"anno_fps:\s*([1-9]\d*)", f.read())
            fps = int(stated[1]) if stated else FOLDER_FPS
        self.size = read_picture(os.path.join(path, self.names[0])).shape[:2]
        self.on_screen = np.arange(len(self.names)) / fps
        self.duration = len(self.names) / fps

    def pictures(self, index):
        """Yields (1, H, W, 3) uint8 arrays of the frames `index`."""
        for i in index:  # one at a time: some large photographs would not fit in memory
            pixels = read_picture(os.path.join(self.path, self.names[i]))
            if pixels.shape[:2] != self.size:
                raise Unreadable("holds frames of different sizes")
            yield pixels[None]


# PIL refuses a picture of twice as many pixels: as float32 it takes 0.8 GB
Image.MAX_IMAGE_PIXELS = 8192 * 8192 // 2


def read_picture(path):
    """(H, W, 3) uint8 of a picture file. Raises BadInput."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        # SyntaxError: PIL's word for a broken PNG
        raise BadInput(f"frame {path} cannot be read: {' '.join(str(e).split())}") from e
