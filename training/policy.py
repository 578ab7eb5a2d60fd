"""policy.py: the models of a run, and the policy for others to read."""

import copy
import os
from contextlib import nullcontext
from types import MethodType

import torch
from torch.distributed.fsdp import register_fsdp_forward_method

import grpo
from lib.adapters import add_adapters, reference_policy, save_adapters
from lib.processes import whole
from lib.sharding import load_sharded, recompute_activations
from lib.weights import load, save, whole_parts, write_parts
from model import encode_videos


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
    wanted = dict(attn=args.attn, adapters=args.lora, recompute=args.recompute)
    dtype = getattr(torch, args.dtype)
    needs_copy = args.method == "grpo" and args.beta > 0 and not args.lora
    frozen = None
    if args.shard:
        policy, tokenizer = load_sharded(args.model, device, dtype, offload=args.offload, **wanted)
        if needs_copy:
            frozen, _ = load_sharded(args.model, device, dtype, attn=args.attn, trained=False)
    else:
        policy, tokenizer = load(args.model, device, dtype, args.attn)
        if needs_copy:
            frozen = copy.deepcopy(policy).requires_grad_(False)
        if args.lora:
            add_adapters(policy, args.lora)
        if args.recompute:
            recompute_activations(policy)
    if not args.train_vision:
        policy.model.visual.requires_grad_(False)
    policy, frozen = as_policy(policy), as_policy(frozen) if frozen else None
    reference = lambda: reference_policy(policy) if args.lora else nullcontext(frozen)
    return policy, tokenizer, reference


def save_policy(policy, tokenizer, budget, out, args, rank):
    """The policy for others to read: a model folder, or with --lora PEFT's adapter folder.

    Every process must call it: sharded weights are gathered, and the first process writes them part
    by part.
    """
    folder = os.path.join(out, "policy")
    if args.lora:
        base = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        tensors = {name: whole(p) for name, p in policy.named_parameters() if p.requires_grad}
        if rank == 0:
            write = lambda to: save_adapters(tensors, to, base, args.lora)
            save(policy, tokenizer, budget, folder, write)
        return
    parts = whole_parts(policy, keep=rank == 0)
    try:
        if rank == 0:
            save(policy, tokenizer, budget, folder, lambda to: write_parts(policy, to, parts))
    finally:
        if args.shard:  # where writing failed, the others still wait for this process's share
            for _ in parts:
                pass
