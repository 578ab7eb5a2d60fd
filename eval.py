"""eval.py: benchmarks, and questions about one's own video.

    python eval.py --bench charades                                    # the toy base on the toy stand-in, unless data/charades exists
    python eval.py --bench charades --model assets/toy-base runs/demo  # before and after, in one table
    python eval.py --bench charades --model Qwen/Qwen2.5-VL-7B-Instruct --data data/charades
    python eval.py --bench charades --model runs/demo --blind          # frames replaced by grey: what it knows without looking
    python eval.py --video clip.mp4 --ask "When does the red circle appear?"

A score is worth as much as what is known about how it was made. Each is saved in results.json with the
prompt, frames, pixels, decoding, seed, versions, data and weights it was made with, and every single
answer stands in predictions.jsonl. A model that was not trained is scored by the same code under the
same settings. Whatever cannot be read as an answer counts as wrong; nothing is left out of the mean.

An evaluation that was interrupted continues where it stopped when the same command is given again.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see train.py

import torch
from tqdm import tqdm

import data
import grpo
import rewards
from data import BadInput, VideoBudget
from model import ATTENTION, encode_videos, load
from train import TOY_MODEL, append_line, versions

THRESHOLDS = (0.3, 0.5, 0.7)

# ------------------------------------------------------------------------------------------------
# Which model, which data
# ------------------------------------------------------------------------------------------------


def find_model(name):
    """A run folder, a model folder or a hub name → (what `load` takes, name to show, the run's settings or {})."""
    settings_file = os.path.join(name, "settings.json")
    if os.path.isfile(settings_file):
        policy = os.path.join(name, "policy")
        if not os.path.isdir(policy):
            raise BadInput(f"run folder {name} has no policy/ yet: the run has not saved one; see --save-every of train.py")
        with open(settings_file) as f:
            settings = json.load(f)
        return policy, f"{settings['model_name']} + {settings['method'].upper()} ({name})", settings
    return name, "toy base" if os.path.abspath(name) == TOY_MODEL else name, {}


def find_charades(folder):
    """(folder, name to show) of --data, of data/charades, or of the toy stand-in."""
    if folder:
        return folder, folder
    if os.path.isdir("data/charades"):
        return "data/charades", "Charades-STA (data/charades)"
    print("data/charades is not here: using the toy stand-in; every figure below is of the toy world. "
          "For the real one see `--data` in `python eval.py --help`.")  # fmt: skip
    import toy

    return toy.ensure_charades(), "toy Charades (made up)"


def fingerprint(folder):
    """Names, sizes and times of a local model's weight files: predictions of other weights must not be continued."""
    if not os.path.isdir(folder):
        return folder
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    stats = [os.stat(os.path.join(folder, f)) for f in files]
    return [[f, s.st_size, int(s.st_mtime)] for f, s in zip(files, stats)]


# ------------------------------------------------------------------------------------------------
# Grounding: answers and metrics
# ------------------------------------------------------------------------------------------------


def answer_all(model, tokenizer, examples, budget, think, blind, max_new_tokens, batch_size, path):
    """Answers the examples that `path` (predictions.jsonl) does not hold yet, greedily, and appends them to it.

    Returns all predictions as a dict id → record. An example whose video cannot be read is recorded with
    its error and counts as wrong.
    """
    done = {}
    if os.path.isfile(path):
        with open(path) as f:
            for line in f:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that was being written when the last call was killed
                done[record["id"]] = record
        with open(path, "w") as f:
            f.writelines(json.dumps(record) + "\n" for record in done.values())
    todo = [e for e in examples if e.id not in done]
    stop_ids = model.generation_config.eos_token_id
    bar = tqdm(total=len(examples), initial=len(examples) - len(todo), desc="answering", unit="query", dynamic_ncols=True)
    for i in range(0, len(todo), batch_size):
        readable, prompts = [], []
        for example in todo[i:i + batch_size]:
            try:
                prompts.append(data.load_prompt(example, budget, tokenizer, think, blind))
                readable.append(example)
            except BadInput as e:
                done[example.id] = {"id": example.id, "text": None, "error": str(e), "prediction": None, "answer": example.answer, "iou": 0.0, "format": 0.0}
                append_line(path, done[example.id])
        texts = []
        if prompts:
            with torch.no_grad():
                features = encode_videos(model, prompts)
            completions, mask, _ = grpo.sample_groups(model, prompts, features, 1, max_new_tokens, stop_ids)
            texts = data.completion_texts(completions[:, 0], mask[:, 0], tokenizer, stop_ids)
        for example, text in zip(readable, texts):
            prediction = rewards.parse_interval(rewards.answer_of(text))
            record = {"id": example.id, "video": example.video, "question": example.question, "answer": example.answer,
                      "text": text, "prediction": prediction, **rewards.score("grounding", text, example.answer, think)}  # fmt: skip
            append_line(path, record)
            done[example.id] = record
        bar.update(min(batch_size, len(todo) - i))
    bar.close()
    return {e.id: done[e.id] for e in examples}


def grounding_metrics(records):
    """mIoU, R@1 at IoU 0.3, 0.5 and 0.7 (share of answers with at least that IoU), format and unparsable, all in percent.

    >>> grounding_metrics([{"iou": 0.6, "format": 1.0, "prediction": (1, 2)}, {"iou": 0.0, "format": 0.0, "prediction": None}])
    {'mIoU': 30.0, 'R@0.3': 50.0, 'R@0.5': 50.0, 'R@0.7': 0.0, 'format': 50.0, 'unparsable': 50.0}
    """
    n = len(records)
    line = {"mIoU": 100 * sum(r["iou"] for r in records) / n}
    line |= {f"R@{t}": 100 * sum(r["iou"] >= t for r in records) / n for t in THRESHOLDS}
    return line | {"format": 100 * sum(r["format"] for r in records) / n, "unparsable": 100 * sum(r["prediction"] is None for r in records) / n}


def draw_intervals(path, records, title, rows=14):
    """predictions.png: the first queries, each a time axis with the true interval above the predicted one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = records[:rows]
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(shown) + 1.3), layout="constrained")
    for row, r in enumerate(shown):
        start, end = r["answer"]
        axis.barh(row - 0.17, end - start, 0.3, start, color="tab:green")
        if r["prediction"] is None:
            axis.text(0.1, row + 0.17, "no readable answer", va="center", fontsize=7, color="tab:red")
        else:
            start, end = r["prediction"]
            axis.barh(row + 0.17, max(end - start, 0.05), 0.3, start, color="tab:orange")
    axis.set_yticks(range(len(shown)), [f"{r.get('question', r['id'])[:52]}   {100 * r['iou']:.0f}" for r in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds   (number beside each query: IoU in percent)", fontsize=8)
    axis.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=t) for c, t in (("tab:green", "true"), ("tab:orange", "predicted"))],
                loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=8, frameon=False)  # fmt: skip
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bench_charades(name, folder, data_name, args):
    """Evaluates one model; returns its row of the table."""
    path, shown, run = find_model(name)
    budget = VideoBudget.of_model(path, **vars(args))
    think = args.think if args.think is not None else run.get("think", True)
    max_new_tokens = args.max_new_tokens or run.get("max_new_tokens") or (64 if shown == "toy base" else 1024)
    examples = data.charades_examples(folder, "test")[: args.limit]
    missing = [e.video for e in examples if not os.path.isfile(e.video)]
    if missing:
        raise BadInput(f"{len(set(missing))} of the clips are missing, the first is {missing[0]}. {data.CHARADES_HELP}; --limit N takes the first N queries only")
    settings = {
        "bench": "charades", "data": folder, "data_name": data_name, "queries": len(examples), "model": path, "model_name": shown,
        "weights": fingerprint(path), "think": think, "blind": args.blind, "decoding": "greedy", "max_new_tokens": max_new_tokens,
        "video_budget": vars(budget), "prompt": data.question_text(examples[0], 30.0, think), "device": args.device, "versions": versions(),
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))
    out = args.out or os.path.join(name if run else os.path.join("runs", "eval", os.path.basename(os.path.normpath(name))), "eval-charades" + "-blind" * args.blind)
    predictions_path, settings_path = os.path.join(out, "predictions.jsonl"), os.path.join(out, "settings.json")
    if os.path.isfile(settings_path):
        with open(settings_path) as f:
            before = json.load(f)
        if before != settings:
            changed = ", ".join(k for k in settings if before.get(k) != settings[k])
            print(f"{out} holds predictions made with other settings ({changed}): starting anew", file=sys.stderr)
            if os.path.isfile(predictions_path):
                os.remove(predictions_path)
    try:
        os.makedirs(out, exist_ok=True)
        with open(settings_path, "w") as f:
            json.dump(settings, f, indent=2)
    except OSError as e:
        raise BadInput(f"cannot write to --out {out}: {e.strerror}") from e

    model, tokenizer = load(path, args.device, attn=args.attn)
    print(f"model: {shown}   data: {data_name}, {len(examples)} queries   frames: {budget.fps:g} a second, at most {budget.max_frames}"
          f"   think: {think}   decoding: greedy{'   BLIND: all frames grey' if args.blind else ''}")  # fmt: skip
    records = list(answer_all(model, tokenizer, examples, budget, think, args.blind, max_new_tokens, args.batch_size, predictions_path).values())
    metrics = grounding_metrics(records)
    failed = [r for r in records if "error" in r]
    for r in failed[:5]:
        print(f"counted as wrong: {r['error']}", file=sys.stderr)
    with open(os.path.join(out, "results.json"), "w") as f:
        json.dump({"metrics": metrics, "failed": [r["id"] for r in failed], "settings": settings}, f, indent=2)
    draw_intervals(os.path.join(out, "predictions.png"), records, f"{shown}\non {data_name}{', BLIND' * args.blind}: mIoU {metrics['mIoU']:.1f}")
    print(f"wrote {out}/: results.json, predictions.jsonl, predictions.png\n")
    return shown + ", blind" * args.blind, metrics


def print_table(rows, data_name):
    """The rows [(name, metrics)]; with two models also their difference. Toy figures say so in every column."""
    names = list(rows[0][1])
    toy = "toy " if any("toy" in text for text in (data_name, *(name for name, _ in rows))) else ""
    if len(rows) == 2:
        rows = rows + [("difference", {k: rows[1][1][k] - rows[0][1][k] for k in names})]
    width = max(len(name) for name, _ in rows)
    columns = [max(7, len(toy + k)) for k in names]
    print(f"temporal grounding on {data_name}, in percent:")
    print(" " * width, *(f"{toy + k:>{c}}" for k, c in zip(names, columns)), sep="  ")
    for name, metrics in rows:
        sign = "+" if name == "difference" else ""
        print(f"{name:<{width}}", *(f"{metrics[k]:>{sign}{c}.1f}" for k, c in zip(names, columns)), sep="  ")


# ------------------------------------------------------------------------------------------------
# A question about one's own video
# ------------------------------------------------------------------------------------------------


def ask(args):
    """Answers --ask about --video, printing the answer as it is decoded."""
    path, shown, run = find_model(args.model[0])
    model, tokenizer = load(path, args.device, attn=args.attn)
    video = data.load_video(args.video, VideoBudget.of_model(path, **vars(args)), args.blind)
    t, h, w = video.grid
    print(f"[{shown}; {video.duration:.1f} s of video as {2 * t} frames of {w * data.PATCH} × {h * data.PATCH} pixels, {video.n_tokens} tokens]")
    prompt = data.build_prompt(args.ask, video, tokenizer)
    said, printed = [], ""

    def stream(token):
        nonlocal printed
        said.append(int(token[0]))
        text = tokenizer.decode(said, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            print(text[len(printed):], end="", flush=True)
            printed = text

    with torch.no_grad():
        features = encode_videos(model, [prompt])
    grpo.sample_groups(model, [prompt], features, 1, args.max_new_tokens or 256, model.generation_config.eos_token_id, on_token=stream)
    print()


# ------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    g = p.add_argument_group("a benchmark")
    g.add_argument("--bench", help="charades: temporal grounding on Charades-STA's test split")
    g.add_argument("--data", help=f"folder of the data set. {data.CHARADES_HELP}")
    g.add_argument("--limit", type=int, help="only the first so many queries")
    g.add_argument("--out", help="folder for predictions and results (default: inside the run, or runs/eval/MODEL)")
    g = p.add_argument_group("or a question about one's own video")
    g.add_argument("--video", help="a video file")
    g.add_argument("--ask", help="the question")
    g = p.add_argument_group("model and decoding (always greedy)")
    g.add_argument("--model", nargs="+", default=[TOY_MODEL], help="run folders of train.py, local model folders or hub names (default: the toy base)")
    g.add_argument("--think", action=argparse.BooleanOptionalAction, default=None, help="ask for a <think> block (default: as the run was trained, else yes)")
    g.add_argument("--blind", action="store_true", help="replace every frame by grey")
    g.add_argument("--max-new-tokens", type=int, help="longest answer (default: as the run was trained)")
    g.add_argument("--batch-size", type=int, default=16, help="queries answered together")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    g.add_argument("--attn", default="sdpa", choices=ATTENTION, help="sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA")
    data.add_budget_flags(p)
    args = p.parse_args(argv)
    if (args.bench is None) == (args.video is None):
        raise BadInput("give either --bench charades, or --video FILE with --ask \"…\"")
    if args.bench not in (None, "charades"):
        raise BadInput(f"--bench {args.bench} is unknown; there is: charades")
    if args.video and not args.ask:
        raise BadInput("--video needs a question: --ask \"…\"")
    for name in ("limit", "batch_size", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1")
    if args.out and len(args.model) > 1:
        raise BadInput("--out is one folder; with several models leave it away, each gets its own")
    return args


def main():
    try:
        args = parse_args()
        if args.video:
            return ask(args)
        folder, data_name = find_charades(args.data)
        print_table([bench_charades(name, folder, data_name, args) for name in args.model], data_name)
    except BadInput as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues where it stopped")
    except (torch.OutOfMemoryError, MemoryError):
        sys.exit("error: out of memory: lower --batch-size, --total-pixels or --max-new-tokens")


if __name__ == "__main__":
    main()
