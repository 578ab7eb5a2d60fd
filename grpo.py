"""grpo.py: the algorithm, Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300 §4.1).

One step, with the numbers that the README uses too (grpo_step, at the end, is all of it):

    1. sample       a group of G completions for each of B prompts, from the policy as it is now
    2. reward       each completion (rewards.py)
    3. advantage    how much better than its own group each completion did
    4. log-probs    of every token under the policy (with gradient) and the frozen reference policy
    5. loss         raise the log-probs of completions with positive advantage, lower the others,
                    no further than the clip allows and not far from the reference policy (KL)

PPO, the method before it, trains a second network to estimate how good an answer to this prompt
*should* be. Here the group's mean says it, and the KL stands in the loss, not in the reward.

There are no files here and no other processes. Of model.py, the chapter before, this is needed:
`prefill` reads the prompts and returns logits (B, V), a cache of keys and values, and the next
positions; `decode_step` adds one token to every completion; `groups_logprobs` scores groups.
`fast_decoding` makes the decoding fast, `rows_of` says how many groups are scored at once; neither
changes a number (lib/decoding.py, lib/packing.py; skip them at first).

Letters: B prompts, G group size, C completion tokens (padded), V vocabulary. (G, C) tensors hold
one group.

    python grpo.py                  # the algorithm without video: on a bandit with three arms
    python -m doctest grpo.py -v    # runs the examples in the docstrings
"""

from dataclasses import dataclass, field
from itertools import chain

import lib.threads  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from lib.decoding import fast_decoding
from lib.packing import rows_of
from model import decode_step, encode_videos, groups_logprobs, prefill
from tasks import score

# ------------------------------------------------------------------------------------------------
# 1. Sample
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    """Samples a group of completions for each prompt, at temperature 1, from the full distribution.

    No top-k, no top-p: the log-probs that training computes are those of the full distribution, and
    tokens must come from the distribution they are scored under.

    Args:    prompts: B of them; features: their videos' features; stop_ids: tokens that end a
             completion; generators: B torch.Generators of the CPU, one per prompt, so that a
             prompt's completions depend neither on what else is in the batch nor on the device;
             None for greedy decoding; on_token: called with the tokens of each step, for streaming.
    Returns: completions (B, G, C) int64, padded with stop_ids[0]; mask (B, G, C) bool, True up to
             and including the stop token: it is sampled and trained like any other, or the policy
             would never learn when to stop; log-probs (B, G, C) float32 as sampled, 0 outside the
             mask: they are for a check, train.py computes logp_old anew.
             C <= max_new_tokens is the length of the longest. A completion that ran into
             max_new_tokens has no stop token.
    """
    logits, cache, position = prefill(model, prompts, features)
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
            if logits is None:  # all have ended
                break
    mask = completion_mask(tokens, stop)
    longest = int(mask.any(dim=0).sum())
    return tuple(x[:, :longest].view(B, G, longest) for x in (tokens, mask, logps))


def completion_mask(tokens, stop):
    """Which tokens belong to their completion: all up to the first stop token, and the stop token
    itself.

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
    row's chance.

    Args:    logp (n, V); chance (n,) float64 in [0, 1). Returns (n,).

    Summed in float64: over 152,064 tokens float32 would be off by more than a rare token's
    probability.

    >>> logp = torch.tensor([[0.5, 0.0, 0.5]] * 3).log()
    >>> draw(logp, torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    [0, 2, 2]
    """
    cumulative = logp.double().exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, chance[:, None] * cumulative[:, -1:], right=True)[:, 0]


def completion_texts(completions, mask, tokenizer, stop_ids):
    """Sampled tokens to text, without the stop token that ended each.

    Args: completions (G, C), mask (G, C). Other special tokens stay visible: a completion that says
    <|im_start|> in the middle is not well-formed, and must not look as if it were.
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

    Args:    rewards (…, G); divide_by_std: False is Dr. GRPO's version (arXiv 2503.20783), which
             does not blow up the differences of groups that are nearly all right or all wrong.
    Returns: advantages (…, G). Their mean is 0; a group of equal rewards gives exactly 0: it
             teaches nothing.

    std is the sample standard deviation (n − 1), as in the reference code.

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]).double()).round(decimals=2).tolist()
    [0.87, -0.87, 0.87, -0.87]
    """
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return centred / (rewards.std(dim=-1, keepdim=True) + 1e-4) if divide_by_std else centred


# ------------------------------------------------------------------------------------------------
# 5. The loss
# ------------------------------------------------------------------------------------------------


def kl_k3(logp, logp_ref):
    """KL(policy ‖ reference) per token, Schulman's third estimator, k3:

        exp(Δ) − Δ − 1   with Δ = logp_ref − logp

    It needs only the sampled token's two log-probs. It is never negative (e^x ≥ 1 + x), and
    unbiased for tokens sampled from the policy: E[exp(Δ)] = Σ p · p_ref/p = 1, so
    E[exp(Δ) − 1 − Δ] = E[−Δ] = KL.

    >>> k3 = kl_k3(torch.tensor([-1.0, -1.0]).double(), torch.tensor([-1.0, -2.0]))
    >>> k3.round(decimals=4).tolist()
    [0.0, 0.3679]
    """
    delta = logp_ref - logp
    return delta.exp() - delta - 1


LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "gdpo")


def token_weights(mask, loss, max_new_tokens, n_completions, n_tokens):
    """How much each token counts in the step's loss: where most of GRPO's later variants (LOSSES)
    differ from it. gspo and cispo differ in policy_loss, too, dr_grpo and gdpo in compared_groups.

    Args:    mask (…, G, C): True on a completion's own tokens; n_completions and n_tokens: their
             numbers in the whole step, over all prompts and processes, so that losses of parts
             simply add up.
    Returns: weights (…, G, C), 0 outside the mask.

    grpo, gspo,  1 / (length · n_completions)          mean over a completion's tokens, then over
    gdpo                                               completions
    dr_grpo      1 / (max_new_tokens · n_completions)  no division by length: a long wrong answer is
                                                       not punished less per token (2503.20783)
    dapo, cispo  1 / n_tokens                          every token counts alike (2503.14476 §3.3)

    >>> mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    >>> token_weights(mask, "grpo", 4, 2, 5).tolist()
    [[0.125, 0.125, 0.125, 0.125], [0.5, 0.0, 0.0, 0.0]]
    >>> token_weights(mask, "dapo", 4, 2, 5).sum().item()
    1.0
    """
    mask = mask.float()
    if loss in ("dapo", "cispo"):
        return mask / n_tokens
    if loss == "dr_grpo":
        return mask / (max_new_tokens * n_completions)
    return mask / (mask.sum(dim=-1, keepdim=True) * n_completions)


def policy_loss(
    logp, logp_old, logp_ref, advantages, mask, weights, clip_low, clip_high, beta, loss="grpo"
):
    """The clipped objective with its KL penalty, as a loss to minimise.

        ρ    = exp(logp − logp_old)
        loss = − Σ weights · ( min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) − β · KL )

    Args:    logp (G, C) with gradient; logp_old (G, C) under the policy that sampled;
             logp_ref (G, C) under the reference policy, or None when β = 0; advantages (G,);
             mask (G, C); weights (G, C) from token_weights.
    Returns: the scalar loss, and per-token tensors (G, C) without gradient: "kl" and "clipped"
             (True where the clip stopped the gradient; for cispo: where grpo's would have).

    Why min and clip: once ρ has moved past the clip in the direction that A asks for, min picks the
    constant, and the gradient is 0. In the other direction min keeps ρ A: mistakes are always
    corrected. At the first update after sampling ρ = 1 everywhere, so with the weights of grpo and
    gspo the loss is −mean(A) = 0 (plus β · KL); with the others longer completions weigh more, and
    it need not be 0. Its gradient is not 0 either way: d(ρ A) = A · d logp.

    gspo (arXiv 2507.18071): the ratio belongs to the whole completion, because the reward does too,
    ρ_i = exp(mean_t(logp − logp_old)); each token carries it. Its ratios stay much nearer to 1:
    clip at 3e-4.

    cispo (MiniMax-M1, arXiv 2506.13585): clip(ρ) A logp with clip(ρ) as a constant. The clip weighs
    tokens and silences none. (That paper clips above alone: --clip 1.)

    >>> logp, A = torch.tensor([[0.0], [0.0]]).requires_grad_(), torch.tensor([1.0, -1.0])
    >>> mask, half = torch.ones(2, 1).bool(), torch.full((2, 1), 0.5)
    >>> loss, _ = policy_loss(logp, logp.detach(), None, A, mask, half, 0.2, 0.2, 0.0)
    >>> loss.backward()  # the loss is 0, yet the good one goes up and the bad one down
    >>> abs(loss.item()), logp.grad.tolist()
    (0.0, [[-0.5], [0.5]])
    """
    log_ratio = torch.where(mask, logp - logp_old, 0.0)
    if loss == "gspo":
        mean = log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)
        log_ratio = mean.expand_as(log_ratio)
    ratio = log_ratio.exp()
    A = advantages[:, None]
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * A, clipped_ratio * A)
    if loss == "cispo":
        objective = clipped_ratio.detach() * A * torch.where(mask, logp, 0.0)
    kl = torch.zeros_like(ratio)
    if logp_ref is not None:
        kl = kl_k3(torch.where(mask, logp, 0.0), torch.where(mask, logp_ref, 0.0))
    total = -(weights * (objective - beta * kl)).sum()
    return total, {"kl": kl.detach(), "clipped": (clipped_ratio * A < ratio * A) & mask}


# ------------------------------------------------------------------------------------------------
# One whole step
# ------------------------------------------------------------------------------------------------
# `policy.call(f, …)` is f(policy, …). `reference()` is entered to get the reference policy.


@dataclass
class Group:
    """One prompt with its G completions, cut to the longest of them: what the step made of it.

    completions, mask, weights, and the log-probs logp_sampled (by the sampler), logp_ref and
    logp_old (by the scorer, before the first update) are (G, C); rewards and advantages (G,);
    scores: each completion's rewards by name. entropy, kl (G, C) and clipped are of the updates:
    see grpo_step.
    """

    example: object
    prompt: object
    texts: list
    scores: list
    completions: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    logp_sampled: torch.Tensor
    logp_ref: torch.Tensor = None
    logp_old: torch.Tensor = None
    entropy: torch.Tensor = None  # in nats, before the first update
    kl: torch.Tensor = None  # before the first update
    clipped: int = 0  # tokens whose gradient the clip stopped, over the updates after the first


@dataclass
class Step:
    """A step's Groups, its losses as they were computed, and the norm of its last gradient."""

    groups: list
    losses: list = field(default_factory=list)
    grad_norm: float = 0.0


def grpo_step(policy, reference, batch, settings, update_weights, total, clock):
    """One step of GRPO on this process's prompts.

    Args:    batch: a data.Batch; settings: train.py's; update_weights: takes the optimizer's step
             on the gradients that have added up, clears them, and returns their norm; total: a
             number → its sum over all processes; clock: clock("sample") books the time since the
             last call.
    Returns: a Step.
    """
    stop_ids = policy.generation_config.eos_token_id

    # 1. Sample. The vision tower runs once, and where it is trained its graph is kept: the sampler
    #    reads the features' values, and the first update sends gradients back through them.
    G, C, prompts = settings.group_size, settings.max_new_tokens, batch.prompts
    features = video_features(policy, prompts, with_gradient=settings.train_vision)
    values = [f.detach() for f in features]
    sampled = policy.call(sample_groups, prompts, values, G, C, stop_ids, batch.generators)
    clock("sample")

    # 2. Reward and 3. advantage.
    groups = compared_groups(*sampled, batch, settings, stop_ids, total)
    clock("reward")

    # 4. Log-probs: here under the reference policy, in the loop below under the policy as it is by
    #    then. Without a KL (β = 0) a group of equal rewards has no gradient and is not scored.
    taught = [b for b, g in enumerate(groups) if settings.score_every_group or g.advantages.any()]
    if settings.beta > 0:
        with torch.no_grad(), reference() as reference_model:
            if settings.train_vision:
                values = video_features(reference_model, prompts, with_gradient=False)
            rows = scored(reference_model, groups, values, settings.score_tokens)
            for g, logp_ref, _ in chain.from_iterable(rows):
                g.logp_ref = logp_ref
    clock("reference")

    # 5. Loss, backward, update. One backward per row of groups: gradients add up, memory holds one
    #    row's activations. Each ends at its leaves; one more takes all of them through the tower.
    step, clip = Step(groups), (settings.clip, settings.clip_high)
    for update in range(settings.updates_per_rollout):
        if update and settings.train_vision:
            features = video_features(policy, prompts, with_gradient=True)
        watched = [features[b] for b in taught]
        leaves = [f.detach().requires_grad_(settings.train_vision) for f in watched]
        for row in scored(policy, [groups[b] for b in taught], leaves, settings.score_tokens):
            losses = []
            for g, logp, entropy in row:
                if update == 0:  # the policy is still the one that sampled
                    g.logp_old, g.entropy = logp.detach(), entropy
                tensors = (logp, g.logp_old, g.logp_ref, g.advantages, g.mask, g.weights)
                loss, per_token = policy_loss(*tensors, *clip, settings.beta, settings.loss)
                losses.append(loss)
                g.kl = g.kl if update else per_token["kl"]
                g.clipped += int(per_token["clipped"].sum())  # 0 in the first update: ρ = 1
            sum(losses).backward()
            step.losses += [loss.item() for loss in losses]
        if taught and settings.train_vision:
            torch.autograd.backward(watched, [leaf.grad for leaf in leaves])
        step.grad_norm = update_weights()
    clock("update")
    return step


def scored(model, groups, features, tokens):
    """Log-probs of Groups, features being their videos': as many groups in a forward as `tokens`
    hold. Yields of each row [(group, log-probs (G, C), entropy (G, C)), …]."""
    size = lambda pair: len(pair[0].prompt.ids) + pair[0].completions.numel()
    for row in rows_of(model, list(zip(groups, features)), size, tokens):
        some, seen = zip(*row)
        what = ([g.prompt for g in some], seen, [g.completions for g in some])
        yield [(g, *both) for g, both in zip(some, model.call(groups_logprobs, *what))]


def video_features(model, prompts, with_gradient):
    """The features of each prompt's video, as encode_videos gives them."""
    with torch.set_grad_enabled(with_gradient):
        return model.call(encode_videos, prompts)


def compared_groups(completions, mask, logp_sampled, batch, settings, stop_ids, total):
    """2. and 3.: the sampled completions of each prompt with their rewards, advantages and weights.

    Args: three (B, G, C) from sample_groups; the others as in grpo_step. Returns: B Groups.
    """
    groups, (B, G, _) = [], mask.shape
    n_completions, n_tokens = total(B * G), total(mask.sum().item())  # of all processes
    for b, (example, prompt) in enumerate(zip(batch.examples, batch.prompts)):
        longest = int(mask[b].any(dim=0).sum())
        ids, m, logp = (x[b, :, :longest] for x in (completions, mask, logp_sampled))
        texts = completion_texts(ids, m, batch.tokenizer, stop_ids)
        scores = [score(example.task, text, example.answer, settings.think) for text in texts]
        rewards = torch.tensor([sum(s.values()) for s in scores], device=ids.device)  # (G,)
        # gdpo (arXiv 2601.05242) compares by each reward alone: in a sum the widest drowns others
        parts = torch.tensor([list(s.values()) for s in scores], device=ids.device).T  # (n, G)
        compared = parts if settings.loss == "gdpo" else rewards[None]
        advantages = group_advantages(compared, settings.loss != "dr_grpo").sum(dim=0)  # (G,)
        weights = token_weights(m, settings.loss, settings.max_new_tokens, n_completions, n_tokens)
        if settings.mask_unfinished:  # they say nothing of what they would have earned (DAPO §3.4)
            weights = weights * torch.isin(ids, torch.tensor(stop_ids).to(ids)).any(1, keepdim=True)
        made = Group(example, prompt, texts, scores, ids, m, weights, rewards, advantages, logp)
        groups.append(made)
    if settings.loss == "gdpo":  # and divides by the std over the whole step, whose mean is 0
        variance = total(sum(float(g.advantages.square().sum()) for g in groups))
        for g in groups:
            g.advantages /= (variance / (n_completions - 1)) ** 0.5 + 1e-4
    return groups


if __name__ == "__main__":
    from course.bandit import main
    from lib.errors import run_program

    run_program(main)
