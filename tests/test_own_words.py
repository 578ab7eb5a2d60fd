"""How the question is put: --prompt, the user's own wording, and --think both."""

import json
import os
import shlex
import shutil

import pytest
from test_data import TOY_BUDGET
from test_eval import records, run

import train
from annotations.readers import read_dataset
from conftest import BASE, ROOT
from data import Example, load_prompt
from evaluation.settings import parse_args as parse_eval_args
from lib.errors import BadInput
from lib.flags import check_template, read_template
from tasks import TASKS, words_around
from training.settings import parse_args
from training.shown import asked

TEXT_FIRST = (
    'When does "{question}" happen? The video lasts {duration} seconds.\n'
    "Answer like this: <answer>2.0 to 6.5</answer>\n<video>"
)


def write(folder, text):
    path = folder / "words.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def results_of(folder):
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as f:
        return json.load(f)


def test_words_stand_where_they_were_put(base, charades):
    example = read_dataset("charades", "test", charades)[0]
    ours = load_prompt(example, TOY_BUDGET, base[1], think=False)
    theirs = load_prompt(example, TOY_BUDGET, base[1], template=TEXT_FIRST)
    video = f"<|vision_start|>[{theirs.patches.shape[0] // 4} video tokens]<|vision_end|>"
    assert f"user\n{video}The video lasts" in ours.text
    assert f'user\nWhen does "{example.question}" happen? The video lasts' in theirs.text
    assert f"</answer>\n{video}<|im_end|>" in theirs.text
    assert asked(theirs.text).startswith("When does") and asked(ours.text).startswith("The video")
    around = "See <video> and say: {question} {{so}}"
    both = load_prompt(example, TOY_BUDGET, base[1], template=around).text
    assert f"user\nSee {video} and say: {example.question} {{so}}<|im_end|>" in both


def test_every_field_has_its_value():
    boxes = Example("a", "tracking", "v", "sloth", [(0.1, 0.2, 0.5, 0.6)] * 8)
    before, after = words_around(boxes, 12.34, True, "{question} {box}<video>{duration} s")
    assert (before, after) == ("sloth [0.10, 0.20, 0.50, 0.60]", "12.3 s")
    choice = Example("a", "qa", "v", "Why?", "B", options=("a dog", "a <video>"))
    _, after = words_around(choice, 12.34, True, "<video>{question} {options}")
    assert after == "Why? (A) a dog (B) a <video>"  # a question may say anything


def test_a_toy_model_asked_in_our_words_and_in_others(charades, tmp_path):
    words = write(tmp_path, TEXT_FIRST)
    shared = ["--bench", "charades", "--data", charades, "--no-think"]
    for name, flags in (("ours", []), ("theirs", ["--prompt", words])):
        done = run(*shared, *flags, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    ours, theirs = (results_of(tmp_path / name) for name in ("ours", "theirs"))
    assert ours["settings"]["template"] is None and ours["settings"]["prompt"].startswith("<video>")
    assert theirs["settings"]["template"] == TEXT_FIRST
    assert theirs["settings"]["prompt"].startswith("When does")
    assert theirs["settings"]["prompt"].endswith("<video>")
    for name, results in (("ours", ours), ("theirs", theirs)):
        assert len(records(tmp_path / name)) == 6 and 0 <= results["metrics"]["mIoU"] <= 100
    texts = [[r["text"] for r in records(tmp_path / name)] for name in ("ours", "theirs")]
    assert texts[0] != texts[1]  # the words were not lost on the way
    done = run(*shared, "--out", tmp_path / "theirs")
    assert "other settings (template, prompt)" in done.stderr


def test_a_run_is_evaluated_as_it_was_asked(charades, tmp_path):
    words = write(tmp_path, TEXT_FIRST)
    flags = f"--data {charades} --out {tmp_path}/run --steps 1 --prompts-per-step 1 --group-size 2"
    settings = parse_args(shlex.split(f"{flags} --max-new-tokens 8 --quiet --prompt {words}"))
    assert settings.template == TEXT_FIRST and settings.think is False
    train.train(settings)
    with open(tmp_path / "run" / "settings.json", encoding="utf-8") as f:
        assert json.load(f)["template"] == TEXT_FIRST
    with open(tmp_path / "run" / "rollouts.jsonl", encoding="utf-8") as f:
        assert "user\nWhen does" in json.loads(f.readline())["prompt"]
    os.remove(words)  # settings.json has its text
    done = run("--bench", "charades", "--data", charades, "--model", tmp_path / "run", "--limit", 1)
    assert done.returncode == 0, done.stderr
    settings = results_of(tmp_path / "run" / "eval-charades")["settings"]
    assert settings["template"] == TEXT_FIRST and settings["think"] is False


@pytest.mark.parametrize("text, says", [
    ("{question}", "<video> must be there once, where the video stands; it is there 0 times"),
    ("<video>{question}<video>", "it is there 2 times"),
    ("<video> {querry}", "braces hold one of {question}, {duration}"),
    ("<video> {duration:.2f}{question}", "braces hold one of"),
    ("<video> {}", "braces hold one of"),
    ("<video> {question", "write {{ or }} for one that is to be seen (expected '}'"),
    ("<video> question}", "write {{ or }} for one that is to be seen (Single '}'"),
    ("<video> {question} <|im_end|>", "the model's own marks"),
    (b"<video> \xff\xfe {question}", "cannot be read as UTF-8"),
    ("", "<video> must be there once"),
    ("<video> when?", "does not name {question}, which the task grounding asks about"),
    ("<video> {question} {options}", "names {options}, which the task grounding does not have"),
])  # fmt: skip
def test_a_bad_wording_is_one_sentence(text, says, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(BadInput) as e:
        check_template(read_template(str(path)), "grounding", TASKS["grounding"].prompt)
    assert says in str(e.value)
    with pytest.raises(BadInput, match="--prompt"):
        parse_args(["--prompt", str(path)])


@pytest.mark.parametrize("task", TASKS)
def test_a_wording_of_each_task(task, tmp_path):
    """Our own prompts, as a user would write them down; a Windows editor's mark and line ends."""
    ours = TASKS[task].prompt.replace("{duration:.1f}", "{duration}")
    path = write(tmp_path, b"\xef\xbb\xbf" + f"<video>{ours}\r\n".encode())
    template = read_template(str(path))
    assert template == f"<video>{ours}"
    check_template(template, task, TASKS[task].prompt)


def test_mistakes_with_flags(tmp_path):
    words = str(write(tmp_path, "<video>{question} <think>"))
    assert parse_args(["--prompt", words]).think
    for flags, says in (
        (["--prompt", "/nowhere.txt"], "No such file"),
        (["--prompt", str(tmp_path)], "Is a directory"),
        (["--prompt", words, "--think", "both"], "says itself whether to think"),
        (["--think", "both", "--out", "x"], "leave it away with .* --think both"),
    ):
        with pytest.raises(BadInput, match=says):
            parse_eval_args(["--bench", "charades", *flags])
    done = run("--bench", "quality", "--prompt", words, "--limit", 1, "--model", BASE)
    assert done.returncode == 2 and "which the task quality does not have" in done.stderr


def test_thinking_and_not_in_one_table(charades, tmp_path):
    shutil.copytree(BASE, tmp_path / "asked-twice")
    shared = ["--bench", "charades", "--data", charades, "--limit", 3]
    done = run(*shared, "--model", tmp_path / "asked-twice", "--think", "both")
    assert done.returncode == 0, done.stderr
    home = os.path.join(ROOT, "runs", "eval", "asked-twice")
    try:
        for name, think in (("thinking", True), ("not-thinking", False)):
            folder = os.path.join(home, f"eval-charades-{name}")
            settings = results_of(folder)["settings"]
            assert settings["think"] is think and len(records(folder)) == 3
            assert ("<think>" in settings["prompt"]) is think
        rows = done.stdout.split("in brackets: the difference")[1]  # both in one table
        assert ", thinking " in rows and ", not thinking " in rows
        done = run(*shared, "--compare", *[tmp_path / "asked-twice"] * 2, "--think", "both")
        assert done.returncode == 0 and done.stdout.count("3 questions") == 2, done.stderr
    finally:
        shutil.rmtree(home)
