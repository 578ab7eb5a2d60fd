"""Does everything run on this machine's GPUs, and as fast and as large as the plan says?

    make gpu-check                                     # on a GPU: at most ten minutes on one H100
    python tests/bench/gpu_check.py --device cpu       # the same program at toy size, which CI runs

Each line is a check: what was compared, the figures, pass or FAIL. All of it is written to --out as
JSON, which the docs' table is made from. Exit status 1 if anything failed.

    decoding     the recorded step against the plain one: greedy tokens equal
    sampler      log-probs of sampling against those of scoring, in nats: mean, p99, largest
    kernels      which attention kernels ran, for prompt, completions and vision
    flash-attn   its log-probs against PyTorch's attention, where the package is installed
    toy step     one GRPO step of the toy base: completions, rewards and gradient norm of the CPU's
    3b, 7b       a step of random weights, rank 64, recomputed, the paper's video budget:
                 seconds by phase, decoding against the bandwidth, peak memory beside --plan;
                 left out where the plan says that it does not fit
    sharded      a run on all GPUs (FSDP2) against the same run on one process
    resume       a run killed with SIGKILL and resumed against one that was not
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import common  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from common import ROOT, TOKENIZER, make_policy, make_prompt, real_config, weights_once

import grpo
import train
from annotations.readers import read_dataset
from data import Batch, Example, VideoBudget, load_prompt
from lib import decoding as fast
from lib.adapters import add_adapters, reference_policy
from lib.sharding import recompute_activations
from lib.weights import has_bfloat16
from model import encode_videos, group_logprobs, load
from toy import world
from training import plan
from training.loader import generator_for
from training.log import sampler_gaps
from training.optimizer import MasterAdamW
from training.policy import as_policy, load_models
from training.run import SAMPLER_LIMITS, Clock, timed_grpo_step

PAPER_PROMPT = 3584 + 200  # tokens: the paper's video budget and the words
TOY_RUN = "train.py --task grounding --group-size 4 --dtype float32 --lr 1e-4 --quiet".split()

# Small checks: (passed, what was seen) ------------------------------------------------------------


def toy_prompts(tokenizer, n=4):
    examples = read_dataset("charades", "train", world.ensure("charades"), lambda line: None)[:n]
    budget = VideoBudget.of_model(TOKENIZER)
    return examples, [load_prompt(e, budget, tokenizer) for e in examples]


def sample(model, prompts, greedy=False, G=8, C=48):
    with torch.no_grad():
        features = encode_videos(model, prompts)
    generators = None if greedy else [torch.Generator().manual_seed(b) for b in range(len(prompts))]
    stops = model.generation_config.eos_token_id
    return features, grpo.sample_groups(model, prompts, features, G, C, stops, generators)


def decoding(device):
    model, tokenizer = load(TOKENIZER, device, torch.float32)
    prompts = toy_prompts(tokenizer)[1]
    recorded = []
    record = fast.record
    fast.record = lambda *a: (recorded.append(1), record(*a))[1]
    quick = sample(model, prompts, greedy=True)[1][0]
    can_record, fast.can_record = fast.can_record, lambda device: False
    plain = sample(model, prompts, greedy=True)[1][0]
    fast.record, fast.can_record = record, can_record
    n = min(quick.shape[2], plain.shape[2])
    differ = int((quick[..., :n] != plain[..., :n]).sum())
    how = "recorded and replayed" if recorded else "not recorded on a CPU"
    good = differ == 0 and (bool(recorded) or device == "cpu")
    return good, f"{how}; {differ} of {quick[..., :n].numel()} tokens differ"


def gaps(model, tokenizer):
    prompts = toy_prompts(tokenizer, 8)[1]
    features, (tokens, mask, logp) = sample(model, prompts)
    with torch.no_grad():
        scored = [group_logprobs(model, p, f, c)[0] for p, f, c in zip(prompts, features, tokens)]
    return torch.cat([(a - b)[m].abs() for a, b, m in zip(scored, logp, mask)])


def sampler(device):
    said, good = [], True
    half = torch.bfloat16 if has_bfloat16(device) else torch.float16
    for dtype in (torch.float32, half):
        g = gaps(*load(TOKENIZER, device, dtype))
        mean, p99, worst = float(g.mean()), float(g.quantile(0.99)), float(g.max())
        good &= mean <= SAMPLER_LIMITS[dtype][0] and p99 <= SAMPLER_LIMITS[dtype][1]
        name = str(dtype).removeprefix("torch.")
        figures = f"mean {mean:.1e}, p99 {p99:.1e}, largest {worst:.1e}, {len(g)} tokens"
        said.append(f"{name}: {figures}")
    return good, "; ".join(said)


def kernels(device):
    """Names of one scoring forward's attention kernels: of two layers of the 3B's on a GPU."""
    model = make_policy("3b" if device == "cuda" else "toy", device, layers=2)
    prompt, completions = make_prompt(model, 512), torch.randint(20, 400, (4, 64), device=device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.no_grad(), torch.profiler.profile(activities=activities) as profile:
        group_logprobs(model, prompt, encode_videos(model, [prompt])[0], completions)
    known = ("aten::_scaled_dot_product", "aten::_efficient_attention_forward")
    names = {e.key for e in profile.key_averages()}
    ran = sorted(name for name in names if name.startswith(known) or "fmha" in name)
    return not any("math" in name or "cudnn" in name for name in ran) and bool(ran), ", ".join(ran)


def flash_attn(device):
    if device == "cpu" or importlib.util.find_spec("flash_attn") is None:
        return None, "not installed" if device != "cpu" else "CUDA only"
    plain, tokenizer = load(TOKENIZER, device, torch.bfloat16)
    flash = load(TOKENIZER, device, torch.bfloat16, "flash_attention_2")[0]
    prompts = toy_prompts(tokenizer)[1]
    features, (tokens, mask, _) = sample(plain, prompts)
    with torch.no_grad():
        apart = [
            (group_logprobs(plain, p, f, c)[0] - group_logprobs(flash, p, f, c)[0])[m].abs()
            for p, f, c, m in zip(prompts, features, tokens, mask)
        ]
    mean = float(torch.cat(apart).mean())
    return mean < 0.1, f"mean difference {mean:.1e} nats"


def batch_of(examples, prompts, tokenizer, turn):
    generators = [generator_for(0, turn, k) for k in range(len(prompts))]
    return Batch(examples, prompts, generators, tokenizer)


def one_step(policy, reference, batch, optimizer, args, clock):
    update_weights = lambda: optimizer.step(args.lr, args.grad_clip, 1)
    return timed_grpo_step(policy, reference, batch, args, update_weights, float, clock)


def toy_step(device):
    """The same random numbers on both sides: completions may differ only where two tokens tie."""
    seen = []
    for where in ("cpu", device):
        flags = f"--device {where} --dtype float32 --prompts-per-step 4"
        args = train.parse_args(flags.split())
        policy, tokenizer, reference = load_models(args, where)
        optimizer = MasterAdamW(policy, args.lr)
        batch = batch_of(*toy_prompts(tokenizer), tokenizer, 0)
        groups, norm = one_step(policy, reference, batch, optimizer, args, Clock(where))
        texts = [text for group in groups for text in group.texts]
        reward = float(torch.cat([group.rewards for group in groups]).mean())
        seen.append((texts, reward, norm))
    (a, reward_a, norm_a), (b, reward_b, norm_b) = seen
    same = sum(x == y for x, y in zip(a, b))
    allowed = 1e-3 if same == len(a) else 0.2
    good = same >= 0.9 * len(a) and abs(norm_a - norm_b) <= allowed * norm_a
    return good, (
        f"{same} of {len(a)} completions equal; reward {reward_a:.4f} and {reward_b:.4f}, "
        f"gradient norm {norm_a:.5f} and {norm_b:.5f}"
    )


# A step at full size ------------------------------------------------------------------------------


def big_step(size, device, P, prompts_per_step, max_new_tokens):
    """(passed, {what: figure}) of one GRPO step of random weights, after one to warm up."""
    flags = ["--lora", "64", "--recompute", "--no-train-vision", "--device", device]
    flags += ["--prompts-per-step", str(prompts_per_step), "--max-new-tokens", str(max_new_tokens)]
    if device == "cuda" and not has_bfloat16(device):
        flags += ["--dtype", "float16"]
    args = train.parse_args(flags)
    planned = planned_peak(size, args, P) if device == "cuda" else 0.0
    if planned and planned + 1.5e9 > torch.cuda.get_device_properties(0).total_memory:
        return None, f"planned {planned / 1e9:.1f} GB, which this GPU does not have"
    policy = make_policy(size, device)
    never_sampled = policy.config.video_token_id  # so that completions have their full length
    policy.generation_config.eos_token_id = [never_sampled]
    add_adapters(policy, args.lora)
    recompute_activations(as_policy(policy))
    optimizer = MasterAdamW(policy, args.lr, scaled=args.dtype == "float16")
    examples = [Example("", "grounding", "", "", (0.0, 1.0))] * prompts_per_step
    prompts = [make_prompt(policy, P, seed=k) for k in range(prompts_per_step)]
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: str(len(ids)))
    # Random weights say nothing that earns anything; some reward must differ, or no group teaches.
    pay_anything = lambda task, text, answer, think: {"format": 0.0, "iou": torch.rand(()).item()}
    scored, grpo.score = grpo.score, pay_anything
    first_capture = []
    record = fast.record

    def timed_record(*a):
        began = time.perf_counter()
        step = record(*a)
        torch.cuda.synchronize()
        first_capture.append(time.perf_counter() - began)
        return step

    fast.record = timed_record
    try:
        for turn in range(2):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            clock = Clock(device)
            batch = batch_of(examples, prompts, tokenizer, turn)
            reference = lambda: reference_policy(policy)
            groups, norm = one_step(policy, reference, batch, optimizer, args, clock)
    finally:
        grpo.score, fast.record = scored, record
    figures = {f"{name}, s": seconds for name, seconds in clock.seconds.items()}
    figures["sampler, mean nats"] = float(sampler_gaps(groups).mean())
    figures["gradient norm"] = norm
    figures["graph recorded, s"] = first_capture[-1] if first_capture else 0.0
    if device == "cuda":
        reading = max_new_tokens * weights_once(policy)  # the language model's, once per token
        figures["decoding / floor"] = clock.seconds["sample"] / reading
        figures["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
        figures["--plan, GB"] = planned / 1e9
    return norm > 0, figures


def planned_peak(size, args, P):
    """Bytes of tensors; CUDA itself takes some more."""
    with torch.device("meta"):
        model = add_adapters(Qwen2_5_VLForConditionalGeneration(real_config(size)), args.lora)
    sizes = plan.sizes_of(model, args, 1, P)
    stays, moving = plan.what_stays(sizes, args)[0], plan.comes_and_goes(sizes, args)
    return sum(stays.values()) + max(moving.values())


# Whole runs, in processes of their own ------------------------------------------------------------


def program(processes, *flags):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    several = processes > 1 or "--shard" in flags
    return [sys.executable, *launcher * several, *TOY_RUN, *map(str, flags)]


def finished(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def apart(a, b):
    """Relative distance of the weights of two runs."""
    a, b = (load_file(os.path.join(run, "policy", "model.safetensors")) for run in (a, b))
    return (
        sum(float((a[k].double() - b[k].double()).square().sum()) for k in a)
        / sum(float(a[k].double().square().sum()) for k in a)
    ) ** 0.5


def sharded(device, home):
    n = torch.cuda.device_count() if device == "cuda" else 2
    prompts = -(-8 // n) * n  # of a step, so that 3, 5, 6 or 7 processes share them evenly
    how = ["--device", device, "--steps", 2, "--prompts-per-step", prompts, "--out"]
    one, all_of_them = os.path.join(home, "one"), os.path.join(home, "sharded")
    finished(program(1, *how, one))
    finished(program(n, "--shard", *how, all_of_them))
    distance = apart(one, all_of_them)
    seen = {"processes": n, "prompts": prompts, "weights apart (relative)": distance}
    return distance < 1e-4, seen


def resume(device, home):
    flags = ["--device", device, "--steps", 6, "--save-every", 1, "--resume", "--out"]
    whole, killed = os.path.join(home, "whole"), os.path.join(home, "killed")
    finished(program(1, *flags, whole))
    job = subprocess.Popen(
        program(1, *flags, killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    second = os.path.join(killed, "checkpoints", "step-000002")
    while job.poll() is None and not os.path.isdir(second):
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished(program(1, *flags, killed))
    distance = apart(whole, killed)
    how = "killed after step 2 of 6, resumed"
    return distance < 1e-4, f"{how}: weights {distance:.1e} (relative) from an unkilled run"


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: at toy size")
    p.add_argument("--out", default=os.path.join("runs", "gpu-check.json"), help="the JSON file")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no GPU is to be seen here; --device cpu runs the same checks at toy size")
    cuda = args.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    size = "full size" if cuda else "toy sizes, nothing of a GPU is checked"
    print(f"{where}, torch {torch.__version__}; {size}", flush=True)
    home, checks, began = tempfile.mkdtemp(), [], time.time()

    def check(name, work, *inputs):
        try:
            passed, seen = work(*inputs)
        except Exception as e:  # one check that cannot run must not hide what the others find
            passed, seen = False, f"{type(e).__name__}: {str(e).strip().splitlines()[0][:300]}"
        verdict = {True: "pass", False: "FAIL", None: "left out"}[passed]
        checks.append({"check": name, "verdict": verdict, "seen": seen})
        if isinstance(seen, dict):
            seen = ", ".join(f"{k} {v:.3g}" for k, v in seen.items())
        print(f"{verdict:<8} {name}: {seen}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()

    for small in (decoding, sampler, kernels, flash_attn, toy_step):
        check(small.__name__.replace("_", " "), small, args.device)
    sizes = {"3b": (PAPER_PROMPT, 8, 512), "7b": (PAPER_PROMPT, 8, 512)} if cuda else {
        "toy": (400, 2, 24)}  # fmt: skip
    for name, shape in sizes.items():
        check(f"a step of the {name}", big_step, name, args.device, *shape)
    for whole_run in (sharded, resume):
        check(whole_run.__name__, whole_run, args.device, home)
    shutil.rmtree(home)
    failed = sum(check["verdict"] == "FAIL" for check in checks)
    about = {"device": where, "torch": torch.__version__, "gpus": torch.cuda.device_count()}
    about |= {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - began)}
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump(about | {"checks": checks}, f, indent=1)
    print(f"{len(checks)} checks, {failed} failed; wrote {args.out}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
