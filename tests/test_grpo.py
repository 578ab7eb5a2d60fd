"""The equations of grpo.py: by hand, by autograd, and by properties that a wrong one breaks."""

import doctest
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import grpo
import tasks
import variants
from annotations.readers import read_dataset
from data import load_prompt
from grpo import group_advantages, kl_k3, policy_loss, sample_groups, token_weights
from lib.errors import BadInput
from model import encode_videos, group_logprobs, prefill
from toy.base import TOY_BUDGET
from train import learning_rate
from training.optimizer import MasterAdamW
from training.rollouts import step_sums
from training.settings import parse_args
from variants import KLS, VARIANTS


def loss_of(logp, logp_old, A, mask, logp_ref=None, beta=0.0, kind="grpo", clip=(0.2, 0.2)):
    weights = token_weights(mask, kind, 8, len(mask), int(mask.sum()))
    return policy_loss(logp, logp_old, logp_ref, A, mask, weights, *clip, beta, kind)


# Advantages ---------------------------------------------------------------------------------------


def test_advantages_by_hand():
    r = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.5, 0.5]]).double()
    # Sample std of 2, 1, 0 is 1, not 0.8165
    assert group_advantages(r)[0].tolist() == pytest.approx([
        1 / 1.0001,
        0,
        -1 / 1.0001,
    ])
    assert group_advantages(r)[1].tolist() == [0, 0, 0]
    assert group_advantages(r, divide_by_std=False)[0].tolist() == [1, 0, -1]


def test_advantages_of_each_group_sum_to_zero_and_ignore_shifts():
    r = torch.rand(5, 8).double()
    assert group_advantages(r).sum(dim=1).abs().max() < 1e-12
    assert torch.allclose(group_advantages(r), group_advantages(r + torch.arange(5)[:, None]))


def test_equal_rewards_have_no_advantage_whatever_they_are_and_however_many(base):
    """Eight times 4/3 in float32 are 0.0024 away from their own mean, once divided by 1e-4."""
    rewards = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for r in (rewards, rewards.float(), torch.tensor([4 / 3])):
        for G in (2, 3, 7, 8, 16):
            equal = r[:, None].repeat(1, G)
            assert not group_advantages(equal).any() and not group_advantages(equal, False).any()
    texts = [["<answer>2.0 to 5.0</answer>"] * 8, ["<answer>3.0 to 4.3</answer>"] * 8]
    for kind in VARIANTS:
        assert not any(g.advantages.any() for g in groups_of(base, texts, loss=kind)), kind


# KL -----------------------------------------------------------------------------------------------


def test_kl_is_never_negative_and_zero_only_for_equal_log_probs():
    a, b = -torch.rand(1000).double() * 5, -torch.rand(1000).double() * 5
    assert (kl_k3(a, b) > 0).all() and (kl_k3(a, a) == 0).all()


def test_kl_is_unbiased():
    """Σ p · k3 over the whole vocabulary is KL(p ‖ q) exactly; with Δ turned round it is not."""
    p, q = torch.randn(2, 50).double().log_softmax(dim=1)
    exact = (p.exp() * (p - q)).sum()
    assert (p.exp() * kl_k3(p, q)).sum().item() == pytest.approx(exact.item(), rel=1e-12)
    assert (p.exp() * kl_k3(q, p)).sum().item() != pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("logits, k3_pulls", [
    ((1.2, 0.0, 0.0), None),  # near the reference all pull nearly alike
    ((-2.0, 0.0, 3.0), (-0.570, -0.165, 0.735)),
])  # fmt: skip
def test_what_each_kl_pulls_towards(logits, k3_pulls):
    """The expected gradient of policy_loss's KL term on three arms: k3 has that of KL(reference ‖
    policy), the others that of KL(policy ‖ reference)."""
    reference = torch.tensor([1.0, 0.0, 0.0]).double().log_softmax(dim=0)

    def pull(term):
        x = torch.tensor(logits).double().requires_grad_()
        return torch.autograd.grad(term(x.log_softmax(dim=0)), x)[0]

    def expected(name):
        def term(p):
            tensors = (p[:, None], p.detach()[:, None], reference[:, None], torch.zeros(3).double())
            weights = p.detach().exp()[:, None]
            return policy_loss(*tensors, weights > 0, weights, 0.2, 0.2, 1.0, estimator=name)[0]

        return pull(term)

    to_reference = pull(lambda p: (p.exp() * (p - reference)).sum())
    from_reference = pull(lambda p: (reference.exp() * (reference - p)).sum())
    wanted = {"k3": from_reference, "k3-ratio": to_reference, "k2": to_reference}
    assert wanted.keys() == KLS.keys()
    for name in KLS:
        assert torch.allclose(expected(name), wanted[name], atol=1e-12), name
    if k3_pulls:
        assert expected("k3").tolist() == pytest.approx(k3_pulls, abs=5e-4)
        assert to_reference.tolist() == pytest.approx((-0.037, -0.133, 0.170), abs=5e-4)


# Loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("A, ratio, gradient_flows", [
    # good: followed up to 1.2, always corrected from below
    (1.0, 1.0, True), (1.0, 1.3, False), (1.0, 0.7, True),
    # bad: the other way round
    (-1.0, 1.0, True), (-1.0, 0.7, False), (-1.0, 1.3, True),
])  # fmt: skip
def test_all_six_sides_of_the_clip(A, ratio, gradient_flows):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    loss, per_token = loss_of(logp, torch.zeros(1, 1).double(), torch.tensor([A]).double(), one)
    loss.backward()
    assert loss.item() == pytest.approx(-min(ratio * A, min(max(ratio, 0.8), 1.2) * A))
    # d(−ρA)/d logp = −ρA.
    assert logp.grad.item() == pytest.approx(-ratio * A if gradient_flows else 0.0)
    assert per_token["clipped"].item() is not gradient_flows


def test_clip_high_moves_only_the_upper_side():
    for ratio, clipped in ((1.25, False), (1.29, True), (0.75, False)):
        _, per_token = loss_of(
            torch.tensor([[math.log(ratio)]]),
            torch.zeros(1, 1),
            torch.ones(1),
            torch.ones(1, 1).bool(),
            clip=(0.2, 0.28),
        )
        assert per_token["clipped"].item() is clipped


def test_loss_by_hand_with_unequal_lengths_and_kl():
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, 9.0, 9.0]]).double()  # the 9s are padding
    old, ref = (
        torch.tensor([[-1.1, -2.0, -2.9], [-1.5, 0, 0]]).double(),
        torch.tensor([[-1.0, -2.5, -3.0], [-1.0, 0, 0]]).double(),
    )
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    A, beta = torch.tensor([0.7, -0.7]).double(), 0.04
    per_completion = []
    for i, n in ((0, 3), (1, 1)):
        total = 0.0
        for t in range(n):
            rho = math.exp(logp[i, t] - old[i, t])
            delta = ref[i, t].item() - logp[i, t].item()
            total += min(rho * A[i].item(), min(max(rho, 0.8), 1.2) * A[i].item()) - beta * (
                math.exp(delta) - delta - 1
            )
        per_completion.append(total / n)
    loss, _ = loss_of(logp, old, A, mask, ref, beta)
    assert loss.item() == pytest.approx(-sum(per_completion) / 2, rel=1e-4)


def test_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    logp = (-torch.rand(3, 4).double() * 2).requires_grad_()
    old, ref = logp.detach() + 0.1 * torch.randn(3, 4).double(), -torch.rand(3, 4).double()
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    A = torch.tensor([1.0, -0.4, -0.6]).double()
    for kind in set(grpo.LOSSES) - {"cispo"}:  # its clipped ratio is a constant to autograd alone
        assert torch.autograd.gradcheck(
            lambda x, kind=kind: loss_of(x, old, A, mask, ref, 0.04, kind)[0], (logp,)
        )


def test_first_update_has_loss_zero_and_the_policy_gradient():
    logp = torch.randn(4, 5).double().requires_grad_()
    mask = torch.ones(4, 5).bool()
    A = group_advantages(torch.tensor([1.0, 0.0, 0.3, 0.9]).double())
    loss, _ = loss_of(logp, logp.detach(), A, mask)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert torch.allclose(logp.grad, -A[:, None].expand(4, 5) / 20)


def test_padding_changes_nothing():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    A = torch.tensor([1.0, -1.0])
    for kind in grpo.LOSSES:
        results = []
        for junk in (0.0, 50.0, -float("inf")):
            logp = torch.tensor([[-1.0, -2.0, junk], [-1.5, junk, junk]]).requires_grad_()
            loss, _ = loss_of(logp, logp.detach() - 0.1, A, mask, logp.detach() + 0.1, 0.04, kind)
            loss.backward()
            results.append((loss.item(), logp.grad.tolist()))
        assert results[0] == results[1] == results[2]


def test_variants_weigh_tokens_as_published():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    rows = {kind: token_weights(mask, kind, 8, 2, 6).sum(dim=1).tolist() for kind in grpo.LOSSES}
    assert rows["grpo"] == pytest.approx([1 / 2, 1 / 2])  # every completion the same
    assert rows["dapo"] == pytest.approx([4 / 6, 2 / 6])  # every token the same
    # Every token the same, whatever was sampled beside it.
    assert rows["dr_grpo"] == pytest.approx([
        4 / 16,
        2 / 16,
    ])
    assert rows["gspo"] == rows["gdpo"] == rows["grpo"]
    assert rows["cispo"] == rows["dapo"]
    assert rows["rloo"] == pytest.approx([4 / 2, 2 / 2])  # a completion is the sum of its tokens


def test_gspo_has_one_ratio_for_each_completion():
    logp = torch.tensor([[0.3, -0.1, 0.1]]).double().requires_grad_()
    loss, _ = loss_of(
        logp,
        torch.zeros(1, 3).double(),
        torch.ones(1).double(),
        torch.ones(1, 3).bool(),
        kind="gspo",
    )
    loss.backward()
    assert loss.item() == pytest.approx(-math.exp(0.1))
    assert logp.grad[0].tolist() == pytest.approx([-math.exp(0.1) / 3] * 3)


def test_cispo_weighs_each_token_by_its_clipped_ratio_and_silences_none():
    """By hand: d loss / d logp = − weight · clip(ρ) · A, also where the gradient of grpo is 0."""
    ratios = [[1.0, 1.3, 0.7], [1.0, 1.3, 0.7]]
    logp = torch.tensor(ratios).double().log().sub(2.0).requires_grad_()
    old, A = torch.full((2, 3), -2.0).double(), torch.tensor([1.0, -0.5]).double()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    loss, per_token = loss_of(logp, old, A, mask, kind="cispo", clip=(0.2, 0.28))
    loss.backward()
    expected, value = [[0.0] * 3, [0.0] * 3], 0.0
    for i, n in ((0, 3), (1, 2)):
        for t in range(n):
            weight = min(max(ratios[i][t], 0.8), 1.28) * A[i].item() / 5  # 5 tokens, each alike
            expected[i][t] = -weight
            value -= weight * logp[i, t].item()
    assert logp.grad.flatten().tolist() == pytest.approx(sum(expected, []), rel=1e-6)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    # What grpo's clip would have stopped: good and above 1.28, bad and below 0.8 (that one is
    # padding here).
    assert per_token["clipped"].tolist() == [[False, True, False], [False, False, False]]


def test_cispo_without_a_clip_in_reach_is_dapo():
    torch.manual_seed(0)
    logp, A = torch.randn(3, 4).double(), group_advantages(torch.rand(3).double())
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    gradients = []
    for kind in ("cispo", "dapo"):
        x = logp.clone().requires_grad_()
        loss_of(x, logp + 0.05, A, mask, logp - 0.2, 0.04, kind)[0].backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-12)


# What a step's groups are made of -----------------------------------------------------------------

STOP = 1


WHEN = SimpleNamespace(task="grounding", answer=(2.0, 6.0))


def groups_of(base, texts, example=WHEN, **changed):
    """The Groups of a step whose completions are written, one list of texts per prompt.

    A text that ends in "…" ran out of room: it has no stop token.
    """
    tokenizer, n = base[1], len(texts)
    ids = [
        tokenizer(t.rstrip("…"))["input_ids"] + [STOP] * (t[-1] != "…") for ts in texts for t in ts
    ]
    room = max(map(len, ids))
    rows = torch.tensor([row + [STOP] * (room - len(row)) for row in ids])
    completions = rows.view(n, -1, room)
    mask = grpo.completion_mask(completions, torch.tensor([STOP]))
    policy = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[STOP]),
        features=lambda prompts: prompts,
        sample=lambda *_: (completions, mask, torch.zeros(mask.shape)),
        logprobs=lambda g: (torch.zeros(g.mask.shape).requires_grad_(), torch.zeros(g.mask.shape)),
    )
    batch = SimpleNamespace(tokenizer=tokenizer, generators=None)
    batch.examples, batch.prompts = [example] * n, [SimpleNamespace(ids=[0])] * n
    given = {"beta": 0.0, "max_new_tokens": room, "think": False} | changed
    settings = SimpleNamespace(**vars(parse_args([])) | given)
    return grpo.grpo_step(policy, None, batch, settings, float, lambda n: n).groups


# Rewards, format + IoU: 1 + 1, 1 + 0, 1 + 0, 0 + 1; and 1 + 1, 1 + 0, 1 + 0, 1 + 0.
WRITTEN = [
    [
        "<answer>2.0 to 6.0</answer>",
        "<answer>0.0 to 2.0</answer>",
        "<answer>7.0 to 9.0</answer>",
        "So: <answer>2.0 to 6.0</answer>",
    ],
    ["<answer>2.0 to 6.0</answer>"] + ["<answer>7.0 to 9.0</answer>"] * 3,
]


def test_gdpo_compares_by_each_reward_alone_and_divides_by_the_steps_std(base):
    groups = groups_of(base, WRITTEN, loss="gdpo")
    rewards = [[(1, 1), (1, 0), (1, 0), (0, 1)], [(1, 1), (1, 0), (1, 0), (1, 0)]]
    summed = []
    for group in rewards:
        columns = [statistics_of([pair[k] for pair in group]) for k in (0, 1)]
        summed += [
            sum((pair[k] - mean) / (std + 1e-4) for k, (mean, std) in enumerate(columns))
            for pair in group
        ]
    mean, std = statistics_of(summed)
    assert abs(mean) < 1e-12
    got = torch.cat([g.advantages for g in groups]).tolist()
    assert got == pytest.approx([a / (std + 1e-4) for a in summed], abs=1e-5)
    # grpo cannot tell a right answer in the wrong form from a wrong one in the right form: both
    # earn 1. gdpo can, because the two rewards do not vary alike.
    usual = groups_of(base, WRITTEN)[0].advantages
    assert usual[2] == usual[3] and got[2] != pytest.approx(got[3], abs=0.1)


def statistics_of(values):
    """Mean and sample standard deviation, in plain Python."""
    mean = sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def test_gdpo_of_equal_rewards_teaches_nothing(base):
    same = [["<answer>2.0 to 6.0</answer>"] * 4] * 2
    for group in groups_of(base, same, loss="gdpo"):
        assert group.advantages.tolist() == [0.0] * 4


def test_unfinished_completions_count_nothing_where_that_is_asked(base):
    texts = [["<answer>2.0 to 6.0</answer>", "<answer>2.0 to 6.0</answer> and so on and so on…"]]
    (usual,), (masked,) = groups_of(base, texts), groups_of(base, texts, mask_unfinished=True)
    assert masked.weights[0].tolist() == usual.weights[0].tolist()
    assert usual.weights[1].sum() > 0 and masked.weights[1].tolist() == [0.0] * len(usual.mask[1])
    # Their rewards still stand in the group's mean, as in DAPO.
    assert masked.advantages.tolist() == usual.advantages.tolist()
    # As in TRL: where every token counts alike, the others count for those left out.
    sums = {
        kind: groups_of(base, texts, loss=kind, mask_unfinished=True)[0].weights.sum().item()
        for kind in ("grpo", "gspo", "dapo", "cispo")
    }
    assert sums == pytest.approx({"grpo": 0.5, "gspo": 0.5, "dapo": 1.0, "cispo": 1.0})
    (nothing,) = groups_of(base, [["and so on…"] * 2], loss="dapo", mask_unfinished=True)
    assert nothing.weights.tolist() == [[0.0] * nothing.mask.shape[1]] * 2
    for kind in grpo.LOSSES:  # no gradient, neither of the reward nor of the KL
        (g,) = groups_of(base, texts, loss=kind, mask_unfinished=True)
        logp = torch.full(g.mask.shape, -1.0).requires_grad_()
        tensors = (logp, logp.detach() - 0.1, logp.detach() + 0.1, g.advantages, g.mask, g.weights)
        policy_loss(*tensors, 0.2, 0.2, 0.04, kind)[0].backward()
        assert logp.grad[0].abs().sum() > 0 and logp.grad[1].abs().sum() == 0


def test_micro_batches_add_up_to_the_whole():
    """Groups are sent back one by one; the sum must be the gradient of all of them together."""
    torch.manual_seed(0)
    logp, old = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 5).double()
    mask = torch.arange(5) < torch.randint(1, 6, (3, 4, 1))
    A = group_advantages(torch.rand(3, 4).double())
    for kind in grpo.LOSSES:
        w = token_weights(mask, kind, 8, 12, int(mask.sum()))
        x, y = logp.clone().requires_grad_(), logp.clone().requires_grad_()
        for b in range(3):
            policy_loss(x[b], old[b], None, A[b], mask[b], w[b], 0.2, 0.2, 0.0, kind)[0].backward()
        policy_loss(
            y.flatten(0, 1),
            old.flatten(0, 1),
            None,
            A.flatten(),
            mask.flatten(0, 1),
            w.flatten(0, 1),
            0.2,
            0.2,
            0.0,
            kind,
        )[0].backward()
        assert torch.allclose(x.grad, y.grad, rtol=1e-12)


def test_rloo_compares_each_with_the_mean_of_the_others(base):
    for g in groups_of(base, WRITTEN, loss="rloo"):
        r = g.rewards.tolist()
        others = [(sum(r) - x) / (len(r) - 1) for x in r]
        assert g.advantages.tolist() == pytest.approx([x - o for x, o in zip(r, others)], abs=1e-6)


def test_no_spread_counts_what_the_variant_cannot_learn_from(base):
    """Each earns 1, for its form, its letter or its seconds: alike in the sum, and only there."""
    form, letter = "<answer>A</answer><glue>[(7.0, 9.0)]</glue>", "So: <answer>B</answer>"
    texts = [[form, form, letter, "So: <glue>[(2.0, 6.0)]</glue>"]]
    for kind, n in {"grpo": 1, "gdpo": 0}.items():
        (group,) = groups_of(
            base, texts, SimpleNamespace(task="gqa", answer=("B", [(2, 6)])), loss=kind
        )
        assert group.rewards.tolist() == [1.0] * 4
        assert step_sums(grpo.Step([group], [0.0]), ["gqa"], 1)["no_spread"] == n


def test_a_variants_name_alone_is_the_published_variant():
    published = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1, 0.2)}
    for kind, clip in published.items():
        args = parse_args(["--loss", kind])
        assert (args.clip, args.clip_high) == clip, kind
        args = parse_args(["--loss", kind, "--clip", "0.1"])
        assert (args.clip, args.clip_high) == (0.1, 0.1)
        args = parse_args(["--loss", kind, "--clip-high", "0.3"])
        assert (args.clip, args.clip_high) == (clip[0], 0.3)


@pytest.mark.parametrize("paid, said", [
    (float("nan"), "nan"), (2.0, "2.0"), (-0.1, "-0.1"), (None, "None"), ("1", "'1'"),
    (torch.tensor(1.0), "tensor"),
])  # fmt: skip
def test_what_a_rule_may_return(paid, said, monkeypatch):
    def pays(value):
        return {"iou": lambda text, answer, think: value}

    monkeypatch.setitem(tasks.TASKS, "new", replace(tasks.TASKS["grounding"], rules=pays(paid)))
    with pytest.raises(BadInput, match=f"rule iou of the task new.*{said}.*a text") as e:
        tasks.score("new", "a text", None, False)
    assert "\n" not in str(e.value)
    for good in (0, 1, True, 0.5, np.float32(0.25)):
        monkeypatch.setitem(tasks.TASKS, "new", replace(tasks.TASKS["grounding"], rules=pays(good)))
        (got,) = tasks.score("new", "a text", None, False).values()
        assert type(got) is float and got == good


def test_examples_in_docstrings():
    assert doctest.testmod(grpo).failed == doctest.testmod(variants).failed == 0


# The update ---------------------------------------------------------------------------------------


def test_where_nothing_is_taught_adam_goes_on_by_its_momentum():
    """One weight, a gradient of 1, then none: PyTorch's AdamW would stay at 0.9."""
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    optimizer = MasterAdamW(weight, 0.1)
    weight.weight.grad = torch.ones(1, 1)
    for after in (0.9, 0.833):
        optimizer.step(0.1, 1.0, 1)
        assert weight.weight.item() == pytest.approx(after, abs=5e-4)


def test_the_learning_rate_reaches_its_peak_in_short_runs_too():
    for steps, warm_up in ((1, 1), (5, 1), (20, 2), (50, 5), (300, 5)):
        rates = [learning_rate(step, steps, 1.0) for step in range(steps)]
        assert rates.index(1.0) == warm_up - 1 and max(rates) == 1.0
        assert rates[:warm_up] == [(k + 1) / warm_up for k in range(warm_up)]
        assert rates[-1] == pytest.approx(0.1 + 0.9 * warm_up / steps)


# Sampling -----------------------------------------------------------------------------------------


def test_sampled_frequencies_are_the_models_probabilities(fresh, charades):
    """2,000 first tokens against the softmax they were drawn from; a top-k would show."""
    model, tokenizer = fresh
    prompt = load_prompt(read_dataset("charades", "test", charades)[0], TOY_BUDGET, tokenizer)
    with torch.no_grad():
        features = encode_videos(model, [prompt])
        expected = prefill(model, [prompt], features)[0].softmax(dim=-1)[0]
    tokens, mask, _ = sample_groups(
        model, [prompt], features, 2000, 1, [0], [torch.Generator().manual_seed(0)]
    )
    assert tokens.shape == (1, 2000, 1) and mask.all()
    seen = torch.bincount(tokens.flatten(), minlength=len(expected)) / 2000
    assert (
        0.5 * (seen - expected).abs().sum()
        < 3 * (expected * (1 - expected) / 2000).sqrt().sum() / 2
    )
    c = model.config
    assert (
        expected[
            [c.video_token_id, c.image_token_id, c.vision_start_token_id, c.vision_end_token_id]
        ].sum()
        == 0
    )


def test_ids_beyond_the_tokenizer_are_never_sampled_and_have_no_share(fresh, charades):
    """Qwen's output layer has more rows than its tokenizer has tokens."""
    model = fresh[0]
    model.n_tokens = 200
    prompt = load_prompt(read_dataset("charades", "test", charades)[0], TOY_BUDGET, fresh[1])
    with torch.no_grad():
        (features,) = encode_videos(model, [prompt])
        probabilities = prefill(model, [prompt], [features])[0].softmax(dim=-1)
        how = (300, 2, [0], [torch.Generator().manual_seed(0)])
        tokens, mask, logp = sample_groups(model, [prompt], [features], *how)
        scored, _ = group_logprobs(model, prompt, features, torch.tensor([[199, 200]]))
    assert not probabilities[0, 200:].any() and probabilities.sum().item() == pytest.approx(1)
    assert tokens.max() < 200 and torch.isfinite(scored[0, 0]) and scored[0, 1] == -torch.inf


def test_mask_covers_a_completion_up_to_and_with_its_stop_token(fresh, charades):
    model, tokenizer = fresh
    prompts = [
        load_prompt(e, TOY_BUDGET, tokenizer)
        for e in read_dataset("charades", "test", charades)[:2]
    ]
    # With one token in twelve ending it, completions have all lengths.
    stops = list(range(0, len(tokenizer), 12))
    with torch.no_grad():
        features = encode_videos(model, prompts)
    tokens, mask, logp = sample_groups(
        model, prompts, features, 16, 40, stops, [torch.Generator().manual_seed(i) for i in (1, 2)]
    )
    lengths = set()
    for row, own in zip(tokens.flatten(0, 1).tolist(), mask.flatten(0, 1).tolist()):
        n = sum(own)
        assert own == [True] * n + [False] * (len(own) - n)
        assert not any(t in stops for t in row[: n - 1])
        assert row[n - 1] in stops or n == 40
        assert row[n:] == [stops[0]] * (len(row) - n)
        lengths.add(n)
    assert len(lengths) > 4 and torch.isfinite(logp).all()


def test_a_prompts_completions_do_not_depend_on_its_neighbours(fresh, charades):
    model, tokenizer = fresh
    prompts = [
        load_prompt(e, TOY_BUDGET, tokenizer, think=i % 2 == 0)
        for i, e in enumerate(read_dataset("charades", "test", charades)[:3])
    ]

    stops = list(range(0, len(tokenizer), 20))  # rows that end leave the batch, the neighbours' too

    def sample(which):
        chosen = [prompts[i] for i in which]
        with torch.no_grad():
            features = encode_videos(model, chosen)
        return sample_groups(
            model, chosen, features, 4, 12, stops, [torch.Generator().manual_seed(i) for i in which]
        )[0]

    together, alone = sample([0, 1, 2]), [sample([i]) for i in range(3)]
    for i in range(3):
        n = alone[i].shape[2]
        assert (
            together[i][:, :n].tolist() == alone[i][0].tolist()
            and (together[i][:, n:] == stops[0]).all()
        )
