"""The made-up world: that it is what its annotations say, and always the same."""

import os

import numpy as np

import data
import toy


def test_the_same_seed_makes_the_same_files(charades, tmp_path):
    again = toy.ensure("charades", str(tmp_path / "again"), train=12, test=6)
    for name in ("charades_sta_train.txt", "charades_sta_test.txt", "videos/test00003.mp4"):
        with open(os.path.join(charades, name), "rb") as a, open(os.path.join(again, name), "rb") as b:
            assert a.read() == b.read(), name


def test_a_finished_data_set_is_not_made_again(charades):
    path = os.path.join(charades, "videos", "test00000.mp4")
    before = os.stat(path).st_mtime_ns
    toy.ensure("charades", charades, train=12, test=6)
    assert os.stat(path).st_mtime_ns == before


def test_splits_share_no_clip():
    kinds = {kind: {str(toy.make_clip(kind, i).things) for i in range(100)} for kind in toy.KINDS}
    names = list(kinds)
    assert not any(kinds[a] & kinds[b] for i, a in enumerate(names) for b in names[i + 1:])


def test_clips_are_8_to_20_seconds_and_names_are_unique():
    for i in range(300):
        clip = toy.make_clip("train", i)
        assert 8 <= clip.duration <= 20 and 2 <= len(clip.things) <= 4
        assert len({t.name for t in clip.things}) == len(clip.things)
        for t in clip.things:
            assert 0 <= t.start < t.end <= clip.duration + 0.05
            for moment in (t.start, t.end):
                assert all(0 <= v <= 1 for v in t.centre(moment))


def test_a_thing_is_on_screen_exactly_in_its_interval(charades):
    """From the mp4's pixels: where the annotation says so, its colour is there; before and after, it is not."""
    checked = 0
    for i in range(6):
        clip = toy.make_clip("test", i)
        frames = data.read_frames(os.path.join(charades, "videos", clip.name + ".mp4"), data.VideoBudget(min_frame_pixels=112 * 112))
        for thing in clip.things:
            if sum(t.colour == thing.colour for t in clip.things) > 1 or thing.colour == "white":
                continue  # another thing of its colour would be taken for it
            colour = np.array(toy.COLOURS[thing.colour])
            for k, t in enumerate(frames.times[:-1]):
                if min(abs(t - thing.start), abs(t - thing.end)) < 0.2:
                    continue
                near = (np.abs(frames.pixels[k].numpy().astype(int) - colour).sum(axis=2) < 60).mean()
                covered = any(o.visible(t) for o in clip.things if o is not thing)
                assert (near > 0.005) == thing.visible(t) or covered, (clip.name, thing, t, near)
                checked += 1
    assert checked > 50


def test_boxes_hold_the_thing():
    clip = toy.make_clip("tracking", 1)
    clip.things = clip.things[:1]
    thing = clip.things[0]
    assert thing.start == 0 and thing.end == clip.duration
    picture = toy.draw(clip, 3.0).astype(int)
    rows, columns = np.nonzero(np.abs(picture - clip.grey).sum(axis=2))
    x0, y0, x1, y1 = (v * toy.SIDE for v in thing.box(3.0))
    assert abs(columns.min() - x0) < 2 and abs(rows.min() - y0) < 2 and abs(columns.max() - x1) < 2 and abs(rows.max() - y1) < 2
