"""bandit.py: GRPO where there is no video and everything can be printed: `python grpo.py`."""

import torch

from grpo import draw, group_advantages, policy_loss, token_weights


def three_armed_bandit(steps=300, G=8, lr=0.5, beta=0.04):
    """GRPO where everything can be printed. A bandit is a gambling machine whose arms pay with
    chances of their own; the policy is three logits, and a completion is one token: the arm that is
    pulled.

    Arm c pays 1 with probability 0.8, b with 0.5, a with 0.2. The policy is not told; it begins by
    liking a. Returns the policy's probabilities after training.
    """
    torch.manual_seed(0)
    pays = torch.tensor([0.2, 0.5, 0.8])
    logits = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    reference = logits.detach().log_softmax(dim=0)
    print(
        f"Three arms pay 1 with probability {rounded(pays)}. The policy, softmax of three logits,\n"
        f"does not know that; it starts at {rounded(reference.exp())} for arms a, b, c.\n"
        f"Each step pulls {G} arms: a group.\n"
    )
    for step in range(1, steps + 1):
        logp_all = logits.log_softmax(dim=0)
        chance = torch.rand(G, dtype=torch.float64)
        arms = draw(logp_all.detach().expand(G, -1), chance)[:, None]  # 1. sample (G, C = 1)
        reward = (torch.rand(G) < pays[arms[:, 0]]).float()  # 2. reward (G,)
        A = group_advantages(reward)  # 3. advantages (G,)
        logp, logp_ref = logp_all[arms], reference[arms]  # 4. log-probs (G, 1)
        mask = torch.ones_like(arms, dtype=torch.bool)
        weights = token_weights(mask, "grpo", 1, G, G)
        tensors = (logp, logp.detach(), logp_ref, A, mask, weights)
        loss, per_token = policy_loss(*tensors, 0.2, 0.2, beta)  # 5. loss
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= lr * gradient
        if step == 1:
            after = logits.detach().log_softmax(dim=0)[arms]
            tell_first_step(arms, reward, A, logp, after, loss, gradient)
            print("step  mean reward    KL   P(a)  P(b)  P(c)")
        if step in (1, 10, 20, 30, 50, 100, 200, steps):
            p = "  ".join(f"{p:.2f}" for p in logits.detach().softmax(dim=0))
            still = "" if A.any() else "   all pay the same: every advantage is 0, only the KL acts"
            print(f"{step:4}  {reward.mean():11.2f}  {per_token['kl'].mean():.2f}   {p}{still}")
    return logits.detach().softmax(dim=0)


def tell_first_step(arms, reward, A, logp, after, loss, gradient):
    print(
        f"Step 1: the rewards' mean is {reward.mean():.3f}, their sample standard deviation "
        f"{reward.std():.3f}.\narm  reward  advantage  log-prob before → after"
    )
    for i, arm in enumerate(arms[:, 0]):
        change = f"{logp[i, 0]:15.3f} → {after[i, 0]:.3f}"
        print(f"{'abc'[arm]:>3}  {reward[i]:6.0f}  {A[i]:+9.2f}  {change}")
    print(
        "Siblings are compared with their own mean, so the advantages add up to "
        f"{abs(A.sum().item()):.0f}. The loss is\n{abs(loss.item()):.3f}, because every ratio is "
        "1; "
        f"its gradient with respect to the logits is\n{rounded(gradient)}; a step against it makes "
        "those arms likelier that paid more than\nthe mean. In one group that may be luck; over "
        "many, luck averages out:\n"
    )


def rounded(x):
    return [round(v, 2) for v in x.tolist()]


def main():
    p = three_armed_bandit()
    print(
        f"\nArm c now has {p[2]:.0%}. The KL term holds it back: with β = 0 the same 300 steps end "
        "above 99%.\nA video model's policy is the same with 150,000 arms per token and a rule in "
        "place of the coin:\ntrain.py."
    )
