"""metrics.py: what is written down about each step, and what it means.

A line of metrics.jsonl is made of sums over all processes (Run.log adds them up), so that a mean is
the mean of the whole step, however many processes shared it.
"""

import math
import resource
import sys

import torch

from lib.errors import BadInput

# name: (bytes, operations per second in 16 bits, in float32, bytes per second), by data sheets
GPUS = {
    "T4": (16e9, 65e12, 8.1e12, 0.32e12),
    "4090": (24e9, 165e12, 82.6e12, 1.0e12),
    "L40S": (48e9, 362e12, 91.6e12, 0.86e12),
    "A100": (80e9, 312e12, 19.5e12, 2.0e12),
    "H100": (80e9, 989e12, 67e12, 3.35e12),
    "H200": (141e9, 989e12, 67e12, 4.8e12),
}


def known_gpu(device_name):
    """The key of GPUS that a device's name holds; None where there is none."""
    return next((name for name in GPUS if name in device_name), None)


HINT = """
The loss of step 1 is 0 and that is right (nearly 0 with several updates per rollout, or --loss \
dapo or dr_grpo; not with cispo, whose loss is no difference): before
the first update every ratio is 1, and advantages have mean 0. Watch instead (all in \
metrics.jsonl and curves.png):
  reward     mean over completions; its parts are reward/TASK/format (0 or 1) and the task's own, \
as reward/grounding/iou
  spread     standard deviation of rewards within a group: what there is to learn from
  no_spread  share of groups whose completions all earn the same; they teach nothing
  kl         distance to the reference policy in nats per token: should grow slowly, not jump
  length     tokens per completion; unfinished: share that ran into --max-new-tokens
"""


def step_metrics(step, sums, grad_norm, lr, seconds, args):
    """A step's line in metrics.jsonl, from sums over all processes.

    kl, entropy: mean per token in nats, before the step's first update; sampler_gap: the same of
    |sampler's log-prob − scorer's|. clip_share: share of tokens
    whose gradient the clip stopped, in the updates after the first. Run.log adds two counts since
    the run began: skipped, videos that could not be read; dropped, steps that changed nothing
    because their gradient was NaN or infinite.
    """
    line = {"step": step, "loss": sums["loss"]}
    if args.method == "grpo":
        n, tokens = sums["completions"], sums["tokens"]
        line["reward"] = sums["reward"] / n
        for name in sums:  # "reward/task/rule"; a task without a prompt in this step has no mean
            if name.startswith("reward/") and sums[count := f"count/{name.split('/')[1]}"]:
                line[name] = sums[name] / sums[count]
        line |= {
            "spread": sums["spread"] / sums["groups"],
            "no_spread": sums["no_spread"] / sums["groups"],
            "kl": sums["kl"] / tokens,
            "clip_share": sums["clipped"] / max(1.0, sums["later_tokens"]),
            "entropy": sums["entropy"] / tokens,
            "sampler_gap": sums["sampler_gap"] / tokens,
            "length": tokens / n,
            "unfinished": sums["unfinished"] / n,
        }
    line |= {
        "grad_norm": grad_norm,
        "lr": lr,
        "prompt_tokens": sums["prompt_tokens"],
        "completion_tokens": sums["tokens"],
    }
    line = {k: v if math.isfinite(v) else None for k, v in line.items()}  # JSON has no NaN
    return line | {
        "seconds": {k: round(v, 4) for k, v in seconds.items()},
        "seconds_total": round(sum(seconds.values()), 4),
    }


def speed(line, n_weights, n_trained, args, world, device):
    """Tokens and completions per second, peak memory of process 0 in GB, and the share of the GPUs'
    arithmetic that is used (MFU)."""
    seconds, groups = line["seconds_total"], args.group_size if args.method == "grpo" else 1
    measured = {
        "tokens_per_second": line["completion_tokens"] / seconds,
        "samples_per_second": args.prompts_per_step * groups / seconds,
    }
    if args.method == "grpo" and line["seconds"].get("sample"):
        measured["decoded_per_second"] = line["completion_tokens"] / line["seconds"]["sample"]
    if "cuda" in str(device):
        measured["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        gpu = known_gpu(torch.cuda.get_device_name())
        if gpu and args.method == "grpo":
            peak = GPUS[gpu][1]
            tokens = line["prompt_tokens"] + line["completion_tokens"]
            # In forwards: sampling, the reference policy; per update one, and a backward of two.
            passes = 1 + (args.beta > 0) + 3 * args.updates_per_rollout
            if n_trained < n_weights / 2:  # frozen weights need no gradients of their own
                passes -= args.updates_per_rollout
            measured["mfu"] = 2 * n_weights * tokens * passes / seconds / peak / world
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        measured["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return {k: float(f"{v:.4g}") for k, v in measured.items()}


def tensorboard(folder):
    """A SummaryWriter for a folder. Raises BadInput where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise BadInput(
            "--tensorboard needs a package that is not installed: pip install tensorboard"
        ) from e
    return SummaryWriter(folder)
