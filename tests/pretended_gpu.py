"""A GPU that is only pretended: finds on a CPU what would fail on CUDA.

A tensor on the device "gpu" (Gpu) wraps a CPU tensor that holds its numbers. Rules sees every
operation and enforces CUDA's manners:

    - no operation mixes devices; allowed are copies, host numbers, and host indices
    - while a graph is captured nothing may wait for the device: .item(), .tolist(), nonzero,
      boolean indexing, x[i] = number, copies between host and device

Graph keeps what was captured and replays it, so that a recorded decoding step really runs. What
this cannot see: kernels, NCCL, memory, time. What it replaces (`installed`): CausalBias, which
cannot be made here, by the mask it stands for; CUDA's streams, by nothing.

    with installed(monkeypatch) as gpu:
        model.to("gpu"); …; gpu.waits       # how often the host waited so far
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lib import attention, decoding

torch.utils.backend_registration._setup_privateuseone_for_python_backend("gpu")
torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16]  # checkpoint() asks for it

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default}
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}
WAITS |= {aten.repeat_interleave.Tensor}


class NotOnAGpu(AssertionError):
    """What CUDA would refuse. No RuntimeError, so that no fallback of ours hides it."""


class Gpu(torch.Tensor):
    """A tensor on the pretended GPU; `host` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device="gpu:0",
        )

    def __init__(self, host):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return Rules.now(operation, types, args, kwargs)


class Rules(TorchDispatchMode):
    """Below autograd: every operation passes here.

    waits: how often the host waited for the device; tape: the operations being captured, or None.
    """

    waits, tape, now = 0, None, None

    def __enter__(self):
        Rules.now = self.__torch_dispatch__
        return super().__enter__()

    @classmethod
    def wait(cls, operation):
        if cls.tape is not None:
            raise NotOnAGpu(f"not permitted when stream is capturing: {operation}")
        cls.waits += 1

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, Gpu)]
        # A host tensor without dimensions is a number that travels with the kernel.
        host = [x for x in tensors if not isinstance(x, Gpu) and (x.dim() or operation in COPIES)]
        asked = kwargs.get("device")
        on_gpu = torch.device(asked).type == "gpu" if asked else bool(ours)
        if ours and host and operation not in COPIES | INDEXING:
            raise NotOnAGpu(f"tensors on two devices: {operation}")
        if (
            ours
            and operation in INDEXING
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.wait(f"{operation} by a mask")  # how many there are is known to the device alone
        crosses = operation is aten._to_copy.default and on_gpu != bool(ours)
        if crosses or (ours and (operation in WAITS or host)):
            self.wait(operation)
        if asked:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda x: x.host if isinstance(x, Gpu) else x, (args, kwargs))
        out = operation(*args, **kwargs)
        if Rules.tape is not None:
            Rules.tape.append((operation, args, kwargs, out))
        if not on_gpu:
            return out
        # An operation in place gives back the tensor it was given.
        same = {id(x.host): x for x in ours}

        def wrapped(x):
            if not isinstance(x, torch.Tensor):
                return x
            return same[id(x)] if id(x) in same else Gpu(x)

        return tree_map(wrapped, out)


class AboveTheDispatcher(TorchFunctionMode):
    """What Python does before an operation is dispatched, and Rules would not see as CUDA does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_gpu = "gpu" in str(kwargs.get("device"))
        if function is torch.Tensor.__setitem__ and args[0].device.type == "gpu":
            # A host scalar, copied.
            if isinstance(args[2], (int, float)) and isinstance(args[1], int):
                args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))
        if function is torch.tensor and to_gpu:
            return function(*args, **kwargs | {"device": "cpu"}).to("gpu")
        if function is torch.Tensor.tolist and args[0].device.type == "gpu":
            Rules.wait("tolist")
            return args[0].detach().host.tolist()
        return function(*args, **kwargs)


class Graph:
    """In the place of torch.cuda.CUDAGraph: the captured operations, run again."""

    def replay(self):
        for operation, args, kwargs, out in self.tape:
            new = operation(*args, **kwargs)
            if not any(r.alias_info for r in operation._schema.returns):
                tree_map(lambda old, fresh: old.copy_(fresh), out, new)


@contextlib.contextmanager
def capture(graph, **_):
    """In the place of torch.cuda.graph."""
    Rules.tape = graph.tape = []
    try:
        yield
    finally:
        Rules.tape = None


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def lower_right(n, m):
    return torch.ones(n, m, dtype=torch.bool).tril(m - n).to("gpu")


@contextlib.contextmanager
def installed(monkeypatch):
    """Within it there is a device "gpu" on which decoding is recorded.

    Gives Rules, whose `waits` is 0.
    """
    for name, stand_in in {
        "Stream": Stream,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(decoding, "can_record", lambda device: device.type == "gpu")
    monkeypatch.setattr(attention, "causal_lower_right", lower_right)
    Rules.waits = 0
    # In one thread: the modes are a thread's own, and checkpoint runs forwards in backward.
    with torch.autograd.set_multithreading_enabled(False), Rules(), AboveTheDispatcher():
        yield Rules
