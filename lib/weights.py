"""weights.py: a model folder or a hub name → transformers' model and its tokenizer, and back.

Two families are known (lib/families.py). Sizes of Qwen2.5-VL (3B to 72B) and of the dense Qwen3-VL
(2B to 32B) differ in their config alone, and the official VideoChat-R1 weights are a
Qwen2.5-VL-7B. transformers reads and writes the files, from safetensors alone: they hold numbers
and nothing that could be executed. Two faults that it lets pass are refused here in one sentence:
weights that are missing or not finite, and a tokenizer of another model.

`load` returns transformers' plain model; model.load prepares it for this project's attention.
"""

import os
import shutil
from contextlib import contextmanager
from functools import partial

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers import logging as transformers_logging

from lib.adapters import load_adapters, merge, under_adapters
from lib.errors import BadInput, first_line, out_of_memory, read_object
from lib.families import FAMILIES
from lib.files import replace_folder

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

READ = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # of a hub repository: no code, no pickles


def load(name, device="cpu", dtype=None):
    """Loads the model and its tokenizer from a local folder or a hub name.

    Args:    name: a folder with config.json, *.safetensors and tokenizer files, or one of adapters
             (a run with --lora), or a hub name like "Qwen/Qwen2.5-VL-7B-Instruct";
             dtype: of the weights; float32 on CPU and bfloat16 on CUDA unless given, or float16 on
             a GPU that has none.
    Returns: (model, tokenizer), the model on `device`, in eval mode (it has no dropout to switch).
             model.n_tokens: how many ids the tokenizer has; the output layer may have more rows.
    Raises:  BadInput if there is no such model, it is of another family, or its files are damaged.
    """
    base, adapters = under_adapters(name)
    half = torch.bfloat16 if has_bfloat16(device) else torch.float16
    dtype = dtype or (torch.float32 if str(device) == "cpu" else half)
    with folder_of(base) as folder:
        model = read_weights(AutoModelForImageTextToText, folder, dtype)
        tokenizer = read_tokens(model, folder)
        model = model.to(device).eval()
    for folder in adapters:
        with one_sentence(f"model {folder} cannot be loaded"):
            merge(load_adapters(model, folder))
    return model, tokenizer


def has_bfloat16(device):
    """A CPU does, and GPUs from the A100 on do."""
    return "cuda" not in str(device) or torch.cuda.is_bf16_supported(including_emulation=False)


def load_empty(name, dtype):
    """As load, but on the "meta" device: shapes without numbers. name: no folder of adapters."""
    with folder_of(name) as folder, torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
        return model, read_tokens(model, folder)


def read_weights(kind, folder, dtype):
    """A model of transformers' class `kind`, on the CPU. Raises ValueError unless the files hold
    all of its weights, no others, and finite numbers."""
    safe = dict(trust_remote_code=False, use_safetensors=True)  # no code, no pickles
    more = dict(output_loading_info=True, ignore_mismatched_sizes=True)  # in the report
    model, report = kind.from_pretrained(folder, dtype=dtype, **safe, **more)
    for wrong, said in {
        "missing_keys": "it lacks {}: it is incomplete or of another family",
        "unexpected_keys": "it has weights that the model does not know: {}",
        "mismatched_keys": "by config.json these have another shape: {}",
    }.items():
        if names := sorted(x if isinstance(x, str) else x[0] for x in report[wrong]):
            raise ValueError(said.format(first_few(names)))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise ValueError("by config.json the head is the embedding, and it holds another matrix")
    if names := [name for name, p in model.named_parameters() if not finite(p)]:
        raise ValueError(f"numbers that are not finite in {first_few(names)}")
    return model


def first_few(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finite(tensor):
    """Whether all numbers are finite: NaN and ±inf show in the smallest or largest; no copy."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


@contextmanager
def folder_of(name):
    """Gives the local folder of a model. What fails within it is that model's fault."""
    family_of(name)
    with one_sentence(f"model {name} cannot be loaded"):
        yield name if os.path.isdir(name) else snapshot_download(name, allow_patterns=READ)


def family_of(name):
    """The family of a model, or of what adapters are based on: a key of FAMILIES, by the model_type
    in its own config.json. Raises BadInput for others: the cheap part of finding out."""
    name, _ = under_adapters(name)
    if os.path.isdir(name):
        folder = name
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(
            f"model {name} is neither a folder here nor a hub name like Qwen/Qwen2.5-VL-7B-Instruct"
        )
    else:
        with one_sentence(f"model {name} cannot be loaded"):
            folder = snapshot_download(name, allow_patterns="config.json")
    config = os.path.join(folder, "config.json")
    if not os.path.isfile(config):
        raise BadInput(f"model folder {name} has no config.json: give a run of train.py or a model")
    family = read_object(config).get("model_type")
    if family not in list(FAMILIES):
        known = " and ".join(f"{row.name} (model_type {key!r})" for key, row in FAMILIES.items())
        raise BadInput(f"model {name} is a {family!r} model; this project knows {known}")
    return family


@contextmanager
def one_sentence(said):
    """Damaged files end in errors of a dozen kinds (json, tokenizers, safetensors, huggingface_hub,
    transformers' configs). Whatever it is: BadInput("{said}: …"). Memory is no fault of theirs."""
    try:
        yield
    except Exception as e:
        if isinstance(e, BadInput) or out_of_memory(e):
            raise
        why = f"{first_line(e, 250).rstrip('.')} ({type(e).__name__})"
        raise BadInput(f"{said}: {why}; get its folder anew, or give another") from e


def room_for_prompt(model, max_new_tokens):
    """How many tokens a prompt may have, so that an answer fits in the model's positions too."""
    most = model.config.text_config.max_position_embeddings
    if max_new_tokens >= most:
        raise BadInput(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt: this model has "
            f"{most} positions for both"
        )
    return most - max_new_tokens


# ------------------------------------------------------------------------------------------------
# Tokens
# ------------------------------------------------------------------------------------------------

END = "<|im_end|>"  # ends an answer
TOKENS = {
    "<|vision_start|>": "vision_start_token_id", "<|vision_end|>": "vision_end_token_id",
    "<|image_pad|>": "image_token_id", "<|video_pad|>": "video_token_id",
}  # fmt: skip


def read_tokens(model, folder):
    """The folder's tokenizer. Sets model.n_tokens, and model.generation_config.eos_token_id to the
    list of tokens with which an answer ends, <|im_end|> first.

    Folders have a list there, one number or nothing; where nothing, the config's own is taken.
    Raises ValueError unless config, generation_config.json and tokenizer mean the same tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    config, numbered = model.config, tokenizer.get_vocab()
    ids, end = set(numbered.values()), numbered.get(END)
    for token, field in TOKENS.items():
        here, there = getattr(config, field), numbered.get(token)
        if here != there:
            raise ValueError(f"{token} is {here} in config.json and {there} in the tokenizer")
    model.n_tokens, rows = max(ids) + 1, config.text_config.vocab_size
    if end is None or model.n_tokens > rows:
        raise ValueError(f"its tokenizer has {model.n_tokens} tokens for {rows} rows, {END}: {end}")
    stops = []
    if os.path.isfile(os.path.join(folder, "generation_config.json")):
        stops = as_list(GenerationConfig.from_pretrained(folder).eos_token_id)
    if stops and not {end, *stops} <= ids & set(stops):
        raise ValueError(f"answers end with {stops} in generation_config.json, {END} is {end}")
    stops = stops or [x for x in as_list(config.text_config.eos_token_id) if x in ids]
    # Nothing else of it is used here, and transformers refuses to save some published ones.
    model.generation_config = GenerationConfig(eos_token_id=[end, *(x for x in stops if x != end)])
    return tokenizer


def as_list(x):
    return [] if x is None else list(x) if isinstance(x, (list, tuple)) else [x]


# ------------------------------------------------------------------------------------------------
# Save
# ------------------------------------------------------------------------------------------------

# Files of a base that training does not change and that others need (AutoProcessor, vLLM).
CARRIED = (
    "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "chat_template.json", "chat_template.jinja", "vocab.json",
    "merges.txt",
)  # fmt: skip


def write_weights(model, folder, state=None):
    """config.json and *.safetensors. state: whole weights, where the model itself holds shards."""
    if state is not None:  # FSDP2's class has another name, and its shards more bits
        with torch.device("meta"):
            config = type(model.config).from_dict(model.config.to_dict())  # without our attention
            plain = AutoModelForImageTextToText.from_config(config)
        plain.generation_config = model.generation_config
        model = plain.to(next(iter(state.values())).dtype)
    model.save_pretrained(folder, state_dict=state, max_shard_size="4GB")


def save(model, tokenizer, budget, folder, write=None, card=""):
    """Saves in Hugging Face format, atomically: `folder` is complete or it is not there.

    Everything is written to a neighbour first and moved into place at the end (replace_folder).
    Raises OSError, and keeps the old folder, if the disk is full.

    Args: write: a function of the folder that writes the weights, unless `write_weights` alone can;
          card: the text of README.md, where there is to be one.
    """
    folder = folder.rstrip("/")
    unfinished = folder + ".partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        (write or partial(write_weights, model))(unfinished)
        tokenizer.save_pretrained(unfinished)
        budget.save(unfinished)
        for name in CARRIED:
            if os.path.isfile(path := os.path.join(model.name_or_path, name)):
                shutil.copyfile(path, os.path.join(unfinished, name))
        if card:
            with open(os.path.join(unfinished, "README.md"), "w", encoding="utf-8") as f:
                f.write(card)
    except (OSError, SafetensorError) as e:  # on a full disk half a folder is in the way
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(str(e)) from e
    replace_folder(unfinished, folder)
