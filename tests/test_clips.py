"""Questions about one clip, read as its branches. The other side is always one by one."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import eval as evaluation
import grpo
from annotations.readers import read_dataset
from evaluation.clips import batches_of, clips_of, prefill, read_ahead
from lib.errors import BadInput
from model import encode_videos
from toy.base import TOY_BUDGET
from training.loader import generator_for

TEXT_FIRST = "When does this happen: {question}? It lasts {duration} s.<video>"


@pytest.fixture
def asked(base, charades):
    """(Examples, Prompts): three questions about each of three clips, of different lengths."""
    examples, prompts, first = [], [], read_dataset("charades", "test", charades)
    clips = {e.video: e for e in first}
    for e in list(clips.values())[:3]:
        video = data.load_video(e.video, TOY_BUDGET)
        for k, words in enumerate(("{}", "{} and nothing else in this clip", "the first {}")):
            examples.append(replace(e, id=f"{e.id}-{k}", question=words.format(e.question)))
            prompts.append(data.ask(examples[-1], video, base[1], think=k < 2))
    return examples, prompts


def apart(prompts):
    """The same prompts, as if each were about a clip of its own."""
    return [replace(p, patches=p.patches.clone()) for p in prompts]


def sampled(model, prompts, group_size, generators=None):
    with torch.no_grad():
        features = encode_videos(model, prompts)
        begun, how = prefill(model, prompts, features), (group_size, 40)
        how += (model.generation_config.eos_token_id, generators)
        return grpo.sample_groups(model, prompts, features, *how, begun=begun)


# The model ---------------------------------------------------------------------------------------


def test_what_questions_about_a_clip_share(base, asked):
    _, prompts = asked
    video_token = base[0].config.video_token_id
    clips = clips_of(prompts, video_token)
    assert [same for _, same in clips] == [prompts[:3], prompts[3:6], prompts[6:]]
    for P, same in clips:
        rows = [p.ids.tolist() for p in same]
        assert all(row[:P] == rows[0][:P] and len(row) > P for row in rows)
        assert len({row[P] for row in rows}) > 1 and video_token in rows[0][:P]
        assert not any(video_token in row[P:] for row in rows)


@pytest.mark.parametrize("case", ["apart", "unequal numbers", "one each", "words first"])
def test_where_nothing_can_be_shared(case, base, asked, charades):
    examples, prompts = asked
    if case == "words first":
        video = data.load_video(examples[0].video, TOY_BUDGET)
        prompts = [data.ask(e, video, base[1], template=TEXT_FIRST) for e in examples[:3]]
    else:
        cut = {"apart": apart(prompts), "unequal numbers": prompts[:5], "one each": prompts[::3]}
        prompts = cut[case]
    clips = clips_of(prompts, base[0].config.video_token_id)
    assert clips == [(len(p.ids), [p]) for p in prompts]


def test_branches_of_a_clip_against_whole_prompts(base, fresh, asked):
    _, prompts = asked
    for model, _ in (base, fresh):
        with torch.no_grad():
            ours = prefill(model, prompts, encode_videos(model, prompts))
            theirs = prefill(model, apart(prompts), encode_videos(model, apart(prompts)))
        finite = torch.isfinite(theirs[0])
        assert (ours[0] - theirs[0])[finite].abs().max() < 1e-4 and ours[2].equal(theirs[2])


@pytest.mark.parametrize("G", [1, 4])
def test_sampling_about_one_clip_against_one_by_one(G, base, asked):
    """Completions of different lengths, so that the batch narrows in between."""
    _, prompts = asked
    sides = []
    for some in (prompts, apart(prompts)):
        generators = [generator_for(0, 0, k) for k in range(9)] if G > 1 else None
        sides.append(sampled(base[0], some, G, generators))
    (tokens, mask, logps), (tokens_2, mask_2, logps_2) = sides
    assert tokens.equal(tokens_2) and mask.equal(mask_2)
    assert (logps - logps_2).abs().max() < 1e-4
    assert len(set(mask.sum(dim=2).flatten().tolist())) > 2


def test_the_vision_tower_sees_a_clip_once(base, asked, monkeypatch):
    _, prompts = asked
    tower, seen = base[0].model.visual, []
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda x, **how: seen.append(len(x)) or forward(x, **how))
    with torch.no_grad():
        together, alone = encode_videos(base[0], prompts), encode_videos(base[0], apart(prompts))
    assert seen[1] == 3 * seen[0]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(together, alone))


# An evaluation by clip ----------------------------------------------------------------------------


def test_batches_by_clip():
    rng = np.random.default_rng(0)
    for _ in range(100):
        examples = [
            data.Example(
                str(i), "qa", f"v{rng.integers(6)}", "", "A", span=(0, int(s)) if s else None
            )
            for i, s in enumerate(rng.integers(0, 2, 40))
        ]
        size = int(rng.integers(1, 20))
        batches = batches_of(examples, size)
        flat = [e for batch in batches for clip in batch for e in clip]
        assert sorted(e.id for e in flat) == sorted(e.id for e in examples)
        for batch in batches:
            assert len({len(clip) for clip in batch}) == 1 and sum(map(len, batch)) <= size
            assert all(len({(e.video, e.span) for e in clip}) == 1 for clip in batch)


class Counting:
    """read_frames, counting; it refuses videos whose name holds `bad`."""

    def __init__(self, bad="nothing"):
        self.reads, self.bad = [], bad

    def read(self, path, *part):
        self.reads.append(path)
        if self.bad in path:
            raise BadInput(f"video file {path} is damaged")
        return data.read_frames(path, *part)


def answers(base, examples, decoder, path, batch_size=16, template=None, room=None):
    settings = {"bench": "toy", "think": True, "look": "", "template": template}
    settings["max_new_tokens"] = 40
    it = SimpleNamespace(model=base[0], tokenizer=base[1], settings=settings, decoder=decoder)
    it.__dict__.update(batch_size=batch_size, rank=1, world=1)
    evaluation.answer_all(it, examples, TOY_BUDGET, str(path))
    return evaluation.predictions.read_predictions(str(path))


@pytest.mark.parametrize("template", [None, TEXT_FIRST])
def test_answers_by_clip_are_those_one_by_one(template, base, asked, tmp_path):
    examples, _ = asked
    together, alone = Counting(), Counting()
    ours = answers(base, examples, together, tmp_path / "ours", 6, template)
    theirs = answers(base, examples, alone, tmp_path / "theirs", 1, template)
    assert ours == theirs and len(ours) == 9
    assert len(together.reads) == 3 and len(alone.reads) == 9


def test_what_cannot_be_asked_costs_only_itself(base, asked, tmp_path, monkeypatch):
    """A damaged clip: its questions. A question that is too long: that one."""
    examples, _ = asked
    examples[4] = replace(examples[4], question="a word " * 3000)
    bad = examples[6].video
    monkeypatch.setattr(evaluation, "room_for_prompt", lambda *_: 1000)
    said = answers(base, examples, Counting(bad), tmp_path / "p")
    errors = {id: r.get("error", "") for id, r in said.items()}
    for k, e in enumerate(examples):
        wanted = "does not fit" if k == 4 else "is damaged" if k >= 6 else ""
        assert wanted in errors[e.id] and bool(wanted) == bool(errors[e.id]), e.id
    good = answers(base, examples[:4], Counting(), tmp_path / "q", 1)
    assert all(said[id]["text"] == r["text"] for id, r in good.items())


def test_the_next_is_read_while_this_one_is_used():
    read, used = [], []
    for item, content in read_ahead(iter(range(4)), lambda k: read.append(k) or 10 * k):
        end = time.monotonic() + 5
        while len(read) < min(4, item + 2) and time.monotonic() < end:
            time.sleep(0.01)
        used.append((item, content, len(read)))
    assert used == [(0, 0, 2), (1, 10, 3), (2, 20, 4), (3, 30, 4)]


def test_an_error_while_reading_ahead_is_raised_where_it_is_used():
    def fails_at_2(k):
        if k == 2:
            raise BadInput("no")
        return k

    got = []
    with pytest.raises(BadInput, match="no"):
        for k, _ in read_ahead(range(5), fails_at_2):
            got.append(k)
    assert got == [0, 1]
