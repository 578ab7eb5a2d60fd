"""What would fail on a GPU, found without one: see pretended_gpu.py. And bfloat16, on the CPU."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import data
import eval as evaluation
import grpo
import hub
import model as model_module
import train
from annotations.readers import read_dataset
from conftest import BASE, ROOT
from data import VideoBudget, load_prompt
from evaluation import ask
from evaluation.settings import parse_args
from lib import adapters, decoding
from lib.errors import BadInput
from lib.weights import family_of
from model import encode_videos, group_logprobs, load
from pretended_gpu import NotOnAGpu, installed
from tasks import TASKS, as_task
from toy.base import TOY_BUDGET
from training.loader import generator_for
from training.log import sampler_gaps, token_records
from training.optimizer import MasterAdamW
from training.policy import as_policy, load_models
from training.run import Clock, check_sampler

SMALL = ["--group-size", "4", "--prompts-per-step", "3", "--max-new-tokens", "24", "--lr", "1e-5"]
MEAN_GAP = {torch.float32: 1e-6, torch.bfloat16: 0.01}  # nats, of two batches of other shapes


@pytest.fixture
def gpu(monkeypatch):
    with installed(monkeypatch) as rules:
        yield rules


@pytest.fixture(scope="module")
def folder(request, base, tmp_path_factory):
    """Of the toy base; where a test asks for the second family, of a tiny random one."""
    if getattr(request, "param", "qwen2_5_vl") == "qwen2_5_vl":
        return BASE
    path = str(tmp_path_factory.mktemp("hub") / "model")
    return hub.of_qwen3_vl(path, hub.tiny_qwen3_vl(base[1], tied=True), base[1])


BOTH = pytest.mark.parametrize("folder", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
BOTH_IN_16_BITS_TOO = pytest.mark.parametrize("folder, dtype", [
    ("qwen2_5_vl", torch.float32), ("qwen2_5_vl", torch.bfloat16), ("qwen3_vl", torch.float32),
    pytest.param("qwen3_vl", torch.bfloat16, marks=pytest.mark.slow),
], indirect=["folder"], ids=str)  # fmt: skip
FEW_FRAMES = dict(fps=1, max_frames=8, min_frame_pixels=4096, max_frame_pixels=4096)


def budget_of(folder):
    return VideoBudget.of_model(folder, family_of(folder), **FEW_FRAMES)


@pytest.fixture
def batch(folder, base, charades):
    """Three questions: Examples and their Prompts."""
    examples = read_dataset("charades", "train", charades)[:3]
    return examples, [load_prompt(e, budget_of(folder), base[1]) for e in examples]


def generators():
    return [generator_for(0, 0, k) for k in range(3)]


def sample(model, prompts, greedy=False):
    with torch.no_grad():
        features = encode_videos(model, prompts)
    how = (4, 24, model.generation_config.eos_token_id, None if greedy else generators())
    return grpo.sample_groups(model, prompts, features, *how)


def on_cpu(x):
    return x.detach().to("cpu") if isinstance(x, torch.Tensor) else x


# Sampling ----------------------------------------------------------------------------------------


@BOTH_IN_16_BITS_TOO
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_recorded_sampling_gives_the_cpus_tokens(dtype, greedy, folder, batch, gpu, monkeypatch):
    model, plain, graph = load(folder, dtype=dtype)[0], grpo.decode_step, torch.cuda.CUDAGraph
    tokens, mask, logp = sample(model, batch[1], greedy)
    steps, replays, replay = [], [], graph.replay
    monkeypatch.setattr(grpo, "decode_step", lambda *a: (steps.append(1), plain(*a))[1])
    monkeypatch.setattr(graph, "replay", lambda self: (replays.append(1), replay(self))[1])
    on_gpu = [on_cpu(x) for x in sample(model.to("gpu"), batch[1], greedy)]
    # One decode_step in earnest, and two for practice; all others are replays.
    assert len(steps) == 3 and len(replays) >= on_gpu[0].shape[2] - 1
    n = min(tokens.shape[2], on_gpu[0].shape[2])
    tokens, mask, logp = (x[..., :n] for x in (tokens, mask, logp))
    same = (tokens == on_gpu[0][..., :n]).cumprod(dim=2).bool()  # up to where they part
    if dtype == torch.float32:
        assert same.all() and torch.equal(mask, on_gpu[1][..., :n])
    # In bfloat16 a draw may fall between two roundings; from there completions are others. With
    # random weights, where any of 500 words may come, it does so more often.
    assert (same & mask).sum() > (0.6 if folder == BASE else 0.3) * mask.sum()
    assert (logp - on_gpu[2][..., :n])[same & mask].abs().mean() < MEAN_GAP[dtype]


def test_without_a_recording_sampling_goes_on_and_says_why(batch, gpu, monkeypatch, capsys):
    model = load(BASE)[0]
    expected = sample(model, batch[1])[0]

    def fails(graph, **_):
        tries.append(1)
        raise RuntimeError("CUDA error: operation not supported\nCompile with …")

    tries = []
    monkeypatch.setattr(torch.cuda, "graph", fails)
    monkeypatch.setattr(decoding, "FAILED", [])
    tokens = [on_cpu(sample(model.to("gpu"), batch[1])[0]) for _ in range(2)]
    n = min(t.shape[2] for t in (expected, *tokens))
    assert all(torch.equal(t[..., :n], expected[..., :n]) for t in tokens)
    said = capsys.readouterr().err
    assert said.count("without a CUDA graph") == 1 and "CUDA error: operation not supported" in said
    assert len(tries) == 1


def test_all_rollouts_are_recorded_on_one_stream(batch, gpu, monkeypatch):
    """cuBLAS keeps a workspace, up to 1 GB in all, for each stream that it ever ran on."""
    made, of_graphs, model = [], [], load(BASE)[0].to("gpu")
    stream, graph = torch.cuda.Stream, torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "Stream", lambda *at: made.append(stream(*at)) or made[-1])
    recorded = lambda g, **how: of_graphs.append(how["stream"]) or graph(g, **how)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    decoding.stream_to_record_on.cache_clear()
    for _ in range(2):
        sample(model, batch[1])
    assert len(made) == 1 and of_graphs == made * 2


# Five faults, planted: each would end, or silently slow, a run on CUDA ---------------------------


def host_positions(model, cache, tokens, positions, step=model_module.decode_step):
    return step(model, cache, tokens, positions + torch.arange(len(tokens)))


def asks_for_a_number(model, cache, tokens, positions, step=model_module.decode_step):
    assert cache.length.item() >= 0
    return step(model, cache, tokens, positions)


def indexes_by_a_mask(model, cache, tokens, positions, step=model_module.decode_step):
    return step(model, cache, tokens[tokens >= 0], positions)


def number_written_on_the_device(tokens, n_tokens, vocabulary, device):
    mask = torch.zeros(vocabulary, device=device)
    for token in tokens:
        mask[token] = float("-inf")
    return mask


def mask_left_on_the_host(tokens, n_tokens, vocabulary, device):
    return torch.zeros(vocabulary).index_fill_(0, torch.tensor(tokens), float("-inf"))


@pytest.mark.parametrize("where, name, fault, says", [
    (grpo, "decode_step", host_positions, "two devices"),
    (grpo, "decode_step", asks_for_a_number, "capturing: aten._local_scalar_dense"),
    (grpo, "decode_step", indexes_by_a_mask, "capturing: aten.index.Tensor by a mask"),
    (model_module, "never_sampled", number_written_on_the_device, "capturing: aten.copy_"),
    (model_module, "never_sampled", mask_left_on_the_host, "two devices"),
], ids=lambda x: x.__name__ if callable(x) else "")  # fmt: skip
def test_a_planted_fault_is_noticed(where, name, fault, says, batch, gpu, monkeypatch):
    model = load(BASE)[0].to("gpu")
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(NotOnAGpu, match=says):
        sample(model, batch[1])


# Waiting -----------------------------------------------------------------------------------------


@BOTH
def test_the_vision_tower_does_not_wait_layer_by_layer(folder, batch, gpu):
    """Copies to the device there must be, but as many for eight layers as for three."""
    waits = []
    for depth in (3, 8):
        torch.manual_seed(0)
        loaded = load(folder)[0]
        config = loaded.config
        config.vision_config.depth = depth
        config.vision_config._attn_implementation = config.text_config._attn_implementation = "sdpa"
        model = model_module.prepare(type(loaded)(config)).eval().to("gpu")
        before = gpu.waits
        with torch.no_grad():
            encode_videos(model, batch[1])
        waits.append(gpu.waits - before)
    assert waits[0] == waits[1] <= 12, waits


@BOTH
def test_scoring_does_not_wait(folder, batch, gpu):
    """Ids, positions and the mask for the prompt travel to the device, and with DeepStack the
    video's places; nothing comes back."""
    model = load(folder)[0].to("gpu")
    with torch.no_grad():
        features = encode_videos(model, batch[1])
        completions = torch.randint(20, 200, (3, 7)).to("gpu")
        before = gpu.waits
        group_logprobs(model, batch[1][0], features[0], completions)
    # A mask per layer stands in for CausalBias.
    travel = 5 + (folder != BASE) + model.config.text_config.num_hidden_layers
    assert gpu.waits - before <= travel


# Whole steps -------------------------------------------------------------------------------------

VARIANTS = {
    "all weights": [],
    "adapters, recomputed": ["--lora", "4", "--recompute", "--no-train-vision"],
    "two updates": ["--updates-per-rollout", "2"],
    "without a KL": ["--beta", "0"],
    "offloaded": ["--offload"],
    "sft": ["--method", "sft"],
}
QUICK = ("all weights", "adapters, recomputed")  # the others are slow


def one_step(device, dtype, flags, batch):
    """One step of train.py.

    Returns {parameter: its float32 value after it}, gradient norm, texts, gaps. In bfloat16, where
    a draw may fall between two roundings, a second step gets the first one's completions.
    """
    computed = ["--device", "cpu", "--dtype", str(dtype).removeprefix("torch.")]
    args = train.parse_args([*SMALL, *computed, *flags])
    policy, tokenizer, reference = load_models(args, "cpu")
    with reference() as fixed:
        for model in filter(None, (policy, fixed)):
            model.to(device).tie_weights()  # on the pretended GPU .to() makes new parameters
    optimizer = MasterAdamW(policy, args.lr, args.offload, dtype == torch.float16)
    before = {n: on_cpu(p).float().clone() for n, p in policy.named_parameters() if p.requires_grad}
    share = data.Batch(*batch, generators(), tokenizer)
    texts, gaps, update_weights = [], None, lambda: optimizer.step(args.lr, args.grad_clip, 1)
    if args.method == "sft":
        norm = train.sft_step(policy, share, args, update_weights, Clock("cpu")).grad_norm
    else:
        groups, norm = grpo.grpo_step(policy, reference, share, args, update_weights, float)
        gaps, texts = sampler_gaps(groups), [text for group in groups for text in group.texts]
        token_records(policy, tokenizer, groups[0])
    masters = {n: on_cpu(m).float() for n, m in optimizer.masters.items()}
    return {n: masters[n] - before[n] for n in masters}, norm, texts, gaps


@BOTH_IN_16_BITS_TOO
@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[pytest.mark.slow] * (v not in QUICK)) for v in VARIANTS],
)
def test_a_whole_step_is_the_cpus(variant, dtype, folder, batch, monkeypatch):
    """Random words are paid too. Adam's first step moves every weight by about lr whatever its
    gradient's size, so weights are compared where the gradient is not rounding alone; the norm of
    all gradients is compared as it is."""
    sampled, sample = [], grpo.sample_groups

    def same_completions(model, *args):
        sampled.append(sample(model, *args))
        return [x.to(model.device) for x in sampled[0]]

    monkeypatch.setitem(TASKS["grounding"].rules, "iou", lambda text, *_: len(text) % 7 / 6)
    if dtype == torch.bfloat16:
        monkeypatch.setattr(grpo, "sample_groups", same_completions)
    given = (dtype, [*VARIANTS[variant], "--model", folder], batch)
    steps = [one_step("cpu", *given)]
    with installed(monkeypatch):
        steps.append(one_step("gpu", *given))
    for change, norm, _, gaps in steps:
        assert norm > 0 and all(torch.isfinite(c).all() for c in change.values())
        if gaps is not None:
            check_sampler(on_cpu(gaps), dtype)
    changed, norms, texts, _ = zip(*steps)
    changes = [torch.cat([c.flatten() for c in change.values()]) for change in changed]
    assert texts[0] == texts[1]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4 if dtype == torch.float32 else 0.05)
    apart = (changes[0] - changes[1]).norm() / changes[0].norm()
    assert apart < (0.02 if dtype == torch.float32 else 0.3), apart


def test_the_offloaded_optimizer_is_on_the_host(batch, gpu):
    policy = load(BASE)[0].to("gpu")
    optimizer = MasterAdamW(policy, 1e-3, offload=True)
    for p in optimizer.parameters.values():
        p.grad = torch.ones_like(p)
    optimizer.step(1e-3, 1.0, 1)
    assert all(m.device.type == "cpu" for m in optimizer.masters.values())
    assert all(t.device.type == "cpu" for t in optimizer.tensors().values())
    kept = {k: t.clone() for k, t in optimizer.tensors().items()}
    again = MasterAdamW(load(BASE)[0].to("gpu"), 1e-3, offload=True)
    again.load_tensors(kept.__getitem__)
    for k, t in again.tensors().items():
        assert torch.equal(kept[k], t) and t.device.type == "cpu"
    name = next(iter(policy.state_dict()))
    assert torch.equal(on_cpu(again.parameters[name]), on_cpu(optimizer.parameters[name]))


@BOTH
def test_an_evaluations_batch(folder, charades, gpu):
    examples = as_task(read_dataset("charades", "test", charades)[:3], "grounding")
    reader = SimpleNamespace(read=data.read_frames)
    settings = {"think": True, "look": "", "max_new_tokens": 24, "template": None}
    said = []
    for device in ("cpu", "gpu"):
        model, tokenizer = load(folder)
        given = {"tokenizer": tokenizer, "settings": settings, "decoder": reader}
        asked = SimpleNamespace(model=model.to(device), **given)
        batches = [[[e] for e in examples[:2]], [examples[2:]]]
        read = [evaluation.read_clips(asked, batch, budget_of(folder)) for batch in batches]
        records = [r for batch in read for r in evaluation.answer_batch(asked, batch)]
        said.append([record["text"] for record in records])
    assert said[0] == said[1] and len(said[0]) == 3


@BOTH
def test_a_question_about_ones_own_video(folder, charades, gpu, monkeypatch, capsys):
    flags = ["--video", f"{charades}/videos/test00000.mp4", "--ask", "When?", "--model", folder]
    flags += [f"--{name.replace('_', '-')}={n}" for name, n in FEW_FRAMES.items()]
    args, said = parse_args([*flags, "--max-new-tokens", "12", "--device", "cpu"]), []
    for device in ("cpu", "gpu"):
        model, tokenizer = load(folder)
        monkeypatch.setattr(ask, "load", lambda *_, **__: (model.to(device), tokenizer))  # noqa: B023
        ask.ask(args)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "16 tokens]\n" in said[0]


# float16 and bfloat16, on the CPU ----------------------------------------------------------------


def test_a_step_in_float16_is_float32s(batch, monkeypatch):
    """Of the same completions. Adapters, their gradients and moments are float32."""
    sampled, sample = [], grpo.sample_groups

    def same_completions(model, *args):
        sampled.append(sample(model, *args))
        return sampled[0]

    monkeypatch.setattr(grpo, "sample_groups", same_completions)
    adapters_alone = ["--lora", "4", "--no-train-vision"]
    steps = [one_step("cpu", d, adapters_alone, batch) for d in (torch.float32, torch.float16)]
    (change, norm, _, _), (change16, norm16, _, gaps) = steps
    check_sampler(gaps, torch.float16)
    assert norm16 == pytest.approx(norm, rel=0.02)
    a, b = (torch.cat([c.flatten() for c in changes.values()]) for changes in (change, change16))
    assert (a - b).norm() < 0.3 * a.norm() > 0


def test_an_overflow_changes_nothing_and_halves_the_loss_scale(capsys):
    def adapted(dtype, **how):
        model = as_policy(adapters.add_adapters(load(BASE, dtype=dtype)[0], 4))
        return MasterAdamW(model, 1e-3, **how)

    def step(optimizer, factor):
        for k, p in enumerate(optimizer.parameters.values()):
            p.grad = torch.full_like(p, factor * (k + 1))
        return optimizer.step(1e-3, 1.0, 1)

    half, plain = adapted(torch.float16, scaled=True), adapted(torch.float32)
    before = {n: m.clone() for n, m in half.masters.items()}
    assert not torch.isfinite(torch.tensor(step(half, torch.inf))) and half.scale == 2.0**15
    assert all(torch.equal(before[n], m) for n, m in half.masters.items())
    assert capsys.readouterr().err.count("nothing changed; the loss scale is now 32768") == 1
    # Then a gradient that is 2^15 times as large is the same step.
    assert step(half, 1e-3 * half.scale) == pytest.approx(step(plain, 1e-3))
    for n, m in half.masters.items():
        assert m.dtype == torch.float32
        torch.testing.assert_close(m, plain.masters[n], rtol=1e-6, atol=1e-9)  # of steps of 1e-3
    logp = torch.zeros(2, 3, requires_grad=True)
    seen, _ = half.scaled_logprobs(lambda group: (logp * 1, None), "group")
    seen.sum().backward()
    assert (logp.grad == 2.0**15).all() and capsys.readouterr().err == ""


def test_a_gpu_without_bfloat16_is_told_which_flags_to_give(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    args = train.parse_args(["--dtype", "bfloat16"])
    with pytest.raises(BadInput, match="this GPU has no bfloat16: give --dtype float16"):
        load_models(args, "cuda")


@pytest.mark.slow
def test_a_run_in_float16(charades, tmp_path):
    """Its loss scale is in the checkpoint, so that a resumed run goes on with it."""
    flags = "--dtype float16 --lora 4 --prompts-per-step 2 --group-size 4 --max-new-tokens 32 "
    flags += f"--steps 2 --quiet --data {charades} --out {tmp_path / 'run'}"
    train.train(train.parse_args(flags.split()))
    state = json.loads((tmp_path / "run/checkpoints/step-000002/state.json").read_text())
    halved = math.log2(state["counts"]["loss_scale"])
    assert halved == 16 - state["counts"]["dropped"] and state["counts"]["dropped"] < 2


def gaps_of(dtype, charades):
    """(n,) differences of the log-probs of 48 completions of the toy base, sampled and scored."""
    model, tokenizer = load(BASE, dtype=dtype)
    examples = read_dataset("charades", "test", charades)
    prompts = [load_prompt(e, TOY_BUDGET, tokenizer) for e in examples]
    with torch.no_grad():
        features = encode_videos(model, prompts)
        seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        stops = model.generation_config.eos_token_id
        tokens, mask, logp = grpo.sample_groups(model, prompts, features, 8, 60, stops, seeds)
        scored = [group_logprobs(model, p, f, t)[0] for p, f, t in zip(prompts, features, tokens)]
    return torch.cat([(a - b)[m].abs() for a, b, m in zip(scored, logp, mask)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sampler_check_tells_rounding_from_a_mistake(dtype, charades, monkeypatch):
    check_sampler(gaps_of(dtype, charades), dtype)
    plain = grpo.decode_step
    shifted = lambda m, cache, tokens, at: plain(m, cache, tokens, at + 1)
    monkeypatch.setattr(grpo, "decode_step", shifted)
    with pytest.raises(BadInput, match="positions, masks or weights disagree"):
        check_sampler(gaps_of(dtype, charades), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_sharded_in_bfloat16(method, charades, tmp_path):
    """Two processes, gathered in bfloat16 over gloo: sampler and scorer agree."""
    flags = "--shard --dtype bfloat16 --prompts-per-step 2 --group-size 4 --max-new-tokens 32 "
    flags += f"--steps 1 --method {method} --data {charades}"
    launcher = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    command = [*launcher, "train.py", *flags.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stderr + done.stdout).split())  # its lines are wrapped
    assert ("of scoring differ by" in said) == (method == "grpo")
    with open(tmp_path / "run" / "metrics.jsonl", encoding="utf-8") as f:
        assert json.loads(f.readline())["grad_norm"] > 0.01


# Adapters ----------------------------------------------------------------------------------------


def test_adapters_are_cast_once_per_rollout(batch):
    model = load(BASE, dtype=torch.bfloat16)[0]
    adapters.add_adapters(model, 4)
    for m in adapters.detours(model).values():
        torch.nn.init.normal_(m.lora_B, std=0.1)
    cast = sample(model, batch[1])
    with adapters.adapters_ready(model):
        halves = [half for m in adapters.detours(model).values() for half in m.ready]
        assert all(half.dtype == torch.bfloat16 and not half.requires_grad for half in halves)
        ready = sample(model, batch[1])
    assert all(torch.equal(a, b) for a, b in zip(cast, ready))
    assert all(m.ready is None for m in adapters.detours(model).values())
