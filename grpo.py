"""grpo.py: the algorithm, Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300 §4.1).

One step (grpo_step, at the end, is all of it), with the README's numbers:

    1. sample       a group of G completions for each of B prompts, from the policy (the model in
                    training) as it is now
    2. reward       each completion (rewards.py)
    3. advantage    how much better than its own group each completion did
    4. log-probs    of every token under the policy (with gradient) and the frozen reference policy
    5. loss         raise the log-probs of completions with positive advantage, lower the others,
                    no further than the clip allows and not far from the reference policy (KL)

PPO (Proximal Policy Optimization), the method before it, trains a second network to estimate how
good an answer to this prompt *should* be. Here the group's mean says it, and the KL stands in the
loss, not in the reward. What later papers changed is in variants.py, a row each.

From model.py: `prefill` reads the prompts and returns logits (B, V), a cache of keys and values and
the next positions; `decode_step` adds one token to every completion; `group_logprobs` scores a
group. `fast_decoding` makes decode_step fast and changes no number (skip it at first).

Letters: B prompts, G group size, C completion tokens (padded), V vocabulary.

    python grpo.py                  # the algorithm without video: on a bandit with three arms
    python -m doctest grpo.py -v    # runs the examples in the docstrings
"""

from dataclasses import dataclass

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from lib.decoding import fast_decoding
from model import decode_step, encode_videos, group_logprobs, prefill
from tasks import score
from variants import KLS, VARIANTS

# ------------------------------------------------------------------------------------------------
# 1. Sample
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_groups(
    model,
    prompts,
    features,
    group_size,
    max_new_tokens,
    stop_ids,
    generators=None,
    on_token=None,
    begun=None,
):
    """Samples a group of completions for each prompt, at temperature 1, from the full distribution
    (with generators=None: greedily).

    No top-k, no top-p: the log-probs that training computes are those of the full distribution, and
    tokens must come from the distribution they are scored under.

    Args:    prompts: B of them; features: their videos' features; stop_ids: tokens that end a
             completion; generators: B torch.Generators of the CPU, one per prompt, so that a
             prompt's completions depend neither on what else is in the batch nor on the device;
             on_token: called with the B·G tokens of each place, for streaming; begun: prefill's
             result, if the caller has already read the prompts.
    Returns: completions (B, G, C) int64, padded with stop_ids[0]; mask (B, G, C) bool, True up to
             and including the stop token: it is sampled and trained like any other, or the policy
             would never learn when to stop; log-probs (B, G, C) float32 as sampled, 0 outside the
             mask: they are for a check, grpo_step computes logp_old anew. C is the length of the
             longest. A completion that ran into max_new_tokens has no stop token.
    """
    logits, cache, position = begun or prefill(model, prompts, features)
    B, G, C, device = len(prompts), group_size, max_new_tokens, logits.device
    # All G first tokens come from the same distribution.
    logits = logits.repeat_interleave(G, dim=0)  # (B·G, V)
    position = position.repeat_interleave(G)
    cache.start_decoding(G, C)
    # All uniform random numbers, drawn up front: (B·G, C) in [0, 1).
    chance = None
    if generators:
        each = [torch.rand(G, C, dtype=torch.float64, generator=g) for g in generators]
        chance = torch.cat(each).to(device)
    stop = torch.tensor(stop_ids, device=device)
    tokens = torch.full((B * G, C), stop_ids[0], device=device)
    logps = torch.zeros(B * G, C, device=device)
    alive = torch.ones(B * G, dtype=torch.bool, device=device)  # completions that have not ended
    with fast_decoding(decode_step, model, cache) as next_logits:
        for step in range(C):
            logp = logits.log_softmax(dim=-1)
            token = logp.argmax(dim=-1) if chance is None else draw(logp, chance[:, step])
            token = torch.where(alive, token, stop[0])
            tokens[:, step] = token
            logps[:, step] = torch.where(alive, logp.gather(1, token[:, None])[:, 0], 0.0)
            if on_token:
                on_token(token)
            alive = alive & ~torch.isin(token, stop)
            logits = next_logits(token, position + step, alive) if step + 1 < C else None
            if logits is None:  # all have ended, or the last token is drawn
                break
    mask = completion_mask(tokens, stop)
    longest = int(mask.any(dim=0).sum())
    return tuple(x[:, :longest].view(B, G, longest) for x in (tokens, mask, logps))


def completion_mask(tokens, stop):
    """Which tokens belong to their completion: all up to and including the first stop token.

    Args:    tokens (…, C); stop (n,): the ids of which each ends a completion.
    Returns: (…, C) bool. A completion without a stop token ran out of room: all of it is its own.

    >>> completion_mask(torch.tensor([[5, 9, 7, 9], [5, 6, 7, 8]]), torch.tensor([9])).tolist()
    [[True, True, False, False], [True, True, True, True]]
    """
    is_stop = torch.isin(tokens, stop).int()
    stops_before = is_stop.cumsum(dim=-1) - is_stop
    return stops_before == 0


def draw(logp, chance):
    """One token per row by inverse transform: the first whose cumulative probability exceeds the
    row's chance. Summed in float64: over 152,064 tokens float32 would be off by more than a rare
    token's probability.

    Args:    logp (n, V); chance (n,) float64 in [0, 1). Returns (n,).

    >>> logp = torch.tensor([[0.5, 0.0, 0.5]] * 3).log()
    >>> draw(logp, torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    [0, 2, 2]
    """
    cumulative = logp.double().exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, chance[:, None] * cumulative[:, -1:], right=True)[:, 0]


def completion_texts(completions, mask, tokenizer, stop_ids):
    """Sampled tokens (G, C) to G texts, without the stop token that ended each.

    Other special tokens stay visible: a completion that says <|im_start|> in the middle is not
    well-formed, and must not look as if it were.
    """
    texts = []
    for ids, length in zip(completions.tolist(), mask.sum(dim=1).tolist()):
        length -= ids[length - 1] in stop_ids
        texts.append(tokenizer.decode(ids[:length], skip_special_tokens=False))
    return texts


# ------------------------------------------------------------------------------------------------
# 3. Advantages
# ------------------------------------------------------------------------------------------------


def group_advantages(rewards, divide_by_std=True):
    """A_i = (r_i − mean(r)) / (std(r) + 1e-4), within each group (DeepSeekMath §4.1.2).

    Args:    rewards (…, G); divide_by_std: variants.py has some that do not.
    Returns: advantages (…, G). Their mean is 0; a group of equal rewards gives exactly 0: it
             teaches nothing.

    std is the sample standard deviation (n − 1), as in the paper's code.
    (The first reward is subtracted beforehand, so that equal rewards become exact zeros. Their
    float32 mean could be 1e-7 off, and 1e-7 / 1e-4 would be an advantage of 0.001.)

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]).double()).round(decimals=2).tolist()
    [0.87, -0.87, 0.87, -0.87]
    """
    rewards = rewards - rewards[..., :1]
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return centred / (rewards.std(dim=-1, keepdim=True) + 1e-4) if divide_by_std else centred


# ------------------------------------------------------------------------------------------------
# 5. The loss
# ------------------------------------------------------------------------------------------------


def kl_k3(logp, logp_ref):
    """How far the policy is from the reference policy, per token, by Schulman's k3:

        exp(Δ) − Δ − 1   with Δ = logp_ref − logp

    It needs only the sampled token's two log-probs. It is never negative (e^x ≥ 1 + x), and its
    *value* is unbiased for tokens sampled from the policy p: E[exp(Δ)] = Σ p · p_ref/p = 1, so
    E[exp(Δ) − 1 − Δ] = E[−Δ] = KL(p ‖ p_ref).

    Its *gradient* is that of the other KL: E[(1 − p_ref/p) ∇log p] = −Σ p_ref ∇log p =
    ∇KL(p_ref ‖ p) (Σ p ∇log p = ∇ Σ p = 0). Near the reference the two pull alike; far from it k3
    pulls harder towards what the policy has forgotten. The paper has it so; `--kl` has others (KLS
    in variants.py).

    >>> k3 = kl_k3(torch.tensor([-1.0, -1.0]).double(), torch.tensor([-1.0, -2.0]))
    >>> k3.round(decimals=4).tolist()
    [0.0, 0.3679]
    """
    delta = logp_ref - logp
    return delta.exp() - delta - 1


def token_weights(mask, loss, max_new_tokens, n_completions, n_tokens):
    """How much each token counts in the step's loss: 1 / (length · n_completions), a mean over the
    tokens of each completion, then over completions.

    Args:    mask (…, G, C): True on a completion's own tokens; loss: the name of a row of VARIANTS,
             which may weigh otherwise (dr_grpo: 1 / (max_new_tokens · n_completions); dapo: 1 /
             n_tokens); n_completions, n_tokens: of the whole step, over all prompts and processes,
             so that the losses of groups and processes add up to the step's.
    Returns: weights (…, G, C), 0 outside the mask.

    >>> mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    >>> token_weights(mask, "grpo", 4, 2, 5).tolist()
    [[0.125, 0.125, 0.125, 0.125], [0.5, 0.0, 0.0, 0.0]]
    >>> token_weights(mask, "dapo", 4, 2, 5).sum().item()
    1.0
    """
    mask = mask.float()
    if weights := VARIANTS[loss].weights:
        return weights(mask, max_new_tokens, n_completions, n_tokens)
    return mask / (mask.sum(dim=-1, keepdim=True) * n_completions)


def policy_loss(
    logp,
    logp_old,
    logp_ref,
    advantages,
    mask,
    weights,
    clip_low,
    clip_high,
    beta,
    loss="grpo",
    estimator="k3",
):
    """The clipped objective with its KL penalty, as a loss to minimise.

        ρ    = exp(logp − logp_old)
        loss = − Σ weights · ( min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) − β · KL )

    Args:    logp (G, C) with gradient; logp_old (G, C) under the policy that sampled;
             logp_ref (G, C) under the reference policy, or None when β = 0; advantages (G,);
             mask (G, C); weights (G, C) from token_weights; loss: the name of a row of VARIANTS,
             which may take another ratio (gspo: of the completion, exp(mean(logp − logp_old))) or
             another objective; estimator: of the KL, the name of a row of KLS (--kl).
    Returns: the scalar loss, and per-token tensors (G, C) without gradient: "kl" and "clipped"
             (True where the clip stopped the gradient; for cispo: where grpo's would have).

    Why min and clip: once ρ has moved past the clip in the direction that A asks for (A > 0: above
    1 + ε; A < 0: below 1 − ε), the clipped term is the smaller one. It does not depend on logp: the
    gradient is 0. In the other direction min keeps ρ A: mistakes are always corrected. At the first
    update after sampling ρ = 1 everywhere, so with the weights above the loss is −mean(A) = 0 (plus
    β · KL); where longer completions weigh more it need not be 0. Its gradient is not 0 either way:
    d(ρ A) = A · d logp.

    >>> logp, A = torch.tensor([[0.0], [0.0]]).requires_grad_(), torch.tensor([1.0, -1.0])
    >>> mask, half = torch.ones(2, 1).bool(), torch.full((2, 1), 0.5)
    >>> loss, _ = policy_loss(logp, logp.detach(), None, A, mask, half, 0.2, 0.2, 0.0)
    >>> loss.backward()  # the loss is 0, yet the good one goes up and the bad one down
    >>> abs(loss.item()), logp.grad.tolist()
    (0.0, [[-0.5], [0.5]])
    """
    variant, own = VARIANTS[loss], torch.where(mask, logp, 0.0)
    of_tokens = log_ratio = torch.where(mask, logp - logp_old, 0.0)
    if variant.log_ratio:
        log_ratio = variant.log_ratio(of_tokens, mask)
    ratio = log_ratio.exp()
    A = advantages[:, None]
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * A, clipped_ratio * A)
    if variant.objective:
        objective = variant.objective(clipped_ratio, A, own)
    kl = torch.zeros_like(ratio)
    if logp_ref is not None:
        ref = torch.where(mask, logp_ref, 0.0)
        kl = KLS[estimator](kl_k3(own, ref), ref - own, of_tokens)
    per_token = {"kl": kl.detach(), "clipped": (clipped_ratio * A < ratio * A) & mask}
    return -(weights * (objective - beta * kl)).sum(), per_token


# ------------------------------------------------------------------------------------------------
# One whole step
# ------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """A prompt, its G completions (padded to the longest), and what the step computes for them."""

    example: object  # data.Example
    prompt: object  # data.Prompt
    texts: list  # G strings
    completions: torch.Tensor  # (G, C) int64
    mask: torch.Tensor  # (G, C) bool
    logp_sampled: torch.Tensor  # (G, C), by sample_groups
    finished: torch.Tensor  # (G,): which have a stop token
    features: torch.Tensor = None  # (video tokens, D), where the vision tower is frozen
    scores: list = None  # G dicts: each completion's rewards by name
    rewards: torch.Tensor = None  # (G,): their sums
    advantages: torch.Tensor = None  # (G,)
    weights: torch.Tensor = None  # (G, C)
    logp_ref: torch.Tensor = None  # (G, C)
    logp_old: torch.Tensor = None  # (G, C), by logprobs before the first update, as entropy and kl
    entropy: torch.Tensor = None  # (G, C), in nats
    kl: torch.Tensor = None  # (G, C)
    loss: torch.Tensor = 0.0  # its share of the step's, summed over the updates
    clipped: torch.Tensor = 0  # tokens whose gradient the clip stopped; in the first update ρ = 1


def grpo_step(policy, reference, batch, settings, update_weights, total):
    """One step of GRPO on this process's prompts.

    Args:    policy: a model with methods features (encode_videos), sample (sample_groups) and
             logprobs (below; training/policy.py binds them); reference: `with reference() as
             frozen` gives the reference policy; batch: a data.Batch; settings: train.py's;
             update_weights: takes the optimizer's step on the gradients that have added up, clears
             them, and returns their norm; total: a number → its sum over all processes.
    Returns: its Groups, and the norm of its last gradient.
    """
    s = settings
    groups = sampled_groups(policy, batch, settings)  # 1. sample
    for g in groups:  # 2. reward
        g.scores = [score(g.example.task, t, g.example.answer, s.think) for t in g.texts]
        rewards = [sum(scores.values()) for scores in g.scores]
        g.rewards = torch.tensor(rewards, device=g.mask.device)
    set_advantages(groups, s, total)  # 3. advantage, and each token's weight
    if s.beta > 0:
        with reference() as frozen:
            reference_logprobs(frozen, groups)  # 4. log-probs under the reference policy
    for update in range(s.updates_per_rollout):
        for g in groups:
            logp, entropy = policy.logprobs(g, g.features)  # 4. log-probs under the policy
            if update == 0:  # the policy is still the one that sampled: ρ is exactly 1
                g.logp_old, g.entropy = logp.detach(), entropy
            tensors = (logp, g.logp_old, g.logp_ref, g.advantages, g.mask, g.weights)
            how = (s.clip, s.clip_high, s.beta, s.loss, s.kl)
            loss, per_token = policy_loss(*tensors, *how)  # 5. loss
            loss.backward()  # gradients of the groups add up
            g.kl = per_token["kl"] if update == 0 else g.kl
            g.clipped += per_token["clipped"].sum()  # no .item(), which would wait for the GPU
            g.loss += loss.detach()
        grad_norm = update_weights()  # the weights change
    return groups, grad_norm


def sampled_groups(policy, batch, settings):
    """1.: the Groups of a batch, one per prompt, sampled from the policy."""
    stop_ids, prompts = policy.generation_config.eos_token_id, batch.prompts
    with torch.no_grad():
        features = policy.features(prompts)
    how = (settings.group_size, settings.max_new_tokens, stop_ids, batch.generators)
    sampled, groups = policy.sample(prompts, features, *how), []
    for example, prompt, seen, ids, mask, logp in zip(batch.examples, prompts, features, *sampled):
        longest = int(mask.any(dim=0).sum())
        ids, mask, logp = (x[:, :longest] for x in (ids, mask, logp))
        texts = completion_texts(ids, mask, batch.tokenizer, stop_ids)
        finished = torch.isin(ids, torch.tensor(stop_ids).to(ids)).any(dim=1)
        seen = None if settings.train_vision else seen
        groups.append(Group(example, prompt, texts, ids, mask, logp, finished, seen))
    return groups


def set_advantages(groups, settings, total):
    """3.: the advantages of all groups of the step, and how much each token counts.

    settings.mask_unfinished (DAPO §3.4): nobody knows what a completion that ran out of room would
    have earned, so its tokens weigh 0. Its reward still counts in the group's mean. As in TRL, dapo
    and cispo then leave its tokens out of n_tokens as well, while the others go on dividing by all
    completions.
    """
    variant = VARIANTS[settings.loss]
    if variant.advantages:
        variant.advantages(groups, group_advantages, total)
    else:
        for g in groups:
            g.advantages = group_advantages(g.rewards)
    keep = lambda g: g.mask & (g.finished[:, None] | (not settings.mask_unfinished))
    n_completions = total(sum(len(g.mask) for g in groups))
    n_tokens = max(1, total(int(sum(keep(g).sum() for g in groups))))
    for g in groups:
        numbers = (settings.max_new_tokens, n_completions, n_tokens)
        g.weights = token_weights(g.mask, settings.loss, *numbers) * keep(g)


@torch.no_grad()
def reference_logprobs(frozen, groups):
    """4. for the reference policy, without gradient. Features of a frozen tower are the policy's
    own; where the tower is trained, the reference's tower runs here, once over all videos."""
    seen = [g.features for g in groups]
    if seen[0] is None:
        seen = frozen.features([g.prompt for g in groups])
    for g, features in zip(groups, seen):
        g.logp_ref, _ = frozen.logprobs(g, features)


def logprobs(model, group, features=None):
    """group_logprobs of a Group. Where features of its video are not at hand, because the vision
    tower is trained, the tower runs here, with gradient."""
    if features is None:
        (features,) = encode_videos(model, [group.prompt])
    return group_logprobs(model, group.prompt, features, group.completions)


if __name__ == "__main__":
    from course.bandit import main
    from lib.errors import run_program

    run_program(main)
