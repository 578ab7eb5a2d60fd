"""variants.py: what later papers changed about GRPO, a row each (`train.py --loss NAME`).

Each row names only what differs from grpo.py; nothing given means as there. Four things can differ:

    advantages   a function (groups, compare, total) that sets g.advantages of the step's Groups;
                 compare: grpo.group_advantages; total: a number → its sum over all processes
    weights      (mask (…, G, C) as numbers, max_new_tokens, n_completions, n_tokens) → how much
                 each token counts; the last two are of the whole step: losses of parts add up
    log_ratio    (log ρ (G, C), mask) → log ρ (G, C), the ratio that is clipped
    objective    (clip(ρ), A, log-probs) → what is maximised, per token (G, C)

To add one: a function of what it changes, a row with its source, and a test (tests/test_grpo.py).
rloo is the shortest example.
"""

from dataclasses import dataclass

import torch

# ------------------------------------------------------------------------------------------------
# Advantages
# ------------------------------------------------------------------------------------------------


def undivided(groups, compare, total):
    """A_i = r_i − mean(r). Division by the std blows up the differences of groups that are nearly
    all right or all wrong."""
    for g in groups:
        g.advantages = compare(g.rewards, divide_by_std=False)


def leave_one_out(groups, compare, total):
    """A_i = r_i − mean of the others' rewards = G / (G − 1) · (r_i − mean(r)): what a completion is
    compared with does not depend on itself."""
    for g in groups:
        G = len(g.rewards)
        g.advantages = compare(g.rewards, divide_by_std=False) * G / (G - 1)


def each_reward_alone(groups, compare, total):
    """A_i = Σ_k (r_ik − mean(r_k)) / (std(r_k) + 1e-4) over the rewards k, then divided by its std
    over the whole step (its mean is 0): in a sum of rewards, the widest drowns the others."""
    for g in groups:
        rewards = torch.tensor([list(scores.values()) for scores in g.scores]).T  # (n_rewards, G)
        g.advantages = compare(rewards.to(g.rewards)).sum(dim=0)
    n = total(sum(len(g.advantages) for g in groups))
    squares = total(sum(float(g.advantages.square().sum()) for g in groups))
    for g in groups:
        g.advantages = g.advantages / ((squares / (n - 1)) ** 0.5 + 1e-4)


# ------------------------------------------------------------------------------------------------
# Token weights
# ------------------------------------------------------------------------------------------------


def by_room(mask, max_new_tokens, n_completions, n_tokens):
    """1 / (max_new_tokens · n_completions): no division by length, so a long wrong answer is not
    punished less per token."""
    return mask / (max_new_tokens * n_completions)


def by_token(mask, max_new_tokens, n_completions, n_tokens):
    """1 / n_tokens: every token of the step counts alike."""
    return mask / n_tokens


def by_sum(mask, max_new_tokens, n_completions, n_tokens):
    """1 / n_completions: the log-prob of a completion is the sum of its tokens'."""
    return mask / n_completions


# ------------------------------------------------------------------------------------------------
# Ratio and objective
# ------------------------------------------------------------------------------------------------


def of_the_completion(log_ratio, mask):
    """ρ_i = exp(mean over tokens of (logp − logp_old)), carried by each token: the ratio belongs to
    the whole completion, because the reward does too. It stays much nearer to 1."""
    mean = log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)
    return mean.expand_as(log_ratio)


def weighted(clipped_ratio, A, logp):
    """clip(ρ) A logp, with clip(ρ) as a constant: the clip weighs tokens and silences none."""
    return clipped_ratio.detach() * A * logp


# ------------------------------------------------------------------------------------------------
# The rows
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    source: str  # arXiv
    advantages: object = None
    weights: object = None
    log_ratio: object = None
    objective: object = None
    clip: tuple = (0.2, 0.2)  # ε below and above, as published; 1 below is no lower clip, as ρ > 0


VARIANTS = {
    "grpo": Variant("2402.03300 §4.1"),
    "dr_grpo": Variant("2503.20783", advantages=undivided, weights=by_room),
    "dapo": Variant("2503.14476 §3", weights=by_token, clip=(0.2, 0.28)),
    "gspo": Variant("2507.18071", log_ratio=of_the_completion, clip=(3e-4, 4e-4)),
    "cispo": Variant("2506.13585 (MiniMax-M1)", weights=by_token, objective=weighted,
                     clip=(1.0, 0.2)),
    "gdpo": Variant("2601.05242", advantages=each_reward_alone),
    # Published with one update per rollout, where no clip acts, and the KL in the reward.
    "rloo": Variant("2402.14740", advantages=leave_one_out, weights=by_sum),
}  # fmt: skip

# The KL term per token (`--kl`), from k3 (grpo.kl_k3), Δ = logp_ref − logp and log ρ. All values
# estimate KL(policy ‖ reference) (k2 with a little bias), but their gradients pull differently, as
# Σ p · term over all tokens of a distribution shows (tests/test_grpo.py). Each row's gradient is
KLS = {
    # that of KL(reference ‖ policy): the paper's
    "k3": lambda k3, delta, log_ratio: k3,
    # that of KL(policy ‖ reference), as the ratio's own gradient is in it (arXiv 2512.02556)
    "k3-ratio": lambda k3, delta, log_ratio: k3 * log_ratio.exp(),
    # that of KL(policy ‖ reference), where the policy is still the one that sampled
    "k2": lambda k3, delta, log_ratio: delta.square() / 2,
}
