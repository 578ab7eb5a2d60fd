"""tools/paper.py: what it runs, that it goes on after a stop, that docs/ say what it wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest

import train
from conftest import ROOT
from evaluation import predictions
from evaluation.predictions import metrics_of
from lib.errors import BadInput
from tasks import TASKS
from tools import paper, thoughts
from tools import paper_tables as tables

SIZE = paper.size_of(Namespace(steps=tables.EPOCH, limit=None))


def arguments(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["tools.paper", *map(str, flags)])
    return paper.parse_args()


# What is compared ---------------------------------------------------------------------------------


def test_rows_are_cells_that_train_py_takes_and_figures_have_columns():
    for cell in set(tables.CELLS) - set(tables.BASES):
        settings = train.parse_args(tables.train_flags(cell, tables.EPOCH))
        assert settings.think == tables.thinks(cell) and settings.seed == 0
    for table in tables.TABLES.values():
        assert all(len(figures) in (0, len(table.columns)) for figures in table.rows.values())
    single, joint = (train.parse_args(tables.train_flags(c, 36)) for c in ("gqa-grpo", "all-grpo"))
    assert single.steps * single.prompts_per_step == single.examples  # each example once
    assert joint.steps == 3 * single.steps and (joint.lora, joint.updates_per_rollout) == (16, 2)
    assert train.parse_args(tables.train_flags("grpo-all-weights", 36)).lora is None


def test_findings_compare_what_is_evaluated_and_every_evaluation_has_its_metric():
    """Of the smallest records; the two looks are named in eval.py."""
    assert len(tables.FINDINGS) == 9
    for column, a, b, expected in sum(tables.FINDINGS.values(), []):
        assert column in tables.columns_of(a) and column in tables.columns_of(b), (a, b, column)
        assert expected in ("+", "-", "0")
    of = {"charades": "grounding", "activitynet": "grounding", "got10k": "tracking"}
    of |= {name: name for name in ("quality", "caption")} | {"nextgqa": "gqa"}
    answers = {"grounding": (1.0, 2.0), "tracking": [(0, 0, 1, 1)] * 8, "qa": "A"}
    answers |= {"gqa": ("A", [(1.0, 2.0)]), "quality": "low quality", "caption": ["it moves"]}
    for column in {c for table in tables.TABLES.values() for c in table.columns}:
        name, _, metric = column.partition(" ")
        if name not in ("run", "dream1k") and "-clues" not in name:
            task = of.get(name, "qa")
            record = {"text": TASKS[task].ideal(answers[task]), "answer": answers[task]}
            assert metrics_of(task, [record | {"group": "x", "format": 1.0}])[metric] == 100, column


def test_thoughts_become_answers():
    answers = {
        "grounding": ((4.0, 7.0), "<think>red circle: 4 5 6</think><answer>1.0 to 2.0</answer>"),
        "gqa": (
            ("B", [(4.0, 7.0)]),
            "<think>two; red circle: 4 5 6</think><answer>A</answer><glue>[(0.0, 1.0)]</glue>",
        ),
        "tracking": (
            [(0.3, 0.3, 0.5, 0.5)] * 8,
            f"<think>{'; '.join(['0.40 0.40'] * 8)}</think><answer>[]</answer>",
        ),
    }
    for task, (answer, text) in answers.items():
        silent = text.replace(": 4 5 6", "").replace("0.40 0.40; ", "", 1)
        for words, earned in ((text, 100.0), (silent, 0.0)):
            records = {"x": {"text": words, "answer": answer, "group": "g"}}
            told = thoughts.told(task, records, {"x": ("one", "two")})
            metrics = metrics_of(task, list(told.values()))
            assert metrics.get("accuracy", 100.0) == 100.0
            assert metrics["overlap" if task == "tracking" else "mIoU"] == earned


# Verdicts -----------------------------------------------------------------------------------------


def test_what_an_interval_says():
    holds, unclear, against = paper.VERDICTS
    said = {(0.1, 5, "+"): holds, (-5, -0.1, "+"): against, (0, 5, "+"): unclear}
    said |= {(-5, -0.1, "-"): holds, (0.1, 5, "-"): against, (-2.9, 2.9, "0"): holds}
    said |= {(3.1, 9, "0"): against, (-9, -3.1, "0"): against, (-3.1, 1, "0"): unclear}
    for (low, high, expected), verdict in said.items():
        assert paper.verdict(low, high, expected) == verdict


def test_the_interval_of_one_seed_is_compare_s_and_seeds_that_differ_widen_it():
    one = np.random.default_rng(1).normal(5, 20, (1, 200))
    theirs = predictions.bootstrap_interval(one[0], np.random.default_rng(0))
    assert paper.interval(one) == pytest.approx(theirs, abs=0.25)
    # No question differs from another, but the seeds do: 0, 5 and 10.
    low, high = paper.interval(np.array([[0.0], [5.0], [10.0]]).repeat(50, axis=1))
    assert low == pytest.approx(0) and high == pytest.approx(10)


# The page -----------------------------------------------------------------------------------------


def test_a_table_shows_mean_spread_and_the_paper_s_figure_and_only_when_it_is_complete():
    columns = tables.TABLES["8"].columns
    looks = lambda *values: dict(zip(columns, values))
    cells = {"base-think": {"0": looks(40.0, 38.0, 40.0, 38.0)}}
    assert tables.table_section("8", cells) is None
    cells["all-grpo-think"] = {"0": looks(50, 52, 50, 52), "1": looks(51, 55, 51, 55)}
    page = tables.table_section("8", cells)
    assert "| all-grpo-think | 50.5 ± 0.7 *(62.1)* | 53.5 ± 2.1 *(63.6)* |" in page
    assert "| base-think | 40.0 *(64.4)* | 38.0 *(63.3)* |" in page


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def test_docs_hold_what_the_command_writes():
    """Without docs/results.json the page says what is compared, and no figure of a run."""
    results = {"cells": {}, "findings": []}
    if os.path.exists(os.path.join(ROOT, "docs", "results.json")):
        results = json.loads(read("docs", "results.json"))
        assert results["settings"] == SIZE  # no rehearsal, and the base as it is
    assert tables.page(results) == read("docs", "tables.md")
    assert {f["finding"] for f in results["findings"]} <= set(tables.FINDINGS)


# The program --------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(monkeypatch, tmp_path):
    for flags, says in (("9", "there is no table 9"), ("1 --seeds -1", "--seeds must be a whole"),
                        ("1 --limit 4 --docs", "docs/ show no rehearsals")):  # fmt: skip
        with pytest.raises(BadInput, match=says):
            arguments(monkeypatch, *flags.split())
    args = arguments(monkeypatch, "7", "--out", tmp_path)
    paper.write({"settings": SIZE | {"limit": 2}, "cells": {}, "findings": []}, tmp_path)
    with pytest.raises(BadInput, match="'limit': 2.*, not cells of .*: give another"):
        paper.check_out(args)
    (tmp_path / "results.json").unlink()
    with pytest.raises(BadInput, match="holds other files"):
        paper.check_out(args)


def start(out):
    flags = ["7", "--seeds", "0", "--steps", "2", "--limit", "2", "--out", str(out)]
    how = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "tools.paper", *flags]
    return subprocess.Popen(command, **how, start_new_session=True)


@pytest.mark.slow
def test_a_table_end_to_end_stopped_and_given_again(tmp_path):
    """Two runs and the base, of two steps and two questions; each call goes on where one ended."""
    out, program = tmp_path / "out", start(tmp_path / "out")
    while not list(out.glob("*/metrics.jsonl")):
        assert program.poll() is None, program.stdout.read()
        time.sleep(0.1)
    os.killpg(program.pid, signal.SIGINT)  # Ctrl-C
    said = program.communicate(timeout=120)[0]
    assert program.returncode == 130 and "the same command goes on from there" in said
    for path in (out / "caption-grpo-seed0").glob("policy/*"):
        path.unlink()  # a cell that fails; the others are done
    (out / "caption-grpo-seed0" / "settings.json").write_text("{}", encoding="utf-8")
    program = start(out)
    said = program.communicate(timeout=300)[0]
    assert program.returncode == 2 and "caption-grpo-seed0.log says why" in said
    assert (out / "caption-grpo-noisy-seed0" / "eval-caption" / "results.json").exists()

    shutil.rmtree(out / "caption-grpo-seed0")
    assert start(out).wait(timeout=300) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(results["cells"]) == {"base", "caption-grpo", "caption-grpo-noisy"}
    assert [f["finding"] for f in results["findings"]] == ["The judge of captions matters little"]
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    assert start(out).wait(timeout=120) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")} == files
