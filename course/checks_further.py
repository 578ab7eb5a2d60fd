"""checks_further.py: the cases of the exercises of further.py, as in checks.py."""

import math
import random
import re

import torch

from course.checks import Case, gradients, need, numbers, t
from rewards import content_words

# ------------------------------------------------------------------------------------------------
# 13: a rule for captions. Slowly: a table of who means whom, then row by row
# ------------------------------------------------------------------------------------------------


def slow_caption_f1(text, answer, think):
    found = re.search(r"<answer>(.*)</answer>", text, re.DOTALL)
    pieces = found.group(1) if found else ""
    for mark in ";!?\n":
        pieces = pieces.replace(mark, ".")
    claims = [sorted(content_words(p)) for p in pieces.split(".") if content_words(p)]
    events = [sorted(content_words(event)) for event in answer]
    table = []
    for claim in claims:
        shared = [sum(word in event for word in claim) for event in events]
        of_claim = [4 * n >= 3 * len(claim) for n in shared]
        of_event = [4 * n >= 3 * len(event) for n, event in zip(shared, events)]
        table.append([a and b for a, b in zip(of_claim, of_event)])
    taken = []
    for row in table:
        taken += [i for i, same in enumerate(row) if same and i not in taken][:1]
    precision = len(taken) / len(claims) if claims else 0.0
    recall = len(taken) / len(events)
    return 2 * precision * recall / (precision + recall) if taken else 0.0


JUMP, CLIMB = "a boy jumps", "a dog climbs over a fence"
EVERYTHING = "boy jumps dog climbs over fence girl sleeps cat falls ball rolls man opens door"


def caption_case(said, events, usually, known=None, text="<answer>{}</answer>"):
    return Case((text.format(said), events, False), slow_caption_f1, usually, known or {})


def caption_f1_cases():
    yield from paid_and_charged_cases()
    yield from same_meaning_cases()
    yield from claims_cases()
    rng = random.Random(13)
    for _ in range(150):
        yield caption_case(*random_caption(rng), "pairs over claims and events, all together")


def paid_and_charged_cases():
    recall_alone = "what is said beside the true events is not charged for: that is recall alone"
    yield caption_case(
        "A boy is jumping.",
        [JUMP],
        "one claim, one event that it means: 2 · 1 / (1 + 1); what stands behind the last full stop"
        " holds no word and is no claim",
        {2 / 3: "the empty text behind the full stop is no claim"},
    )
    yield caption_case(
        "A boy jumps.",
        [JUMP, CLIMB],
        "an event that nobody tells of costs: 2 · 1 / (1 + 2)",
        {
            1.0: "what is left out is not charged for: that is precision alone",
            0.5: recall_alone,
        },
    )
    yield caption_case(
        "A boy jumps. A girl sleeps.",
        [JUMP],
        "a claim that no event bears out costs: 2 · 1 / (2 + 1)",
        {1.0: recall_alone, 0.5: "that is precision"},
    )
    yield caption_case(
        "A boy jumps. A boy jumps. A boy jumps.",
        [JUMP],
        "said three times it is not three times as true: the first claim takes the event, the"
        " others find none",
        {
            1.0: "repetition is paid: an event that has been paired is no longer there for others",
            1.5: "repetition is paid: an event that has been paired is no longer there for others",
        },
    )


def same_meaning_cases():
    yield caption_case(
        EVERYTHING + ".",
        [JUMP, CLIMB],
        "one sentence with the words of every event means none of them: three quarters of the"
        " *claim's* words have to be the event's, too",
    )
    yield caption_case(
        "A boy.",
        [JUMP, CLIMB],
        "a claim with too few of an event's words: three quarters of the *event's* words have to be"
        " the claim's, too",
    )
    usually = "three quarters are enough: at least, not more than"
    yield caption_case("A boy kicks a ball.", ["a boy kicks a red ball"], usually)
    yield caption_case("A boy kicks a red ball.", ["a boy kicks a ball"], usually)
    usually = "of each of the two, not of all words together: 6 of 8 and 6 of 8 is enough"
    yield caption_case(
        "A tall boy kicks a red ball near some trees.",
        ["a small boy kicks a red ball near many trees"],
        usually,
    )
    yield caption_case(
        "A boy jumps. A boy jumps.",
        [JUMP, JUMP],
        "it happens twice and is told twice: each claim takes an event that is still free",
    )
    yield caption_case(
        "A boy jumps.", [JUMP, JUMP], "one claim is paired with one event, not with all it means"
    )


def claims_cases():
    yield caption_case("", [JUMP], "nothing is claimed: no pairs, and nothing may be divided by 0")
    yield caption_case("... !?", [JUMP], "sentences without a content word are no claims")
    yield caption_case("It is. A boy jumps.", [JUMP], "a sentence of stop words alone is no claim")
    yield caption_case("A boy jumps.", [JUMP], "without <answer> nothing is claimed", text="{}")
    usually = "only what stands in <answer> is the caption; rewards.inside gives it, or None"
    yield caption_case(
        "A dog climbs.", [JUMP], usually, text="<think>A boy jumps.</think><answer>{}</answer>"
    )
    usually = "sentences end at . ; ! ? and at line breaks"
    for mark in (";", "!", "?", "\n"):
        yield caption_case(f"A boy jumps{mark} a dog climbs over a fence", [JUMP, CLIMB], usually)
    usually = "a comma ends no sentence"
    yield caption_case("A boy jumps, a dog climbs over a fence", [JUMP, CLIMB], usually)
    yield caption_case(
        "A dog climbs over a fence. A boy jumps.", [JUMP, CLIMB], "events may be told in any order"
    )
    red, ball = "a boy kicks a red ball", "a boy kicks a ball"
    usually = "claims in their order, each with the *first* event that is still free"
    told = "A boy kicks a ball. A boy kicks a red ball hard."  # the first means both events
    yield caption_case(told, [red, ball], usually)
    yield caption_case(told, [ball, red], usually)
    yield caption_case(". ".join([JUMP] * 40), [JUMP] * 3, "2 · 3 / (40 + 3)")


def random_caption(rng):
    """(what is said, events): some of it true, some told twice, some with a word more or less."""
    words = "boy girl dog ball door red small runs kicks opens falls".split()
    events = [" ".join(rng.sample(words, rng.randrange(2, 6))) for _ in range(rng.randrange(1, 5))]
    said = []
    for _ in range(rng.randrange(6)):
        claim = rng.choice(events).split() if rng.random() < 0.7 else rng.sample(words, 3)
        if rng.random() < 0.4:
            claim = claim + [rng.choice(words)] if rng.random() < 0.5 else claim[:-1]
        said.append(" ".join(claim))
    return "".join(claim + rng.choice((". ", "; ", "!", "?\n")) for claim in said), events


# ------------------------------------------------------------------------------------------------
# 14: CISPO. Slowly: one Python float after the other, and the gradient by hand
# ------------------------------------------------------------------------------------------------


def slow_cispo_loss(logp, old, A, mask, weights, low, high):
    G, C = logp.shape
    value, gradient = 0.0, [[0.0] * C for _ in range(G)]
    for g in range(G):
        for c in range(C):
            if mask[g, c]:
                rho = math.exp(logp[g, c].item() - old[g, c].item())
                push = weights[g, c].item() * min(max(rho, 1 - low), 1 + high) * A[g].item()
                value -= push * logp[g, c].item()
                gradient[g][c] = -push
    return {"gradient of logp": t(*gradient), "loss": t(value)[0]}


def cispo_and_gradient(function, logp, old, A, mask, weights, low, high):
    x = logp.clone().requires_grad_()
    got = function(x, old, A, mask, weights, low, high)
    need(
        isinstance(got, torch.Tensor) and got.ndim == 0,
        "the loss should be one number, as a tensor without dimensions: the weighted sum over all"
        " tokens",
    )
    return {"gradient of logp": gradients(got, x)[0], "loss": got.detach()}


def cispo_case(logp, old, A, mask, weights, usually, known=None, low=0.2, high=0.25):
    args = (logp, old, A, mask, weights, low, high)
    return Case(args, slow_cispo_loss, usually, known or {}, call=cispo_and_gradient)


def cispo_of_one_token_cases():
    label, yes = "gradient of logp", torch.ones(1, 1, dtype=torch.bool)
    for rho, A in ((1.0, 1.0), (2.0, 1.0), (2.0, -1.0), (0.5, 1.0), (0.5, -1.0)):
        held = min(max(rho, 0.8), 1.25)
        known = {
            (label, (0.0,)): "the clip stopped the gradient, as GRPO's does: here the clipped ratio"
            " is a constant, .detach(), and logp carries the gradient",
            (label, (held * A,)): "the sign: a loss is minimised, the objective is not",
            (label, (-rho * A,)): "the ratio was not clipped: it is held between 1 − ε_low and 1 +"
            " ε_high, whatever the sign of A",
            (label, (-held * A * (1 - 1.5),)): "the ratio carries a gradient, too: .detach()",
        }
        usually = "− weights · clip(ρ) · A · logp, with clip(ρ) as a constant for the gradient"
        if rho == held:
            usually += "; at ρ = 1, too, where the ratio must not carry a gradient beside logp"
        old = t([-1.5 - math.log(rho)])
        yield cispo_case(t([-1.5]), old, t(A), yes, t([1.0]), usually, known)


def cispo_loss_cases():
    yield from cispo_of_one_token_cases()
    two = torch.ones(2, 2, dtype=torch.bool)
    usually = "a weighted sum over all tokens, no mean, whatever the weights' sum is"
    yield cispo_case(t([-1, -2]), t([-1, -2]), t(1), two[:1], t([0.5, 0.3]), usually)
    usually = "advantages (G,) belong to completions, which are rows: advantages[:, None]"
    yield cispo_case(t([-1, -2], [-1, -3]), t([-1, -2], [-1, -3]), t(1, -2), two,
                     t([0.1, 0.2], [0.3, 0.7]), usually)  # fmt: skip
    usually = "each side has its own clip: 1 − clip_low below, 1 + clip_high above"
    for low, high in ((1.0, 0.28), (0.3, 0.1), (0.05, 5.0)):
        yield cispo_case(t([-1, -3, -2]), t([-3, -1, -1.9]), t(1), torch.tensor([[True] * 3]),
                         t([0.2, 0.3, 0.4]), usually, None, low, high)  # fmt: skip
    for junk in (7.0, -math.inf):
        yield cispo_case(
            t([-1, -2], [-1, junk]),
            t([-1.1, -1.9], [-1.1, junk]),
            t(1, -1),
            torch.tensor([[True, True], [True, False]]),
            t([0.25, 0.25], [0.5, 0.0]),
            f"padding ({junk:g} here) reached the loss or the gradient: 0 · inf is NaN, so"
            " torch.where(mask, …, 0.0) for the log-ratio and for logp",
        )
    usually = "far from the clip and large: nothing else is clamped"
    yield cispo_case(t([-9.0, -0.01]), t([-0.1, -9.0]), t(30), two[:1], t([0.5, 0.5]), usually)
    rng = random.Random(14)
    for G, C in ((1, 1), (2, 3), (3, 3), (4, 6)) * 4:
        lengths = torch.tensor([rng.randrange(1, C + 1) for _ in range(G)])
        mask, logp = torch.arange(C) < lengths[:, None], numbers(rng, G, C)
        yield cispo_case(
            logp,
            logp + numbers(rng, G, C, low=-0.6, high=0.6),
            numbers(rng, G, low=-2, high=2),
            mask,
            mask * numbers(rng, G, C, low=0.1, high=0.9),
            "everything together: ratio, clip, mask, weights",
            low=rng.choice((0.05, 0.2, 0.3, 1.0)),
            high=rng.choice((0.1, 0.28, 0.5)),
        )
