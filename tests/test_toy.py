"""The made-up world: that it is what its annotations say, and always the same."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import data
from annotations import readers
from annotations.training_sets import even_frames
from conftest import ROOT
from evaluation import controls, metrics
from lib import errors
from toy import base as base_training
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


def test_clips_are_12_to_20_seconds_and_names_are_unique():
    for i in range(300):
        clip = world.make_clip("train", i)
        assert 12 <= clip.duration <= 20 and 2 <= len(clip.things) <= 4
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
    clip = world.make_clip("got10k", 1)
    clip.things = clip.things[:1]
    thing = clip.things[0]
    assert thing.start == 0 and thing.end == clip.duration
    picture = world.draw(clip, 3.0).astype(int)
    rows, columns = np.nonzero(np.abs(picture - clip.grey).sum(axis=2))
    x0, y0, x1, y1 = (v * world.SIDE for v in thing.box(3.0))
    edges = (columns.min(), rows.min(), columns.max(), rows.max())
    assert all(abs(edge - wanted) < 2 for edge, wanted in zip(edges, (x0, y0, x1, y1)))


# What it earns not to look ------------------------------------------------------------------------


def held_out(name, folder):
    """A benchmark's Examples, from its annotations alone: no clip is rendered."""
    if name == "got10k":
        return list(map(tracked, range(100)))
    os.makedirs(folder / "videos")
    os.makedirs(folder / "video")
    world.annotate(name, str(folder), 0, train=0)
    examples = readers.read_dataset(name, "test", str(folder))
    for e in examples:  # Charades' text does not say how long a clip is
        kind, number = re.fullmatch(r"(.+)(\d{5}).mp4", os.path.basename(e.video)).groups()
        e.duration = world.make_clip(kind, int(number)).duration
    return examples


def tracked(number):
    """What the reader gives for a folder of frames: the boxes in the eight that are asked about."""
    clip = world.make_clip("got10k", number)
    times = np.array(even_frames(int(clip.duration * world.ANNO_FPS))) / world.ANNO_FPS
    return data.Example(clip.name, "tracking", "", "", [clip.things[0].box(t) for t in times])


@pytest.mark.parametrize(
    "name, metric, most",
    [
        ("charades", "mIoU", 25),
        ("activitynet", "mIoU", 25),
        ("timelens-charades", "mIoU", 25),
        ("timelens-activitynet", "mIoU", 25),
        ("nextgqa", "mIoU", 25),
        ("got10k", "overlap", 20),
        ("quality", "accuracy", 55),
        ("caption", "recall", 30),
        ("dream1k", "recall", 30),
    ],
)
def test_an_answer_that_never_looks_earns_little(name, metric, most, tmp_path):
    """The best constant, fitted on the questions themselves: an upper bound of every other."""
    examples = held_out(name, tmp_path)
    _, answer = controls.CONSTANTS[examples[0].task](examples)
    records = [{"text": answer(e), "answer": e.answer, "group": e.group} for e in examples]
    earned = metrics.reported(examples[0].task, records)[metric]
    print(f"{name}: {earned:.1f} {metric}")
    assert earned <= most


@pytest.mark.parametrize(
    "name", ["nextgqa", "videomme", "longvideobench", "mvbench", "perceptiontest"]
)
def test_no_letter_is_right_much_more_often_than_by_chance(name, tmp_path):
    """Chance: the mean of 1 / (number of options)."""
    examples = held_out(name, tmp_path)
    letters = Counter(e.answer[0] for e in examples)
    chance = np.mean([1 / len(e.options) for e in examples])
    print(f"{name}: {max(letters.values()) / len(examples) / chance:.2f} times chance")
    assert max(letters.values()) / len(examples) <= 1.15 * chance
    for options in {e.options for e in examples}:  # nor in any kind of question
        counts = Counter(e.answer[0] for e in examples if e.options == options)
        assert max(counts.values()) - min(counts[c] for c in "ABCDEF"[: len(options)]) <= 1


# The base that lives in it ------------------------------------------------------------------------


def make_base(folder):
    """The command that the README gives, for a few steps of each part. Returns what it says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["toy.base", "--clips", "20", "--steps", "2", "--out", "made/base"]
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def weights(folder):
    return load_file(os.path.join(folder, "model.safetensors"))


@pytest.mark.slow
def test_the_base_is_remade_by_its_command_and_goes_on_where_it_stopped(tmp_path):
    """Two steps of each part. Killed in the last part and given again: the same weights."""
    code, said = make_base(tmp_path)
    assert code == 0 and said.count(" 2/2 ") == len(base_training.PARTS), said
    whole, last = weights(tmp_path / "made/base"), base_training.PARTS[-1][0]
    shutil.rmtree(tmp_path / "made/base.training/clips-20-seed-0-steps-2" / last)
    code, said = make_base(tmp_path)
    assert code == 0 and said.count(" 2/2 ") == 1 and f"{last} 2/2" in said, said
    again = weights(tmp_path / "made/base")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_training_goes_on_at_the_step_where_it_was_killed(base, tmp_path, monkeypatch, capsys):
    """Two parts, four conversations a step; killed at the last step of the second."""
    monkeypatch.chdir(tmp_path)
    parts = [(*part[:3], 4, *part[4:]) for part in base_training.PARTS[:2]]
    monkeypatch.setattr(base_training, "PARTS", parts)
    monkeypatch.setattr(base_training.Conversations, "tokenizer", lambda self, seed: base[1])
    base_training.train_base("whole", clips=8, seed=0, most_steps=4)
    monkeypatch.setattr(base_training, "SAVE_EVERY", 2)
    loss, calls = base_training.base_loss, []

    def killed(model, rows):
        calls.append(rows)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return loss(model, rows)

    with monkeypatch.context() as m:
        m.setattr(base_training, "base_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            base_training.train_base("killed", clips=8, seed=0, most_steps=4)
    capsys.readouterr()
    calls.clear()
    with monkeypatch.context() as m:
        m.setattr(base_training, "base_loss", killed)
        base_training.train_base("killed", clips=8, seed=0, most_steps=4)
    assert len(calls) == 2 and "stills" not in capsys.readouterr().out  # two steps were left
    whole, again = weights("whole"), weights("killed")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


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
    assert len(os.listdir(os.path.join(folder, "videos"))) == 18


def test_a_folder_that_came_in_between_is_used_if_it_is_the_same(tmp_path):
    folder, aside = str(tmp_path / "x"), str(tmp_path / "x.partial-1")
    world.ensure("quality", folder, train=0, test=1)
    world.ensure("quality", aside, train=0, test=2)
    before = os.stat(folder).st_ino
    world.put_in_place(aside, folder, world.read_mark(folder))
    assert os.stat(folder).st_ino == before and os.path.isdir(aside)
    world.put_in_place(aside, folder, world.read_mark(aside))
    assert os.stat(folder).st_ino != before and sorted(os.listdir(tmp_path)) == ["x", "x.old-1"]


@pytest.mark.parametrize("foreign", ["videos/3MSZA.mp4", "notes.txt"])
def test_files_that_were_not_made_here_are_refused(tmp_path, foreign):
    folder = tmp_path / "charades"
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


def test_another_version_is_kept_with_what_somebody_put_there(tmp_path):
    folder = tmp_path / "charades"
    for k in range(1, 4):
        world.ensure("charades", str(folder), train=k, test=1)
        (folder / "notes.txt").write_text(str(k), encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["charades", "charades.old-1", "charades.old-2"]
    assert (tmp_path / "charades.old-2" / "notes.txt").read_text(encoding="utf-8") == "2"


@pytest.mark.parametrize("name", world.MAKERS)
def test_every_data_set_has_the_clips_that_it_asks_about(name, tmp_path):
    counts = {} if readers.DATASETS[name].train is None else {"train": 2}
    folder = world.ensure(name, str(tmp_path / name), test=5, **counts)
    for split in ("train", "test") if counts else ("test",):
        examples = readers.read_dataset(name, split, folder)
        assert examples and all(os.path.exists(e.video) for e in examples)
