"""weights.py: a model folder or a hub name → the model and its tokenizer, and back.

Only Qwen2.5-VL is known: 3B, 7B, 32B and 72B differ in their config alone, and the official VideoChat-R1 weights
are a Qwen2.5-VL-7B. Weights are read from safetensors, which hold numbers and nothing that could be executed.
"""

import importlib.util
import json
import os
import shutil

import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers import logging as transformers_logging

from data import BadInput
from lora import load_adapters, merge
from model import prepare

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load(name, device="cpu", dtype=None, attn="sdpa"):
    """Loads the model and its tokenizer from a local folder or a hub name.

    Args:    name: a folder with config.json, *.safetensors and tokenizer files, or "Qwen/Qwen2.5-VL-7B-Instruct";
             dtype: of the weights; float32 on CPU and bfloat16 on CUDA unless given;
             attn: "sdpa" (PyTorch's attention) or "flash_attention_2" (the flash-attn package, on CUDA).
    Returns: (model, tokenizer), the model on `device`, in eval mode (it has no dropout to switch).
    Raises:  BadInput if there is no such model, or it is of another family.
    """
    if attn == "flash_attention_2" and (str(device) == "cpu" or importlib.util.find_spec("flash_attn") is None):
        missing = "runs on CUDA only" if str(device) == "cpu" else "needs the package flash-attn (pip install flash-attn --no-build-isolation)"
        raise BadInput(f"--attn flash_attention_2 {missing}; --attn sdpa needs nothing and is about as fast")
    dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.bfloat16)
    if os.path.isfile(os.path.join(name, "adapter_config.json")):  # a run with --lora: its base, changed by its adapters
        with open(os.path.join(name, "adapter_config.json")) as f:
            model, tokenizer = load(json.load(f)["base_model_name_or_path"], device, dtype, attn)
        return merge(load_adapters(model, name)), tokenizer
    check_family(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as e:
        raise BadInput(f"model {name} cannot be loaded: {str(e).strip().splitlines()[0][:200]}") from e
    return prepare(model, attn).to(device).eval(), tokenizer


def check_family(name):
    """Raises BadInput unless `name` can be a Qwen2.5-VL: the cheap part of finding out."""
    if os.path.isdir(name):
        config_file = os.path.join(name, "config.json")
        if not os.path.isfile(config_file):
            raise BadInput(f"model folder {name} has no config.json: give a folder that was saved by train.py or from the hub")
        with open(config_file) as f:
            family = json.load(f).get("model_type")
        if family != "qwen2_5_vl":
            raise BadInput(f"model folder {name} holds a {family!r} model; this project knows Qwen2.5-VL (model_type 'qwen2_5_vl')")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"model {name} is neither a folder here nor a hub name like Qwen/Qwen2.5-VL-7B-Instruct")


def call(model, function, *args):
    """function(model, *args), as a method: model.call(function, …). With --shard, FSDP2 gathers the weights only when a
    method registered with it is called, and scale.py registers this one. For weights that are whole it changes nothing."""
    return function(model, *args)


Qwen2_5_VLForConditionalGeneration.call = call


def save(model, tokenizer, budget, folder, write=None):
    """Saves in Hugging Face format, atomically: `folder` is complete or it is not there.

    Everything is written to a neighbour first and moved into place at the end. A kill never leaves half a
    folder; between the two renames it leaves none, but the old one whole in FOLDER.old, which the next save
    puts back first. write: a function of the folder that writes the weights where `save_pretrained` cannot
    (adapters, sharded weights).
    """
    folder = folder.rstrip("/")
    partial, old = folder + ".partial", folder + ".old"
    if os.path.isdir(old) and not os.path.isdir(folder):
        os.rename(old, folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    (write or model.save_pretrained)(partial)
    tokenizer.save_pretrained(partial)
    budget.save(partial)
    if os.path.isdir(folder):
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
