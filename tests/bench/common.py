"""What the speed scripts share: policies of random weights, prompts of any length, timing by turns.

The other side of each comparison is written here as well: the same work as public trainers for this
task do it, with transformers' own attention, positions and `generate`, and every prompt repeated G
times. It lives here so that it is nowhere in the product.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed

from data import Prompt
from lib.weights import has_bfloat16
from model import prepare
from toy import base

TOKENIZER = os.path.join(ROOT, "assets", "toy-base")

# The shapes of Qwen2.5-VL (arXiv 2502.13923, table 1); weights are random, which changes no timing.
SIZES = {
    "3b": dict(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie=True,
    ),
    "7b": dict(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie=False,
    ),
}


def arguments(description, weights="random weights", **extra):
    """--device, --config, --repeats, and what a script adds: name=(default, help)."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument(
        "--config",
        default="toy",
        choices=("toy", *SIZES),
        help="size of the policy; its weights are random",
    )
    p.add_argument("--repeats", type=int, default=5, help="runs of each side; the median counts")
    for name, (default, text) in extra.items():
        p.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs="+" if isinstance(default, list) else None,
            default=default,
            help=text,
        )
    args = p.parse_args()
    where = f"CPU, {torch.get_num_threads()} threads"
    if args.device == "cuda":
        where = torch.cuda.get_device_name()
    number = "bfloat16" if args.device == "cuda" else "float32"
    print(f"{args.config} policy, {weights}, {number}, {where}; torch {torch.__version__}")
    return args


def real_config(size):
    shape = dict(SIZES[size])
    tie = shape.pop("tie")
    return Qwen2_5_VLConfig(
        text_config=dict(
            shape,
            max_position_embeddings=128000,
            tie_word_embeddings=tie,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
        ),
        vision_config=dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=shape["hidden_size"],
            fullatt_block_indexes=[7, 15, 23, 31],
            window_size=112,
            tokens_per_second=2,
        ),
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=tie,
    )


def make_policy(size, device, layers=None):
    """The real class at a size of SIZES, or the toy's; random weights. layers: only so many."""
    torch.manual_seed(0)
    if size == "toy":
        return prepare(base.make_model(AutoTokenizer.from_pretrained(TOKENIZER))).to(device).eval()
    config = real_config(size)
    if layers:
        config.text_config.num_hidden_layers = config.vision_config.depth = layers
        config.text_config.layer_types = ["full_attention"] * layers
        config.vision_config.fullatt_block_indexes = [layers - 1]
    half = torch.bfloat16 if has_bfloat16(device) else torch.float16
    torch.set_default_dtype(half if device == "cuda" else torch.float32)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = [151645]
    return prepare(model).eval()


def make_prompt(model, P, frame_tokens=16, seed=0):
    """A prompt of P tokens: a video of noise beside some 40 tokens of text."""
    rng = torch.Generator().manual_seed(seed)
    pairs = (P - 40) // frame_tokens
    side = 2 * round(frame_tokens**0.5)  # patches; 2 × 2 of them are a token
    c = model.config
    text = torch.randint(20, 400, (P - pairs * frame_tokens,), generator=rng)
    video = torch.full((pairs * frame_tokens,), c.video_token_id)
    ids = torch.cat([
        text[:10],
        torch.tensor([c.vision_start_token_id]),
        video,
        torch.tensor([c.vision_end_token_id]),
        text[10:-2],
    ])
    patches = torch.randn(pairs * side * side, 1176, generator=rng)
    return Prompt(
        ids=ids, patches=patches, grids=[(pairs, side, side)], seconds_per_grid=[1.0], text=""
    )


def by_turns(sides, repeats, device):
    """{name: function} → {name: median seconds}. One run of each to warm up, then alternately."""
    seconds = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(s)) for name, s in seconds.items()}


def weights_once(model):
    """Seconds to read the language model's weights once, at the bandwidth of a large copy."""
    big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copy = by_turns({"copy": lambda: big.clone()}, 5, "cuda")["copy"]
    weights = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    # A copy reads and writes.
    return sum(w.numel() * w.element_size() for w in weights) / (2 * 2**30 / copy)


def _resident(field):
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def _peak_here(make, args, queue):
    work = make(*args)
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as f:
        f.write("5")  # the high-water mark starts again from here
    before = _resident("VmRSS")
    work()
    queue.put(_resident("VmHWM") - before)


def peak_memory(make, args, device):
    """Bytes that `make(*args)()` needs at its peak beyond what was there before it ran."""
    if device == "cuda":
        work = make(*args)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # A process of its own: the allocator of a used one hides peaks.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak_here, args=(make, args, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


# The other side -----------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_transformers(model):
    """Inside, the model computes attention and patches as transformers does."""
    configs = (model.model.language_model.config, model.model.visual.config)
    ours = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "sdpa"
    embed = model.model.visual.patch_embed
    kind, embed.__class__ = embed.__class__, Qwen2_5_VisionPatchEmbed
    try:
        yield
    finally:
        embed.__class__ = kind
        for config, name in zip(configs, ours):
            config._attn_implementation = name


def repeated_inputs(model, prompts, G, completions=None):
    """What transformers takes for B prompts, each G times with its video, padded on the left.

    completions (B, G, C) are appended, if there are any. Everything has B·G rows.
    """
    device, longest = model.device, max(len(p.ids) for p in prompts)
    pad = model.generation_config.eos_token_id[0]
    ids = torch.stack([
        torch.nn.functional.pad(p.ids, (longest - len(p.ids), 0), value=pad) for p in prompts
    ]).repeat_interleave(G, dim=0)
    is_token = [torch.arange(longest) >= longest - len(p.ids) for p in prompts]
    attention = torch.stack(is_token).long().repeat_interleave(G, dim=0)
    if completions is not None:
        ids = torch.cat([ids, completions.flatten(0, 1).cpu()], dim=1)
        attention = torch.nn.functional.pad(attention, (0, completions.shape[2]), value=1)
    rows = [p for p in prompts for _ in range(G)]
    return dict(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        mm_token_type_ids=(2 * (ids == model.config.video_token_id)).to(device),
        pixel_values_videos=torch.cat([p.patches for p in rows]).to(device, model.dtype),
        video_grid_thw=torch.tensor([p.grids[0] for p in rows], device=device),
        second_per_grid_ts=torch.tensor([p.seconds_per_grid[0] for p in rows], device=device),
    )


def repeated_logprobs(model, prompts, G, completions):
    """Log-probs (B·G, C) as public trainers compute them: every row holds its whole prompt."""
    C = completions.shape[2]
    inputs = repeated_inputs(model, prompts, G, completions)
    with plain_transformers(model):
        logits = model(**inputs, logits_to_keep=C + 1, use_cache=False).logits
    logits = logits[:, :-1].float()
    return logits.log_softmax(dim=-1).gather(2, completions.flatten(0, 1)[..., None])[..., 0]


def repeated_sampling(model, prompts, G, new_tokens):
    """`generate` on every prompt repeated G times. Returns completions (B, G, C).

    Vision tokens are suppressed as ours are: a policy that samples one ends the repeated forward
    with an error.
    """
    inputs, c = repeated_inputs(model, prompts, G), model.config
    with plain_transformers(model):
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            suppress_tokens=[c.image_token_id, c.video_token_id],
            pad_token_id=model.generation_config.eos_token_id[0],
        )
    return out[:, inputs["input_ids"].shape[1] :].unflatten(0, (len(prompts), G))
