"""plan.py: will it fit, and how long will it take? From the model's config alone.

    python train.py --model Qwen/Qwen2.5-VL-7B-Instruct --lora 64 --recompute --plan
    python train.py --model Qwen/Qwen2.5-VL-7B-Instruct --shard --recompute --plan 8   # 8 processes

The memory of one GPU is what stays through a step (weights, gradients, optimizer) and the largest
of four things that come and go, one after the other: the vision tower's numbers while videos are
read, the KV cache while a group is sampled, the activations while it is scored, one parameter's
temporaries while the optimizer steps. Each line below is one product of sizes and bytes. Gradients
are counted throughout, though there are none before the scoring.

What the figures do not know is fragmentation and what CUDA itself takes: about 1.5 GB per process,
which is added.

Letters as in model.py: P prompt tokens, B prompts of one process, G completions of each, C tokens
of each, L = P + G·C of a group that is scored, D hidden size, I of the MLP, V vocabulary, N
weights; W processes.
"""

import os
from types import SimpleNamespace

import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from data import VideoBudget
from lib.adapters import add_adapters
from lib.errors import BadInput
from lib.identity import is_toy
from lib.weights import check_family
from training.settings import check_processes

# name: (memory in bytes, bfloat16 operations per second, bytes per second from memory), by the
# maker's data sheets
GPUS = {
    "H200": (141e9, 989e12, 4.8e12),
    "H100": (80e9, 989e12, 3.35e12),
    "A100": (80e9, 312e12, 2.0e12),
    "L40S": (48e9, 362e12, 0.86e12),
    "4090": (24e9, 165e12, 1.0e12),
}
USED = 0.4  # share of the arithmetic that large matrix products reach in practice
PER_NODE = 8  # GPUs, and so processes, of one machine, where torchrun does not say
FOR_CUDA = 1.5e9  # bytes of each process that no tensor holds
PATCH = 1176  # numbers of a patch: 2 frames × 3 colours × 14 × 14 pixels; four patches make a token


def known_gpu(device_name):
    """The key of GPUS that a device's name holds; None where there is none."""
    return next((name for name in GPUS if name in device_name), None)


def empty_model(name, lora):
    """The model with shapes and without numbers. Raises BadInput where there is no such model."""
    check_family(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as e:
        why = str(e).strip().splitlines()[0][:200]
        raise BadInput(f"the config of {name} cannot be read: {why}") from e
    return model_of(config, lora)


def model_of(config, lora):
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.tie_weights()
        return add_adapters(model, lora) if lora else model


def prompt_tokens(args):
    """P at most: the video's tokens as the budget allows, and about 200 of text.

    The toy's clips never fill their budget: they take about 80.
    """
    budget = VideoBudget.of_model(args.model, **vars(args))
    return 200 + (80 if is_toy(args.model) else budget.total_pixels // 28**2)


# ------------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------------


def estimate(model, args, world, cuda=True, P=None, number=None):
    """What one process needs, and what one step of it computes.

    Args:    model: as empty_model makes it; args: of train.py; world: W; cuda: False for a run on
             the CPU, which computes in float32; P: where it is known better than the budget says;
             number: bytes of a number that is computed in, to ask for bfloat16 on the CPU.
    Returns: {what stays: bytes}, {what comes and goes: bytes}, {phase: operations}, and the sizes
             as a dict.
    """
    s = sizes_of(model, args, world, number or (2 if cuda else 4), P or prompt_tokens(args))
    stays = what_stays(s, args)
    if not cuda:
        stays["frames of the prompts"] = s.B * s.P * 4 * PATCH * 4  # float32
    moving = {
        "reading: the vision tower": reading(s, args),
        "sampling: KV cache": sampling(s, args) * (args.method == "grpo"),
        "scoring: activations and logits": scoring(s, args),
        "optimizer: one parameter": optimizer_step(s, args, world),
    }
    return stays, moving, operations(s, args), vars(s)


def sizes_of(model, args, world, number, P):
    """The letters of the docstring above, numbers of weights, and bytes of a number."""
    c, v = model.config.text_config, model.config.vision_config
    if not args.train_vision:
        model.model.visual.requires_grad_(False)
    count = lambda parameters: sum(p.numel() for p in parameters)
    named, units = dict(model.named_parameters()), model.model.language_model.layers
    trained = [p for p in named.values() if p.requires_grad]
    G, C, B = args.group_size, args.max_new_tokens, args.prompts_per_step // world
    videos = B  # of how many prompts they are read at once
    if args.method == "sft":
        G = videos = 1
    return SimpleNamespace(
        **dict(number=number, share=world if args.shard else 1),
        **dict(P=P, G=G, C=C, B=B, L=P + G * C, videos=videos, patches=videos * P * 4),
        N=count(named.values()),
        trained=count(trained),
        largest=max(p.numel() for p in trained),
        layer=count(units[0].parameters()),
        # what is in no layer of the language model and no block of the vision tower
        root=count(p for n, p in named.items() if ".layers." not in n and ".blocks." not in n),
        language=count(p for n, p in named.items() if not ("visual" in n or "embed_tokens" in n)),
        **dict(D=c.hidden_size, I=c.intermediate_size, V=c.vocab_size),
        **dict(H=c.num_attention_heads, layers=c.num_hidden_layers),
        kv=c.num_key_value_heads * (c.hidden_size // c.num_attention_heads),  # of a token's keys
        **dict(vision_D=v.hidden_size, vision_I=v.intermediate_size, vision_layers=v.depth),
    )


def what_stays(s, args):
    """{what: bytes on the GPU} from the beginning of a step to its end."""
    # Sharded weights are float32 themselves if they are trained, and adapters always are; others
    # have master copies.
    stored = 4 if args.shard and not args.lora else s.number
    gradient = 4 if args.shard or args.lora else s.number
    master = 0 if args.shard or args.lora or s.number == 4 else 4
    kl = args.method == "grpo" and args.beta > 0
    # With both flags, FSDP2 keeps its shards and their gradients in the CPU's memory as well.
    away = args.shard and args.offload
    reference = s.N * s.number / s.share
    return {
        "weights": 0 if away else s.N * stored / s.share,
        "reference policy": reference if kl and not args.lora else 0,
        "gradients": 0 if away else s.trained * gradient / s.share,
        "optimizer": 0 if args.offload else s.trained * (8 + master) / s.share,
        "features of the videos": s.videos * s.P * s.D * s.number,
    }


def reading(s, args):
    """Bytes of the vision tower's forward, which reads all videos of a step at once.

    With --shard the root is gathered meanwhile (gathered_while_scoring).
    """
    # At the peak of one block, while queries are rotated in float32: input, normalised input, q, k,
    # v in the dtype that is computed in; float32 copies of q and k where that is another; one
    # rotated, three products on the way to it.
    rotating = s.vision_D * (5 * s.number + (8 if s.number < 4 else 0) + 4 * 4)
    mlp = s.number * (2 * s.vision_D + 4 * s.vision_I)
    block = s.patches * (max(rotating, mlp) + PATCH * s.number)
    return block + (s.root * s.number if args.shard else 0)


def vision_graph(s, args):
    """Bytes that --train-vision keeps of one group's video for the backward pass."""
    # A block keeps, in numbers of its width: of each of two norms a float32 copy of the input; 5
    # inputs of norms and of products; queries, keys, values and outputs of attention. The merger
    # keeps 4, and a float32 copy.
    block = (2 * 4 / s.number + 5 + 4) * s.vision_D + 4 * s.vision_I
    kept = s.vision_layers * block + (4 / s.number + 4) * s.vision_D + PATCH
    return 4 * s.P * s.number * kept if args.train_vision else 0


def kv_cache(s):
    """Bytes of keys and values (GroupCache in model.py): of the prompts, of their completions."""
    a_token = 2 * s.kv * s.layers * s.number
    return a_token * s.B * s.P, a_token * s.B * s.G * s.C


def sampling(s, args):
    """Bytes of the KV cache, of what one decoded token needs, and of what --shard gathers."""
    of_prompts, of_completions = kv_cache(s)
    # float32 logits and log-softmax, float64 probabilities and their sums
    logits = s.B * s.G * s.V * (4 + 4 + 8 + 8)
    # attention scores of one layer, masked, normalised in float32, cast back
    scores = s.B * s.G * s.H * (s.P + s.C) * (4 + 3 * s.number)
    # Before that, the prompts' caches are stacked into new tensors, and the old ones released.
    stacking = 2 * of_prompts
    decoding = of_prompts + of_completions + logits + scores
    # A layer arrives in one buffer and is then cut up.
    gathered = (s.N + s.layer) * s.number if args.shard else 0
    return max(stacking, decoding) + gathered + vision_graph(s, args)


def layer_activations(s, args):
    """Bytes that a layer of the language model keeps of one group for its backward pass."""
    # Of width D per token: of each of two norms a float32 copy of its input and, where its weight
    # is trained, the normalised input; the inputs of (q, k, v), of o and of (gate, up); queries and
    # outputs of attention. Of width I: the MLP's gate, silu(gate), up and product. With --lora each
    # of 7 detours keeps r numbers per token.
    of_width_D = 2 * 4 / s.number + 2 * (not args.lora) + 3 + 2
    per_token = of_width_D * s.D + 4 * s.I + 7 * (args.lora or 0)
    # Keys and values: once for the row, and for each completion a copy of the prompt's and its own
    # (packed_attention).
    keys_and_values = 2 * s.kv * (s.L + s.G * (s.P + s.C))
    return s.number * (s.L * per_token + keys_and_values)


def scoring(s, args):
    """Bytes of one group's activations and logits, and of what --shard gathers meanwhile."""
    a_layer = layer_activations(s, args)
    kept = s.layers * (s.L * s.D * s.number if args.recompute else a_layer)
    # float32: logits, log-softmax, the entropy's product, and the gradients of the first two
    logits = min(1024, s.G * s.C) * s.V * 4 * 5
    # in the backward pass the head's turn is over before the layers' begins
    at_once = max(logits, 1.25 * a_layer if args.recompute else 0)
    gathered = gathered_while_scoring(s, args) if args.shard else 0
    return kept + at_once + gathered + vision_graph(s, args)


def gathered_while_scoring(s, args):
    """Bytes of FSDP2's units (shard in sharding.py) in the backward pass.

    The root is what is in no layer (embeddings, head, norms): it is whole throughout. Layers take
    turns: the weights of one, and of the next, gathered ahead in one buffer and then cut up. Where
    they are trained, gradients: in the dtype that is computed in, and in float32 on the way to
    their owners, of a layer and the one before.
    """
    trained = not args.lora
    root = s.root * s.number * (1 + trained)
    return root + s.layer * (3 * s.number + trained * (s.number + 2 * 4))


def optimizer_step(s, args, world):
    """Bytes of what AdamW makes on the way, one parameter after the other: the largest counts."""
    # The gradient in float32, where masters are copies; the root of the second moment, and the
    # root divided by its correction.
    copied = not (args.shard or args.lora or s.number == 4)
    update = 0 if args.offload else s.largest / s.share * (4 * copied + 8)
    # Before that, copies add up their gradients in messages (training/optimizer.py).
    message = min(s.trained, 25e6 + s.largest) * (4 if args.lora else s.number)
    return max(update, message if world > 1 and not args.shard else 0)


def cpu_memory(s, args):
    """Bytes of the CPU's memory that one process takes, besides Python and its libraries.

    s: sizes, as estimate returns. Masters and moments are 12 per weight. Their float32 gradients
    come one at a time, as AdamW's two temporaries do (optimizer_step). With --shard all weights
    live there, trained or not, and the gradients too.
    """
    s = SimpleNamespace(**s)
    # float32 frames: of this step, of the next, and of one on the way to the GPU
    frames = 3 * s.videos * s.P * 4 * PATCH * 4
    if not args.offload:
        return frames
    if args.shard:
        weights = s.N * (s.number if args.lora else 4)
        return frames + (weights + s.trained * 12 + s.largest * 8) / s.share
    return frames + s.trained * 12 + s.largest * (4 + 8)


# ------------------------------------------------------------------------------------------------
# Time
# ------------------------------------------------------------------------------------------------


def operations(s, args):
    """{phase: floating-point operations} of one process's step: two per weight, token and pass."""
    sampled = args.method == "grpo"
    # A backward pass in forwards: one for the activations' gradients, one for the weights', which
    # frozen ones do not need.
    backward = 2 if s.trained > s.N / 2 else 1
    passes = (1 + backward + bool(args.recompute)) * args.updates_per_rollout
    return {
        "prefill": 2 * s.language * s.B * s.P * sampled,
        "scoring, reference": 2 * s.language * s.B * s.L * (sampled and args.beta > 0),
        "scoring, with backward": 2 * s.language * s.B * s.L * passes,
    }


def seconds(phases, sizes, args, gpu):
    """Rough seconds of each phase, from its operations.

    Matrix products run at 40 % of the GPU's arithmetic; for each decoded token all weights are
    read, at 60 % of its bandwidth. Not counted: the vision tower, the products inside attention,
    reading the KV cache.
    """
    _, peak, bandwidth = GPUS[gpu]
    parts = {name: n / (peak * USED) for name, n in phases.items()}
    decoded = args.max_new_tokens if args.method == "grpo" else 0
    return parts | {"decoding": decoded * sizes["N"] * 2 / (0.6 * bandwidth)}


# ------------------------------------------------------------------------------------------------
# --plan
# ------------------------------------------------------------------------------------------------


def show(args):
    """Prints the estimate for these flags and args.plan processes.

    Raises BadInput where the flags are not for so many processes, as the run would.
    """
    world = args.plan
    check_processes(args, world)
    if os.environ.get("RANK", "0") != "0":
        return
    stays, moving, phases, sizes = estimate(empty_model(args.model, args.lora), args, world)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    gpu = known_gpu(device) or "H100"
    memory = torch.cuda.get_device_properties(0).total_memory if device else GPUS[gpu][0]
    peak = sum(stays.values()) + max(moving.values()) + FOR_CUDA
    where = device or f"none here; figures for an {gpu}"
    print(
        f"{args.model}: {sizes['N'] / 1e9:.2f} billion weights, "
        f"{sizes['trained'] / 1e9:.3f} trained; {world} process(es), one GPU each ({where})"
    )
    print(
        f"a step of one process: {sizes['B']} prompts of at most {sizes['P']:,} tokens, "
        f"{sizes['G']} completions of at most {sizes['C']:,} each; "
        f"rows of {sizes['L']:,} tokens are scored\n"
    )
    line = lambda name, n, note="": print(f"  {name:<38}{n / 1e9:8.2f} GB   {note}".rstrip())
    for name, n in stays.items():
        line(name, n)
    for name, n in moving.items():
        line(name, n, "(comes and goes)")
    fits = "fits" if peak < memory else "DOES NOT FIT"
    line("at most, with 1.5 GB for CUDA", peak, f"{fits} in {memory / 1e9:.0f} GB")
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", min(world, PER_NODE)))
    on_cpu = cpu_memory(sizes, args)
    all_of_node = f"{on_cpu * of_node / 1e9:.2f} GB for the {of_node} of a node"
    line("CPU memory of a process", on_cpu, all_of_node)
    parts = seconds(phases, sizes, args, gpu)
    each = ", ".join(f"{name} {s:.1f}" for name, s in parts.items())
    print(f"\nabout {sum(parts.values()):.0f} s per step on an {gpu}: {each}")
    if peak >= memory:
        print("to make it fit, try: " + ", ".join(hints(stays, moving, args, memory)))


def hints(stays, moving, args, memory):
    """The flags that would make the largest items smaller."""
    large = sum(stays.values()) > memory / 2
    scored_is_most = max(moving.values()) == moving["scoring: activations and logits"]
    useful = {
        "--recompute": not args.recompute and scored_is_most,
        "--lora 64": not args.lora and large,
        "--shard on more GPUs": not args.shard and large,
        "--offload": not args.offload and stays["optimizer"] > memory / 8,
        "a lower --max-new-tokens or --total-pixels": True,
    }
    return [hint for hint, is_useful in useful.items() if is_useful]
