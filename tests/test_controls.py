"""Controls: what an answer earns that looks at nothing, and the table that says so."""

import os

import pytest
import torch

from annotations.readers import read_dataset
from conftest import ROOT
from data import Example, looked_at
from evaluation.controls import CONSTANTS, Scored, constant_of, doubts, print_benchmark
from evaluation.predictions import metrics_of, rewards_of
from tasks import TASKS

WHOLE = os.path.join(ROOT, "..", "shared", "data", "whole")


@pytest.mark.skipif(not os.path.isdir(WHOLE), reason="../shared is not here")
@pytest.mark.parametrize(
    "name, files, said, figures",
    [
        ("charades", ("charades_test", "train"), "from 0% to 45%", [30.5, 48.8, 27.7, 11.9]),
        ("got10k", ("got_val",), "the given box", [42.4, 32.2]),
    ],
)
def test_constants_of_the_whole_real_files(name, files, said, figures, tmp_path):
    """The figures were computed apart from this code (PAPER.md). No video is there."""
    (tmp_path / "videos").mkdir()
    for file in files:
        os.symlink(os.path.abspath(f"{WHOLE}/{file}.json"), tmp_path / f"{file}.json")
    examples = read_dataset(name, "test", str(tmp_path))
    constant = constant_of(name, str(tmp_path), examples)
    metrics = metrics_of(examples[0].task, constant.records)
    assert said in constant.said
    assert [round(v, 1) for v in list(metrics.values())[: len(figures)]] == figures
    if name == "got10k":
        assert round(metrics["AO without first"], 1) == 34.1


BOX = (0.1, 0.1, 0.5, 0.5)
ANSWERS = {  # of two examples of each task, so alike that one answer is right for both
    "grounding": ((2.0, 6.0), (2.0, 6.0)),
    "tracking": ([BOX] * 8, [BOX] * 8),
    "qa": ("B", "B"),
    "gqa": (("C", [(0.0, 5.0)]), ("C", [(0.0, 5.0)])),
    "quality": ("low quality", "low quality"),
    "caption": (["a boy runs"], ["a boy runs", "a dog sleeps"]),
    "description": ((["a boy runs"], "A boy runs."), (["a boy runs"], "A boy runs.")),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_constant_is_an_answer_in_the_form_of_its_task(task, tmp_path):
    options = ("a", "b", "c") if task in ("qa", "gqa") else ()
    examples = [
        Example(str(i), task, "v", "q", answer, options, duration=10.0)
        for i, answer in enumerate(ANSWERS[task])
    ]
    constant = constant_of("activitynet", str(tmp_path), examples)
    assert "fitted on these questions" in constant.said or task == "tracking"
    assert all(record["format"] == 1 for record in constant.records)
    assert list(metrics_of(task, constant.records).values())[0] == 100
    assert set(CONSTANTS) == set(TASKS)


def test_an_interval_needs_durations(tmp_path):
    known, unknown = (
        Example(name, "grounding", "v", "q", (2.0, 6.0), duration=seconds)
        for name, seconds in (("a", 10.0), ("b", None))
    )
    assert constant_of("activitynet", str(tmp_path), [unknown]) is None
    constant = constant_of("activitynet", str(tmp_path), [known, unknown])
    assert [r["iou"] for r in constant.records] == [1.0, 0.0]


def test_the_table_shows_controls_first_and_says_what_is_not_exceeded(capsys, tmp_path):
    examples = [
        Example(str(i), "grounding", "v", "q", (i / 10, i / 10 + 2), duration=20.0)
        for i in range(120)
    ]
    constant = constant_of("activitynet", str(tmp_path), examples)

    def scored(name, look, text_of):
        records = []
        for e in examples:
            record = {"id": e.id, "group": "", "text": text_of(e), "answer": e.answer}
            records.append(record | rewards_of("grounding", record["text"], e.answer, False))
        metrics = metrics_of("grounding", records)
        return Scored(name, look, "toy data", "grounding", records, metrics, constant)

    right = lambda e: f"<answer>{e.answer[0]} to {e.answer[1]}</answer>"
    always = lambda e: "<answer>5.0 to 7.0</answer>"
    seeing, grey = scored("seeing", "", right), scored("seeing", "grey", always)
    blind = scored("blind", "", always)
    print_benchmark([seeing, grey, blind])
    out = capsys.readouterr().out
    places = [out.index(f"\n{name}  ") for name in ("constant", "seeing, grey", "seeing", "blind")]
    assert places == sorted(places)
    assert f"100.0 ({100 - metrics_of('grounding', constant.records)['mIoU']:+.1f})" in out
    assert list(doubts(seeing, [seeing, grey])) == []
    assert "blind does not exceed the constant by more than chance: mIoU" in out


def test_looks():
    pixels = torch.arange(6 * 2 * 2 * 3, dtype=torch.uint8).view(6, 2, 2, 3)
    assert looked_at(pixels, "") is pixels
    assert (looked_at(pixels, "grey") == 128).all()
    assert (looked_at(pixels, "middle") == pixels[3]).all()
    shuffled = looked_at(pixels, "shuffled")
    order = shuffled[:, 0, 0, 0].tolist()
    assert order != pixels[:, 0, 0, 0].tolist()
    assert sorted(order) == pixels[:, 0, 0, 0].tolist()
    assert torch.equal(shuffled, looked_at(pixels, "shuffled"))
