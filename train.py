"""train.py: the run. GRPO (or SFT, to compare) on one process or many.

    python train.py --task grounding                                   # the toy world, on a laptop's CPU
    torchrun --nproc-per-node 2 train.py --task grounding              # the same, and the same gradient, on two processes
    torchrun --nproc-per-node 8 train.py --task grounding \\
        --model Qwen/Qwen2.5-VL-7B-Instruct --shard --recompute        # the real thing, 8 GPUs of 80 GB
    python train.py --help                                             # every setting, what it does, its default

What a run leaves in its folder:

    settings.json     every setting and library version
    metrics.jsonl     one line a step: rewards, KL, entropy, gradient norm, tokens and seconds per phase, …
    rollouts.jsonl    now and then one group in full: prompt, completions, rewards, advantages, and each token's
                      log-prob, its change by the step, and its KL (python report.py RUN shows them)
    curves.png        redrawn as the run goes
    policy/           the trained model in Hugging Face format, for eval.py or for anybody's `from_pretrained`
    checkpoints/      what --resume needs
    skipped.jsonl     examples whose video could not be read, and why

A run that was stopped goes on when the same command is given again with --resume: see checkpoint.py. For models
that do not fit: --lora, --recompute, --shard, --offload; see lora.py and scale.py, and --plan, which says what fits.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

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
import plan
import rewards
from annotations import read_dataset
from checkpoint import check_counts, open_run_folder, read_checkpoint, save_all
from data import VideoBudget
from decoding import Decoder
from errors import BadInput, check_flags, first_line, run_program
from folders import locks_released, read_lines
from judge import load_judge
from metrics import HINT, append_line, speed, step_metrics, tensorboard, versions
from model import ATTENTION, encode_videos, group_logprobs
from report import draw_curves, group_text
from scale import MasterAdamW, add_up, gathered, largest, load_models, on_first, start_processes
from tasks import JOINTLY, TASKS, ideal_answer, load_prompt, longest_answer, posed, score
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
    "lr of adapters": (1e-3, 1e-5),  # --lora: B begins at zero and has far to go
    "train_vision":   (True, False),
}  # fmt: skip


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def both(name):
        toy, paper = DEFAULTS[name]
        said = {None: "one pass over the data", True: "yes", False: "no"}
        return f"(toy model: {said[toy] if toy is True else toy}; others: {paper if isinstance(paper, float) else said[paper]})"

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
    g.add_argument("--overwrite", action="store_true", help="remove the run that --out holds first, file by file; refused where there is anything else in it")
    g.add_argument("--steps", type=int, help=f"steps: each samples --prompts-per-step groups, then makes --updates-per-rollout optimizer updates {both('steps')}")
    g.add_argument("--seed", type=int, default=0, help="of the order of examples and of sampling")
    g.add_argument("--student", metavar="DIR", help="train with the functions you wrote in DIR (exercises.py) instead of this repository's own")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu (default: cuda where there is one)")
    g.add_argument("--attn", default="sdpa", choices=ATTENTION, help="sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA")
    g.add_argument("--rollouts-every", type=int, default=5, help="steps between two groups written to rollouts.jsonl")
    g.add_argument("--quiet", action="store_true", help="do not show a group in the terminal every tenth step")
    g.add_argument("--save-every", type=int, default=100, help="steps between two saves of the policy and a checkpoint; always at the end and when told to stop")
    g.add_argument("--keep", type=int, default=2, help="checkpoints kept, the newest")
    g.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out; begin where there is none")
    g.add_argument("--decode-timeout", type=float, default=60, help="seconds after which a video counts as unreadable")
    g.add_argument("--tensorboard", action="store_true", help="the metrics for TensorBoard as well, in --out/tensorboard")

    g = p.add_argument_group("GRPO")
    g.add_argument("--group-size", type=int, default=8, help="G: completions of each prompt")
    g.add_argument("--prompts-per-step", type=int, default=8, help="B: prompts of a step, over all processes together")
    g.add_argument("--max-new-tokens", type=int, help="longest completion (toy model: 64, and 320 for tracking and captions; others: 1024)")
    g.add_argument("--beta", type=float, default=0.04, help="weight of the KL to the reference policy; 0 does without one")
    g.add_argument("--loss", default="grpo", choices=grpo.LOSSES, help="variant of the loss, see grpo.py")
    g.add_argument("--updates-per-rollout", type=int, default=1, help="optimizer steps on the same completions; the clip acts from the second on")
    g.add_argument("--clip", type=float, default=0.2, help="ε: the ratio is clipped to 1 ± ε (--loss gspo needs about 3e-4: give it yourself)")
    g.add_argument("--clip-high", type=float, help="ε for ratios above 1, if it is to be another (dapo uses 0.28)")

    g = p.add_argument_group("optimizer (AdamW)")
    g.add_argument("--lr", type=float, help=f"peak learning rate: 5 steps of warm-up, then straight down to a tenth {both('lr')}; with --lora {both('lr of adapters')}")
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest norm of the gradient; inf: it is not clipped")

    g = p.add_argument_group("models that do not fit")
    g.add_argument("--plan", action="store_true", help="load nothing: print what the run needs of each GPU's memory and time, and whether it fits")
    g.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank and nothing else, see lora.py")
    g.add_argument("--train-vision", action=argparse.BooleanOptionalAction, default=None, help=f"train the vision tower as well {both('train_vision')}")
    g.add_argument("--recompute", action="store_true", help="keep one activation a layer and compute the others twice")
    g.add_argument("--shard", action="store_true", help="split weights, gradients and optimizer over all processes (FSDP2); needs torchrun")
    g.add_argument("--offload", action="store_true", help="keep float32 weights and optimizer in the CPU's memory")

    data.add_budget_flags(p)
    args = p.parse_args(argv)
    check_flags(args)
    toy_model = os.path.abspath(args.model) == TOY_MODEL
    for name in ("steps", "lr", "train_vision"):
        if getattr(args, name) is None:
            toy, paper = DEFAULTS["lr of adapters" if name == "lr" and args.lora else name]
            setattr(args, name, toy if toy_model else paper)
    args.clip_high = args.clip if args.clip_high is None else args.clip_high
    args.think = args.think and args.method == "grpo"
    args.tasks = list(dict.fromkeys(t for name in args.task.split("+") for t in (JOINTLY if name == "all" else [name])))
    for task in args.tasks:
        if task not in TASKS:
            raise BadInput(f"--task {task} is unknown; there is: {', '.join(TASKS)}, all")
    args.max_new_tokens = longest_answer(toy_model, args.tasks) if args.max_new_tokens is None else args.max_new_tokens
    if args.group_size < 2 and args.method == "grpo":
        raise BadInput("--group-size must be at least 2: an advantage compares a completion with its siblings")
    if args.lora is not None:
        args.train_vision = False
    if args.resume and (args.out is None or args.overwrite):
        raise BadInput("--resume goes on with the run in --out: it needs --out, and --overwrite would throw that run away")
    return args


# ------------------------------------------------------------------------------------------------
# Which prompts, and with which random numbers
# ------------------------------------------------------------------------------------------------

STAND_INS = 10  # examples that are tried for one prompt, before the data as a whole counts as unreadable


@lru_cache(maxsize=2)
def order_of(n, seed, epoch):
    """Each pass over the data has an order of its own, the same in every process and for every world size."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def candidates(examples, position, seed):
    """The example whose turn it is, and those that stand in for it if it cannot be read. position: prompts since the run began."""
    epoch, i = divmod(position, len(examples))
    order = order_of(len(examples), seed, epoch)
    return [examples[order[(i + j) % len(examples)]] for j in range(min(len(examples), STAND_INS))]


def generator_for(seed, step, k, device):
    """Random numbers of prompt k of a step: the same in whichever process, and with whichever other prompts, it is sampled."""
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


def see(model, prompts, with_gradient):
    """The videos' features, as encode_videos gives them."""
    with torch.set_grad_enabled(with_gradient):
        return model.call(encode_videos, prompts)


def grpo_step(policy, reference, tokenizer, optimizer, batch, prompts, generators, lr, args, world, clock, record=False):
    """One GRPO step on this process's prompts; numbers 1 to 5 are those of grpo.py.

    Args:    reference: `with reference() as fixed` gives the policy as it was before training; batch: [(k, Example)],
             k the prompt's number in the step; prompts: their data.Prompts; generators: one for each; world: number
             of processes; record: whether the first group is kept token by token.
    Returns: sums over this process's completions, groups and tokens (add_up makes them the step's),
             the gradient norm, and the groups in full.
    """
    device, n_groups = policy.device, len(prompts)
    stop_ids = policy.generation_config.eos_token_id

    # 1. Sample. The vision tower runs once, with its autograd graph kept if it is trained: the sampler reads the features'
    #    values, and the first update below sends gradients back through the same features.
    features = see(policy, prompts, args.train_vision)
    with gathered(policy):
        completions, mask, logp_sampled = policy.call(
            grpo.sample_groups, prompts, [f.detach() for f in features], args.group_size, args.max_new_tokens, stop_ids, generators)
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
    #     With β = 0 a group whose advantages are all 0 has no gradient: it is left out of `teaching`, unless weights
    #     are sharded, because then every process must run each layer equally often.
    logp_ref, teaching = [None] * n_groups, range(n_groups)
    if args.beta == 0:
        teaching = [b for b in range(n_groups) if args.shard or advantages[b].any()]
    else:
        with torch.no_grad(), reference() as fixed:
            reference_features = see(fixed, prompts, False) if args.train_vision else features
            logp_ref = [fixed.call(group_logprobs, prompts[b], reference_features[b], completions[b][:, own[b]])[0] for b in range(n_groups)]
    clock("reference")

    sums = dict.fromkeys(("loss", "kl", "clipped", "entropy", "scored_tokens", "later_tokens"), 0.0)
    logp_old = [None] * n_groups
    sampler_gap = 0.0
    for update in range(args.updates_per_rollout):
        if update and args.train_vision:
            features = see(policy, prompts, True)
        # The graph is cut here: each group's backward stops at its leaf, and one at the end takes all on through the tower.
        leaves = [f.detach().requires_grad_(args.train_vision) for f in features]
        for b in teaching:
            # 4b. Log-probs under the policy. Before the first update the policy is the one that sampled, so
            #     they are logp_old as well.
            logp, entropy = policy.call(group_logprobs, prompts[b], leaves[b], completions[b][:, own[b]])
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
        if teaching and args.train_vision:
            torch.autograd.backward([features[b] for b in teaching], [leaves[b].grad for b in teaching])
        grad_norm = optimizer.step(lr, args.grad_clip, world)
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
    if record:  # without a KL a group that teaches nothing was not scored: the sampler's log-probs are the same but for rounding
        before = logp_sampled[0][:, own[0]] if logp_old[0] is None else logp_old[0]
        records = token_records(policy, tokenizer, prompts[0], completions[0][:, own[0]], mask[0][:, own[0]], before, logp_ref[0])
        for completion, tokens in zip(rollouts[0]["completions"], records):
            completion |= tokens
        clock("record")
    return sums, grad_norm, rollouts


@torch.no_grad()
def token_records(policy, tokenizer, prompt, completions, mask, before, logp_ref):
    """What a step did to each token of one group, for report.py: one more scoring forward, after the update.

    Args:    completions, mask (G, C); before (G, C): log-probs before the update; logp_ref (G, C) or None.
    Returns: of each completion {"token_texts", "logp": before the update, "logp_change": by it, "kl": before it}.

    Every process does this for its own first group, though one alone writes: where weights are shared out
    over processes, a forward is something that all of them must do together.
    """
    change = policy.call(group_logprobs, prompt, see(policy, [prompt], False)[0], completions)[0] - before
    kl = torch.zeros_like(before) if logp_ref is None else grpo.kl_k3(before, logp_ref)
    values = {"logp": before, "logp_change": change, "kl": kl}
    return [
        {"token_texts": [tokenizer.decode([i]) for i in ids[own].tolist()]}
        | {name: [round(v, 4) for v in x[g][own].tolist()] for name, x in values.items()}
        for g, (ids, own) in enumerate(zip(completions, mask))
    ]


def sft_step(policy, tokenizer, optimizer, batch, prompts, lr, args, world, clock):
    """One step of supervised fine-tuning: raise the log-prob of the true answer.

    loss = − mean over examples of the mean over the answer's tokens of logp. Its gradient is that of the
    GRPO loss (β = 0) of a "group" of one completion that was given, not sampled, with advantage 1.
    """
    loss_sum = tokens = 0.0
    for (_, example), prompt in zip(batch, prompts):
        target = torch.tensor([tokenizer(ideal_answer(example))["input_ids"] + [policy.generation_config.eos_token_id[0]]])
        logp, _ = policy.call(group_logprobs, prompt, see(policy, [prompt], args.train_vision)[0], target)
        loss = -logp.mean() / args.prompts_per_step
        loss.backward()
        loss_sum, tokens = loss_sum + loss.item(), tokens + target.numel()
    grad_norm = optimizer.step(lr, args.grad_clip, world)
    clock("update")
    return {"loss": loss_sum, "tokens": tokens, "prompt_tokens": sum(len(p.ids) for p in prompts)}, grad_norm, []


# ------------------------------------------------------------------------------------------------
# The run
# ------------------------------------------------------------------------------------------------


def training_examples(args, rank, world):
    """(examples of all tasks, names of their data sets, flags for eval.py to ask what was trained). Tasks are mixed in
    proportion to their examples, as in the paper."""
    examples, names, own, other = [], [], [], []
    report = (lambda sentence: print(sentence, file=sys.stderr)) if rank == 0 else (lambda sentence: None)
    for task in args.tasks:
        source = TASKS[task].data
        folder, name = on_first(rank, world, lambda: find_data(source, args.data))
        found = read_dataset(source, "train", folder, report)[: args.examples]
        if found[0].task == task:
            own.append(source)
        else:
            other.append(f"--bench {source} --task {task}")
        examples += posed(found, task)
        names.append(name)
    return examples, ", ".join(dict.fromkeys(names)), [f"--bench {','.join(own)}"] * bool(own) + other


@locks_released()
def train(args):
    """Runs the whole of it. Raises BadInput for what the user can mend."""
    rank, world, device = start_processes(args.device)
    if args.student:
        exercises.install(args.student, show=rank == 0)
    if args.prompts_per_step % world:
        raise BadInput(f"--prompts-per-step {args.prompts_per_step} cannot be shared evenly by {world} processes")
    if args.shard and "WORLD_SIZE" not in os.environ:
        raise BadInput("--shard splits weights over processes: start with torchrun --nproc-per-node N train.py …")
    examples, data_name, tests = training_examples(args, rank, world)
    steps = args.steps or -(-len(examples) // args.prompts_per_step)
    policy, tokenizer, reference = load_models(args, device)
    budget = VideoBudget.of_model(args.model, **vars(args))
    optimizer = MasterAdamW(policy, args.lr, args.offload)
    n_weights, n_trained = (sum(p.numel() for p in policy.parameters() if p.requires_grad or every) for every in (True, False))
    if args.judge:
        rewards.judge = load_judge(args.judge, device)
    model_name = "toy base" if os.path.abspath(args.model) == TOY_MODEL else args.model
    settings = vars(args) | {"steps": steps, "data_name": data_name, "model_name": model_name, "processes": world,
                             "examples": len(examples), "video_budget": vars(budget), "versions": versions()}  # fmt: skip
    room = (args.keep + 1) * 12 * n_trained + 2 * 4 * (n_trained if args.lora else n_weights)  # checkpoints, and the policy while it is replaced
    out, found = on_first(rank, world, lambda: open_run_folder(settings, room))
    here = lambda name: os.path.join(out, name)
    first, counts = 0, {"drawn": 0, "skipped": 0, "dropped": 0, "dropped_in_a_row": 0}
    if found:
        optimizer.load_tensors(read_checkpoint(*found))
        first, counts = found[1]["step"], found[1]["counts"]
    if rank == 0:
        print(f"{args.method} on {args.task}: {model_name}, {n_weights:,} parameters, {n_trained:,} trained; data: {data_name}, {len(examples)} examples; "
              f"{steps} steps on {world} process(es), {device}; run folder {out}{f'; going on after step {first}' if first else ''}")  # fmt: skip
    board = tensorboard(here("tensorboard")) if args.tensorboard and rank == 0 else None
    decoder = Decoder(args.decode_timeout)

    def load_share(step):
        """This process's part of a step: [(k, Example)], their prompts, and what could not be read."""
        batch, prompts, bad = [], [], []
        for k in range(rank * args.prompts_per_step // world, (rank + 1) * args.prompts_per_step // world):
            for example in candidates(examples, step * args.prompts_per_step + k, args.seed):
                try:
                    prompts.append(load_prompt(example, budget, tokenizer, args.think, read=decoder.read))
                    batch.append((k, example))
                    break
                except BadInput as e:
                    bad.append({"step": step + 1, "id": example.id, "why": str(e)})
            else:
                error = BadInput(f"{STAND_INS} examples in a row cannot be read, the last because: {bad[-1]['why']}")
                error.process = rank  # only this process knows about it, so main() lets it speak
                raise error
        return batch, prompts, bad

    def keep_all(step):
        return save_all(out, step, counts, policy, tokenizer, budget, optimizer, settings, args, rank)

    said = set()

    def may_fail(what, work, *given):
        """For what a run can do without (logs, pictures): why it failed is said once, and the run goes on."""
        try:
            work(*given)
        except Exception as e:
            why = f"{what} could not be written ({type(e).__name__}: {first_line(e)})"
            if why not in said:
                bar.write(f"step {step + 1}: {why}; the run goes on", file=sys.stderr)
            said.add(why)

    lines, checked, problems = [], False, []
    if rank == 0 and first:
        lines = read_lines(here("metrics.jsonl"))
    bar = tqdm(total=steps, initial=first, disable=rank != 0, dynamic_ncols=True, unit="step")
    reader = ThreadPoolExecutor(max_workers=1)  # the next step's clips are decoded while this one runs
    step, upcoming = first - 1, None
    if first < steps:  # a run that had ended before --resume takes no step
        upcoming = reader.submit(load_share, first)
    try:
        for step in range(first, steps):
            clock = Clock(device)
            batch, prompts, bad = upcoming.result()
            if step + 1 < steps:
                upcoming = reader.submit(load_share, step + 1)
            for record in bad:
                may_fail("skipped.jsonl", append_line, here("skipped.jsonl"), record)
            clock("data")
            lr = args.lr * min((step + 1) / 5, 1 - 0.9 * step / steps)
            if args.method == "grpo":
                generators = [generator_for(args.seed, step, k, device) for k, _ in batch]
                sums, grad_norm, rollouts = grpo_step(policy, reference, tokenizer, optimizer, batch, prompts, generators, lr, args, world, clock,
                                                       record=step % args.rollouts_every == 0)
            else:
                sums, grad_norm, rollouts = sft_step(policy, tokenizer, optimizer, batch, prompts, lr, args, world, clock)
            gap = largest(sums.pop("sampler_gap", 0.0), device, world)
            sums = add_up(sums | {"drawn": len(batch), "skipped": len(bad), "stop": float(STOP["signal"] is not None)}, device, world)
            first_scored = not checked and sums.get("scored_tokens", 0) > 0
            if first_scored:
                check_sampler(gap, exact=str(device) == "cpu")
                checked = True
            dropped = not np.isfinite(grad_norm)
            counts = {"drawn": counts["drawn"] + sums["drawn"], "skipped": counts["skipped"] + sums["skipped"], "dropped": counts["dropped"] + dropped,
                      "dropped_in_a_row": (counts["dropped_in_a_row"] + 1) * dropped}  # fmt: skip
            last = step + 1 == steps or sums["stop"]
            if rank == 0:
                line = step_metrics(step + 1, sums, grad_norm, lr, clock.seconds, args) | {k: counts[k] for k in ("skipped", "dropped")}
                line |= speed(line, n_weights, n_trained, args, world, device)
                lines.append(line)
                may_fail("metrics.jsonl", append_line, here("metrics.jsonl"), line)
                if board:
                    may_fail("tensorboard", add_scalars, board, line)
                if rollouts and step % args.rollouts_every == 0:
                    may_fail("rollouts.jsonl", append_line, here("rollouts.jsonl"), {"step": step + 1, **rollouts[0]})
            problems = []
            if (step + 1) % args.save_every == 0 or last:  # before anything is shown or drawn
                problems = keep_all(step + 1)
            if rank == 0:
                for problem in problems:
                    bar.write(problem, file=sys.stderr)
                if rollouts and step % 10 == 0 and not args.quiet:
                    width = min(120, shutil.get_terminal_size().columns)
                    may_fail("a group", lambda: bar.write(group_text(step + 1, rollouts[0], width) + "\n"))
                shown = ["reward", *(k for k in line if k.startswith("reward/")), "kl", "length"] if args.method == "grpo" else ["loss"]
                bar.set_postfix({k.removeprefix("reward/").removeprefix(f"{args.task}/"): f"{line[k]:.3g}" for k in shown if line[k] is not None})
                bar.update()
                if first_scored:
                    bar.write(f"step {step + 1}: sampler and scorer agree within {gap:.1e} on every log-prob (sampling token by token, scoring in one forward).\n{HINT * (first == 0)}")
                if (step + 1) % 10 == 0 or last:
                    may_fail("curves.png", draw_curves, out, lines, settings)
            check_counts(counts, here("skipped.jsonl"))
            if sums["stop"]:
                break
    finally:
        reader.shutdown(wait=False, cancel_futures=True)
        decoder.stop()
        bar.close()
    if board:
        may_fail("tensorboard", board.close)
    if problems and rank == 0:  # of the last step: there will be no later save
        raise BadInput(f"the run ended, and its last save failed: {'; '.join(problems)}")
    if rank == 0:
        again = f"the same command with --resume --out {out} goes on" if step + 1 < steps else "\n".join(f"next: python eval.py {flags} --model {out}" for flags in tests)
        print(f"{'done' if step + 1 == steps else f'stopped after step {step + 1}'} in {bar.format_dict['elapsed']:.0f} s; curves: {out}/curves.png; policy: {out}/policy\n{again}")
    if world > 1:
        dist.destroy_process_group()
    if step + 1 < steps:
        sys.exit(128 + (STOP["signal"] or signal.SIGTERM))


def add_scalars(board, line):
    for name, value in line.items():
        if isinstance(value, (int, float)) and name != "step":
            board.add_scalar(name, value, line["step"])


def check_sampler(gap, exact):
    """Stops a run whose sampler and scorer are two different distributions: it would train on tokens that its own policy did not draw."""
    allowed = 1e-3 if exact else 0.5  # nats. bfloat16 keeps 8 bits: a log-prob of -10 may be off by some tenths
    if not gap <= allowed:
        raise BadInput(f"the sampler's and the scorer's log-probs differ by {gap:.3g} (rounding alone explains at most {allowed}): "
                       "positions, masks or weights disagree; please report it with your versions")  # fmt: skip


STOP = {"signal": None}  # set by SIGTERM and SIGINT; the run ends after the step, with a checkpoint


def start():
    """Reads the flags and does what they say; the first signal to stop ends the run after its step."""
    rank = os.environ.get("RANK", "0")

    def stopped(signum, frame):
        if STOP["signal"] is not None:
            print(f"process {rank}: told to stop twice (signal {signum}): the last checkpoint is intact", file=sys.stderr)
            sys.exit(1)
        STOP["signal"] = signum
        print(f"process {rank}: told to stop (signal {signum}): finishing this step, then saving", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)
    args = parse_args()
    plan.show(args) if args.plan else train(args)


def main():
    run_program(start, memory="lower --total-pixels, --max-new-tokens, --group-size or --prompts-per-step, "
                              "or add --recompute or --lora (--plan tells)")  # fmt: skip


if __name__ == "__main__":
    main()
