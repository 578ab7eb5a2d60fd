"""cases_model.py: the cases of exercises 8, 10 and 12, in this order."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from course.cases import Case, a_tensor, called_alone, gradients, need, numbers, show, t, written
from lib.attention import sdpa


def weighted_sum(x):
    """1 · first + 2 · second + …: a sum to which every number of x has another gradient."""
    return (x * torch.arange(1.0, 1 + x.numel(), dtype=x.dtype).view(x.shape)).sum()


def states_and_gradient(function, hidden, group):
    x = hidden.clone().requires_grad_()
    got = a_tensor(function(x, group))
    return {"states": got.detach().clone(), "gradient": gradients(weighted_sum(got), x)[0]}


def logprobs_and_gradient(function, logits, tokens):
    x = logits.clone().requires_grad_()
    got = function(x, tokens)
    pair = isinstance(got, (tuple, list)) and len(got) == 2
    need(
        pair and all(isinstance(x, torch.Tensor) for x in got),
        f"two tensors are asked for, log-probs and entropy; this is {show(got)}",
    )
    logp, entropy = got
    said = {"log-probs": logp.detach().clone(), "entropy": entropy.detach()}
    said["entropy carries a gradient"] = entropy.requires_grad
    return said | {"gradient of the log-probs": gradients(weighted_sum(logp), x)[0][:, :64]}


def token_logprobs_cases(rng):
    yield from predicting_states_cases()

    def case(logits, tokens, usually, known=None):
        tokens = torch.tensor(tokens)
        return Case((logits, tokens), usually, known or {}, call=logprobs_and_gradient)

    for (rows, dtype, tokens), usually, known in written("8"):
        yield case(t(*rows, dtype=getattr(torch, dtype)), tokens, usually, known)
    usually = "softmax over the last dimension, the vocabulary, and each row's own token"
    for n, V in ((2, 3), (3, 3), (5, 7), (8, 40), (1, 2)):
        logits = numbers(rng, n, V, low=-4, high=4, dtype=torch.float32)
        yield case(logits, [rng.randrange(V) for _ in range(n)], usually)
    logits = numbers(rng, 2, 151_936, low=-8, high=8, dtype=torch.float32)
    logits[:, rng.randrange(151_000)] += 16
    usually = "a vocabulary of 151,936 tokens: all of them count, the last one too"
    yield case(logits, [151_935, rng.randrange(151_000)], usually)


def predicting_states_cases():
    for (P, G, C, D), usually, known in written("8s"):
        hidden = torch.arange(float((P + G * C) * D)).view(-1, D)
        args, call = (hidden, (G, C)), states_and_gradient
        yield Case(args, usually, known, name="predicting_states", call=call)


VIDEO = 77


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


def positions_of(function, ids, grids, seconds, tokens_per_second, merge, video=VIDEO):
    vision = SimpleNamespace(spatial_merge_size=merge, tokens_per_second=tokens_per_second)
    config = SimpleNamespace(video_token_id=video, vision_config=vision)
    got = function(torch.where(ids == VIDEO, video, ids), grids, seconds, config)
    is_tensor = isinstance(got, torch.Tensor)
    given = f"{got.dtype} {tuple(got.shape)}" if is_tensor else show(got)
    need(
        is_tensor and tuple(got.shape) == (3, len(ids)) and got.dtype == torch.int64,
        f"an int64 tensor (3, {len(ids)}) is asked for; this is {given}",
    )
    return in_parts(ids, got)


def positions_case(pieces, grids, seconds, *settings, usually, known=None):
    """pieces: of the prompt, in order: the ids of some text, or how many tokens a video has."""
    rate, merge, video = (*settings, *(2, 2, VIDEO)[len(settings) :])
    ids, told = [], []
    for piece in pieces:
        is_video = isinstance(piece, int)
        ids += [VIDEO] * piece if is_video else piece
        told.append(f"{piece} video tokens" if is_video else f"{len(piece)} of text")
    shown = (
        f"mrope_positions(ids, grids={grids}, seconds_per_grid={seconds}, config),"
        f" {rate} tokens per second, {merge} × {merge} patches a token, ids: {', then '.join(told)}"
    )
    args = (torch.tensor(ids), grids, seconds, rate, merge, video)
    return Case(args, usually, known or {}, call=positions_of, shown=shown)


def mrope_positions_cases(rng):
    for (pieces, grids, *others), usually, known in written("10"):
        grids = [tuple(grid) for grid in grids]
        yield positions_case(pieces, grids, *others, usually=usually, known=known)
    usually = "a long video: positions go on, there is no largest"
    yield positions_case([[7] * 3000, 384, [8]], [(384, 2, 2)], [1.828125], usually=usually)
    usually = "which token stands for video is in the config: video_token_id"
    yield positions_case([[7], 2, [8]], [(1, 2, 4)], [1.0], 2, 2, 151_656, usually=usually)
    for _ in range(40):
        rate, merge = rng.choice((1, 2, 4, 25)), rng.choice((1, 2, 3))
        usually = "each video its own start, grid and seconds"
        yield positions_case(*random_videos(rng, rate, merge), rate, merge, usually=usually)


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


GRADIENTS = ("gradient of query", "gradient of key", "gradient of value")


def output_and_gradients(function, query, key, value, group, scale, attend):
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    got = a_tensor(function(*inputs, group, scale, attend))
    said = {"output": got.detach().clone()}
    return said | dict(zip(GRADIENTS, gradients(weighted_sum(got), *inputs)))


def kernel_by_hand(query, key, value, scale, causal=False):
    """Another kernel for `attend`: the same numbers as lib.attention.sdpa, by plain products."""
    share, (n, m) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
    scores = scale * query @ key.transpose(2, 3)
    if causal:
        scores = scores.masked_fill(~torch.ones(n, m).bool().tril(m - n), -torch.inf)
    return scores.softmax(dim=-1) @ value


class Kernels(TorchFunctionMode):
    """Counts calls of PyTorch's own attention."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function is F.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


OTHER_KERNEL = "it calls another kernel than the one it was given"


def output_with_kernel(function, *args):
    with Kernels() as kernels:
        output = function(*args)
    return {"output": output, OTHER_KERNEL: kernels.calls > 0}


def packed_attention_cases(rng):
    for (values, (G, C)), usually, known in written("12"):  # values tell what each token sees
        value = t(*values).view(1, 1, -1, 1)
        shown = (
            "packed_attention with all scores equal (so that outputs are means of what is visible),"
            f" values {show(values)}, (G, C) = ({G}, {C}), P = {len(values) - G * C}"
        )
        args = (torch.zeros_like(value), torch.zeros_like(value), value, (G, C), 1.0, sdpa)
        yield Case(args, usually, known, shown=shown)

    def case(sizes, scale, attend, usually, call=output_and_gradients, dtype=None):
        H, K, P, G, C, d = sizes
        shapes = [(1, heads, P + G * C, d) for heads in (H, K, K)]
        tensors = [numbers(rng, *shape, low=-2, high=2, dtype=dtype) for shape in shapes]
        shown = f"packed_attention of random numbers: H = {H}, K = {K}, P = {P}, G = {G}, C = {C}"
        shown += f", d = {d}, scale = {scale}"
        return Case((*tensors, (G, C), scale, attend), usually, call=call, shown=shown)

    for (sizes, scales), usually, _ in written("12r"):
        yield case(sizes, rng.choice(scales), sdpa, usually)
    for (sizes, scale, dtype), usually, _ in written("12l"):
        yield case(sizes, scale, sdpa, usually, called_alone, getattr(torch, dtype))
    usually = "`attend` is the kernel that the run was started with: call it, and no other"
    yield case((4, 2, 3, 2, 2, 2), 0.7, kernel_by_hand, usually, call=output_with_kernel)
