"""Bench 4: how near each phase of a step is to what this machine could do.

    python tests/bench/floor.py
    python tests/bench/floor.py --device cuda --config 7b

For each phase, operations and bytes are counted from the shapes. The floor is the longer of

    operations / rate of a large matrix product      bytes / bandwidth of a large copy

both measured here, in the same run. Counted are matrix products and attention, and of bytes the
weights and the KV cache; what norms, rotations and activations cost separates us from the floor.
"""

from types import SimpleNamespace

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from common import arguments, by_turns, make_policy, make_prompt

from model import decode_step, encode_videos, group_logprobs, prefill


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def measured_rates(device):
    """(operations a second, bytes a second) of this machine."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    big = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(big)
    t = by_turns({"matmul": lambda: a @ a, "copy": lambda: target.copy_(big)}, 7, device)
    return 2 * n**3 / t["matmul"], 2 * big.numel() / t["copy"]


def shapes_of(model, prompt):
    """What operations and bytes are counted from. Sizes in bytes, weights in numbers."""
    text, vision = model.config.text_config, model.config.vision_config
    size = next(model.parameters()).element_size()
    _, h, w = prompt.grids[0]
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    head_size = text.hidden_size // text.num_attention_heads
    return SimpleNamespace(
        size=size,
        patches=len(prompt.patches),
        vision_hidden=vision.hidden_size,
        layers=numbers(model.model.language_model.layers),
        head=model.lm_head.weight.numel(),
        blocks=numbers(model.model.visual.blocks) + numbers(model.model.visual.patch_embed),
        merger=numbers(model.model.visual.merger),
        # patches that a patch attends to, summed over layers
        attended=full * h * w + (vision.depth - full) * min(window, h * w),
        # operations of one query on one key: Q·K and weight·V, each a multiply and an add
        per_pair=4 * text.hidden_size * text.num_hidden_layers,
        # bytes of a token
        kv=2 * text.num_hidden_layers * text.num_key_value_heads * head_size * size,
    )


def counts(s, P, G, C):
    """{phase: (operations, bytes)}"""
    N, text = s.patches, s.layers + s.head
    vision = 2 * s.blocks * N + 2 * s.merger * N / 4 + 4 * s.vision_hidden * s.attended * N
    prompt = 2 * s.layers * P + s.per_pair * P * P / 2
    packed = prompt + 2 * text * G * C + s.per_pair * G * C * (P + C / 2)
    step = 2 * text * G + s.per_pair * G * (P + C / 2)
    return {
        "vision": (vision, (s.blocks + s.merger) * s.size),
        "prefill": (prompt + 2 * s.head, text * s.size + s.kv * P),
        f"decode, {C} steps": (C * step, C * (text * s.size + s.kv * (P + G * C / 2))),
        "score": (packed, text * s.size),
        # backward: two products for each of the forward's; the head's forward is computed again
        "score + backward": (3 * packed + 2 * s.head * G * C, 3 * text * s.size),
    }


def sides_of(model, prompt, completions):
    """{phase: a function that does it}, the phases as in `counts`."""
    G, C = completions.shape
    with torch.no_grad():
        features = encode_videos(model, [prompt])

    def decode():
        _, cache, position = prefill(model, [prompt], features)
        cache.start_decoding(G, C)
        token, position = completions[:, 0], position.repeat_interleave(G)
        for step in range(C):
            decode_step(model, cache, token, position + step)

    def prefill_only():
        prefill(model, [prompt], features)[1].start_decoding(G, C)

    def score():
        return group_logprobs(model, prompt, features[0], completions)[0]

    def backward():
        model.zero_grad()
        score().mean().backward()

    without_gradient = torch.no_grad()
    return {
        "vision": without_gradient(lambda: encode_videos(model, [prompt])),
        "prefill": without_gradient(prefill_only),
        f"decode, {C} steps": without_gradient(decode),
        "score": without_gradient(score),
        "score + backward": backward,
    }


def main():
    args = arguments(__doc__, prompt=(1024, "P"), group=(8, "G"), completion=(64, "C"))
    P, G, C = args.prompt, args.group, args.completion
    model = make_policy(args.config, args.device)
    prompt, completions = make_prompt(model, P), torch.randint(20, 400, (G, C), device=args.device)
    seconds = by_turns(sides_of(model, prompt, completions), args.repeats, args.device)
    seconds[f"decode, {C} steps"] -= seconds["prefill"]
    rate, bandwidth = measured_rates(args.device)
    print(f"P = {P}, G = {G}, C = {C}; matrix products {rate / 1e9:,.0f} Gop/s, ", end="")
    print(f"copies {bandwidth / 1e9:,.1f} GB/s")
    print(f"{'phase':<18} {'Gop':>9} {'MB':>9} {'floor':>10} {'ours':>10} {'ours / floor':>13}")
    for phase, (flops, size_read) in counts(shapes_of(model, prompt), P, G, C).items():
        floor, ours = max(flops / rate, size_read / bandwidth), seconds[phase]
        print(
            f"{phase:<18} {flops / 1e9:>9,.2f} {size_read / 1e6:>9,.1f} {1e3 * floor:>7.1f} ms"
            f" {1e3 * ours:>7.1f} ms {ours / floor:>12.1f}×"
        )


if __name__ == "__main__":
    main()
