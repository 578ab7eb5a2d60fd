"""Qwen3-VL, the second family: tiny and random against transformers' own, and in the programs."""

import copy
import json
import os
import random
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_plan import bytes_kept
from test_scale import launch, relative_distance
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

import data
import eval as evaluation
import grpo
import hub
import train
from conftest import BASE
from evaluation.clips import prefill as prefill_branches
from lib import attention
from lib.errors import BadInput
from model import encode_videos, group_logprobs, load, mrope_positions, prefill, prepare
from tasks import TASKS
from tools import merge
from training.plan import layer_activations, sizes_of


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, base):
    """(ours, transformers') with the same weights."""
    plain = hub.tiny_qwen3_vl(base[1], request.param)
    return prepare(copy.deepcopy(plain)), plain


def clip(grid, times):
    """A Video of random patches."""
    patches = torch.randn(int(np.prod(grid)), 3 * 2 * 16 * 16)
    return data.Video(patches, grid, 1.0, 30.0, np.sort(times), "qwen3_vl")


@pytest.fixture(scope="module")
def videos():
    rng = np.random.default_rng(torch.manual_seed(0).initial_seed())
    return [
        clip(grid, rng.uniform(0, 30, 2 * grid[0])) for grid in ((3, 6, 10), (2, 2, 4), (4, 4, 2))
    ]


@pytest.fixture(scope="module")
def prompts(videos, base):
    asked = ("When does it begin?", "What?", "Is the circle red or blue, and where?")
    return [data.build_prompt(text, video, base[1]) for text, video in zip(asked, videos)]


def inputs_of(model, prompts, ids):
    """What transformers takes for one row of token ids about the prompts' videos."""
    whole = [(len(p.grids), *p.grids[0][1:]) for p in prompts]
    types, patches = 2 * (ids == model.config.video_token_id), [p.patches for p in prompts]
    given = dict(input_ids=ids[None], mm_token_type_ids=types[None].long())
    return given | dict(pixel_values_videos=torch.cat(patches), video_grid_thw=torch.tensor(whole))


def never(model):
    """The tokens that are not sampled."""
    return [getattr(model.config, name) for name in hub.VISION]


def plain_logprobs(model, prompts, ids, completion):
    """Log-probs of a completion by transformers' forward, with positions of its own."""
    row = inputs_of(model, prompts, torch.cat([ids, completion]))
    logits = model(**row).logits[0, len(ids) - 1 : -1]
    logits = logits.index_fill(1, torch.tensor(never(model)), -torch.inf)
    return logits.log_softmax(dim=1).gather(1, completion[:, None])[:, 0]


def joined(prompts):
    """Prompts one after the other, as one about several videos."""
    lists = {k: sum((getattr(p, k) for p in prompts), []) for k in ("grids", "seconds_per_grid")}
    tensors = {k: torch.cat([getattr(p, k) for p in prompts]) for k in ("ids", "patches")}
    return data.Prompt(**lists, **tensors, text="")


# Against transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_videos", (1, 3))
def test_packed_group_is_transformers_forward(pair, prompts, n_videos):
    """Log-probs within 1e-5, every gradient within 1e-4, the tower's and its mergers' included."""
    (ours, plain), some, lengths = pair, prompts[:n_videos], (9, 3, 5)
    prompt, rng = joined(some), torch.Generator().manual_seed(n_videos)
    completions = torch.randint(10, 400, (3, 9), generator=rng)
    weight = torch.randn(3, 9, generator=rng) * (torch.arange(9) < torch.tensor(lengths)[:, None])
    for model in pair:
        model.zero_grad()
    got = group_logprobs(ours, prompt, *encode_videos(ours, [prompt]), completions, chunk=7)[0]
    rows = [plain_logprobs(plain, some, prompt.ids, c[:n]) for c, n in zip(completions, lengths)]
    wanted = torch.stack([F.pad(row, (0, 9 - len(row))) for row in rows])
    assert (got - wanted)[weight != 0].abs().max() < 1e-5
    for logp in (got, wanted):
        (logp * weight).sum().backward()
    theirs = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in ours.named_parameters():
        assert (p.grad - theirs[name]).norm() < 1e-4 * theirs[name].norm(), name


def test_greedy_tokens_are_those_of_generate(pair, prompts):
    """Three clips of different sizes, answered together here and one by one there."""
    (ours, plain), longest = pair, (1, 12, pair[0].generation_config.eos_token_id)
    with torch.no_grad():
        said = grpo.sample_groups(ours, prompts, encode_videos(ours, prompts), *longest)
    how = dict(do_sample=False, max_new_tokens=12, suppress_tokens=never(plain))
    for prompt, row, own in zip(prompts, said[0][:, 0], said[1][:, 0]):
        wanted = plain.generate(**inputs_of(plain, [prompt], prompt.ids), **how)
        assert wanted[0, len(prompt.ids) :].tolist() == row[own].tolist()


def test_positions_of_400_layouts(pair):
    """Up to three videos between words: transformers' rule, with a pair of frames a video."""
    (ours, plain), rng = pair, random.Random(0)
    video = plain.config.video_token_id
    for _ in range(400):
        ids, grids = [], []
        words = lambda most: [rng.randrange(10, 400) for _ in range(rng.randrange(1, most))]
        for _ in range(rng.randrange(1, 4)):
            t, h, w = rng.randrange(1, 6), 2 * rng.randrange(1, 5), 2 * rng.randrange(1, 5)
            grids.append((t, h, w))
            for _ in range(t):
                ids += words(5) + [video] * (h * w // 4) + words(2)
        ids = torch.tensor(ids + words(9))
        given = (2 * (ids == video).long()[None], None, torch.tensor(grids))
        wanted = plain.model.get_rope_index(ids[None], *given)[0][:, 0]
        blocks = [(1, h, w) for t, h, w in grids for _ in range(t)]
        assert mrope_positions(ids, blocks, [0.0] * len(blocks), ours.config).equal(wanted)


@pytest.mark.parametrize("size", [(2, 32, 32), (4, 96, 160), (6, 224, 32), (2, 352, 608)])
def test_patches_are_those_of_its_video_processor(size):
    T, height, width = size
    pixels = torch.randint(0, 256, (T, height, width, 3), dtype=torch.uint8)
    its = Qwen3VLVideoProcessor
    x = (pixels / 255 - torch.tensor(its.image_mean)) / torch.tensor(its.image_std)
    sides = its.patch_size, its.merge_size, its.temporal_patch_size
    wanted, *grid = its.patchify(None, x.permute(0, 3, 1, 2)[None], *sides)
    got, grid_too = data.patchify(pixels, "qwen3_vl")
    assert torch.equal(got, wanted[0]) and tuple(grid) == grid_too


@pytest.mark.parametrize("n_frames", (4, 5, 12))
def test_the_prompt_says_the_seconds_as_its_processor_does(n_frames, base):
    """The processor's expansion of <|video_pad|>, in the chat of the Instruct models."""
    index, rate = np.sort(np.random.default_rng(0).integers(0, 900, n_frames)), 29.97
    even = np.append(index, index[-1:]) if n_frames % 2 else index
    grid = (len(even) // 2, 4, 6)
    processor = SimpleNamespace(
        video_processor=Qwen3VLVideoProcessor, video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
        _calculate_timestamps=lambda *a: Qwen3VLProcessor._calculate_timestamps(None, *a),
    )  # fmt: skip
    frames = SimpleNamespace(fps=rate, frames_indices=index.tolist())
    given = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [frames]}
    shown = Qwen3VLProcessor.replace_video_token(processor, given, 0)
    prompt = data.build_prompt("When?", clip(grid, even / rate), base[1], before="Look: ")
    markup = f"<|im_start|>user\nLook: {shown}When?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids.tolist() == base[1](markup)["input_ids"]
    assert prompt.grids == [(1, 4, 6)] * grid[0] and markup.count("seconds>") == grid[0]
    short = f"<|vision_start|>[{6 * grid[0]} video tokens]<|vision_end|>"  # for people
    assert prompt.text == markup.replace(shown, short)


def test_a_part_whose_first_frame_began_before_it_has_no_second_below_0(base):
    prompt = data.build_prompt("When?", clip((1, 2, 2), [-0.9, -0.1]), base[1])
    assert "<0.0 seconds><|vision" in base[1].decode(prompt.ids)


# Sampling -----------------------------------------------------------------------------------------


def test_questions_about_one_clip_share_it(pair, videos, base):
    """Their common beginning, with all of the video and its seconds, is read once."""
    words = ("When does it begin?", "When is it over?", "What is it?")
    prompts = [data.build_prompt(text, video, base[1]) for video in videos for text in words]
    with torch.no_grad():
        features = encode_videos(pair[0], prompts)
        ours, theirs = (f(pair[0], prompts, features) for f in (prefill_branches, prefill))
    finite = torch.isfinite(theirs[0])
    assert (ours[0] - theirs[0])[finite].abs().max() < 1e-4 and ours[2].equal(theirs[2])
    assert len(ours[1].lengths) == 3 and len(theirs[1].lengths) == 9


# In the programs ----------------------------------------------------------------------------------

SMALL = "--fps 2 --max-frames 8 --min-frame-pixels 2048 --max-frame-pixels 4096".split()
SMALL += "--max-new-tokens 12 --no-think --device cpu".split()
STEPS = "--task grounding --group-size 4 --prompts-per-step 2 --lr 1e-3 --quiet".split() + SMALL
STEPS += ["--steps", "2", "--save-every", "1"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request, base, tmp_path):
    model = hub.tiny_qwen3_vl(base[1], request.param)
    return hub.of_qwen3_vl(str(tmp_path / "hub"), model, base[1])


def weights(name):
    return load(str(name))[0].state_dict()


def run(program, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, flags)])
    program.start()


def test_two_steps_and_an_evaluation_from_a_hub_like_folder(
    folder, charades, tmp_path, monkeypatch, capsys
):
    """The rule pays random words too: without spread no weight would move."""
    rule, out = lambda text, *_: sum(text.encode()) % 7 / 6, tmp_path / "run"
    monkeypatch.setitem(TASKS["grounding"].rules, "iou", rule)
    run(train, monkeypatch, *STEPS, "--model", folder, "--data", charades, "--out", out)
    before, after = weights(folder), weights(out / "policy")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".visual." not in name}  # frozen, as it is said
    evaluate = (evaluation, monkeypatch, "--model", out, *SMALL)
    run(*evaluate, "--bench", "charades", "--data", charades, "--limit", "4")
    (results,) = out.rglob("results.json")
    assert json.loads(results.read_text())["metrics"] and '"qwen3_vl"' in results.read_text()
    capsys.readouterr()
    file = os.path.join(charades, "videos", "test00000.mp4")
    run(*evaluate, "--video", file, "--ask", "When?")
    assert "8 frames of 64 × 64 pixels, 16 tokens]" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [True], indirect=True)
def test_adapters_in_bfloat16_resume_and_merge(folder, charades, tmp_path, monkeypatch):
    flags = [*STEPS, "--model", folder, "--data", charades, "--method", "sft", "--lora", "2"]
    flags += ["--recompute", "--dtype", "bfloat16", "--out"]
    whole, cut, merged = (tmp_path / name for name in ("whole", "cut", "merged"))
    run(train, monkeypatch, *flags, whole)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "policy")
    (cut / "checkpoints" / "step-000002" / "state.json").write_text("{")
    run(train, monkeypatch, *flags, cut, "--resume")
    run(merge, monkeypatch, cut / "policy", merged)
    a, b, before = weights(whole / "policy"), weights(merged), weights(folder)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], before[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [True], indirect=True)
def test_a_sharded_run_takes_the_steps_of_one(folder, charades, tmp_path, monkeypatch):
    flags = [*STEPS, "--model", folder, "--data", charades, "--method", "sft", "--out"]
    run(train, monkeypatch, *flags, tmp_path / "one")
    done = launch(2, "train.py", *flags, tmp_path / "two", "--shard", "--recompute")
    assert done.returncode == 0, done.stderr
    # As in test_scale: of one weight alone Adam's first step can be that of a rounded gradient.
    assert relative_distance(tmp_path / "one", tmp_path / "two") < 1e-5


def test_another_family_is_one_sentence_that_names_those_known(tmp_path):
    for kind in ("qwen3_vl_moe", "qwen3_5", ["qwen3_vl"], None):
        hub.put(str(tmp_path), "config.json", {"model_type": kind})
        with pytest.raises(BadInput, match="Qwen2.5-VL .*and Qwen3-VL .model_type 'qwen3_vl'") as e:
            load(str(tmp_path))
        assert "\n" not in str(e.value) and repr(kind) in str(e.value)


def test_the_papers_budget_is_as_many_tokens_of_another_size(tmp_path):
    budget = data.VideoBudget.of_model(str(tmp_path), "qwen3_vl")
    assert budget.total_pixels == 3584 * 32 * 32 and budget.min_frame_pixels == 16 * 32 * 32
    assert data.frame_size(360, 640, 72, budget) == (224, 416)  # 7 × 13 tokens, as Qwen2.5-VL's
    with pytest.raises(BadInput, match=r"32\*32 <="):
        data.VideoBudget.of_model(str(tmp_path), "qwen3_vl", min_frame_pixels=28 * 28)


def test_plan_counts_what_autograd_keeps_of_it(base, videos, monkeypatch):
    """With attention as on a GPU: in float32 each head has a copy of its keys."""
    monkeypatch.setattr(attention, "knows_groups", lambda query: False)
    model, completions = prepare(hub.tiny_qwen3_vl(base[1], True)), torch.ones(4, 32).long()
    args = train.parse_args([*STEPS, "--model", BASE, "--max-new-tokens", "32"])
    model.model.visual.requires_grad_(False)
    prompt = data.build_prompt("When? " * 100, videos[0], base[1])
    with torch.no_grad():
        (features,) = encode_videos(model, [prompt])
    score = lambda: [group_logprobs(model, prompt, features, completions)[0]]
    s, kept = sizes_of(model, args, 1, len(prompt.ids)), bytes_kept(model, score)
    assert 0.94 < s.layers * layer_activations(s, args) / kept < 1.01
    assert features.nbytes == len(features) * s.features * s.D * 4
