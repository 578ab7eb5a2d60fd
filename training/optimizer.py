"""optimizer.py: gradients added up over processes, and AdamW in float32.

Bytes per weight, trained in full with AdamW: bfloat16 2, its gradient 2, a float32 master copy 4,
and two float32 moments 8: 16 in all, 133 GB for the 8.3 billion of "7B". Why a master copy:
bfloat16 has 8 bits of precision, so a weight of 0.1 cannot be changed by 1e-6 at all. Each of a
run's updates would be rounded away.

The gradients of a step's groups add up in the dtype of the weights. In bfloat16 their sum is 0.4 %
off float32's after 8 groups and 1.4 % after 32 (norm of the difference, toy base); another 2 bytes
per weight would mend that. Adapters, and all weights with --shard, add up in float32.
"""

import math
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from lib.processes import Progress, rank


def add_up_gradients(parameters, world):
    """grad ← Σ over processes of grad. Each process's loss is its share of the step's loss, so a
    sum is right.

    Sharded weights are DTensors: each process holds some of their rows. FSDP2 has added up their
    gradients in the backward pass.
    """
    if world > 1 and not isinstance(parameters[0], DTensor):
        for p in parameters:
            dist.all_reduce(p.grad)


class MasterAdamW:
    """AdamW whose weights and moments are float32, whatever the policy computes in.

    masters: {name: float32 tensor}. Where the policy is float32 itself, or sharded (FSDP2 keeps its
    shards in float32 and gathers them in bfloat16), they are the policy's own parameters. offload:
    masters and moments stay in the CPU's memory, 12 bytes per weight that the GPU need not hold,
    and are updated there. scaled: for float16, which ends at 6e-8 and at 65,504: gradients are made
    `scale` times as large and divided in float32; an overflow changes nothing but halves it.

    Each parameter has an AdamW of its own, which steps and releases its gradient before the next
    one's turn. One for all would hold float32 copies of all gradients and as many temporaries: 24
    bytes per weight, not 16.
    """

    def __init__(self, policy, lr, offload=False, scaled=False):
        self.scaled, self.scale = scaled, 2.0**16 if scaled else 1.0
        if scaled:
            policy.logprobs = partial(self.scaled_logprobs, policy.logprobs)
        self.parameters = {n: p for n, p in policy.named_parameters() if p.requires_grad}

        def master(p):
            if p.dtype == torch.float32 and not (offload and p.device.type != "cpu"):
                return p
            return p.detach().to("cpu" if offload else p.device, torch.float32, copy=True)

        self.masters = {n: master(p) for n, p in self.parameters.items()}
        adam = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0, foreach=False)
        # On a CPU the fused one takes an eighth of the time.
        fused = lambda m: m.device.type == "cpu" and not isinstance(m, DTensor)
        self.adams = {n: adam([m], fused=fused(m)) for n, m in self.masters.items()}

    def scaled_logprobs(self, logprobs, *args):
        """All gradients pass through the log-probs, on their way from a loss in float32."""
        logp, entropy = logprobs(*args)
        if logp.requires_grad:
            logp.register_hook(lambda grad: grad * self.scale)
        return logp, entropy

    def step(self, lr, grad_clip, world):
        """Adds up gradients, clips their norm, steps. Returns the norm before clipping; if that is
        not finite, nothing is changed."""
        parameters = list(self.parameters.values())
        for p in parameters:  # where nothing is taught: Adam skips None, but zeros go by momentum
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        add_up_gradients(parameters, world)
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip * self.scale)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm) / self.scale
        for name, p in self.parameters.items():
            if math.isfinite(norm):
                self.update(p, self.masters[name], self.adams[name], lr, self.scale)
            p.grad = None
        if self.scaled and not math.isfinite(norm):
            self.scale /= 2
            said = f"float16 overflowed: nothing changed; the loss scale is now {self.scale:g}"
            Progress.write(f"process {rank()}: {said}", sys.stderr)
        return norm

    @staticmethod
    def update(p, master, adam, lr, scale):
        """A parameter ← its master ← one step of Adam."""
        adam.param_groups[0]["lr"] = lr
        if master is not p:
            master.grad, p.grad = p.grad.to(master), None
        if scale != 1:
            master.grad /= scale
        adam.step()
        master.grad = None
        if master is not p:
            with torch.no_grad():
                p.copy_(master)

    def tensors(self):
        """{name: tensor} of all that a checkpoint must hold to go on as if nothing had happened.
        They are still sharded and on their devices; save_checkpoint gathers them."""
        kept = {}
        for name, m in self.masters.items():
            state = self.adams[name].state[m] or {
                "exp_avg": torch.zeros_like(m),
                "exp_avg_sq": torch.zeros_like(m),
                "step": torch.tensor(0.0),
            }
            kept |= {f"{name}.master": m.detach()} | {f"{name}.{k}": v for k, v in state.items()}
        return kept

    def load_tensors(self, kept):
        """Restores what `tensors` gave. kept: a function, name → whole CPU tensor
        (checkpoint.read_checkpoint makes it)."""
        for name, m in self.masters.items():
            with torch.no_grad():
                fill_own_part(m, kept(f"{name}.master"))
                if self.parameters[name] is not m:
                    self.parameters[name].copy_(m)
            state = {"step": kept(f"{name}.step").clone()}
            for k in ("exp_avg", "exp_avg_sq"):
                # On the master's device: with --offload the CPU.
                state[k] = torch.zeros_like(m)
                fill_own_part(state[k], kept(f"{name}.{k}"))
            self.adams[name].state[m] = state


def fill_own_part(p, tensor):
    """p ← tensor, of which a sharded p takes its own rows. No communication between processes."""
    if isinstance(p, DTensor):
        mesh, p = p.device_mesh, p.to_local()
        if len(p) == 0:  # fewer rows than processes
            return
        tensor = tensor.chunk(mesh.size())[mesh.get_local_rank()]  # as FSDP2 splits
    p.copy_(tensor)


def learning_rate(step, steps, peak):
    """Up to the peak in 5 steps, at most in a tenth of them, then straight down to a tenth of it.
    step: counted from 0."""
    warm_up = max(1, min(5, steps // 10))
    return peak * min((step + 1) / warm_up, 1 - 0.9 * (step + 1 - warm_up) / steps)
