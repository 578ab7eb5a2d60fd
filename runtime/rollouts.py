"""rollouts.py: what is written down about a step, computed afterwards from its grpo.Step.

step_sums       sums over this process's share, which become a line of metrics.jsonl
sampler_gaps    how far the sampler's log-probs are from the scorer's
group_record    one group in full, a line of rollouts.jsonl
token_records   the same token by token, with what the step did to each
"""

from dataclasses import dataclass

import torch

from grpo import kl_k3, video_features
from model import group_logprobs
from tasks import TASKS


@dataclass
class Outcome:
    """What one process writes down about a step."""

    sums: dict  # of its share; added up over all processes, they are the step's
    grad_norm: float
    group: dict = None  # its first group as JSON; None for SFT, as the next
    sampler_gaps: torch.Tensor = None  # |sampler − scorer| of each scored token's log-prob


def outcome_of(step, policy, tokenizer, settings, clock, number):
    """grpo.Step → Outcome. Every --rollouts-every steps its group is recorded token by token."""
    stop_ids = policy.generation_config.eos_token_id
    sums = step_sums(step, settings.tasks, stop_ids, settings.updates_per_rollout)
    group = group_record(step.groups[0])
    if number % settings.rollouts_every == 0:
        records = token_records(policy, tokenizer, step.groups[0])
        group["completions"] = [c | tokens for c, tokens in zip(group["completions"], records)]
        clock("record")
    return Outcome(sums, step.grad_norm, group, sampler_gaps(step))


def step_sums(step, tasks, stop_ids, updates):
    """Sums over the groups of this process (added up over all, they are the whole step's).

    Every process gives the same names, whatever tasks its prompts have. loss is the mean over the
    rollout's updates; kl, entropy and scored_tokens are of groups that were scored.
    """
    groups, scored = step.groups, [g for g in step.groups if g.logp_old is not None]
    rewards = torch.stack([g.rewards for g in groups])  # (B, G)
    spread = rewards.std(dim=1)
    stop = torch.tensor(stop_ids, device=rewards.device)
    sums = {
        "loss": sum(loss / updates for loss in step.losses),
        "kl": sum(float(g.kl[g.mask].sum()) for g in scored),
        "entropy": sum(float(g.entropy[g.mask].sum()) for g in scored),
        "scored_tokens": sum(float(g.mask.sum()) for g in scored),
        "clipped": sum(g.clipped for g in scored),
        "later_tokens": sum(float(g.mask.sum()) for g in scored) * (updates - 1),
        "groups": len(groups),
        "completions": rewards.numel(),
        "tokens": sum(float(g.mask.sum()) for g in groups),
        "reward": float(rewards.sum()),
        "spread": float(spread.sum()),
        "no_spread": float((spread < 1e-6).sum()),
        "unfinished": sum(float(unfinished(g, stop).sum()) for g in groups),
        "prompt_tokens": sum(len(g.prompt.ids) for g in groups),
    }
    for task in tasks:
        scores = [s for g in groups if g.example.task == task for s in g.scores]
        sums[f"count/{task}"] = len(scores)
        for name in TASKS[task].rules:
            sums[f"reward/{task}/{name}"] = sum(s[name] for s in scores)
    return sums


def unfinished(group, stop):
    """(G,) bool: completions that ran out of room before a stop token."""
    return (~torch.isin(group.completions, stop) | ~group.mask).all(dim=1)


def sampler_gaps(step):
    """|sampler's log-prob − scorer's| of every token that was scored: (n,)."""
    scored = [g for g in step.groups if g.logp_old is not None]
    gaps = [(g.logp_old - g.logp_sampled)[g.mask].abs() for g in scored]
    return torch.cat(gaps) if gaps else torch.zeros(0, device=step.groups[0].rewards.device)


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
    example, prompt = group.example, group.prompt.text
    record = {name: getattr(example, name) for name in ("id", "video", "answer")}
    return record | {"prompt": prompt, "completions": completions}


@torch.no_grad()
def token_records(policy, tokenizer, group):
    """What a step did to each token of a group, for the report. It takes one more scoring forward,
    after the update.

    Returns: per completion {"token_texts", "logp" and "kl" before the update, "logp_change" by it}.

    Every process does this for its first group, though only one writes: where weights are sharded,
    all processes must take part in a forward. A group that was not scored (without spread and
    without a KL it teaches nothing) has the sampler's log-probs, the same but for rounding.
    """
    before = group.logp_sampled if group.logp_old is None else group.logp_old
    features = video_features(policy, [group.prompt], with_gradient=False)[0]
    change = policy.call(group_logprobs, group.prompt, features, group.completions)[0] - before
    kl = torch.zeros_like(before) if group.logp_ref is None else kl_k3(before, group.logp_ref)
    values = {"logp": before, "logp_change": change, "kl": kl}
    records = []
    for g, (ids, mask) in enumerate(zip(group.completions, group.mask)):
        record = {"token_texts": [tokenizer.decode([i]) for i in ids[mask].tolist()]}
        record |= {name: [round(v, 4) for v in x[g][mask].tolist()] for name, x in values.items()}
        records.append(record)
    return records
