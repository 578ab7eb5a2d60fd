"""From files to prompts: patches, times, and every way in which a user's input can be broken."""

import doctest
import os
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
import torch
from PIL import Image

import data
from annotations.readers import read_dataset
from data import (
    VideoBudget,
    frame_size,
    frame_times,
    load_prompt,
    load_video,
    patchify,
    read_frames,
)
from lib.errors import BadInput
from toy.base import TOY_BUDGET


def write_video(path, n_frames, fps=10, size=(56, 84), times=None):
    """An mp4 whose frame k is grey level 2k (so a frame says which one it is).

    times: the second of each frame, for a variable rate.
    """
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 2 * k, np.uint8), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[k] * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


# Frames and times ---------------------------------------------------------------------------------


def test_two_frames_a_second_even_and_at_least_four():
    rows = (10.0, 20, 0.5), (9.6, 20, 0.5), (10.2, 22, 0.5), (1.0, 4, 0.25), (0.1, 4, 0.025)
    for duration, count, spacing in rows:
        times, got = frame_times(duration, VideoBudget())
        assert len(times) == count and got == pytest.approx(spacing)
        assert np.allclose(times, np.arange(count) * spacing)


def test_a_long_video_is_spread_over_max_frames():
    times, spacing = frame_times(3600.0, VideoBudget(max_frames=100))
    assert len(times) == 100 and spacing == 36.0 and times[-1] == 3564.0


def test_frames_never_outgrow_the_total_budget():
    """Even an hour at the smallest frame size stays inside the paper's 3584 tokens."""
    for duration in (1, 30, 300, 3600, 36000):
        for height, width in ((360, 640), (1080, 1920), (640, 360), (28, 2000), (30, 50)):
            budget = VideoBudget()
            n = len(frame_times(duration, budget)[0])
            h, w = frame_size(height, width, n, budget)
            assert h % 28 == 0 and w % 28 == 0 and n % 2 == 0
            assert n // 2 * h * w <= budget.total_pixels


def test_the_budget_is_rounded_down_once():
    """As in Qwen's own code, ⌊side · √(budget / pixels) / 28⌋ · 28; here by whole numbers alone."""
    assert frame_size(360, 640, 252, VideoBudget()) == (112, 196)  # not 111.99… → 84
    for height, width, n in ((360, 640, 252), (640, 360, 252), (360, 640, 72), (1080, 1920, 100)):
        for side, got in zip((height, width), frame_size(height, width, n, VideoBudget())):
            budget, pixels = 2 * 3584 * 28 * 28 * side**2, height * width * n
            assert got == 28 * max(k for k in range(1, 99) if (28 * k) ** 2 * pixels <= budget)


def test_times_come_from_the_file_not_from_the_average_rate(tmp_path):
    """20 frames per second for 2 s, then 2 for 10 s: frame 40 is at 2 s, not at 40 / average."""
    times = [k / 20 for k in range(40)] + [2 + k / 2 for k in range(20)]
    path = write_video(tmp_path / "vfr.mp4", 60, times=times)
    frames = read_frames(path, VideoBudget(min_frame_pixels=28 * 28))
    for seen, moment in zip(frames.pixels, np.arange(len(frames.times)) * frames.spacing):
        expected = max(k for k, t in enumerate(times) if t <= moment + 1e-3)
        assert abs(float(seen.float().mean()) / 2 - expected) < 1, f"at {moment} s"
    assert np.allclose(frames.times[:24], np.arange(24) / 2, atol=0.06)


def test_the_real_clip(shared):
    frames = read_frames(os.path.join(shared, "videos", "OHOFG.mp4"), VideoBudget())
    assert frames.duration == pytest.approx(35.1, abs=0.1)
    assert frames.pixels.shape[0] == 72 and frames.spacing == 0.5
    # One frame of this clip lasts 0.105 s.
    assert np.abs(frames.times[:70] - np.arange(70) / 2).max() < 0.11
    h, w = frames.pixels.shape[1:3]
    assert 36 * h * w <= 3584 * 28 * 28


# Patches ------------------------------------------------------------------------------------------


def test_patches_against_a_slow_obvious_loop():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 56, 84, 3), dtype=torch.uint8)
    rows, clip = [], data.FAMILIES["qwen2_5_vl"]
    for pair, cell_row, cell_column, row, column in product(*map(range, (2, 2, 3, 2, 2))):
        top, left = cell_row * 28 + row * 14, cell_column * 28 + column * 14
        patch = []
        for colour, frame in product(range(3), range(2)):
            x = pixels[2 * pair + frame, top : top + 14, left : left + 14, colour].float() / 255
            patch.append((x - clip.mean[colour]) / clip.std[colour])
        rows.append(torch.stack(patch).flatten())
    patches, grid = patchify(pixels)
    assert grid == (2, 4, 6) and torch.equal(patches, torch.stack(rows))


def test_blind_keeps_everything_but_the_picture(charades):
    path = read_dataset("charades", "test", charades)[0].video
    seen, blind = load_video(path, TOY_BUDGET), load_video(path, TOY_BUDGET, look="grey")
    assert seen.grid == blind.grid and seen.seconds_per_grid == blind.seconds_per_grid
    assert (seen.times == blind.times).all() and not torch.equal(seen.patches, blind.patches)
    grey = blind.patches.unflatten(1, (3, -1))  # (N, 3, 2·14·14): one value a colour channel
    assert (grey.amax(dim=(0, 2)) - grey.amin(dim=(0, 2))).max() == 0


# Prompts ------------------------------------------------------------------------------------------


def test_prompt_has_a_place_for_every_video_token(base, charades):
    example = read_dataset("charades", "test", charades)[0]
    prompt = load_prompt(example, TOY_BUDGET, base[1])
    t, h, w = prompt.grids[0]
    assert (prompt.ids == base[0].config.video_token_id).sum() == t * h * w // 4
    assert all(said in prompt.text for said in (example.question, "12.54 to 17.83", "<think>"))
    assert "<think>" not in load_prompt(example, TOY_BUDGET, base[1], think=False).text


def test_a_question_cannot_smuggle_in_video_tokens(base, charades):
    video = load_video(read_dataset("charades", "test", charades)[0].video, TOY_BUDGET)
    with pytest.raises(BadInput, match="video_pad"):
        data.build_prompt("what is <|video_pad|>?", video, base[1])


def test_a_prompt_that_does_not_fit_is_an_error_that_names_the_flags(base, charades):
    video = load_video(read_dataset("charades", "test", charades)[0].video, TOY_BUDGET)
    with pytest.raises(BadInput, match="--fps, --max-frames or --total-pixels"):
        data.build_prompt("what?", video, base[1], max_tokens=20)


# Broken videos ------------------------------------------------------------------------------------


def test_broken_videos_are_one_sentence(tmp_path, charades):
    good = open(read_dataset("charades", "test", charades)[0].video, "rb").read()
    cases = {"missing": None, "empty": b"", "text": b"this is no video\n" * 100, "cut": good[:800]}
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput) as e:
            load_video(str(path), TOY_BUDGET)
        assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_folder_without_frames_in_place_of_a_video(tmp_path):
    with pytest.raises(BadInput, match="holds no numbered jpg or png frames"):
        load_video(str(tmp_path), TOY_BUDGET)


def test_a_folder_of_frames_is_a_video(tmp_path):
    for k in range(50):
        Image.new("RGB", (56, 56), (5 * k,) * 3).save(tmp_path / f"{k + 1:08d}.png")
    (tmp_path / "meta_info.ini").write_text("[METAINFO]\nanno_fps: 10Hz\n")
    frames = read_frames(str(tmp_path), TOY_BUDGET)
    assert frames.pixels[:, 0, 0, 0].tolist() == [25 * k for k in range(10)]  # 2 of 10 a second
    assert frames.times.tolist() == [k / 2 for k in range(10)] and frames.duration == 5.0
    part = read_frames(str(tmp_path), TOY_BUDGET, (1.0, 3.0))
    assert part.pixels[:, 0, 0, 0].tolist() == [50, 75, 100, 125] and part.duration == 2.0
    with pytest.raises(BadInput, match="lasts 5.0 s; the part from 20 to 30 s is not in it"):
        read_frames(str(tmp_path), TOY_BUDGET, (20.0, 30.0))
    # Tracking names the frames that it asks about.
    eight = tuple(range(0, 50, 7))
    frames = read_frames(str(tmp_path), TOY_BUDGET, None, eight)
    assert frames.pixels[:, 0, 0, 0].tolist() == [5 * k for k in eight]
    assert frames.times.tolist() == pytest.approx([0.7 * k for k in range(8)])
    assert frames.spacing == pytest.approx(0.7)
    with pytest.raises(BadInput, match="holds 50 frames; the question is about number 50"):
        read_frames(str(tmp_path), TOY_BUDGET, None, (0, 50))
    (tmp_path / "00000001.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="cannot be read"):
        read_frames(str(tmp_path), TOY_BUDGET)


def test_a_span_is_the_part_of_the_file(tmp_path):
    path = write_video(tmp_path / "long.mp4", 100)  # 10 s, frame k is grey 2k
    frames = read_frames(path, TOY_BUDGET, (4.0, 7.0))
    assert frames.duration == pytest.approx(3.0)
    assert frames.times == pytest.approx(np.arange(6) / 2)
    shown = [float(p.float().mean()) / 2 for p in frames.pixels]
    assert shown == pytest.approx([40, 45, 50, 55, 60, 65], abs=2)
    # Five moments and a sixth, which is past the end: its last frame once more.
    odd = read_frames(path, TOY_BUDGET, (4.0, 6.45))
    assert round(float(odd.pixels[-1].float().mean()) / 2) in (64, 65) and odd.times.max() < 2.45
    with pytest.raises(BadInput, match="is not in it"):
        read_frames(path, TOY_BUDGET, (20.0, 30.0))


def test_a_short_video_still_gives_four_frames(tmp_path):
    frames = read_frames(write_video(tmp_path / "short.mp4", 5), TOY_BUDGET)
    assert frames.pixels.shape[0] == 4 and frames.duration == pytest.approx(0.5, abs=0.01)


# Budget -------------------------------------------------------------------------------------------


def test_budget_travels_with_the_model_and_flags_win(tmp_path):
    assert VideoBudget.of_model(str(tmp_path)) == VideoBudget()
    TOY_BUDGET.save(str(tmp_path))
    assert VideoBudget.of_model(str(tmp_path)) == TOY_BUDGET
    assert VideoBudget.of_model(str(tmp_path), fps=1.0, max_frames=None, lr=3).fps == 1.0


@pytest.mark.parametrize(
    "wrong", [dict(fps=0.0), dict(max_frames=2), dict(total_pixels=1), dict(min_frame_pixels=10**9)]
)
def test_impossible_budgets(tmp_path, wrong):
    with pytest.raises(BadInput):
        VideoBudget.of_model(str(tmp_path), **wrong)


def test_examples_in_docstrings():
    assert doctest.testmod(data).failed == 0


# What mistakes cost -------------------------------------------------------------------------------


def test_small_frames_are_enlarged_to_the_least_the_budget_allows():
    """By the square root of what is missing, rounded up: no frame gets fewer than the least."""
    budget = VideoBudget(min_frame_pixels=16 * 28 * 28, max_frame_pixels=64 * 28 * 28)
    sizes = {(28, 28): (112, 112), (30, 50): (112, 168), (56, 28): (168, 84)}
    sizes |= {(112, 112): (112, 112), (20, 100): (56, 252)}
    for size, enlarged in sizes.items():
        assert frame_size(*size, 4, budget) == enlarged
        assert enlarged[0] * enlarged[1] >= budget.min_frame_pixels


def test_a_small_clip_is_enlarged(tmp_path):
    path = write_video(tmp_path / "small.mp4", 20, size=(28, 56))
    frames = read_frames(path, VideoBudget(min_frame_pixels=16 * 28 * 28))
    assert tuple(frames.pixels.shape[1:3]) == (84, 168)
    assert abs(float(frames.pixels[2].float().mean()) - 2 * 10) < 3  # still frame 10, at 1 s


def frame_folder(folder, size):
    for k in range(8):
        Image.new("RGB", size, (9 * k,) * 3).save(folder / f"{k + 1:08d}.png")
    return str(folder)


def test_pictures_of_20000_pixels_are_one_sentence(tmp_path, recwarn):
    path = frame_folder(tmp_path, (56, 56))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "00000008.png")
    with pytest.raises(BadInput, match="00000008.png cannot be read: .*400000000 pixels. exceeds"):
        read_frames(path, TOY_BUDGET)
    assert not recwarn.list  # PIL warns of them in two lines of its own


def test_pictures_of_different_sizes_or_broken_are_one_sentence(tmp_path):
    path = frame_folder(tmp_path, (56, 56))
    Image.new("RGB", (84, 56)).save(tmp_path / "00000005.png")
    with pytest.raises(BadInput, match="different sizes"):
        read_frames(path, TOY_BUDGET)
    good = (tmp_path / "00000001.png").read_bytes()
    for broken in (good[:50], good[:20] + b"\0" * 60, b""):
        (tmp_path / "00000005.png").write_bytes(broken)
        with pytest.raises(BadInput, match="00000005.png cannot be read"):
            read_frames(path, TOY_BUDGET)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", '{"fps": "2"}', '{"colour": 1}', "[" * 100_000]
)
def test_a_broken_budget_file_is_one_sentence(tmp_path, content):
    (tmp_path / VideoBudget.FILE).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match="video_budget.json is damaged"):
        VideoBudget.of_model(str(tmp_path))
