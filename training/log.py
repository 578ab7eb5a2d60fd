"""log.py: what is written down about each step, and what it means.

metrics.jsonl   step_sums of every process are added up (Run.log), so that step_metrics are means of
                the whole step, however many processes shared it
rollouts.jsonl  token_records: a group, and what the step did to each of its tokens
samples.jsonl   sampled_again: the policy's answers, by now, to one of the run's first prompts
"""

import math
from dataclasses import dataclass

import torch

from grpo import completion_texts, kl_k3
from tasks import TASKS, score

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
The loss of step 1 is 0 or nearly 0 (but with --loss cispo), and that is right:
before the first update every ratio is 1, and advantages have mean 0. Watch
instead, in metrics.jsonl and curves.png: reward and its parts, spread (0: a
group teaches nothing), kl (slow, no jumps), length, unfinished.
"""


@dataclass
class Outcome:
    """What one process writes down about a step."""

    sums: dict  # of its share; added up over all processes, they are the step's
    grad_norm: float
    groups: tuple = ()  # its grpo.Groups; none for SFT, which has no gaps either
    sampler_gaps: torch.Tensor = None  # |sampler − scorer| of each token's log-prob


def outcome_of(groups, grad_norm, settings):
    """What grpo_step returns → Outcome."""
    sums = step_sums(groups, settings.tasks, settings.updates_per_rollout)
    return Outcome(sums, grad_norm, groups, sampler_gaps(groups))


def step_sums(groups, tasks, updates):
    """Sums over the groups of this process (added up over all, they are the whole step's).

    Every process gives the same names, whatever tasks its prompts have. loss is the mean over the
    rollout's updates. no_spread counts groups as the loss sees them: those without an advantage.
    """
    tokens = sum(int(g.mask.sum()) for g in groups)
    rewards = torch.stack([g.rewards for g in groups])  # (B, G)
    sums = {
        "loss": sum(float(g.loss) / updates for g in groups),
        "kl": sum(float(g.kl[g.mask].sum()) for g in groups),
        "entropy": sum(float(g.entropy[g.mask].sum()) for g in groups),
        "sampler_gap": float(sampler_gaps(groups).sum()),
        "clipped": sum(int(g.clipped) for g in groups),
        "later_tokens": tokens * (updates - 1),
        "groups": len(groups),
        "completions": rewards.numel(),
        "tokens": tokens,
        "reward": float(rewards.sum()),
        "spread": float(rewards.std(dim=1).sum()),
        "no_spread": sum(not g.advantages.any() for g in groups),
        "unfinished": sum(int((~g.finished).sum()) for g in groups),
        "prompt_tokens": sum(len(g.prompt.ids) for g in groups),
    }
    for task in tasks:
        scores = [s for g in groups if g.example.task == task for s in g.scores]
        sums[f"count/{task}"] = len(scores)
        for name in TASKS[task].rules:
            sums[f"reward/{task}/{name}"] = sum(s[name] for s in scores)
    return sums


def sampler_gaps(groups):
    """|sampler's log-prob − scorer's| of every token: (n,)."""
    return torch.cat([(g.logp_old - g.logp_sampled)[g.mask].abs() for g in groups])


def step_metrics(step, sums, grad_norm, lr, seconds, args):
    """A step's line in metrics.jsonl, from sums over all processes.

    kl, entropy: mean per token in nats, before the step's first update; sampler_gap: that of
    |sampler's log-prob − scorer's|; clip_share: the share of tokens whose gradient was clipped, in
    the updates after the first. Run.log adds two counts since
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


def group_record(group):
    """A Group as JSON: the question, and each completion with what it earned."""
    columns = {
        "text": group.texts,
        "rewards": group.scores,
        "reward": group.rewards.tolist(),
        "advantage": group.advantages.tolist(),
        "tokens": group.mask.sum(dim=1).tolist(),
    }
    completions = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return about_prompt(group.example, group.prompt) | {"completions": completions}


def about_prompt(example, prompt):
    """What a record says of a question."""
    record = {name: getattr(example, name) for name in ("id", "video", "answer")}
    return record | {"prompt": prompt.text}


@torch.no_grad()
def token_records(policy, tokenizer, group):
    """What a step did to each token of a group, for the report. It takes one more scoring forward,
    after the update.

    Returns: group_record, with more of each completion: "token_texts", "logp" and "kl" before the
             update, "logp_change" by it.

    Every process does this for a group, though only one writes: where weights are sharded, all
    processes must take part in a forward.
    """
    before = group.logp_old
    change = policy.logprobs(group, group.features)[0] - before
    kl = torch.zeros_like(before) if group.logp_ref is None else kl_k3(before, group.logp_ref)
    values = {"logp": before, "logp_change": change, "kl": kl}
    record = group_record(group)
    for g, (completion, ids, mask) in enumerate(
        zip(record["completions"], group.completions, group.mask)
    ):
        completion["token_texts"] = [tokenizer.decode([i]) for i in ids[mask].tolist()]
        for name, x in values.items():
            completion[name] = [float(f"{v:.5g}") for v in x[g][mask].tolist()]
    return record


@torch.no_grad()
def sampled_again(policy, tokenizer, settings, example, prompt, generator):
    """Samples a group that nothing is learned from: the policy's G answers to a prompt, and their
    rewards.

    One prompt at a time, so that it needs no more memory than a step. Where weights are sharded,
    every process must call this.
    """
    stop_ids, how = policy.generation_config.eos_token_id, (settings.group_size,)
    how += (settings.max_new_tokens, stop_ids, [generator])
    ids, mask, _ = policy.sample([prompt], policy.features([prompt]), *how)  # (1, G, C)
    completions = []
    for text in completion_texts(ids[0], mask[0], tokenizer, stop_ids):
        rewards = score(example.task, text, example.answer, settings.think)
        completions.append({"text": text, "rewards": rewards, "reward": sum(rewards.values())})
    return about_prompt(example, prompt) | {"completions": completions}
