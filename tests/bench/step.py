"""Bench 3: one whole GRPO step. Ours against the public trainers' way, and TRL's GRPOTrainer.

    python tests/bench/step.py                # frames of 4, 16 and 36 tokens
    python tests/bench/step.py --trl 1        # TRL as well; installs it into data/trl-venv first
    python tests/bench/step.py --device cuda --config 7b --prompt 1024 3584

The shipped toy base on 8 toy clips, G = 8, at most 64 new tokens, β = 0.04: sampling, rewards,
reference log-probs, policy log-probs, backward, optimizer. The demo looks at frames of 4 tokens;
larger ones bring the prompt nearer to real lengths. All sides sample from the same policy, so
completions are of like length.

With --prompt, weights are random and so are 8 videos of that many tokens: the way to other sizes.

"public" is the step as VideoChat-R1's and other public trainers write it: every prompt and its
video repeated G times, in `generate`, in the reference's forward and in the policy's. TRL takes no
video, so it gets the clip's frames as images, every second one: as many vision tokens as a video of
all of them.
"""

import copy
import inspect
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import torch

from common import (
    ROOT,
    TOKENIZER,
    arguments,
    by_turns,
    make_policy,
    make_prompt,
    repeated_logprobs,
    repeated_sampling,
)

import data
import grpo
import tasks
from annotations.readers import read_dataset
from model import load
from toy import world
from training.loader import generator_for
from training.optimizer import MasterAdamW
from training.policy import as_policy


def ours(policy, reference, tokenizer, batch, prompts, optimizer, args):
    generators = [generator_for(0, 0, k) for k, _ in batch]
    share = data.Batch([e for _, e in batch], prompts, generators, tokenizer)
    update_weights = lambda: optimizer.step(0.0, 1.0, 1)
    frozen = lambda: nullcontext(as_policy(reference))
    return grpo.grpo_step(as_policy(policy), frozen, share, args, update_weights, float)


def public(policy, reference, tokenizer, batch, prompts, optimizer, args):
    """The same step with every prompt repeated.

    Only what is repeated differs: rewards, loss, optimizer are ours.
    """
    G, stop_ids = args.group_size, policy.generation_config.eos_token_id
    completions = repeated_sampling(policy, prompts, G, args.max_new_tokens)  # (B, G, C)
    stops = torch.isin(completions, torch.tensor(stop_ids, device=completions.device)).int()
    mask = stops.cumsum(dim=2) - stops == 0  # up to the first stop token, that one included
    texts = [grpo.completion_texts(c, m, tokenizer, stop_ids) for c, m in zip(completions, mask)]
    total = lambda e, text: sum(tasks.score(e.task, text, e.answer, True).values())
    reward = [[total(e, text) for text in group] for (_, e), group in zip(batch, texts)]
    advantages = grpo.group_advantages(torch.tensor(reward, device=policy.device)).flatten()
    with torch.no_grad():
        logp_ref = repeated_logprobs(reference, prompts, G, completions)
    logp, mask = repeated_logprobs(policy, prompts, G, completions), mask.flatten(0, 1)
    weights = grpo.token_weights(mask, "grpo", args.max_new_tokens, len(mask), int(mask.sum()))
    loss, _ = grpo.policy_loss(
        logp, logp.detach(), logp_ref, advantages, mask, weights, 0.2, 0.2, args.beta
    )
    loss.backward()
    optimizer.step(0.0, 1.0, 1)


SETTINGS = dict(
    task="grounding",
    tasks=["grounding"],
    think=True,
    train_vision=True,
    shard=False,
    group_size=8,
    max_new_tokens=64,
    beta=0.04,
    kl="k3",
    loss="grpo",
    updates_per_rollout=1,
    clip=0.2,
    clip_high=0.2,
    grad_clip=1.0,
    mask_unfinished=False,
)


class NoTokenizer:
    """For random weights of other sizes: whatever they say is nothing, and earns nothing."""

    def decode(self, ids, skip_special_tokens):
        return ""


# TRL, in an environment of its own ----------------------------------------------------------------


def trl_python():
    """The interpreter of data/trl-venv, which is made if it is not there."""
    venv = os.path.join(ROOT, "data", "trl-venv")
    python = os.path.join(venv, "bin", "python")
    if not os.path.isfile(os.path.join(venv, "installed")):
        print("installing TRL into data/trl-venv …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [python, "-m", "pip", "-q", "install"]
        trl = ["torch==2.13.0", "transformers==5.23.0", "trl==1.16.0", "pillow"]
        subprocess.run([*pip, *trl], check=True)
        # With its dependencies it would bring another torch.
        subprocess.run([*pip, "--no-deps", "torchvision==0.28.0"], check=True)
        open(os.path.join(venv, "installed"), "w", encoding="utf-8").close()
    return python


def trl_seconds(examples, budget, args, steps):
    """Median seconds of a GRPOTrainer step on the same clips, in a process of its own, and the mean
    length of its completions."""
    folder = os.path.join(ROOT, "data", "trl-input")
    os.makedirs(folder, exist_ok=True)
    questions, frames = [], {}
    for i, example in enumerate(examples):
        clip = data.read_frames(example.video, budget)
        pixels = clip.pixels[::2]
        if pixels.shape[1] == 3:
            pixels = pixels.permute(0, 2, 3, 1)
        frames[str(i)] = pixels.numpy()
        questions.append(tasks.question_text(example, clip.duration, True))
    np.savez(os.path.join(folder, "frames.npz"), **frames)
    job = {"model": TOKENIZER, "questions": questions, "steps": steps, "folder": folder}
    job |= {name: getattr(args, name) for name in ("group_size", "beta", "max_new_tokens")}
    job |= {"template": TEMPLATE, "threads": torch.get_num_threads()}
    program = f"{inspect.getsource(trl_trainer)}\n{inspect.getsource(trl_rows)}\n"
    program += f"trl_trainer({job!r})"
    done = subprocess.run([trl_python(), "-c", program], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trl_rows(job):
    """TRL's examples and its processor: each frame is an image."""
    import numpy as np
    from PIL import Image
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    frames, rows = np.load(f"{job['folder']}/frames.npz"), []
    for i, question in enumerate(job["questions"]):
        images = [Image.fromarray(frame) for frame in frames[str(i)]]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        rows.append({"prompt": [{"role": "user", "content": content}], "images": images})
    pixels = frames["0"].shape[1] * frames["0"].shape[2]
    return rows, Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": pixels, "longest_edge": pixels}
        ),
        tokenizer=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=job["template"],
    )


def trl_trainer(job):
    """Some steps of GRPOTrainer, timed. Its source is run by data/trl-venv's interpreter."""
    import json
    import statistics
    import time

    import torch

    # torchvision's wheel is built for CUDA; beside a CPU build of torch its operators are missing,
    # which matters at import only. Declaring those that import asks for is enough.
    takes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", takes)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Stopwatch(TrainerCallback):
        ends, lengths = [], []

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "completions/mean_length" in (logs or {}):
                self.lengths.append(logs["completions/mean_length"])

    torch.set_num_threads(job["threads"])
    rows, processor = trl_rows(job)
    settings = GRPOConfig(
        output_dir=f"{job['folder']}/out",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=len(rows) * job["group_size"],
        num_generations=job["group_size"],
        max_completion_length=job["max_new_tokens"],
        **dict(temperature=1.0, top_p=1.0, top_k=0, beta=job["beta"], max_steps=job["steps"]),
        **dict(learning_rate=1e-9, lr_scheduler_type="constant", gradient_checkpointing=False),
        **dict(save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1),
        **dict(loss_type="grpo", scale_rewards="group"),
    )
    watch = Stopwatch()
    # A reward that costs nothing, and differs within a group.
    reward = lambda completions, **kwargs: [float(len(str(c)) % 7) for c in completions]
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": processor}
    how = {"args": settings, "callbacks": [watch], **data}
    GRPOTrainer(model=job["model"], reward_funcs=reward, **how).train()
    seconds = [b - a for a, b in zip(watch.ends, watch.ends[1:])]
    found = {"seconds": statistics.median(seconds), "tokens": statistics.mean(watch.lengths)}
    print(json.dumps(found))


def main():
    args = arguments(
        __doc__,
        "trained unless --prompt is given",
        frame_tokens=([4, 16, 36], "tokens of a pair of frames"),
        prompt=([], "P, with random weights"),
        trl=(0, "1: against TRL too"),
    )
    args.__dict__.update(SETTINGS)
    if args.config != "toy" and not args.prompt:
        sys.exit("error: --config other than toy has random weights: give --prompt 1024, say")
    if args.prompt:
        policy, tokenizer = make_policy(args.config, args.device), NoTokenizer()
        examples = [data.Example("", "grounding", "", "", (0.0, 1.0))] * 8
        cases = [[make_prompt(policy, P, seed=b) for b in range(8)] for P in args.prompt]
    else:
        policy, tokenizer = load(TOKENIZER, args.device)
        examples = read_dataset("charades", "train", world.ensure("charades"))[:8]
        budget = lambda pixels: data.VideoBudget(
            max_frames=64, min_frame_pixels=pixels, max_frame_pixels=pixels
        )
        budgets = [budget(n * 28 * 28) for n in args.frame_tokens]
        cases = [
            [data.load_prompt(e, budget, tokenizer, True) for e in examples] for budget in budgets
        ]
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = MasterAdamW(policy, 0.0)
    batch = list(enumerate(examples))
    print(
        f"{'P':>5}   {'ours':>8} {'public':>8} {'faster':>7}"
        + f"   {'TRL':>8} {'faster':>7}   {'tokens: ours':>12} {'TRL':>5}" * bool(args.trl)
    )
    for k, prompts in enumerate(cases):
        job = (policy, reference, tokenizer, batch, prompts, optimizer, args)
        sides = {"ours": partial(ours, *job), "public": partial(public, *job)}
        t = by_turns(sides, args.repeats, args.device)
        P = sum(len(p.ids) for p in prompts) / len(prompts)
        line = f"{P:>5.0f}   {t['ours']:>6.2f} s {t['public']:>6.2f} s"
        line += f" {t['public'] / t['ours']:>6.1f}×"
        if args.trl and not args.prompt:
            trl = trl_seconds(examples, budgets[k], args, args.repeats + 1)
            tokens = sum(int(g.mask.sum()) for g in ours(*job).groups) / 64
            line += f"   {trl['seconds']:>6.2f} s {trl['seconds'] / t['ours']:>6.1f}×"
            line += f"   {tokens:>12.1f} {trl['tokens']:>5.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
