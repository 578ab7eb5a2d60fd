"""judge.py: a small language model of the real class, asked yes-or-no questions."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import judge
import rewards
from conftest import ROOT
from data import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A judge that was taught, in some seconds, to say yes to whatever it reads about a red circle, and no otherwise."""
    path = str(tmp_path_factory.mktemp("judge"))
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(ROOT, "assets", "toy-base"))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2))  # fmt: skip
    tokenizer.chat_template = None
    cases = [("a red circle moves up", "yes"), ("a blue square moves up", "no"), ("a red circle moves down", "yes"), ("a blue square moves down", "no")]
    rows = [(judge.question_ids(tokenizer, "nothing.", event), tokenizer(word)["input_ids"][0]) for event, word in cases]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = sum(torch.nn.functional.cross_entropy(model(ids).logits[:, -1], torch.tensor([word])) for ids, word in rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_log_odds_are_those_of_the_softmax(folder):
    model, tokenizer = Qwen2ForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    p = model(judge.question_ids(tokenizer, "a dog", "a dog runs")).logits[0, -1].softmax(dim=0).tolist()
    ways = {word: {tokenizer(w)["input_ids"][0] for w in (word, " " + word, word.title(), " " + word.title(), word.upper(), " " + word.upper())} for word in ("yes", "no")}
    both = ways["yes"] & ways["no"]
    yes, no = (sum(p[i] for i in ways[word] - both) for word in ("yes", "no"))
    assert judge.log_odds(model, tokenizer, "a dog", "a dog runs") == pytest.approx(math.log(yes / no), abs=1e-4)


def test_judge_takes_the_place_of_the_embedded_one(folder, monkeypatch):
    monkeypatch.setattr(rewards, "judge", judge.load_judge(folder, "cpu"))
    events = ["a red circle moves up", "a blue square moves up"]
    assert rewards.caption_recall("<answer>nothing.</answer>", events, False) == 0.5  # the embedded judge says 0
    assert rewards.caption_recall("<answer></answer>", events, False) == 0.0  # who says nothing has told of nothing


def test_eval_and_train_ask_it(folder, tmp_path):
    """The score in results.json is the judge's own, not that of matching words."""
    run = lambda *a: subprocess.run([sys.executable, *a], cwd=ROOT, capture_output=True, text=True)
    done = run("eval.py", "--bench", "caption", "--limit", "4", "--judge", folder, "--out", str(tmp_path / "e"))
    assert done.returncode == 0, done.stderr
    results = json.load(open(tmp_path / "e" / "results.json"))
    records = [json.loads(line) for line in open(tmp_path / "e" / "predictions.jsonl")]
    decide = judge.load_judge(folder, "cpu")
    by_hand = [sum(decide(rewards.inside(r["text"], "answer") or "", event) for event in r["answer"]) / len(r["answer"]) for r in records]
    assert results["settings"]["judge"] == folder and results["metrics"]["recall"] == pytest.approx(100 * sum(by_hand) / 4)
    done = run("train.py", "--task", "caption", "--steps", "1", "--prompts-per-step", "1", "--group-size", "2", "--max-new-tokens", "8", "--judge", folder, "--out", str(tmp_path / "t"))
    assert done.returncode == 0, done.stderr


def test_no_judge(tmp_path):
    with pytest.raises(BadInput, match="--judge .* is not a language model"):
        judge.load_judge(str(tmp_path), "cpu")
