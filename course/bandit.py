"""bandit.py: GRPO where there is no video and everything can be printed: `python grpo.py`."""

import argparse

import torch

from course.exercises import install
from grpo import draw, group_advantages, kl_k3, policy_loss, token_weights

COLUMNS = "step  reward  least ρ … largest  clipped   KL  k3 of 8   P(a)  P(b)  P(c)"


def three_armed_bandit(steps=300, G=8, updates=4, lr=0.5, clip=0.2, beta=0.04):
    """GRPO where everything can be printed. A bandit is a gambling machine whose arms pay with
    chances of their own; the policy is three logits, and a completion is one token: the arm that is
    pulled.

    Arm c pays 1 with probability 0.8, b with 0.5, a with 0.2. The policy is not told; it begins by
    liking a. Each group serves several updates, so that the ratio ρ leaves 1 and the clip acts.
    Returns the policy's probabilities after training.
    """
    torch.manual_seed(0)
    pays = torch.tensor([0.2, 0.5, 0.8])
    logits = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    reference = logits.detach().log_softmax(dim=0)
    print(
        f"Three arms pay 1 with probability {rounded(pays)}. The policy, softmax of three logits,\n"
        f"does not know that; it starts at {rounded(reference.exp())} for arms a, b, c.\n"
        f"Each step pulls {G} arms, a group, and makes {updates} updates of the logits with it.\n"
    )
    for step in range(1, steps + 1):
        before = logits.detach().log_softmax(dim=0)  # of all three arms
        chance = torch.rand(G, dtype=torch.float64)
        arms = draw(before.expand(G, -1), chance)[:, None]  # 1. sample (G, C = 1)
        reward = (torch.rand(G) < pays[arms[:, 0]]).float()  # 2. reward (G,)
        A = group_advantages(reward)  # 3. advantages (G,)
        logp_old, logp_ref = before[arms], reference[arms]  # 4. log-probs (G, 1)
        mask = torch.ones_like(arms, dtype=torch.bool)
        weights = token_weights(mask, "grpo", 1, G, G)
        happened = []  # of each update: ρ, which tokens the clip stopped, loss, gradient
        for _ in range(updates):
            logp = logits.log_softmax(dim=0)[arms]
            tensors = (logp, logp_old, logp_ref, A, mask, weights)
            loss, per_token = policy_loss(*tensors, clip, clip, beta)  # 5. loss
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= lr * gradient
            ratio = (logp.detach() - logp_old).exp()[:, 0]
            happened.append((ratio, per_token["clipped"][:, 0], loss.item(), gradient))
        after = logits.detach().log_softmax(dim=0)
        if step == 1:
            tell_first_step(arms[:, 0], reward, A, before, after, happened)
            print(COLUMNS)
        if step in (1, 2, 3, 5, 10, 20, 50, 100, 200, steps):
            print(line_of(step, reward, A, (before, after), reference, arms, happened))
    return after.exp()


def line_of(step, reward, A, policies, reference, arms, happened):
    """A row of the table. KL and k3 are of the policy that sampled: the one summed over all arms,
    the other over the eight that were pulled. policies: log-probs of the arms before and after."""
    before, after = policies
    ratios = torch.stack([ratio for ratio, *_ in happened])
    stops = sum(int(stopped.sum()) for _, stopped, *_ in happened)
    clipped = stops / (len(A) * max(1, len(happened) - 1))  # at the first update nothing can be
    exact = (before.exp() * (before - reference)).sum()
    estimate = kl_k3(before[arms], reference[arms]).mean()
    spread = f"{ratios.min():7.2f} … {ratios.max():<7.2f}"
    p = "  ".join(f"{x:.2f}" for x in after.exp())
    still = "" if A.any() else "  all pay the same: no advantages"
    return (
        f"{step:4}  {reward.mean():6.2f}  {spread}   {clipped:6.0%}  {exact:5.2f}  {estimate:7.2f}"
        f"   {p}{still}"
    )


def tell_first_step(arms, reward, A, before, after, happened):
    print(
        f"Step 1: the rewards' mean is {reward.mean():.3f}, their sample standard deviation "
        f"{reward.std():.3f}.\narm  reward  advantage  "
        f"{'ρ before each update':<{7 * len(happened)}} log-prob before → after"
    )
    for i, arm in enumerate(arms):
        ratios = "".join(f"{r[i]:6.2f}{'*' if stop[i] else ' '}" for r, stop, *_ in happened)
        change = f"{before[arm]:.3f} → {after[arm]:.3f}"
        print(f"{'abc'[arm]:>3}  {reward[i]:6.0f}  {A[i]:+9.2f}  {ratios}  {change}")
    print("(* the clip stops this pull's gradient: its ratio went as far as its advantage asked)\n")
    sums = [A[arms == arm].sum().item() for arm in range(3)]
    named = ", ".join(f"{name} {s:+.2f}" for name, s in zip("abc", sums))
    _, _, loss, gradient = happened[0]
    print(
        "Siblings are compared with their own mean, so the advantages add up to "
        f"{abs(A.sum().item()):.0f}, and the\nfirst loss is {abs(loss):.3f}: every ratio is 1. Its "
        f"gradient with respect to the logits is\n{rounded(gradient)}: minus the advantages summed "
        f"arm by arm ({named}), over {len(A)}.\n"
    )
    best = max(range(3), key=sums.__getitem__)
    paid = reward[arms == best]
    print(
        "Why can a pull with reward 0 become likelier? Pulls of one arm share one logit: "
        f"{'abc'[best]} was\npulled {len(paid)} times and paid {int(paid.sum())} times, so its sum "
        "is above 0. And probabilities add up to 1:\nwhere one arm is pushed down the others rise, "
        "pulled or not. In one group that may be luck;\nover many, luck averages out:\n"
    )


def rounded(x):
    return [round(v, 2) + 0.0 for v in x.tolist()]


def main(argv=None):
    about = "GRPO on a three-armed bandit, step by step."
    parser = argparse.ArgumentParser(prog="grpo.py", description=about)
    student = "with the functions you wrote in DIR: exercises 5, 6 and 9"
    parser.add_argument("--student", metavar="DIR", help=student)
    args = parser.parse_args(argv)
    if args.student:
        install(args.student, only=("group_advantages", "kl_k3", "token_weights", "policy_loss"))
    p = three_armed_bandit()
    print(
        f"\nArm c now has {p[2]:.0%}. ρ: how much likelier a pull has become since it was sampled, "
        "over the\nupdates of its step. clipped: the share of pulls whose gradient the clip stops, "
        "in the updates\nafter the first. KL: the exact distance from the first policy. k3: its "
        "estimate from the eight\npulls, right on average; but one pull of an arm that has become "
        "rare counts for many (k3 has a\nheavy tail). The KL term holds the policy back: with β = "
        "0 the same 300 steps end above 99%.\nA video model's policy is the same with 150,000 arms "
        "per token and a rule in place of the coin:\ntrain.py."
    )
