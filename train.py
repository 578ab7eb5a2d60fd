"""train.py: the run. GRPO (or SFT, to compare) on one process or many.

    python train.py --task grounding                       # the toy world, on a laptop's CPU
    torchrun --nproc-per-node 2 train.py --task grounding  # the same steps, on two processes
    torchrun --nproc-per-node 8 train.py --task grounding \\
        --model Qwen/Qwen2.5-VL-7B-Instruct --shard --recompute  # the real thing, 8 GPUs, 80 GB
    python train.py --help                                 # every setting and its default

What a run leaves in its folder:

    settings.json     every setting and library version
    metrics.jsonl     one line per step: rewards, KL, entropy, gradient norm, tokens, seconds
    rollouts.jsonl    now and then one group in full: prompt, completions, rewards, advantages, and
                      of each token its log-prob, its change and its KL (tools.report shows them)
    samples.jsonl     what three prompts, always the same, are answered every 25 steps
    curves.png        redrawn every minute
    policy/           the trained model in Hugging Face format, for eval.py or from_pretrained
    checkpoints/      what --resume needs
    skipped.jsonl     examples whose video could not be read, and why

A run that was stopped goes on when the same command is given again with --resume: see
training/checkpoint.py. For models that do not fit: --lora, --recompute, --shard, --offload; see the
rooms lib/ and training/, and --plan, which says what fits.
"""

from functools import partial
from types import SimpleNamespace

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch

from data import VideoBudget
from lib.errors import run_program
from lib.files import locks_released
from lib.identity import fingerprint, hash_of_examples, shown_name
from lib.processes import add_up, on_each, rank, start_processes, world
from lib.weights import room_for_prompt
from tasks import ideal_answer
from training.loader import Loader, training_examples
from training.log import Outcome, outcome_of
from training.optimizer import MasterAdamW, learning_rate
from training.policy import load_models
from training.run import Clock, Run, stop_on_signals, timed_grpo_step
from training.settings import check_processes, parse_args


def sft_step(policy, batch, settings, update_weights, clock):
    """One step of supervised fine-tuning: raise the log-prob of the true answer.

    loss = − mean over examples of the mean over the answer's tokens of logp. Its gradient is that
    of the GRPO loss (β = 0) of a "group" of one completion that was given, not sampled, with
    advantage 1.
    Returns: an Outcome, of this process's share.
    """
    sums = {"loss": 0.0, "tokens": 0, "prompt_tokens": sum(len(p.ids) for p in batch.prompts)}
    end = policy.generation_config.eos_token_id[0]
    for example, prompt in zip(batch.examples, batch.prompts):
        ids = batch.tokenizer(ideal_answer(example))["input_ids"] + [end]
        target = SimpleNamespace(prompt=prompt, completions=torch.tensor([ids]))  # (1, C)
        logp, _ = policy.logprobs(target)
        loss = -logp.mean() / settings.prompts_per_step
        loss.backward()
        sums["loss"] += loss.item()
        sums["tokens"] += len(ids)
    grad_norm = update_weights()
    clock("update")
    return Outcome(sums, grad_norm)


def stand_in(name):
    """The toy data set of a name, rendered where it is not there yet."""
    from toy.world import ensure

    return ensure(name)


@locks_released()
def train(settings):
    """Runs training. Raises BadInput for mistakes that the user can fix."""
    device = start_processes(settings.device)
    if settings.student:
        from course import exercises

        exercises.install(settings.student, show=rank() == 0)
    check_processes(settings, world())
    examples, data_name, tests = training_examples(settings, stand_in)
    steps = settings.steps or -(-len(examples) // settings.prompts_per_step)
    policy, tokenizer, reference = on_each(lambda: load_models(settings, device))
    family = policy.config.model_type
    budget = VideoBudget.of_model(settings.model, family, **vars(settings))
    scaled = settings.dtype == "float16"
    optimizer = MasterAdamW(policy, settings.lr, settings.offload, scaled)
    if settings.judge:
        from annotations.judge import install_judge

        install_judge(settings.judge, device)
    about = {
        "steps": steps,
        "data_name": data_name,
        "model_name": shown_name(settings.model),
        "model_fingerprint": fingerprint(settings.model),
        "examples": len(examples),
        "examples_hash": hash_of_examples(examples),
    }
    run = Run(settings, about, policy, tokenizer, budget, optimizer, device)
    room = room_for_prompt(policy, settings.max_new_tokens)
    loader = Loader(examples, tokenizer, budget, settings, room)
    total = lambda n: add_up({"n": n}, device)["n"]
    try:
        for step, batch in run.batches(loader):
            clock, lr = Clock(device, data=batch.waited), learning_rate(step, steps, settings.lr)
            update_weights = partial(optimizer.step, lr, settings.grad_clip, world())
            if settings.method == "grpo":
                how = (settings, update_weights, total, clock)
                outcome = outcome_of(*timed_grpo_step(policy, reference, batch, *how), settings)
            else:
                outcome = sft_step(policy, batch, settings, update_weights, clock)
            run.log(step, batch, outcome, lr, clock)
            run.save_if_due()
            run.show(step, outcome)
            if run.stopping:
                break
    finally:
        loader.close()
        run.progress.bar.close()
    run.finish([f"next: python eval.py {flags} --model {run.out}" for flags in tests])


def start():
    """Reads the flags and does what they say."""
    stop_on_signals()
    settings = parse_args(description=__doc__)
    if settings.plan:
        from training.plan import show

        show(settings)
    else:
        train(settings)


def main():
    smaller = "--total-pixels, --max-new-tokens, --group-size or --prompts-per-step"
    run_program(start, memory=f"lower {smaller}, or add --recompute or --lora (--plan tells)")


if __name__ == "__main__":
    main()
