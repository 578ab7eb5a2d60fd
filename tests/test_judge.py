"""judge.py: a small language model of the real class, asked yes-or-no questions."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import rewards
from annotations import judge
from conftest import BASE, ROOT
from lib.errors import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A judge that was taught to say yes to whatever is about a red circle, and no otherwise."""
    path, tokenizer = str(tmp_path_factory.mktemp("judge")), AutoTokenizer.from_pretrained(BASE)
    torch.manual_seed(0)
    heads = dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64)
    config = Qwen2Config(**heads, **sizes, tie_word_embeddings=True, initializer_range=0.2)
    model, tokenizer.chat_template = Qwen2ForCausalLM(config), None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = 0
        for thing, word in (("a red circle", "yes"), ("a blue square", "no")):
            for way in ("up", "down"):
                ids = judge.question_ids(tokenizer, "nothing.", f"{thing} moves {way}")
                right = torch.tensor(tokenizer(word)["input_ids"][:1])
                loss += torch.nn.functional.cross_entropy(model(ids).logits[:, -1], right)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_log_odds_are_those_of_the_softmax(folder):
    model = Qwen2ForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = judge.question_ids(tokenizer, "a dog", "a dog runs")
    p = model(ids).logits[0, -1].softmax(dim=0).tolist()
    first = lambda ways: {tokenizer(way)["input_ids"][0] for way in ways}
    ways = first("yes|Yes|YES| yes| Yes| YES".split("|")), first("no|No|NO| no| No| NO".split("|"))
    yes, no = (sum(p[i] for i in ids - set.intersection(*ways)) for ids in ways)
    found = judge.log_odds(model, tokenizer, "a dog", "a dog runs")
    assert found == pytest.approx(math.log(yes / no), abs=1e-4)


def test_judge_takes_the_place_of_the_embedded_one(folder, monkeypatch):
    monkeypatch.setattr(rewards, "judge", judge.load_judge(folder, "cpu"))
    events = ["a red circle moves up", "a blue square moves up"]
    # The built-in judge says 0
    assert rewards.caption_recall("<answer>nothing.</answer>", events, False) == 0.5
    # Who says nothing has told of nothing.
    assert rewards.caption_recall("<answer></answer>", events, False) == 0.0


@pytest.mark.slow
def test_eval_and_train_ask_it(folder, tmp_path):
    """The score in results.json is the judge's own, not that of matching words."""

    def run(command, out):
        command = [*command.split(), "--judge", folder, "--out", str(tmp_path / out)]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("eval.py --bench caption --limit 4", "e")
    results = json.loads((tmp_path / "e" / "results.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "e" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    decide, recalls = judge.load_judge(folder, "cpu"), []
    for record in map(json.loads, lines):
        caption = rewards.inside(record["text"], "answer") or ""
        found = [decide(caption, event) for event in record["answer"]]
        recalls.append(sum(found) / len(found))
    assert results["settings"]["judge"] == folder
    assert results["metrics"]["recall"] == pytest.approx(100 * sum(recalls) / 4)
    train = "train.py --task caption --steps 1 --prompts-per-step 1 --group-size 2"
    run(train + " --max-new-tokens 8", "t")


CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import Qwen2Config as C, Qwen2ForCausalLM as M
"""
ASK = """
import sys
from annotations.judge import load_judge
from lib.errors import BadInput
try:
    load_judge(sys.argv[1], "cpu")
except BadInput as e:
    sys.exit(f"error: {e}")
"""


@pytest.mark.parametrize("model_type", ["never_heard_of", "qwen2"])
@pytest.mark.slow
def test_code_in_a_judge_s_folder_is_never_run_and_nobody_is_asked(folder, tmp_path, model_type):
    """A yes waits on stdin: transformers' own question must not even be put."""
    path = tmp_path / "judge"
    shutil.copytree(folder, path)
    (path / "code.py").write_text(CODE)
    maps = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    change(path / "config.json", model_type=model_type, auto_map=maps)
    maps = {"AutoTokenizer": ["code.C", "code.C"]}
    change(path / "tokenizer_config.json", auto_map=maps, tokenizer_class="NeverHeardOf")
    command, how = [sys.executable, "-c", ASK, str(path)], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, input="y\ny\n", **how)
    assert not list(path.rglob("ran")) and "[y/N]" not in done.stdout + done.stderr
    if model_type == "qwen2":  # transformers has its own classes for it
        assert done.returncode == 0, done.stderr
    else:
        assert done.stderr.startswith("error: --judge") and done.stderr.count("\n") == 1


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def damaged(change):
    def damage(path):
        tensors = load_file(path / "model.safetensors")
        change(tensors, next(k for k in tensors if "up_proj" in k))
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickled(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize("damage, says", [
    (damaged(lambda t, k: t.pop(k)), "it lacks .*up_proj"),
    (damaged(lambda t, k: t.update({"extra.weight": t[k].clone()})), "does not know: extra"),
    (damaged(lambda t, k: t.update({k: t[k].T.contiguous()})), "another shape: .*up_proj"),
    (damaged(lambda t, k: t[k][0].fill_(float("nan"))), "not finite"),
    (pickled, "is not a language model"),
    (lambda path: os.truncate(path / "model.safetensors", 3000), "is not a language model"),
    (lambda path: (path / "config.json").write_text("[" * 100_000), "is not a language model"),
    (shutil.rmtree, "is not a language model"),
])  # fmt: skip
def test_damaged_judges_are_one_sentence(folder, tmp_path, damage, says):
    path = tmp_path / "judge"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises(BadInput, match=f"--judge .*{says}") as e:
        judge.load_judge(str(path), "cpu")
    assert "\n" not in str(e.value)


def test_the_noisy_judge_is_wrong_in_its_share_and_always_in_the_same_cases(monkeypatch):
    monkeypatch.setattr(rewards, "judge", rewards.says)
    judge.install_judge("noisy:0.2", "cpu")
    events = [f"a red circle moves up {n}" for n in range(2000)]
    said = [rewards.judge("a red circle moves up", e) for e in events]
    wrong = sum(a != rewards.says("a red circle moves up", e) for a, e in zip(said, events))
    assert 0.17 < wrong / len(events) < 0.23
    assert said == [rewards.judge("a red circle moves up", e) for e in events]
    for name in ("noisy:", "noisy:2", "noisy:-0.1", "noisy:x"):
        with pytest.raises(BadInput, match="a share from 0 to 1"):
            judge.install_judge(name, "cpu")
