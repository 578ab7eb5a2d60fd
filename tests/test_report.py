"""What a person sees of a run: the page, in a real browser if there is one, and the terminal."""

import html
import io
import json
import os
import re
import shutil
import statistics
import subprocess
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch

import train
from annotations.readers import read_dataset
from conftest import BASE
from data import Example, VideoBudget, load_prompt
from model import encode_videos, group_logprobs, load
from tasks import ideal_answer
from tools import report
from training import shown

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
CONSTANT = {"answer": "all of it", "metrics": {"mIoU": 20.0}}
CONSTANT["difference"] = {"mIoU": [30.0, -1.0, 61.0]}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!--"


def train_here(charades, out, flags):
    flags = ["--data", charades, "--out", str(out), *flags.split()]
    train.train(train.parse_args(flags))


@pytest.fixture(scope="module")
def run(charades, tmp_path_factory):
    """(folder, what it said) of three real steps on the toy world, all of them recorded."""
    out = tmp_path_factory.mktemp("run") / "three"
    flags = "--task grounding --steps 3 --prompts-per-step 2 --group-size 4 --lr 1e-3"
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        train_here(charades, out, f"{flags} --rollouts-every 1 --save-every 1")
    return str(out), said.getvalue()


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run's folder that a test may change."""
    return shutil.copytree(run[0], tmp_path / "copy")


def make(folder):
    settings, lines = report.read_run(str(folder))
    with open(report.write_page(str(folder), lines, settings), encoding="utf-8") as f:
        return f.read()


def content(page):
    script = r'<script type="application/json" id="run">(.*?)</script>'
    return json.loads(re.search(script, page, re.DOTALL)[1])


def write(path, records):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(record) + "\n" for record in records)


def say(folder, *texts, log="rollouts.jsonl", **changed):
    """The first completions of all groups have these texts, and each of their tokens has."""
    groups = report.read_lines(os.path.join(folder, log))
    for group in groups:
        group |= changed
        for c, text in zip(group["completions"], texts):
            c["text"] = text
            if "tokens" in c:  # samples.jsonl keeps no tokens
                c["token_texts"] = [text] * c["tokens"]
    write(os.path.join(folder, log), groups)


# The page -----------------------------------------------------------------------------------------


def test_the_page_holds_the_whole_run_and_asks_nothing_of_the_network(copy, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", str(copy)])
    report.start()
    assert (copy / "curves.png").is_file()
    page = (copy / "report.html").read_text(encoding="utf-8")
    shown = content(page)
    assert [g["step"] for g in shown["groups"]] == [1, 2, 3]
    assert shown["toy"] is True and shown["settings"]["lr"] == 1e-3
    for group in shown["groups"]:
        rewards = [c["reward"] for c in group["completions"]]
        assert rewards == sorted(rewards, reverse=True)
        assert len(shown["clips"][group["clip"]]["frames"]) == 8
        for c in group["completions"]:
            assert "".join(c["token_texts"]).startswith(c["text"])
            assert all(len(c[k]) == c["tokens"] for k in ("token_texts", "logp", "kl"))
    titles = {c["title"] for c in shown["curves"]}
    assert titles >= {"mean grounding iou reward", "entropy (nats per token)"}
    tidied = report.tidy([1e-6, float("inf"), -17.5812345])
    assert tidied == [1e-6, None, -17.5812]  # not rounded to 0
    for name in ("http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"):
        page = page.replace(name, "")
    assert not re.search(r"https?://|url\(|@import|\bfetch\(", page)


def test_recorded_changes_are_those_of_the_weights(charades, tmp_path):
    """The base and the saved policy of a one-step run score the group as the record says."""
    out = str(tmp_path / "one")
    train_here(charades, out, "--steps 1 --prompts-per-step 2 --group-size 4 --lr 1e-3 --quiet")
    (group,) = report.read_lines(os.path.join(out, "rollouts.jsonl"))
    examples = read_dataset("charades", "train", charades, print)
    example = next(e for e in examples if e.id == group["id"])
    moved = 0
    for folder, change in ((BASE, 0), (os.path.join(out, "policy"), 1)):
        policy, tokenizer = load(folder)
        prompt = load_prompt(example, VideoBudget.of_model(folder), tokenizer)
        features = encode_videos(policy, [prompt])[0]
        for c in group["completions"]:
            ids = torch.tensor([[token_id(tokenizer, text) for text in c["token_texts"]]])
            with torch.no_grad():
                logp = group_logprobs(policy, prompt, features, ids)[0][0]
            expected = torch.tensor(c["logp"]) + change * torch.tensor(c["logp_change"])
            assert torch.allclose(logp, expected, atol=2.5e-4)  # two numbers rounded to 4 digits
            moved += sum(abs(x) > 1e-3 for x in c["logp_change"])
        # Before the first step the policy is the reference.
        assert all(x == 0 for c in group["completions"] for x in c["kl"])
    assert moved


def token_id(tokenizer, text):
    if text.startswith("<"):
        return tokenizer.convert_tokens_to_ids(text)
    return tokenizer(text)["input_ids"][0]


@pytest.mark.slow
def test_a_thousand_steps_of_long_answers_stay_under_10_mb(copy):
    line = report.read_lines(os.path.join(copy, "metrics.jsonl"))[0]
    kl = {step: 0.1 + step / 10_000 for step in range(1, 1001)} | {8: float("nan"), 502: 80.0}
    write(copy / "metrics.jsonl", [line | {"step": s, "kl": v} for s, v in kl.items()])
    group = report.read_lines(os.path.join(copy, "rollouts.jsonl"))[0]
    for c in group["completions"]:
        numbers = {name: [-0.1234] * 1024 for name in ("logp", "logp_change", "kl")}
        c |= {"tokens": 1024, "token_texts": [" wordy"] * 1024} | numbers
    group["completions"] *= 2
    steps = sorted({*range(1, 1001, 5), 502})
    write(copy / "rollouts.jsonl", [group | {"step": s} for s in steps])
    page = make(copy)
    shown = content(page)
    assert len(page) < 10e6 and len(shown["groups"]) >= 10 and shown["recorded"] == len(steps)
    assert shown["groups"][0]["step"] == 1 and shown["groups"][-1]["step"] == 996
    assert all(2 <= len(c["points"]) <= 400 and c["points"][-1][0] == 1000 for c in shown["curves"])
    # The spike flattens no curve and is kept: its step is on the page, and so is its group.
    assert shown["peak"] == {"step": 502, "kl": 80.0}
    assert 502 in [g["step"] for g in shown["groups"]]
    (curve,) = [c for c in shown["curves"] if c["name"] == "kl"]
    assert 0.15 < curve["top"] < 0.4
    assert [p[1] for p in curve["points"] if p[1] and p[1] > curve["top"]] == [80.0]


def test_the_page_opens_on_a_group_that_teaches(copy):
    """On the one whose rewards differ most; of each it says who moved as its advantage asked."""
    opened = content(make(copy))
    groups = opened["groups"]
    assert opened["opening"] == max(groups, key=lambda g: g["std"])["step"]
    for group in groups:
        rewards = [c["reward"] for c in group["completions"]]
        said = [statistics.mean(rewards), statistics.stdev(rewards)]
        assert [group["mean"], group["std"]] == pytest.approx(said, rel=1e-4)
        signs = [(sum(c["logp_change"]) > 0, c["advantage"] > 0)
                 for c in group["completions"] if c["advantage"]]  # fmt: skip
        assert group["moved"] == [sum(up == asked for up, asked in signs), len(signs)]
    moved, of = opened["moved"]
    assert [moved, of] == [sum(g["moved"][i] for g in groups) for i in (0, 1)] and moved > of / 2


def test_a_run_that_is_still_going(copy):
    for name in ("metrics.jsonl", "rollouts.jsonl"):  # read in the middle of a line
        os.truncate(copy / name, os.path.getsize(copy / name) - 40)
    shown = content(make(copy))
    assert [g["step"] for g in shown["groups"]] == [1, 2] and "2 of 3 steps" in shown["about"]
    (copy / "rollouts.jsonl").unlink()
    (copy / "samples.jsonl").unlink()
    nothing = content(make(copy))
    assert nothing["groups"] == nothing["looks"] == [] and nothing["opening"] is None


def evaluation(folder, text, miou, more=None, **changed):
    record = {"id": "a/0", "group": "", "video": "none.mp4", "question": "a circle"}
    settings = {"data_name": "toy charades (made up)", "model_name": "x", "think": True}
    settings |= {"questions": 1, "look": ""}
    results = {"metrics": {"mIoU": miou}, "settings": settings | changed} | (more or {})
    os.makedirs(folder)
    write(folder / "predictions.jsonl", [record | {"answer": [1.0, 2.0], "text": text}])
    write(folder / "results.json", [results])


def test_an_evaluation_beside_the_base_s_the_constant_s_and_its_controls(copy):
    """The base's counts if the settings agree; what is unfinished is not shown."""
    constant = {"answer": "all of it", "metrics": {"mIoU": 20.0}}
    constant["difference"] = {"mIoU": [30.0, -1.0, 61.0]}
    evaluation(copy / "eval-charades", "<answer>1.0 to 3.0</answer>", 50.0, {"constant": constant})
    evaluation(copy / "eval-charades-grey", "hm", 5.0, look="grey")
    (copy / "eval-mvbench").mkdir()
    base = copy.parent / "eval" / "toy-base" / "eval-charades"
    evaluation(base, EVIL, 10.0)
    say(copy, EVIL)
    page = make(copy)
    assert EVIL not in page and page.count("</script>") == 2  # what a model says stays text
    (shown,) = content(page)["heldOut"]
    assert shown["columns"] == ["before", "after", "difference", "constant", "grey"]
    assert shown["rows"] == [["mIoU", 10.0, 50.0, 40.0, 20.0, 5.0]] and shown["toy"]
    assert shown["constant"]["answer"] == "all of it"
    assert shown["clips"][0]["before"]["words"] == EVIL
    assert shown["clips"][0]["after"]["intervals"] == [[1.0, 3.0]]
    shutil.rmtree(base)
    evaluation(base, EVIL, 10.0, think=False)
    (shown,) = content(make(copy))["heldOut"]
    assert shown["rows"] == [["mIoU", None, 50.0, None, 20.0, 5.0]]
    assert shown["clips"][0]["before"] is None


# In a browser -------------------------------------------------------------------------------------

STEPS = """
const seen = {errors: [], steps: []}, $$ = query => [...document.querySelectorAll(query)];
window.onerror = message => seen.errors.push(message);
window.alert = () => seen.errors.push("a model's answer was run as a program");
const click = async () => { try {
  const slider = $("slider");
  for (slider.value = 0; seen.steps.length < 3; $("later").click()) {
    slider.dispatchEvent(new Event("input"));
    seen.steps.push($("step").textContent);
  }
  await Promise.all($$("#stage img").map(image => image.decode()));
  seen.counts = ["#curves svg", "#stage img", "#held-out td"].map(query => $$(query).length);
  seen.broken = $$("#stage img").filter(image => !image.alt || !image.naturalWidth).length;
  seen.drawn = $$("#stage [data-row]").length;
  seen.words = $$("#answers .tokens").map(p => p.textContent);
  $$("#answers [role=group] button")[1].click();
  seen.token = $$("#answers output")[0].textContent;
  $$("#stage button.row")[1].click();
  seen.chosen = $$("#answers li").map(card => card.classList.contains("chosen"));
  seen.said = ["statistics", "moved", "spike", "held-out"].map(id => $(id).textContent);
  seen.looks = run.looks.map(() => {
    const look = [$("look-step").textContent, $$("#looks [data-row]").length];
    $("look-later").click();
    return look;
  });
  seen.tooWide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
} catch (error) { seen.errors.push(String(error)); }
const pre = parent.document.createElement("pre");
parent.document.body.append(Object.assign(pre, {id: "seen", textContent: JSON.stringify(seen)})); };
click();
"""


def click_through(folder, width=1280):
    """What a script sees that uses the page's controls in headless Chromium; in a frame, because
    its window is never narrower than 500 pixels, and a phone is."""
    script = f'<script>addEventListener("load", () => {{{STEPS}}})</script>'
    page = html.escape(make(folder).replace("</html>", f"{script}</html>"))
    style = f"border: 0; width: {width}px; height: 800px"
    path = os.path.join(folder, "clicked.html")
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'<!doctype html><body><iframe srcdoc="{page}" style="{style}"></iframe>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    flags += ["--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom"]
    command = [CHROMIUM, *flags, f"file://{path}"]
    for _ in range(3):  # on a busy machine the page's time can be over before it has loaded
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
        if match:
            break
    assert match, done.stderr[-500:]
    return json.loads(html.unescape(match[1]))


browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@browser
@pytest.mark.parametrize("width", [1280, 390])
def test_clicking_through_the_page(copy, width):
    say(copy, EVIL)
    evaluation(copy / "eval-charades", EVIL, 50.0, {"constant": CONSTANT})
    evaluation(copy / "eval-charades-grey", EVIL, 5.0, look="grey")
    seen = click_through(copy, width)
    assert seen["errors"] == [] and seen["tooWide"] <= 0
    assert seen["steps"] == ["step 1", "step 2", "step 3"]
    assert seen["counts"] == [9, 8, 5] and seen["broken"] == 0
    assert [step for step, _ in seen["looks"]] == ["after 0 steps", "after 3 steps"]
    assert all(bars > 3 for _, bars in seen["looks"]) and seen["drawn"] >= 1
    group, moved, spike, held_out = seen["said"]
    assert re.fullmatch(r"Mean reward \d\.\d+, standard deviation \d\.\d+\. Adv.*", group)
    assert re.match(r"\d of 4 moved as their advantage asked.* 3 recorded .*: \d+ %", moved)
    assert "The largest here is" in spike and "all of it. The run minus it" in held_out
    assert any(EVIL in words for words in seen["words"])
    assert seen["token"].startswith("token 2, ") and "log-prob" in seen["token"]
    assert seen["chosen"] == [False, True, False, False]


@browser
def test_boxes_and_evidence_are_drawn(copy):
    boxes = [[0.1, 0.2, 0.5, 0.6]] * 8
    lettered = "<answer>B</answer><glue>[(0.5, 1.5), (9.0, 99999.0)]</glue>"
    for answer, text, drawn in (  # how many marks
        (boxes, f"<answer>{boxes}</answer>", 8 + 4 * 8),
        (["B", [[1.0, 2.0], [4.0, 5.0]]], lettered, 2 + 4 * 2),
        (["a cat sits", "it leaves"], "<answer>a cat</answer>", 0),
    ):
        for log in ("rollouts.jsonl", "samples.jsonl"):
            say(copy, *[text] * 4, log=log, answer=answer)
        seen = click_through(copy)
        assert seen["errors"] == [] and seen["tooWide"] <= 0 and seen["drawn"] == drawn
        assert all(bars == 3 * drawn for _, bars in seen["looks"])


# In the terminal ----------------------------------------------------------------------------------


def test_training_shows_a_group_unless_told_not_to(run, charades, tmp_path, capsys):
    # Every tenth step is shown: of three, the first.
    assert "step 1: The video lasts" in run[1] and run[1].count("reward  advantage  ") == 1
    train_here(charades, tmp_path / "q", "--steps 1 --prompts-per-step 1 --group-size 2 --quiet")
    said = capsys.readouterr()
    assert "reward  advantage" not in said.out + said.err


def group_of(prompt, answer, *texts):
    prompt = f"<|vision_start|>[8 video tokens]<|vision_end|>{prompt}\nGive only …<|im_end|>"
    completions = [{"text": text, "reward": 2.0 - i, "advantage": 1.0 - i}
                   for i, text in enumerate(texts)]  # fmt: skip
    return {"prompt": prompt, "answer": answer, "completions": completions}


def test_a_grounding_group_in_the_terminal():
    given = ("<answer>5.0 to 10.0</answer>", "hm\x1b[31m", "<answer>9.0 to 3.0</answer>")
    group = group_of("The video lasts 10.0 seconds. When?", (2.0, 6.0), *given)
    assert shown.group_text(7, group, 40).split("\n") == [
        "step 7: The video lasts 10.0 seconds. W…",
        "reward  advantage  true: 2.0 to 6.0",
        "  2.00      +1.00  5.0 to 10.0",
        "  1.00      +0.00  hm [31m",
        "  0.00      -1.00  9.0 to 3.0",
    ]


def test_every_task_in_the_terminal():
    answers = {"grounding": (2.0, 6.0), "tracking": [(0.1, 0.2, 0.3, 0.4)] * 8}
    answers |= {"gqa": ("B", [(1.0, 2.0)]), "caption": ("a cat sits",)}
    for task, answer in answers.items():
        ideal = ideal_answer(Example("a/0", task, "a.mp4", "a cat", answer), "because")
        group = group_of("What happens?", answer, ideal, "", "多" * 300)
        lines = shown.group_text(1, group, 40).split("\n")
        assert max(map(len, lines)) <= 40 and "(nothing)" in lines[-2]
        truth = [tuple(i) for i in shown.true_answer(answer)["intervals"]]
        assert shown.given_answer(ideal, answer)["intervals"] == truth
