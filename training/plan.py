"""plan.py: will it fit, and how long will it take? From the model's config alone.

    python train.py --model Qwen/Qwen2.5-VL-7B-Instruct --lora 64 --recompute --plan --gpu 24

A GPU's memory holds things that stay through a step, and the largest of four that come and go.

Letters as in model.py; B: prompts of one process, L = P + G·C, D: hidden size, I: of the MLP, H:
heads, N: weights, size: bytes of a number that is computed in.
"""

import os
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from data import VideoBudget
from lib.adapters import add_adapters
from lib.errors import BadInput, first_line
from lib.families import FAMILIES
from lib.identity import is_toy
from lib.weights import family_of
from training.log import GPUS, known_gpu
from training.settings import NO_BFLOAT16, check_processes

PAPER = {"grounding": 5338, "tracking": 9335, "gqa": 3358}  # examples that the paper trains on


def gpu_of(asked):
    """(key of GPUS, bytes of memory) of --gpu: a key, or GB, then as fast as the first with it."""
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    asked = asked or known_gpu(here) or "H100"
    memory = GPUS[asked][0] if asked in GPUS else 1e9 * int(asked) if asked.isdecimal() else 0
    for name, (most, *_) in GPUS.items():
        if asked == name or (asked not in GPUS and most >= memory > 0):
            return name, memory
    raise BadInput(f"--gpu {asked} is unknown; there is: {', '.join(GPUS)}, or GB up to 141")


def empty_model(name, lora):
    """The model with shapes and without numbers. Raises BadInput where there is no such model."""
    family_of(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise BadInput(f"the config of {name} cannot be read: {first_line(e)}") from e
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        return add_adapters(model, lora) if lora else model


def sizes_of(model, args, world, P=None):
    """The letters above and numbers of weights. P: where it is known better than the budget is."""
    if not args.train_vision:
        model.model.visual.requires_grad_(False)
    family, written = FAMILIES[model.config.model_type], 0
    if P is None:
        budget = VideoBudget.of_model(args.model, model.config.model_type, **vars(args))
        pairs = min(budget.max_frames // 2, budget.total_pixels // budget.min_frame_pixels)
        written = pairs * family.written  # its seconds
        # about 200 of text; the toy's clips never fill their budget
        P = 200 + written + (80 if is_toy(args.model) else budget.total_pixels // family.cell**2)
    C, B, sft = args.max_new_tokens, args.prompts_per_step // world, args.method == "sft"
    G, videos = (1, 1) if sft else (args.group_size, B)  # videos are read together for sampling
    text, vision = model.config.text_config, model.config.vision_config
    weights = {name: p.numel() for name, p in model.named_parameters()}
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    count = lambda *without: sum(n for k, n in weights.items() if not any(w in k for w in without))
    H, K = text.num_attention_heads, text.num_key_value_heads
    d = getattr(text, "head_dim", None) or text.hidden_size // H
    deeper = len(getattr(vision, "deepstack_visual_indexes", ()))
    size = getattr(torch, args.dtype).itemsize
    flash = size == 2 and gpu_of(args.gpu)[0] != "T4"  # lib.attention.knows_groups
    return SimpleNamespace(
        **dict(P=P, G=G, C=C, B=B, L=P + G * C, videos=videos, H=H, heads=H * d),
        **dict(patches=videos * (P - written) * 4, patch=3 * 2 * vision.patch_size**2),
        **dict(features=1 + deeper, head_norms=family.head_norms),
        **dict(D=text.hidden_size, I=text.intermediate_size, V=text.vocab_size),
        **dict(layers=text.num_hidden_layers, copies=1 if flash else H // K),
        kv=K * d,  # numbers of a token's keys
        **dict(vision_D=vision.hidden_size, vision_I=vision.intermediate_size),
        **dict(vision_layers=vision.depth, N=count(), trained=sum(trained), largest=max(trained)),
        **dict(root=count(".layers.", ".blocks."), language=count("visual", "embed_tokens")),
        layer=(count("visual") - count("visual", ".layers.")) // text.num_hidden_layers,
        **dict(size=size, share=world if args.shard else 1),
    )


def what_stays(s, args):
    """({what: bytes on the GPU throughout a step}, bytes in one process's CPU memory)."""
    # Adapters are float32, as sharded weights are that are trained; others have master copies.
    float32 = bool(args.shard or args.lora or s.size == 4)
    weights = s.N * (4 if args.shard and not args.lora else s.size)
    weights += s.trained * (4 - s.size) if args.lora else 0
    needs_copy = args.method == "grpo" and args.beta > 0 and not args.lora
    # With both flags FSDP2 keeps its shards and their gradients in the CPU's memory as well.
    away = args.shard and args.offload
    stays = {
        "weights": (not away) * weights / s.share,
        "reference policy": needs_copy * s.N * s.size / s.share,
        "gradients": (not away) * s.trained * (4 if float32 else s.size) / s.share,
        "optimizer": (not args.offload) * s.trained * (8 if float32 else 12) / s.share,
        "features of the videos": s.videos * s.P * s.features * s.D * s.size,
    }
    # float32 frames of this step, of the next, and of one on their way; masters and moments
    offloaded = args.offload * (12 * s.trained + 12 * s.largest + away * weights) / s.share
    return stays, 3 * s.patches * s.patch * 4 + offloaded


def vision_graph(s, args):
    """Bytes that --train-vision keeps of one group's video for the backward pass."""
    # A block keeps, in numbers of its width: two norms' inputs in float32; 5 inputs of norms and
    # products; q, k, v and outputs. The merger keeps 4, and one in float32.
    width = s.vision_layers * (8 / s.size + 9) + 4 / s.size + 4
    numbers = width * s.vision_D + s.vision_layers * 4 * s.vision_I + s.patch
    return args.train_vision * s.P * 4 * s.size * numbers


def kv_cache(s):
    """Bytes of keys and values (GroupCache): of the prompts, of their completions."""
    return tuple(2 * s.kv * s.layers * s.size * tokens for tokens in (s.B * s.P, s.B * s.G * s.C))


def layer_activations(s, args):
    """Bytes that a layer of the language model keeps of one group for its backward pass."""
    # Of width D per token: two norms' inputs in float32 and, where their weights are trained, what
    # they give; the inputs of (q, k, v) and of (gate, up). Of all heads' width: the input of o,
    # queries and outputs of attention; where heads have norms, these like the two, for keys too. Of
    # width I: gate, silu(gate), up and product. Each of 7 detours: r numbers. Keys and values:
    # once, and for each completion a copy of the prompt's and its own; without flash, of each head.
    norm = 4 / s.size + (not args.lora)
    per_token = (2 * norm + 2) * s.D + 3 * s.heads + s.head_norms * norm * (s.heads + s.kv)
    per_token += 4 * s.I + 7 * (args.lora or 0)
    tokens = (s.L if s.copies == 1 else s.P) + s.G * (s.P + s.C)
    return s.size * (s.L * per_token + 2 * s.kv * s.copies * tokens)


def comes_and_goes(s, args):
    """{name: bytes on the GPU}; only one of them is there at a time."""
    cache, a_layer = kv_cache(s), layer_activations(s, args)
    # At the peak of a vision block, while queries are rotated in float32: input, normalised input,
    # q, k, v; float32 copies of q and k where these are not; one rotated, and three products.
    rotating = s.vision_D * (5 * s.size + 8 * (s.size < 4) + 4 * 4)
    block = max(rotating, s.size * (2 * s.vision_D + 4 * s.vision_I)) + s.patch * s.size
    # A decoded token: float32 logits and log-softmax, float64 probabilities and their sums; scores
    # of one layer, masked, their softmax. Before it, the prompts' caches are stacked anew.
    token = s.B * s.G * (s.V * (4 + 4 + 8 + 8) + s.H * (s.P + s.C) * 3 * s.size)
    # In float32: logits, log-softmax, the entropy's product, and the gradients of the first two.
    logits = min(1024, s.G * s.C) * s.V * 4 * 5
    kept = s.layers * (s.L * s.D * s.size if args.recompute else a_layer)
    # AdamW's two temporaries of the largest parameter, and a master's float32 gradient.
    update = s.largest / s.share * (8 if args.shard or args.lora or s.size == 4 else 12)
    # FSDP2 gathers units: the root (all that is in no layer) throughout, every layer for a rollout,
    # and in the backward pass a layer and the next, in one buffer that is then cut up; gradients of
    # what is trained too, of a layer and the one before, in float32 on the way to their owners.
    root, grads = s.root * s.size * args.shard, not args.lora
    backward = s.layer * (3 * s.size + grads * (s.size + 2 * 4)) * args.shard
    decoding = max(2 * cache[0], sum(cache) + token) + (s.N + s.layer) * s.size * args.shard
    scoring = kept + max(logits, 1.25 * a_layer * args.recompute) + root * (1 + grads) + backward
    return {
        "reading: the vision tower": s.patches * block + root,
        "sampling: KV cache": (args.method == "grpo") * decoding,
        "scoring: activations and logits": scoring + vision_graph(s, args),
        "optimizer: one parameter": (not args.offload) * update,
    }


def seconds(s, args, gpu):
    """{phase: rough seconds}: products at 40 % of the arithmetic, decoding at 60 % of bandwidth."""
    _, half, single, bandwidth = GPUS[gpu]
    a_token = 2 * s.language * s.B / (0.4 * (single if s.size == 4 else half))
    grpo = args.method == "grpo"
    # A backward pass is a forward for the activations' gradients, and one for trained weights'.
    passes = 1 + (2 if s.trained > s.N / 2 else 1) + args.recompute
    return {
        "prefill": grpo * a_token * s.P,
        "decoding": grpo * s.C * s.N * s.size / (0.6 * bandwidth),
        "scoring, reference": (grpo and args.beta > 0) * a_token * s.L,
        "scoring, with backward": a_token * s.L * passes * args.updates_per_rollout,
    }


def show(args):
    """Prints the estimate for args.plan processes; refuses what the run would refuse."""
    world = args.plan
    check_processes(args, world)
    if os.environ.get("RANK", "0") != "0":
        return
    gpu, memory = gpu_of(args.gpu)
    if gpu == "T4" and args.dtype == "bfloat16":
        raise BadInput(NO_BFLOAT16)
    s = sizes_of(empty_model(args.model, args.lora), args, world)
    (stays, on_cpu), moving = what_stays(s, args), comes_and_goes(s, args)
    peak = sum(stays.values()) + max(moving.values()) + 1.5e9  # CUDA itself
    parts = seconds(s, args, gpu)
    examples = [args.examples or PAPER.get(task, 0) for task in args.tasks]
    steps = args.steps or (-(-sum(examples) // args.prompts_per_step) if all(examples) else 0)
    print(
        f"{args.model}: {s.N / 1e9:.2f} billion weights, {s.trained / 1e9:.3f} trained, computed in"
        f" {args.dtype}; processes: {world}, with one {gpu} each\na step of one process: {s.B} "
        f"prompts of at most {s.P:,} tokens, {s.G} completions of at most {s.C:,} each\n"
    )
    for what, n in (stays | moving).items():
        print(f"  {what:<38}{n / 1e9:8.2f} GB" + "   (comes and goes)" * (what in moving))
    fits = "fits" if peak < memory else "DOES NOT FIT"
    print(f"  at most, with 1.5 GB for CUDA{peak / 1e9:17.2f} GB   {fits} in {memory / 1e9:.0f} GB")
    print(f"  CPU memory of a node{min(world, 8) * on_cpu / 1e9:26.2f} GB   (of at most 8 GPUs)")
    if s.copies > 1:
        print(f"  no flash kernel computes this attention: keys are copied, {s.copies} times each")
    each = ", ".join(f"{name} {t:.1f}" for name, t in parts.items())
    print(f"\nabout {sum(parts.values()):.0f} s per step of a {gpu}: {each}")
    if steps:
        hours = steps * sum(parts.values()) / 3600
        print(f"{steps:,} steps: about {hours:.1f} hours, {hours * world:.1f} GPU-hours")
    if peak >= memory:
        tips = ("--recompute", "--lora 64", "--offload", "--shard on more GPUs")
        others = [tip for tip in tips if not getattr(args, tip.split()[0].strip("-"))]
        print("to make it fit, try: " + ", ".join([*others, "a lower --total-pixels"]))
