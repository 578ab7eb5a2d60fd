"""sharding.py: weights too large for one GPU.

Work is shared by prompts, and gradients are added up (training/optimizer.py). Where weights are:

    copied     every process holds all of them
    sharded    --shard: each of W processes holds 1/W of every weight, gradient and optimizer state
               (FSDP2, arXiv 2304.11277 and torch.distributed.fsdp.fully_shard); a layer's weights
               are gathered when it runs
"""

import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.utils.checkpoint import checkpoint

from lib.adapters import add_adapters
from lib.errors import BadInput
from lib.processes import on_each, rank, world
from lib.weights import load, load_empty, under_adapters


def recompute_activations(policy):
    """Keeps only each language layer's input, and computes the rest again in the backward pass.

    This costs a third more arithmetic. A layer keeps 2 · D bytes per token (its input, in 16 bits)
    instead of about 34 · D (arXiv 2205.05198, table 2, for an MLP 4 · D wide; plan.py counts
    Qwen2.5-VL's).
    """
    for layer in policy.model.language_model.layers:
        layer.forward = partial(recomputed, layer.forward)


def recomputed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def shard(model, device, dtype, offload=False):
    """Splits every weight over all processes. Each layer is a unit; the rest (embeddings, head,
    norms) is one more. device: where it computes; dtype: what is gathered and computed in; the
    shards keep theirs, float32 where they are trained."""
    settings = {
        # Said, not guessed: on a machine with GPUs FSDP2 would take those for --device cpu.
        "mesh": init_device_mesh(torch.device(device).type, (world(),)),
        "reshard_after_forward": True,  # the root too, or the reference policy's would stay whole
        "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for unit in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(unit, **settings)
        unit.set_gradient_divide_factor(1.0)  # a sum, not a mean: see add_up_gradients
        unit.set_force_sum_reduction_for_comms(True)
    # FSDP2 warns of views that could be changed in place afterwards; here nothing is.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")


def load_sharded(name, device, dtype, trained=True, adapters=None, recompute=False, offload=False):
    """(model, tokenizer) as of weights.load, but sharded. trained: whether weights get gradients,
    and are stored in float32; adapters: their rank; recompute, offload: as the flags of train.py.

    Process 0 reads and checks the model in its CPU's memory (17 GB of a 7B in bfloat16) and sends
    it, tensor by tensor: no GPU ever holds more than its share and the largest tensor (1.1 GB).
    """
    if under_adapters(name)[1]:
        raise BadInput(
            "--shard cannot start from adapters: make a model of them first "
            f"(python -m tools.merge {name} DIR)"
        )
    first = rank() == 0
    source = on_each(lambda: load(name, "cpu", dtype)[0] if first else None)
    model, tokenizer = load_empty(name, dtype)
    stored = torch.float32 if trained and not adapters else dtype
    for p in model.requires_grad_(trained).parameters():  # the buffers keep their float32
        p.data = p.data.to(stored)
    for each in (model, source) if first else (model,):
        if adapters:
            add_adapters(each, adapters)
    if recompute:
        recompute_activations(model)
    shard(model, device, dtype, offload)
    model.to_empty(device="cpu" if offload else device)
    model.tie_weights()  # to_empty makes two of the one matrix that is both embedding and head
    how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, source.state_dict() if first else {}, options=how)
    # The rotary frequencies are no weights, and FSDP2 leaves them where the arithmetic is.
    for name, empty in list(model.named_buffers()):
        module, _, key = name.rpartition(".")
        whole = source.get_buffer(name).to(device) if first else torch.empty_like(empty).to(device)
        dist.broadcast(whole, 0)
        setattr(model.get_submodule(module), key, whole)
    return model, tokenizer


def whole_weights(model, dtype):
    """{name: whole CPU tensor of `dtype`} in process 0, {} in the others; every process calls it.

    Process 0's CPU holds all of them at once: 33 GB of a 7B whose shards are float32.
    """
    how = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=how)
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)  # it is the embedding, and stands in no file
    for name in weights:
        weights[name] = weights[name].to(dtype)
    return weights
