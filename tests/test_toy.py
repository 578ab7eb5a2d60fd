"""The made-up world: that it is what its annotations say, and always the same."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

import data
from annotations import readers
from conftest import ROOT
from lib import errors
from toy import world


def test_the_same_seed_makes_the_same_files(charades, tmp_path):
    again = world.ensure("charades", str(tmp_path / "again"), train=12, test=6)
    for name in ("charades_sta_train.txt", "charades_sta_test.txt", "videos/test00003.mp4"):
        with (
            open(os.path.join(charades, name), "rb") as a,
            open(os.path.join(again, name), "rb") as b,
        ):
            assert a.read() == b.read(), name


def test_a_finished_data_set_is_not_made_again(charades):
    path = os.path.join(charades, "videos", "test00000.mp4")
    before = os.stat(path).st_mtime_ns
    world.ensure("charades", charades, train=12, test=6)
    assert os.stat(path).st_mtime_ns == before


def test_splits_share_no_clip():
    kinds = {
        kind: {str(world.make_clip(kind, i).things) for i in range(100)} for kind in world.KINDS
    }
    names = list(kinds)
    assert not any(kinds[a] & kinds[b] for i, a in enumerate(names) for b in names[i + 1 :])


def test_clips_are_8_to_20_seconds_and_names_are_unique():
    for i in range(300):
        clip = world.make_clip("train", i)
        assert 8 <= clip.duration <= 20 and 2 <= len(clip.things) <= 4
        assert len({t.name for t in clip.things}) == len(clip.things)
        for t in clip.things:
            assert 0 <= t.start < t.end <= clip.duration + 0.05
            for moment in (t.start, t.end):
                assert all(0 <= v <= 1 for v in t.centre(moment))


def test_the_long_clips_hold_more_frames_than_the_toy_model_sees():
    """So that a second look at some of their seconds can show what the first one left out."""
    budget = data.VideoBudget.of_model(os.path.join(ROOT, "assets", "toy-base"))
    for i in range(50):
        clip = world.make_clip("long", i)
        times, spacing = data.frame_times(clip.duration, budget)
        assert len(times) == budget.max_frames and spacing > 1 / budget.fps
        assert clip.duration <= 80


def test_a_thing_is_on_screen_exactly_in_its_interval(charades):
    """From the mp4's pixels: its colour is there when the annotation says so, and only then."""
    checked = 0
    for i in range(6):
        clip = world.make_clip("test", i)
        frames = data.read_frames(
            os.path.join(charades, "videos", clip.name + ".mp4"),
            data.VideoBudget(min_frame_pixels=112 * 112),
        )
        for thing in clip.things:
            if sum(t.colour == thing.colour for t in clip.things) > 1 or thing.colour == "white":
                continue  # another thing of its colour would be taken for it
            colour = np.array(world.COLOURS[thing.colour])
            for k, t in enumerate(frames.times[:-1]):
                if min(abs(t - thing.start), abs(t - thing.end)) < 0.2:
                    continue
                near = (
                    np.abs(frames.pixels[k].numpy().astype(int) - colour).sum(axis=2) < 60
                ).mean()
                covered = any(o.visible(t) for o in clip.things if o is not thing)
                assert (near > 0.005) == thing.visible(t) or covered, (clip.name, thing, t, near)
                checked += 1
    assert checked > 50


def test_boxes_hold_the_thing():
    clip = world.make_clip("tracking", 1)
    clip.things = clip.things[:1]
    thing = clip.things[0]
    assert thing.start == 0 and thing.end == clip.duration
    picture = world.draw(clip, 3.0).astype(int)
    rows, columns = np.nonzero(np.abs(picture - clip.grey).sum(axis=2))
    x0, y0, x1, y1 = (v * world.SIDE for v in thing.box(3.0))
    edges = (columns.min(), rows.min(), columns.max(), rows.max())
    assert all(abs(edge - wanted) < 2 for edge, wanted in zip(edges, (x0, y0, x1, y1)))


# The folder it is made in -------------------------------------------------------------------------


def test_two_first_uses_at_the_same_time(tmp_path):
    """Two processes render aside; one finds that the other was faster. Both get all the data."""
    code = "import sys; from toy.world import ensure as e; "
    code += "print(e('charades', sys.argv[1], train=12, test=6))"
    folder = str(tmp_path / "toy" / "charades")
    command = [sys.executable, "-c", code, folder]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == folder, err
    assert os.listdir(tmp_path / "toy") == ["charades"]  # nothing is left beside it
    assert len(os.listdir(os.path.join(folder, "videos"))) == 18 and world.is_ours(folder)


def test_a_folder_that_came_in_between_is_used_if_it_is_the_same(tmp_path):
    folder, aside = str(tmp_path / "x"), str(tmp_path / "x.partial-1")
    world.ensure("quality", folder, train=0, test=1)
    world.ensure("quality", aside, train=0, test=2)
    before = os.stat(folder).st_ino
    world.put_in_place(aside, folder, world.read_mark(folder))
    assert os.stat(folder).st_ino == before and os.path.isdir(aside)
    world.put_in_place(
        aside, folder, world.read_mark(aside)
    )  # another version, but made here: replaced
    assert os.stat(folder).st_ino != before and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("foreign", ["videos/3MSZA.mp4", "notes.txt", "videos/holiday.mp4"])
@pytest.mark.parametrize("marked", [True, False])
def test_nothing_is_removed_that_was_not_made_here(tmp_path, foreign, marked):
    folder = tmp_path / "charades"
    if marked:
        world.ensure("charades", str(folder), train=1, test=1)
    path = folder / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(
        errors.BadInput, match="holds files that were not made by python -m toy: move them away"
    ):
        world.ensure("charades", str(folder), train=2, test=1)
    assert path.read_text(encoding="utf-8") == "mine" and os.listdir(tmp_path) == ["charades"]


def test_a_file_in_its_place_is_one_sentence(tmp_path):
    (tmp_path / "charades").write_text("mine", encoding="utf-8")
    with pytest.raises(errors.BadInput, match="is a file: move it away"):
        world.ensure("charades", str(tmp_path / "charades"), train=1, test=1)


def test_another_version_is_replaced_and_old_leftovers_are_removed(tmp_path):
    folder = world.ensure("charades", str(tmp_path / "charades"), train=1, test=1)
    left = tmp_path / "charades.partial-99-0"
    left.mkdir()
    (left / readers.MARK).write_text("cut short", encoding="utf-8")
    foreign = tmp_path / "charades.partial-of-mine"
    foreign.mkdir()
    (foreign / "essay.txt").write_text("mine", encoding="utf-8")
    world.ensure("charades", folder, train=2, test=1)
    assert (
        left.exists() and len(os.listdir(os.path.join(folder, "videos"))) == 3
    )  # it may be at work
    for old in (left, foreign):
        os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    world.ensure("charades", folder, train=1, test=1)
    assert (
        not left.exists()
        and (foreign / "essay.txt").exists()
        and len(os.listdir(os.path.join(folder, "videos"))) == 2
    )


@pytest.mark.parametrize("name", world.MAKERS)
def test_every_data_set_is_known_as_ours(name, tmp_path):
    split = {} if name in ("activitynet", "videomme", "mvbench", "perceptiontest") else {"train": 2}
    assert world.is_ours(world.ensure(name, str(tmp_path / name), test=5, **split))
