"""checks_model.py: the cases of the exercises about the model: 8, 10, 11 and 12.

How cases work: see checks.py.
"""

import functools
import math
import random
from types import SimpleNamespace

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from course.checks import Case, gradients, need, numbers, show, t
from data import Prompt
from lib.attention import sdpa
from model import prefill, prepare

# ------------------------------------------------------------------------------------------------
# 8: log-probs. Slowly: one Python float after the other
# ------------------------------------------------------------------------------------------------


def slow_predicting_states(hidden, group):
    (G, C), rows = group, hidden.tolist()
    P = len(rows) - G * C
    return torch.tensor(
        [[rows[P + g * C + c - 1 if c else P - 1] for c in range(C)] for g in range(G)],
        dtype=hidden.dtype,
    )


def weighted_sum(x):
    """1 · first + 2 · second + …: a sum to which every number of x has another gradient."""
    return (x * torch.arange(1.0, 1 + x.numel()).view(x.shape)).sum()


def states_gradient(function, hidden, group):
    x = hidden.clone().requires_grad_()
    got = function(x, group)
    return {"states": got, "gradient": gradients(weighted_sum(got), x)[0]}


def slow_token_logprobs(logits, tokens):
    rows, logp, entropy = logits.tolist(), [], []
    for row, token in zip(rows, tokens.tolist()):
        top = max(row)
        norm = top + math.log(sum(math.exp(x - top) for x in row))
        logp.append(row[token] - norm)
        entropy.append(-sum(math.exp(x - norm) * (x - norm) for x in row if x > -math.inf))
    return {
        "log-probs": torch.tensor(logp, dtype=logits.dtype),
        "entropy": torch.tensor(entropy, dtype=logits.dtype),
    }


def pair_of(got):
    need(
        isinstance(got, (tuple, list))
        and len(got) == 2
        and all(isinstance(x, torch.Tensor) for x in got),
        f"two tensors are asked for, log-probs and entropy; this is {show(got)}",
    )
    return dict(zip(("log-probs", "entropy"), got))


def called_for_pair(function, *args):
    return pair_of(function(*args))


def logprobs_gradient(function, logits, tokens):
    x = logits.clone().requires_grad_()
    got = pair_of(function(x, tokens))
    return {
        "gradient": gradients(got["log-probs"].sum(), x)[0],
        "entropy carries a gradient": got["entropy"].requires_grad,
    }


def slow_logprobs_gradient(logits, tokens):
    p = [[math.exp(x - max(row)) for x in row] for row in logits.tolist()]
    rows = [
        [float(v == token) - x / sum(row) for v, x in enumerate(row)]
        for row, token in zip(p, tokens.tolist())
    ]
    return {"gradient": torch.tensor(rows, dtype=logits.dtype), "entropy carries a gradient": False}


def token_logprobs_cases():
    yield from predicting_states_cases()

    def case(logits, tokens, usually, known=None, call=called_for_pair, want=slow_token_logprobs):
        return Case((logits, torch.tensor(tokens)), want, usually, known or {}, call=call)

    wrong_dimension = (
        "softmax over the wrong dimension: each row is a distribution over the vocabulary, dim=-1"
    )
    yield case(
        t([0.0, math.log(3)], dtype=torch.float32),
        [1],
        "log softmax over the vocabulary, at the token; entropy −Σ p log p in nats",
        {
            ("log-probs", 0.0): wrong_dimension,
            0.75: "this is the probability, not its log",
            math.log(4 / 3): "the sign is turned: a log-prob is at most 0",
            math.log(3): "this is the logit: what is missing is log Σ exp, the normalisation",
            0.811278: "the entropy is in bits; nats are asked for, with the natural logarithm",
            -0.562335: "the entropy's sign is turned",
        },
    )
    yield case(
        t([1000.0, 0.0], dtype=torch.float32),
        [1],
        "exp(1000) overflows: log_softmax takes off the largest logit first, log(softmax) or"
        " log(sum(exp)) does not",
    )
    yield case(
        t([1000.0, 999.0], [0.0, 1.0], [-1000.0, 0.0], dtype=torch.float32),
        [1, 0, 0],
        "each row has its own largest logit, which log_softmax takes off: that of another row lets"
        " this one underflow; and nothing is clamped",
    )
    yield case(
        t([0.0, 0.0, -math.inf], dtype=torch.float32),
        [0],
        "a token that is ruled out has p = 0 and log p = −inf, and 0 · −inf is NaN: clamp log p, or"
        " torch.where",
    )
    yield case(
        t([0.5, -1.0, 2.0], [1.0, 0.0, 0.0]),
        [2, 0],
        "the log-prob's gradient is one-hot − softmax: it must reach the logits; the entropy must"
        " carry none (torch.no_grad())",
        call=logprobs_gradient,
        want=slow_logprobs_gradient,
    )
    rng = random.Random(8)
    for n, V in ((2, 3), (3, 3), (5, 7), (8, 40)):
        yield case(
            numbers(rng, n, V, low=-4, high=4, dtype=torch.float32),
            [rng.randrange(V) for _ in range(n)],
            "softmax over the last dimension, the vocabulary, and each row's own token",
        )


def predicting_states_cases():
    def case(sizes, usually, known=None):
        P, G, C, D = sizes
        hidden = torch.arange(float((P + G * C) * D)).view(-1, D)
        return Case(
            (hidden, (G, C)), slow_predicting_states, usually, known or {}, name="predicting_states"
        )

    late = "the state at the token itself predicts the token after it: one place too late"
    shifted = (
        "shifting the whole row by one gives the second completion's first token to the end of the"
        " first: every first token is predicted by the prompt's last state"
    )
    mixed = (
        "the completions got mixed: completion g is the g-th stretch of C states after the prompt"
    )
    yield case(
        (1, 2, 2, 1),
        "the state before each token: the prompt's last one for every first token, then the"
        " completion's own",
        {(1, 2, 3, 4): late, (0, 1, 2, 3): shifted, (0, 1, 0, 2): mixed},
    )
    yield case(
        (3, 2, 1, 1),
        "with one token each, all are predicted by the prompt's last state",
        {(3, 4): late, (0, 0): "hidden[0] is the prompt's first state; its last is hidden[P − 1]"},
    )
    for sizes in ((2, 2, 2, 2), (3, 4, 3, 2), (5, 3, 6, 4)):
        yield case(sizes, "completion g is the g-th stretch of C states after the prompt")
    yield Case(
        (torch.arange(5.0)[:, None], (2, 2)),
        {
            "states": t([[0], [1]], [[0], [3]], dtype=torch.float32),
            "gradient": t([4], [2], [0], [4], [0], dtype=torch.float32),
        },
        "the prompt's last state gets gradient from every completion's first token: it must not be"
        " detached",
        name="predicting_states",
        call=states_gradient,
    )


# ------------------------------------------------------------------------------------------------
# 10: positions. Slowly: token by token
# ------------------------------------------------------------------------------------------------

VIDEO = 77


def config_with(tokens_per_second, merge):
    return SimpleNamespace(
        video_token_id=VIDEO,
        vision_config=SimpleNamespace(
            spatial_merge_size=merge, tokens_per_second=tokens_per_second
        ),
    )


def in_parts(ids, positions):
    """Positions (3, P) by what they belong to, so that a message can say where they are wrong."""
    is_video = (ids == VIDEO).tolist()
    first = is_video.index(True) if True in is_video else len(ids)
    video = [i for i, v in enumerate(is_video) if v]
    after = [i for i in range(first, len(ids)) if not is_video[i]]
    return {
        "text before the video": positions[:, :first],
        "time of the video's tokens": positions[0, video],
        "rows of the video's tokens": positions[1, video],
        "columns of the video's tokens": positions[2, video],
        "text after the video": positions[:, after],
    }


def positions_of(function, ids, grids, seconds, *settings):
    got = function(ids, grids, seconds, config_with(*settings))
    is_tensor = isinstance(got, torch.Tensor)
    given = f"{got.dtype} {tuple(got.shape)}" if is_tensor else show(got)
    need(
        is_tensor and tuple(got.shape) == (3, len(ids)) and got.dtype == torch.int64,
        f"an int64 tensor (3, {len(ids)}) is asked for; this is {given}",
    )
    return in_parts(ids, got)


def slow_positions(ids, grids, seconds, tokens_per_second, merge):
    rows, start, i, videos = [], 0, 0, list(zip(grids, seconds))
    ids_list = ids.tolist()
    while i < len(ids_list):
        if ids_list[i] != VIDEO:
            rows.append((start, start, start))
            start, i = start + 1, i + 1
            continue
        (pairs, h, w), every = videos.pop(0)
        cells = [
            (math.floor(k * every * tokens_per_second) + start, r + start, c + start)
            for k in range(pairs)
            for r in range(h // merge)
            for c in range(w // merge)
        ]
        rows, i, start = rows + cells, i + len(cells), max(map(max, cells)) + 1
    return in_parts(ids, torch.tensor(rows).T.contiguous().view(3, -1))


def positions_case(pieces, grids, seconds, usually, known=None, tokens_per_second=2, merge=2):
    """pieces: of the prompt, in order: the ids of some text, or how many tokens a video has."""
    ids, told = [], []
    for piece in pieces:
        is_video = isinstance(piece, int)
        ids += [VIDEO] * piece if is_video else piece
        told.append(f"{piece} video tokens" if is_video else f"{len(piece)} of text")
    shown = (
        f"mrope_positions(ids, grids={grids}, seconds_per_grid={seconds}, config),"
        f" {tokens_per_second} tokens per second, {merge} × {merge} patches a token,"
        f" ids: {', then '.join(told)}"
    )
    return Case(
        (torch.tensor(ids), grids, seconds, tokens_per_second, merge),
        slow_positions,
        usually,
        known or {},
        call=positions_of,
        shown=shown,
    )


COUNTED = (
    "tokens were counted: text continues after the largest *position*, and many video tokens share"
    " one"
)
UNMOVED = "the video's own start is missing: positions go on from the text before it"
SWAPPED = "h and w are swapped: the grid is (t, h, w), and the tokens of a frame go row by row"


def mrope_positions_cases():
    case, after = positions_case, "text after the video"
    yield case([[7, 8]], [], [], "text alone counts all three positions up together: 0, 1, …")
    yield case(
        [[7], 2, [8]],
        [(1, 2, 4)],
        [1.0],
        "grids count patches, 2 × 2 of them a token; h is rows, w columns",
        {
            ("rows of the video's tokens", (1, 2)): SWAPPED,
            ("time of the video's tokens", (2, 2)): "one too far: the next free position is 1",
            (after, (2, 2, 2)): "one too few: the next position is the largest so far + 1",
            ("time of the video's tokens", (0, 0)): UNMOVED,
            ("rows of the video's tokens", (0, 0)): UNMOVED,
        },
    )
    rows_alone = "the rows alone were looked at: the largest position of all three axes + 1"
    known = {(after, (7, 7, 7)): COUNTED, (after, (3, 3, 3)): rows_alone}
    yield case([[7], 6, [8]], [(1, 4, 6)], [1.0], SWAPPED, known)
    yield after_the_video_case()
    yield case(
        [[7], 4, [8, 9]],
        [(4, 2, 2)],
        [0.7],
        "floor(k · seconds · tokens_per_second): multiply first, then take the floor",
        {
            (1, 2, 4, 5): "rounded: the floor is asked for",
            (1, 2, 3, 4): "the floor came before the multiplication by k",
        },
    )
    usually = "a video slower than the text: pairs may share a position"
    yield case([[7], 2, [8]], [(2, 2, 2)], [0.25], usually)
    usually = "a video at the very beginning starts at 0; here the columns reach farther than the"
    yield case([2, [8]], [(1, 2, 4)], [1.0], f"{usually} time")
    yield case(
        [[7, 7], 4, [8], 12, [9, 9]],
        [(2, 4, 2), (3, 2, 8)],
        [1.0, 0.5],
        "a second video starts at the next free position after the text between, and has its own"
        " grid and seconds",
    )
    usually = "the text after the video starts at 40 here: 3 + 9 · 4 + 1"
    pieces = [[1, 2, 3], 40, [4, 5, 6, 7, 8]]
    yield case(pieces, [(10, 4, 4)], [1.0], usually, tokens_per_second=4)
    usually = "how many patches are a token is in the config: spatial_merge_size"
    yield case([[7], 2, [8]], [(1, 3, 6)], [1.0], usually, merge=3)
    usually = "seconds_per_grid and tokens_per_second as they are, not rounded; floor comes last"
    yield case([[7], 12, [8]], [(12, 2, 2)], [0.467], usually, tokens_per_second=3)
    rng = random.Random(10)
    for _ in range(40):
        rate, merge = rng.choice((1, 2, 4, 25)), rng.choice((1, 2, 3))
        usually = "each video its own start, grid and seconds"
        yield case(*random_videos(rng, rate, merge), usually, None, rate, merge)


def after_the_video_case():
    library = (
        "this is what transformers ≥ 5.3 does, start + max(h, w) / 2, inside the video; the text"
        " continues at the largest position so far + 1, here the time's"
    )
    in_pairs = (
        "the video starts at the next free position, and pair k lies"
        " k · seconds · tokens_per_second after that"
    )
    pairs_counted = "pairs were counted: time is k · seconds_per_grid · tokens_per_second"
    return positions_case(
        [[7], 12, [8]],
        [(3, 4, 4)],
        [1.0],
        "the text after a video continues at the largest position so far, on any of the three axes,"
        " + 1",
        {
            (3,) * 3: library,
            (13,) * 3: COUNTED,
            (0,) * 4 + (1,) * 4 + (2,) * 4: in_pairs,
            (1,) * 4 + (2,) * 4 + (3,) * 4: pairs_counted,
            (0,) * 4 + (2,) * 4 + (4,) * 4: UNMOVED,
        },
    )


def random_videos(rng, tokens_per_second, merge):
    """(pieces, grids, seconds) of a prompt with one to three videos."""
    pieces, grids, seconds = [[7] * rng.randrange(1, 4)], [], []
    for _ in range(rng.randrange(1, 4)):
        pairs, h, w = (rng.randrange(1, 9 if i == 0 else 4) for i in range(3))
        grids.append((pairs, merge * h, merge * w))
        seconds.append(seconds_of_a_pair(rng, pairs, tokens_per_second))
        pieces += [pairs * h * w, [8] * rng.randrange(1, 4)]
    return pieces, grids, seconds


def seconds_of_a_pair(rng, pairs, tokens_per_second):
    """Any number whose multiples are no whole numbers: 32 bits and 64 have the same floor."""
    while True:
        seconds = round(rng.uniform(0.05, 2.5), 3)
        times = [k * seconds * tokens_per_second for k in range(1, pairs)]
        if all(0.01 < x % 1 < 0.99 for x in times):
            return seconds


# ------------------------------------------------------------------------------------------------
# 11: sampling, on a Qwen2.5-VL of 20,000 random numbers. Slowly: the whole text read again for
# every token
# ------------------------------------------------------------------------------------------------

NEVER = range(36, 40)  # the tokens of vision


@functools.cache
def tiny_model():
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]),
        ),
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32
        ),
        image_token_id=36,
        video_token_id=37,
        vision_start_token_id=38,
        vision_end_token_id=39,
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    rng = random.Random(11)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(
                    numbers(rng, *parameter.shape, low=-0.6, high=0.6, dtype=torch.float32)
                )
    return prepare(model).eval()


def text_prompt(ids):
    """A prompt without a video. Its patches are its own: prompts that share them share a clip."""
    return Prompt(torch.tensor(ids), torch.empty(0, 1176), [], [], "")


def texts(rng, *lengths):
    """Prompts of some lengths, in tokens: lists of ids."""
    return [[rng.randrange(36) for _ in range(n)] for n in lengths]


def seeds(rng, n):
    return [rng.randrange(1 << 30) for _ in range(n)]


def no_features(prompts):
    return [torch.empty(0, 32) for _ in prompts]


READ = {}  # what read_again knows already


@torch.no_grad()
def read_again(rows):
    """Log-probs (rows, V) of the token after each list of ids, each read from its beginning."""
    rows = [tuple(ids) for ids in rows]
    new = [list(ids) for ids in dict.fromkeys(rows) if ids not in READ]
    if new:
        logits = prefill(tiny_model(), [text_prompt(ids) for ids in new], no_features(new))[0]
        READ.update(zip(map(tuple, new), logits.log_softmax(dim=-1)))
    return torch.stack([READ[ids] for ids in rows])


def sample(function, prompts, G, C, stop, seeds=None, on_token=None):
    """The student's sample_groups on the tiny model.

    Returns completions, mask, log-probs (each (B, G, C)), and how many tokens were read.
    """
    prompts, read = [text_prompt(ids) for ids in prompts], []
    hook = tiny_model().model.language_model.embed_tokens.register_forward_hook(
        lambda module, args, out: read.append(args[0].numel())
    )
    try:
        generators = seeds and [torch.Generator().manual_seed(seed) for seed in seeds]
        got = function(
            tiny_model(), prompts, no_features(prompts), G, C, stop, generators, on_token
        )
    finally:
        hook.remove()
    need(
        isinstance(got, (tuple, list))
        and len(got) == 3
        and all(isinstance(x, torch.Tensor) for x in got),
        "three tensors are asked for: completions, mask, log-probs",
    )
    tokens, mask, logp = got
    B = len(prompts)
    need(
        all(x.ndim == 3 and tuple(x.shape[:2]) == (B, G) for x in got),
        f"all three should be (B, G, C), here ({B}, {G}, …); they are "
        + ", ".join(str(tuple(x.shape)) for x in got),
    )
    need(
        tokens.dtype == torch.int64
        and mask.dtype == torch.bool
        and logp.dtype in (torch.float32, torch.float64),
        f"int64, bool and float32 are asked for; they are {tokens.dtype}, {mask.dtype},"
        f" {logp.dtype}",
    )
    need(
        not logp.requires_grad,
        "the log-probs carry a gradient: sampling needs none, and its graph would fill the memory"
        " (torch.no_grad())",
    )
    need(
        not torch.isin(tokens, torch.tensor(NEVER)).any(),
        "a token of vision was sampled, which has probability 0",
    )
    return tokens, mask, logp, sum(read)


def greedy(function, prompts, G, C, stop):
    tokens, mask, logp, _ = sample(function, prompts, G, C, stop)
    return {"completions": tokens, "mask": mask, "log-probs": torch.where(mask, logp, 0.0)}


def slow_greedy(prompts, G, C, stop):
    rows = []
    for ids in prompts:
        tokens, logps = [], []
        while len(tokens) < C and not (tokens and tokens[-1] in stop):
            logp = read_again([ids + tokens])[0]
            tokens.append(int(logp.argmax()))
            logps.append(float(logp.max()))
        rows += [(tokens, logps)] * G
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = [tokens + [stop[0]] * (longest - len(tokens)) for tokens, _ in rows]
    mask = [[i < len(tokens) for i in range(longest)] for tokens, _ in rows]
    logps = [logps + [0.0] * (longest - len(logps)) for _, logps in rows]
    parts = {"completions": tokens, "mask": mask, "log-probs": logps}
    return {name: torch.tensor(x).view(len(prompts), G, longest) for name, x in parts.items()}


def sampled(function, prompts, G, room, stop, seeds):
    """What holds for any draw, as {property: value}.

    Each token's log-prob is what reading everything again gives, and masks and padding fit.
    """
    tokens, mask, logp, read = sample(function, prompts, G, room, stop, seeds)
    C, worst = tokens.shape[2], 0.0
    need(C > 0, "no tokens came back: the longest completion has 0")
    lengths_said, is_stop = mask.sum(dim=2, keepdim=True), torch.isin(tokens, torch.tensor(stop))
    # A completion ends with a stop token, or there was no more room.
    last = is_stop.gather(2, lengths_said.clamp_min(1) - 1)
    fits = (
        (mask == (torch.arange(C) < lengths_said)).all(dim=2)
        & ~(is_stop & mask)[:, :, :-1].logical_and(mask[:, :, 1:]).any(dim=2)
        & (last | (lengths_said == room))[:, :, 0]
    )
    for b, ids in enumerate(prompts):
        for i in range(C):
            again = read_again([ids + row[:i] for row in tokens[b].tolist()])
            again = again.gather(1, tokens[b, :, i, None])[:, 0]
            errors = (again - logp[b, :, i])[mask[b, :, i]].nan_to_num(99.0).abs().tolist()
            worst = max([worst, *errors])
    return {
        "largest error of a log-prob": round(worst, 3),
        "masks that do not go up to and with the first stop token": int((~fits).sum()),
        "padding that is not stop_ids[0]": int((tokens[~mask] != stop[0]).sum()),
        "C is the length of the longest": bool(mask.any(dim=0).any(dim=0).all()),
        "completions of a group that are all the same": bool((tokens == tokens[:, :1]).all()),
        "each prompt read once": read <= sum(map(len, prompts)) + len(prompts) * G * room,
    }


BY_CHANCE = "what chance does not explain"


def first_tokens(function, prompts, seeds, G, stop):
    tokens, *_ = sample(function, prompts, G, 1, stop, seeds)
    counts = torch.bincount(tokens.flatten(), minlength=40)
    probable = read_again(prompts)[0].double().exp()
    name = "the first token is {}".format
    return {BY_CHANCE: unexplained(counts, G * probable, [name(v) for v in range(40)])}


def second_tokens(function, prompts, seeds, G, stop):
    """Counts of pairs: the first token and the one after it, where the first did not end all."""
    tokens, *_ = sample(function, prompts, G, 2, stop, seeds)
    counts = torch.bincount((tokens[0] @ torch.tensor([40, 1])), minlength=1600).view(40, 40)
    (prompt,), firsts = prompts, [v for v in range(36) if v not in stop]
    first, second = read_again([prompt]), read_again([prompt + [v] for v in firsts])
    expected = G * (first[0, firsts, None] + second).double().exp()
    names = [f"{v} and then {w} are the first tokens" for v in firsts for w in range(40)]
    return {BY_CHANCE: unexplained(counts[firsts].flatten(), expected.flatten(), names)}


def later_tokens(function, prompts, seeds, G, C, stop):
    """Are tokens as improbable as they should be? −log p of a token is, on average, the entropy."""
    tokens, mask, *_ = sample(function, prompts, G, C, stop, seeds)
    (prompt,), odd = prompts, None
    for i in range(tokens.shape[2]):
        own = tokens[0][mask[0, :, i]]
        logp = read_again([prompt + row[:i] for row in own.tolist()]).double().clamp_min(-1e9)
        p = logp.exp()
        entropy = -(p * logp).sum(dim=1)
        variance = (p * logp**2).sum(dim=1) - entropy**2
        surprise = -logp.gather(1, own[:, i, None])[:, 0] - entropy
        if odd is None and surprise.sum().abs() > 5 * variance.sum().sqrt():
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


def neighbours(function, prompts, seeds, G, C):
    """seeds: of the two prompts, and one more."""
    same, (*seeds, another) = True, seeds
    together = sample(function, prompts, G, C, [35], seeds)[0]
    for b in range(2):
        alone = sample(function, prompts[b : b + 1], G, C, [35], seeds[b : b + 1])[0]
        n = min(together.shape[2], alone.shape[2])
        same = same and torch.equal(together[b, :, :n], alone[0, :, :n])
    other = sample(function, prompts[1:], G, C, [35], [another])[0]
    return {"alone as in company": same, "another seed gives others": not torch.equal(other, alone)}


def streamed(function, prompts, C):
    heard = []
    tokens, mask, *_ = sample(
        function,
        prompts,
        2,
        C,
        [35],
        on_token=lambda token: heard.append(torch.as_tensor(token).flatten().tolist()),
    )
    rows = [
        [step[i] for step in heard if i < len(step)][:n]
        for i, n in enumerate(mask.flatten(0, 1).sum(dim=1).tolist())
    ]
    own = [row[kept].tolist() for row, kept in zip(tokens.flatten(0, 1), mask.flatten(0, 1))]
    return {"on_token heard the completions": rows == own}


ALL_THE_SAME = "completions of a group that are all the same"
ONCE = "each prompt read once"
FINE = {  # what `sampled` gives of a right function
    "largest error of a log-prob": 0.0,
    "masks that do not go up to and with the first stop token": 0,
    "padding that is not stop_ids[0]": 0,
    "C is the length of the longest": True,
    ALL_THE_SAME: False,
    ONCE: True,
}


def sampling_in_words(how, prompts, G, C, stop):
    return (
        f"sample_groups, {how}: prompts of {' and '.join(str(len(p)) for p in prompts)} tokens,"
        f" group_size={G}, max_new_tokens={C}, stop_ids={stop}"
    )


def greedy_case(rng, lengths, settings, usually):
    """settings: G, C, stop."""
    args = (texts(rng, *lengths), *settings)
    shown = sampling_in_words("greedy (generators=None)", *args)
    return Case(args, slow_greedy, usually, call=greedy, shown=shown)


def sampled_case(rng, lengths, settings, usually):
    """settings: G, C, stop."""
    read_again = (
        "a prompt is read once: prefill the B prompts and repeat the logits, not the prompts; after"
        " that decode_step alone"
    )
    same = "every completion needs a random number of its own in every step"
    known = {(ONCE, False): read_again, (ALL_THE_SAME, True): same}
    args = (texts(rng, *lengths), *settings)
    shown = sampling_in_words("sampling", *args)
    return Case((*args, seeds(rng, len(lengths))), FINE, usually, known, call=sampled, shown=shown)


def sample_groups_cases():
    rng = random.Random(11)
    # With many tokens that stop, completions have all lengths.
    many = [*range(5, 36, 5), 0]
    interleave = (
        "row b·G + g is completion g of prompt b: repeat_interleave (a a b b), not repeat (a b a b)"
    )
    yield greedy_case(
        rng,
        [4],
        (1, 1, [35]),
        "the first token is the likeliest by prefill's logits; nothing is decoded yet",
    )
    yield greedy_case(
        rng,
        [4],
        (1, 5, [35]),
        "decode_step gets the token just chosen and its position: that from prefill for the first,"
        " one more for each next (position + step)",
    )
    yield greedy_case(
        rng,
        [4],
        (1, 12, many),
        "the mask goes up to and with the stop token, what follows is padded with stop_ids[0], and"
        " all is cut to the longest completion",
    )
    yield sampled_case(
        rng,
        [4],
        (3, 6, [35]),
        "completions of one prompt share its cache and nothing else: each row gets its own token,"
        " in every step; a log-prob is log softmax at the token that was drawn, without a"
        " temperature",
    )
    yield greedy_case(rng, [3, 6], (2, 4, [35]), interleave)
    yield sampled_case(
        rng,
        [4],
        (4, 12, many),
        "rows that have ended: from the stop token on they are padded with stop_ids[0], and all is"
        " cut to the longest completion",
    )
    yield sampled_case(rng, [3, 6], (3, 8, many), f"{interleave}, for logits and positions alike")
    yield sampled_case(
        rng,
        [6, 2, 4],
        (2, 6, [35]),
        "several prompts of different lengths: each row's positions continue its own prompt",
    )
    yield from random_number_cases(rng)
    yield Case(
        (texts(rng, 4), 5),
        {"on_token heard the completions": True},
        "on_token(token) is to be called in every step, where it is given, with the tokens of all"
        " rows",
        call=streamed,
        shown="sample_groups with on_token",
    )


def random_number_cases(rng):
    full = (
        "tokens must come from the full distribution at temperature 1: no top-k, no top-p, no"
        " temperature, no token kept out, and a random number of its own for every completion"
    )
    stop, again = [12, 5], " in every step; nor a penalty for what was said"
    for length, args, usually, call, which in (
        (4, (20000, stop), full, first_tokens, "first tokens of 20,000"),
        (5, (20000, stop), full + again, second_tokens, "first two tokens of 20,000"),
        (5, (400, 6, stop), full + again, later_tokens, "first six tokens of 400"),
    ):
        shown = f"the {which} completions, counted"
        args = (texts(rng, length), seeds(rng, 1), *args)
        yield Case(args, {BY_CHANCE: None}, usually, call=call, shown=shown)
    yield Case(
        (texts(rng, 4, 3), seeds(rng, 3), 3, 6),
        {"alone as in company": True, "another seed gives others": True},
        "each prompt draws from its own generator, as many numbers whoever is beside it; not all"
        " from the first, and not from the global one",
        call=neighbours,
        shown="sample_groups of two prompts together, and of each alone with the same generator",
    )


# ------------------------------------------------------------------------------------------------
# 12: packed attention. Slowly: query by query
# ------------------------------------------------------------------------------------------------


def slow_packed_attention(query, key, value, group, scale, attend):
    (G, C), (_, H, L, d) = group, query.shape
    P, share = query.shape[2] - G * C, H // key.shape[1]
    out = torch.zeros(1, H, L, d, dtype=query.dtype)
    for i in range(L):
        g = (i - P) // C if i >= P else None
        visible = [j for j in range(i + 1) if j < P or g is not None and (j - P) // C == g]
        for head in range(H):
            scores = [
                scale * sum((query[0, head, i] * key[0, head // share, j]).tolist())
                for j in visible
            ]
            weights = [math.exp(s) for s in scores]
            for w, j in zip(weights, visible):
                out[0, head, i] += w / sum(weights) * value[0, head // share, j]
    return out


GRADIENTS = ("gradient of query", "gradient of key", "gradient of value")


def prompt_gradient(function, query, key, value, group, scale, attend):
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    got = function(*inputs, group, scale, attend)
    return dict(zip(GRADIENTS, gradients(weighted_sum(got), *inputs)))


def slow_prompt_gradient(query, key, value, group, scale, attend):
    (G, C), L = group, query.shape[2]
    P = L - G * C
    completion = (torch.arange(L) - P).div(C, rounding_mode="floor").clamp_min(-1)
    same = completion[:, None] == completion
    mask = (torch.arange(L)[:, None] >= torch.arange(L)) & (same | (completion == -1))
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    scores = scale * inputs[0] @ inputs[1].transpose(2, 3)
    out = scores.masked_fill(~mask, -math.inf).softmax(dim=3) @ inputs[2]
    weighted_sum(out).backward()
    return dict(zip(GRADIENTS, (x.grad for x in inputs)))


def equal_scores_case(values, group, usually, known=None):
    value = t(*values).view(1, 1, -1, 1)
    zero = torch.zeros_like(value)
    shown = (
        "packed_attention with all scores equal (so that outputs are means of what is visible),"
        f" values {show(list(values))}, (G, C) = {group}, P = {len(values) - group[0] * group[1]}"
    )
    args = (zero, zero, value, group, 1.0, sdpa)
    return Case(args, slow_packed_attention, usually, known or {}, shown=shown)


def packed_attention_cases():
    yield from visible_cases()
    rng = random.Random(12)
    usually = (
        "heads, or the scale: key and value have K heads, each of which serves H / K query heads"
        " (attend takes care of it); pass scale on"
    )
    for H, K, P, G, C, d in (
        (1, 1, 2, 2, 2, 2),
        (2, 2, 1, 2, 3, 2),
        (4, 2, 3, 3, 2, 2),
        (4, 1, 4, 2, 3, 4),
    ):
        inputs = (numbers(rng, 1, heads, P + G * C, d, low=-2, high=2) for heads in (H, K, K))
        shown = (
            f"packed_attention of random numbers: H = {H}, K = {K}, P = {P}, (G, C) = ({G}, {C}),"
            f" d = {d}, scale = 0.7"
        )
        args = (*inputs, (G, C), 0.7, sdpa)
        yield Case(args, slow_packed_attention, usually, shown=shown)
    yield large_scores_case(rng)
    yield Case(
        (*(numbers(rng, 1, 2, 7, 2, low=-1, high=1) for _ in range(3)), (2, 2), 0.7, sdpa),
        slow_prompt_gradient,
        "gradients must flow from every completion into the prompt's keys and values: no detach"
        " there",
        call=prompt_gradient,
        shown="the gradients of packed_attention: P = 3, (G, C) = (2, 2)",
    )


def large_scores_case(rng):
    inputs = (numbers(rng, 1, 1, 4, 2, low=-2, high=2, dtype=torch.float32) for _ in range(3))
    return Case(
        (*inputs, (1, 2), 60.0, sdpa),
        slow_packed_attention,
        "large scores: exp overflows unless the largest score is taken off first, as softmax does",
        shown="packed_attention with large scores, float32: P = 2, (G, C) = (1, 2), scale = 60",
    )


def visible_cases():
    """What each token sees, told by means of the values that it sees."""
    upper_left_one = (
        "completions do not see themselves: aligned to the upper left, their first token sees one"
        " key, the prompt's"
    )
    upper_left = (
        "causality is aligned to the upper left (is_causal=True, torch.tril): with more keys than"
        " queries it must be aligned to the lower right"
    )
    siblings = "the second completion sees the first: siblings are hidden from each other"
    plain_causal = (
        "this is plain causal attention over the row: the second completion sees the first;"
        " siblings are hidden from each other"
    )
    future = "a completion sees its own future: the second call is causal too"
    hidden = "the prompt is hidden from the completions"
    mixed = (
        "the completions got mixed: completion g is the g-th stretch of C tokens,"
        " unflatten(1, (G, C))"
    )
    order = (
        "the outputs are in the wrong order: completion after completion, transpose before"
        " flattening"
    )
    yield equal_scores_case(
        (1, 3, 5),
        (2, 1),
        "the prompt sees itself; each completion sees the prompt and itself",
        {(1, 2, 3): siblings, (1, 1, 1): upper_left_one, (1, 3, 5): hidden},
    )
    yield equal_scores_case(
        (1, 2, 4, 8, 16),
        (2, 2),
        "token j of a completion sees the prompt and its completion's first j + 1 tokens",
        {
            (1, 1, 1.5, 1, 4.5): upper_left,
            (1, 1.5, 7 / 3, 3.75, 6.2): plain_causal,
            (1, 7 / 3, 7 / 3, 25 / 3, 25 / 3): future,
            (1, 2, 3, 8, 12): hidden,
            (1, 1.5, 11 / 3, 2.5, 7): mixed,
            (1, 1.5, 4.5, 7 / 3, 25 / 3): order,
        },
    )
    usually = "the prompt is causal on itself: no token of it sees a later one"
    yield equal_scores_case((1, 2, 4, 8, 16, 32), (2, 1), usually)
    usually = "a prompt that is only read has no completions, C = 0: what is left is the prompt"
    yield equal_scores_case((1, 2, 4), (1, 0), usually)
    usually = "a group of one: its completion sees the whole prompt and itself"
    yield equal_scores_case((1, 2, 4, 8, 16, 32, 64), (1, 2), usually)
