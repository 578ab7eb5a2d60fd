"""cases_sampling.py: the cases of exercise 11, on a Qwen2.5-VL of 20,000 random numbers.

Any way of drawing is right, so what came back is judged: each log-prob by reading everything again,
tokens by counting thousands of them.
"""

import functools
import math
import random

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from course.cases import Case, need, numbers, written
from data import Prompt
from model import group_logprobs, prefill, prepare

NEVER = range(36, 40)  # the tokens of vision
NO_FILM = torch.empty(0, 32)  # a video's features, of none
NAMES = ("completions", "mask", "log-probs")


@functools.cache
def tiny_model(V=40):
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])
    text = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    text |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    own = dict(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config = Qwen2_5_VLConfig(**own, **dict(zip(names, NEVER)))
    model = Qwen2_5_VLForConditionalGeneration(config)
    rng = random.Random(11)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 2:
                made = numbers(rng, *parameter.shape, low=-0.6, high=0.6, dtype=torch.float32)
                parameter.copy_(made)
    return prepare(model).eval()


def text_prompt(ids):
    """A prompt without a video. Its patches are its own: prompts that share them share a clip."""
    return Prompt(torch.tensor(ids), torch.empty(0, 1176), [], [], "")


@torch.no_grad()
def next_tokens(rows, V):
    """Log-probs (rows, V) of the token after each list of ids, each read from its beginning."""
    logits = [prefill(tiny_model(V), [text_prompt(ids)], [NO_FILM])[0][0] for ids in rows]
    return torch.stack(logits).double().log_softmax(dim=-1)


@torch.no_grad()
def read_again(ids, tokens, V):
    """Log-probs and entropy (G, C) of completions of one prompt, read as a whole."""
    tokens = tokens.clamp(0, V - 1)
    return group_logprobs(tiny_model(V), text_prompt(ids), NO_FILM, tokens)


def sample(function, prompts, G, C, stop, seeds=None, *how):
    """The student's sample_groups on the tiny model. how: the vocabulary, and whether to listen."""
    V, listen = (*how, *(40, False)[len(how) :])
    read, heard, model = [], [], tiny_model(V)
    hook = model.model.language_model.embed_tokens.register_forward_hook(
        lambda module, args, out: read.append(args[0].numel())
    )
    hear = lambda token: heard.append(torch.as_tensor(token).flatten().tolist())
    try:
        generators = seeds and [torch.Generator().manual_seed(seed) for seed in seeds]
        made = [text_prompt(ids) for ids in prompts]
        features, on_token = [NO_FILM for _ in prompts], hear if listen else None
        got = function(model, made, features, G, C, stop, generators, on_token)
    finally:
        hook.remove()
    triple = isinstance(got, (tuple, list)) and len(got) == 3
    triple = triple and all(isinstance(x, torch.Tensor) for x in got)
    need(triple, "three tensors are asked for: completions, mask, log-probs")
    tokens, mask, logp = got
    without = "the log-probs carry a gradient: sampling needs none, and its graph fills the memory"
    need(not logp.requires_grad, f"{without} (torch.no_grad())")
    return dict(zip(NAMES, (tokens, mask, logp.float()))) | {"read": sum(read), "heard": heard}


def greedy(function, *args):
    said = sample(function, *args)
    return {name: said[name] for name in NAMES}


def with_neighbours(function, prompts, G, C, seeds):
    """Two prompts together, each alone, and the second with another seed (the third), twice."""
    first, second, another = seeds
    runs = {"together": (prompts, [first, second]), "alone 0": (prompts[:1], [first])}
    runs |= {"alone 1": (prompts[1:], [second]), "other seed": (prompts[1:], [another])}
    runs["again"] = runs["other seed"]
    completions = lambda some, own: sample(function, some, G, C, [35], own)["completions"]
    return {name: completions(*run) for name, run in runs.items()}


ALL_THE_SAME = "completions of a group that are all the same"
ONCE = "each prompt read once"
FINE = {
    "log-probs": "as read again, and 0 outside the mask",
    "the mask": "up to and with the first stop token",
    "padding": "stop_ids[0]",
    "C": "the length of the longest",
    ALL_THE_SAME: False,
    ONCE: True,
    "on_token": "heard the completions, padding included",
}
BY_CHANCE = "what chance does not explain"
OWN_NUMBERS = {
    "alone as in company": True,
    "the same seed gives the same again": True,
    "another seed gives others": True,
}


def tensors(args, said):
    """Completions, mask, log-probs of what a student's process told; raises Unfit if they do not
    fit together."""
    prompts, G, most = args[:3]
    made = [torch.tensor(said[name].array) for name in NAMES]
    B, shapes = len(prompts), {tuple(x.shape) for x in made}
    good = len(shapes) == 1 and made[0].ndim == 3 and tuple(made[0].shape[:2]) == (B, G)
    asked = f"all three should be (B, G, C), here ({B}, {G}, 1 to {most}); they are {shapes}"
    need(good and 1 <= made[0].shape[2] <= most, asked)
    dtypes = [said[name].dtype for name in NAMES]
    asked = f"int64, bool and float32 are asked for; they are {', '.join(dtypes)}"
    need(dtypes == ["int64", "bool", "float32"], asked)
    return made


def judge_sampled(args, said):
    """What holds for any draw, as {property: value}: FINE, if the function is right."""
    prompts, G, most, stop, _, V, listen = args
    tokens, mask, logp = tensors(args, said)
    C, heard = tokens.shape[2], said["heard"]
    found = {"log-probs": wrong_logprob(prompts, tokens, mask, logp, V)}
    found["the mask"] = wrong_mask(tokens, mask, most, stop)
    if (tokens[~mask] != stop[0]).any():
        found["padding"] = f"other tokens than stop_ids[0], which is {stop[0]}"
    if not mask.any(dim=0).any(dim=0).all():
        found["C"] = f"{C}, and the longest has {int(mask.sum(dim=2).max())} tokens"
    found[ALL_THE_SAME] = C > 2 and bool((tokens == tokens[:, :1]).all())
    found[ONCE] = said["read"] <= sum(map(len, prompts)) + len(prompts) * G * most
    if listen:
        steps = [step == own for step, own in zip(heard, tokens.flatten(0, 1).T.tolist())]
        late = [step for step in heard[C:] if set(step) != {stop[0]}]
        if len(steps) < C or not all(steps) or late:
            first = steps.index(False) + 1 if False in steps else min(len(steps), C) + 1
            found["on_token"] = f"at step {first} it did not hear the tokens of all rows"
    return FINE | {name: value for name, value in found.items() if value is not None}


def wrong_logprob(prompts, tokens, mask, logp, V):
    """Where a log-prob is not what reading again gives, or not 0 outside the mask; else None."""
    again = torch.stack([read_again(ids, own, V)[0] for ids, own in zip(prompts, tokens)])
    again = torch.where(mask, again, 0.0)
    wrong = ~torch.isclose(logp, again, rtol=0, atol=1e-3)
    if not wrong.any():
        return None
    step = int(wrong.any(dim=0).any(dim=0).int().argmax())
    b, g = wrong[:, :, step].nonzero()[0].tolist()
    found = f"{logp[b, g, step]:.4f} at step {step + 1} of completion {g} of prompt {b}"
    return f"{found}; it should be {again[b, g, step]:.4f}"


def wrong_mask(tokens, mask, most, stop):
    lengths, is_stop = mask.sum(dim=2, keepdim=True), torch.isin(tokens, torch.tensor(stop))
    first = is_stop.int().cumsum(dim=2) - is_stop.int() == 0
    # A completion ends with a stop token, or there was no more room.
    last = is_stop.gather(2, lengths.clamp_min(1) - 1) | (lengths == most)
    fits = (mask == first).all(dim=2) & last[:, :, 0]
    if fits.all():
        return None
    b, g = (~fits).nonzero()[0].tolist()
    return f"of {tokens[b, g].tolist()} it holds {mask[b, g].int().tolist()}"


def judge_neighbours(args, said):
    tokens = {name: torch.tensor(x.array) for name, x in said.items()}
    same = True
    for b in range(2):
        together, alone = tokens["together"][b], tokens[f"alone {b}"][0]
        n = min(together.shape[1], alone.shape[1])
        same = same and torch.equal(together[:, :n], alone[:, :n])
    one, other = tokens["alone 1"], tokens["other seed"]
    found = same, torch.equal(other, tokens["again"]), not torch.equal(one, other)
    return dict(zip(OWN_NUMBERS, found))


def judge_second(args, said):
    """Counts of pairs: the first token and the one after it, padding where the first ended all."""
    (prompt,), G, _, stop, _, V, _ = args
    tokens = tensors(args, said)[0][0].clamp(0, V - 1)
    need(tokens.shape[1] == 2, "some of thousands of completions have two tokens")
    counts = torch.bincount(tokens @ torch.tensor([V, 1]), minlength=V * V).view(V, V)
    firsts = [v for v in range(V) if v not in NEVER]
    first, second = next_tokens([prompt], V)[0], next_tokens([prompt + [v] for v in firsts], V)
    ends = [firsts.index(v) for v in stop]
    second[ends] = torch.where(torch.arange(V) == stop[0], 0.0, -torch.inf).double()  # padding
    expected = G * (first[firsts, None] + second).exp()
    names = [f"{v} and then {w} are the first tokens" for v in firsts for w in range(V)]
    return {BY_CHANCE: unexplained(counts[firsts].flatten(), expected.flatten(), names)}


def judge_later(args, said):
    """Are tokens as improbable as they should be? −log p of a token is, on average, the entropy."""
    (prompt,), _, _, _, _, V, _ = args
    tokens, mask, _ = tensors(args, said)
    logp, entropy = read_again(prompt, tokens[0], V)
    odd = None
    for i in range(tokens.shape[2]):
        surprise = (-logp.clamp_min(-1e9) - entropy)[:, i][mask[0, :, i]].double()
        if odd is None and surprise.sum().abs() > 5 * surprise.square().sum().sqrt():
            more = "more" if surprise.mean() < 0 else "less"
            odd = f"the tokens in place {i + 1} are {more} probable than tokens should be"
    return {BY_CHANCE: odd}


def unexplained(counts, expected, names):
    """None, or the count farthest from what is expected, if all together are too far from it.

    Pearson's test: of n cells, Σ (count − expected)² / expected is n by chance, give or take
    √(2 n). What is expected fewer than 5 times is one cell.
    """
    often = expected >= 5
    rest = torch.stack([counts[~often].sum(), expected[~often].sum()])
    counts = torch.cat([counts[often], rest[:1]])
    expected = torch.cat([expected[often], rest[1:]])
    off = (counts - expected) ** 2 / expected.clamp_min(1)
    if off.sum() < len(off) + 6 * math.sqrt(2 * len(off)):
        return None
    i = int(off.argmax())
    names = [name for name, is_often in zip(names, often) if is_often]
    name = names[i] if i < len(names) else "the first tokens are others, each of them rare"
    return f"{name}: {int(counts[i])} times, and {expected[i]:.0f} is probable"


def sample_groups_cases(rng):
    for (how, lengths, *settings), usually, _ in written("11"):
        yield draw_case(rng, how, lengths, settings, usually)
    yield from random_number_cases(rng)


def texts(rng, *lengths):
    """Prompts of some lengths, in tokens: lists of ids."""
    return [[rng.randrange(36) for _ in range(n)] for n in lengths]


def draw_case(rng, how, lengths, settings, usually):
    """how: "greedy" (without generators) or "sampling"; settings: G, C, stop, V."""
    G, C, stop, V = settings
    shown = (
        f"sample_groups, {how}: prompts of {' and '.join(map(str, lengths))} tokens,"
        f" group_size={G}, max_new_tokens={C}, stop_ids={stop}"
    )
    prompts = texts(rng, *lengths)
    if how == "greedy":
        return Case((prompts, G, C, stop, None, V), usually, call=greedy, shown=shown)
    again = (
        "a prompt is read once: prefill the B prompts and repeat the logits, not the prompts; after"
        " that decode_step alone"
    )
    same = "every completion needs a random number of its own in every step"
    known = {(ONCE, (False,)): again, (ALL_THE_SAME, (True,)): same}
    args = (prompts, G, C, stop, rng.sample(range(1 << 30), len(lengths)), V, True)
    return Case(args, usually, known, call=sample, judge=judge_sampled, want=FINE, shown=shown)


def random_number_cases(rng):
    usually = (
        "tokens must come from the full distribution at temperature 1: no top-k, no top-p, no"
        " temperature, no token kept out, and a random number of its own for every completion in"
        " every step; nor a penalty for what was said"
    )
    for G, C, judge in ((20_000, 2, judge_second), (400, 6, judge_later)):
        shown = f"the first {C} tokens of {G:,} completions, counted"
        args = (texts(rng, 5), G, C, [12, 5], rng.sample(range(1 << 30), 1), 40, False)
        how = dict(call=sample, judge=judge, want={BY_CHANCE: None})
        yield Case(args, usually, shown=shown, **how)
    usually = (
        "each prompt draws from its own generator, as many numbers whoever is beside it; not all"
        " from the first, and not from the global one"
    )
    shown = "sample_groups of two prompts together, and of each alone with the same generator"
    args = (texts(rng, 4, 3), 3, 6, rng.sample(range(1 << 30), 3))
    how = dict(call=with_neighbours, judge=judge_neighbours, want=OWN_NUMBERS)
    yield Case(args, usually, shown=shown, **how)
