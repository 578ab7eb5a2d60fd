"""checks_model.py: the cases of the exercises that live where the model is: 8, 10, 11 and 12. How
they work: checks.py.
"""

import functools
import math
import random
from types import SimpleNamespace

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from course.checks import Case, gradients, need, numbers, show, t
from data import Prompt
from model import prefill, prepare, sdpa

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


def states_gradient(function, hidden, group):
    x = hidden.clone().requires_grad_()
    got = function(x, group)
    return {
        "states": got,
        "gradient": gradients((got * torch.arange(1.0, 1 + got.numel()).view(got.shape)).sum(), x)[
            0
        ],
    }


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
    def states(P, G, C, D, usually, known=None):
        hidden = torch.arange(float((P + G * C) * D)).view(-1, D)
        return Case(
            (hidden, (G, C)), slow_predicting_states, usually, known or {}, name="predicting_states"
        )

    late = "the state at the token itself predicts the token after it: one place too late"
    yield states(
        1,
        2,
        2,
        1,
        "the state before each token: the prompt's last one for every first token, then the"
        " completion's own",
        {
            (1, 2, 3, 4): late,
            (
                0,
                1,
                2,
                3,
            ): (
                "shifting the whole row by one gives the second completion's first token to the end"
                " of the first: every first token is predicted by the prompt's last state"
            ),
            (
                0,
                1,
                0,
                2,
            ): (
                "the completions got mixed: completion g is the g-th stretch of C states after the"
                " prompt"
            ),
        },
    )
    yield states(
        3,
        2,
        1,
        1,
        "with one token each, all are predicted by the prompt's last state",
        {(3, 4): late, (0, 0): "hidden[0] is the prompt's first state; its last is hidden[P − 1]"},
    )
    for P, G, C, D in ((2, 2, 2, 2), (3, 4, 3, 2), (5, 3, 6, 4)):
        yield states(P, G, C, D, "completion g is the g-th stretch of C states after the prompt")
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

    def case(
        logits,
        tokens,
        usually,
        known=None,
        call=lambda f, *args: pair_of(f(*args)),
        want=slow_token_logprobs,
    ):
        return Case((logits, torch.tensor(tokens)), want, usually, known or {}, call=call)

    yield case(
        t([0.0, math.log(3)], dtype=torch.float32),
        [1],
        "log softmax over the vocabulary, at the token; entropy −Σ p log p in nats",
        {
            (
                "log-probs",
                0.0,
            ): (
                "softmax over the wrong dimension: each row is a distribution over the vocabulary,"
                " dim=-1"
            ),
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


# ------------------------------------------------------------------------------------------------
# 10: positions. Slowly: token by token
# ------------------------------------------------------------------------------------------------

VIDEO = 99


def config_with(tokens_per_second=2):
    return SimpleNamespace(
        video_token_id=VIDEO,
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second),
    )


def in_parts(ids, positions):
    """Positions (3, P) by what they belong to, so that a message can say where they are wrong."""
    is_video = (ids == VIDEO).tolist()
    first = is_video.index(True) if True in is_video else len(ids)
    video = [i for i, v in enumerate(is_video) if v]
    return {
        "text before the video": positions[:, :first],
        "time of the video's tokens": positions[0, video],
        "rows of the video's tokens": positions[1, video],
        "columns of the video's tokens": positions[2, video],
        "text after the video": positions[
            :, [i for i in range(first, len(ids)) if not is_video[i]]
        ],
    }


def positions_of(function, ids, grids, seconds, tokens_per_second):
    got = function(ids, grids, seconds, config_with(tokens_per_second))
    need(
        isinstance(got, torch.Tensor)
        and tuple(got.shape) == (3, len(ids))
        and got.dtype == torch.int64,
        f"an int64 tensor (3, {len(ids)}) is asked for; this is "
        + (f"{got.dtype} {tuple(got.shape)}" if isinstance(got, torch.Tensor) else show(got)),
    )
    return in_parts(ids, got)


def slow_positions(ids, grids, seconds, tokens_per_second):
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
            for r in range(h // 2)
            for c in range(w // 2)
        ]
        rows, i, start = rows + cells, i + len(cells), max(map(max, cells)) + 1
    return in_parts(ids, torch.tensor(rows).T.contiguous().view(3, -1))


def mrope_positions_cases():
    def case(pieces, grids, seconds, usually, known=None, tokens_per_second=2):
        ids = torch.tensor([
            i for piece in pieces for i in ([VIDEO] * piece if isinstance(piece, int) else piece)
        ])
        shown = (
            f"mrope_positions(ids, grids={grids}, seconds_per_grid={seconds}, config),"
            f" {tokens_per_second} tokens per second, ids: "
            + ", then ".join(
                f"{p} video tokens" if isinstance(p, int) else f"{len(p)} of text" for p in pieces
            )
        )
        return Case(
            (ids, grids, seconds, tokens_per_second),
            slow_positions,
            usually,
            known or {},
            call=positions_of,
            shown=shown,
        )

    yield case([[7, 8]], [], [], "text alone counts all three positions up together: 0, 1, …")
    counted = (
        "tokens were counted: text continues after the largest *position*, and many video tokens"
        " share one"
    )
    unmoved = "the video's own start is missing: positions go on from the text before it"
    swapped = "h and w are swapped: the grid is (t, h, w), and the tokens of a frame go row by row"
    yield case(
        [[7], 2, [8]],
        [(1, 2, 4)],
        [1.0],
        "grids count patches, 2 × 2 of them a token; h is rows, w columns",
        {
            ("rows of the video's tokens", (1, 2)): swapped,
            (
                "text after the video",
                (2, 2, 2),
            ): "one too few: the next position is the largest so far + 1",
            ("time of the video's tokens", (0, 0)): unmoved,
            ("rows of the video's tokens", (0, 0)): unmoved,
        },
    )
    yield case(
        [[7], 6, [8]],
        [(1, 4, 6)],
        [1.0],
        swapped,
        {
            ("text after the video", (7, 7, 7)): counted,
            (
                "text after the video",
                (3, 3, 3),
            ): "the rows alone were looked at: the largest position of all three axes + 1",
        },
    )
    yield case(
        [[7], 12, [8]],
        [(3, 4, 4)],
        [1.0],
        "the text after a video continues at the largest position so far, on any of the three"
        " axes, + 1",
        {
            (
                3,
                3,
                3,
            ): (
                "this is what transformers ≥ 5.3 does, start + max(h, w) / 2, inside the video; the"
                " text continues at the largest position so far + 1, here the time's"
            ),
            (13, 13, 13): counted,
            (
                0,
                0,
                0,
                0,
                1,
                1,
                1,
                1,
                2,
                2,
                2,
                2,
            ): (
                "the video starts at the next free position, and pair k lies k · seconds ·"
                " tokens_per_second after that"
            ),
            (
                1,
                1,
                1,
                1,
                2,
                2,
                2,
                2,
                3,
                3,
                3,
                3,
            ): "pairs were counted: time is k · seconds_per_grid · tokens_per_second",
            (0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4): unmoved,
        },
    )
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
    yield case(
        [[7], 2, [8]],
        [(2, 2, 2)],
        [0.25],
        "a video slower than the text: pairs may share a position",
    )
    yield case(
        [2, [8]],
        [(1, 2, 4)],
        [1.0],
        "a video at the very beginning starts at 0; here the columns reach farther than the time",
    )
    yield case(
        [[7, 7], 4, [8], 12, [9, 9]],
        [(2, 4, 2), (3, 2, 8)],
        [1.0, 0.5],
        "a second video starts at the next free position after the text between, and has its own"
        " grid and seconds",
    )
    yield case(
        [[1, 2, 3], 40, [4, 5, 6, 7, 8]],
        [(10, 4, 4)],
        [1.0],
        "the text after the video starts at 40 here: 3 + 9 · 4 + 1",
        tokens_per_second=4,
    )
    rng = random.Random(10)
    for _ in range(40):
        pieces, grids, seconds = [[7] * rng.randrange(1, 4)], [], []
        for _ in range(rng.randrange(1, 4)):
            grid = (rng.randrange(1, 5), 2 * rng.randrange(1, 4), 2 * rng.randrange(1, 4))
            grids, seconds = grids + [grid], seconds + [rng.choice([0.3, 0.55, 1.0, 1.7])]
            pieces += [math.prod(grid) // 4, [8] * rng.randrange(1, 4)]
        yield case(pieces, grids, seconds, "each video its own start, grid and seconds")


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
    return Prompt(torch.tensor(ids), None, [], [], "")


def prompts_of(lengths):
    return [[(7 * b + 3 * i + i * i) % 36 for i in range(n)] for b, n in enumerate(lengths)]


def no_features(prompts):
    return [torch.empty(0, 32) for _ in prompts]


@functools.cache
@torch.no_grad()
def next_logprobs(ids):
    return prefill(tiny_model(), [text_prompt(list(ids))], no_features([ids]))[0].log_softmax(
        dim=-1
    )


def read_again(rows):
    """Log-probs (rows, V) of the next token after each list of ids, each read from its beginning."""
    return torch.cat([next_logprobs(tuple(ids)) for ids in rows])


def sample(function, prompts, G, C, stop, seeds=None, on_token=None):
    """The student's sample_groups on the tiny model: completions, mask, log-probs, and how many
    tokens were read.
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
        f"all three should be (B, G, C), here ({B}, {G}, …); they are"
        f" {', '.join(str(tuple(x.shape)) for x in got)}",
    )
    need(
        tokens.dtype == torch.int64 and mask.dtype == torch.bool and logp.dtype == torch.float32,
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


def greedy(function, lengths, G, C, stop):
    tokens, mask, logp, _ = sample(function, prompts_of(lengths), G, C, stop)
    return {"completions": tokens, "mask": mask, "log-probs": torch.where(mask, logp, 0.0)}


def slow_greedy(lengths, G, C, stop):
    rows = []
    for ids in prompts_of(lengths):
        tokens, logps = [], []
        while len(tokens) < C and not (tokens and tokens[-1] in stop):
            logp = read_again([ids + tokens])[0]
            tokens.append(int(logp.argmax()))
            logps.append(float(logp.max()))
        rows += [(tokens, logps)] * G
    longest = max(len(tokens) for tokens, _ in rows)
    B = len(lengths)
    return {
        "completions": (
            torch.tensor([tokens + [stop[0]] * (longest - len(tokens)) for tokens, _ in rows]).view(
                B, G, longest
            )
        ),
        "mask": (
            torch.tensor([[i < len(tokens) for i in range(longest)] for tokens, _ in rows]).view(
                B, G, longest
            )
        ),
        "log-probs": (
            torch.tensor([logps + [0.0] * (longest - len(logps)) for _, logps in rows]).view(
                B, G, longest
            )
        ),
    }


def sampled(function, lengths, G, room, stop, seeds):
    """What holds for any draw: each token's log-prob is what reading everything again gives, and
    masks and padding fit.
    """
    tokens, mask, logp, read = sample(function, prompts_of(lengths), G, room, stop, seeds)
    C, worst = tokens.shape[2], 0.0
    need(C > 0, "no tokens came back: the longest completion has 0")
    lengths_said, is_stop = mask.sum(dim=2, keepdim=True), torch.isin(tokens, torch.tensor(stop))
    last = is_stop.gather(
        2, lengths_said.clamp_min(1) - 1
    )  # a completion ends with a stop token, or there was no more room
    fits = (
        (mask == (torch.arange(C) < lengths_said)).all(dim=2)
        & ~(is_stop & mask)[:, :, :-1].logical_and(mask[:, :, 1:]).any(dim=2)
        & (last | (lengths_said == room))[:, :, 0]
    )
    for b, ids in enumerate(prompts_of(lengths)):
        for i in range(C):
            again = read_again([ids + row[:i] for row in tokens[b].tolist()]).gather(
                1, tokens[b, :, i, None]
            )[:, 0]
            worst = max(
                worst,
                (
                    float((again - logp[b, :, i])[mask[b, :, i]].nan_to_num(99.0).abs().max())
                    if mask[b, :, i].any()
                    else 0.0
                ),
            )
    return {
        "largest error of a log-prob": round(worst, 2),
        "masks that do not go up to and with the first stop token": int((~fits).sum()),
        "padding that is not stop_ids[0]": int((tokens[~mask] != stop[0]).sum()),
        "C is the length of the longest": bool(mask.any(dim=0).any(dim=0).all()),
        "completions of a group that are all the same": bool((tokens == tokens[:, :1]).all()),
        "each prompt read once": read <= sum(lengths) + len(lengths) * G * room,
    }


def frequencies(function, lengths, G):
    tokens, *_ = sample(function, prompts_of(lengths), G, 1, [35], [5])
    seen = torch.bincount(tokens.flatten(), minlength=40) / G
    return {
        "as often as it is probable": bool(
            0.5 * (seen - read_again(prompts_of(lengths))[0].exp()).abs().sum() < 0.06
        )
    }


def neighbours(function, lengths, G, C):
    prompts, same = prompts_of(lengths), True
    together = sample(function, prompts, G, C, [35], [5, 6])[0]
    for b in range(2):
        alone = sample(function, prompts[b : b + 1], G, C, [35], [5 + b])[0]
        n = min(together.shape[2], alone.shape[2])
        same = same and torch.equal(together[b, :, :n], alone[0, :, :n])
    other = sample(function, prompts[1:], G, C, [35], [7])[0]
    return {"alone as in company": same, "another seed gives others": not torch.equal(other, alone)}


def streamed(function, lengths, C):
    heard = []
    tokens, mask, *_ = sample(
        function, prompts_of(lengths), 1, C, [35], on_token=lambda token: heard.append(int(token))
    )
    return {"on_token heard the completion": heard[: int(mask.sum())] == tokens[mask].tolist()}


def sample_groups_cases():
    many = list(range(0, 36, 5))  # with many tokens that stop, completions have all lengths
    fine = {
        "largest error of a log-prob": 0.0,
        "masks that do not go up to and with the first stop token": 0,
        "padding that is not stop_ids[0]": 0,
        "C is the length of the longest": True,
        "completions of a group that are all the same": False,
        "each prompt read once": True,
    }

    def shown(what, lengths, G, C, stop):
        return (
            f"sample_groups, {what}: prompts of {' and '.join(map(str, lengths))} tokens,"
            f" group_size={G}, max_new_tokens={C}, stop_ids={stop}"
        )

    def take(lengths, G, C, stop, usually):
        return Case(
            (lengths, G, C, stop),
            slow_greedy,
            usually,
            call=greedy,
            shown=shown("greedy (generators=None)", lengths, G, C, stop),
        )

    def draw(lengths, G, C, stop, usually):
        known = {
            (
                "each prompt read once",
                False,
            ): (
                "a prompt is read once: prefill the B prompts and repeat the logits, not the"
                " prompts; after that decode_step alone"
            ),
            (
                "completions of a group that are all the same",
                True,
            ): "every completion needs a random number of its own in every step",
        }
        return Case(
            (lengths, G, C, stop, [3, 4, 5][: len(lengths)]),
            fine,
            usually,
            known,
            call=sampled,
            shown=shown("sampling", lengths, G, C, stop),
        )

    yield take(
        [4],
        1,
        1,
        [35],
        "the first token is the likeliest by prefill's logits; nothing is decoded yet",
    )
    yield take(
        [4],
        1,
        5,
        [35],
        "decode_step gets the token just chosen and its position: that from prefill for the first,"
        " one more for each next (position + step)",
    )
    yield take(
        [4],
        1,
        12,
        many,
        "the mask goes up to and with the stop token, what follows is padded with stop_ids[0], and"
        " all is cut to the longest completion",
    )
    yield draw(
        [4],
        3,
        6,
        [35],
        "completions of one prompt share its cache and nothing else: each row gets its own token,"
        " in every step; a log-prob is log softmax at the token that was drawn, without a"
        " temperature",
    )
    yield take(
        [3, 6],
        2,
        4,
        [35],
        "row b·G + g is completion g of prompt b: repeat_interleave (a a b b), not repeat (a b"
        " a b)",
    )
    yield draw(
        [4],
        4,
        12,
        many,
        "rows that have ended: from the stop token on they are padded with stop_ids[0], and all is"
        " cut to the longest completion",
    )
    yield draw(
        [3, 6],
        3,
        8,
        many,
        "row b·G + g is completion g of prompt b: repeat_interleave (a a b b), not repeat (a b a"
        " b), for logits and positions alike",
    )
    yield draw(
        [6, 2, 4],
        2,
        6,
        [35],
        "several prompts of different lengths: each row's positions continue its own prompt",
    )
    yield Case(
        ([4], 4000),
        {"as often as it is probable": True},
        "tokens must come from the full distribution at temperature 1: no top-k, no temperature,"
        " and a number of its own for every completion",
        call=frequencies,
        shown="the first tokens of 4,000 completions, counted",
    )
    yield Case(
        ([4, 3], 3, 6),
        {"alone as in company": True, "another seed gives others": True},
        "each prompt draws from its own generator, as many numbers whoever is beside it; not all"
        " from the first, and not from the global one",
        call=neighbours,
        shown="sample_groups of two prompts together, and of each alone with the same generator",
    )
    yield Case(
        ([4], 5),
        {"on_token heard the completion": True},
        "on_token(token) is to be called in every step, where it is given",
        call=streamed,
        shown="sample_groups with on_token",
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


def prompt_gradient(function, query, key, value, group, scale, attend):
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    got = function(*inputs, group, scale, attend)
    return dict(
        zip(
            ("gradient of query", "gradient of key", "gradient of value"),
            gradients((got * torch.arange(1.0, 1 + got.numel()).view(got.shape)).sum(), *inputs),
        )
    )


def slow_prompt_gradient(query, key, value, group, scale, attend):
    (G, C), L = group, query.shape[2]
    P = L - G * C
    own = (torch.arange(L) - P).div(C, rounding_mode="floor").clamp_min(-1)
    mask = (torch.arange(L)[:, None] >= torch.arange(L)) & ((own[:, None] == own) | (own == -1))
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    weights = (
        (scale * inputs[0] @ inputs[1].transpose(2, 3)).masked_fill(~mask, -math.inf).softmax(dim=3)
    )
    out = weights @ inputs[2]
    (out * torch.arange(1.0, 1 + out.numel()).view(out.shape)).sum().backward()
    return dict(
        zip(("gradient of query", "gradient of key", "gradient of value"), (x.grad for x in inputs))
    )


def packed_attention_cases():
    def plain(values, group, usually, known=None):
        value = t(*values).view(1, 1, -1, 1)
        shown = (
            "packed_attention with all scores equal (so that outputs are means of what is"
            f" visible), values {show(list(values))}, (G, C) = {group}, P ="
            f" {len(values) - group[0] * group[1]}"
        )
        return Case(
            (torch.zeros_like(value), torch.zeros_like(value), value, group, 1.0, sdpa),
            slow_packed_attention,
            usually,
            known or {},
            shown=shown,
        )

    yield plain(
        (1, 3, 5),
        (2, 1),
        "the prompt sees itself; each completion sees the prompt and itself",
        {
            (
                1,
                2,
                9 / 3,
            ): "the second completion sees the first: siblings are hidden from each other",
            (
                1,
                1,
                1,
            ): (
                "completions do not see themselves: aligned to the upper left, their first token"
                " sees one key, the prompt's"
            ),
            (1, 3, 5): "the prompt is hidden from the completions",
        },
    )
    yield plain(
        (1, 2, 4, 8, 16),
        (2, 2),
        "token j of a completion sees the prompt and its completion's first j + 1 tokens",
        {
            (
                1,
                1,
                1.5,
                1,
                4.5,
            ): (
                "causality is aligned to the upper left (is_causal=True, torch.tril): with more"
                " keys than queries it must be aligned to the lower right"
            ),
            (
                1,
                1.5,
                7 / 3,
                3.75,
                6.2,
            ): (
                "this is plain causal attention over the row: the second completion sees the first;"
                " siblings are hidden from each other"
            ),
            (
                1,
                7 / 3,
                7 / 3,
                25 / 3,
                25 / 3,
            ): "a completion sees its own future: the second call is causal too",
            (1, 2, 3, 8, 12): "the prompt is hidden from the completions",
            (
                1,
                1.5,
                11 / 3,
                2.5,
                7,
            ): (
                "the completions got mixed: completion g is the g-th stretch of C tokens,"
                " unflatten(1, (G, C))"
            ),
            (
                1,
                1.5,
                4.5,
                7 / 3,
                25 / 3,
            ): (
                "the outputs are in the wrong order: completion after completion, transpose before"
                " flattening"
            ),
        },
    )
    yield plain(
        (1, 2, 4, 8, 16, 32),
        (2, 1),
        "the prompt is causal on itself: no token of it sees a later one",
    )
    rng = random.Random(12)
    for H, K, P, G, C, d in (
        (1, 1, 2, 2, 2, 2),
        (2, 2, 1, 2, 3, 2),
        (4, 2, 3, 3, 2, 2),
        (4, 1, 4, 2, 3, 4),
    ):
        L = P + G * C
        args = (
            numbers(rng, 1, H, L, d, low=-2, high=2),
            numbers(rng, 1, K, L, d, low=-2, high=2),
            numbers(rng, 1, K, L, d, low=-2, high=2),
            (G, C),
            0.7,
            sdpa,
        )
        yield Case(
            args,
            slow_packed_attention,
            "heads, or the scale: key and value have K heads, each of which serves H / K query"
            " heads (attend takes care of it); pass scale on",
            shown=(
                f"packed_attention of random numbers: H = {H}, K = {K}, P = {P}, (G, C) = ({G},"
                f" {C}), d = {d}, scale = 0.7"
            ),
        )
    args = (*(numbers(rng, 1, 2, 7, 2, low=-1, high=1) for _ in range(3)), (2, 2), 0.7, sdpa)
    yield Case(
        args,
        slow_prompt_gradient,
        "gradients must flow from every completion into the prompt's keys and values: no detach"
        " there",
        call=prompt_gradient,
        shown="the gradients of packed_attention: P = 3, (G, C) = (2, 2)",
    )
