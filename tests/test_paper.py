"""tools/paper.py: what it would run, that it goes on after a kill, that docs/ say what it wrote."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest

import eval as evaluation
import rewards
import train
from annotations import judge
from annotations.readers import DATASETS
from conftest import ROOT
from evaluation import compare
from evaluation.predictions import metrics_of
from lib.errors import BadInput
from tasks import TASKS
from tools import paper
from tools import paper_tables as tables

TINY = ("--steps", "2", "--limit", "2")


def arguments(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["tools.paper", *map(str, flags)])
    args = paper.parse_args()
    args.measured = paper.measured(args.out)
    return args


# ------------------------------------------------------------------------------------------------
# What is compared
# ------------------------------------------------------------------------------------------------


def test_every_row_is_a_cell_and_every_figure_of_the_paper_has_a_column():
    for name, table in tables.TABLES.items():
        for words, cell, figures in table.rows:
            assert cell in tables.CELLS, (name, words)
            assert len(figures.split()) in (0, len(table.columns)), (name, words)
    shown = {cell for table in tables.TABLES.values() for _, cell, _ in table.rows}
    assert shown == set(tables.CELLS)  # nothing is trained that is not shown


def test_findings_compare_what_the_tables_evaluate():
    for rows in tables.FINDINGS.values():
        for a, b, column, wanted in rows:
            assert column in tables.columns_of(a) and column in tables.columns_of(b), (a, b, column)
            assert wanted in ("+", "-", "0")
    assert len(tables.FINDINGS) == 6


def test_every_metric_is_one_that_evaluations_have():
    """By a record of each benchmark's task; the two looks are named in eval.py."""
    usual = {"charades": "grounding", "activitynet": "grounding", "got10k": "tracking"}
    usual |= {"nextgqa": "gqa", "quality": "quality", "caption": "caption"}
    usual |= {"dream1k": "description"}
    answers = {"grounding": (1.0, 2.0), "tracking": [(0, 0, 1, 1)] * 8, "qa": "A"}
    answers |= {"gqa": ("A", [(1.0, 2.0)]), "quality": "low quality", "caption": ["it moves"]}
    answers |= {"description": (["it moves"], "it moves.")}
    for column in {c for table in tables.TABLES.values() for c in table.columns}:
        name, _, metric = column.partition(" ")
        if name == "run" or column in tables.LOOKS:
            continue
        task = usual.get(name, "qa")
        assert name in (*DATASETS, *tables.EVALUATIONS)
        record = {"text": TASKS[task].ideal(answers[task]), "answer": answers[task], "group": "x"}
        assert metrics_of(task, [record | {"format": 1.0}])[metric] == 100, column


def test_train_and_eval_take_what_every_cell_is_given(monkeypatch, tmp_path):
    args = arguments(monkeypatch, "all", "--out", tmp_path / "out")
    jobs = paper.jobs_of(args.tables, args)
    trained = [job for job in jobs if job.cell.task]
    assert len(jobs) == 3 * len(trained) // 3 + 2 and len(trained) == 3 * (len(tables.CELLS) - 2)
    for job in jobs[::3]:
        if job.cell.task:
            settings = train.parse_args(paper.train_command(job)[1:])
            assert settings.overwrite and not settings.resume and settings.device == "cpu"
            given = {name: getattr(settings, name) for name in job.settings}
            assert given == job.settings
        for command in paper.eval_commands(job, job.evaluations):
            asked = evaluation.parse_args(command[1:])
            (home,) = asked.model
            assert home == (job.folder if job.cell.task else paper.TOY_MODEL)


def test_an_epoch_sees_every_example_once_and_joint_runs_see_each_task_as_often():
    single, joint, three = (
        tables.settings_of(tables.CELLS[name], tables.EPOCH)
        for name in ("grounding-grpo", "all-grpo", "grounding-grpo-3")
    )
    assert single["steps"] * single["prompts_per_step"] == single["examples"]
    assert joint["steps"] == three["steps"] == 3 * single["steps"]
    clips = [tables.CELLS[f"sft-clips{n}"].more["examples"] for n in tables.CLIPS]
    # Of two to four things per clip, all of charades' training queries at last.
    assert 200 < clips[0] < 400 and clips[0] < clips[1] < clips[2]


# ------------------------------------------------------------------------------------------------
# Verdicts
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, wanted, says",
    [
        (0.1, 5, "+", "holds here"),
        (-5, -0.1, "+", "does not hold here"),
        (-0.1, 5, "+", "cannot tell"),
        (-5, -0.1, "-", "holds here"),
        (0.1, 5, "-", "does not hold here"),
        (0, 5, "+", "cannot tell"),
        (-2.9, 2.9, "0", "holds here"),
        (3.1, 9, "0", "does not hold here"),
        (-9, -3.1, "0", "does not hold here"),
        (-3.1, 1, "0", "cannot tell"),
        (1, 3.1, "0", "cannot tell"),
    ],
)
def test_what_an_interval_says(low, high, wanted, says):
    assert tables.verdict(low, high, wanted) == says


def test_a_finding_is_as_good_as_its_worst_comparison():
    holds, against, unclear = "holds here", "does not hold here", "cannot tell"
    assert tables.together([holds, holds]) == holds
    assert tables.together([holds, unclear]) == unclear
    assert tables.together([unclear, holds, against]) == against


def test_the_interval_of_one_seed_is_compare_s_and_seeds_that_differ_widen_it():
    rng = np.random.default_rng(1)
    one = rng.normal(5, 20, (1, 200))
    ours = paper.interval(one, np.random.default_rng(0))
    theirs = compare.bootstrap_interval(one[0], np.random.default_rng(0))
    assert ours == pytest.approx(theirs, abs=0.25)
    assert paper.interval(np.full((3, 50), 2.0), rng) == pytest.approx([2, 2])
    # No question differs from another, but the seeds do: 0, 5 and 10.
    low, high = paper.interval(np.array([[0.0], [5.0], [10.0]]).repeat(50, axis=1), rng)
    assert low == pytest.approx(0) and high == pytest.approx(10)


def test_the_noisy_judge_is_wrong_in_its_share_and_always_in_the_same_cases(monkeypatch):
    monkeypatch.setattr(rewards, "judge", rewards.says)
    judge.install_judge("noisy:0.2", "cpu")
    caption = "a red circle moves up"
    events = [f"a red circle moves up {n}" for n in range(2000)]
    wrong = [rewards.judge(caption, e) != rewards.says(caption, e) for e in events]
    assert 0.17 < sum(wrong) / len(wrong) < 0.23
    again = [rewards.judge(caption, e) != rewards.says(caption, e) for e in events]
    assert again == wrong
    for name in ("noisy:", "noisy:2", "noisy:-0.1", "noisy:x"):
        with pytest.raises(BadInput, match="a share from 0 to 1"):
            judge.install_judge(name, "cpu")


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


SIZE = paper.size_of(Namespace(steps=tables.EPOCH, limit=None))


def made_up():
    """Results of table 8 as two seeds could have given them."""
    looks = lambda a, b: dict(zip(tables.LOOKS, (a, b, a, b)))  # noqa: E731
    run = {"run minutes": 2.0, "run kl": 0.1}
    cells = {
        "base-think": {"0": looks(40.0, 38.0)},
        "all-grpo-think": {"0": looks(50.0, 52.0) | run, "1": looks(51.0, 55.0) | run},
    }
    numbers = {"from": 50.5, "to": 53.5, "difference": 3.0, "low": 1.0, "high": 5.0}
    row = {"a": "all-grpo-think", "b": "all-grpo-think", "column": tables.LOOKS[1]}
    row |= {"wanted": "+", "seeds": 2, "verdict": "holds here"}
    findings = [{"finding": "It helps", "verdict": "holds here", "comparisons": [row | numbers]}]
    minutes = {"base-think": 0.5, "all-grpo-think": 9.0}
    return {"kind": paper.KIND, "settings": SIZE, "cells": cells, "minutes": minutes,
            "findings": findings}  # fmt: skip


def test_a_table_shows_mean_spread_and_the_paper_s_figure_and_only_when_it_is_complete():
    results = made_up()
    page = tables.page(results)
    assert "| GRPO on all three, thinking | 50.5 ± 0.7 *(62.1)* | 53.5 ± 2.1 *(63.6)* |" in page
    assert "| base, thinking | 40.0 *(64.4)* | 38.0 *(63.3)* |" in page
    assert "2 runs, 10 minutes of one core" in page and "another model" in page
    assert "| +3.0 [+1.0, +5.0] | holds here |" in page
    del results["cells"]["base-think"]
    assert "Table 8" not in tables.page(results)


def test_the_short_form_leaves_out_shares_above_a_threshold_and_nothing_else():
    results = made_up()
    results["cells"] = {
        cell: {"0": {column: 50.0 for column in tables.columns_of(cell)} | {"run minutes": 1.0}}
        for cell in tables.CELLS
    }
    results["minutes"] = dict.fromkeys(tables.CELLS, 1.0)
    whole, brief = (tables.tables_page(results, brief) for brief in (False, True))
    heads = [line for line in whole.splitlines() if line.startswith("| toy |")]
    assert len(heads) == len(tables.TABLES)
    for line in heads:
        kept = [word for word in line.split("|")[1:-1] if "R@" not in word]
        assert f"|{'|'.join(kept)}|" in brief
    assert "46.3" in brief and "45.0" not in brief  # the paper's mIoU of a row, and its R@0.5


def figures(text):
    """[(column, figure)] of a page's tables whose rows are named by a column, as the README's."""
    rows = re.findall(r"^\| (?:toy )?([\w-]+ [\w@.]+)(?: \([^|]*)? \|(.*)\|$", text, re.MULTILINE)
    return [(column, f) for column, cells in rows for f in re.findall(r"\d+\.\d", cells)]


def unknown_figures(text, results):
    known = {
        (column, f"{np.mean([seed[column] for seed in seeds.values() if column in seed]):.1f}")
        for seeds in results["cells"].values()
        for column in {c for seed in seeds.values() for c in seed}
    }
    columns = {column for table in tables.TABLES.values() for column in table.columns}
    return [pair for pair in figures(text) if pair[0] in columns and pair not in known]


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def test_docs_hold_what_the_command_wrote():
    """docs/results.json is the command's; tables.md and parts of results.md are made of it."""
    page, results = read("docs", "results.md"), json.loads(read("docs", "results.json"))
    assert [page.count(tables.mark(part)) for part in ("findings", "tables")] == [1, 1]
    assert page.count(tables.END) == 2
    assert tables.put_into(page, results) == page
    assert tables.whole_page(results) == read("docs", "tables.md")
    assert results["settings"] == SIZE  # no rehearsal, and the base as it is
    changed = page.replace(tables.END, f"12.3\n{tables.END}")
    assert tables.put_into(changed, results) == page


def test_docs_show_every_table_with_three_seeds_and_every_finding():
    page, results = read("docs", "results.md"), json.loads(read("docs", "results.json"))
    for name, table in tables.TABLES.items():
        assert f"\n`python -m tools.paper {name}`: " in page
        for _, cell, _ in table.rows:
            seeds = results["cells"][cell]
            assert list(seeds) == (["0", "1", "2"] if tables.CELLS[cell].task else ["0"]), cell
            needed = [c for c in tables.columns_of(cell) if not c.startswith("run ")]
            assert all(set(needed) <= set(seed) for seed in seeds.values()), cell
    assert [f["finding"] for f in results["findings"]] == list(tables.FINDINGS)


def test_docs_say_why_a_finding_does_not_hold_and_with_the_command_s_figures():
    page, results = read("docs", "results.md"), json.loads(read("docs", "results.json"))
    words = re.search(r"^## Where the toy disagrees.*?\n(.*?)^## ", page, re.M | re.S)[1]
    for finding in results["findings"]:
        assert f"**{finding['finding']}: {finding['verdict']}.**" in words
    written = tables.findings_page(results) + tables.tables_page(results)
    known = set(re.findall(r"\d+\.\d+", written))
    assert set(re.findall(r"\d+\.\d+", words)) <= known


def test_the_readme_s_small_table_is_of_the_same_numbers():
    results = made_up()
    results["cells"]["all-grpo"] = {"0": {"charades mIoU": 60.0}, "1": {"charades mIoU": 62.5}}
    text = "| toy charades mIoU | **61.2** | 30.0 |\n| something else | 5.0 |\n"
    assert unknown_figures(text, results) == [("charades mIoU", "30.0")]
    results = json.loads(read("docs", "results.json"))
    if not results["cells"]:
        pytest.skip("no table has been run yet: the README's is of the tool before")
    assert figures(read("README.md")) and not unknown_figures(read("README.md"), results)


# ------------------------------------------------------------------------------------------------
# The program
# ------------------------------------------------------------------------------------------------


def test_a_plan_runs_nothing_and_counts_what_tables_share_once(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", f"tools.paper 2 4 group --plan --out {out}".split())
    paper.start()
    lines = capsys.readouterr().out.splitlines()
    assert not out.exists() and len(lines) == 4
    assert re.match(r"2 +30 runs \(0 there\), +150 evaluations \(0 there\), +\d+ minutes", lines[0])
    # Of table 4: SFT on tracking, three seeds; GRPO's runs are in table 2. Of the base, all is new.
    assert re.match(r"4 +3 runs \(0 there\), +10 evaluations", lines[1])
    assert re.match(r"group +9 runs", lines[2]) and "a guess" in lines[3]


@pytest.mark.parametrize(
    "flags, says",
    [
        (["9"], "there is no table 9"),
        (["1", "--seeds", "-1"], "--seeds must be at least 0"),
        (["1", "--limit", "0"], "--limit must be at least 1"),
        (["1", "--limit", "4", "--docs"], "docs/ show no rehearsals"),
    ],
)
def test_what_cannot_be_asked(flags, says, monkeypatch):
    with pytest.raises(BadInput, match=says):
        arguments(monkeypatch, *flags)


def test_a_folder_of_others_or_of_another_size_is_refused(monkeypatch, tmp_path):
    args = arguments(monkeypatch, "7", "--out", tmp_path)
    paper.check_out(args)  # empty
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match="is not ours"):
        paper.check_out(args)
    paper.write(made_up(), str(tmp_path))
    paper.check_out(args)
    args.limit = 2
    with pytest.raises(BadInput, match="give another, or the same --steps, --limit"):
        paper.check_out(args)


def start(out, *more):
    command = [sys.executable, "-m", "tools.paper", "7", "--seeds", "0", *TINY, "--out", out, *more]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"})  # fmt: skip


def wait_for_a_step(out, program):
    """Until the first run has done a step."""
    while not list(out.glob("*/metrics.jsonl")):
        assert program.poll() is None, program.stdout.read()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_table_end_to_end_told_to_stop_killed_and_given_again(tmp_path):
    """Two runs and the base, of two steps and two questions; each call goes on where one ended."""
    out = tmp_path / "out"
    told = start(out, "--processes", 1)
    wait_for_a_step(out, told)
    told.send_signal(signal.SIGTERM)
    said = told.communicate(timeout=120)[0]
    assert told.returncode == 130 and "the same command goes on from there" in said
    first = list(out.glob("*-seed0"))
    assert len(first) == 1 and not list(out.glob("*/lock"))  # it has saved, and let go

    killed = start(out, "--processes", 2)
    while len(list(out.glob("*-seed0/metrics.jsonl"))) < 2:
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    killed.kill()  # its programs live on: the next call waits for them
    killed.communicate()

    last = start(out)
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(results["cells"]) == {"base", "caption-grpo", "caption-grpo-noisy"}
    (finding,) = results["findings"]
    assert finding["finding"] == "The judge of captions matters little"
    assert "Table 7" in said and "Table 6" not in said
    assert f"wrote {out}/tables.md and results.json: " in said

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    again = start(out)
    assert again.communicate(timeout=120)[0].count("Table 7") == 1 and again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")} == files
    (out / "caption-grpo-seed0" / "policy" / "adapter_model.safetensors").unlink()
    plan = start(out, "--plan").communicate(timeout=120)[0]
    assert "2 runs (1 there)" in plan and "by the steps measured here" in plan


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_done(tmp_path):
    out = tmp_path / "out"
    (out / "caption-grpo-seed0").mkdir(parents=True)
    paper.write({**made_up(), "settings": SIZE | {"steps": 2, "limit": 2}}, str(out))
    (out / "caption-grpo-seed0" / "mine.txt").write_text("mine", encoding="utf-8")
    program = start(out)
    said = program.communicate(timeout=300)[0]
    assert program.returncode == 2 and "1 cells failed" in said and "caption-grpo-seed0.log" in said
    assert os.listdir(out / "caption-grpo-seed0") == ["mine.txt"]
    assert (out / "caption-grpo-noisy-seed0" / "eval-caption" / "results.json").exists()
