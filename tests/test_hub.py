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
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

import eval as eval_module
import hub
import train
from conftest import BASE, ROOT
from data import VideoBudget
from lib import sharding
from lib import weights as models
from lib.adapters import add_adapters, save_adapters
from lib.errors import BadInput
from lib.weights import load

# What the toy base brings with it, and a folder from the hub does not.
SMALL = [
    *"--fps 2 --max-frames 64 --total-pixels 2809856 --min-frame-pixels 3136".split(),
    *"--max-frame-pixels 3136 --max-new-tokens 24 --no-think".split(),
]
STEP = [
    *"--task grounding --group-size 4 --prompts-per-step 4 --steps 1".split(),
    # Groups alone: rows of several round otherwise, and a draw may then fall the other way.
    *"--lr 3e-4 --train-vision".split(),
    *SMALL,
]


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


def rewrite(folder, file, **changes):
    """Changes fields of a JSON file; None takes one away."""
    with open(os.path.join(folder, file), encoding="utf-8") as f:
        content = json.load(f) | changes
    hub.put(folder, file, {k: v for k, v in content.items() if v is not None})


def same(ours, theirs):
    """Whether two models hold the same numbers under the same names, rotary ones too."""
    a, b = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (ours, theirs))
    assert a.keys() == b.keys() and len(a) > 80
    return all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def torchrun(tmp_path, program, *args, processes=2):
    """Runs a program, given as text, in several processes."""
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *many, str(script), *map(str, args)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


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
    base = load(BASE)[0].state_dict()
    assert all(torch.equal(base[k], w) for k, w in load(folder)[0].state_dict().items())


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
    a, b = (load(os.path.join(x, "policy"))[0].state_dict() for x in (a, b))
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


def test_a_step_from_it_is_the_step_from_the_toy_base(one_step):
    start, end = (
        load(BASE)[0].state_dict(),
        load(os.path.join(one_step["tied"], "policy"))[0].state_dict(),
    )
    assert max((start[k] - end[k]).abs().max().item() for k in start) > 1e-5  # it moved
    assert distance(one_step["base"], one_step["tied"]) == 0
    ends = load(os.path.join(one_step["untied"], "policy"))[0]
    assert not torch.equal(ends.lm_head.weight, ends.model.language_model.embed_tokens.weight)


IN_PARTS = """
import sys, train
from lib import weights as models
models.PART = 1e6  # bytes: five files
sys.argv[0] = "train.py"
train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tied", ("tied", "untied"))
def test_sharded_it_takes_the_same_step_and_saves_in_parts(
    charades, folders, one_step, tmp_path, tied
):
    flags = [*STEP, "--shard", "--data", charades, "--model", folders[tied == "tied"]]
    done = torchrun(tmp_path, IN_PARTS, *flags, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    policy = str(tmp_path / "run" / "policy")
    assert len([f for f in os.listdir(policy) if f.endswith(".safetensors")]) >= 5
    assert distance(one_step[tied], str(tmp_path / "run")) < 1e-5
    assert same(load(policy)[0], AutoModelForImageTextToText.from_pretrained(policy))
    if tied == "tied":  # and from what was saved, on: plain and sharded
        again = [*STEP, "--data", charades, "--model", policy, "--out"]
        train.train(train.parse_args([*again, str(tmp_path / "plain")]))
        done = torchrun(tmp_path, IN_PARTS, *again, tmp_path / "sharded", "--shard")
        assert done.returncode == 0, done.stderr
        # Adam's first step is lr · g / (|g| + ε): where g is rounding itself, so is a part of it.
        assert distance(str(tmp_path / "plain"), str(tmp_path / "sharded")) < 3e-5


def test_a_run_from_it_is_evaluated(charades, folders, one_step, monkeypatch, capsys):
    scores = []
    for name in (one_step["base"], one_step["tied"], folders[True]):
        out = os.path.join(one_step["base"], f"eval-{len(scores)}")
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *"eval.py --bench charades".split(),
                *("--data", charades),
                *("--limit", "3"),
                *("--model", name),
                *("--out", out),
                *SMALL,
            ],
        )
        eval_module.main()
        with open(os.path.join(out, "predictions.jsonl"), encoding="utf-8") as f:
            scores.append([json.loads(line)["text"] for line in f])
    assert scores[0] == scores[1] and all(len(s) == 3 for s in scores)


@pytest.mark.parametrize("name", ("tied", "untied"))
def test_what_a_run_saves_opens_in_transformers(one_step, name):
    policy = os.path.join(one_step[name], "policy")
    assert same(load(policy)[0], AutoModelForImageTextToText.from_pretrained(policy))
    with open(os.path.join(policy, "generation_config.json"), encoding="utf-8") as f:
        assert json.load(f)["repetition_penalty"] == 1.05  # as the hub's folder said


# Where answers end --------------------------------------------------------------------------------


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
    """A damage: changes the tensors of one file; the index goes, or it would tell first."""

    def damage(folder):
        os.remove(os.path.join(folder, "model.safetensors.index.json"))
        key = "model.layers.1.mlp.up_proj.weight"  # (384, 128)
        path, tensors = next(
            (path, tensors)
            for path in sorted(map(str, Path(folder).glob("*.safetensors")))
            if key in (tensors := load_file(path))
        )
        change(tensors, key)
        save_file(tensors, path)

    return damage


def text(file, content):
    def damage(folder):
        with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
            f.write(content)

    return damage


def cut(share, file=PART):
    def damage(folder):
        path = os.path.join(folder, file)
        os.truncate(path, int(os.path.getsize(path) * share))

    return damage


def without(file):
    return lambda folder: os.remove(os.path.join(folder, file))


def fields(file, **changes):
    return lambda folder: rewrite(folder, file, **changes)


def vision(**changes):
    def damage(folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            rewrite(folder, "config.json", vision_config=json.load(f)["vision_config"] | changes)

    return damage


def replaced(file, old, new):
    def damage(folder):
        path = os.path.join(folder, file)
        with open(path, encoding="utf-8") as f:
            content = f.read()
        assert old in content
        text(file, content.replace(old, new))(folder)

    return damage


def no_end(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        replaced(file, "<|im_end|>", "<|im_over|>")(folder)
    os.remove(os.path.join(folder, "generation_config.json"))


def leftover(folder):
    shutil.copy(os.path.join(BASE, "model.safetensors"), folder)


def only_a_pickle(folder):
    state = load_file(os.path.join(BASE, "model.safetensors"))
    for file in os.listdir(folder):
        if "safetensors" in file:
            os.remove(os.path.join(folder, file))
    torch.save(state, os.path.join(folder, "pytorch_model.bin"))


def another_head(folder):
    head = torch.zeros(545, 128)
    save_file({"lm_head.weight": head}, os.path.join(folder, "model-00006.safetensors"))
    os.remove(os.path.join(folder, "model.safetensors.index.json"))


NAN, INF = float("nan"), float("inf")
DEEP = "[" * 100_000 + "]" * 100_000
INDEX = "model.safetensors.index.json"
DAMAGES = {
    "a file cut in half": (cut(0.5), "cannot be loaded"),
    "an empty file": (cut(0), "cannot be loaded"),
    "a header and no more": (cut(0.02), "cannot be loaded"),
    "no numbers but text":
        (text(PART, "version https://git-lfs.github.com/spec/v1"), "cannot be loaded"),
    "a file is missing, the index knows": (without(PART), "it lacks|disagree"),
    "an index that lies":
        (replaced(INDEX, "00002-of", "00003-of"), "index.json and the files disagree"),
    "an index of other names":
        (fields(INDEX, weight_map={"a": "b"}), "index.json and the files disagree"),
    "an index without a map": (fields(INDEX, weight_map=None), "index.json"),
    "an index that is no JSON": (text(INDEX, "{"), "index.json is damaged"),
    "a leftover file": (leftover, "is in it twice"),
    "a pickle and nothing else": (only_a_pickle, "never read"),
    "a second head": (another_head, "another matrix"),
    "a weight missing":
        (edit(lambda t, k: t.pop(k)), r"it lacks model\.language_model\.layers\.1\.mlp\.up_proj"),
    "a weight reshaped":
        (edit(lambda t, k: t.update({k: t[k].T.contiguous()})), r"is of shape \[128, 384\]"),
    "a weight renamed": (edit(lambda t, k: t.update({k + "s": t.pop(k)})), "it lacks"),
    "a weight too many":
        (edit(lambda t, k: t.update({"x.bias": t[k].clone()})), r"does not know: x\.bias"),
    "NaN in a weight": (edit(lambda t, k: t[k][-1].fill_(NAN)), "not finite"),
    "infinity in a weight": (edit(lambda t, k: t[k][0, :1].fill_(-INF)), "not finite"),
    "whole numbers": (edit(lambda t, k: t.update({k: t[k].to(torch.int8)})), "quantised"),
    "config.json cut": (text("config.json", '{"model_type": "qwen2'), "config.json is damaged"),
    "config.json empty": (text("config.json", ""), "config.json is damaged"),
    "config.json a list": (text("config.json", "[]"), "config.json is damaged"),
    "config.json very deep": (text("config.json", DEEP), "config.json is damaged"),
    "config.json deep inside":
        (text("config.json", '{"a": ' + DEEP + "}"), "config.json is damaged"),
    "more layers":
        (fields("config.json", num_hidden_layers=5), r"it lacks model\.language_model\.layers\.4"),
    "fewer layers": (fields("config.json", num_hidden_layers=3), "does not know"),
    "wider": (fields("config.json", hidden_size=256), "cannot be loaded"),
    "a width of text": (fields("config.json", hidden_size="wide"), "cannot be loaded"),
    "as wide as nothing": (fields("config.json", intermediate_size=10**12), "is of shape"),
    "heads that do not divide": (fields("config.json", num_attention_heads=7), "cannot be loaded"),
    "no heads": (fields("config.json", num_attention_heads=0), "cannot be loaded"),
    "another vision tower": (vision(depth=3), r"it lacks model\.visual\.blocks\.2"),
    "no token of videos":
        (fields("config.json", video_token_id=None), "video_token_id in config.json is 151656"),
    "no token of images":
        (fields("config.json", image_token_id=None), "image_token_id in config.json is 151655"),
    "not tied": (fields("config.json", tie_word_embeddings=False), r"it lacks lm_head\.weight"),
    "generation_config.json cut": (text("generation_config.json", "{"), "cannot be loaded"),
    "generation_config.json deep": (text("generation_config.json", DEEP), "cannot be loaded"),
    "an end of text": (fields("generation_config.json", eos_token_id="end"), "eos_token_id"),
    "an end outside":
        (fields("generation_config.json", eos_token_id=[2, 99999]), r"is \[2, 99999\]"),
    "tokenizer.json cut": (text("tokenizer.json", '{"version'), "cannot be loaded"),
    "tokenizer.json empty": (text("tokenizer.json", ""), "cannot be loaded"),
    "tokenizer.json missing": (without("tokenizer.json"), "cannot be loaded|tokenizer"),
    "tokenizer_config.json cut": (text("tokenizer_config.json", "{"), "cannot be loaded"),
    "tokenizer_config.json deep": (text("tokenizer_config.json", DEEP), "cannot be loaded"),
    "another <|im_end|>": (replaced("tokenizer.json", "<|im_end|>", "<|im_over|>"), "token 545"),
    "no <|im_end|>": (no_end, "no <.im_end.>"),
    "<|im_end|> elsewhere":
        (fields("generation_config.json", eos_token_id=[0, 5]), "<.im_end.> in the tokenizer is 2"),
    "<|video_pad|> is gone":
        (replaced("tokenizer.json", "<|video_pad|>", "<|v|>"), "video_token_id"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders_are_one_sentence(copy, case):
    damage, says = DAMAGES[case]
    damage(copy)
    with pytest.raises(BadInput, match=says) as e:
        load(copy)
    assert (
        "\n" not in str(e.value) and len(str(e.value)) < 700 and str(e.value).startswith("model ")
    )


@pytest.mark.slow
def test_a_fault_that_one_process_of_two_can_see_ends_both(charades, copy, tmp_path):
    """NaN in the last rows: they are the second process's share, which says so itself."""
    edit(lambda t, k: t[k][-1].fill_(NAN))(copy)
    done = torchrun(
        tmp_path,
        IN_PARTS,
        *STEP,
        "--shard",
        *("--data", charades),
        *("--model", copy),
        *("--out", tmp_path / "run"),
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(said) == 1 and "not finite" in said[0], done.stderr
    assert "Traceback" not in done.stderr[: done.stderr.index("torch/distributed")]


def test_sharded_and_plain_refuse_the_same(copy, tmp_path):
    with pytest.raises(BadInput, match="runs on CUDA only"):
        sharding.load_sharded(copy, "cpu", attn="flash_attention_2")
    (tmp_path / "adapters").mkdir()
    hub.put(tmp_path / "adapters", "adapter_config.json", {"base_model_name_or_path": copy})
    with pytest.raises(BadInput, match="--shard cannot start from adapters"):
        sharding.load_sharded(str(tmp_path / "adapters"), "cpu")
    DAMAGES["a weight reshaped"][0](copy)
    with pytest.raises(BadInput, match="is of shape"):
        sharding.load_sharded(copy, "cpu")


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


ADAPTERS = {
    "rank 0": (fields("adapter_config.json", r=0), "r = 0"),
    "no rank": (fields("adapter_config.json", r=None), "r = None"),
    "another rank": (fields("adapter_config.json", r=10**9), "another rank"),
    "alpha is text": (fields("adapter_config.json", lora_alpha="8"), "lora_alpha = 8"),
    "another arithmetic": (fields("adapter_config.json", use_rslora=True), "use_rslora"),
    "a base that is not there":
        (fields("adapter_config.json", base_model_name_or_path="/nowhere"), "neither a folder"),
    "no base":
        (fields("adapter_config.json", base_model_name_or_path=None), "no base_model_name_or_path"),
    "adapter_config.json cut": (text("adapter_config.json", "{"), "adapter_config.json is damaged"),
    "no numbers": (without("adapter_model.safetensors"), "cannot be loaded"),
    "half the numbers":
        (cut(0.5, "adapter_model.safetensors"), "cannot be loaded"),
    "NaN": (not_a_number, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_damaged_adapters_are_one_sentence(adapters, case):
    damage, says = ADAPTERS[case]
    damage(adapters)
    with pytest.raises(BadInput, match=says) as e:
        load(adapters)
    assert "\n" not in str(e.value)


def test_adapters_on_adapters_are_merged_and_circles_are_refused(adapters, tmp_path):
    second = shutil.copytree(adapters, str(tmp_path / "b"))
    rewrite(second, "adapter_config.json", base_model_name_or_path=adapters)
    start, once, twice = (load(x)[0].state_dict() for x in (BASE, adapters, second))
    for key in (k for k in start if "q_proj.weight" in k):
        assert torch.allclose(twice[key] - start[key], 2 * (once[key] - start[key]), atol=1e-5)
    rewrite(adapters, "adapter_config.json", base_model_name_or_path=second)
    for folder in (adapters, second):
        with pytest.raises(BadInput, match="lead back to themselves"):
            load(folder)
    rewrite(adapters, "adapter_config.json", base_model_name_or_path=adapters)
    with pytest.raises(BadInput, match="lead back to themselves"):
        load(adapters)


# Saving -------------------------------------------------------------------------------------------


def test_saving_in_parts(tmp_path, monkeypatch):
    model, tokenizer = load(BASE)
    monkeypatch.setattr(models, "PART", 1e6)
    models.save(model, tokenizer, VideoBudget(), str(tmp_path / "parts"))
    files = [f for f in os.listdir(tmp_path / "parts") if f.endswith(".safetensors")]
    assert len(files) >= 4 and max(os.path.getsize(tmp_path / "parts" / f) for f in files) < 1.1e6
    assert same(load(str(tmp_path / "parts"))[0], model)
    assert same(AutoModelForImageTextToText.from_pretrained(tmp_path / "parts"), model)


FULL_DISK = """
import os, resource, sys, torch, types
from lib import weights as models, processes
from training import policy as policies
from lib import sharding
from data import VideoBudget

base, out = sys.argv[1:]
device = processes.start_processes("cpu")
rank = processes.rank()
policy, tokenizer = sharding.load_sharded(base, device)
models.PART = 1e6
policy.config.dtype = torch.bfloat16  # as on CUDA: kept in float32, computed and saved in bfloat16
args = types.SimpleNamespace(lora=None, shard=True)
if rank == 0:  # files of at most 500 kB, as a disk that fills up: the second part is too large
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
try:
    policies.save_policy(policy, tokenizer, VideoBudget(), os.path.join(out, "full"), args, rank)
    said = "saved"
except OSError as e:
    said = "OSError"
open(os.path.join(out, f"process-{rank}"), "w").write(said)
if rank == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
policies.save_policy(policy, tokenizer, VideoBudget(), os.path.join(out, "run"), args, rank)
torch.distributed.barrier()  # nobody leaves while the other still reads
sys.stderr.flush()
os._exit(0)  # not by gloo's own way out, which was seen to abort on a busy machine, all work done
"""


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_no_process_waiting(tmp_path):
    """The first process cannot write; the other waits for its share of each weight, and gets it."""
    done = torchrun(tmp_path, FULL_DISK, BASE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"process-{i}").read_text() for i in (0, 1)] == ["OSError", "saved"]
    assert not os.path.exists(tmp_path / "full") or os.listdir(tmp_path / "full") == []
    policy = tmp_path / "run" / "policy"
    parts = [load_file(policy / f) for f in os.listdir(policy) if f.endswith(".safetensors")]
    kept = {k: t for part in parts for k, t in part.items()}
    start = load_file(os.path.join(BASE, "model.safetensors"))
    assert len(parts) >= 2 and kept.keys() == start.keys()
    assert all(torch.equal(kept[k], start[k].to(torch.bfloat16)) for k in start)
    assert AutoConfig.from_pretrained(policy).dtype == torch.bfloat16


@pytest.mark.slow
def test_rehearsal_at_toy_size():
    """tests/bench/rehearsal.py, which does all this at the size of a 3B."""
    command = [sys.executable, "tests/bench/rehearsal.py", "--config", "toy", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = done.stdout[done.stdout.rindex("toy: ") :]
    assert "155,648 trained" in said and "--plan says" in said and "sampler and scorer" in said
