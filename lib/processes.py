"""processes.py: one run on many processes.

torchrun starts the same program W times and tells each its rank through environment variables. What
the processes have to agree upon goes through these functions.
"""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from lib.errors import BadInput


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start_processes(device, patience=timedelta(minutes=30)):
    """Returns the device of this process. Without torchrun there is one process.

    The one place where a GPU is chosen: what CUDA does without being told where (streams, graphs,
    memory figures) happens on the current device. patience: how long a process waits for the
    others, before it takes them for dead. Raises BadInput where processes would share a GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        return device
    local, on_machine = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.startswith("cuda:"):
        raise BadInput(f"--device {device} is one GPU, and processes need one each: give cuda")
    if device == "cuda":
        if on_machine > torch.cuda.device_count():
            gpus = f"GPUs here: {torch.cuda.device_count()}, processes: {on_machine}"
            raise BadInput(f"{gpus}: give torchrun --nproc-per-node one for each GPU")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    # torchrun leaves each process one thread. --offload's optimizer works on the CPU as well.
    torch.set_num_threads(max(1, cores() // on_machine))
    dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo", timeout=patience)
    return device


def cores():
    """CPU cores that this process may use: os.cpu_count() knows no taskset, cpuset or SLURM."""
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def add_up(sums, device):
    """{name: number} ← Σ over processes. Every process passes the same names."""
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    if world() > 1:
        dist.all_reduce(values)
    return dict(zip(sums, values.tolist()))


def largest(value, device):
    """The largest of the processes' values."""
    value = torch.tensor(value, dtype=torch.float64, device=device)
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def on_first(work):
    """Runs `work` on process 0 alone and hands its result, or its BadInput, to all of them."""
    result = [None]
    if rank() == 0:
        try:
            result = [work()]
        except BadInput as e:
            result = [e]
    if world() > 1:
        dist.broadcast_object_list(result)
    if isinstance(result[0], BadInput):
        raise result[0]
    return result[0]


def on_each(work):
    """Runs `work` in every process, waits until all have done so, and returns its result here.

    The BadInput of any one is raised in all, so that none waits for a process that has given up,
    and process 0 says what is wrong.
    """
    result, problem = None, None
    try:
        result = work()
    except BadInput as e:
        problem = str(e)
    problems = [problem]
    if world() > 1:
        problems = [None] * world()
        dist.all_gather_object(problems, problem)
    if said := next(filter(None, problems), None):
        raise BadInput(said)
    return result


class Progress:
    """How far process 0 is: a bar in a terminal; in a pipe or a log a plain line after every ten,
    or after every tenth part if that is rarer."""

    def __init__(self, total, unit, what="", done=0):
        self.total, self.unit, self.what, self.done = total, unit, what, done
        self.began, self.every = time.perf_counter(), max(10, total // 10)
        self.terminal = sys.stderr.isatty()
        how = {"disable": rank() != 0 or not self.terminal, "dynamic_ncols": True}
        self.bar = tqdm(total=total, initial=done, unit=unit, desc=what, **how)

    def update(self, n=1, figures=""):
        """Counts n more, with figures to show beside."""
        before, self.done = self.done, self.done + n
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update(n)
        due = self.done // self.every > before // self.every or before < self.done == self.total
        if due and rank() == 0 and not self.terminal:
            seconds = time.perf_counter() - self.began
            line = f"{self.what} {self.unit} {self.done}/{self.total}, {seconds:.0f} s"
            self.write(f"{line}  {figures}".strip()[:100], sys.stderr)

    def over(self, items):
        """The items, each counted when the next is asked for."""
        for item in items:
            yield item
            self.update()
        self.bar.close()

    @staticmethod
    def write(text, file=None):
        """A line of text, above the bar."""
        tqdm.write(text, file=file)


def whole(tensor):
    """A sharded tensor gathered (every process must call this), any other as it is; on the CPU."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
