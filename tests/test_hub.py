"""Model folders: as the hub has them, as we save them, and damaged in every way we know."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import eval as evaluation
import hub
import train
from conftest import BASE, ROOT
from lib.adapters import add_adapters, save_adapters
from lib.errors import BadInput
from lib.weights import load_empty
from model import load

# What the toy base brings with it, and a folder from the hub does not.
SMALL = "--fps 2 --max-frames 64 --total-pixels 2809856 --min-frame-pixels 3136".split()
SMALL += "--max-frame-pixels 3136 --max-new-tokens 24 --no-think".split()
STEP = "--task grounding --group-size 4 --prompts-per-step 4 --steps 1 --lr 3e-4".split()
STEP += ["--train-vision", *SMALL]


def folder_of(path, tied=True):
    config, tokenizer = AutoConfig.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    return hub.of_toy_base(str(path), BASE, config, tokenizer, tied)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{tied: a folder as the hub has it}"""
    path = tmp_path_factory.mktemp("hub")
    return {tied: folder_of(path / f"tied-{tied}", tied) for tied in (True, False)}


@pytest.fixture
def copy(folders, tmp_path):
    """A folder as the hub has it, to be damaged."""
    return shutil.copytree(folders[True], str(tmp_path / "copy"))


def numbers(model):
    """{name: tensor}, the rotary frequencies too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(ours, theirs):
    a, b = numbers(ours), numbers(theirs)
    assert a.keys() == b.keys() and len(a) > 80
    return all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# As the hub has it --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", (True, False))
def test_it_is_the_same_model(folders, tied):
    """Ours, transformers' reading of the same folder, and the toy base where it came from."""
    folder = folders[tied]
    assert len([f for f in os.listdir(folder) if f.endswith(".safetensors")]) >= 4
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load(folder, dtype=dtype)
        assert same(model, AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype))
        assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == tied
    assert model.generation_config.eos_token_id == [2, 0] and not model.training
    assert model.n_tokens == len(tokenizer) == 545
    base = load(BASE)[0].state_dict()
    assert all(torch.equal(base[k], w) for k, w in load(folder)[0].state_dict().items())


def test_a_model_without_its_numbers_has_the_same_shapes(folders):
    model, empty = load(folders[True])[0], load_empty(folders[True], torch.float32)[0]
    shapes = lambda m: {name: (x.shape, x.dtype) for name, x in numbers(m).items()}
    assert shapes(model) == shapes(empty) and empty.device.type == "meta"
    assert empty.generation_config.eos_token_id == [2, 0] and empty.n_tokens == 545


def test_the_output_layer_may_have_more_rows_than_the_tokenizer_has_tokens(tmp_path):
    folder = shutil.copytree(BASE, str(tmp_path / "wide"))
    model, _ = load(BASE)
    model.resize_token_embeddings(600)
    model.save_pretrained(folder)
    assert load(folder)[0].n_tokens == 545 and load(folder)[0].lm_head.weight.shape[0] == 600


@pytest.fixture(scope="module")
def one_step(charades, folders, tmp_path_factory):
    """{name of a start: its run folder}: a step from the toy base and from the hub's folders."""
    out = tmp_path_factory.mktemp("runs")
    runs = {"base": BASE, "tied": folders[True], "untied": folders[False]}
    for name, start in runs.items():
        flags = [*STEP, "--data", charades, "--model", start, "--out", str(out / name)]
        train.train(train.parse_args(flags))
    return {name: str(out / name) for name in runs}


def distance(a, b):
    a, b = (load(x)[0].state_dict() for x in (a, b))
    return max((a[k] - b[k]).abs().max().item() for k in a)


def test_a_step_from_it_is_the_step_from_the_toy_base(one_step):
    policies = {name: os.path.join(out, "policy") for name, out in one_step.items()}
    assert distance(BASE, policies["tied"]) > 1e-5  # it moved
    assert distance(policies["base"], policies["tied"]) == 0
    ends = load(policies["untied"])[0]
    assert not torch.equal(ends.lm_head.weight, ends.model.language_model.embed_tokens.weight)


def test_a_run_from_it_is_evaluated(charades, folders, one_step, monkeypatch):
    texts = []
    for name in (one_step["base"], one_step["tied"], folders[True]):
        out = os.path.join(one_step["base"], f"eval-{len(texts)}")
        flags = ["--data", charades, "--limit", "3", "--model", name, "--out", out, *SMALL]
        monkeypatch.setattr(sys, "argv", ["eval.py", "--bench", "charades", *flags])
        evaluation.main()
        with open(os.path.join(out, "predictions.jsonl"), encoding="utf-8") as f:
            texts.append([json.loads(line)["text"] for line in f])
    assert texts[0] == texts[1] and all(len(t) == 3 for t in texts)


PROCESSOR = {
    "preprocessor_config.json": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **dict(min_pixels=3136, max_pixels=12845056),
        **dict(patch_size=14, temporal_patch_size=2, merge_size=2),
    },
    "chat_template.json": {"chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}"},
}


@pytest.mark.parametrize(
    "more", ([], pytest.param(["--lora", "2"], marks=pytest.mark.slow)), ids=str
)
def test_what_a_run_saves_opens_elsewhere(charades, copy, tmp_path, more):
    """In transformers' AutoModel and AutoProcessor: the base's files come along, and a card."""
    for name, content in PROCESSOR.items():
        hub.put(copy, name, content)
    flags = ["--data", charades, "--model", copy, "--out", str(tmp_path / "run"), *more]
    train.train(train.parse_args([*STEP, *flags]))
    policy = tmp_path / "run" / "policy"
    for name in (*PROCESSOR, "generation_config.json"):
        assert (policy / name).read_bytes() == (Path(copy) / name).read_bytes()
    card = (policy / "README.md").read_text(encoding="utf-8")
    assert copy in card and "on grounding" in card and "licence" in card
    plain = policy
    if more:
        plain = tmp_path / "merged"
        done = subprocess.run([sys.executable, "-m", "tools.merge", policy, plain], cwd=ROOT)
        assert done.returncode == 0 and (plain / "preprocessor_config.json").is_file()
    assert same(load(str(policy))[0], AutoModelForImageTextToText.from_pretrained(plain))
    pytest.importorskip("torchvision", reason="AutoProcessor needs torchvision")
    assert type(AutoProcessor.from_pretrained(policy)).__name__ == "Qwen2_5_VLProcessor"


# Where answers end --------------------------------------------------------------------------------


def rewrite(folder, file, **changes):
    """Changes fields of a JSON file; None takes one away."""
    with open(os.path.join(folder, file), encoding="utf-8") as f:
        content = json.load(f) | changes
    hub.put(folder, file, {k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    "given, stops", [([2, 0], [2, 0]), ([0, 2], [2, 0]), (2, [2]), (None, [2])]
)
def test_eos_token_id_is_a_list_however_it_is_given(copy, given, stops):
    rewrite(copy, "generation_config.json", eos_token_id=given)
    assert load(copy)[0].generation_config.eos_token_id == stops


@pytest.mark.parametrize("own, stops", [(None, [2]), (2, [2]), (0, [2, 0])])
def test_eos_token_id_without_generation_config(copy, own, stops):
    """It is the tokenizer's <|im_end|>, and what config.json has besides."""
    os.remove(os.path.join(copy, "generation_config.json"))
    rewrite(copy, "config.json", eos_token_id=own)
    assert load(copy)[0].generation_config.eos_token_id == stops


# Damaged ------------------------------------------------------------------------------------------

PART = "model-00002-of-00005.safetensors"


def edit(change):
    """A damage: changes the tensors of the file that holds one weight."""

    def damage(folder):
        key = "model.layers.1.mlp.up_proj.weight"  # (384, 128)
        for path in sorted(map(str, Path(folder).glob("*.safetensors"))):
            if key in (tensors := load_file(path)):
                change(tensors, key)
                save_file(tensors, path, metadata={"format": "pt"})

    return damage


def text(file, content):
    return lambda folder: Path(folder, file).write_text(content, encoding="utf-8")


def cut(share, file=PART):
    def damage(folder):
        path = os.path.join(folder, file)
        os.truncate(path, int(os.path.getsize(path) * share))

    return damage


def without(file):
    return lambda folder: os.remove(os.path.join(folder, file))


def fields(file, **changes):
    return lambda folder: rewrite(folder, file, **changes)


def replaced(file, old, new):
    def damage(folder):
        content = Path(folder, file).read_text(encoding="utf-8")
        assert old in content
        text(file, content.replace(old, new))(folder)

    return damage


def only_a_pickle(folder):
    for path in Path(folder).glob("*safetensors*"):
        path.unlink()
    torch.save(load_file(os.path.join(BASE, "model.safetensors")), f"{folder}/pytorch_model.bin")


NAN, INF = float("nan"), float("inf")
DEEP = "[" * 100_000 + "]" * 100_000
INDEX, LAYER = "model.safetensors.index.json", r"model\.language_model\.layers"
UNREADABLE = "cannot be loaded: .*; get its folder anew"
DAMAGES = {
    "a file cut in half": (cut(0.5), UNREADABLE),
    "an empty file": (cut(0), UNREADABLE),
    "text for numbers": (text(PART, "version https://git-lfs.github.com/spec/v1"), UNREADABLE),
    "a file missing": (without(PART), UNREADABLE),
    "an index that lies": (replaced(INDEX, "00002-of", "00003-of"), "it lacks"),
    "an index without a map": (fields(INDEX, weight_map=None), UNREADABLE),
    "a pickle and nothing else": (only_a_pickle, UNREADABLE),
    "a second head":
        (edit(lambda t, k: t.update({"lm_head.weight": torch.ones(545, 128)})), "another matrix"),
    "a weight missing": (edit(lambda t, k: t.pop(k)), rf"it lacks {LAYER}\.1\.mlp\.up_proj"),
    "a weight reshaped":
        (edit(lambda t, k: t.update({k: t[k].T.contiguous()})), rf"shape: {LAYER}\.1\.mlp\.up"),
    "a weight renamed": (edit(lambda t, k: t.update({k + "s": t.pop(k)})), "it lacks"),
    "a weight too many":
        (edit(lambda t, k: t.update({"x.bias": t[k].clone()})), r"does not know: .*x\.bias"),
    "NaN in a weight": (edit(lambda t, k: t[k][-1].fill_(NAN)), "not finite"),
    "infinity in a weight": (edit(lambda t, k: t[k][0, :1].fill_(-INF)), "not finite"),
    "config.json cut": (text("config.json", '{"model_type": "qwen2'), "config.json is damaged"),
    "config.json a list": (text("config.json", "[]"), "config.json is damaged"),
    "config.json very deep": (text("config.json", DEEP), "config.json is damaged"),
    "more layers": (fields("config.json", num_hidden_layers=5), rf"it lacks {LAYER}\.4"),
    "fewer layers": (fields("config.json", num_hidden_layers=3), "does not know"),
    "wider": (fields("config.json", hidden_size=256), "another shape"),
    "a width of text": (fields("config.json", hidden_size="wide"), UNREADABLE),
    "heads that do not divide": (fields("config.json", num_attention_heads=7), UNREADABLE),
    "no heads": (fields("config.json", num_attention_heads=0), UNREADABLE),
    "no token of videos":
        (fields("config.json", video_token_id=None), r"<.video_pad.> is 151656 in config.json"),
    "not tied": (fields("config.json", tie_word_embeddings=False), r"it lacks lm_head\.weight"),
    "generation_config.json cut": (text("generation_config.json", "{"), UNREADABLE),
    "an end of text":
        (fields("generation_config.json", eos_token_id="end"), r"answers end with \['end'\]"),
    "an end outside":
        (fields("generation_config.json", eos_token_id=[2, 99999]), r"end with \[2, 99999\]"),
    "tokenizer.json cut": (text("tokenizer.json", '{"version'), UNREADABLE),
    "tokenizer.json missing": (without("tokenizer.json"), UNREADABLE),
    "tokenizer_config.json deep": (text("tokenizer_config.json", DEEP), UNREADABLE),
    "another <|im_end|>":
        (replaced("tokenizer.json", "<|im_end|>", "<|im_over|>"), "546 tokens for 545 rows"),
    "<|im_end|> elsewhere":
        (fields("generation_config.json", eos_token_id=[0, 5]), "<.im_end.> is 2"),
    "<|video_pad|> is gone":
        (replaced("tokenizer.json", "<|video_pad|>", "<|v|>"), "None in the tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders_are_one_sentence(copy, case):
    damage, says = DAMAGES[case]
    damage(copy)
    with pytest.raises(BadInput, match=says) as e:
        load(copy)
    assert "\n" not in str(e.value) and len(str(e.value)) < 700 and copy in str(e.value)


# Adapters -----------------------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path):
    """Adapters of rank 4 for the toy base, with numbers in them."""
    model = add_adapters(load(BASE)[0], 4)
    drawn = {n: torch.randn_like(p) * 0.1 for n, p in model.named_parameters() if p.requires_grad}
    save_adapters(drawn, str(tmp_path / "a"), BASE, 4)
    return str(tmp_path / "a")


def not_a_number(folder):
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file({k: t * NAN for k, t in load_file(path).items()}, path)


def other_layers(folder):
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file({k.replace("layers.0", "layers.9"): t for k, t in load_file(path).items()}, path)


CONFIG = "adapter_config.json"
ADAPTERS = {
    "rank 0": (fields(CONFIG, r=0), "r = 0"),
    "no rank": (fields(CONFIG, r=None), "r = None"),
    "another rank": (fields(CONFIG, r=10**9), "another rank"),
    "alpha is text": (fields(CONFIG, lora_alpha="8"), "lora_alpha = 8"),
    "another arithmetic": (fields(CONFIG, use_rslora=True), "use_rslora"),
    "a base not there": (fields(CONFIG, base_model_name_or_path="/nowhere"), "neither a folder"),
    "no base": (fields(CONFIG, base_model_name_or_path=None), "'base_model_name_or_path' is None"),
    "config cut": (text(CONFIG, "{"), "adapter_config.json is damaged"),
    "no numbers": (without("adapter_model.safetensors"), UNREADABLE),
    "half the numbers": (cut(0.5, "adapter_model.safetensors"), UNREADABLE),
    "NaN": (not_a_number, "not finite"),
    "other layers": (other_layers, "belong to other layers"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_damaged_adapters_are_one_sentence(adapters, case):
    damage, says = ADAPTERS[case]
    damage(adapters)
    with pytest.raises(BadInput, match=says) as e:
        load(adapters)
    assert "\n" not in str(e.value)


def test_adapters_on_adapters_are_merged_and_circles_are_refused(adapters, tmp_path):
    second = shutil.copytree(adapters, str(tmp_path / "b"))
    rewrite(second, CONFIG, base_model_name_or_path=adapters)
    start, once, twice = (load(x)[0].state_dict() for x in (BASE, adapters, second))
    for key in (k for k in start if "q_proj.weight" in k):
        assert torch.allclose(twice[key] - start[key], 2 * (once[key] - start[key]), atol=1e-5)
    rewrite(adapters, CONFIG, base_model_name_or_path=second)
    for folder in (adapters, second):
        with pytest.raises(BadInput, match="lead back to themselves"):
            load(folder)


@pytest.mark.slow
def test_rehearsal_at_toy_size():
    """tests/bench/rehearsal.py, which does all this at the size of a 3B."""
    command = [sys.executable, "tests/bench/rehearsal.py", "--config", "toy", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = done.stdout[done.stdout.rindex("toy: ") :]
    assert "155,648 trained" in said and "--plan says" in said
    assert float(said.split("sampler against scorer: ")[1].split()[0]) < 1e-4
