"""model.py: Qwen2.5-VL, as much of it as reinforcement learning touches.

The layers are Hugging Face's `Qwen2_5_VLForConditionalGeneration`, weights included. What this file
does by hand is everything around them that RL must control exactly:

    1. load and save           a folder or hub name → model + tokenizer; atomic save
    2. positions               (3, L) M-RoPE positions: each video token knows its second, row and column
    3. embeddings              token ids + patches → input embeddings, the video's features in their places
    4. attention               one prompt, read by a whole group of completions
    5. prefill, decode_step    the two halves of sampling, with a KV cache
    6. group_logprobs          log-probs of a group of completions, with gradient: what training needs

Rule of this file: `generate()`, `get_rope_index()` and `forward(position_ids=None)` are never used.
The sampler and the scorer must be the same distribution, so both go through the functions below.

Letters: P prompt tokens, B prompts, G completions of each, C completion tokens (padded), D hidden
size, H query heads and K key/value heads of d numbers each, V vocabulary.
"""

import json
import os
import shutil

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers import logging as transformers_logging

from data import BadInput

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

# ------------------------------------------------------------------------------------------------
# 1. Load and save
# ------------------------------------------------------------------------------------------------


def load(name, device="cpu", dtype=None):
    """Loads the model and its tokenizer from a local folder or a hub name.

    Args:    name: a folder with config.json, *.safetensors and tokenizer files, or "Qwen/Qwen2.5-VL-7B-Instruct";
             dtype: of the weights; float32 on CPU and bfloat16 on CUDA unless given.
    Returns: (model, tokenizer), the model on `device`, in eval mode (it has no dropout to switch).
    Raises:  BadInput if there is no such model, or it is of another family.
    """
    dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.bfloat16)
    if os.path.isdir(name):
        config_file = os.path.join(name, "config.json")
        if not os.path.isfile(config_file):
            raise BadInput(f"model folder {name} has no config.json: give a folder that was saved by train.py or from the hub")
        with open(config_file) as f:
            family = json.load(f).get("model_type")
        if family != "qwen2_5_vl":
            raise BadInput(f"model folder {name} holds a {family!r} model; this project knows Qwen2.5-VL (model_type 'qwen2_5_vl')")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"model {name} is neither a folder here nor a hub name like Qwen/Qwen2.5-VL-7B-Instruct")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as e:
        raise BadInput(f"model {name} cannot be loaded: {str(e).strip().splitlines()[0][:200]}") from e
    return prepare(model).to(device).eval(), tokenizer


def prepare(model):
    """Makes the language model and the vision tower use this file's attention functions (section 4)."""
    model.model.language_model.config._attn_implementation = "shared_prompt"
    model.model.visual.config._attn_implementation = "flash_like_windows"
    return model


def save(model, tokenizer, budget, folder):
    """Saves in Hugging Face format, atomically: `folder` is complete or it is not there.

    Everything is written to a neighbour first and moved into place at the end, so that a kill at any
    moment leaves the old folder or the new one, never half of each.
    """
    folder = folder.rstrip("/")
    partial, old = folder + ".partial", folder + ".old"
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    budget.save(partial)
    if os.path.isdir(folder):
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------
# 2. Positions
# ------------------------------------------------------------------------------------------------


def mrope_positions(ids, grids, seconds_per_grid, config):
    """M-RoPE positions of a prompt (Qwen2.5-VL, arXiv 2502.13923 §2.1).

    Rotary embeddings usually count tokens. Here each token has three positions, and a third of the
    rotary frequencies turns with each: time, row, column. Text counts all three up together. A video
    token at pair k, row i, column j of a video that starts at position s has

        time   = s + floor(k · seconds_per_grid · tokens_per_second)
        row    = s + i
        column = s + j

    and the text after it continues at (largest of all positions so far) + 1. The distance between two
    frames is thus their distance in real seconds: this is how the model can tell time at all.

    transformers >= 5.3 continues the text at s + max(h, w)/2 instead, which is *inside* the video for
    any clip longer than a few seconds; the pretrained weights have never seen that. So: by hand.

    Args:    ids (P,); grids: one (t, h, w) in patches per video; seconds_per_grid: one float per video.
    Returns: (3, P) int64.

    >>> from types import SimpleNamespace as S
    >>> vision = S(spatial_merge_size=2, tokens_per_second=2)
    >>> ids = torch.tensor([7, 99, 99, 99, 99, 8])          # text, a video of 2 pairs × 1 row × 2 columns, text
    >>> mrope_positions(ids, [(2, 2, 4)], [1.0], S(video_token_id=99, vision_config=vision)).tolist()
    [[0, 1, 1, 3, 3, 4], [0, 1, 1, 1, 1, 4], [0, 1, 2, 1, 2, 4]]
    """
    merge, tokens_per_second = config.vision_config.spatial_merge_size, config.vision_config.tokens_per_second
    is_video = (ids == config.video_token_id).cpu()
    pieces, place, start = [], 0, 0  # place: index into ids; start: the next free position
    for (t, h, w), seconds in zip(grids, seconds_per_grid, strict=True):
        first = place + int(is_video[place:].float().argmax())
        text = torch.arange(first - place).expand(3, -1) + start
        start += first - place
        h, w = h // merge, w // merge
        time = (torch.arange(t) * seconds * tokens_per_second).floor().long()
        video = torch.stack(torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")).reshape(3, -1) + start
        assert is_video[first:first + t * h * w].all(), "fewer video tokens in the prompt than the grid says"
        pieces += [text, video]
        place, start = first + t * h * w, int(video.max()) + 1
    assert not is_video[place:].any(), "more video tokens in the prompt than the grids say"
    pieces.append(torch.arange(len(ids) - place).expand(3, -1) + start)
    return torch.cat(pieces, dim=1).to(ids.device)


# ------------------------------------------------------------------------------------------------
# 3. Embeddings
# ------------------------------------------------------------------------------------------------


def encode_videos(model, prompts):
    """Runs the vision tower once over all videos of all prompts.

    Args:    prompts: list of data.Prompt.
    Returns: one (video tokens of the prompt, D) tensor per prompt.
    """
    device = model.device
    grids = [grid for prompt in prompts for grid in prompt.grids]
    patches = torch.cat([prompt.patches for prompt in prompts]).to(device, model.dtype)
    features = model.model.visual(patches, grid_thw=torch.tensor(grids, device=device)).pooler_output
    per_video = [t * h * w // model.config.vision_config.spatial_merge_size**2 for t, h, w in grids]
    per_prompt, i = [], 0
    for prompt in prompts:
        per_prompt.append(sum(per_video[i:i + len(prompt.grids)]))
        i += len(prompt.grids)
    return list(features.split(per_prompt))


def embed(model, ids, features):
    """Token embeddings with the video's features in the places of its <|video_pad|> tokens.

    Args:    ids (P,); features (video tokens, D).
    Returns: (P, D).

    The assertion stands guard over the whole project: a prompt whose video got lost trains on text
    alone, and every curve still looks plausible.
    """
    is_video = ids == model.config.video_token_id
    assert int(is_video.sum()) == len(features), f"{int(is_video.sum())} video tokens but {len(features)} video features"
    text = model.model.language_model.embed_tokens(ids)
    return text.masked_scatter(is_video[:, None], features.to(text.dtype))


# ------------------------------------------------------------------------------------------------
# 4. Attention: the group shares its prompt
# ------------------------------------------------------------------------------------------------
# In video RL the prompt is thousands of tokens and a completion a few hundred, and G completions have
# the same prompt. Repeating it G times costs G · (P + C) tokens; reading it once, P + G · C. Nothing but
# attention ever mixes tokens, so nothing but attention has to know.


def attention(module, query, key, value, attention_mask, scaling, group=None, cache=None, **_):
    """What each layer of the language model calls, in one of three situations.

    prefill   (neither)     (B, H, P, d) queries on (B, K, P, d) keys, under attention_mask (B, 1, P, P)
    scoring   group = G     one row [prompt | c_1 | … | c_G], (1, H, P + G·C, d): the prompt is causal on
                            itself; a completion sees the prompt and itself, never its siblings
    decoding  cache given   one new token of B·G rows, (B·G, H, 1, d) on (B·G, K, n, d) own keys, and on
                            the prompt's, which lie in the cache once per prompt

    Returns (batch, length, H, d), None, as transformers expects.
    """
    if cache is not None:
        out = decode_attention(query, key, value, cache.prompt[module.layer_idx], cache.prompt_mask, scaling)
    elif group is not None:
        out = packed_attention(query, key, value, group, scaling)
    else:
        assert attention_mask is not None, "no mask: this would let every token see the ones after it"
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


AttentionInterface.register("shared_prompt", attention)


def packed_attention(query, key, value, group, scaling):
    """[prompt | c_1 | … | c_G] in two calls: prompt × prompt, and completions × (prompt + own completion).

    The second call's mask is causal and aligned to the *lower right*: token j of a completion sees all
    P prompt positions and its own first j + 1. (SDPA's `is_causal=True` aligns to the upper left, which
    would hide the prompt from it.)
    """
    G, C = group
    P = query.shape[2] - G * C
    sdpa = F.scaled_dot_product_attention
    prompt = sdpa(query[:, :, :P], key[:, :, :P], value[:, :, :P], is_causal=True, scale=scaling, enable_gqa=True)

    def per_completion(x):  # (1, heads, G·C, d) → (G, heads, C, d)
        return x[0, :, P:].unflatten(1, (G, C)).transpose(0, 1)

    def with_prompt(x):  # → (G, K, P + C, d)
        return torch.cat([x[:, :, :P].expand(G, -1, -1, -1), per_completion(x)], dim=2)

    visible = torch.ones(C, P + C, dtype=torch.bool, device=query.device).tril(diagonal=P)
    own = sdpa(per_completion(query), with_prompt(key), with_prompt(value), visible, scale=scaling, enable_gqa=True)
    return torch.cat([prompt, own.transpose(0, 1).flatten(1, 2)[None]], dim=2)


def decode_attention(query, key, value, prompt_kv, prompt_mask, scaling):
    """One new token a row: softmax over [prompt | own tokens], the prompt's keys read once per group.

    query (B·G, H, 1, d), key and value (B·G, K, n, d), prompt_kv two (B, K, P, d), prompt_mask (B, 1, 1, P)
    with −inf on left padding. Returns (B·G, H, 1, d).
    """
    prompt_key, prompt_value = prompt_kv
    B, K, P, d = prompt_key.shape
    G, rep = query.shape[0] // B, query.shape[1] // K  # rep query heads share a key head
    by_row = query.view(B * G, K, rep, d)
    by_prompt = by_row.view(B, G, K, rep, d).transpose(1, 2).reshape(B, K, G * rep, d)  # a group's queries side by side
    to_prompt = by_prompt @ prompt_key.transpose(2, 3) * scaling + prompt_mask  # (B, K, G·rep, P)
    to_prompt = to_prompt.view(B, K, G, rep, P).transpose(1, 2).reshape(B * G, K, rep, P)
    to_own = by_row @ key.transpose(2, 3) * scaling  # (B·G, K, rep, n)
    weights = torch.cat([to_prompt, to_own], dim=3).float().softmax(dim=3).to(value.dtype)
    on_prompt = weights[..., :P].view(B, G, K, rep, P).transpose(1, 2).reshape(B, K, G * rep, P)
    from_prompt = (on_prompt @ prompt_value).view(B, K, G, rep, d).transpose(1, 2).reshape(B * G, K, rep, d)
    return (from_prompt + weights[..., P:] @ value).reshape(B * G, K * rep, 1, d)


class GroupCache:
    """Keys and values of B prompts, each held once, and of their B·G completions.

    `prompt[layer]` is ((B, K, P, d), (B, K, P, d)), filled by `prefill`; `own[layer]` the same for up to
    C tokens of each row. Layers call `update`, the one method transformers needs of a cache.
    """

    def __init__(self, prompt_mask):
        self.prompt, self.prompt_mask = {}, prompt_mask
        self.own, self.length = None, 0

    def start_decoding(self, group_size, max_new_tokens):
        def room(x):  # (B, K, P, d) → (B·G, K, C, d)
            return x.new_empty(len(x) * group_size, x.shape[1], max_new_tokens, x.shape[3])

        self.own = {layer: (room(k), room(v)) for layer, (k, v) in self.prompt.items()}

    def update(self, key, value, layer):
        if self.own is None:
            self.prompt[layer] = (key, value)
            return key, value
        keys, values = self.own[layer]
        keys[:, :, self.length], values[:, :, self.length] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, :self.length + 1], values[:, :, :self.length + 1]


def window_attention(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, **_):
    """What each layer of the vision tower calls: attention inside windows (or frames), never across.

    query, key, value (1, H, N, d); cu_seq_lens_q: where windows begin and end among the N patches. Windows
    of equal size go through SDPA together: a clip has hundreds of them and a handful of sizes. transformers
    would make one call a window; it hands the boundaries over only to implementations named after flash.
    """
    sizes = cu_seq_lens_q.diff().tolist()
    starts, chunks, places = cu_seq_lens_q[:-1], [], []
    for size in set(sizes):
        mine = torch.tensor([s == size for s in sizes], device=query.device)
        place = starts[mine].long()[:, None] + torch.arange(size, device=query.device)  # (windows, size)
        q, k, v = (x[0][:, place].transpose(0, 1) for x in (query, key, value))  # (windows, H, size, d)
        chunks.append(F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1))  # (windows · size, H, d)
        places.append(place.flatten())
    return torch.cat(chunks)[torch.cat(places).argsort()][None], None  # (1, N, H, d)


AttentionInterface.register("flash_like_windows", window_attention)

# ------------------------------------------------------------------------------------------------
# 5. Sampling: prefill, decode
# ------------------------------------------------------------------------------------------------


def token_logits(model, hidden):
    """Hidden states (…, D) → logits (…, V) in float32, the vision tokens' at −inf.

    A policy that samples <|video_pad|> would ask for a video that is not there, and the run ends. It is
    ruled out here, in the one place that both the sampler and the scorer go through.
    """
    logits = model.lm_head(hidden).float()
    c = model.config
    never = [c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id]
    return logits.index_fill(-1, torch.tensor(never, device=logits.device), float("-inf"))


def prefill(model, prompts, features):
    """Reads B prompts, each once.

    Args:    prompts: list of data.Prompt; features: their videos, from encode_videos.
    Returns: logits (B, V) of each prompt's next token, the GroupCache, and next_position (B,).

    Prompts of different lengths are padded on the left, so that all of them end in the last column.
    """
    device, longest = model.device, max(len(p.ids) for p in prompts)
    embeds, positions, real = [], [], []
    for prompt, feature in zip(prompts, features, strict=True):
        pad = longest - len(prompt.ids)
        embeds.append(F.pad(embed(model, prompt.ids.to(device), feature), (0, 0, pad, 0)))
        positions.append(F.pad(mrope_positions(prompt.ids, prompt.grids, prompt.seconds_per_grid, model.config), (pad, 0)))
        real.append(torch.arange(longest) >= pad)
    positions, real = torch.stack(positions, dim=1).to(device), torch.stack(real).to(device)  # (3, B, P), (B, P)
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    # A padding position sees itself, so that its softmax is not 0/0; nothing sees it.
    visible = causal & real[:, None, None] | torch.eye(longest, dtype=torch.bool, device=device)
    cache = GroupCache(torch.zeros(real.shape, device=device, dtype=model.dtype).masked_fill(~real, float("-inf"))[:, None, None])
    hidden = model.model.language_model(
        inputs_embeds=torch.stack(embeds), position_ids=positions, attention_mask={"full_attention": visible}, past_key_values=cache
    ).last_hidden_state
    return token_logits(model, hidden[:, -1]), cache, positions[:, :, -1].amax(dim=0) + 1


def decode_step(model, cache, tokens, positions):
    """One more token for every row.

    Args:    cache: a GroupCache after start_decoding; tokens (B·G,) just sampled; positions (B·G,) of
             these tokens (the same on all three axes: they are text).
    Returns: logits (B·G, V) of each row's next token.
    """
    hidden = model.model.language_model(
        inputs_embeds=model.model.language_model.embed_tokens(tokens)[:, None],
        position_ids=positions.expand(3, -1)[:, :, None],
        attention_mask={"full_attention": None}, past_key_values=cache, cache=cache,
    ).last_hidden_state
    cache.length += 1
    return token_logits(model, hidden[:, 0])


# ------------------------------------------------------------------------------------------------
# 6. Scoring
# ------------------------------------------------------------------------------------------------


def group_logprobs(model, prompt, features, completions, chunk=1024):
    """Log-probs of a group of completions of one prompt, in one forward.

    Args:    prompt: data.Prompt; features (video tokens, D) of its videos; completions (G, C) token ids,
             padded on the right with anything: what follows a completion's end changes nothing before it.
    Returns: log-probs (G, C) float32 with gradient, and the entropy (G, C) in nats of the distribution
             that each token was drawn from, without.

    The row is [prompt | c_1 | … | c_G]. Token j of a completion is predicted by the token before it, and
    all G first tokens by the prompt's last one. The head runs on those G · C positions alone, `chunk` of
    them at a time, and is recomputed in the backward pass: with V = 152,064, float32 logits of 8 × 1024
    tokens would be 5 GB.
    """
    (G, C), device = completions.shape, model.device
    P = len(prompt.ids)
    completions = completions.to(device)
    embed_tokens = model.model.language_model.embed_tokens
    embeds = torch.cat([embed(model, prompt.ids.to(device), features), embed_tokens(completions.flatten())])
    positions = mrope_positions(prompt.ids, prompt.grids, prompt.seconds_per_grid, model.config).to(device)
    after = positions[:, -1].amax() + 1 + torch.arange(C, device=device)  # every completion starts at the same position
    positions = torch.cat([positions, after.repeat(G).expand(3, -1)], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None], position_ids=positions[:, None], attention_mask={"full_attention": None},
        use_cache=False, group=(G, C),
    ).last_hidden_state[0]
    before_first = hidden[P - 1].expand(G, 1, -1)
    before_rest = hidden[P:].unflatten(0, (G, C))[:, :-1]
    predicting = torch.cat([before_first, before_rest], dim=1).flatten(0, 1)  # (G·C, D)

    def score(hidden, target):
        logits = token_logits(model, hidden)  # (n, V)
        logp = logits.log_softmax(dim=-1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp.clamp_min(-1e9)).sum(dim=-1)  # the clamp: 0 · −inf of the vision tokens is NaN
        return logp.gather(1, target[:, None])[:, 0], entropy

    targets = completions.flatten()
    parts = [
        checkpoint(score, predicting[i:i + chunk], targets[i:i + chunk], use_reentrant=False)
        for i in range(0, G * C, chunk)
    ]
    logp, entropy = (torch.cat(part).view(G, C) for part in zip(*parts))
    return logp, entropy
