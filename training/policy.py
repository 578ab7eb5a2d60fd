"""policy.py: the models of a run, and the policy for others to read."""

import copy
import os
from contextlib import nullcontext
from types import MethodType

import torch
from torch.distributed.fsdp import register_fsdp_forward_method

import grpo
from lib.adapters import add_adapters, reference_policy, save_adapters
from lib.attention import check_attention
from lib.errors import BadInput
from lib.processes import whole
from lib.weights import has_bfloat16, save, write_weights
from model import encode_videos, load, prepare
from training.settings import NO_BFLOAT16


def as_policy(model):
    """The model with the methods that grpo_step calls. FSDP2 gathers sharded weights when a method
    is called that was registered with it; for weights that are whole, registering does nothing."""
    methods = {"features": encode_videos, "sample": grpo.sample_groups, "logprobs": grpo.logprobs}
    for name, function in methods.items():
        setattr(model, name, MethodType(function, model))
        register_fsdp_forward_method(model, name)
    return model


def load_models(args, device):
    """(policy, tokenizer, reference): `with reference() as frozen` gives the policy as it was
    before training, or None where the loss has no KL."""
    dtype = getattr(torch, args.dtype)
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        raise BadInput(NO_BFLOAT16)
    needs_copy = args.method == "grpo" and args.beta > 0 and not args.lora
    frozen = None
    if args.shard or args.recompute:
        from lib import sharding
    if args.shard:
        check_attention(args.attn, device)
        wanted = dict(adapters=args.lora, recompute=args.recompute, offload=args.offload)
        policy, tokenizer = sharding.load_sharded(args.model, device, dtype, **wanted)
        prepare(policy, args.attn)
        if needs_copy:
            frozen, _ = sharding.load_sharded(args.model, device, dtype, trained=False)
            prepare(frozen, args.attn)
    else:
        policy, tokenizer = load(args.model, device, dtype, args.attn)
        if needs_copy:
            frozen = copy.deepcopy(policy).requires_grad_(False)
        if args.lora:
            add_adapters(policy, args.lora)
        if args.recompute:
            sharding.recompute_activations(policy)
    if not args.train_vision:
        policy.model.visual.requires_grad_(False)
    policy, frozen = as_policy(policy), as_policy(frozen) if frozen else None
    reference = lambda: reference_policy(policy) if args.lora else nullcontext(frozen)
    return policy, tokenizer, reference


def save_policy(policy, tokenizer, budget, out, args, rank):
    """The policy for others to read: a model folder, or with --lora PEFT's adapter folder.

    Every process must call it: sharded weights are gathered, and the first process writes them.
    """
    base = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
    if args.lora:
        tensors = {name: whole(p) for name, p in policy.named_parameters() if p.requires_grad}
        write = lambda to: save_adapters(tensors, to, base, args.lora)
    else:
        state = None
        if args.shard:
            from lib.sharding import whole_weights

            state = whole_weights(policy, getattr(torch, args.dtype))
        write = lambda to: write_weights(policy, to, state)
    if rank == 0:
        save(policy, tokenizer, budget, os.path.join(out, "policy"), write, card(base, args))


def card(base, args):
    """The policy's README.md, in the hub's form."""
    how = "SFT" if args.method == "sft" else f"GRPO ({args.loss} loss)"
    kind = f"LoRA adapters of rank {args.lora}" if args.lora else "All weights"
    return f"""---
base_model: {base}
library_name: transformers
pipeline_tag: video-text-to-text
---

{kind} of {base} after {how} on {args.task}, {"with" if args.think else "without"} thinking. The
run's `settings.json` says how; the licence of the base holds.
"""
