"""One training step of a large model from a folder as the hub has it, without its download.

    python tests/bench/rehearsal.py --config toy              # seconds: does this program work?
    python tests/bench/rehearsal.py                           # 3B: 8 GB on disk, 17 GB of memory
    python tests/bench/rehearsal.py --recompute --lora 64     # other flags go to train.py
    python tests/bench/rehearsal.py --recompute --dtype bfloat16  # half of that

The folder has the exact shapes of Qwen2.5-VL-3B (3,754,622,976 weights, random), its file layout,
and Qwen's own tokenizer, whose BPE ranks lie in the package dashscope on PyPI. Then train.py itself
takes one LoRA step on a real clip. Printed: seconds, memory beside what --plan says, and how far
the sampler and the scorer are apart. Random weights say nothing about answers, but everything
about loading.
"""

import argparse
import base64
import glob
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import ROOT, TOKENIZER, _resident, real_config

sys.path.insert(0, os.path.join(ROOT, "tests"))
import torch
from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

import hub
import train
from data import VideoBudget, load_video
from lib.errors import BadInput
from toy import world
from training import plan

SPECIAL = """endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start
quad_end vision_start vision_end vision_pad image_pad video_pad""".split()
WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
REST = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def ranks_file(folder):
    """qwen.tiktoken out of the package dashscope, downloaded but not installed."""
    command = [sys.executable, *"-m pip download --no-deps --quiet dashscope -d".split(), folder]
    if subprocess.run(command).returncode:
        sys.exit(
            "error: no package dashscope to be had; give its file qwen.tiktoken with --tiktoken"
        )
    with zipfile.ZipFile(glob.glob(os.path.join(folder, "dashscope*.whl"))[0]) as package:
        return package.extract("dashscope/resources/qwen.tiktoken", folder)


class Ranks(TikTokenConverter):
    def load_tiktoken_bpe(self, path):
        """{bytes of a token: rank}. A line of the file: the bytes in base64, a blank, the rank."""
        with open(path, encoding="ascii") as f:
            return {base64.b64decode(token): int(rank) for token, rank in map(str.split, f)}


def qwen_tokenizer(path):
    special = [f"<|{name}|>" for name in SPECIAL]
    made = Ranks(path, pattern=WORDS + REST, extra_special_tokens=special).converted()
    made.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|video_pad|>"]) == [151643, 151656]
    return tokenizer


def random_weight(name, shape):
    """The same for the same name: norms 1, biases 0, matrices normal with deviation 0.02."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape).normal_(std=0.02, generator=generator)


def model_folder(args, into):
    """The folder to start from, at the size of --config."""
    path = os.path.join(into, "model")
    if args.config == "toy":
        own = (AutoConfig.from_pretrained(TOKENIZER), AutoTokenizer.from_pretrained(TOKENIZER))
        return hub.of_toy_base(path, TOKENIZER, *own)
    config = real_config(args.config)
    needs = 2 * sum(shape.numel() for shape in hub.old_names(config).values())
    if shutil.disk_usage(into).free < 1.2 * needs:
        sys.exit(
            f"error: {into} has no room for {needs / 1e9:.1f} GB of random weights; see --into"
        )
    config.text_config.bos_token_id, config.text_config.eos_token_id = 151643, 151645
    tokenizer = qwen_tokenizer(args.tiktoken or ranks_file(into))
    return hub.write(
        path, config, tokenizer, random_weight, [151645, 151643], torch.bfloat16, part=4e9
    )


def clip_folder(clip, into):
    """A Charades-STA of one clip and one question about it."""
    folder = os.path.join(into, "data")
    os.makedirs(os.path.join(folder, "videos"))
    shutil.copy(clip, os.path.join(folder, "videos", "clip.mp4"))
    end = load_video(clip, VideoBudget()).duration / 2
    with open(os.path.join(folder, "charades_sta_train.txt"), "w", encoding="utf-8") as f:
        f.write(f"clip 0.0 {end:.1f}##a person does something.\n")
    return folder


class Watch(threading.Thread):
    """The most memory that this process comes to hold while it runs. Files that it maps count where
    weights stay in them: in bfloat16, as they are stored."""

    def __init__(self, dtype):
        super().__init__(daemon=True)
        self.kinds = ("RssAnon", "RssFile") if dtype == "bfloat16" else ("RssAnon",)
        self.before, self.peak, self.ended = self.held(), 0, threading.Event()

    def held(self):
        return sum(map(_resident, self.kinds))

    def run(self):
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, self.held() - self.before)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    p.add_argument("--config", default="3b", choices=("toy", "3b", "7b"), help="size of the model")
    p.add_argument(
        "--clip", help="a video file (default: one of ../shared/data/videos, else a toy one)"
    )
    p.add_argument(
        "--tiktoken", help="qwen.tiktoken of the package dashscope (default: it is downloaded)"
    )
    p.add_argument("--into", help="folder for the model and the run (default: a temporary one)")
    p.add_argument("--keep", action="store_true", help="do not delete them at the end")
    args, flags = p.parse_known_args()
    into = tempfile.mkdtemp(prefix="rehearsal-", dir=args.into)
    try:
        rehearse(args, flags, into)
    except BadInput as e:
        sys.exit(f"error: {e}")
    finally:
        if args.keep:
            print(f"kept: {into}")
        else:
            shutil.rmtree(into)


def rehearse(args, flags, into):
    clips = sorted(glob.glob(os.path.join(ROOT, "..", "shared", "data", "videos", "*.mp4")))
    if not clips and not args.clip:
        made = world.ensure("charades", os.path.join(into, "toy"), train=1, test=1)
        clips = glob.glob(os.path.join(made, "videos", "*.mp4"))
    clip = args.clip or clips[0]
    began = time.perf_counter()
    fresh = multiprocessing.get_context("spawn")  # a process whose memory is gone when it has ended
    with ProcessPoolExecutor(1, fresh) as other:
        folder = other.submit(model_folder, args, into).result()
        questions = other.submit(clip_folder, clip, into).result()
    written, out = time.perf_counter() - began, os.path.join(into, "run")
    given = ["--model", folder, "--data", questions, "--out", out, "--quiet"]
    given += "--task grounding --steps 1 --prompts-per-step 1 --group-size 2".split()
    given += f"--max-new-tokens 16 --lora 16 --lr 1e-5 --total-pixels {256 * 28 * 28}".split()
    settings = train.parse_args([*given, *flags])
    cuda, watch = settings.device == "cuda", Watch(settings.dtype)
    watch.start()
    began = time.perf_counter()
    train.train(settings)
    seconds = time.perf_counter() - began
    watch.ended.set()
    watch.join()
    with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as f:
        step = json.loads(f.readline())
    peak = torch.cuda.max_memory_allocated() if cuda else watch.peak
    empty = plan.empty_model(folder, settings.lora)
    sizes = plan.sizes_of(empty, settings, 1, step["prompt_tokens"])
    stays, on_cpu = plan.what_stays(sizes, settings)
    planned = sum(stays.values()) + max(plan.comes_and_goes(sizes, settings).values())
    planned += 0 if cuda else on_cpu / 3  # frames of this step
    print(f"\n{args.config}: {sizes.N:,} weights, {sizes.trained:,} trained")
    print(f"folder written in {written:.0f} s; train.py from loading to saving: {seconds:.0f} s")
    print(f"the step: {step['prompt_tokens']} prompt tokens, seconds {step['seconds']}")
    ratio = f"(ratio {planned / peak:.2f})"
    print(f"memory: {peak / 1e9:.2f} GB at its peak; --plan says {planned / 1e9:.2f} GB {ratio}")
    print(f"sampler against scorer: {step['sampler_gap']:.1e} nats")


if __name__ == "__main__":
    main()
