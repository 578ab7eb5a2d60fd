"""Qwen3-VL, the second family: against transformers' own, tiny and random, and through the programs.

What holds for Qwen2.5-VL alone, or for both, stands in the other files.
"""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

import data
import eval as evaluation
import grpo
import hub
import train
from conftest import BASE, ROOT
from data import VideoBudget
from evaluation.branches import prefill as prefill_branches
from lib.errors import BadInput
from lib.families import FAMILIES
from lib.weights import family_of
from model import encode_videos, group_logprobs, load, mrope_positions, prefill, prepare
from pretended_gpu import installed
from tasks import TASKS
from test_plan import bytes_kept
from test_scale import launch
from training.plan import layer_activations, sizes_of

STOPS = [2, 0]


def plain_model(tokenizer, tied):
    """transformers' Qwen3-VL with every part that the large ones have: grouped heads of a size of
    their own, DeepStack of three layers, a table of places smaller than a frame. No weight is left
    at 0 or 1, where a part that is missing would not show."""
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
           for name, token in (("image", "image_pad"), ("video", "video_pad"),
                               ("vision_start", "vision_start"), ("vision_end", "vision_end"))}  # fmt: skip
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 4, 4])
    text = dict(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96,
                num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
                max_position_embeddings=8192, rope_parameters=rope, eos_token_id=STOPS[0])  # fmt: skip
    vision = dict(depth=4, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
                  num_position_embeddings=9, deepstack_visual_indexes=[0, 1, 2])  # fmt: skip
    config = Qwen3VLConfig(text_config=text | {"tie_word_embeddings": tied}, **ids,
                           vision_config=vision, tie_word_embeddings=tied)  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.generation_config.eos_token_id = STOPS
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, base):
    """(ours, transformers') with the same weights."""
    plain = plain_model(base[1], request.param)
    return prepare(copy.deepcopy(plain)), plain


def random_video(rng, T, height, width):
    pixels = torch.from_numpy(rng.integers(0, 256, (T, height, width, 3), dtype=np.uint8))
    patches, grid = data.patchify(pixels, "qwen3_vl")
    times = np.sort(rng.uniform(0, 30, T))
    return data.Video(patches, grid, 1.0, 30.0, times, "qwen3_vl")


@pytest.fixture(scope="module")
def videos():
    rng = np.random.default_rng(0)
    return [random_video(rng, *size) for size in ((6, 96, 160), (4, 32, 64), (8, 64, 32))]


@pytest.fixture(scope="module")
def prompts(videos, base):
    asked = ("When does it begin?", "What?", "Is the circle red or blue, and where?")
    return [data.build_prompt(text, video, base[1]) for text, video in zip(asked, videos)]


def inputs_of(model, prompts, ids):
    """What transformers takes for one row of token ids about the prompts' videos."""
    whole = []
    for prompt in prompts:
        (_, h, w), t = prompt.grids[0], len(prompt.grids)
        whole.append((t, h, w))
    types = 2 * (ids == model.config.video_token_id).long()
    return dict(input_ids=ids[None], mm_token_type_ids=types[None],
                pixel_values_videos=torch.cat([p.patches for p in prompts]),
                video_grid_thw=torch.tensor(whole))  # fmt: skip


def plain_logprobs(model, prompts, ids, completion):
    """Log-probs of a completion by transformers' forward, with positions of its own."""
    row = inputs_of(model, prompts, torch.cat([ids, completion]))
    logits = model(**row).logits[0, len(ids) - 1 : -1].float()
    c = model.config
    never = [c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id]
    logits = logits.index_fill(1, torch.tensor(never), -torch.inf)
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
    ours, plain = pair
    some = prompts[:n_videos]
    prompt, lengths = joined(some), (9, 3, 5)
    rng = torch.Generator().manual_seed(n_videos)
    completions = torch.randint(10, 400, (3, 9), generator=rng)
    weight = torch.randn(3, 9, generator=rng) * (torch.arange(9) < torch.tensor(lengths)[:, None])
    for model in pair:
        model.zero_grad()
    (features,) = encode_videos(ours, [prompt])
    got = group_logprobs(ours, prompt, features, completions, chunk=7)[0]
    (got * weight).sum().backward()
    rows = [plain_logprobs(plain, some, prompt.ids, c[:n]) for c, n in zip(completions, lengths)]
    wanted = torch.stack([F.pad(row, (0, 9 - len(row))) for row in rows])
    (wanted * weight).sum().backward()
    own = weight != 0
    difference = (got - wanted)[own].abs().max().item()
    theirs = {name: p.grad for name, p in plain.named_parameters()}
    far = {n: ((p.grad - theirs[n]).norm() / theirs[n].norm()).item()
           for n, p in ours.named_parameters()}  # fmt: skip
    print(f"log-probs {difference:.1e}, gradients {max(far.values()):.1e}")
    assert difference < 1e-5 and max(far.values()) < 1e-4
    assert len(far) > 90 and all(g.norm() > 0 for g in theirs.values())


def test_greedy_tokens_are_those_of_generate(pair, prompts):
    """Three clips of different sizes, answered together here and one by one there."""
    ours, plain = pair
    with torch.no_grad():
        tokens, mask, _ = grpo.sample_groups(
            ours, prompts, encode_videos(ours, prompts), 1, 12, STOPS
        )
    c = plain.config
    never = [c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id]
    for prompt, row, own in zip(prompts, tokens[:, 0], mask[:, 0]):
        how = dict(do_sample=False, max_new_tokens=12, suppress_tokens=never)
        said = plain.generate(**inputs_of(plain, [prompt], prompt.ids), **how)
        assert said[0, len(prompt.ids) :].tolist() == row[own].tolist()


def test_positions_of_400_layouts(pair):
    """Up to three videos between words: transformers' rule, with a pair of frames a video."""
    ours, plain = pair
    rng, video = random.Random(0), plain.config.video_token_id
    for _ in range(400):
        ids, grids = [], []
        words = lambda most: [rng.randrange(10, 400) for _ in range(rng.randrange(1, most))]
        for _ in range(rng.randrange(1, 4)):
            t, h, w = rng.randrange(1, 6), 2 * rng.randrange(1, 5), 2 * rng.randrange(1, 5)
            grids.append((t, h, w))
            for _ in range(t):
                ids += words(5) + [video] * (h * w // 4) + words(2)
        ids = torch.tensor(ids + words(9))
        types = 2 * (ids == video).long()
        wanted = plain.model.get_rope_index(
            ids[None], types[None], video_grid_thw=torch.tensor(grids)
        )
        blocks = [(1, h, w) for t, h, w in grids for _ in range(t)]
        got = mrope_positions(ids, blocks, [0.0] * len(blocks), ours.config)
        assert torch.equal(got, wanted[0][:, 0])


@pytest.mark.parametrize("size", [(2, 32, 32), (4, 96, 160), (6, 224, 32), (2, 352, 608)])
def test_patches_are_those_of_its_video_processor(size):
    T, height, width = size
    pixels = torch.randint(0, 256, (T, height, width, 3), dtype=torch.uint8)
    theirs = Qwen3VLVideoProcessor
    mean, std = (torch.tensor(x) for x in (theirs.image_mean, theirs.image_std))
    x = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)[None]
    sides = theirs.patch_size, theirs.merge_size, theirs.temporal_patch_size
    wanted, *grid = theirs.patchify(None, x, *sides)
    got, grid_too = data.patchify(pixels, "qwen3_vl")
    assert torch.equal(got, wanted[0]) and tuple(grid) == grid_too
    assert FAMILIES["qwen3_vl"].cell == theirs.patch_size * theirs.merge_size


@pytest.mark.parametrize("n_frames", (4, 5, 12))
def test_the_prompt_says_the_seconds_as_its_processor_does(n_frames, base):
    """The processor's expansion of <|video_pad|>, in the chat of the Instruct models."""
    index, rate = np.sort(np.random.default_rng(0).integers(0, 900, n_frames)), 29.97
    even = np.append(index, index[-1:]) if n_frames % 2 else index
    grid = (len(even) // 2, 4, 6)
    video = data.Video(torch.zeros(0), grid, 1.0, 30.0, even / rate, "qwen3_vl")
    they = SimpleNamespace(
        video_processor=Qwen3VLVideoProcessor, video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
        _calculate_timestamps=lambda *a: Qwen3VLProcessor._calculate_timestamps(None, *a),
    )  # fmt: skip
    seen = SimpleNamespace(fps=rate, frames_indices=index.tolist())
    given = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [seen]}
    shown = Qwen3VLProcessor.replace_video_token(they, given, 0)
    prompt = data.build_prompt("When?", video, base[1], before="Look: ")
    markup = f"<|im_start|>user\nLook: {shown}When?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids.tolist() == base[1](markup)["input_ids"]
    assert prompt.grids == [(1, 4, 6)] * grid[0] and markup.count("seconds>") == grid[0]
    short = f"<|vision_start|>[{6 * grid[0]} video tokens]<|vision_end|>"  # for people
    assert prompt.text == markup.replace(shown, short)


def test_a_part_whose_first_frame_began_before_it_has_no_second_below_0(base):
    video = data.Video(torch.zeros(0), (1, 2, 2), 1.0, 30.0, np.array([-0.9, -0.1]), "qwen3_vl")
    said = base[1].decode(data.build_prompt("When?", video, base[1]).ids)
    assert "<0.0 seconds><|vision" in said


# Sampling -----------------------------------------------------------------------------------------


def test_sampler_and_scorer_give_each_token_the_same_log_prob(pair, prompts):
    model = pair[0]
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    with torch.no_grad():
        features = encode_videos(model, prompts)
        tokens, mask, logp = grpo.sample_groups(model, prompts, features, 4, 20, STOPS, seeds)
        for b in range(3):
            scored = group_logprobs(model, prompts[b], features[b], tokens[b])[0]
            assert (scored - logp[b])[mask[b]].abs().max() < 1e-4


def test_questions_about_one_clip_share_it(pair, videos, base):
    """Their common beginning, with all of the video and its seconds, is read once."""
    model, words = pair[0], ("When does it begin?", "When is it over?", "What is it?")
    prompts = [data.build_prompt(text, video, base[1]) for video in videos for text in words]
    with torch.no_grad():
        features = encode_videos(model, prompts)
        ours, theirs = (f(model, prompts, features) for f in (prefill_branches, prefill))
    finite = torch.isfinite(theirs[0])
    assert (ours[0] - theirs[0])[finite].abs().max() < 1e-4 and ours[2].equal(theirs[2])
    assert len(ours[1].lengths) == 3 and len(theirs[1].lengths) == 9


def test_on_a_pretended_gpu_it_samples_recorded_and_scores_without_waiting(
    base, prompts, monkeypatch
):
    model, rng = prepare(plain_model(base[1], True)), [torch.Generator().manual_seed(0)] * 3
    sampled = lambda: grpo.sample_groups(
        model, prompts, encode_videos(model, prompts), 3, 12, STOPS
    )
    with torch.no_grad():
        wanted = sampled()[0]
    with installed(monkeypatch) as gpu:
        model.to("gpu")
        with torch.no_grad():
            assert torch.equal(sampled()[0].to("cpu")[..., : wanted.shape[2]], wanted)
        gpu.waits = 0
        (features,) = encode_videos(model, prompts[:1])
        group_logprobs(model, prompts[0], features, wanted[0])[0].sum().backward()
        assert gpu.waits == 0


# Through the programs -----------------------------------------------------------------------------

SMALL = "--fps 2 --max-frames 8 --min-frame-pixels 2048 --max-frame-pixels 4096".split()
SMALL += "--max-new-tokens 12 --no-think --device cpu".split()
STEPS = "--task grounding --group-size 4 --prompts-per-step 2 --lr 1e-3 --quiet".split() + SMALL


def hub_folder(path, tokenizer, tied):
    """A folder as the hub has Qwen3-VL: shards, and a config.json in the words of 4.57."""
    model = plain_model(tokenizer, tied)
    model.save_pretrained(path, max_shard_size="100KB")
    tokenizer.save_pretrained(path)
    with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    text, rope = config["text_config"], config["text_config"].pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope | {"mrope_interleaved": True}
    config["vision_config"]["model_type"] = "qwen3_vl"
    hub.put(path, "config.json", config | {"transformers_version": "4.57.0.dev0"})
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7}
    hub.put(path, "generation_config.json", sampling | {"eos_token_id": STOPS})
    assert len([name for name in os.listdir(path) if name.endswith(".safetensors")]) > 3
    return path


@pytest.fixture
def paid(monkeypatch):
    """A rule that pays random words too: without spread no weight would move."""
    rule = lambda text, answer, think: sum(text.encode()) % 7 / 6
    monkeypatch.setitem(TASKS["grounding"].rules, "iou", rule)


def run(out, folder, charades, *flags):
    """Trains; returns metrics.jsonl, and the policy's weights."""
    flags = [*STEPS, "--model", folder, "--data", charades, "--out", str(out), *flags]
    train.train(train.parse_args(flags))
    with open(out / "metrics.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f], load(str(out / "policy"))[0].state_dict()


@pytest.mark.parametrize("tied", (True, False))
def test_two_steps_and_an_evaluation_from_a_hub_like_folder(
    tied, base, charades, tmp_path, monkeypatch, capsys, paid
):
    folder = hub_folder(str(tmp_path / "hub"), base[1], tied)
    (_, second), after = run(tmp_path / "run", folder, charades, "--steps", "2")
    before = load(folder)[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and second["kl"] > 0
    assert moved == {name for name in before if ".visual." not in name}  # frozen, as the paper's
    flags = ["--model", str(tmp_path / "run"), *SMALL]
    test = ["--bench", "charades", "--data", charades, "--limit", "4", *flags]
    monkeypatch.setattr(sys, "argv", ["eval.py", *test])
    evaluation.main()
    (results,) = (tmp_path / "run").rglob("results.json")
    assert (
        '"family": "qwen3_vl"' in results.read_text() and "could not be" not in results.read_text()
    )
    clip = os.path.join(charades, "videos", "test00000.mp4")
    monkeypatch.setattr(sys, "argv", ["eval.py", "--video", clip, "--ask", "When?", *flags])
    capsys.readouterr()
    evaluation.main()
    assert "8 frames of 64 × 64 pixels, 16 tokens]" in capsys.readouterr().out


def test_a_run_resumes_and_a_sharded_one_takes_its_steps(base, charades, tmp_path):
    """SFT, two steps: cut after the first, and sharded over two processes."""
    folder = hub_folder(str(tmp_path / "hub"), base[1], True)
    flags = ["--method", "sft", "--save-every", "1", "--steps"]
    _, whole = run(tmp_path / "whole", folder, charades, *flags, "2")
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "policy")
    (cut / "checkpoints" / "step-000002" / "state.json").write_text("{")
    _, resumed = run(cut, folder, charades, *flags, "2", "--resume")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    more = ["--model", folder, "--data", charades, "--out", str(tmp_path / "sharded")]
    done = launch(2, "train.py", *STEPS, *flags, "2", *more, "--shard", "--recompute")
    assert done.returncode == 0, done.stderr
    sharded = load(str(tmp_path / "sharded" / "policy"))[0].state_dict()
    assert all((whole[name] - sharded[name]).abs().max() < 1e-5 for name in whole)


def test_adapters_in_bfloat16_are_trained_and_merged(base, charades, tmp_path, paid):
    folder = hub_folder(str(tmp_path / "hub"), base[1], True)
    flags = "--steps 1 --lora 2 --recompute --dtype bfloat16".split()
    _, merged = run(tmp_path / "run", folder, charades, *flags)
    policy, plain = tmp_path / "run" / "policy", tmp_path / "merged"
    assert VideoBudget.of_model(str(policy), family_of(str(policy))).min_frame_pixels == 2048
    done = subprocess.run([sys.executable, "-m", "tools.merge", policy, plain], cwd=ROOT)
    again, before = (load(str(x))[0].state_dict() for x in (plain, folder))
    assert done.returncode == 0 and all(torch.equal(merged[k], again[k]) for k in merged)
    key = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[key], again[key])


# Which family, how large --------------------------------------------------------------------------


def test_another_family_is_one_sentence_that_names_those_known(tmp_path):
    for kind in ("qwen3_vl_moe", "qwen3_5", ["qwen3_vl"], None):
        hub.put(str(tmp_path), "config.json", {"model_type": kind})
        with pytest.raises(BadInput, match="Qwen2.5-VL .*and Qwen3-VL .model_type 'qwen3_vl'") as e:
            load(str(tmp_path))
        assert "\n" not in str(e.value) and repr(kind) in str(e.value)


def test_the_papers_budget_is_as_many_tokens_of_its_own_size(tmp_path):
    paper, budget = (VideoBudget.of_model(str(tmp_path), family) for family in FAMILIES)
    assert paper == VideoBudget() and budget.total_pixels == 3584 * 32 * 32
    for size in ((360, 640), (33, 640), (1080, 1920)):
        (h, w), (h2, w2) = (data.frame_size(*size, 64, b) for b in (budget, paper))
        assert h % 32 == w % 32 == 0 and 32 * 3584 >= h * w / 32**2 * 32 > 16 * 32 * 0.9
        assert h / 32 * w / 32 == pytest.approx(h2 / 28 * w2 / 28, rel=0.15)
    with pytest.raises(BadInput, match=r"32\*32 <="):
        VideoBudget.of_model(str(tmp_path), "qwen3_vl", min_frame_pixels=28 * 28)


def test_plan_counts_what_autograd_keeps_of_it(base, videos):
    model, completions = prepare(plain_model(base[1], True)), torch.ones(4, 32).long()
    args = train.parse_args([*STEPS, "--model", BASE, "--max-new-tokens", "32"])
    model.model.visual.requires_grad_(False)
    prompt = data.build_prompt("When? " * 100, videos[0], base[1])
    with torch.no_grad():
        (features,) = encode_videos(model, [prompt])
    score = lambda: [group_logprobs(model, prompt, features, completions)[0]]
    s = sizes_of(model, args, 1, len(prompt.ids))
    kept = bytes_kept(model, score)
    assert 0.94 < s.layers * layer_activations(s, args) / kept < 1.01
    assert features.nbytes == len(features) * s.features * s.D * 4
