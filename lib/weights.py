"""models.py: a model folder or a hub name → the model and its tokenizer, and back.

Only Qwen2.5-VL is known: 3B, 7B, 32B and 72B differ in their config alone, and the official
VideoChat-R1 weights are a Qwen2.5-VL-7B. Weights are read from safetensors, which hold numbers and
nothing that could be executed. A model is loaded in two steps, whole or sharded
(lib/sharding.py):

    empty    the model on the "meta" device (shapes, no numbers), compared with the files' headers
    fill     numbers from the files to where they will live, one tensor after the other

So a folder that does not fit is refused before any memory is taken, nothing is read twice, and no
weight is left at a random initial value.
"""

import importlib.util
import json
import os
import re
import shutil
from contextlib import contextmanager
from glob import escape, glob
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import logging as transformers_logging

from lib.adapters import load_adapters, merge
from lib.errors import BadInput
from lib.files import replace_folder
from model import prepare

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

# ------------------------------------------------------------------------------------------------
# Load
# ------------------------------------------------------------------------------------------------


def room_for_prompt(model, max_new_tokens):
    """How many tokens a prompt may have, so that an answer still fits in the model's positions.

    Raises BadInput where none is left.
    """
    most = model.config.text_config.max_position_embeddings
    if max_new_tokens >= most:
        raise BadInput(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt: this model has "
            f"{most} positions for both"
        )
    return most - max_new_tokens


def load(name, device="cpu", dtype=None, attn="sdpa"):
    """Loads the model and its tokenizer from a local folder or a hub name.

    Args:    name: a folder with config.json, *.safetensors and tokenizer files, or one of adapters
             (a run with --lora), or a hub name like "Qwen/Qwen2.5-VL-7B-Instruct";
             dtype: of the weights; float32 on CPU and bfloat16 on CUDA unless given;
             attn: "sdpa" (PyTorch's attention) or "flash_attention_2" (the flash-attn package).
    Returns: (model, tokenizer), the model on `device`, in eval mode (it has no dropout to switch).
    Raises:  BadInput if there is no such model, it is of another family, or its files are damaged.
    """
    base, adapters = under_adapters(name)
    model, tokenizer, files = empty(base, device, dtype, attn)
    fill(model.to_empty(device=device), files, device)
    for folder in adapters:
        with one_sentence(f"model {folder} cannot be loaded"):
            merge(load_adapters(model, folder))
    return model, tokenizer


def empty(name, device, dtype, attn):
    """The model without its numbers, and where they are.

    Args:    as of `load`, but name is no folder of adapters; device: where the numbers will live.
    Returns: (model on "meta", tokenizer, {name of a weight: Stored}).
    Raises:  BadInput, also where the files do not hold this model's weights and no others.
    """
    check_attention(attn, device)
    check_family(name)
    with one_sentence(f"model {name} cannot be loaded"):
        folder = name if os.path.isdir(name) else snapshot_download(name, allow_patterns=READ)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        files = weights_in(folder)
        dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.bfloat16)
        with torch.device("meta"):
            model = prepare(Qwen2_5_VLForConditionalGeneration(config), attn).to(dtype).eval()
        set_dtype(model.config, dtype)  # what it computes in, and is saved in
        if os.path.isfile(os.path.join(folder, "generation_config.json")):
            model.generation_config = GenerationConfig.from_pretrained(folder)
        else:
            model.generation_config.eos_token_id = None  # it was taken from the config
        check_tokens(model, tokenizer)
        model.n_tokens = max(tokenizer.get_vocab().values()) + 1
        check_weights(model, files)
    return model, tokenizer, files


def set_dtype(config, dtype):
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype


READ = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # of a hub repository: no code, no pickles


@contextmanager
def one_sentence(said):
    """Whatever fails while a model's files are read is their fault: BadInput("{said}: …").

    Damaged files end in errors of a dozen kinds (json, tokenizers, safetensors, huggingface_hub,
    the checks inside transformers' configs). This is the one place that turns them into a sentence.
    """
    try:
        yield
    except (BadInput, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        if "can't allocate memory" in str(e):  # the CPU's out of memory is a plain RuntimeError
            raise
        lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [
            "no reason given"
        ]
        why = f"{lines[0][:250].rstrip('.')} ({type(e).__name__})"
        raise BadInput(f"{said}: {why}; get its folder anew, or give another") from e


def check_attention(attn, device):
    """Raises BadInput where --attn cannot run."""
    if attn != "flash_attention_2":
        return
    if str(device) == "cpu":
        missing = "runs on CUDA only"
    elif importlib.util.find_spec("flash_attn") is None:
        missing = "needs the package flash-attn (pip install flash-attn --no-build-isolation)"
    else:
        return
    raise BadInput(
        f"--attn flash_attention_2 {missing}; --attn sdpa needs nothing and is about as fast"
    )


def check_family(name):
    """Raises BadInput unless `name` can be a Qwen2.5-VL: the cheap part of finding out."""
    if os.path.isdir(name):
        config_file = os.path.join(name, "config.json")
        if not os.path.isfile(config_file):
            raise BadInput(
                f"model folder {name} has no config.json: "
                "give a folder that was saved by train.py or from the hub"
            )
        with one_sentence(f"model {name} cannot be loaded"):
            family = read_json(config_file).get("model_type")
        if family != "qwen2_5_vl":
            raise BadInput(
                f"model folder {name} holds a {family!r} model; "
                "this project knows Qwen2.5-VL (model_type 'qwen2_5_vl')"
            )
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(
            f"model {name} is neither a folder here nor a hub name like Qwen/Qwen2.5-VL-7B-Instruct"
        )


def read_json(path):
    """The object in a JSON file. Raises ValueError, with the file's name, if there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (ValueError, RecursionError) as e:  # RecursionError: nested too deep
        raise ValueError(f"{os.path.basename(path)} is damaged: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{os.path.basename(path)} is damaged: it holds no JSON object")
    return value


def under_adapters(name):
    """A run with --lora saves adapters and the name of their base, which may be such a run itself.

    Returns: (the model under all adapters, their folders in the order in which they are merged).
    Raises:  BadInput if folders point at each other in a circle.
    """
    folders = []
    while os.path.isfile(os.path.join(name, "adapter_config.json")):
        if os.path.realpath(name) in map(os.path.realpath, folders):
            raise BadInput(
                f"adapters {name} lead back to themselves: "
                "base_model_name_or_path in adapter_config.json must name a model"
            )
        folders.append(name)
        with one_sentence(f"model {name} cannot be loaded"):
            config = read_json(os.path.join(name, "adapter_config.json"))
            name = config.get("base_model_name_or_path")
            if not isinstance(name, str):
                raise ValueError("adapter_config.json has no base_model_name_or_path")
    return name, folders[::-1]


# ------------------------------------------------------------------------------------------------
# Checks: tokens, names, shapes, numbers
# ------------------------------------------------------------------------------------------------


def check_tokens(model, tokenizer):
    """Raises ValueError unless config, generation_config.json and tokenizer mean the same tokens.

    Makes generation_config.eos_token_id a list of ints, <|im_end|> first: with it an answer ends.
    Folders have a list there, one number or nothing; where nothing, the config's own is taken.
    """
    config, numbered = model.config, tokenizer.get_vocab()
    strangers = "and {} in the tokenizer is {}: they belong to different models".format
    for token, field in TOKENS.items():
        if getattr(config, field) != numbered.get(token):
            said = f"{field} in config.json is {getattr(config, field)}"
            raise ValueError(f"{said}, {strangers(token, numbered.get(token))}")
    size, last, end = config.text_config.vocab_size, max(numbered.values()), numbered.get(END)
    if end is None:
        raise ValueError(f"its tokenizer has no {END}, the token that ends an answer")
    if last >= size:
        raise ValueError(f"its tokenizer has token {last}, and vocab_size in config.json is {size}")
    given = as_list(model.generation_config.eos_token_id)
    possible = lambda token: type(token) is int and 0 <= token < size
    if given and (end not in given or not all(map(possible, given))):
        said = f"eos_token_id in generation_config.json is {given}"
        raise ValueError(f"{said}, {strangers(END, end)}")
    stops = given or filter(possible, as_list(config.text_config.eos_token_id))
    model.generation_config.eos_token_id = [end, *(token for token in stops if token != end)]


END = "<|im_end|>"
TOKENS = {
    "<|vision_start|>": "vision_start_token_id", "<|vision_end|>": "vision_end_token_id",
    "<|image_pad|>": "image_token_id", "<|video_pad|>": "video_token_id",
}  # fmt: skip


def as_list(x):
    return [] if x is None else list(x) if isinstance(x, (list, tuple)) else [x]


INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """Where a weight is: the file, its name, shape and type by the file's header."""

    path: str
    key: str
    shape: tuple
    dtype: str


def weights_in(folder):
    """{name of a weight here: Stored} of all *.safetensors of a folder; only headers are read.

    Raises ValueError if two files hold the same weight, or the index says something else than the
    files: one of them is a leftover, and nobody can tell which.
    """
    stored = {}
    for path in sorted(glob(os.path.join(escape(folder), "*.safetensors"))):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                name, part = from_hub(key), file.get_slice(key)
                if name in stored:
                    both = f"{os.path.basename(stored[name].path)} and {os.path.basename(path)}"
                    twice = f"weight {key} is in it twice ({both})"
                    raise ValueError(f"{twice}: one file is a leftover")
                stored[name] = Stored(path, key, tuple(part.get_shape()), part.get_dtype())
    if not stored:
        raise ValueError(
            "it has no weights in *.safetensors (pickles, *.bin, are never read: they can run code)"
        )
    if os.path.isfile(os.path.join(folder, INDEX)):
        said = read_json(os.path.join(folder, INDEX)).get("weight_map")
        true = {weight.key: os.path.basename(weight.path) for weight in stored.values()}
        if not isinstance(said, dict):
            raise ValueError(f"{INDEX} is damaged: it has no weight_map")
        if said != true:
            wrong = sorted(key for key in {*said, *true} if said.get(key) != true.get(key))
            raise ValueError(f"{INDEX} and the files disagree about {first_few(wrong)}")
    return stored


def needed(model):
    """{name of a weight in the files: parameter} of all that is read; adapters are in no file."""
    model.tie_weights()  # to_empty makes two of the one matrix that is both embedding and head
    named = model.named_parameters()
    return {name.replace(".base.", "."): p for name, p in named if "lora_" not in name}


def check_weights(model, files):
    """Raises ValueError unless the files hold this model's weights, all of them and no others."""
    wanted = needed(model)
    # Some folders save the head although it is the embedding.
    twice = {HEAD} if model.config.tie_word_embeddings else set()
    if missing := sorted(wanted.keys() - files.keys()):
        raise ValueError(f"it lacks {first_few(missing)}: it is incomplete or of another family")
    if unknown := sorted(files.keys() - wanted.keys() - twice):
        raise ValueError(f"it has weights that the model does not know: {first_few(unknown)}")
    if twice & files.keys() and not torch.equal(*map(read, (files[HEAD], files[EMBEDDING]))):
        said = f"by config.json {HEAD} is the embedding"
        raise ValueError(f"{said}, and the files hold another matrix")
    for name, p in wanted.items():
        if files[name].shape != tuple(p.shape):
            shape, right = list(files[name].shape), list(p.shape)
            raise ValueError(f"{name} is of shape {shape}, and by config.json it is {right}")
        dtype = files[name].dtype
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{name} is of type {dtype}: quantised weights do not train")


HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def read(weight):
    with safe_open(weight.path, "pt") as file:
        return file.get_tensor(weight.key)


def first_few(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@torch.no_grad()
def fill(model, files, device):
    """Fills the model of `empty` from its files; in a sharded model, this process's rows.

    The files are mapped, not read, and released one after the other: a process holds only its own
    rows, and the processes of a machine share the mapped files. Raises BadInput for a number that
    is not finite; in a sharded model one process alone may see it.
    """
    wanted = needed(model)
    folder = os.path.dirname(next(iter(files.values())).path)
    for path in sorted({weight.path for weight in files.values()}):
        with one_sentence(f"model {folder} cannot be loaded"), safe_open(path, "pt") as file:
            for name in (name for name in wanted if files[name].path == path):
                local, rows = share(wanted[name])
                local.copy_(file.get_slice(files[name].key)[rows])
                if not finite(local):
                    raise ValueError(f"{name} holds numbers that are not finite")
    compute_buffers(model, device)
    return model


def share(p):
    """(this process's part of a parameter, which rows of the whole it is)"""
    if not isinstance(p, DTensor):
        return p, slice(None)
    each = -(-p.shape[0] // p.device_mesh.size())  # of all but the last processes: as FSDP2 splits
    first = min(p.shape[0], each * p.device_mesh.get_local_rank())
    return p.to_local(), slice(first, first + len(p.to_local()))


def finite(tensor):
    """Whether all numbers are finite: NaN and ±inf show in the smallest or largest, and no copy is
    made."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def compute_buffers(model, device):
    """Computes the rotary frequencies, which are in no file, in float32. No other buffer may be
    empty."""
    for part in (model.model.language_model, model.model.visual):
        for key, module in part.named_children():
            if "rot" in key:
                setattr(part, key, type(module)(part.config).to(device))
    left = [name for name, _ in model.named_buffers() if ".rot" not in name]
    need = "this transformers needs another models.compute_buffers"
    assert not left, f"nobody has computed {left}: {need}"


# ------------------------------------------------------------------------------------------------
# Names
# ------------------------------------------------------------------------------------------------
# In files, here and on the hub, weights have an older transformers' names: visual.…, model.layers.…


def from_hub(name):
    """
    >>> from_hub("visual.merger.ln_q.weight"), from_hub("model.norm.weight"), from_hub(HEAD)
    ('model.visual.merger.ln_q.weight', 'model.language_model.norm.weight', 'lm_head.weight')
    """
    name = re.sub(r"^model\.(?!language_model|visual)", "model.language_model.", name)
    return re.sub(r"^visual\.", "model.visual.", name)


def to_hub(name):
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


# ------------------------------------------------------------------------------------------------
# Save
# ------------------------------------------------------------------------------------------------

PART = 4e9  # bytes of a file: the first process holds one part at a time, beside what it trains


def in_parts(model):
    """[[(name, parameter)]]: what goes into each file, the same in every process."""
    parts, room = [[]], PART
    for name, p in model.named_parameters():
        size = p.numel() * stored_in(p, model).itemsize
        if parts[-1] and size > room:
            parts, room = [*parts, []], PART
        parts[-1].append((name, p))
        room -= size
    return parts


def stored_in(p, model):
    """The type of a saved weight. A sharded one is kept in more bits than it computes in."""
    return model.config.dtype if isinstance(p, DTensor) else p.dtype


def whole_parts(model, keep=True):
    """Yields for each file {name: whole tensor on the CPU}.

    Gathers sharded weights, so every process must run through all of it. keep: whether this process
    gets the tensors; otherwise the dicts are empty.
    """
    for part in in_parts(model):
        tensors = {}
        for name, p in part:
            t = p.detach().to(stored_in(p, model))
            t = t.full_tensor() if isinstance(t, DTensor) else t
            if keep:
                tensors[to_hub(name)] = t.cpu().contiguous()
        yield tensors


def write_parts(model, folder, parts=None):
    """Writes a Hugging Face model folder. parts: of `whole_parts`, where other processes help."""
    os.makedirs(folder)
    set_dtype(model.config, stored_in(next(model.parameters()), model))
    model.config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    model.config.save_pretrained(folder)
    model.generation_config.to_json_file(os.path.join(folder, "generation_config.json"))
    n, place, size = len(in_parts(model)), {}, 0
    for i, tensors in enumerate(parts or whole_parts(model), 1):
        file = "model.safetensors" if n == 1 else f"model-{i:05}-of-{n:05}.safetensors"
        save_file(tensors, os.path.join(folder, file), metadata={"format": "pt"})
        place |= dict.fromkeys(tensors, file)
        size += sum(t.nbytes for t in tensors.values())
    if n > 1:
        with open(os.path.join(folder, INDEX), "w", encoding="utf-8") as f:
            json.dump({"metadata": {"total_size": size}, "weight_map": place}, f, indent=2)


def save(model, tokenizer, budget, folder, write=None):
    """Saves in Hugging Face format, atomically: `folder` is complete or it is not there.

    Everything is written to a neighbour first and moved into place at the end (replace_folder).
    write: a function of the folder that writes the weights where `write_parts` alone cannot
    (adapters, sharded weights). Raises OSError, and keeps the old folder, if the disk is full.
    """
    folder = folder.rstrip("/")
    partial = folder + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial) if write else write_parts(model, partial)
        tokenizer.save_pretrained(partial)
        budget.save(partial)
    except (OSError, SafetensorError) as e:  # on a full disk half a folder is in the way
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(str(e)) from e
    replace_folder(partial, folder)
