"""Figures for print: an evaluation's answers, before and after; several runs in three panels."""

import json
import os
import shutil

import numpy as np
import pytest

import train
from lib.errors import BadInput
from lib.files import read_lines
from tools import pictures

FLAGS = "--task grounding --steps 3 --prompts-per-step 2 --group-size 2 --quiet".split()


@pytest.fixture(scope="module")
def runs(charades, tmp_path_factory):
    """Folders of three short runs: two seeds of grpo, and one of dapo."""
    home = tmp_path_factory.mktemp("runs")
    for name, more in (("a", "--seed 1"), ("b", "--seed 2"), ("c", "--seed 1 --loss dapo")):
        out = ["--data", charades, "--out", str(home / name)]
        train.train(train.parse_args([*FLAGS, *more.split(), *out]))
    return [str(home / name) for name in "abc"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, which would be closed otherwise."""
    kept = []
    monkeypatch.setattr(pictures.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        pictures.plt.close(figure)


def draw(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["pictures", *map(str, args)])
    pictures.start()


# Predictions --------------------------------------------------------------------------------------

SETTINGS = {"look": "", "model_name": "toy base", "data_name": "toy charades", "think": True,
            "questions": 2, "video_budget": {"fps": 2.0, "of": (1, 2)}}  # fmt: skip


def record(number, text, iou):
    about = {"id": f"q/{number}", "question": f"query {number}", "answer": [1.0, 2.0], "video": "v"}
    return about | {"text": text, "iou": iou}


def evaluate(folder, records, **changed):
    os.makedirs(folder)
    results = {"metrics": {"mIoU": 1.0}, "settings": SETTINGS | changed}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    lines = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")


def bars(figure):
    """[(colour, from, to)] of the bars of a figure, from top to bottom."""
    patches = sorted(figure.axes[0].patches, key=lambda p: p.get_y())
    return [(p.get_facecolor(), p.get_x(), p.get_x() + p.get_width()) for p in patches]


AFTER = [record(0, "<answer>1.0 to 3.0</answer>", 0.5), record(1, "hm", 0.0)]
BEFORE = [record(0, "<answer>5.0 to 6.0</answer>", 0.0), record(1, "<answer>1 to 2</answer>", 1.0)]


@pytest.mark.parametrize("changed", [None, {}, {"think": False}])
def test_a_bar_for_before_where_the_base_was_evaluated_so(runs, tmp_path, figures, changed):
    home = tmp_path / "runs"
    shutil.copytree(runs[0], home / "a")
    out = home / "a" / "eval-charades"
    evaluate(out, AFTER)
    if changed is not None:
        evaluate(home / "eval" / "toy-base" / "eval-charades", BEFORE, **changed)
    pictures.draw_evaluation(str(out), SETTINGS, AFTER, {"mIoU": 25.0})
    (figure,) = figures
    drawn = [bar[1:] for bar in bars(figure)]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert os.path.getsize(out / "predictions.png") > 5000
    if changed == {}:
        assert drawn == [(1.0, 2.0), (5.0, 6.0), (1.0, 3.0), (1.0, 2.0), (1.0, 2.0)]
        assert len({colour for colour, *_ in bars(figure)}) == 3
        assert labels == ["query 0   0 → 50", "query 1   100 → 0"]
    else:
        assert drawn == [(1.0, 2.0), (1.0, 3.0), (1.0, 2.0)]
        assert labels == ["query 0   50", "query 1   0"]


# Several runs -------------------------------------------------------------------------------------


def test_seeds_are_a_band_and_other_settings_another_line(runs, tmp_path, figures, monkeypatch):
    out = tmp_path / "three.pdf"
    draw(monkeypatch, *runs, "--out", out)
    assert out.read_bytes().startswith(b"%PDF")
    (figure,) = figures
    assert len(figure.axes) == 3
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == ["loss grpo (2 seeds)", "loss dapo (1 seed)"]
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
        ([runs[0]] * 2, "x.pdf", "same settings and seed 1"),
        (runs[:1], "x.doc", "must end in one of"),
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
