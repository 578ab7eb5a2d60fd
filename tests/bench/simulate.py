"""A whole GRPO step of a 7B or 3B without its GPU and without its memory.

    make simulate ARGS="--layers 2"        # every case, two of its layers: a minute each
    python tests/bench/simulate.py --case "7b --lora 64 --recompute"  # all layers: many minutes

Tensors on the pretended device "gpu" have a shape, a type and a place, and no numbers (PyTorch's
FakeTensors), so that a step of the exact shapes takes 1 GB. Seen of it:

    devices    FakeTensors refuse an operation between two devices
    waits      how often the host asks the device for a number, which stops it; while a step is
               recorded that is an error
    kernels    of one decoded token: the operations that are recorded, without views
    peak       bytes of all storages that are alive together, beside --plan's
    x floor    decoding's time over that of reading the weights once, estimated: each kernel takes
               1.8 µs or its bytes at 75 % of an H100's bandwidth, whichever is longer

With --layers, waits and memory are those of so many layers, kernels and x floor those of all: each
layer adds as much as one more of them does.

Not seen: numbers, a kernel's temporaries, the allocator's gaps, time.
"""

import argparse
import contextlib
import os
import random
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import common  # before torch: how its CPU threads wait

# isort: split
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForImageTextToText

import grpo
import model as model_module
import train
from data import Batch, Example
from lib import attention, decoding
from model import prepare
from pretended_gpu import COPIES, INDEXING, Stream, aten
from training import plan, policy
from training.loader import generator_for
from training.optimizer import MasterAdamW

P = 3784  # tokens of a prompt: the paper's video budget and the words
CASES = [
    "7b --lora 64 --recompute",
    "7b --lora 64 --recompute --prompts-per-step 1",
    "7b --recompute",
    "7b --lora 64 --recompute --updates-per-rollout 2",
    "7b --lora 64 --recompute --beta 0",
    "7b --recompute --train-vision",
    "7b --lora 64 --recompute --dtype float16",
    "3b --lora 64 --recompute",
    "3b --lora 64 --recompute --dtype float16 --prompts-per-step 1",
]
WAITS = {aten._local_scalar_dense.default, aten.item.default}
# An H100's bandwidth in bytes per second, and the share that a kernel has; seconds of the shortest.
BANDWIDTH, SHARE, LAUNCH = 3.35e12, 0.75, 1.8e-6


class OneMode(FakeTensorMode):
    def __deepcopy__(self, memo):  # with each tensor of the reference policy
        return self


class Device(TorchDispatchMode):
    """Below autograd: every operation passes here.

    now, peak: bytes on the device; waits: counted; recording: whether a step is being recorded;
    kernels: None, or the list (of_decoding, of_sampling) that gets the bytes of each; length: the
    answer to every question for a whole number, as all completions have their full length.
    """

    fake = OneMode()  # one: the model keeps a mask and windows from step to step

    def __init__(self, length):
        super().__init__()
        self.length, self.alive = length, {}
        self.now = self.peak = self.waits = 0
        self.recording = self.replayed = False
        self.kernels, self.of_decoding, self.of_sampling = None, [], []

    def wait(self, operation):
        assert not self.recording, f"not permitted while a step is recorded: {operation}"
        self.waits += 1

    def number(self, x):
        """What the host is told of a tensor's number."""
        if x.dtype == torch.bool:
            return True
        return 1.0 if x.dtype.is_floating_point else self.length

    def tolist(self, x):
        self.wait("tolist")
        return torch.full(x.shape, self.number(x), device="cpu").tolist()

    def keep_account(self, x):
        if not isinstance(x, FakeTensor) or x.fake_device.type != "gpu":
            return
        storage = x.untyped_storage()
        key, n = storage._cdata, -(-storage.nbytes() // 512) * 512  # as CUDA's allocator rounds
        if key in self.alive:
            return

        def gone(_):
            del self.alive[key]
            self.now -= n

        self.alive[key] = weakref.ref(storage, gone)
        self.now += n
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        fakes = [x for x in tensors if isinstance(x, FakeTensor)]
        asked = kwargs.get("device")
        if not fakes and (asked is None or torch.device(asked).type != "gpu"):
            return operation(*args, **kwargs)
        if operation in WAITS:
            self.wait(operation)
            return self.number(args[0])
        if operation is aten.empty_like.default and tensors[0].is_meta and not fakes:
            how = {"dtype": tensors[0].dtype, "device": asked}
            operation, args, kwargs = aten.empty.memory_format, (list(tensors[0].shape),), how
        copies, indexes = operation in COPIES, operation in INDEXING
        by_mask = indexes and any(i is not None and i.dtype == torch.bool for i in args[1])
        places = [torch.device(asked or x.device).type for x in tensors[:1]]  # of what is made
        places += [x.device.type for x in tensors[-1:]]  # and of what is copied
        crosses = copies and places[0] != places[1]
        if by_mask or (crosses and (self.recording or places[0] == "cpu")):
            self.wait(operation)

        def onto(x):  # a host tensor may be copied, be an index or a single number
            if not isinstance(x, torch.Tensor) or isinstance(x, FakeTensor):
                return x
            assert copies or indexes or x.dim() == 0, f"on the host: {operation}"
            return self.fake.from_tensor(x)

        args, kwargs = tree_map(onto, (args, kwargs))
        with self.fake:
            out = operation(*args, **kwargs)
        for x in tree_leaves(out):
            self.keep_account(x)
        if self.kernels is not None and not is_view(operation, tensors, out):
            self.kernels.append(bytes_of(operation, tensors, tree_leaves(out)))
        return out


def is_view(operation, given, out):
    made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
    storages = {x.untyped_storage()._cdata for x in given}
    writes = any(a.alias_info and a.alias_info.is_write for a in operation._schema.arguments)
    return not writes and all(x.untyped_storage()._cdata in storages for x in made)


def bytes_of(operation, given, made):
    """Bytes that a kernel reads and writes."""
    if operation in (aten.index_copy_.default, aten.embedding.default):  # a part of the large one
        return 2 * min(x.nbytes for x in (*given[2:], *made))
    return sum(x.nbytes for x in (*given, *made) if isinstance(x, torch.Tensor))


class NewTensors(TorchFunctionMode):
    """torch.tensor makes a tensor on the host, which is then copied."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and "gpu" in str(kwargs.get("device")):
            return function(*args, **kwargs | {"device": "cpu"}).to("gpu")
        return function(*args, **kwargs)


def fast_attention(query, key, value, mask, is_causal, scale, enable_gqa):
    """PyTorch's flash kernel, as from the A100 on in 16 bits, or its memory-efficient one."""
    if query.dtype == torch.bfloat16:
        return aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
    assert not enable_gqa
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, None, query.requires_grad, scale=scale)[0]


@contextlib.contextmanager
def simulated(length):
    """Within it there is a device "gpu" without numbers, a Device."""
    device = Device(length)

    class Graph:
        def replay(self):  # what is between the first two replays belongs to a token as well
            device.kernels = None if device.replayed else device.of_sampling
            device.replayed = True

    @contextlib.contextmanager
    def recording(graph, **_):
        device.recording, device.kernels = True, device.of_decoding
        try:
            yield
        finally:
            device.recording, device.kernels = False, None

    with contextlib.ExitStack() as stack:
        for where, name, stand_in in (
            (torch.cuda, "Stream", Stream),
            (torch.cuda, "current_stream", Stream),
            (torch.cuda, "CUDAGraph", Graph),
            (torch.cuda, "graph", recording),
            (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
            (decoding, "FAILED", []),
            (decoding, "can_record", lambda device: device.type == "gpu"),
            (torch.nn.functional, "scaled_dot_product_attention", fast_attention),
            (attention, "causal_lower_right", lambda n, m: None),
            (attention, "knows_groups", lambda query: query.dtype == torch.bfloat16),
            (model_module, "rms_norm", lambda x, norm: x.clone()),  # on CUDA one kernel
            (FakeTensor, "tolist", lambda x: device.tolist(x)),
            (grpo, "score", lambda *_: {"format": 0.0, "iou": random.random()}),
        ):
            stack.enter_context(mock.patch.object(where, name, stand_in))
        for mode in (torch.autograd.set_multithreading_enabled(False), device, NewTensors()):
            stack.enter_context(mode)
        yield device


def policy_of(size, dtype, layers):
    config = common.real_config(size)
    if layers:
        config.text_config.num_hidden_layers = layers
        config.text_config.layer_types = ["full_attention"] * layers
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    made = prepare(made.eval()).to_empty(device="gpu")
    made.tie_weights()
    made.generation_config.eos_token_id = [151645]
    return made


def simulate(case, layers=None, tokens=512):
    """{what: figure} of a step. case: a size and flags of train.py; layers: only so many."""
    size, *flags = case.split()
    flags += ["--model", "x/y", "--max-new-tokens", str(tokens)]
    args = train.parse_args(flags if "--dtype" in flags else [*flags, "--dtype", "bfloat16"])
    args.gpu = "T4" if args.dtype == "float16" else "H100"  # where which is the fast attention
    B = args.prompts_per_step
    with simulated(tokens) as device:
        made = policy_of(size, getattr(torch, args.dtype), layers)
        with mock.patch.object(policy, "load", lambda *_: (made, None)):
            trained, _, reference = policy.load_models(args, "gpu")
        optimizer = MasterAdamW(trained, args.lr, scaled=args.dtype == "float16")
        update_weights = lambda: optimizer.step(args.lr, args.grad_clip, 1)
        update_weights()  # without a gradient: Adam has its moments from the first step on
        tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: str(len(ids)))
        prompt = common.make_prompt(trained, P)
        with device.fake:  # on the host, of other clips
            prompts = [replace(prompt, patches=torch.empty(prompt.patches.shape)) for _ in range(B)]
        examples = [Example("", "grounding", "", "", (0.0, 1.0))] * B
        batch = Batch(examples, prompts, [generator_for(0, 0, k) for k in range(B)], tokenizer)
        device.waits, device.peak = 0, device.now
        grpo.grpo_step(trained, reference, batch, args, update_weights, float)
        sizes = plan.sizes_of(trained, args, 1, P)
    stays, moving = plan.what_stays(sizes, args)[0], plan.comes_and_goes(sizes, args)
    kernels = [*device.of_decoding, *device.of_sampling]
    seconds = sum(max(LAUNCH, n / (SHARE * BANDWIDTH)) for n in kernels)
    language = trained.model.language_model
    weights = [*language.layers.parameters(), *trained.lm_head.parameters()]
    floor = sum(w.nbytes for w in weights if w.dtype != torch.float32) / BANDWIDTH
    return {
        "waits": device.waits,
        "allowed": 45 + tokens // decoding.ASK_EVERY,
        "kernels": len(device.of_decoding),
        "decoding, ms": 1e3 * seconds,
        "floor, ms": 1e3 * floor,
        "peak, GB": device.peak / 1e9,
        "plan, GB": (sum(stays.values()) + max(moving.values())) / 1e9,
    }


def most_kernels(case, layers=28):
    """Of a decoded token of the 7B: 15 in no layer, and 36 in each, or 50 with adapters."""
    return 15 + layers * (50 if "--lora" in case else 36)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--layers", type=int, help="of the language model (default: all)")
    p.add_argument("--case", help="a size and flags of train.py (default: all cases)")
    asked = p.parse_args()
    for case in [asked.case] if asked.case else CASES:
        seen = simulate(case, asked.layers)
        if asked.layers:
            more = simulate(case, asked.layers + 1)
            left = common.SIZES[case.split()[0]]["num_hidden_layers"] - asked.layers
            for figure in ("kernels", "decoding, ms", "floor, ms"):
                seen[figure] += left * (more[figure] - seen[figure])
        seen["x floor"] = seen["decoding, ms"] / seen["floor, ms"]
        rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in seen.items()}
        figures = ", ".join(f"{k} {v}" for k, v in rounded.items())
        print(f"{case}: {figures}", flush=True)


if __name__ == "__main__":
    main()
