"""Bench 2: sampling a group. Ours against transformers' `generate(num_return_sequences=G)`.

    python tests/bench/sampling.py
    python tests/bench/sampling.py --device cuda --config 7b

The same prompts (random video, random weights), the same number of new tokens for every completion, both
at temperature 1 from the full distribution, vision included. On CUDA the last column is the time of one
decoding step over the time that reading the weights once takes at the measured memory bandwidth.
"""

import torch

import grpo
from common import (
    arguments,
    by_turns,
    make_policy,
    make_prompt,
    plain_transformers,
    repeated_inputs,
)
from model import encode_videos


def main():
    args = arguments(
        __doc__,
        prompt=([256, 1024, 3584], "P"),
        group=([8], "G"),
        prompts=(1, "B"),
        new_tokens=([64], "tokens of each completion"),
    )
    model = make_policy(args.config, args.device)
    print(
        f"{'P':>5} {'B':>3} {'G':>3} {'new':>4}   {'ours':>8} {'generate':>9} {'faster':>7}"
        + "   step / floor" * (args.device == "cuda")
    )
    for P in args.prompt:
        prompts = [make_prompt(model, P, seed=b) for b in range(args.prompts)]
        for G in args.group:
            for C in args.new_tokens:

                def ours(C=C):
                    with torch.no_grad():
                        features = encode_videos(model, prompts)
                    generators = [torch.Generator().manual_seed(b) for b in range(len(prompts))]
                    tokens, _, _ = grpo.sample_groups(
                        model, prompts, features, G, C, [model.config.video_token_id], generators
                    )
                    assert tokens.shape == (
                        len(prompts),
                        G,
                        C,
                    )  # the stop token is one that is never sampled

                def generate():
                    inputs = repeated_inputs(model, prompts, 1)
                    with plain_transformers(model):
                        out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=G,
                                             max_new_tokens=C, min_new_tokens=C, pad_token_id=model.generation_config.eos_token_id[0])  # fmt: skip
                    assert out.shape == (len(prompts) * G, P + C)

                t = by_turns({"ours": ours, "generate": generate}, args.repeats, args.device)
                print(
                    f"{P:>5} {len(prompts):>3} {G:>3} {C:>4}   {t['ours']:>6.2f} s {t['generate']:>7.2f} s {t['generate'] / t['ours']:>6.1f}×",
                    end="",
                )
                if args.device == "cuda":
                    short = by_turns({"half": lambda: ours(C // 2)}, args.repeats, "cuda")["half"]
                    print(
                        f"   {(t['ours'] - short) / (C - C // 2) / weights_once(model):>6.2f}×",
                        end="",
                    )
                print(flush=True)


def weights_once(model):
    """Seconds to read the language model's weights once, at the bandwidth of a large copy (which reads and writes)."""
    big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copy = by_turns({"copy": lambda: big.clone()}, 5, "cuda")["copy"]
    weights = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    return sum(w.numel() * w.element_size() for w in weights) / (2 * 2**30 / copy)


if __name__ == "__main__":
    main()
