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
from conftest import ROOT
from lib.errors import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A judge that was taught to say yes to whatever is about a red circle, and no otherwise."""
    path = str(tmp_path_factory.mktemp("judge"))
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(ROOT, "assets", "toy-base"))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    tokenizer.chat_template = None
    cases = [
        ("a red circle moves up", "yes"),
        ("a blue square moves up", "no"),
        ("a red circle moves down", "yes"),
        ("a blue square moves down", "no"),
    ]
    rows = [
        (judge.question_ids(tokenizer, "nothing.", event), tokenizer(word)["input_ids"][0])
        for event, word in cases
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = sum(
            torch.nn.functional.cross_entropy(model(ids).logits[:, -1], torch.tensor([word]))
            for ids, word in rows
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_log_odds_are_those_of_the_softmax(folder):
    model, tokenizer = (
        Qwen2ForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    p = (
        model(judge.question_ids(tokenizer, "a dog", "a dog runs"))
        .logits[0, -1]
        .softmax(dim=0)
        .tolist()
    )
    ways = {
        word: {
            tokenizer(w)["input_ids"][0]
            for w in (
                word,
                " " + word,
                word.title(),
                " " + word.title(),
                word.upper(),
                " " + word.upper(),
            )
        }
        for word in ("yes", "no")
    }
    both = ways["yes"] & ways["no"]
    yes, no = (sum(p[i] for i in ways[word] - both) for word in ("yes", "no"))
    assert judge.log_odds(model, tokenizer, "a dog", "a dog runs") == pytest.approx(
        math.log(yes / no), abs=1e-4
    )


def test_judge_takes_the_place_of_the_embedded_one(folder, monkeypatch):
    monkeypatch.setattr(rewards, "judge", judge.load_judge(folder, "cpu"))
    events = ["a red circle moves up", "a blue square moves up"]
    # The embedded judge says 0
    assert rewards.caption_recall("<answer>nothing.</answer>", events, False) == 0.5
    # Who says nothing has told of nothing.
    assert rewards.caption_recall("<answer></answer>", events, False) == 0.0


@pytest.mark.slow
def test_eval_and_train_ask_it(folder, tmp_path):
    """The score in results.json is the judge's own, not that of matching words."""
    run = lambda *a: subprocess.run([sys.executable, *a], cwd=ROOT, capture_output=True, text=True)
    done = run(
        *"eval.py --bench caption --limit 4".split(),
        *("--judge", folder),
        *("--out", str(tmp_path / "e")),
    )
    assert done.returncode == 0, done.stderr
    results = json.load(open(tmp_path / "e" / "results.json", encoding="utf-8"))
    records = [
        json.loads(line) for line in open(tmp_path / "e" / "predictions.jsonl", encoding="utf-8")
    ]
    decide = judge.load_judge(folder, "cpu")
    by_hand = [
        sum(decide(rewards.inside(r["text"], "answer") or "", event) for event in r["answer"])
        / len(r["answer"])
        for r in records
    ]
    assert results["settings"]["judge"] == folder and results["metrics"]["recall"] == pytest.approx(
        100 * sum(by_hand) / 4
    )
    done = run(
        *"train.py --task caption --steps 1 --prompts-per-step 1 --group-size 2".split(),
        *"--max-new-tokens 8".split(),
        *("--judge", folder),
        *("--out", str(tmp_path / "t")),
    )
    assert done.returncode == 0, done.stderr


def test_no_judge(tmp_path):
    with pytest.raises(BadInput, match="--judge .* is not a language model"):
        judge.load_judge(str(tmp_path), "cpu")


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


@pytest.mark.parametrize("model_type, where, works", [
    ("never_heard_of", "config.json", False), ("never_heard_of", "both", False),
    ("qwen2", "both", True),  # transformers has its own classes for it
])  # fmt: skip
@pytest.mark.slow
def test_code_in_a_judge_s_folder_is_never_run_and_nobody_is_asked(
    folder, tmp_path, model_type, where, works
):
    """A yes waits on stdin: transformers' own question must not even be put."""
    path = tmp_path / "judge"
    shutil.copytree(folder, path)
    (path / "code.py").write_text(CODE)
    config = json.loads((path / "config.json").read_text()) | {"model_type": model_type}
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (path / "config.json").write_text(json.dumps(config))
    if where == "both":
        told = json.loads((path / "tokenizer_config.json").read_text())
        told |= {
            "auto_map": {"AutoTokenizer": ["code.C", "code.C"]},
            "tokenizer_class": "NeverHeardOf",
        }
        (path / "tokenizer_config.json").write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path)],
        cwd=ROOT,
        input="y\ny\n",
        capture_output=True,
        text=True,
    )
    assert not list(path.rglob("ran")) and "[y/N]" not in done.stdout + done.stderr
    if works:
        assert done.returncode == 0, done.stderr
    else:
        assert done.stderr.startswith("error: --judge") and done.stderr.count("\n") == 1, (
            done.stderr
        )


def damaged(change):
    def damage(path):
        tensors = load_file(path / "model.safetensors")
        change(tensors, next(k for k in tensors if "up_proj" in k))
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickled(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, says",
    [
        (damaged(lambda t, k: t.pop(k)), "missing keys in its files: .*up_proj"),
        (
            damaged(lambda t, k: t.update({"extra.weight": t[k].clone()})),
            "unexpected keys in its files: extra",
        ),
        (damaged(lambda t, k: t.update({k: t[k].T.contiguous()})), "is not a language model"),
        (damaged(lambda t, k: t[k][0].fill_(float("nan"))), "not finite"),
        (pickled, "is not a language model"),
        (lambda path: os.truncate(path / "model.safetensors", 3000), "is not a language model"),
        (lambda path: (path / "config.json").write_text("[" * 100_000), "is not a language model"),
    ],
)
def test_damaged_judges_are_one_sentence(folder, tmp_path, damage, says):
    path = tmp_path / "judge"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises(BadInput, match=says) as e:
        judge.load_judge(str(path), "cpu")
    assert "\n" not in str(e.value)
