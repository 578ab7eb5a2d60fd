"""sharding.py: weights too large for one GPU.

A step's work is shared by prompts: each process samples, scores and differentiates its own, and the
gradients are added up. What differs is where the weights are:

    copied     every process holds all of them, and gradients are added up by hand
               (training/optimizer.py)
    sharded    --shard: each of W processes holds 1/W of every weight, gradient and optimizer state
               (FSDP2, arXiv 2304.11277 and torch.distributed.fsdp.fully_shard); a layer's weights
               are gathered when it runs
"""

import warnings
from functools import partial

import torch
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.utils.checkpoint import checkpoint

from lib.adapters import add_adapters
from lib.errors import BadInput
from lib.processes import on_each
from lib.weights import empty, fill, under_adapters
from training.optimizer import fill_own_part

# ------------------------------------------------------------------------------------------------
# Memory: layers computed twice, weights held once
# ------------------------------------------------------------------------------------------------


def recompute_activations(policy):
    """Keeps only each language layer's input, and computes the rest again in the backward pass.

    A third more arithmetic. Of a layer's activations, 2 · D bytes per token remain (its input, in
    16 bits) of about 34 · D (arXiv 2205.05198, table 2, for an MLP 4 · D wide; plan.py counts
    Qwen2.5-VL's).
    """
    for layer in policy.model.language_model.layers:
        layer.forward = partial(recomputed, layer.forward)


def recomputed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def shard(model, dtype, offload=False):
    """Splits every weight over all processes. Each layer is a unit; the rest (embeddings, head,
    norms) is one more.

    dtype: what is gathered and computed in; the shards stay in the dtype they have, float32 where
    they are trained.
    """
    precision = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    settings = {
        # of the root too, or the reference policy's would stay whole
        "reshard_after_forward": True,
        "mp_policy": precision,
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for unit in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(unit, **settings)
        unit.set_gradient_divide_factor(1.0)  # a sum, not a mean: see add_up_gradients
        unit.set_force_sum_reduction_for_comms(True)
    # FSDP2 warns of views that could be changed in place afterwards; here nothing is.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    return model


def load_sharded(
    name,
    device,
    dtype=None,
    attn="sdpa",
    trained=True,
    adapters=None,
    recompute=False,
    offload=False,
):
    """(model, tokenizer) like models.load, but sharded; while loading, no process holds or reads
    more than its share.

    The model without numbers (models.empty) is split, and filled with this process's rows. Trained
    weights are stored in float32, others in the dtype they are computed in.

    Args:    as of models.load; trained: whether weights get gradients; adapters: their rank, or
             None; recompute, offload: as the flags of train.py.
    Raises:  BadInput as models.load does, and for a folder of adapters.
    """
    if under_adapters(name)[1]:
        raise BadInput(
            "--shard cannot start from adapters: make a model of them first "
            f"(python -m tools.merge {name} DIR)"
        )
    model, tokenizer, files = empty(name, device, dtype, attn)
    dtype = model.dtype
    with torch.device("meta"):
        model.to(torch.float32 if trained and not adapters else dtype).requires_grad_(trained)
        if adapters:
            add_adapters(model, adapters)
    if recompute:
        recompute_activations(model)
    shard(model, dtype, offload)
    model.to_empty(device="cpu" if offload else device)
    draw_adapters(model)
    on_each(lambda: fill(model, files, device))
    return model, tokenizer


@torch.no_grad()
def draw_adapters(model):
    """Sets B = 0 and A random. Every process draws the same whole A and keeps its own rows."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            start = torch.zeros(p.shape)
            if name.endswith("lora_A"):
                torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            fill_own_part(p, start)
