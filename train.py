"""train.py: the run. GRPO (or SFT, to compare) on one process or many.

    python train.py --task grounding                                   # the toy world, on a laptop's CPU
    torchrun --nproc-per-node 2 train.py --task grounding              # the same, and the same gradient, on two processes
    torchrun --nproc-per-node 8 train.py --task grounding \\
        --model Qwen/Qwen2.5-VL-7B-Instruct --data data/charades       # the real thing
    python train.py --help                                             # every setting, what it does, its default

What a run leaves in its folder:

    settings.json     every setting and library version
    metrics.jsonl     one line a step: rewards, KL, entropy, gradient norm, tokens and seconds per phase, …
    rollouts.jsonl    now and then one group in full: prompt, completions, rewards, advantages
    curves.png        redrawn as the run goes
    policy/           the trained model in Hugging Face format, for eval.py or for anybody's `from_pretrained`

What is missing, on purpose: FSDP, LoRA, resuming. The whole model and its optimizer live in every process.
"""

import argparse
import copy
import json
import os
import platform
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

# Before torch is imported: its CPU threads otherwise spin while they wait, and on a machine that does
# anything else at the same time a decoding step took 40 times as long (0.24 → 9 s for 30 tokens here).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import exercises
import grpo
import rewards
from annotations import read_dataset
from data import BadInput, VideoBudget
from judge import load_judge
from model import ATTENTION, encode_videos, group_logprobs, load, save
from report import draw_curves
from tasks import JOINTLY, TASKS, ideal_answer, load_prompt, score
from toy import find_data

# ------------------------------------------------------------------------------------------------
# Settings
# ------------------------------------------------------------------------------------------------

TOY_MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "toy-base")

# Where the toy and the paper need different numbers. A model of a million parameters learns from
# steps 300 times as large, and says what it has to say in a few words.
DEFAULTS = {
    #                  toy   paper (VideoChat-R1)
    "steps":          (300, None),  # None: one pass over the data
    "lr":             (3e-4, 1e-6),
}  # fmt: skip


def longest_answer(toy_model, tasks):
    """--max-new-tokens where it is not given: the paper's 1024; of the toy model, room for eight boxes or a short sentence."""
    return 1024 if not toy_model else 320 if {"tracking", "caption"} & set(tasks) else 64


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def both(name):
        toy, paper = DEFAULTS[name]
        return f"(toy model: {toy}; others: {'one pass over the data' if paper is None else paper})"

    g = p.add_argument_group("what is learned")
    g.add_argument("--task", default="grounding", help=f"one of {', '.join(TASKS)}; several with + between; or all, which is {'+'.join(JOINTLY)} as in the paper")
    g.add_argument("--method", default="grpo", choices=("grpo", "sft"),
                   help="grpo: from rewards on own answers; sft: from the true answers, one token after the other")
    g.add_argument("--think", action=argparse.BooleanOptionalAction, default=True,
                   help="ask for a <think> block before the answer (SFT has no thoughts to show, so it never does)")

    g.add_argument("--judge", help="captions: a local language model that decides whether a caption tells of an event (default: matching content words)")

    g = p.add_argument_group("from what")
    g.add_argument("--model", default=TOY_MODEL, help="local folder or hub name of the policy to start from (default: the toy base)")
    g.add_argument("--data", help="folder of the data set (default: the toy one, rendered into data/toy when first needed)")
    g.add_argument("--examples", type=int, help="use only the first so many training examples of each task")

    g = p.add_argument_group("the run")
    g.add_argument("--out", help="folder for what the run leaves (default: runs/TASK-METHOD-1, -2, …)")
    g.add_argument("--overwrite", action="store_true", help="empty the folder first if it holds a run")
    g.add_argument("--steps", type=int, help=f"optimizer steps, or rollouts where there are several updates for each {both('steps')}")
    g.add_argument("--seed", type=int, default=0, help="of the order of examples and of sampling")
    g.add_argument("--student", metavar="DIR", help="train with the functions written in DIR (exercises.py) in the place of the reference's")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu (default: cuda where there is one)")
    g.add_argument("--attn", default="sdpa", choices=ATTENTION, help="sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA")
    g.add_argument("--rollouts-every", type=int, default=5, help="steps between two groups written to rollouts.jsonl")
    g.add_argument("--save-every", type=int, default=100, help="steps between two saves of the policy; it is always saved at the end")

    g = p.add_argument_group("GRPO")
    g.add_argument("--group-size", type=int, default=8, help="G: completions of each prompt")
    g.add_argument("--prompts-per-step", type=int, default=8, help="B: prompts of a step, over all processes together")
    g.add_argument("--max-new-tokens", type=int, help="longest completion (toy model: 64, and 320 for tracking and captions; others: 1024)")
    g.add_argument("--beta", type=float, default=0.04, help="weight of the KL to the reference policy; 0 does without one")
    g.add_argument("--loss", default="grpo", choices=grpo.LOSSES, help="variant of the loss, see grpo.py")
    g.add_argument("--updates-per-rollout", type=int, default=1, help="optimizer steps on the same completions; the clip acts from the second on")
    g.add_argument("--clip", type=float, default=0.2, help="ε: how far a token's probability ratio is followed")
    g.add_argument("--clip-high", type=float, help="ε for ratios above 1, if it is to be another (dapo uses 0.28)")

    g = p.add_argument_group("optimizer (AdamW)")
    g.add_argument("--lr", type=float, help=f"peak learning rate: 5 steps of warm-up, then straight down to a tenth {both('lr')}")
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest norm of the gradient")

    data.add_budget_flags(p)
    args = p.parse_args(argv)
    toy_model = os.path.abspath(args.model) == TOY_MODEL
    for name, (toy, paper) in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, toy if toy_model else paper)
    args.clip_high = args.clip if args.clip_high is None else args.clip_high
    args.think = args.think and args.method == "grpo"
    args.tasks = list(JOINTLY) if args.task == "all" else args.task.split("+")
    for task in args.tasks:
        if task not in TASKS:
            raise BadInput(f"--task {task} is unknown; there is: {', '.join(TASKS)}, all")
    args.max_new_tokens = longest_answer(toy_model, args.tasks) if args.max_new_tokens is None else args.max_new_tokens
    if args.group_size < 2 and args.method == "grpo":
        raise BadInput("--group-size must be at least 2: an advantage compares a completion with its siblings")
    for name in ("steps", "prompts_per_step", "max_new_tokens", "updates_per_rollout", "rollouts_every", "save_every", "examples"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1")
    return args


# ------------------------------------------------------------------------------------------------
# Many processes
# ------------------------------------------------------------------------------------------------
# torchrun starts the same program W times and tells each its rank through environment variables. Each
# takes its share of a step's prompts; gradients are added up, so all take the same optimizer step.


def start_processes(device):
    """Returns (rank, world size, device of this process). Without torchrun: (0, 1, device)."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, device
    rank, world, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, os.cpu_count() // world))
    dist.init_process_group("nccl" if "cuda" in device else "gloo", timeout=timedelta(minutes=30))
    return rank, world, device


def add_up_gradients(parameters, world):
    """grad ← Σ over processes of grad, in one message. Losses are shares of the step's whole, so a sum is right."""
    if world == 1:
        return
    for p in parameters:  # a parameter that one process did not use still has its place in the message
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad.copy_(part.view_as(p))


def add_up(sums, device, world):
    """{name: number} ← Σ over processes. Every process passes the same names."""
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(sums, values.tolist()))


def share_of_step(examples, step, per_step, rank, world, seed):
    """The examples of one process in one step: [(number of the prompt in the step, Example)].

    Each pass over the data has an order of its own, the same in every process and for every world size.
    """
    order = {}
    mine = []
    for k in range(rank * per_step // world, (rank + 1) * per_step // world):
        epoch, i = divmod(step * per_step + k, len(examples))
        if epoch not in order:
            order[epoch] = np.random.default_rng([seed, epoch]).permutation(len(examples))
        mine.append((k, examples[order[epoch][i]]))
    return mine


def generator_for(seed, step, k, device):
    """Random numbers of prompt k of a step: the same whichever process samples it, beside whichever others."""
    state = np.random.SeedSequence([seed, step, k]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


# ------------------------------------------------------------------------------------------------
# One step
# ------------------------------------------------------------------------------------------------


class Clock:
    """Seconds by phase: `clock("sample")` books the time since the last call under that name."""

    def __init__(self, device):
        self.seconds, self.last, self.cuda = {}, time.perf_counter(), "cuda" in str(device)

    def __call__(self, phase):
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now


def take_optimizer_step(policy, optimizer, lr, grad_clip, world):
    """Adds up gradients, clips their norm, steps. Returns the norm before clipping."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    add_up_gradients(parameters, world)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, grad_clip))
    if not np.isfinite(norm):
        raise BadInput("the gradient is not finite (NaN or infinite): lower --lr; the policy of the last save is intact")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def grpo_step(policy, reference, tokenizer, optimizer, batch, prompts, generators, lr, args, world, clock):
    """One GRPO step on this process's prompts; numbers 1 to 5 are those of grpo.py.

    Args:    batch: [(k, Example)]; prompts: their data.Prompts; generators: one for each.
    Returns: sums over this process's completions, groups and tokens (add_up makes them the step's),
             the gradient norm, and the groups in full.
    """
    device, n_groups = policy.device, len(prompts)
    stop_ids = policy.generation_config.eos_token_id

    # 1. Sample. The vision tower runs once, with its graph kept: the sampler reads the features' values,
    #    and the first update below sends gradients back through the same features.
    features = encode_videos(policy, prompts)
    completions, mask, logp_sampled = grpo.sample_groups(
        policy, prompts, [f.detach() for f in features], args.group_size, args.max_new_tokens, stop_ids, generators)
    clock("sample")

    # 2. Reward, and 3. advantages.
    texts = [data.completion_texts(c, m, tokenizer, stop_ids) for c, m in zip(completions, mask)]
    scores = [[score(e.task, text, e.answer, args.think) for text in group] for (_, e), group in zip(batch, texts)]
    reward = torch.tensor([[sum(s.values()) for s in group] for group in scores], device=device)  # (B, G)
    advantages = grpo.group_advantages(reward, divide_by_std=args.loss != "dr_grpo")  # (B, G)
    totals = add_up({"completions": mask.shape[0] * mask.shape[1], "tokens": mask.sum().item()}, device, world)
    weights = grpo.token_weights(mask, args.loss, args.max_new_tokens, totals["completions"], totals["tokens"])  # (B, G, C)
    clock("reward")

    # 4a. Log-probs under the reference policy: the policy as it was before the first step.
    own = [slice(0, int(m.any(dim=0).sum())) for m in mask]  # each group is scored to its own longest completion
    #     Without a KL, a group whose advantages are all 0 has no gradient to give: it is left out of the rest.
    logp_ref, teaching = [None] * n_groups, range(n_groups)
    if args.beta == 0:
        teaching = [b for b in range(n_groups) if advantages[b].any()]
    else:
        with torch.no_grad():
            reference_features = encode_videos(reference, prompts)
            logp_ref = [group_logprobs(reference, prompts[b], reference_features[b], completions[b][:, own[b]])[0] for b in range(n_groups)]
    clock("reference")

    sums = dict.fromkeys(("loss", "kl", "clipped", "entropy", "scored_tokens", "later_tokens"), 0.0)
    logp_old = [None] * n_groups
    sampler_gap = 0.0
    for update in range(args.updates_per_rollout):
        if update:
            features = encode_videos(policy, prompts)
        leaves = [f.detach().requires_grad_() for f in features]
        for b in teaching:
            # 4b. Log-probs under the policy. Before the first update the policy is the one that sampled, so
            #     they are logp_old as well.
            logp, entropy = group_logprobs(policy, prompts[b], leaves[b], completions[b][:, own[b]])
            m = mask[b][:, own[b]]
            if update == 0:
                logp_old[b] = logp.detach()
                sampler_gap = max(sampler_gap, float((logp_old[b] - logp_sampled[b][:, own[b]])[m].abs().max()))
                sums["entropy"] += float(entropy[m].sum())
                sums["scored_tokens"] += float(m.sum())
            # 5. Loss. One backward a group: their gradients add up, and one group's activations is all that
            #    memory must hold.
            loss, per_token = grpo.policy_loss(
                logp, logp_old[b], logp_ref[b], advantages[b], m, weights[b][:, own[b]], args.clip, args.clip_high, args.beta, args.loss)
            loss.backward()
            sums["loss"] += loss.item() / args.updates_per_rollout
            if update == 0:
                sums["kl"] += float(per_token["kl"][m].sum())
            else:  # at the first update the ratio is 1 and nothing can be clipped
                sums["clipped"] += float(per_token["clipped"].sum())
                sums["later_tokens"] += float(m.sum())
        if teaching:  # on through the vision tower, once
            torch.autograd.backward([features[b] for b in teaching], [leaves[b].grad for b in teaching])
        grad_norm = take_optimizer_step(policy, optimizer, lr, args.grad_clip, world)
    clock("update")

    spread = reward.std(dim=1)
    sums |= {
        "groups": n_groups, "completions": reward.numel(), "tokens": float(mask.sum()), "reward": float(reward.sum()),
        "spread": float(spread.sum()), "no_spread": float((spread < 1e-6).sum()), "sampler_gap": sampler_gap,
        "unfinished": float((~torch.isin(completions, torch.tensor(stop_ids, device=device)) | ~mask).all(dim=2).sum()),
        "prompt_tokens": sum(len(p.ids) for p in prompts),
    }  # fmt: skip
    for task in args.tasks:  # every process passes the same names, whatever tasks its prompts have
        mine = [s for (_, e), group in zip(batch, scores) if e.task == task for s in group]
        sums[f"count/{task}"] = len(mine)
        sums |= {f"reward/{task}/{name}": sum(s[name] for s in mine) for name in TASKS[task].rules}
    rollouts = [
        {"id": e.id, "video": e.video, "answer": e.answer, "prompt": prompt.text, "completions": [
            {"text": text, "rewards": s, "reward": r, "advantage": a, "tokens": n}
            for text, s, r, a, n in zip(group, score, reward[b].tolist(), advantages[b].tolist(), mask[b].sum(dim=1).tolist())]}
        for b, ((_, e), prompt, group, score) in enumerate(zip(batch, prompts, texts, scores))
    ]  # fmt: skip
    return sums, grad_norm, rollouts


def sft_step(policy, tokenizer, optimizer, batch, prompts, lr, args, world, clock):
    """One step of supervised fine-tuning: raise the log-prob of the true answer.

    loss = − mean over examples of the mean over the answer's tokens of logp. It is the GRPO loss of a
    "group" of one completion that was not sampled but given, with advantage 1.
    """
    loss_sum = tokens = 0.0
    for (_, example), prompt in zip(batch, prompts):
        target = torch.tensor([tokenizer(ideal_answer(example))["input_ids"] + [policy.generation_config.eos_token_id[0]]])
        logp, _ = group_logprobs(policy, prompt, encode_videos(policy, [prompt])[0], target)
        loss = -logp.mean() / args.prompts_per_step
        loss.backward()
        loss_sum, tokens = loss_sum + loss.item(), tokens + target.numel()
    grad_norm = take_optimizer_step(policy, optimizer, lr, args.grad_clip, world)
    clock("update")
    return {"loss": loss_sum, "tokens": tokens, "prompt_tokens": sum(len(p.ids) for p in prompts)}, grad_norm, []


# ------------------------------------------------------------------------------------------------
# What a person sees
# ------------------------------------------------------------------------------------------------

HINT = """
The loss of step 1 is 0 and that is right: before the first update every ratio is 1, and advantages have
mean 0. Watch instead (all in metrics.jsonl and curves.png):
  reward     per completion; its parts are reward/format (0 or 1) and the task's own
  spread     standard deviation of rewards within a group: what there is to learn from
  no_spread  share of groups whose completions all earn the same; they teach nothing
  kl         distance to the reference policy in nats per token: should grow slowly, not jump
  length     tokens per completion; unfinished: share that ran into --max-new-tokens
"""


def step_metrics(step, sums, grad_norm, lr, seconds, args):
    """The step's line in metrics.jsonl, from sums over all processes."""
    line = {"step": step, "loss": sums["loss"]}
    if args.method == "grpo":
        n, tokens, scored = sums["completions"], sums["tokens"], max(1.0, sums["scored_tokens"])
        line["reward"] = sums["reward"] / n
        for name in sums:  # "reward/task/rule"; a task that this step had no prompt of has no mean
            if name.startswith("reward/") and sums[count := f"count/{name.split('/')[1]}"]:
                line[name] = sums[name] / sums[count]
        line |= {
            "spread": sums["spread"] / sums["groups"], "no_spread": sums["no_spread"] / sums["groups"],
            "kl": sums["kl"] / scored, "clip_share": sums["clipped"] / max(1.0, sums["later_tokens"]),
            "entropy": sums["entropy"] / scored, "length": tokens / n, "unfinished": sums["unfinished"] / n,
        }  # fmt: skip
    line |= {"grad_norm": grad_norm, "lr": lr, "prompt_tokens": sums["prompt_tokens"], "completion_tokens": sums["tokens"]}
    return line | {"seconds": {k: round(v, 4) for k, v in seconds.items()}, "seconds_total": round(sum(seconds.values()), 4)}


def versions():
    """What a score depends on besides the settings."""
    import decord
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__, "decord": decord.__version__}


def open_run_folder(args):
    """Picks and empties the run's folder (on one process only). Returns its path."""
    folder = args.out
    if folder is None:
        k = 1
        while os.path.exists(folder := os.path.join("runs", f"{args.task}-{args.method}-{k}")):
            k += 1
    if os.path.isfile(os.path.join(folder, "settings.json")):
        if not args.overwrite:
            raise BadInput(f"{folder} already holds a run: give another --out, or --overwrite to replace it")
        shutil.rmtree(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "settings.json"), "w") as f:
            json.dump({}, f)
    except OSError as e:
        raise BadInput(f"cannot write to --out {folder}: {e.strerror}") from e
    return folder


def on_first(rank, world, work):
    """Runs `work` on process 0 alone and hands its result, or its BadInput, to all of them."""
    result = [None]
    if rank == 0:
        try:
            result = [work()]
        except BadInput as e:
            result = [e]
    if world > 1:
        dist.broadcast_object_list(result)
    if isinstance(result[0], BadInput):
        raise result[0]
    return result[0]


# ------------------------------------------------------------------------------------------------
# The run
# ------------------------------------------------------------------------------------------------


def training_examples(args, rank, world):
    """(examples of all tasks, names of their data sets). Tasks are mixed in proportion to their examples, as in the paper."""
    examples, names = [], []
    report = (lambda sentence: print(sentence, file=sys.stderr)) if rank == 0 else (lambda sentence: None)
    for task in args.tasks:
        source = TASKS[task].data
        folder, name = on_first(rank, world, lambda: find_data(source, args.data))
        found = read_dataset(source, "train", folder, report)[: args.examples]
        if task == "qa":  # the same questions as gqa's, without the evidence
            found = [replace(e, task="qa", answer=e.answer[0]) for e in found]
        examples += found
        names.append(name)
    return examples, ", ".join(dict.fromkeys(names))


def train(args):
    """Runs the whole of it. Raises BadInput for what the user can mend."""
    rank, world, device = start_processes(args.device)
    if args.student:
        exercises.install(args.student, show=rank == 0)
    if args.prompts_per_step % world:
        raise BadInput(f"--prompts-per-step {args.prompts_per_step} cannot be shared evenly by {world} processes")
    examples, data_name = training_examples(args, rank, world)
    steps = args.steps or -(-len(examples) // args.prompts_per_step)
    policy, tokenizer = load(args.model, device, attn=args.attn)
    budget = VideoBudget.of_model(args.model, **vars(args))
    reference = copy.deepcopy(policy).requires_grad_(False) if args.method == "grpo" and args.beta > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)

    if args.judge:
        rewards.judge = load_judge(args.judge, device)
    model_name = "toy base" if os.path.abspath(args.model) == TOY_MODEL else args.model
    out = on_first(rank, world, lambda: open_run_folder(args))
    if rank == 0:
        settings = vars(args) | {"steps": steps, "out": out, "data_name": data_name, "model_name": model_name, "processes": world,
                                 "examples": len(examples), "video_budget": vars(budget), "versions": versions()}  # fmt: skip
        with open(os.path.join(out, "settings.json"), "w") as f:
            json.dump(settings, f, indent=2)
        print(f"{args.method} on {args.task}: {model_name}, {sum(p.numel() for p in policy.parameters()):,} parameters; "
              f"data: {data_name}, {len(examples)} examples; {steps} steps on {world} process(es), {device}; run folder {out}")  # fmt: skip

    def load_share(step):
        batch = share_of_step(examples, step, args.prompts_per_step, rank, world, args.seed)
        try:
            return batch, [load_prompt(e, budget, tokenizer, args.think) for _, e in batch]
        except BadInput as e:
            e.process = rank  # only this process knows about it, so main() lets it speak
            raise

    lines, checked = [], False
    bar = tqdm(total=steps, disable=rank != 0, dynamic_ncols=True, unit="step")
    with ThreadPoolExecutor(max_workers=1) as reader:  # the next step's clips are decoded while this one runs
        upcoming = reader.submit(load_share, 0)
        for step in range(steps):
            clock = Clock(device)
            batch, prompts = upcoming.result()
            if step + 1 < steps:
                upcoming = reader.submit(load_share, step + 1)
            clock("data")
            lr = args.lr * min((step + 1) / 5, 1 - 0.9 * step / steps)
            if args.method == "grpo":
                generators = [generator_for(args.seed, step, k, device) for k, _ in batch]
                sums, grad_norm, rollouts = grpo_step(policy, reference, tokenizer, optimizer, batch, prompts, generators, lr, args, world, clock)
            else:
                sums, grad_norm, rollouts = sft_step(policy, tokenizer, optimizer, batch, prompts, lr, args, world, clock)
            sums = add_up(sums, device, world)
            first_scored = not checked and sums.get("scored_tokens", 0) > 0
            if first_scored:
                check_sampler(sums["sampler_gap"], policy.dtype)
                checked = True
            if rank == 0:
                line = step_metrics(step + 1, sums, grad_norm, lr, clock.seconds, args)
                lines.append(line)
                append_line(os.path.join(out, "metrics.jsonl"), line)
                if rollouts and step % args.rollouts_every == 0:
                    append_line(os.path.join(out, "rollouts.jsonl"), {"step": step + 1, **rollouts[0]})
                shown = ["reward", *(k for k in line if k.startswith("reward/")), "kl", "length"] if args.method == "grpo" else ["loss"]
                bar.set_postfix({k.removeprefix("reward/").removeprefix(f"{args.task}/"): f"{line[k]:.3g}" for k in shown})
                bar.update()
                if first_scored:
                    bar.write(f"step {step}: sampler and scorer agree within {sums['sampler_gap']:.1e} on every log-prob.\n{HINT}")
                if (step + 1) % 10 == 0 or step + 1 == steps:
                    draw_curves(out, lines, settings)
                if (step + 1) % args.save_every == 0 or step + 1 == steps:
                    save(policy, tokenizer, budget, os.path.join(out, "policy"))
    bar.close()
    if rank == 0:
        print(f"done in {bar.format_dict['elapsed']:.0f} s; curves: {out}/curves.png; policy: {out}/policy\n"
              f"next: python eval.py --bench {','.join(dict.fromkeys(TASKS[t].data for t in args.tasks))} --model {out}")  # fmt: skip
    if world > 1:
        dist.destroy_process_group()


def check_sampler(gap, dtype):
    """Stops a run whose sampler and scorer are two different distributions: it would learn from wrong ratios."""
    allowed = 1e-3 if dtype == torch.float32 else 0.5  # bfloat16 keeps 8 bits: a single log-prob may be off by some percent
    if not gap <= allowed:
        raise BadInput(f"the sampler's and the scorer's log-probs differ by {gap:.3g} (rounding explains {allowed}): "
                       "positions, masks or weights disagree; please report it with your versions")  # fmt: skip


def append_line(path, record):
    with open(path, "a") as f:
        f.write(json.dumps(record) + "\n")


def main():
    rank = os.environ.get("RANK", "0")

    def stopped(signum, frame):
        sys.exit(f"process {rank}: told to stop (signal {signum}): the job was cancelled or another process died")

    signal.signal(signal.SIGTERM, stopped)
    try:
        train(parse_args())
    except BadInput as e:
        if rank == str(getattr(e, "process", 0)):  # what all processes found wrong, one says
            print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"process {rank}: interrupted; the policy of the last save is intact")
    except (torch.OutOfMemoryError, MemoryError):
        sys.exit(f"error: process {rank} ran out of memory: lower --total-pixels, --max-new-tokens, --group-size or --prompts-per-step")
    except dist.DistBackendError as e:
        sys.exit(f"error: process {rank} lost another process: {str(e).splitlines()[0][:200]}")
    except RuntimeError as e:
        if dist.is_initialized() and any(word in str(e) for word in ("Connection", "gloo", "closed by peer", "Broken pipe")):
            sys.exit(f"error: process {rank} lost another process, which was killed or crashed (its own output says why): {str(e).splitlines()[0][:160]}")
        raise


if __name__ == "__main__":
    main()
