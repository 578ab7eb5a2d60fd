"""rollouts.py: what is written down about a step, computed afterwards from its grpo.Step.

step_sums       sums over this process's share, which become a line of metrics.jsonl
sampler_gaps    how far the sampler's log-probs are from the scorer's
group_record    one group in full
token_records   the same token by token, with what the step did to each: a line of rollouts.jsonl
sampled_again   what the policy answers by now to a prompt of the run's first: a line of
                samples.jsonl
"""

from dataclasses import dataclass

import torch

from grpo import completion_texts, kl_k3, sample_groups, video_features
from model import group_logprobs
from tasks import TASKS, score


@dataclass
class Outcome:
    """What one process writes down about a step."""

    sums: dict  # of its share; added up over all processes, they are the step's
    grad_norm: float
    groups: tuple = ()  # its grpo.Groups; none for SFT, which has no gaps either
    sampler_gaps: torch.Tensor = None  # |sampler − scorer| of each scored token's log-prob


def outcome_of(step, policy, settings):
    """grpo.Step → Outcome."""
    stop_ids = policy.generation_config.eos_token_id
    sums = step_sums(step, settings.tasks, stop_ids, settings.updates_per_rollout)
    return Outcome(sums, step.grad_norm, step.groups, sampler_gaps(step))


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
        "sampler_gap": float(sampler_gaps(step).sum()),
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


def mean_kl(group):
    """KL per token of a Group in nats, before the step; 0 where it was not scored."""
    return 0.0 if group.kl is None else float(group.kl[group.mask].mean())


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
    record = {name: getattr(example, name) for name in ("id", "video", "answer")}
    return record | {"prompt": prompt.text}


@torch.no_grad()
def token_records(policy, tokenizer, group):
    """What a step did to each token of a group, for the report. It takes one more scoring forward,
    after the update.

    Returns: group_record, with more of each completion: "token_texts", "logp" and "kl" before the
             update, "logp_change" by it.

    Every process does this for a group, though only one writes: where weights are sharded, all
    processes must take part in a forward. A group that was not scored (without spread and without
    a KL it teaches nothing) has the sampler's log-probs, the same but for rounding.
    """
    before = group.logp_sampled if group.logp_old is None else group.logp_old
    features = video_features(policy, [group.prompt], with_gradient=False)[0]
    change = policy.call(group_logprobs, group.prompt, features, group.completions)[0] - before
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
    """A group that is sampled to be looked at: the policy's G answers to a prompt, with what they
    earn.

    One prompt at a time, so that it needs no more memory than a step. Where weights are sharded,
    every process must call this.
    """
    features = video_features(policy, [prompt], with_gradient=False)
    stop_ids, how = policy.generation_config.eos_token_id, (settings.group_size,)
    how += (settings.max_new_tokens, stop_ids, [generator])
    ids, mask, _ = policy.call(sample_groups, [prompt], features, *how)  # (1, G, C)
    completions = []
    for text in completion_texts(ids[0], mask[0], tokenizer, stop_ids):
        rewards = score(example.task, text, example.answer, settings.think)
        completions.append({"text": text, "rewards": rewards, "reward": sum(rewards.values())})
    return about_prompt(example, prompt) | {"completions": completions}
