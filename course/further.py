"""further.py: our solutions of the exercises that are of no chapter.

Both begin where a chapter ends: a rule for captions beside rewards.caption_recall, and a variant of
grpo.policy_loss written out alone.
"""

import re

import torch

from rewards import content_words, inside


def caption_f1(text, answer, think):
    """A rule for captions in which nothing is gained by saying more than is true.

    Args:    text: a completion; answer: the true events, at least one; think: of no interest here
             (all rules are called alike).
    Returns: 2 · pairs / (claims + events), the F1 of precision and recall, in [0, 1].

    Claims are the sentences in <answer>: what stands between . ; ! ? and line breaks, where it
    holds a content word. A claim and an event mean the same if they share at least three quarters
    of the content words of *each*. Claims are taken in their order; each is paired with the first
    event that it means and that no claim before it was paired with.

    >>> events = ["a boy jumps", "a dog climbs over a fence"]
    >>> caption_f1("<answer>A boy is jumping. A dog climbs over the fence.</answer>", events, False)
    1.0
    >>> caption_f1("<answer>A boy jumps. A boy jumps. A boy jumps.</answer>", events, False)
    0.4
    """
    sentences = re.split(r"[.;!?\n]", inside(text, "answer") or "")
    claims = [words for words in map(content_words, sentences) if words]
    unpaired = [content_words(event) for event in answer]
    pairs = 0
    for claim in claims:
        for i, event in enumerate(unpaired):
            if len(claim & event) >= 0.75 * max(len(claim), len(event)):
                del unpaired[i]
                pairs += 1
                break
    return 2 * pairs / (len(claims) + len(answer))


def cispo_loss(logp, logp_old, advantages, mask, weights, clip_low, clip_high):
    """CISPO (MiniMax-M1, arXiv 2506.13585) as a loss to minimise, without a KL penalty.

        ρ    = exp(logp − logp_old)
        loss = − Σ weights · sg(clip(ρ, 1 − ε_low, 1 + ε_high)) · A · logp

    sg (stop-gradient): a constant for the gradient. So the clip weighs tokens and silences none:
    d loss / d logp = − weights · clip(ρ) · A, on each side of the clip.

    Args:    logp (G, C) with gradient; logp_old (G, C) under the policy that sampled; advantages
             (G,); mask (G, C), True on a completion's own tokens (elsewhere may stand anything,
             −inf too); weights (G, C), 0 outside the mask.
    Returns: a scalar tensor.

    >>> logp = torch.tensor([[-1.0]]).requires_grad_()
    >>> one, A = torch.ones(1, 1), torch.tensor([1.0])
    >>> cispo_loss(logp, logp.detach() - 1, A, one.bool(), one, 0.2, 0.25).backward()
    >>> logp.grad.item()  # ρ = e, held at 1.25; min(ρA, clip(ρ)A) would give 0
    -1.25
    """
    log_ratio = torch.where(mask, logp - logp_old, 0.0)
    held = log_ratio.exp().clamp(1 - clip_low, 1 + clip_high).detach()
    objective = held * advantages[:, None] * torch.where(mask, logp, 0.0)
    return -(weights * objective).sum()
