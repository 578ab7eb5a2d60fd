"""scale.py: many processes, many GPUs, and weights too large for one.

A step's work is shared by prompts: each process samples, scores and differentiates its own, and the gradients
are added up. What differs is where the weights are:

    copied       every process holds all of them, and gradients are added up by hand (add_up_gradients)
    sharded      --shard: each of W holds 1/W of every weight, gradient and optimizer state (FSDP2, arXiv 2304.11277 and
                 torch.distributed.fsdp.fully_shard); a layer's weights are gathered when it runs

Bytes a weight, trained in full with AdamW: bfloat16 2, its gradient 2, a float32 master copy 4, and two float32
moments 8: 16 in all, 133 GB for the 8.3 billion of "7B". Why a master copy: bfloat16 has 8 bits of precision, so a
weight of 0.1 cannot be changed by 1e-6 at all; adding lr · step to it would round to nothing for a whole run.
"""

import copy
import math
import os
import warnings
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from data import BadInput
from lora import add_adapters, reference_policy, save_adapters
from weights import empty, fill, load, save, share, under_adapters, whole_parts, write_parts

# ------------------------------------------------------------------------------------------------
# Processes
# ------------------------------------------------------------------------------------------------
# torchrun starts the same program W times and tells each its rank through environment variables.


def start_processes(device, patience=timedelta(minutes=30)):
    """Returns (rank, world size, device of this process). Without torchrun: (0, 1, device).

    patience: how long a process waits for the others, before it takes them for dead.
    Raises BadInput where processes outnumber GPUs.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, device
    rank, world, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # processes on this machine
    if device == "cuda":
        if here > torch.cuda.device_count():
            raise BadInput(
                f"{here} processes and {torch.cuda.device_count()} GPU(s) on this machine: "
                "each needs one of its own, so give torchrun --nproc-per-node as many as there are GPUs"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    # torchrun leaves each process one thread. --offload's optimizer works on the CPU as well.
    torch.set_num_threads(max(1, os.cpu_count() // here))
    dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo", timeout=patience)
    return rank, world, device


def add_up(sums, device, world):
    """{name: number} ← Σ over processes. Every process passes the same names."""
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(sums, values.tolist()))


def largest(value, device, world):
    """The largest of the processes' values."""
    value = torch.tensor(value, dtype=torch.float64, device=device)
    if world > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def on_first(rank, world, work):
    """Runs `work` on process 0 alone and hands its result, or its BadInput, to all of them."""
    result = [None]
    if rank == 0:
        try:
            result = [work()]
        except BadInput as e:
            result = [e]
    if world > 1:
        dist.broadcast_object_list(result)
    if isinstance(result[0], BadInput):
        raise result[0]
    return result[0]


def on_each(world, work):
    """Runs `work` in every process and returns its result; the BadInput of any one is raised in all,
    so that none waits for a process that has given up, and process 0 says what is wrong. Of what went
    well only this is heard elsewhere: everybody waits until all have done it."""
    result, problem = None, None
    try:
        result = work()
    except BadInput as e:
        problem = str(e)
    problems = [problem]
    if world > 1:
        problems = [None] * world
        dist.all_gather_object(problems, problem)
    for process, said in enumerate(problems):
        if said is not None:
            alone = world > 1 and problems.count(said) < world
            raise BadInput(f"process {process}: {said}" if alone else said)
    return result


# ------------------------------------------------------------------------------------------------
# Gradients and the optimizer
# ------------------------------------------------------------------------------------------------


def add_up_gradients(parameters, world):
    """grad ← Σ over processes of grad, some 100 MB a message. Losses are shares of the step's whole, so a sum is right.

    Sharded weights are DTensors, of which each process holds some rows; FSDP2 has added up their gradients in the backward pass.
    """
    if world == 1 or isinstance(parameters[0], DTensor):
        return
    for p in parameters:  # a parameter that one process did not use still has its place in the message
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    start, size = 0, 0
    for end, p in enumerate(parameters, 1):
        size += p.numel()
        if size > 25e6 or end == len(parameters):
            message = parameters[start:end]
            flat = torch.cat([p.grad.flatten() for p in message])
            dist.all_reduce(flat)
            for p, part in zip(message, flat.split([p.numel() for p in message])):
                p.grad.copy_(part.view_as(p))
            start, size = end, 0


class MasterAdamW:
    """AdamW whose weights and moments are float32, whatever the policy computes in.

    masters: {name: float32 tensor}. Where the policy is float32 itself, or sharded (FSDP2 keeps its shards in float32
    and gathers them in bfloat16), they are the policy's own parameters. offload: masters and moments stay in the
    CPU's memory, 12 bytes per weight that the GPU need not hold, and are updated there.

    Each parameter has an AdamW of its own, which steps and lets its gradient go before the next one's turn. One for
    all would hold float32 copies of all gradients and as many temporaries: 24 bytes per weight, not 16.
    """

    def __init__(self, policy, lr, offload=False):
        self.parameters = {n: p for n, p in policy.named_parameters() if p.requires_grad}

        def master(p):
            if p.dtype == torch.float32 and not (offload and p.device.type != "cpu"):
                return p
            return p.detach().to("cpu" if offload else p.device, torch.float32, copy=True)

        self.masters = {n: master(p) for n, p in self.parameters.items()}
        adam = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0, foreach=False)
        self.adams = {n: adam([m]) for n, m in self.masters.items()}

    def step(self, lr, grad_clip, world):
        """Adds up gradients, clips their norm, steps. Returns the norm before clipping; if that is not finite, nothing is changed."""
        parameters = list(self.parameters.values())
        add_up_gradients(parameters, world)
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        for name, p in self.parameters.items():
            if math.isfinite(norm) and p.grad is not None:  # None: no group of the step had anything to teach
                self.update(p, self.masters[name], self.adams[name], lr)
            p.grad = None
        return norm

    @staticmethod
    def update(p, master, adam, lr):
        adam.param_groups[0]["lr"] = lr
        if master is not p:
            master.grad, p.grad = p.grad.to(master), None
        adam.step()
        master.grad = None
        if master is not p:
            with torch.no_grad():
                p.copy_(master)

    def tensors(self):
        """{name: tensor} of all that a checkpoint must hold to go on as if nothing had happened, sharded and where they are (save_checkpoint gathers them)."""
        kept = {}
        for name, m in self.masters.items():
            state = self.adams[name].state[m] or {"exp_avg": torch.zeros_like(m), "exp_avg_sq": torch.zeros_like(m), "step": torch.tensor(0.0)}
            kept |= {f"{name}.master": m.detach()} | {f"{name}.{k}": v for k, v in state.items()}
        return kept

    def load_tensors(self, kept):
        """kept: a function, name → whole CPU tensor, for the names that `tensors` gives (checkpoint.read_checkpoint makes it)."""
        for name, m in self.masters.items():
            with torch.no_grad():
                fill_own_part(m, kept(f"{name}.master"))
                if self.parameters[name] is not m:
                    self.parameters[name].copy_(m)
            state = {"step": kept(f"{name}.step").clone()}
            for k in ("exp_avg", "exp_avg_sq"):  # made like the master, so where it is: with --offload on the CPU
                state[k] = torch.zeros_like(m)
                fill_own_part(state[k], kept(f"{name}.{k}"))
            self.adams[name].state[m] = state


def fill_own_part(p, tensor):
    """p ← tensor, of which a sharded p takes its own rows. No process needs another for it."""
    local, rows = share(p)
    local.copy_(tensor[rows])


def whole(tensor):
    """A sharded tensor gathered (every process must call this), any other as it is; on the CPU."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


# ------------------------------------------------------------------------------------------------
# Memory: layers computed twice, weights held once
# ------------------------------------------------------------------------------------------------


def recompute_activations(policy):
    """Keeps of each language layer only its input, and computes the rest again in the backward pass.

    A third more arithmetic; of a layer's activations 2 · D bytes a token remain (its input, in 16 bits) of about 34 · D
    (arXiv 2205.05198, table 2, for an MLP 4 · D wide; plan.py counts Qwen2.5-VL's).
    """
    for layer in policy.model.language_model.layers:
        layer.forward = partial(recomputed, layer.forward)


def recomputed(forward, *args, **kwargs):
    return checkpoint(forward, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)


def shard(model, dtype, offload=False):
    """Splits every weight over all processes, each layer a unit of its own; the rest (embeddings, head, norms) is one.

    dtype: what is gathered and computed in; the shards stay in the dtype they have, float32 where they are trained.
    """
    settings = dict(reshard_after_forward=True,  # the root too, or the reference policy's would stay whole
                    mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
                    offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())  # fmt: skip
    for unit in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(unit, **settings)
        unit.set_gradient_divide_factor(1.0)  # a sum, not a mean: see add_up_gradients
        unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "call")
    # FSDP2 warns of views that could be changed in place afterwards; here nothing is.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    return model


def load_sharded(name, device, dtype=None, attn="sdpa", trained=True, adapters=None, recompute=False, offload=False):
    """(model, tokenizer) like weights.load, but sharded; while loading, no process holds or reads more than its share.

    The model without numbers (weights.empty) is split, and filled with this process's rows. Trained weights are
    stored in float32, others in the dtype they are computed in. Raises BadInput as weights.load does.
    """
    if under_adapters(name)[1]:
        raise BadInput(f"--shard cannot start from adapters: make a model of them first (python lora.py merge {name} DIR)")
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
    on_each(dist.get_world_size(), lambda: fill(model, files, device))
    return model, tokenizer


@torch.no_grad()
def draw_adapters(model):
    """B = 0, and A random: drawn whole in every process, the same in all, of which each keeps its rows."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            start = torch.zeros(p.shape)
            if name.endswith("lora_A"):
                torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            fill_own_part(p, start)


# ------------------------------------------------------------------------------------------------
# The models of a run
# ------------------------------------------------------------------------------------------------


def load_models(args, device):
    """(policy, tokenizer, reference): `with reference() as fixed` gives the policy as it was before training."""
    wanted = dict(attn=args.attn, adapters=args.lora, recompute=args.recompute)
    dtype = getattr(torch, args.dtype)
    kl = args.method == "grpo" and args.beta > 0
    if args.shard:
        policy, tokenizer = load_sharded(args.model, device, dtype, offload=args.offload, **wanted)
        fixed = load_sharded(args.model, device, dtype, attn=args.attn, trained=False)[0] if kl and not args.lora else None
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

    Every process must call it: sharded weights are gathered, and the first process writes them part by part.
    """
    folder = os.path.join(out, "policy")
    if args.lora:
        base = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        tensors = {name: whole(p) for name, p in policy.named_parameters() if p.requires_grad}
        if rank == 0:
            save(policy, tokenizer, budget, folder, lambda to: save_adapters(tensors, to, base, args.lora))
        return
    parts = whole_parts(policy, keep=rank == 0)
    try:
        if rank == 0:
            save(policy, tokenizer, budget, folder, lambda to: write_parts(policy, to, parts))
    finally:  # where writing failed, the other processes still wait for this one's share of the rest
        if args.shard:
            for _ in parts:
                pass
