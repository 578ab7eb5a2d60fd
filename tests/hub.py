"""Model folders as the hub has them. What `save_pretrained` writes today looks otherwise: there the
text settings have a section of their own, while the published config.json of
Qwen2.5-VL-3B-Instruct is flat and in an older transformers' words; its weights lie in several files
with an index.
"""

import json
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

GENERATION = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.000001}


def flat_config(config, dtype):
    """config.json as Qwen published it, of a Qwen2_5_VLConfig."""
    text, vision = config.text_config, config.vision_config
    kept = ("attention_dropout", "bos_token_id", "hidden_act", "hidden_size", "initializer_range",
            "intermediate_size", "max_position_embeddings", "max_window_layers",
            "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
            "use_cache", "use_sliding_window", "vocab_size")  # fmt: skip
    seen = ("depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads",
            "out_hidden_size", "patch_size", "spatial_merge_size", "window_size",
            "fullatt_block_indexes", "tokens_per_second", "temporal_patch_size")  # fmt: skip
    tokens = ("image", "video", "vision_start", "vision_end")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{name: getattr(text, name) for name in kept},
        **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in tokens},
        "eos_token_id": text.eos_token_id,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": text.rope_parameters["mrope_section"]},
        "sliding_window": 32768,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": str(dtype).split(".")[1],
        "transformers_version": "4.41.2",
        "vision_config": {name: getattr(vision, name) for name in seen}
        | {"in_chans": vision.in_channels, "spatial_patch_size": vision.patch_size},
    }


def old_names(config):
    """{name in the hub's files: shape}"""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.tie_weights()
    old = lambda name: name.replace("model.visual.", "visual.").replace(".language_model.", ".")
    return {old(name): p.shape for name, p in model.named_parameters()}


def write(folder, config, tokenizer, tensor, stops, dtype=torch.float32, part=1e6):
    """Writes such a folder, file by file, never holding more than `part` bytes.

    tensor: a function (name, shape) → a weight; stops: eos_token_id of generation_config.json.
    """
    os.makedirs(folder)
    sizes, parts, room = old_names(config), [[]], part
    for name, shape in sizes.items():
        if parts[-1] and shape.numel() * dtype.itemsize > room:
            parts, room = [*parts, []], part
        parts[-1].append(name)
        room -= shape.numel() * dtype.itemsize
    place = {}
    for i, names in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        held = {name: tensor(name, sizes[name]).to(dtype).contiguous() for name in names}
        save_file(held, os.path.join(folder, file), metadata={"format": "pt"})
        place |= dict.fromkeys(names, file)
    total = sum(shape.numel() for shape in sizes.values()) * dtype.itemsize
    tokenizer.save_pretrained(folder)
    index = {"metadata": {"total_size": total}, "weight_map": place}
    put(folder, "model.safetensors.index.json", index)
    put(folder, "generation_config.json", GENERATION | {"eos_token_id": stops})
    put(folder, "config.json", flat_config(config, dtype))
    return folder


def put(folder, file, content):
    with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2)


def of_toy_base(folder, base, config, tokenizer, tied=True):
    """The shipped toy base in the hub's dress; untied: the same head, as a matrix of its own."""
    weights = load_file(os.path.join(base, "model.safetensors"))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    return write(folder, config, tokenizer, lambda name, shape: weights[name].view(shape), [2, 0])


VISION = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
          "vision_start_token_id": "<|vision_start|>",
          "vision_end_token_id": "<|vision_end|>"}  # fmt: skip


def tiny_qwen3_vl(tokenizer, tied):
    """transformers' Qwen3-VL with every part that the large ones have: grouped heads of a size of
    their own, DeepStack of three layers, a table of places smaller than a frame. No weight is left
    at 0 or 1, where a part that is missing would not show."""
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=5,
            num_attention_heads=4, num_key_value_heads=2, head_dim=24, tie_word_embeddings=tied,
            max_position_embeddings=8192, eos_token_id=2,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 4, 4])),
        vision_config=dict(
            depth=4, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
            num_position_embeddings=9, deepstack_visual_indexes=[0, 1, 2]),
        **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in VISION.items()},
        tie_word_embeddings=tied)  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model.generation_config.eos_token_id = [2, 0]
    return model


def of_qwen3_vl(folder, model, tokenizer):
    """A Qwen3-VL as published: shards, and a config.json in the words of transformers 4.57."""
    model.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    text, rope = config["text_config"], config["text_config"].pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope | {"mrope_interleaved": True}
    config["vision_config"]["model_type"] = "qwen3_vl"
    put(folder, "config.json", config | {"transformers_version": "4.57.0.dev0"})
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7}
    stops = {"eos_token_id": model.generation_config.eos_token_id}
    put(folder, "generation_config.json", sampling | stops)
    return folder
