"""adapters.py: train 2 % of the weights (LoRA of rank 64 in a 7B model, arXiv 2106.09685), and get
the reference policy for nothing.

A linear layer y = W x is left as it is and gets a detour through r numbers:

    y = W x + (α / r) · B (A x)    A (r, in) starts random, B (out, r) at zero; r = 8 … 64; α = 2 r

B = 0 makes the first policy equal to the reference policy, and switching the detour off makes it so
at any later time: the KL needs no second copy of 8 billion weights. Only A and B have gradients and
optimizer states.

    python -m tools.merge runs/x/policy merged/      # W + (α / r) B A as an ordinary model folder

Adapters are saved in the format of Hugging Face's PEFT, so that other programs can read them. The
code is written by hand, so that people can read it.
"""

import json
import os
from contextlib import contextmanager

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lib.errors import BadInput, read_object

# The linear layers of each of the language model's layers.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class WithDetour(nn.Module):
    """A linear layer and its detour.

    on: False while the reference policy is asked; ready: A and B in the dtype that the layer
    computes in, during a rollout (see adapters_ready).
    """

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.on, self.ready = True, None
        like = dict(device=base.weight.device, dtype=torch.float32)  # small: bits need not be saved
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        if not self.lora_A.is_meta:  # "meta" has shapes and no numbers (sharding.py, plan.py)
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x):
        y = self.base(x)
        if not self.on:
            return y
        A, B = self.ready or (self.lora_A.to(x.dtype), self.lora_B.to(x.dtype))
        # y + scale · (x Aᵀ) Bᵀ in one kernel, which adds before it rounds
        detour = torch.addmm(y.flatten(0, -2), (x @ A.T).flatten(0, -2), B.T, alpha=self.scale)
        return detour.view_as(y)


def add_adapters(model, rank, alpha=None, seed=0):
    """Freezes the model and gives every linear layer of its language model a detour.

    alpha: 2 · rank unless given.
    """
    torch.manual_seed(seed)  # every process draws the same A
    model.requires_grad_(False)
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name in TARGETS:
                if hasattr(part, name):
                    setattr(part, name, WithDetour(getattr(part, name), rank, alpha or 2 * rank))
    return model


def detours(model):
    """{name: WithDetour} of all layers that have a detour."""
    return {name: m for name, m in model.named_modules() if isinstance(m, WithDetour)}


@contextmanager
def reference_policy(model):
    """Within it, the model is what it was before training."""
    for m in detours(model).values():
        m.on = False
    try:
        yield model
    finally:
        for m in detours(model).values():
            m.on = True


@contextmanager
def adapters_ready(model):
    """For a rollout: A and B are cast once, not once for each of a thousand tokens."""
    for m in detours(model).values():
        m.ready = tuple(half.detach().to(m.base.weight.dtype) for half in (m.lora_A, m.lora_B))
    try:
        yield
    finally:
        for m in detours(model).values():
            m.ready = None


def save_adapters(tensors, folder, base, rank, alpha=None):
    """adapter_config.json and adapter_model.safetensors, as PEFT 0.17 writes and reads them.

    tensors: {name of the parameter: CPU tensor}, those of lora_A and lora_B; base: the model they
    belong to.
    """
    os.makedirs(folder, exist_ok=True)
    # No bare target names: "gate_proj" is also a layer of the vision tower, which has no detours.
    pattern = rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(TARGETS)})"
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha or 2 * rank,
        "target_modules": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
    weights = {f"base_model.model.{name}.weight": t.contiguous() for name, t in tensors.items()}
    save_file(weights, os.path.join(folder, "adapter_model.safetensors"))


def under_adapters(name):
    """A run with --lora saves adapters and the name of their base, which may be such a run itself.

    Returns: (the model under all adapters, their folders in the order in which they are merged).
    Raises:  BadInput if folders point at each other in a circle.
    """
    folders, key = [], "base_model_name_or_path"
    while os.path.isfile(path := os.path.join(name, "adapter_config.json")):
        if os.path.realpath(name) in map(os.path.realpath, folders):
            raise BadInput(f"adapters {name} lead back to themselves: {key} must name a model")
        folders.append(name)
        name = read_object(path, **{key: str})[key]
    return name, folders[::-1]


def load_adapters(model, folder):
    """Gives a model the detours of a folder (ours or PEFT's, on the same layers).

    Raises BadInput if they do not fit it, or are of a kind that this file does not compute.
    """
    rank, alpha = checked(read_object(os.path.join(folder, "adapter_config.json")), folder)
    path, misfit = os.path.join(folder, "adapter_model.safetensors"), f"the adapters in {folder}"
    with safe_open(path, "pt") as f, torch.no_grad():
        shapes = {key: f.get_slice(key).get_shape() for key in f.keys()}
        if any(shape[:1] != [rank] for key, shape in shapes.items() if "lora_A" in key):
            raise BadInput(f"{misfit} have another rank than r = {rank}")  # before it takes memory
        wanted = {}
        for name, m in detours(add_adapters(model, rank, alpha)).items():
            for half in ("lora_A", "lora_B"):
                wanted[f"base_model.model.{name}.{half}.weight"] = getattr(m, half)
        if shapes != {key: list(p.shape) for key, p in wanted.items()}:
            raise BadInput(f"{misfit} belong to other layers or to another model")
        for key, p in wanted.items():
            p.copy_(f.get_tensor(key))
            if not p.isfinite().all():
                raise BadInput(f"{misfit} hold numbers that are not finite ({key})")
    return model


# What PEFT can do besides W + (α / r) B A. Adapters that use it mean something else without it.
NOT_HERE = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias",
            "modules_to_save", "fan_in_fan_out", "trainable_token_indices")  # fmt: skip


def checked(config, folder):
    """(r, lora_alpha) of an adapter_config.json. Raises BadInput for what is not computed here."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    right = type(rank) is int and rank >= 1 and type(alpha) in (int, float)
    if not right or not 0 < alpha < float("inf"):
        raise BadInput(
            f"the adapters in {folder} have r = {rank} and lora_alpha = {alpha}: "
            "r must be a whole number of at least 1, and lora_alpha a number above 0"
        )
    if unknown := [key for key in NOT_HERE if config.get(key) not in (None, False, "none", {}, [])]:
        raise BadInput(f"the adapters in {folder} use {', '.join(unknown)}: not computed here")
    return rank, alpha


@torch.no_grad()
def merge(model):
    """W ← W + (α / r) B A: an ordinary model again, as fast as one."""
    for name, m in detours(model).items():
        m.base.weight += (m.lora_B @ m.lora_A * m.scale).to(m.base.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, m.base)
    return model
