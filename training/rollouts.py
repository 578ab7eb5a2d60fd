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

from grpo import completion_texts, kl_k3
from tasks import TASKS, score


@dataclass
class Outcome:
    """What one process writes down about a step."""

    sums: dict  # of its share; added up over all processes, they are the step's
    grad_norm: float
    groups: tuple = ()  # its grpo.Groups; none for SFT, which has no gaps either
    sampler_gaps: torch.Tensor = None  # |sampler − scorer| of each token's log-prob


def outcome_of(step, settings):
    """grpo.Step → Outcome."""
    sums = step_sums(step, settings.tasks, settings.updates_per_rollout)
    return Outcome(sums, step.grad_norm, step.groups, sampler_gaps(step))


def step_sums(step, tasks, updates):
    """Sums over the groups of this process (added up over all, they are the whole step's).

    Every process gives the same names, whatever tasks its prompts have. loss is the mean over the
    rollout's updates. no_spread counts groups as the loss sees them: those without an advantage.
    """
    groups, tokens = step.groups, sum(int(g.mask.sum()) for g in step.groups)
    rewards = torch.stack([g.rewards for g in groups])  # (B, G)
    sums = {
        "loss": sum(loss / updates for loss in step.losses),
        "kl": sum(float(g.kl[g.mask].sum()) for g in groups),
        "entropy": sum(float(g.entropy[g.mask].sum()) for g in groups),
        "sampler_gap": float(sampler_gaps(step).sum()),
        "clipped": sum(g.clipped for g in groups),
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


def sampler_gaps(step):
    """|sampler's log-prob − scorer's| of every token: (n,)."""
    return torch.cat([(g.logp_old - g.logp_sampled)[g.mask].abs() for g in step.groups])


def mean_kl(group):
    """KL per token of a Group in nats, before the step."""
    return float(group.kl[group.mask].mean())


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
    processes must take part in a forward.
    """
    before = group.logp_old
    change = policy.logprobs(group)[0] - before
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
    stop_ids, how = policy.generation_config.eos_token_id, (settings.group_size,)
    how += (settings.max_new_tokens, stop_ids, [generator])
    ids, mask, _ = policy.sample([prompt], policy.features([prompt]), *how)  # (1, G, C)
    completions = []
    for text in completion_texts(ids[0], mask[0], tokenizer, stop_ids):
        rewards = score(example.task, text, example.answer, settings.think)
        completions.append({"text": text, "rewards": rewards, "reward": sum(rewards.values())})
    return about_prompt(example, prompt) | {"completions": completions}
