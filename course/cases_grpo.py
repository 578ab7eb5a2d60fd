"""cases_grpo.py: the cases of exercises 5, 6, 7, 9 and 14, in this order: small tensors."""

import math
from dataclasses import replace

import torch

from course.cases import Case, a_tensor, gradients, need, numbers, t, written


def group_advantages_cases(rng):
    for (rewards, *divide), usually, known in written("5"):
        yield Case((t(*rewards), *divide), usually, known)
    outlier = "an outlier's advantage is large: neither advantages nor rewards are clamped"
    yield Case((t(*[0.0] * 2000, 1.0),), outlier)
    usually = "mean and std of each group, over the last dimension, whatever dimensions come before"
    for shape in ((2,), (8,), (2, 3), (3, 3), (4, 8), (1, 5), (2, 3, 4)):
        for dtype in (torch.float64, torch.float32):
            for divide in (True, False):
                yield Case((numbers(rng, *shape, low=-1, high=2, dtype=dtype), divide), usually)


def value_and_gradient(function, logp, logp_ref):
    x = logp.clone().requires_grad_()
    got = a_tensor(function(x, logp_ref))
    return {"value": got.detach().clone(), "gradient of logp": gradients(got.sum(), x)[0]}


def kl_over_vocabulary(function, logp, logp_ref):
    return (logp.exp() * function(logp, logp_ref)).sum()


def kl_k3_cases(rng):
    for (logp, logp_ref), usually, known in written("6"):
        yield Case((t(logp), t(logp_ref)), usually, known, call=value_and_gradient)
    usually = "a reference that rules the token out is infinitely far away"
    yield Case((t(-1.5, -1.0), t(-math.inf, -2.0)), usually)
    p, q = t(0.7, 0.2, 0.1).log(), t(0.1, 0.3, 0.6).log()
    usually = "it should be unbiased: Σ p · k3 over all tokens is the KL itself"
    shown = "Σ p · kl_k3(log p, log q) with p = 0.7, 0.2, 0.1 and q = 0.1, 0.3, 0.6"
    yield Case((p, q), usually, call=kl_over_vocabulary, shown=shown)
    for shape in ((4,), (2, 3), (3, 3), (2, 3, 4)):
        usually = "one KL for each token, in the shape of logp: nothing is summed or averaged"
        for dtype in (torch.float64, torch.float32):
            args = (numbers(rng, *shape, dtype=dtype), numbers(rng, *shape, dtype=dtype))
            yield Case(args, usually, call=value_and_gradient)


def completion_mask_cases(rng):
    def case(rows, stop, usually, known=None):
        return Case((torch.tensor(rows), torch.tensor(stop)), usually, known or {})

    for args, usually, known in written("7"):
        yield case(*args, usually, known)
    usually = "a long completion, all padding: bytes count to 255 alone, and there is no longest"
    yield case([[5] + [9] * 600], [9], usually)
    yield case([[5] * 3000 + [9, 7]], [9], usually)
    usually = "along the last dimension, whatever dimensions come before it"
    for shape in ((2, 2), (3, 4), (5,), (2, 3, 5), (4, 12), (3, 1)):
        for stop in ([1], [6, 3], [5, 0, 2]):
            made = [rng.randrange(7) for _ in range(math.prod(shape))]
            yield case(torch.tensor(made).view(shape).tolist(), stop, usually)


GRADED = ("grpo", "dr_grpo", "dapo", "gspo")  # as exercises.md says
ONE_NUMBER = "the loss should be one number, a tensor without dimensions: summed over all tokens"


def loss_and_gradient(function, logp, *others):
    x = logp.clone().requires_grad_()
    got = function(x, *others)
    pair = isinstance(got, (tuple, list)) and len(got) == 2 and isinstance(got[1], dict)
    asked = 'two things are asked for: the loss, and a dict with "kl" and "clipped"'
    need(pair and {"kl", "clipped"} <= set(got[1]), asked)
    total, kl = got[0], got[1]["kl"]
    need(isinstance(total, torch.Tensor) and total.ndim == 0, ONE_NUMBER)
    like = isinstance(kl, torch.Tensor) and kl.shape == logp.shape
    need(like, f'"kl" should be a tensor like logp, {tuple(logp.shape)}')
    return {
        "loss": total.detach().clone(),
        "gradient of logp": gradients(total, x)[0],
        "kl": kl.detach(),
        "clipped": got[1]["clipped"],
        "kl carries a gradient": kl.requires_grad,
    }


def policy_loss_cases(rng):
    yield from token_weights_cases(rng)
    yield from one_token_cases()
    yield from two_completions_cases()
    for G, C in ((2, 3), (3, 3), (4, 6), (1, 5), (5, 1)):
        for loss in GRADED * 2:
            yield random_case(rng, G, C, loss)


def some_mask(rng, G, C):
    return torch.arange(C) < torch.tensor([[rng.randrange(1, C + 1)] for _ in range(G)])


def random_case(rng, G, C, loss):
    """Ratios, advantages, weights and both clips of any size; anything outside the mask."""
    mask, logp, A = some_mask(rng, G, C), numbers(rng, G, C), numbers(rng, G, low=-2, high=2)
    # gspo's ratio is the completion's: so is its weight here
    weights = mask * numbers(rng, G, 1 if loss == "gspo" else C, low=0.1, high=0.9)
    usually = "everything together: ratio, clip, KL, mask, weights"
    if loss == "gspo":
        usually = "everything together; for gspo the mean counts own tokens only"
    old = logp + numbers(rng, G, C, low=-0.4, high=0.4)
    ref = logp + numbers(rng, G, C, low=-1, high=1)
    clip = rng.choice((0.05, 0.1, 0.2, 0.3)), rng.choice((0.1, 0.28, 0.5))
    tensors = (logp, old, ref, A, mask, weights)
    made = loss_case(tensors, usually, clip, rng.choice((0.04, 0.5)), loss)
    return replace(made, rounding=1e-6)  # a sum in which 1.2 may have been of 32 bits


def loss_case(tensors, usually, clip=(0.2, 0.2), beta=0.0, loss="grpo", known=None, shown=""):
    """tensors: logp, logp_old, logp_ref or None, advantages, mask, weights."""
    args = (*tensors, *clip, beta, loss)
    return Case(args, usually, known or {}, call=loss_and_gradient, shown=shown)


def weights_told(function, mask, *others):
    weights = function(mask, *others)
    shaped = isinstance(weights, torch.Tensor) and weights.shape == mask.shape
    nothing = shaped and bool((weights[~mask] == 0).all())
    return {"weights": weights, "exactly 0 outside the mask": nothing}


def token_weights_cases(rng):
    def case(mask, loss, most, n, n_tokens, usually, known=None):
        args, how = (mask, loss, most, n, n_tokens), {"name": "token_weights", "call": weights_told}
        return Case(args, usually, known or {}, **how)

    long_short = torch.tensor([[True] * 4, [True, False, False, False]])
    for args, usually, known in written("9w"):
        yield case(long_short, *args, usually, known)
    usually = "over the last dimension, whatever dimensions come before it"
    for G, C in ((2, 3), (3, 3), (4, 6), (1, 1)):
        for loss in GRADED:
            mask, most = some_mask(rng, 2 * G, C).view(2, G, C), rng.randrange(C, 20)
            yield case(mask, loss, most, 2 * G, rng.randrange(20, 40), usually)


def one_token_cases():
    for given, usually, known in written("9"):
        about = dict(clip=(0.2, 0.2), ref=None, beta=0.0, weight=1.0) | given
        ratio, A, clip, ref = about["ratio"], about["A"], about["clip"], about["ref"]
        shown = (
            f"policy_loss of one token with ρ = {ratio:g}, A = {A:g}, clip at {1 - clip[0]:g} and"
            f" {1 + clip[1]:g}, β = {about['beta']:g}"
        )
        if ref is not None:
            shown += f", logp = {math.log(ratio) - 1:g}, logp_ref = {ref:g}"
        old, mask, ref = t([-1.0]), torch.tensor([[True]]), None if ref is None else t([ref])
        tensors = (old + math.log(ratio), old, ref, t(A), mask, t([about["weight"]]))
        yield loss_case(tensors, usually, clip, about["beta"], known=known, shown=shown)


def two_completions_cases():
    for given, usually, known in written("9t"):
        tensors = [t(*given[name]) for name in ("logp", "old", "A", "weights")]
        ref = t(*given["ref"]) if "ref" in given else None
        logp, old, A, weights = tensors
        tensors = (logp, old, ref, A, torch.tensor(given["mask"]), weights)
        how = {name: given[name] for name in ("beta", "loss") if name in given}
        yield loss_case(tensors, usually, known=known, **how)


def cispo_and_gradient(function, logp, *others):
    x = logp.clone().requires_grad_()
    got = function(x, *others)
    need(isinstance(got, torch.Tensor) and got.ndim == 0, ONE_NUMBER)
    return {"gradient of logp": gradients(got, x)[0], "loss": got.detach().clone()}


def cispo_case(tensors, usually, known=None, clip=(0.2, 0.25)):
    """tensors: logp, logp_old, advantages, mask, weights."""
    return Case((*tensors, *clip), usually, known or {}, call=cispo_and_gradient)


def cispo_loss_cases(rng):
    for given, usually, known in written("14"):
        logp, old, A, weights = (t(*given[name]) for name in ("logp", "old", "A", "weights"))
        mask = torch.tensor(given["mask"]) if "mask" in given else weights > 0
        clip = given.get("clip", (0.2, 0.25))
        yield cispo_case((logp, old, A, mask, weights), usually, known, clip)
    for G, C in ((1, 1), (2, 3), (3, 3), (4, 6)) * 3:
        mask, logp = some_mask(rng, G, C), numbers(rng, G, C)
        tensors = (logp, logp + numbers(rng, G, C, low=-0.6, high=0.6))
        weights = mask * numbers(rng, G, C, low=0.1, high=0.9)
        tensors += (numbers(rng, G, low=-2, high=2), mask, weights)
        clip = rng.choice((0.05, 0.2, 0.3, 1.0)), rng.choice((0.1, 0.28, 0.5))
        yield cispo_case(tensors, "everything together: ratio, clip, mask, weights", clip=clip)
