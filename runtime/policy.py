"""policy.py: the models of a run, and the policy for others to read."""

import copy
import os
from contextlib import nullcontext

import torch

from runtime.models import load, save, whole_parts, write_parts
from runtime.processes import whole
from scale.adapters import add_adapters, reference_policy, save_adapters
from scale.sharding import load_sharded, recompute_activations


def load_models(args, device):
    """(policy, tokenizer, reference): `with reference() as fixed` gives the policy as it was before
    training."""
    wanted = dict(attn=args.attn, adapters=args.lora, recompute=args.recompute)
    dtype = getattr(torch, args.dtype)
    kl = args.method == "grpo" and args.beta > 0
    if args.shard:
        policy, tokenizer = load_sharded(args.model, device, dtype, offload=args.offload, **wanted)
        fixed = (
            load_sharded(args.model, device, dtype, attn=args.attn, trained=False)[0]
            if kl and not args.lora
            else None
        )
    else:
        policy, tokenizer = load(args.model, device, dtype, args.attn)
        fixed = copy.deepcopy(policy).requires_grad_(False) if kl and not args.lora else None
        if args.lora:
            add_adapters(policy, args.lora)
        if args.recompute:
            recompute_activations(policy)
    if not args.train_vision:
        policy.model.visual.requires_grad_(False)
    return policy, tokenizer, lambda: reference_policy(policy) if args.lora else nullcontext(fixed)


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
            save(
                policy,
                tokenizer,
                budget,
                folder,
                lambda to: save_adapters(tensors, to, base, args.lora),
            )
        return
    parts = whole_parts(policy, keep=rank == 0)
    try:
        if rank == 0:
            save(policy, tokenizer, budget, folder, lambda to: write_parts(policy, to, parts))
    finally:  # where writing failed, the other processes still wait for this one's share of the rest
        if args.shard:
            for _ in parts:
                pass
