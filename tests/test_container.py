"""lib/video.py. Each frame of these clips shows its own number in large black and white squares,
so the picture that `read_frames` gives for a moment says whether it is the one on screen then.
Every container and codec that people have, and what goes wrong in them."""

import os
from fractions import Fraction

import av
import decord
import numpy as np
import pytest
import torch

import data
from annotations.readers import read_dataset
from data import VideoBudget, read_frames
from lib import video
from lib.errors import BadInput

CELL, HEIGHT, WIDTH = 32, 64, 128  # 2 rows of 4 squares, one a bit of the number
SEEN = VideoBudget(min_frame_pixels=28 * 28)
TENTHS = [k / 10 for k in range(120)]
AT_25 = [k / 25 for k in range(150)]
FAST_THEN_SLOW = [k / 20 for k in range(40)] + [2 + k / 2 for k in range(20)]
SLOW_THEN_FAST = [k / 2 for k in range(20)] + [10 + k / 20 for k in range(60)]


def draw(number):
    bits = np.array([number >> k & 1 for k in range(8)], np.uint8).reshape(2, 4)
    grey = np.kron(16 + 219 * bits, np.ones((CELL, CELL), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_number(pixels):
    """The number in a frame (H, W, 3) of any size: from the middle of each square."""
    h, w = pixels.shape[0] / 2, pixels.shape[1] / 4
    middle = lambda k, side: slice(int((k + 0.3) * side), int((k + 0.7) * side))
    bits = [pixels[middle(k // 4, h), middle(k % 4, w)].float().mean() > 125 for k in range(8)]
    return sum(1 << k for k, bit in enumerate(bits) if bit)


def write_clip(
    path, codec, times, options=None, pix="yuv420p", tick=1000, offset=0.0, muxer=None, form=None
):
    """times: seconds at which frame k goes on screen, before offset; tick: stamps per second."""
    with av.open(str(path), "w", format=form, options=muxer or {}) as file:
        stream = file.add_stream(codec, rate=round(1 / np.diff(times).min()), options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, tick), 12
        if codec != "libsvtav1":
            stream.codec_context.bit_rate = 2_000_000
        for k, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(k), "rgb24")
            frame.pts, frame.time_base = round((t + offset) * tick), Fraction(1, tick)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


def check_times(path, times):
    """Every moment shows the frame on screen then; the duration is right within a frame."""
    frames = read_frames(path, SEEN)
    shown = [read_number(pixels) for pixels in frames.pixels]
    moments = np.arange(len(shown)) * frames.spacing
    assert shown == (np.searchsorted(times, moments + 1e-6, side="right") - 1).tolist()
    assert np.allclose(frames.times, np.array(times)[shown], atol=2e-3)
    last = times[-1] - times[-2]
    assert frames.duration == pytest.approx(times[-1] + last, abs=last + 2e-3)


B = {"bf": "2"}  # frames that are stored after one that is shown later
VP9 = {"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "4"}
X265 = "log-level=none:keyint=12:min-keyint=12:bframes=3:open-gop="
CLIPS = {
    "h264.mp4": ("libx264", TENTHS, {"bf": "0"}),
    "h264-b.mp4": ("libx264", TENTHS, {"bf": "3"}),
    "h264-open.mp4": ("libx264", TENTHS, {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "h264.mov": ("libx264", TENTHS, B),
    "fast-then-slow.mp4": ("libx264", FAST_THEN_SLOW, B),
    "slow-then-fast.mp4": ("libx264", SLOW_THEN_FAST, B),
    "starts-late.mp4": ("libx264", TENTHS, B, {"offset": 1.5}),
    "no-edit-list.mp4": ("libx264", TENTHS, B, {"muxer": {"use_editlist": "0"}}),
    "fragments.mp4": ("libx264", TENTHS, B, {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "hevc-open.mp4": ("libx265", TENTHS, {"x265-params": X265 + "1"}),
    "hevc-closed.mp4": ("libx265", TENTHS, {"x265-params": X265 + "0"}),
    "av1.mp4": ("libsvtav1", TENTHS, {"preset": "10"}),
    "vp9.mp4": ("libvpx-vp9", TENTHS, VP9),
    "mpeg4.mp4": ("mpeg4", TENTHS, B, {"tick": 10}),
    "mpeg4.3gp": ("mpeg4", TENTHS, {}),
    "mpeg2.mp4": ("mpeg2video", AT_25, B, {"tick": 25}),
    "prores.mov": ("prores_ks", TENTHS, {}, {"pix": "yuv422p10le"}),
    "h264.mkv": ("libx264", TENTHS, B),
    "vfr.mkv": ("libx264", SLOW_THEN_FAST, B),
    "hevc-open.mkv": ("libx265", TENTHS, {"x265-params": X265 + "1"}),
    "vp9.webm": ("libvpx-vp9", TENTHS, VP9),
    "vp8.webm": ("libvpx", TENTHS, {"lag-in-frames": "16", "auto-alt-ref": "1"}),
    "mpeg4-b.avi": ("mpeg4", TENTHS, B, {"tick": 10}),
    "mpeg4.avi": ("mpeg4", TENTHS, {}, {"tick": 10}),
    "mjpeg.avi": ("mjpeg", TENTHS, {}, {"pix": "yuvj420p", "tick": 10}),
    "h264.ts": ("libx264", TENTHS, B),
    "mpeg2.ts": ("mpeg2video", AT_25, B, {"tick": 25}),
    "clock-overflows.ts": ("libx264", TENTHS, B, {"offset": 2**33 / 90_000 - 5, "tick": 90_000}),
    "h264.flv": ("libx264", TENTHS, B),
    "wmv2.wmv": ("wmv2", TENTHS, {}, {"form": "asf"}),
    "animated.gif": ("gif", TENTHS, {}, {"pix": "rgb8", "tick": 100}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_the_frame_at_each_moment_is_the_one_on_screen_then(name, tmp_path):
    codec, times, options, *more = CLIPS[name]
    more = more[0] if more else {}
    check_times(write_clip(tmp_path / name, codec, times, options, **more), times)


def test_two_key_frames_close_together(tmp_path):
    """A jump to the first, by the time it is shown, ends at the second, which is stored by then."""
    options = B | {"x264-params": "scenecut=100:min-keyint=1"}
    muxer = {"use_editlist": "0"}
    path = write_clip(tmp_path / "a.mp4", "libx264", TENTHS, options, muxer=muxer)
    for k in range(40, 60):
        frames = read_frames(path, SEEN, (TENTHS[k], TENTHS[k + 1]))
        assert [read_number(pixels) for pixels in frames.pixels] == [k] * 4


def test_a_span_of_a_file_that_is_read_from_its_beginning(tmp_path):
    frames = read_frames(write_clip(tmp_path / "a.ts", "libx264", TENTHS, B), SEEN, (4.0, 7.0))
    assert [read_number(p) for p in frames.pixels] == list(range(40, 70, 5))
    assert frames.duration == pytest.approx(3)


def test_an_edit_list_hides_what_it_cuts_off(tmp_path):
    """As a phone trims: the file holds 12 s, and says that the first 2.5 are not to be shown."""
    content = bytearray(open(write_clip(tmp_path / "a.mp4", "libx264", TENTHS, B), "rb").read())
    number = lambda at: int.from_bytes(content[at : at + 4], "big")
    edits, media, film = content.find(b"elst"), content.find(b"mdhd"), content.find(b"mvhd")
    assert number(edits + 8) == 1
    for at, cut in ((edits + 12, -2.5 * number(film + 16)), (edits + 16, 2.5 * number(media + 16))):
        content[at : at + 4] = (number(at) + int(cut)).to_bytes(4, "big")
    (tmp_path / "a.mp4").write_bytes(content)
    frames = read_frames(str(tmp_path / "a.mp4"), SEEN)
    assert frames.duration == pytest.approx(9.5, abs=0.1)
    # 19 moments, made even.
    assert [read_number(p) for p in frames.pixels] == [*range(25, 120, 5), 119]


def test_a_picture_that_was_filmed_sideways_is_upright_both_ways(tmp_path):
    for angle in (90, 180, 270):
        path = str(tmp_path / f"{angle}.mp4")
        with av.open(path, "w") as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.set_display_rotation(angle)
            for _ in range(20):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(draw(5), "rgb24")))
            file.mux(stream.encode())
        packets = video.look(path)
        jumping, in_order = video.Jumping(path, packets), video.InOrder(path, packets)
        assert video.jumps_are_exact(packets) and jumping.size == in_order.size
        a, b = (next(clip.pictures(np.array([0]))).astype(int) for clip in (jumping, in_order))
        assert np.abs(a - b).max() <= 2


def old_way(path, budget):
    """(pixels, times, duration) as they were before lib/video.py: decord, whatever the file is."""
    reader = decord.VideoReader(path, num_threads=1)
    stamps = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64)
    on_screen, duration = stamps[:, 0] - stamps[0, 0], float(stamps[-1, 1] - stamps[0, 0])
    moments, _ = data.frame_times(duration, budget)
    index = np.searchsorted(on_screen, moments + 1e-6, side="right") - 1
    index = index.clip(max=max(0, np.searchsorted(on_screen, duration - 1e-6) - 1))
    height, width = data.frame_size(*reader[0].shape[:2], len(index), budget)
    pixels = torch.from_numpy(reader.get_batch(index).asnumpy())
    return data.resize(pixels, height, width), on_screen[index], duration


def assert_as_before(path, budget):
    assert isinstance(video.open_clip(path), video.Jumping)
    frames, (pixels, times, duration) = read_frames(path, budget), old_way(path, budget)
    assert torch.equal(frames.pixels, pixels) and frames.duration == duration
    assert np.array_equal(frames.times, times)


def test_ordinary_clips_are_read_as_before_bit_for_bit(charades):
    for example in read_dataset("charades", "test", charades):
        assert_as_before(example.video, VideoBudget())


def test_the_real_clip_is_read_as_before_bit_for_bit(shared):
    assert_as_before(os.path.join(shared, "videos", "OHOFG.mp4"), VideoBudget())


LATE = {  # a container, and its codecs of pictures and sound
    "mp4": ("libx264", "aac"), "mkv": ("libx264", "aac"), "ts": ("libx264", "aac"),
    "webm": ("libvpx-vp9", "libopus"),
}  # fmt: skip


@pytest.mark.parametrize("late", [0, 3, 7])
@pytest.mark.parametrize("form", LATE)
def test_second_0_is_where_the_file_begins(form, late, tmp_path):
    """A part that was cut out has sound from 0, and its pictures may begin later. Players show them
    then; until then, the first of them. Longer sound makes no clip longer, nor a file cut short."""
    path, packets = str(tmp_path / f"a.{form}"), []
    with av.open(path, "w") as file:
        picture, sound = (
            file.add_stream(codec, rate=r) for codec, r in zip(LATE[form], (10, 48000))
        )
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 1000)
        sound.layout = "mono"
        for k in range(30):
            frame = av.VideoFrame.from_ndarray(draw(k), "rgb24")
            frame.pts, frame.time_base = round(1000 * late + 100 * k), Fraction(1, 1000)
            packets += picture.encode(frame)
        for k in range(12 * 50):
            silence = np.zeros((1, 960), np.float32 if form != "webm" else np.int16)
            heard = av.AudioFrame.from_ndarray(silence, sound.format.name, "mono")
            heard.sample_rate, heard.pts, heard.time_base = 48000, 960 * k, Fraction(1, 48000)
            packets += sound.encode(heard)
        packets += picture.encode() + sound.encode()
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            file.mux(packet)
    frames = read_frames(path, SEEN)
    lead = 0.022 if form == "ts" else 2e-3  # in MPEG-TS the sound is led in by a packet of 21 ms
    assert frames.duration == pytest.approx(late + 3, abs=lead)
    near = 1 if form == "ts" else 0.3
    for k, pixels in enumerate(frames.pixels):
        shown = min(29, max(0, 10 * (k * frames.spacing - late)))
        assert abs(read_number(pixels) - shown) <= near


@pytest.mark.parametrize("name, end", [
    ("small_late3.mp4", 4), ("small_late3.mkv", 4.128), ("small_late7.mp4", 8),
    ("small_late7.mkv", 8.128),
])  # fmt: skip
def test_parts_that_ffmpeg_cut_out(shared, name, end):
    """decord refuses the later two mp4s ("Cannot create buffer source"): PyAV reads them."""
    path = os.path.join(shared, "cases", name)
    frames = read_frames(path, SEEN)
    assert frames.duration == pytest.approx(end)
    first = (np.arange(len(frames.times)) * frames.spacing <= end - 1).sum()
    assert not frames.times[:first].any() and frames.times[first:].min() > end - 1
    part = read_frames(path, SEEN, (end - 1, end))  # the pictures alone, as they were seen before
    assert part.duration == pytest.approx(1) and len(set(part.times)) == 4


def test_pixels_that_are_not_square_are_shown_as_they_are_meant(shared):
    with video.opened(os.path.join(shared, "cases", "sar.mp4")) as clip:
        height, width = clip.size
        assert width / height == pytest.approx(32 / 15, abs=0.01)
        assert next(clip.pictures(np.array([0]))).shape[2] / height == pytest.approx(3 / 2)


def test_a_download_that_was_cut_short_is_one_sentence(tmp_path):
    """Its frames end at half of what its head promises: questions about the rest have no answer."""
    path, muxer = tmp_path / "a.mp4", {"movflags": "faststart"}
    content = open(write_clip(path, "libx264", TENTHS, B, muxer=muxer), "rb").read()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"a\.mp4 breaks off after .* of 12.0 s: download"):
        read_frames(str(path), SEEN)


def test_files_without_times_or_video_are_one_sentence(tmp_path):
    # A bare stream, and two containers that do not hold the times of such frames.
    for name, codec in (("a.h264", "libx264"), ("a.avi", "libx264"), ("a.mpg", "mpeg2video")):
        path = write_clip(tmp_path / name, codec, AT_25, B, tick=25)
        with pytest.raises(BadInput, match="does not say when its frames are shown .* -c:v libx26"):
            read_frames(path, SEEN)
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(BadInput, match="sound.mp4 holds no video"):
        read_frames(str(tmp_path / "sound.mp4"), SEEN)


def test_a_codec_that_nobody_knows_is_one_sentence(tmp_path):
    """Another four-letter name for the codec: one that does not exist, and two of others."""
    content = open(write_clip(tmp_path / "a.mp4", "libx264", TENTHS), "rb").read()
    for name in (b"xxxx", b"drac", b"ap4h"):
        (tmp_path / "b.mp4").write_bytes(content.replace(b"avc1", name))
        with pytest.raises(BadInput, match="b.mp4 .*can(not)? be decoded") as e:
            read_frames(str(tmp_path / "b.mp4"), SEEN)
        assert "\n" not in str(e.value)
