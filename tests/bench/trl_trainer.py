"""Run by step.py in a virtual environment that has TRL: some steps of its GRPOTrainer, timed.

python trl_trainer.py FOLDER       # with step.py's job.json and frames.npz; prints JSON
"""

import json
import os
import sys
import time

import torch

# torchvision's wheel is built for CUDA; beside a CPU build of torch its operators are missing,
# which matters at import only. Declaring those that import asks for is enough.
for operator in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Stopwatch(TrainerCallback):
    def __init__(self):
        self.seconds, self.lengths = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = getattr(self, "ended", time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.ended = time.perf_counter()
        self.seconds.append(self.ended - self.began)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "completions/mean_length" in (logs or {}):
            self.lengths.append(logs["completions/mean_length"])


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as f:
        job = json.load(f)
    torch.set_num_threads(job["threads"])
    frames = np.load(os.path.join(folder, "frames.npz"))
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    pixels = frames["0"].shape[1] * frames["0"].shape[2]
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": pixels, "longest_edge": pixels}
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    rows = []
    for i, question in enumerate(job["questions"]):
        images = [Image.fromarray(frame) for frame in frames[str(i)]]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        rows.append({"prompt": [{"role": "user", "content": content}], "images": images})
    settings = GRPOConfig(
        output_dir=os.path.join(folder, "out"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=len(rows) * job["group_size"],
        num_generations=job["group_size"],
        max_completion_length=job["max_new_tokens"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=job["beta"],
        max_steps=job["steps"],
        learning_rate=1e-9,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        loss_type="grpo",
        scale_rewards="group",
    )
    watch = Stopwatch()

    def reward(completions, **kwargs):
        # Costs nothing, and differs within a group.
        return [float(len(str(c)) % 7) for c in completions]

    GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        callbacks=[watch],
    ).train()
    print(
        json.dumps({
            "seconds": float(np.median(watch.seconds[1:])),
            "tokens": float(np.mean(watch.lengths)),
        })
    )


if __name__ == "__main__":
    main()
