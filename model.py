"""model.py: Qwen2.5-VL, as much of it as reinforcement learning touches.

The layers are Hugging Face's `Qwen2_5_VLForConditionalGeneration`, weights included. What this file
does by hand is everything around them that RL must control exactly (lib/weights.py loads and
saves; what Qwen3-VL does otherwise is a row of lib/families.py):

    1. positions               (3, L) M-RoPE: each video token knows its second, row and column
    2. embeddings              token ids + patches → embeddings, the video's in their places
    3. attention               branches of one prompt: [prompt | branch 1 | … | branch G]
    4. prefill, decode_step    the two halves of sampling, with a KV cache
    5. group_logprobs          log-probs of a group of completions, with gradient, for training

Rule of this file: `generate()`, `get_rope_index()` and `forward(position_ids=None)` are never used.
The sampler and the scorer must be the same distribution, so both go through the functions below.

Letters: P prompt tokens, B prompts, G branches of each, C tokens of a branch (padded), D hidden
size, H query heads and K key/value heads of d numbers each, V vocabulary.
"""

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from lib import weights
from lib.attention import (
    ATTENTION,
    PatchProduct,
    check_attention,
    register_windows,
    vision_layout,
)
from lib.decoding import GroupCache
from lib.families import FAMILIES, add_at

# ------------------------------------------------------------------------------------------------
# 1. Positions
# ------------------------------------------------------------------------------------------------


def mrope_positions(ids, grids, seconds_per_grid, config):
    """M-RoPE positions of a prompt (Qwen2.5-VL, arXiv 2502.13923 §2.1).

    Rotary embeddings usually count tokens. Here each token has three positions (time, row,
    column), and each of them drives its own share of the rotary frequencies ("mrope_section" in the
    config). Text counts all three up together. A video token covers a pair of frames and 2 × 2
    patches; the one at pair k, row i, column j of a video that starts at position s has

        time   = s + floor(k · seconds_per_grid · tokens_per_second)
        row    = s + i
        column = s + j

    and the text after it continues at (largest of all positions so far) + 1. Time thus advances by
    tokens_per_second positions for each real second: this is how the model can tell time at all.

    transformers >= 5.3 continues the text at s + max(h, w)/2 instead, which is *inside* the video
    for any clip longer than a few seconds; the pretrained weights have never seen that.

    Args:    ids (P,); grids: one (t, h, w) per video: t pairs of frames, h × w patches before
             merging; seconds_per_grid: one float per video, the seconds from pair to pair.
    Returns: (3, P) int64.

    >>> from types import SimpleNamespace as S
    >>> vision = S(spatial_merge_size=2, tokens_per_second=2)
    >>> config = S(video_token_id=99, vision_config=vision)
    >>> ids = torch.tensor([7, 99, 99, 99, 99, 8])  # a video of 2 pairs × 1 row × 2 columns in text
    >>> mrope_positions(ids, [(2, 2, 4)], [1.0], config).tolist()
    [[0, 1, 1, 3, 3, 4], [0, 1, 1, 1, 1, 4], [0, 1, 2, 1, 2, 4]]
    """
    vision = config.vision_config
    merge = vision.spatial_merge_size
    tokens_per_second = getattr(vision, "tokens_per_second", 0)  # 0: no grid has a second pair
    is_video = (ids == config.video_token_id).cpu()
    pieces, place, start = [], 0, 0  # place: index into ids; start: the next free position
    for (t, h, w), seconds in zip(grids, seconds_per_grid, strict=True):
        first = place + int(is_video[place:].float().argmax())
        text = torch.arange(first - place).expand(3, -1) + start
        start += first - place
        h, w = h // merge, w // merge
        time = (torch.arange(t) * seconds * tokens_per_second).floor().long()
        axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
        video = torch.stack(axes).reshape(3, -1) + start
        assert is_video[first : first + t * h * w].all(), "fewer video tokens than the grid says"
        pieces += [text, video]
        place, start = first + t * h * w, int(video.max()) + 1
    assert not is_video[place:].any(), "more video tokens in the prompt than the grids say"
    pieces.append(torch.arange(len(ids) - place).expand(3, -1) + start)
    return torch.cat(pieces, dim=1).to(ids.device)


# ------------------------------------------------------------------------------------------------
# 2. Embeddings
# ------------------------------------------------------------------------------------------------


def encode_videos(model, prompts):
    """Runs the vision tower once over all videos: over a clip once, however many ask about it.

    Args:    prompts: list of data.Prompt; those about one clip hold the same patches (data.ask).
    Returns: one (video tokens of the prompt, D) tensor per prompt; (…, 4 · D) where three layers of
             the text model get features of their own (families.deepstack).
    """
    config, weight = model.config.vision_config, model.model.visual.patch_embed.proj.weight
    clips = {id(prompt.patches): prompt for prompt in prompts}
    patches = torch.cat([clip.patches for clip in clips.values()]).to(weight)  # device and dtype
    grids = torch.tensor([grid for clip in clips.values() for grid in clip.grids])
    layout = vision_layout(grids, model.config, patches.device)
    out = model.model.visual(patches, grid_thw=grids, **layout)
    features = torch.cat([out.pooler_output, *getattr(out, "deepstack_features", ())], dim=1)
    merged = config.spatial_merge_size**2  # patches of a token
    tokens = [sum(t * h * w for t, h, w in clip.grids) // merged for clip in clips.values()]
    seen = dict(zip(clips, features.split(tokens)))
    return [seen[id(prompt.patches)] for prompt in prompts]


def embed(model, ids, features):
    """Token embeddings with the video's features in the places of its <|video_pad|> tokens.

    Args:    ids (P,), on the CPU (counting on a GPU would wait for it); features (video tokens, D).
    Returns: (P, D), where the features are.

    The assertion stands guard over the whole project: a prompt whose video got lost trains on text
    alone, and every curve still looks plausible.
    """
    is_video = ids == model.config.video_token_id
    n = int(is_video.sum())
    assert n == len(features), f"{n} video tokens but {len(features)} video features"
    text = model.model.language_model.embed_tokens(ids.to(features.device))
    return text.masked_scatter(is_video.to(features.device)[:, None], features.to(text.dtype))


# ------------------------------------------------------------------------------------------------
# 3. Attention: branches of one prompt
# ------------------------------------------------------------------------------------------------
# In video RL the prompt is thousands of tokens and a completion a few hundred, and G completions
# have the same prompt. Repeating it G times costs G · (P + C) tokens; reading it once, P + G · C.
# Nothing but attention ever mixes tokens, so nothing but attention has to know.
#
# The idea serves three times: completions are branches of their prompt when they are sampled and
# when they are scored, and questions are branches of their clip when a model is evaluated.
#
# transformers lets a model's layers call an attention function that we register (end of this
# section). It makes no mask for functions that it does not know: which token sees which is decided
# below, and nowhere else.


def prepare(model, attn="sdpa"):
    """Makes the language model use `attention` below, and the vision tower lib/attention.py.

    model.n_tokens: how many ids the tokenizer knows, where whoever loads both has said it. Qwen's
    output layer has more rows than that.
    """
    model.model.language_model.config._attn_implementation = f"shared_prompt_{attn}"
    model.model.visual.config._attn_implementation = f"flash_like_windows_{attn}"
    model.model.visual.patch_embed = PatchProduct(model.model.visual.patch_embed.proj)
    model.model.language_model._deepstack_process = add_at  # Qwen3-VL alone calls it
    model.n_tokens = getattr(model, "n_tokens", model.config.text_config.vocab_size)
    return model


def load(name, device="cpu", dtype=None, attn="sdpa"):
    """(model, tokenizer) of a folder or a hub name (lib/weights.py), prepared."""
    check_attention(attn, device)
    model, tokenizer = weights.load(name, device, dtype)
    return prepare(model, attn), tokenizer


def attention(module, query, key, value, attention_mask, scaling, attend, group, **_):
    """What each layer of the language model calls (decode_step does without): packed_attention, in
    the form that transformers asks for. Returns (1, L, H, d), None."""
    assert attention_mask is None, "a mask was built that nothing here would respect"
    return packed_attention(query, key, value, group, scaling, attend).transpose(1, 2), None


def packed_attention(query, key, value, group, scale, attend):
    """[prompt | c_1 | … | c_G] in two calls: prompt × prompt, and completions × (prompt +
    themselves): a completion never sees its siblings.

    Causality of the second is aligned to the lower right: token j of a completion sees all P prompt
    positions and its own first j + 1.

    Args:    query (1, H, P + G·C, d), key and value (1, K, P + G·C, d); group: (G, C); scale: a
             number; attend: a function of lib.attention.ATTENTION.
    Returns: (1, H, P + G·C, d).

    >>> from lib.attention import sdpa
    >>> one = torch.ones(1, 1, 3, 1)  # P = 1, G = 2, C = 1; equal scores: each output is a mean
    >>> value = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1)
    >>> packed_attention(one, one, value, (2, 1), 1.0, sdpa).flatten().tolist()
    [1.0, 2.0, 3.0]

    (The prompt sees itself, 1; c_1 the mean of 1 and 3; c_2 that of 1 and 5.)
    """
    G, C = group
    P = query.shape[2] - G * C
    prompt = attend(query[:, :, :P], key[:, :, :P], value[:, :, :P], scale, causal=True)
    if C == 0:
        return prompt

    def per_completion(x):  # (1, heads, P + G·C, d) → (G, heads, C, d)
        return x[0, :, P:].unflatten(1, (G, C)).transpose(0, 1)

    def with_prompt(x):  # → (G, K, P + C, d)
        return torch.cat([x[:, :, :P].expand(G, -1, -1, -1), per_completion(x)], dim=2)

    own = attend(per_completion(query), with_prompt(key), with_prompt(value), scale, causal=True)
    return torch.cat([prompt, own.transpose(0, 1).flatten(1, 2)[None]], dim=2)


for name, attend in ATTENTION.items():  # the kernels: what computes softmax(Q Kᵀ) V
    AttentionInterface.register(f"shared_prompt_{name}", partial(attention, attend=attend))
register_windows(ATTENTION)

# ------------------------------------------------------------------------------------------------
# 4. Sampling: prefill, decode
# ------------------------------------------------------------------------------------------------


def token_logits(model, hidden):
    """Hidden states (…, D) → logits (…, V) in float32; those of tokens that must not be sampled are
    −inf: the vision tokens, and ids that the tokenizer does not know.

    A policy that samples <|video_pad|> would ask for a video that is not there, and the run ends.
    An unknown id decodes to nothing, so that the reward would not see what it pays for. They are
    ruled out here, in the one place that both the sampler and the scorer go through.
    """
    logits, c = model.lm_head(hidden).float(), model.config
    vision = (c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id)
    return logits + never_sampled(vision, model.n_tokens, logits.shape[-1], logits.device)


@cache
def never_sampled(tokens, n_tokens, vocabulary, device):
    """0 for every token, −inf for `tokens` and from n_tokens on: (V,). Made on the CPU and copied
    once per device: a number written into a GPU's tensor waits for the GPU, which a graph being
    recorded must not."""
    mask = torch.zeros(vocabulary)
    mask[list(tokens)] = mask[n_tokens:] = float("-inf")
    return mask.to(device)


def prefill(model, prompts, features):
    """Reads B prompts, each once.

    Args:    prompts: list of data.Prompt; features: their videos, from encode_videos.
    Returns: logits (B, V) of each prompt's next token, the GroupCache, and next_position (B,).
    """
    cache, last, after = GroupCache([(len(prompt.ids), [0]) for prompt in prompts]), [], []
    for prompt, seen in zip(prompts, features, strict=True):
        hidden, positions = read(model, prompt, seen, prompt.ids[None, :0], cache)
        last.append(hidden[-1])
        after.append(positions[:, -1].amax() + 1)
    last = torch.stack(last)
    return token_logits(model, last), cache, torch.stack(after).to(last.device)


def read(model, prompt, features, branches, cache=None):
    """One forward over [prompt | branch 1 | … | branch G].

    Args:    prompt: a data.Prompt; features: of its video; branches (G, C): ids of the ways in
             which it goes on; cache: a GroupCache that keeps the keys and values.
    Returns: the last layer's hidden states (P + G·C, D), and on the CPU the positions (3, P + G·C):
             every branch counts on from the prompt.
    """
    language_model, device = model.model.language_model, features.device
    text = language_model.embed_tokens(branches.flatten().to(device))
    features, *deeper = features.split(text.shape[1], dim=1)
    embeds = torch.cat([embed(model, prompt.ids, features), text])
    is_video, family = prompt.ids == model.config.video_token_id, FAMILIES[model.config.model_type]
    own = mrope_positions(prompt.ids, prompt.grids, prompt.seconds_per_grid, model.config)
    after = own[:, -1].amax() + 1 + torch.arange(branches.shape[1])
    positions = torch.cat([own, after.repeat(len(branches)).expand(3, -1)], dim=1)
    out = language_model(
        inputs_embeds=embeds[None],
        position_ids=positions[:, None].to(device),
        cache=cache,
        use_cache=cache is not None,
        group=tuple(branches.shape),
        **family.deepstack(is_video, deeper),
    )
    return out.last_hidden_state[0], positions


def decode_step(model, cache, tokens, positions):
    """One more token for every row.

    Args:    cache: a GroupCache after start_decoding; tokens (B·G,) just sampled; positions (B·G,)
             of these tokens: the same on all three axes, they are text.
    Returns: logits (B·G, V) of each row's next token.

    transformers' layers are written for sequences; for a single token most of their time is spent
    on preparing what does not depend on it. So the layer is written out here, around the same
    weights: this is all that a decoder is.
    """
    language_model, family = model.model.language_model, FAMILIES[model.config.model_type]
    x = language_model.embed_tokens(tokens)  # (B·G, D)
    angles = positions[:, None] * language_model.rotary_emb.inv_freq  # (B·G, d/2): plain RoPE
    angles = torch.cat([-angles, angles], dim=1)[:, None]  # (B·G, 1, d), as rotate has it
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    cache.mask.index_fill_(1, cache.prompt_length + cache.length, 0.0)
    for layer, block in enumerate(language_model.layers):
        attn, h = block.self_attn, rms_norm(x, block.input_layernorm)
        projections = (attn.q_proj, attn.k_proj, attn.v_proj)
        query, key, value = (project(h).view(len(x), -1, attn.head_dim) for project in projections)
        if family.head_norms:
            query, key = rms_norm(query, attn.q_norm), rms_norm(key, attn.k_norm)
        query, key = rotate(query, cos, sin) * attn.scaling, rotate(key, cos, sin)
        for buffer, new in zip(cache.completions[layer], (key, value)):
            buffer.index_copy_(2, cache.length, new[:, :, None])
        prompt, completions = cache.prompt[layer], cache.completions[layer]
        x = x + attn.o_proj(decode_attention(query, completions, prompt, cache.mask))
        x = x + block.mlp(rms_norm(x, block.post_attention_layernorm))
    cache.length += 1
    return token_logits(model, rms_norm(x, language_model.norm))


def rms_norm(x, norm):
    """x / sqrt(mean(x²) + ε) · weight, in one kernel where transformers takes six."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def rotate(x, cos, sin):
    """Rotary embedding (arXiv 2104.09864 §3.4.2): numbers i and i + d/2 of a head turn together, by
    minus an angle and by the angle: cos is the same for both, sin has the two signs."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def decode_attention(query, completions, prompt, mask):
    """One new token per row: softmax over [prompt | completion], the prompt's keys read once per
    group.

    Args:    query (B·G, H, d), already scaled; completions: keys and values (B·G, K, C, d); prompt:
             those of the prompts (B, K, P, d); mask (B·G, P + C).
    Returns: (B·G, H · d).
    """
    B, K, P, d = prompt[0].shape
    G, rep = len(query) // B, query.shape[1] // K  # rep query heads share a key head
    rows = query.view(B * G, K, rep, d)

    def by_prompt(x):  # (B·G, K, rep, n) → (B, K, G·rep, n): a group's queries side by side
        return x.view(B, G, K, rep, -1).transpose(1, 2).reshape(B, K, G * rep, -1)

    to_prompt = by_prompt(rows) @ prompt[0].transpose(2, 3)
    to_completion = by_prompt(rows @ completions[0].transpose(2, 3))
    scores = torch.cat([to_prompt, to_completion], dim=3)  # (B, K, G·rep, P + C)
    scores = scores.unflatten(2, (G, rep)) + mask.view(B, 1, G, 1, -1)
    weights = scores.softmax(dim=4).flatten(2, 3)  # summed in float32 within the kernel

    def by_row(x):  # and back
        return x.view(B, K, G, rep, -1).transpose(1, 2).reshape(B * G, K, rep, -1)

    from_prompt = by_row(weights[..., :P] @ prompt[1])
    from_completion = by_row(weights[..., P:]) @ completions[1]
    return (from_prompt + from_completion).flatten(1)


# ------------------------------------------------------------------------------------------------
# 5. Scoring
# ------------------------------------------------------------------------------------------------


def group_logprobs(model, prompt, features, completions, chunk=1024):
    """Log-probs of a group of completions of one prompt, in one forward.

    Args:    prompt: a data.Prompt; features: of its video; completions (G, C) token ids, padded on
             the right with anything: nothing before it changes.
    Returns: log-probs (G, C) float32, with gradient; and, without, the entropy (G, C) in nats of
             the distribution that each token was drawn from.

    The row is [prompt | c_1 | … | c_G]. Token j of a completion is predicted by the token before
    it, and all G first tokens by the prompt's last one. The output layer lm_head runs on those
    positions alone, `chunk` of them at a time, and is recomputed in the backward pass: with V =
    152,064, float32 logits of 8 × 1024 tokens would be 5 GB.
    """
    completions = completions.to(features.device)
    hidden, _ = read(model, prompt, features, completions)
    states = predicting_states(hidden, completions.shape).flatten(0, 1)

    def score(states, tokens):
        return token_logprobs(token_logits(model, states), tokens)

    chunks = zip(states.split(chunk), completions.flatten().split(chunk))
    parts = [checkpoint(score, *part, use_reentrant=False) for part in chunks]
    return tuple(torch.cat(x).view(completions.shape) for x in zip(*parts))


def predicting_states(hidden, group):
    """Which hidden state each token of a group was predicted from: that of the token before it.

    Args:    hidden (P + G·C, D), of the row [prompt | c_1 | … | c_G]; group: (G, C).
    Returns: (G, C, D). All G first tokens come from the prompt's last state; the last state of a
             completion predicts nothing.

    >>> hidden = torch.arange(6)[:, None]  # a prompt of 0, 1; completions of 2, 3 and of 4, 5
    >>> predicting_states(hidden, (2, 2))[..., 0].tolist()
    [[1, 2], [1, 4]]
    """
    G, C = group
    P = len(hidden) - G * C
    before_rest = hidden[P:].unflatten(0, (G, C))[:, :-1]
    return torch.cat([hidden[P - 1].expand(G, 1, -1), before_rest], dim=1)


def token_logprobs(logits, tokens):
    """The log-prob of each token, and the entropy of the distribution that it was drawn from.

    Args:    logits (n, V) float32, −inf where a token is ruled out; tokens (n,).
    Returns: log softmax(logits) at the token, (n,) with gradient, and −Σ p log p in nats, (n,)
             without: it is only for people to watch. A token that is ruled out adds 0.

    >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 1.0, 1.0]])
    >>> logp, entropy = token_logprobs(logits, torch.tensor([0, 1]))
    >>> [[round(x, 4) for x in row.tolist()] for row in (logp, entropy)]
    [[-0.6931, -0.862], [0.6931, 1.0174]]
    """
    logp = logits.log_softmax(dim=-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp.clamp_min(-1e9)).sum(dim=-1)  # 0 · −inf would be NaN
    return logp.gather(1, tokens[:, None])[:, 0], entropy
