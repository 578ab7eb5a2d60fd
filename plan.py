"""plan.py: will it fit, and how long will it take? From the model's config alone, before anything is loaded.

    python train.py --task grounding --model Qwen/Qwen2.5-VL-7B-Instruct --lora 64 --recompute --plan

Memory of one GPU is what stays (weights, gradients, optimizer) and the larger of two things that come and go: the
KV cache while a group is sampled, the activations while it is scored. Each line below is one product. What the
figures do not know is fragmentation and what CUDA itself takes: about 1.5 GB a process, which is added.

Letters as in model.py: P prompt tokens, B prompts of one process, G completions of each, C tokens of each, L = P + G·C
the row that is scored, D hidden size, I of the MLP, V vocabulary, N weights; W processes.
"""

import os

import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from data import BadInput, VideoBudget
from lora import add_adapters
from weights import check_family

# name: (memory in bytes, bfloat16 operations a second, bytes a second from memory), by the makers' data sheets
GPUS = {"H200": (141e9, 989e12, 4.8e12), "H100": (80e9, 989e12, 3.35e12), "A100": (80e9, 312e12, 2.0e12), "L40S": (48e9, 362e12, 0.86e12), "4090": (24e9, 165e12, 1.0e12)}
USED = 0.4  # share of the arithmetic that large matrix products reach in practice


def empty_model(name, lora):
    """The model with shapes and without numbers."""
    check_family(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise BadInput(f"the config of {name} cannot be read: {str(e).strip().splitlines()[0][:200]}") from e
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.tie_weights()
        return add_adapters(model, lora) if lora else model


def prompt_tokens(args):
    """P at most: the video's tokens as the budget allows, and about 200 of text. The toy's clips never fill their budget: about 80."""
    from train import TOY_MODEL

    budget = VideoBudget.of_model(args.model, **vars(args))
    return 200 + (80 if os.path.abspath(args.model) == TOY_MODEL else budget.total_pixels // 28**2)


def estimate(model, args, world, cuda=True, P=None):
    """{what: bytes} of one process, and {phase: operations} of one step of it.

    model: as empty_model makes it; args: of train.py. On a CPU weights and activations are float32.
    """
    c, v = model.config.text_config, model.config.vision_config
    P, G, C = P or prompt_tokens(args), args.group_size if args.method == "grpo" else 1, args.max_new_tokens
    B, L, number = args.prompts_per_step // world, P + G * C, 2 if cuda else 4
    if not args.train_vision:
        model.model.visual.requires_grad_(False)
    N = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    D, I, V, layers = c.hidden_size, c.intermediate_size, c.vocab_size, c.num_hidden_layers
    head = D // c.num_attention_heads
    kv = c.num_key_value_heads * head
    share = world if args.shard else 1
    kl = args.method == "grpo" and args.beta > 0

    master = trained * 4 * (cuda and not args.shard and not args.lora)  # sharded weights are float32 themselves, adapters too
    away = args.shard and args.offload  # FSDP2 keeps its shards and their gradients in the CPU's memory as well
    weights = {
        "weights": 0 if away else (N * 4 if args.shard and not args.lora else N * number) / share,
        "reference policy": N * number / share if kl and not args.lora else 0,
        "gradients": 0 if away else trained * (4 if args.shard or args.lora else number) / share,
        "optimizer": 0 if args.offload else (trained * 8 + master) / share,
        "frames of the prompts": 0 if cuda else B * P * 4 * 1176 * 4,  # a token is 4 patches of 2 × 3 × 14 × 14 float32 numbers
    }
    # What a layer keeps for its backward pass. In numbers of width D a token: of each of two norms a float32 copy of its input
    # and, where its weight is trained, the normalised input; the inputs of (q, k, v), of o and of (gate, up); q before and after
    # rotation. Of width I: the MLP's gate, silu(gate), up and product. Keys and values: once for the row, and for each completion
    # a copy of the prompt's and its own (packed_attention in model.py). With --lora each of 7 detours keeps r numbers a token.
    of_width_D = 2 * 4 / number + 2 * (not args.lora) + 3 + 2
    a_layer = number * (L * (of_width_D * D + 4 * I + 7 * (args.lora or 0)) + 2 * kv * (L + G * (P + C)))
    kept = layers * L * D * number if args.recompute else layers * a_layer
    vision = B * P * 4 * v.depth * number * (12 * v.hidden_size + 4 * v.intermediate_size) if args.train_vision else 0
    logits = min(1024, G * C) * V * 4 * 5  # float32: logits, log-softmax, the entropy's product, and the gradients of the first two
    at_once = max(logits, 1.25 * a_layer if args.recompute else 0)  # in the backward pass the head's turn is over before the layers' begins
    gathered = N * number if args.shard else 0  # all weights at once, during a rollout
    sampled = args.method == "grpo"
    cache = 2 * kv * layers * number * B * (P + G * C) + B * G * V * 4 * 3  # keys and values; logits of one token and what sampling makes of them
    moving = {"sampling: KV cache": sampled * (cache + gathered), "scoring: activations and logits": kept + vision + at_once}

    language = sum(p.numel() for n, p in model.named_parameters() if "visual" not in n and "embed_tokens" not in n)
    backward = 2 if trained > N / 2 else 1  # in forwards: one for the activations' gradients, one for the weights', which frozen ones do not need
    operations = {
        "prefill": 2 * language * B * P * sampled,
        "scoring, reference": 2 * language * B * L * kl,
        "scoring, with backward": 2 * language * B * L * (1 + backward + bool(args.recompute)) * args.updates_per_rollout,
    }
    return weights, moving, operations, dict(N=N, trained=trained, P=P, L=L, B=B, G=G, C=C)


def seconds(operations, sizes, args, gpu):
    """Rough seconds of a step: matrix products at 40 % of the GPU's arithmetic; for each decoded token all weights are read, at 60 %
    of its bandwidth. Not counted: the vision tower, attention's own products, reading the KV cache."""
    _, peak, bandwidth = GPUS[gpu]
    found = {name: n / (peak * USED) for name, n in operations.items()}
    found["decoding"] = args.max_new_tokens * sizes["N"] * 2 / (0.6 * bandwidth) if args.method == "grpo" else 0.0
    return found


def show(args):
    """Prints the estimate for these flags. --plan of train.py."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("RANK", "0") != "0":
        return
    model = empty_model(args.model, args.lora)
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    gpu = next((name for name in GPUS if name in here), "H100")
    weights, moving, operations, sizes = estimate(model, args, world)
    stays, peak = sum(weights.values()), sum(weights.values()) + max(moving.values()) + 1.5e9
    memory = torch.cuda.get_device_properties(0).total_memory if here else GPUS[gpu][0]
    print(f"{args.model}: {sizes['N'] / 1e9:.2f} billion weights, {sizes['trained'] / 1e9:.3f} trained; {world} process(es), one GPU each ({here or f'none here; figures for an {gpu}'})")
    print(f"a step of one process: {sizes['B']} prompts of at most {sizes['P']:,} tokens, {sizes['G']} completions of at most {sizes['C']:,} each; rows of {sizes['L']:,} tokens are scored\n")
    for name, n in weights.items():
        print(f"  {name:<34}{n / 1e9:8.2f} GB")
    for name, n in moving.items():
        print(f"  {name:<34}{n / 1e9:8.2f} GB{'   (comes and goes)'}")
    print(f"  {'at most, with 1.5 GB for CUDA':<34}{peak / 1e9:8.2f} GB   {'fits' if peak < memory else 'DOES NOT FIT'} in {memory / 1e9:.0f} GB")
    if args.offload:
        print(f"  {'in the CPU’s memory, a process':<34}{sizes['trained'] * (16 / world if args.shard else 12) / 1e9:8.2f} GB")
    parts = seconds(operations, sizes, args, gpu)
    print(f"\nabout {sum(parts.values()):.0f} s a step on an {gpu}: " + ", ".join(f"{name} {s:.1f}" for name, s in parts.items()))
    if peak >= memory:
        hints = [("--recompute", not args.recompute and max(moving.values()) == moving["scoring: activations and logits"]), ("--lora 64", not args.lora and stays > memory / 2),
                 ("--shard on more GPUs", not args.shard and stays > memory / 2), ("--offload", not args.offload and weights["optimizer"] > memory / 8),
                 ("a lower --max-new-tokens or --total-pixels", True)]  # fmt: skip
        print("to make it fit, try: " + ", ".join(hint for hint, useful in hints if useful))
