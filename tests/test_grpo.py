"""The equations of grpo.py: by hand, by autograd, and by properties that a wrong one breaks."""

import doctest
import math

import pytest
import torch

import grpo
from grpo import group_advantages, kl_k3, policy_loss, sample_groups, token_weights


def loss_of(
    logp, logp_old, advantages, mask, logp_ref=None, beta=0.0, kind="grpo", clip=0.2, clip_high=None
):
    weights = token_weights(mask, kind, 8, len(mask), int(mask.sum()))
    return policy_loss(
        logp,
        logp_old,
        logp_ref,
        advantages,
        mask,
        weights,
        clip,
        clip if clip_high is None else clip_high,
        beta,
        kind,
    )


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
            clip_high=0.28,
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
    for kind in grpo.LOSSES:
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
    assert rows["gspo"] == rows["grpo"]


def test_gspo_has_one_ratio_for_each_completion():
    logp = torch.tensor([[0.3, -0.1, 0.1]]).double().requires_grad_()
    loss, _ = loss_of(
        logp,
        torch.zeros(1, 3).double(),
        torch.ones(1).double(),
        torch.ones(1, 3).bool(),
        kind="gspo",
        clip=0.2,
    )
    loss.backward()
    assert loss.item() == pytest.approx(-math.exp(0.1))
    assert logp.grad[0].tolist() == pytest.approx([-math.exp(0.1) / 3] * 3)


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


def test_examples_in_docstrings():
    assert doctest.testmod(grpo).failed == 0


# Sampling -----------------------------------------------------------------------------------------


def test_sampled_frequencies_are_the_models_probabilities(fresh, charades):
    """2,000 first tokens against the softmax they were drawn from; a top-k would show."""
    from annotations.readers import read_dataset
    from data import load_prompt
    from model import encode_videos, prefill
    from toy.base import TOY_BUDGET

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


def test_mask_covers_a_completion_up_to_and_with_its_stop_token(fresh, charades):
    from annotations.readers import read_dataset
    from data import load_prompt
    from model import encode_videos
    from toy.base import TOY_BUDGET

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
    from annotations.readers import read_dataset
    from data import load_prompt
    from model import encode_videos
    from toy.base import TOY_BUDGET

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
