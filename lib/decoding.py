"""decoding.py: the keys and values that sampling goes on from, and the same tokens, sooner.

Sampling calls `decode_step` (model.py) once per token. On a GPU most of that time goes into
starting kernels; on a CPU, into completions that have long ended and threads that wait for each
other. These remedies change no number, so grpo.py does not have to know of them:

    all    sharded weights are gathered once (gathered), adapters cast once (adapters_ready)
    GPU    the step is recorded once as a CUDA graph and replayed (record)
    CPU    completions that have ended leave the batch (worth_keeping), and a small model runs on
           one thread (threads_for_one_token)
"""

import sys
from contextlib import contextmanager
from functools import cache as once
from functools import partial

import torch
import torch.nn.functional as F

from lib.adapters import adapters_ready
from lib.errors import first_line

# Whether all completions have ended is known on the GPU. Asking synchronises CPU and GPU, so it is
# done only every 16th token.
ASK_EVERY = 16
# Every 4th token, a CPU looks whether a narrower batch is worth copying the cache for.
NARROW_EVERY = 4


class GroupCache:
    """Keys and values of prompts, each held once, and of the rows that go on from them.

    lengths: of each of B prompts (P, [how long each of its Q branches is]); T: the longest branch.
    (In training Q = 1 and T = 0; evaluation/clips.py has others.) While prompts are read,
    `read[layer]` gets one ((1, K, P + Q·T, d), the same) for each. After start_decoding,
    `prompt[layer]` is ((B, K, P, d), the same), padded on the left to the longest, and
    `completions[layer]` (B·Q·G, K, T + C, d): each row's branch, then room for its completion. mask
    (B·Q·G, P + T + C) hides with −inf the padding and the places not yet written; length, a tensor:
    how many of the T + C are written.
    """

    def __init__(self, lengths):
        self.lengths, self.read, self.prompt, self.completions = lengths, {}, {}, {}

    def update(self, key, value, layer, *_, **__):
        """Called by transformers' layers while a prompt is read."""
        self.read.setdefault(layer, []).append((key, value))
        return key, value

    def start_decoding(self, group_size, max_new_tokens):
        """Makes room for group_size completions of each prompt."""
        shapes = [(P, len(branches), max(branches)) for P, branches in self.lengths]
        longest, _, self.tail = (max(numbers) for numbers in zip(*shapes))
        places = self.tail + max_new_tokens  # of a row, after what it shares

        def prompts(tensors):  # B of (1, K, P + Q·T, d) → (B, K, P, d)
            cut = [x[:, :, :P] for x, (P, _, _) in zip(tensors, shapes)]
            return torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in cut])

        def rests(tensors):  # → (B·Q·G, K, T + C, d). Zeros, as 0 · NaN of masked places is NaN
            each = [x[0, :, P:].unflatten(1, (Q, T)) for x, (P, Q, T) in zip(tensors, shapes)]
            room = [F.pad(x, (0, 0, 0, places - x.shape[2])) for x in each]
            return torch.cat(room, dim=1).transpose(0, 1).repeat_interleave(group_size, dim=0)

        for layer in list(self.read):
            keys, values = zip(*self.read.pop(layer))
            self.prompt[layer] = prompts(keys), prompts(values)
            self.completions[layer] = rests(keys), rests(values)
        mask = torch.full((sum(Q for _, Q, _ in shapes), longest + places), -torch.inf)
        own = [(P, n) for P, branches in self.lengths for n in branches]
        for row, (P, n) in enumerate(own):
            mask[row, longest - P : longest + n] = 0.0
        self.mask = mask.repeat_interleave(group_size, dim=0).to(keys[0])
        self.length = torch.full((1,), self.tail, device=keys[0].device)

    @property
    def shape(self):
        """(B, Q·G): the prompts, and the rows of each."""
        prompts, rows = len(self.prompt[0][0]), len(self.completions[0][0])
        return prompts, rows // prompts

    @property
    def prompt_length(self):
        return self.prompt[0][0].shape[2]


@contextmanager
def fast_decoding(decode_step, model, cache):
    """Gives next_logits(tokens, positions, alive) → logits (B·G, V) of every row's next token.

    Args:    decode_step: model.decode_step, which does the work; cache: a GroupCache after
             start_decoding, of B prompts and G completions of each.
    Args of next_logits: tokens (B·G,) just sampled; positions (B·G,) of them; alive (B·G,) bool:
             which completions have not ended. For the others its logits mean nothing. It returns
             None once no completion is alive (on a GPU up to ASK_EVERY tokens later).
    """
    with gathered(model), adapters_ready(model), threads_for_one_token(model):
        yield Decoding(partial(decode_step, model, cache), cache)


class Decoding:
    """next_logits of fast_decoding. rows (B', G'): the completions that are still in the batch, by
    what they share."""

    def __init__(self, step, cache):
        self.step, self.cache, self.steps = step, cache, 0
        self.rows = torch.arange(len(cache.mask)).view(cache.shape)

    def __call__(self, tokens, positions, alive):
        self.steps += 1
        on_cpu = tokens.device.type == "cpu"
        if (on_cpu or self.steps % ASK_EVERY == 0) and not alive.any():
            return None
        if self.steps == 1 and can_record(tokens.device):
            self.step = recorded_or_plain(self.step, self.cache, tokens, positions)
        if on_cpu and self.steps % NARROW_EVERY == 0:
            self.narrow(alive)
        if self.rows.numel() == len(tokens):
            return self.step(tokens, positions)
        rows = self.rows.flatten()
        logits = self.step(tokens[rows], positions[rows])
        return logits.new_zeros(len(tokens), logits.shape[1]).index_copy_(0, rows, logits)

    def narrow(self, alive):
        """Drops ended completions from the batch where that is worth it."""
        kept = worth_keeping(alive[self.rows])
        if kept is not None:
            keep(self.cache, kept)
            self.rows = self.rows.flatten()[kept]


def worth_keeping(alive):
    """Which rows of the batch to go on with, if a narrower batch is worth copying the cache for.

    Args:    alive (B, G): which completions have not ended yet.
    Returns: (B', G') numbers of rows. The prompts with living completions stay, each with its
             living ones first, filled up with ended ones to the same width. None if that would
             save less than a quarter.

    >>> alive = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 1]]).bool()
    >>> worth_keeping(alive).tolist()
    [[0, 2], [8, 6]]
    """
    prompts, most = alive.any(dim=1), int(alive.sum(dim=1).max())
    if int(prompts.sum()) * most > 0.75 * alive.numel():
        return None
    living_first = alive.int().argsort(dim=1, descending=True, stable=True)
    return torch.arange(alive.numel()).view(alive.shape).gather(1, living_first)[prompts, :most]


def keep(cache, rows):
    """Keeps only some completions of a GroupCache.

    rows (B', G'): their indices among all B·G, one row per prompt.
    """
    prompts = rows[:, 0] // cache.shape[1]
    rows = rows.flatten()
    cache.mask = cache.mask[rows]
    for layer, (keys, values) in cache.prompt.items():
        cache.prompt[layer] = keys[prompts], values[prompts]
    for layer, (keys, values) in cache.completions.items():
        cache.completions[layer] = keys[rows], values[rows]


def rewind(cache):
    """Forgets all tokens of a GroupCache's completions."""
    cache.length.fill_(cache.tail)
    cache.mask[:, cache.prompt_length + cache.tail :] = float("-inf")


@contextmanager
def gathered(model):
    """Gathers the weights of a sharded model (lib/sharding.py) in every process, once per rollout
    and not once for each of a thousand tokens. For weights that are whole it does nothing."""
    units = [m for m in model.modules() if hasattr(m, "unshard")]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


@contextmanager
def threads_for_one_token(model):
    """One CPU thread for the decoding of a small model, whose products are done before a second
    thread has woken up.

    (The toy on 2 cores, one decoding step: one thread 2.9 ms; two threads that sleep while they
    wait 6 ms; two that spin 2.5 ms, but 60 ms as soon as anything else runs on the machine.)
    """
    threads = torch.get_num_threads()
    if model.device.type == "cpu" and model.config.text_config.hidden_size < 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------
# The CUDA graph
# ------------------------------------------------------------------------------------------------


FAILED = []  # why a step could not be recorded; then no rollout of this process tries again


def can_record(device):
    return device.type == "cuda"


def recorded_or_plain(step, cache, tokens, positions):
    """The recorded step. Where recording fails, one line says why, and all go on with the plain
    step: another attempt would fail as well, and each may leave its memory behind."""
    if FAILED:
        return step
    try:
        return record(step, cache, tokens, positions)
    except RuntimeError as e:
        rewind(cache)
        FAILED.append(first_line(e))
        why = f"sampling goes on without a CUDA graph, more slowly: {FAILED[0]}"
        print(why, file=sys.stderr, flush=True)
        return step


@once
def stream_to_record_on(device):
    """One for all rollouts: cuBLAS keeps a workspace for each stream that it ever ran on."""
    return torch.cuda.Stream(device)


def record(step, cache, tokens, positions):
    """A step as a CUDA graph: recorded once, then replayed by a single call.

    A step of a 7B model is about a thousand small kernels, and Python needs longer to launch them
    than the GPU to run them. A graph launches them all at once. In return every address in it is
    fixed, which is why the cache is allocated in full beforehand and the inputs are copied into
    place.

    It is recorded anew for each rollout, because each has another cache. That costs three steps
    (two for practice, one recorded) among the hundreds that are replayed.

    Args:    step: (tokens, positions) → logits; tokens, positions: of the shapes that will come.
    Returns: a function (tokens, positions) → logits (B·G, V), overwritten by the next call.
    Raises:  RuntimeError where a step cannot be recorded; the cache then needs rewinding.
    """
    tokens, positions = tokens.clone(), positions.clone()

    stream = stream_to_record_on(tokens.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are chosen and loaded on first runs, which cannot be recorded
            step(tokens, positions)
            rewind(cache)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: what other threads do meanwhile does not spoil the recording.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        logits = step(tokens, positions)
    rewind(cache)

    def replay(new_tokens, new_positions):
        tokens.copy_(new_tokens)
        positions.copy_(new_positions)
        graph.replay()
        return logits

    return replay
