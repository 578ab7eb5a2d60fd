"""Figures: an evaluation's answers on a time axis; several runs in three panels; a run as a moving
picture; curves beside healthy ones."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import train
from evaluation.pictures import draw_predictions
from lib.errors import BadInput
from lib.figures import plt
from lib.files import read_lines
from tools import curves, moving, pictures
from tools.report import read_run

NAMES = ("grpo-seed1", "grpo-seed2", "dapo")
FLAGS = "--task grounding --steps 3 --prompts-per-step 2 --group-size 2 --quiet".split()


@pytest.fixture(scope="module")
def runs(charades, tmp_path_factory):
    """Folders of three short runs: two seeds of grpo, and one of dapo."""
    home = tmp_path_factory.mktemp("runs")
    for name, more in zip(NAMES, ("--seed 1", "--seed 2", "--seed 1 --loss dapo")):
        out = ["--data", charades, "--out", str(home / name)]
        train.train(train.parse_args([*FLAGS, *more.split(), *out]))
    return [str(home / name) for name in NAMES]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, which would be closed otherwise."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        plt.close(figure)


def draw(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["pictures", *map(str, args)])
    pictures.start()


def test_predictions_stand_below_the_truth(tmp_path, figures):
    said = {"<answer>1.0 to 3.0</answer>": 0.5, "hm": 0.0, "4 to 4": 0.0}
    records = [{"question": f"query {k}", "answer": [1.0, 2.0], "text": text, "iou": iou}
               for k, (text, iou) in enumerate(said.items())]  # fmt: skip
    settings = {"look": "grey", "model_name": "toy base", "data_name": "toy charades"}
    draw_predictions(str(tmp_path), settings, records, {"mIoU": 16.7})
    axis = figures[0].axes[0]
    bars = sorted(axis.patches, key=lambda p: p.get_y())
    drawn = [(p.get_x(), p.get_x() + p.get_width()) for p in bars]
    assert drawn == [(1.0, 2.0), (1.0, 3.0), (1.0, 2.0), (1.0, 2.0), (4.0, pytest.approx(4.05))]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["query 0   50", "query 1   0", "query 2   0"]
    assert axis.get_title() == "toy base\non toy charades, grey: mIoU 16.7"
    assert [text.get_text() for text in axis.texts] == ["no readable answer"]
    assert os.path.getsize(tmp_path / "predictions.png") > 5000


def test_seeds_are_a_band_and_other_names_another_line(runs, tmp_path, figures, monkeypatch):
    out = tmp_path / "three.pdf"
    draw(monkeypatch, *runs, "--out", out)
    assert out.read_bytes().startswith(b"%PDF")
    (figure,) = figures
    assert len(figure.axes) == 3
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == ["grpo", "dapo"]
    rewards = []
    for folder in runs[:2]:
        lines = read_lines(os.path.join(folder, "metrics.jsonl"))
        rewards.append([line["reward"] for line in lines])  # of 3 steps, the mean of one each
    panel = figure.axes[0]
    assert np.allclose(panel.lines[0].get_ydata(), np.mean(rewards, axis=0))
    band = panel.collections[0].get_paths()[0].vertices
    for step in (1, 2, 3):
        at = band[band[:, 0] == step][:, 1]
        both = [r[step - 1] for r in rewards]
        assert at.min() == pytest.approx(min(both)) and at.max() == pytest.approx(max(both))


def test_mistakes_are_one_sentence(runs, tmp_path, monkeypatch, figures):
    for which, out, says in (
        (runs[:1], "x.doc", "could not be written: Format 'doc' is not supported"),
        (runs[:1], "nowhere/x.pdf", "could not be written"),
        ([tmp_path], "x.pdf", "is not a run folder"),
    ):
        with pytest.raises(BadInput, match=says):
            draw(monkeypatch, *which, "--out", tmp_path / out)
    assert os.listdir(tmp_path) == []
    shutil.copytree(runs[0], tmp_path / "sft")
    path = tmp_path / "sft" / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5, "grad_norm": 1.0}\n', encoding="utf-8")
    with pytest.raises(BadInput, match="has no steps with reward, spread, kl"):
        draw(monkeypatch, tmp_path / "sft")


def test_a_moving_picture_shows_the_median_question_before_and_after(runs, charades, monkeypatch):
    run, home = runs[2], os.path.join(runs[2], "eval-charades")
    monkeypatch.setattr("sys.argv", ["moving", run])
    with pytest.raises(BadInput, match="evaluate the run first"):
        moving.start()
    os.makedirs(home)
    with open(os.path.join(home, "predictions.jsonl"), "w", encoding="utf-8") as f:
        for k, iou in enumerate((0.9, 0.0, 0.4)):
            video = os.path.join(charades, "videos", f"test0000{k}.mp4")
            record = {"id": f"test{k}", "video": video, "question": "q", "answer": [1.0, 3.0]}
            f.write(json.dumps(record | {"iou": iou}) + "\n")
    seen = []
    drawn = moving.drawn
    note = lambda *about: seen.append((about[0].id, about[3], len(about[4]))) or drawn(*about)
    monkeypatch.setattr(moving, "drawn", note)
    moving.start()
    assert set(seen) == {("test2", 0, 2), ("test2", 3, 2)}  # id, step, answers
    with Image.open(os.path.join(run, "learning.gif")) as gif:
        assert gif.n_frames > moving.PLAYED


def test_a_curve_lies_beside_the_healthy_one(runs, tmp_path, figures, monkeypatch):
    assert curves.smooth([1, 2, 3, 4, 5, 11]) == [1, 1.5, 2, 2.5, 3, 5]
    (_, ill), (_, healthy) = read_run(runs[0]), read_run(runs[1])
    curves.picture(str(tmp_path / "gamed.png"), (ill, [0.5, 0.5, 0.5]), healthy)
    reward = figures[0].axes[0].lines  # format and overlap of both runs, and the true overlap
    assert len(reward) == 5 and list(reward[4].get_ydata()) == [0.5, 0.5, 0.5]
    assert reward[3].get_ydata()[0] == ill[0]["reward/grounding/iou"]
    monkeypatch.setattr("sys.argv", ["curves", "hig-lr"])
    with pytest.raises(BadInput, match="hig-lr is none of healthy, high-lr"):
        curves.start()
