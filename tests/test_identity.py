"""Weights and examples are known by their content, and the toy by its mark."""

import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

import train
from annotations.readers import find_data, read_dataset
from conftest import BASE
from lib import identity
from lib.adapters import save_adapters
from lib.errors import BadInput
from lib.identity import fingerprint, hash_of_examples, is_toy


def changed(folder, by):
    weights = load_file(folder / "model.safetensors")
    weights["visual.merger.ln_q.weight"][3] += by
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_fingerprint_survives_a_copy_and_sees_one_changed_weight(tmp_path):
    copy = shutil.copytree(BASE, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (0, 0))
    assert fingerprint(str(copy)) == fingerprint(BASE)
    changed(copy, 1e-3)
    assert fingerprint(str(copy)) != fingerprint(BASE)


def test_adapters_are_known_with_their_base(tmp_path):
    copy = shutil.copytree(BASE, tmp_path / "copy")
    some = {"x.lora_A": load_file(copy / "model.safetensors")["visual.merger.ln_q.weight"]}
    save_adapters(some, str(tmp_path / "adapters"), str(copy), 4)
    before = fingerprint(str(tmp_path / "adapters"))
    changed(copy, 1e-3)
    assert len({before, fingerprint(str(tmp_path / "adapters")), fingerprint(str(copy))}) == 3


def test_blocks_reach_both_ends_of_a_large_file(tmp_path):
    """The docstring says what lies between the blocks is missed: so it is."""
    size, path = 3 * identity.BLOCKS * identity.BLOCK, tmp_path / "x.safetensors"
    seen = {}
    for at in (None, 0, 8, size // 2, size - 1, 2 * identity.BLOCK):
        with open(path, "wb") as f:
            f.truncate(size)
            if at is not None:
                f.seek(at)
                f.write(b"\1")
        seen[at] = identity.hash_of_file(path)
    assert seen[2 * identity.BLOCK] == seen[None]
    assert len({seen[at] for at in (None, 0, 8, size - 1)}) == 4


def test_a_hub_name_is_known_by_the_revision_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    known = set()
    for commit in ("a" * 40, "b" * 40):
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        assert identity.revision("some/model") == commit
        known.add(fingerprint("some/model"))
    assert len(known) == 2


def test_examples_are_known_by_their_labels_and_not_by_their_place(charades, tmp_path):
    examples = read_dataset("charades", "train", charades)
    copy = shutil.copytree(charades, tmp_path / "elsewhere")
    there = read_dataset("charades", "train", str(copy))
    assert hash_of_examples(there) == hash_of_examples(examples)
    there[0].answer, there[1].answer = there[1].answer, there[0].answer
    assert hash_of_examples(there) != hash_of_examples(examples)


def test_made_up_clips_only_for_the_toy_or_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in = lambda name: str(tmp_path / "stand-in")
    assert find_data("charades", None, stand_in, True)[0] == stand_in("")
    assert find_data("charades", "toy", stand_in, False)[0] == stand_in("")
    with pytest.raises(BadInput, match="no data/charades: give --data FOLDER .* or --data toy"):
        find_data("charades", None, stand_in, False)
    (tmp_path / "data" / "charades").mkdir(parents=True)
    for toy_model in (True, False):
        assert find_data("charades", None, stand_in, toy_model)[0] == "data/charades"
    assert find_data("charades", "toy", stand_in, True)[0] == stand_in("")


def test_what_is_trained_from_the_toy_is_the_toys(base, tmp_path):
    from data import VideoBudget
    from lib.weights import save

    save(*base, VideoBudget(), str(tmp_path / "policy"))
    assert is_toy(BASE) and is_toy(str(tmp_path / "policy")) and not is_toy("some/model")
    save_adapters({}, str(tmp_path / "adapters"), str(tmp_path / "policy"), 4)
    assert is_toy(str(tmp_path / "adapters"))
    args = train.parse_args(["--model", str(tmp_path / "policy")])
    assert (args.lr, args.max_new_tokens) == (3e-4, 64)  # the toy's, as its base
    (tmp_path / "policy" / "config.json").write_text("{")
    assert not is_toy(str(tmp_path / "policy"))  # loading it says what is wrong
