"""Scores that can be trusted, evaluations that can be interrupted, and a question about one's own
video."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import eval as evaluation
from annotations.readers import DATASETS, read_dataset
from conftest import BASE, ROOT
from data import Example, VideoBudget
from evaluation.second_look import second_look
from lib.files import append_line, read_lines
from lib.identity import fingerprint
from rewards import temporal_iou
from toy import world


def program(*args, launcher=()):
    command = [sys.executable, *launcher, "eval.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def run(*args):
    """The same within this process.

    The five seconds of its imports, twenty times over, would be most of this file's time.
    """
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    try:
        sys.argv = ["eval.py", *map(str, args)]
        to_out, to_err = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(ROOT), to_out, to_err:
            evaluation.main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def ask(data, out, *more):
    return run("--bench", "charades", "--data", data, "--out", out, *more)


def records(folder):
    return read_lines(os.path.join(folder, "predictions.jsonl"))


def results_of(folder):
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as f:
        return json.load(f)


@pytest.fixture(scope="module")
def evaluated(charades, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval") / "out"
    done = program("--bench", "charades", "--data", charades, "--out", out)
    assert done.returncode == 0, done.stderr
    return str(out), done


def test_metrics_against_a_slow_computation(evaluated, charades):
    """From predictions.jsonl and the annotation file alone, text included."""
    out, _ = evaluated
    examples = read_dataset("charades", "test", charades)
    found = {r["id"]: r for r in records(out)}
    ious = []
    for e in examples:
        said = found[e.id]["text"].partition("<answer>")[2].partition("</answer>")[0]
        inside = said.split(" to ")
        ious.append(temporal_iou(tuple(map(float, inside)), e.answer) if len(inside) == 2 else 0.0)
    metrics = results_of(out)["metrics"]
    assert metrics["mIoU"] == pytest.approx(100 * sum(ious) / len(ious))
    for m in (0.3, 0.5, 0.7):
        right = sum(i >= m for i in ious)
        assert metrics[f"R@{m}"] == pytest.approx(100 * right / len(ious))


def test_a_score_is_saved_with_how_it_was_made(evaluated):
    s = results_of(evaluated[0])["settings"]
    assert s["decoding"] == "greedy" and s["video_budget"]["fps"] == 2.0
    assert "transformers" in s["versions"] and "<answer>" in s["prompt"]
    assert s["model_name"] == "toy base" and s["weights"] == fingerprint(BASE)
    assert os.path.getsize(os.path.join(evaluated[0], "predictions.png")) > 5000


def test_an_interrupted_evaluation_continues_and_comes_to_the_same(evaluated, charades, tmp_path):
    """Also where the model's folder is a copy by now: its weights are compared, not its name."""
    out = shutil.copytree(evaluated[0], tmp_path / "again")
    copy = shutil.copytree(BASE, tmp_path / "copy")
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"mark": "kept"}
    # Killed while it was writing the third.
    cut = json.dumps(marked) + "\n" + lines[1] + lines[2][:20]
    (out / "predictions.jsonl").write_text(cut, encoding="utf-8")
    done = ask(charades, out, "--model", copy)
    assert done.returncode == 0 and "starting anew" not in done.stderr, done.stderr
    again, before = records(out), [json.loads(line) for line in lines]
    assert again[0]["mark"] == "kept" and [r["id"] for r in again] == [r["id"] for r in before]
    assert [r["text"] for r in again] == [r["text"] for r in before]


def test_other_settings_do_not_continue_old_predictions(evaluated, charades, tmp_path):
    out = shutil.copytree(evaluated[0], tmp_path / "blind")
    done = ask(charades, out, "--blind")
    assert done.returncode == 0 and "other settings (look)" in done.stderr
    assert ", grey\n" in done.stdout and len(records(out)) == 6


def test_a_damaged_video_counts_as_wrong_and_is_named(charades, tmp_path):
    shutil.copytree(charades, tmp_path / "data")
    broken = read_dataset("charades", "test", str(tmp_path / "data"))[2]
    with open(broken.video, "wb") as f:
        f.write(b"no video")
    done = ask(tmp_path / "data", tmp_path / "out")
    assert done.returncode == 0 and broken.video in done.stderr
    assert len(records(tmp_path / "out")) == 6
    assert results_of(tmp_path / "out")["failed"] == [broken.id]


def test_batch_size_does_not_change_answers(evaluated, charades, tmp_path):
    assert ask(charades, tmp_path / "one", "--batch-size", 1).returncode == 0
    one, all_ = records(tmp_path / "one"), records(evaluated[0])
    assert [r["text"] for r in one] == [r["text"] for r in all_]


def test_the_real_clip_and_annotations(shared, tmp_path):
    done = ask(shared, tmp_path / "out", "--limit", 6)
    assert done.returncode == 0, done.stderr
    ids = [r["id"] for r in records(tmp_path / "out")]
    assert len(ids) == 6 and all("OHOFG" in id for id in ids)
    assert f"toy base: 6 questions of charades ({shared})" in done.stdout
    assert "\ntoy base  " in done.stdout


def test_missing_clips_are_named_before_anything_is_done(shared, tmp_path):
    done = ask(shared, tmp_path / "out")
    assert done.returncode == 2 and "docs/datasets.md says where to get them" in done.stderr
    assert "charades lacks 19 of its 20 videos" in done.stderr
    assert not os.path.exists(tmp_path / "out")


def test_a_clip_that_can_no_longer_be_had_counts_as_wrong_and_is_listed(tmp_path):
    folder = world.ensure("charades", str(tmp_path / "data"), train=0, test=10)
    gone = read_dataset("charades", "test", folder)[3]
    os.remove(gone.video)
    done = ask(folder, tmp_path / "out", "--max-new-tokens", 8)  # 8 tokens are too few
    assert done.returncode == 0 and gone.id in done.stderr
    assert "WARNING: charades lacks 1 of its 10 videos" in done.stderr
    results = results_of(tmp_path / "out")
    assert results["failed"] == [gone.id] and len(results["not in the form"]) == 9
    assert len(records(tmp_path / "out")) == 10


def test_ask_about_ones_own_video(charades):
    video = read_dataset("charades", "test", charades)[0].video
    done = run("--video", video, "--ask", "What is visible at 3.0 seconds?")
    assert done.returncode == 0 and "tokens]" in done.stdout
    assert len(done.stdout.strip().splitlines()[-1]) > 2


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(evaluated, charades, tmp_path):
    torchrun = "-m torch.distributed.run --nproc-per-node 2 --master-port 29631".split()
    flags = ["--bench", "charades", "--data", charades, "--out", tmp_path / "two"]
    done = program(*flags, launcher=torchrun)
    assert done.returncode == 0, done.stderr
    both = evaluated[0], tmp_path / "two"
    one, two = ({r["id"]: r["text"] for r in records(folder)} for folder in both)
    assert one == two and len(records(tmp_path / "two")) == 6
    assert results_of(both[0])["metrics"] == results_of(both[1])["metrics"]


def test_every_benchmark_runs_to_a_score(tmp_path):
    for name, dataset in DATASETS.items():
        some = {"train": 1} if dataset.train else {}
        world.ensure(name, str(tmp_path / "data" / name), test=5, **some)
    shutil.copytree(BASE, tmp_path / "policy")
    flags = ["--data", tmp_path / "data", "--model", tmp_path / "policy"]
    done = run("--bench", "all", *flags, "--max-new-tokens", 30)
    assert done.returncode == 0, done.stderr
    for name in DATASETS:
        # A made-up data set says so, wherever it lies.
        assert f"toy {name} (made up): 5 questions" in done.stdout
        assert len(records(os.path.join(ROOT, "runs", "eval", "policy", f"eval-{name}"))) == 5
    shutil.rmtree(os.path.join(ROOT, "runs", "eval", "policy"))


def test_clues_look_twice(tmp_path):
    folder = world.ensure("nextgqa", str(tmp_path / "nextgqa"), train=0, test=3)
    out, other = tmp_path / "run" / "eval-nextgqa-clues", tmp_path / "other"
    flags = ["--bench", "nextgqa", "--data", folder, "--max-new-tokens", 60]
    # The same questions, the letter alone.
    done = run(*flags, "--out", tmp_path / "qa", "--task", "qa")
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr
    assert "mIoU" not in done.stdout
    assert [r["answer"] in "ABCDE" for r in records(tmp_path / "qa")] == [True] * 3
    done = run(*flags, "--out", out, "--clues")
    assert done.returncode == 0 and "accuracy, first look" in done.stdout, done.stderr
    shutil.copytree(tmp_path / "run", other)
    path = other / out.name / "predictions-second-look.jsonl"
    right = []
    for r in records(out):
        answer = f"<answer>{r['answer'][0]}</answer><glue>[(0, 1)]</glue>"
        right.append(json.dumps(r | {"text": f"<think>x</think>{answer}"}) + "\n")
    assert path.exists()
    path.write_text("".join(right), encoding="utf-8")
    gain = 100 - results_of(out)["metrics"]["accuracy"]
    done = run(*flags, "--clues", "--compare", tmp_path / "run", other)
    assert done.returncode == 0 and re.search(rf"accuracy +\+{gain:.1f} ", done.stdout), done.stderr


@pytest.mark.parametrize("name", ["videomme", "longvideobench"])
def test_a_second_look_where_no_seconds_are_annotated(name, tmp_path):
    """The paper's table 8: accuracy at the first look, and at the second."""
    folder, out = world.ensure(name, str(tmp_path / name), test=3), tmp_path / "out"
    options = ["--bench", name, "--data", folder, "--out", out, "--max-new-tokens", 60, "--clues"]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    metrics = results_of(out)["metrics"]
    assert {"accuracy, first look", "accuracy"} <= set(metrics) and "Acc@GQA" not in metrics
    assert len(records(out)) == 3 and (out / "predictions-second-look.jsonl").exists()


def test_the_second_look_is_at_the_interval_that_was_named():
    example = Example(
        "a", "gqa", "x.mp4", "why", ("A", [(1.0, 2.0)]), ("x", "y"), span=(100.0, 200.0)
    )
    said = {"a": {"text": "<answer>A</answer><glue>[(10, 12), (20, 30)]</glue>", "seconds": 100.0}}
    (again,), finer = second_look([example], said, VideoBudget())
    assert again.span == (110.0, 130.0) and finer.fps == 4.0
    look = lambda said: second_look([example], {"a": said}, VideoBudget())[0][0].span
    for glue, span in (
        ("(90, 400)", (190.0, 200.0)),
        ("(0, 0.5)", (100.0, 101.25)),
        ("(99.9, 500)", (198.95, 200.0)),
    ):  # never beyond the part of the video that is asked about
        text = f"<answer>A</answer><glue>[{glue}]</glue>"
        assert look({"text": text, "seconds": 100.0}) == pytest.approx(span)
    assert look({"text": "no idea"}) == (100.0, 200.0)
    assert look(said["a"] | {"seconds": 9.0}) == (100.0, 200.0)  # beyond the end


def test_comparing_two_evaluations(charades, tmp_path):
    """Two runs that differ in one answer of six: the difference by hand, and its interval."""
    examples = read_dataset("charades", "test", charades)
    wrong = ["<answer>0 to 1</answer>"] * 6
    right = "<answer>{:.1f} to {:.1f}</answer>".format(*examples[-1].answer)
    for name, texts in (("a", wrong), ("b", [*wrong[:-1], right])):
        folder = tmp_path / name / "eval-charades"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text('{"settings": {}}', encoding="utf-8")
        for k, (e, text) in enumerate(zip(examples, texts)):
            record = {"id": e.id, "answer": e.answer, "text": text, "format": 1.0}
            record["group"] = ("even", "odd")[k % 2]
            append_line(folder / "predictions.jsonl", record)
    flags = ["--bench", "charades", "--data", charades, "--compare"]
    done = run(*flags, tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "R@0.7" in done.stdout and "+16.7   [+0.0, +50.0]" in done.stdout
    assert re.search(r"even +\+0.0", done.stdout) and re.search(r"odd +\+[1-9]", done.stdout)


@pytest.mark.parametrize("args, says", [
    ([], "--bench charades, or --video"),
    (["--bench", ""], "--bench  is unknown"),
    (["--bench", "juggling"], "--bench juggling is unknown"),
    (["--video", "nowhere.mp4", "--ask", "what?"], "nowhere.mp4 does not exist: check the path\n"),
    (["--video", "x.mp4"], "belong together"),
    (["--bench", "charades", "--ask", "what?"], "belong together"),
    (["--bench", "charades", "--data", "/nowhere"], "data folder /nowhere does not exist"),
    (["--bench", "charades", "--limit", "0"], "--limit must be a whole number in [1, inf)"),
    (["--bench", "charades", "--task", "gqa", "--model", BASE],
     "the questions of charades are of the task grounding"),
    (["--bench", "charades", "--clues", "--model", BASE],
     "the questions of charades are of the task grounding"),
    (["--bench", "charades", "--model", "/nowhere", "--limit", "1"],
     "neither a folder here nor a hub name"),
    (["--bench", "charades", "--data", "", "--model", "some/model"],
     "there is no data/charades: give --data FOLDER with charades, or --data toy"),
])  # fmt: skip
def test_a_users_mistake_is_one_sentence(args, says, charades):
    given = [*args, "--data", charades] if "--model" in args and "--data" not in args else args
    done = run(*given)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_the_shipped_base_is_small():
    assert sum(os.path.getsize(os.path.join(BASE, f)) for f in os.listdir(BASE)) < 8e6


def test_a_prompt_that_the_model_cannot_hold_is_one_sentence(charades):
    """The model's own positions are the limit: of the toy's, so many new tokens leave too few."""
    clip = os.path.join(charades, "videos", "test00000.mp4")
    few = 8192 - 20  # of the toy's 8,192 positions
    done = run("--video", clip, "--ask", "What happens?", "--max-new-tokens", few)
    assert done.returncode == 2 and "does not fit in 20" in done.stderr
