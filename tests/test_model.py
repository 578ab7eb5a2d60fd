"""model.py against references: positions, packed and repeated, sampler and scorer, transformers."""

import doctest
import importlib.util
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import grpo
import model as model_module
from annotations.readers import read_dataset
from conftest import BASE
from data import load_prompt
from lib import decoding
from lib.attention import PatchProduct
from lib.errors import BadInput
from lib.weights import save
from model import embed, encode_videos, group_logprobs, load, mrope_positions, prefill, token_logits
from toy.base import TOY_BUDGET, make_model


@pytest.fixture
def prompts(base, charades):
    """Four prompts of different lengths, thinking and not."""
    examples = read_dataset("charades", "test", charades)[:4]
    return [load_prompt(e, TOY_BUDGET, base[1], think=i % 2 == 0) for i, e in enumerate(examples)]


def oracle(model, prompt, completion):
    """One row [prompt | completion], one ordinary causal forward with transformers' own attention.

    Returns the log-probs (C, V) of every token in each place of the completion. Everything that
    group_logprobs and the sampler do cleverly is done plainly here.
    """
    features = encode_videos(model, [prompt])[0]
    embeds = torch.cat([
        embed(model, prompt.ids, features),
        model.model.language_model.embed_tokens(completion),
    ])
    positions = mrope_positions(prompt.ids, prompt.grids, prompt.seconds_per_grid, model.config)
    after = int(positions.max()) + 1
    positions = torch.cat(
        [positions, torch.tensor([[after + i for i in range(len(completion))]] * 3)], dim=1
    )
    config = model.model.language_model.config
    ours, config._attn_implementation = config._attn_implementation, "sdpa"
    hidden = model.model.language_model(
        inputs_embeds=embeds[None], position_ids=positions[:, None], use_cache=False
    ).last_hidden_state[0]
    config._attn_implementation = ours
    return token_logits(model, hidden[len(prompt.ids) - 1 : -1]).log_softmax(dim=-1)


def repeated_logprobs(model, prompt, completion):
    return oracle(model, prompt, completion).gather(1, completion[:, None])[:, 0]


# Positions ----------------------------------------------------------------------------------------


def config_with(tokens_per_second):
    return SimpleNamespace(
        video_token_id=99,
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second),
    )


def test_positions_golden_example():
    """3 text ids, 40 video tokens from grid (10, 4, 4) at one second a pair, 5 text ids.

    transformers 4.57 and the original model put the last five at 40 … 44; 5.3 and later at 5 … 9.
    """
    ids = torch.tensor([1, 2, 3] + [99] * 40 + [4, 5, 6, 7, 8])
    got = mrope_positions(ids, [(10, 4, 4)], [1.0], config_with(4))
    assert got[:, -5:].tolist() == [[40, 41, 42, 43, 44]] * 3
    assert got[:, :3].tolist() == [[0, 1, 2]] * 3
    assert got[0, 3:43].tolist() == [3 + 4 * k for k in range(10) for _ in range(4)]
    assert got[1, 3:43].tolist() == [3, 3, 4, 4] * 10 and got[2, 3:43].tolist() == [3, 4, 3, 4] * 10


def test_positions_of_a_short_wide_video_continue_after_its_width():
    got = mrope_positions(torch.tensor([1] + [99] * 6 + [2]), [(1, 2, 12)], [0.5], config_with(2))
    assert got[:, -1].tolist() == [7, 7, 7]  # columns reach 1 + 5


def test_positions_of_two_videos_and_fractional_seconds():
    got = mrope_positions(
        torch.tensor([1] + [99] * 3 + [2] + [99] * 2 + [3]),
        [(3, 2, 2), (2, 2, 2)],
        [0.7, 3.0],
        config_with(2),
    )
    # floor(0, 1.4, 2.8) + 1 | 4 | floor(0, 6) + 5 | 12
    assert got[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        11,
        12,
    ]


def test_positions_notice_a_lost_video():
    with pytest.raises(AssertionError, match="fewer video tokens"):
        mrope_positions(torch.tensor([1, 99, 2]), [(2, 2, 2)], [1.0], config_with(2))
    with pytest.raises(AssertionError, match="more video tokens"):
        mrope_positions(torch.tensor([1, 99, 99, 2]), [(1, 2, 2)], [1.0], config_with(2))


def test_examples_in_docstrings():
    assert doctest.testmod(model_module).failed == 0


# The video arrives --------------------------------------------------------------------------------


def test_tokens_and_features_must_match(base, prompts):
    with pytest.raises(AssertionError, match="video tokens but"):
        embed(base[0], prompts[0].ids, torch.zeros(3, 128))


def test_another_video_changes_the_log_probs(base, prompts):
    model, tokenizer = base
    completion = torch.tensor([tokenizer("<answer>1.0 to 2.0</answer>")["input_ids"]])
    with torch.no_grad():
        features = encode_videos(model, prompts)
        a = group_logprobs(model, prompts[0], features[0], completion)[0]
        b = group_logprobs(model, prompts[0], features[0].flip(0), completion)[0]
    assert (a - b).abs().max() > 1e-3


def test_the_vision_tower_is_transformers(fresh):
    """Ours attends to windows of equal size together, odd sizes included, where transformers' loops
    over them, and embeds patches by a product where transformers' calls conv3d."""
    model = fresh[0]
    torch.manual_seed(1)
    grids = [(3, 14, 22), (2, 8, 4)]
    prompt = SimpleNamespace(
        grids=grids, patches=torch.randn(sum(t * h * w for t, h, w in grids), 1176)
    )
    results = []
    visual, theirs = model.model.visual, make_model(fresh[1]).model.visual.patch_embed
    theirs.proj = visual.patch_embed.proj
    kinds = {"flash_like_windows_sdpa": PatchProduct(theirs.proj), "sdpa": theirs}
    for implementation, patch_embed in kinds.items():
        visual.config._attn_implementation, visual.patch_embed = implementation, patch_embed
        features = encode_videos(model, [prompt])[0]
        results.append((
            features,
            torch.autograd.grad(
                features.square().sum(), model.model.visual.patch_embed.proj.weight
            )[0],
        ))
    (a, ga), (b, gb) = results
    assert (a - b).abs().max() < 1e-5 and (ga - gb).norm() < 1e-5 * gb.norm()


# Scoring ------------------------------------------------------------------------------------------


def with_videos(prompts, tokenizer):
    """The prompts' videos one after the other, then the last one's question."""
    vision_end = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    pieces = []
    for k, prompt in enumerate(prompts):
        start, end = (
            0
            if k == 0
            else int((prompt.ids == tokenizer.convert_tokens_to_ids("<|vision_start|>")).nonzero()),
            None,
        )
        if k + 1 < len(prompts):
            end = int((prompt.ids == vision_end).nonzero()) + 1
        pieces.append(prompt.ids[start:end])
    return replace(
        prompts[-1],
        ids=torch.cat(pieces),
        patches=torch.cat([p.patches for p in prompts]),
        grids=[g for p in prompts for g in p.grids],
        seconds_per_grid=[s for p in prompts for s in p.seconds_per_grid],
    )


@pytest.mark.parametrize("case", range(8))
def test_packed_group_is_the_repeated_forward(fresh, prompts, case):
    """Log-probs within 1e-5 and every parameter's gradient within 1e-4 relative, the vision tower's
    included, for random groups of 1 to 8 ragged completions after prompts of one to three videos,
    thinking and not."""
    model, tokenizer = fresh
    rng = np.random.default_rng(case)
    G, C, n_videos = (1, 3, 8, 2)[case % 4], int(rng.integers(1, 14)), 1 + case % 3
    prompt = with_videos([prompts[i] for i in rng.permutation(4)[:n_videos]], tokenizer)
    lengths = rng.integers(1, C + 1, size=G).tolist()
    lengths[rng.integers(G)] = C
    completions = torch.from_numpy(rng.integers(10, 400, size=(G, C)))
    own = torch.arange(C) < torch.tensor(lengths)[:, None]
    weight = torch.from_numpy(rng.standard_normal((G, C))).float()
    gradients, values = [], []
    for packed in (True, False):
        model.zero_grad()
        if packed:
            logp = group_logprobs(
                model, prompt, encode_videos(model, [prompt])[0], completions, chunk=7
            )[0]
        else:
            rows = [repeated_logprobs(model, prompt, c[:n]) for c, n in zip(completions, lengths)]
            logp = torch.stack([F.pad(row, (0, C - len(row))) for row in rows])
        (logp * weight)[own].sum().backward()
        values.append(logp.detach()[own])
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert (values[0] - values[1]).abs().max() < 1e-5
    for name, g in gradients[1].items():
        assert (gradients[0][name] - g).norm() <= 1e-4 * g.norm() + 1e-7, name


def test_padding_of_a_completion_changes_nothing_before_it(base, prompts):
    model = base[0]
    completions = torch.randint(10, 400, (2, 8), generator=torch.Generator().manual_seed(0))
    other = completions.clone()
    other[0, 3:] = 11
    with torch.no_grad():
        features = encode_videos(model, prompts[:1])[0]
        a, b = (group_logprobs(model, prompts[0], features, c)[0] for c in (completions, other))
    assert torch.equal(a[0, :3], b[0, :3]) and torch.allclose(a[1], b[1], atol=1e-6)


def test_entropy_against_the_definition(base, prompts):
    model = base[0]
    with torch.no_grad():
        features = encode_videos(model, prompts[:1])
        logits = prefill(model, prompts[:1], features)[0]
        _, entropy = group_logprobs(model, prompts[0], features[0], torch.tensor([[20, 30]]))
    expected = torch.distributions.Categorical(logits=logits.double().clamp_min(-1e9)).entropy()
    assert entropy[0, 0].item() == pytest.approx(expected.item(), abs=1e-4)


# Sampler against scorer ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "fresh"])
def test_sampler_and_scorer_give_each_token_the_same_log_prob(which, request, prompts):
    """The decode loop and its padded cache against the packed forward: within 1e-4 in float32."""
    model, tokenizer = request.getfixturevalue(which)
    with torch.no_grad():
        features = encode_videos(model, prompts)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    tokens, mask, logp = grpo.sample_groups(
        model, prompts, features, 5, 30, model.generation_config.eos_token_id, generators
    )
    for b in range(4):
        with torch.no_grad():
            scored = group_logprobs(model, prompts[b], features[b], tokens[b])[0]
        assert (scored - logp[b])[mask[b]].abs().max() < 1e-4


def test_greedy_decoding_takes_the_likeliest_token_each_time(base, prompts):
    model = base[0]
    with torch.no_grad():
        tokens, mask, _ = grpo.sample_groups(
            model,
            prompts,
            encode_videos(model, prompts),
            1,
            25,
            model.generation_config.eos_token_id,
        )
        for prompt, row, own in zip(prompts, tokens[:, 0], mask[:, 0]):
            assert torch.equal(oracle(model, prompt, row[own]).argmax(dim=-1), row[own])


def test_letting_ended_rows_go_changes_nothing(fresh, prompts, monkeypatch):
    """With one token in nine ending a completion, a group thins out; the rest must not notice."""
    model, tokenizer = fresh
    stops = list(range(0, len(tokenizer), 9))
    thinned = []
    keep = decoding.keep
    monkeypatch.setattr(
        decoding, "keep", lambda cache, rows: (thinned.append(tuple(rows.shape)), keep(cache, rows))
    )
    with torch.no_grad():
        features = encode_videos(model, prompts)
        tokens, mask, logp = grpo.sample_groups(
            model,
            prompts,
            features,
            6,
            40,
            stops,
            [torch.Generator().manual_seed(i) for i in range(4)],
        )
        assert len(thinned) >= 3 and thinned[-1][0] < 4, thinned
        for b in range(4):
            rows = torch.stack([
                F.pad(repeated_logprobs(model, prompts[b], c[m]), (0, len(c) - int(m.sum())))
                for c, m in zip(tokens[b], mask[b])
            ])
            assert (rows - logp[b])[mask[b]].abs().max() < 1e-4


# Load and save ------------------------------------------------------------------------------------


def test_save_then_load_gives_the_same_model(fresh, prompts, tmp_path):
    model, tokenizer = fresh
    folder = str(tmp_path / "policy")
    for _ in range(2):  # the second time over the first
        save(model, tokenizer, TOY_BUDGET, folder)
    again, tokenizer_again = load(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())
    )
    assert tokenizer_again("<think>a</think><answer>12.5</answer>") == tokenizer(
        "<think>a</think><answer>12.5</answer>"
    )
    assert data.VideoBudget.of_model(folder) == TOY_BUDGET
    assert sorted(os.listdir(tmp_path)) == ["policy"]  # no leftovers
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        assert "shared_prompt" not in f.read()  # anybody's transformers can load it


def test_flash_attention_where_it_cannot_run_is_one_sentence():
    with pytest.raises(BadInput, match="--attn flash_attention_2 runs on CUDA only"):
        load(BASE, attn="flash_attention_2")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(BadInput, match="needs the package flash-attn"):
            load(BASE, "cuda", attn="flash_attention_2")


def test_models_that_cannot_be_loaded_are_one_sentence(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    for name, says in (
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "nowhere"), "neither a folder here nor a hub name"),
        (str(tmp_path / "other"), "'llama'"),
        (str(tmp_path / "hollow"), "cannot be loaded"),
    ):
        with pytest.raises(BadInput, match=says) as e:
            load(name)
        assert "\n" not in str(e.value)
