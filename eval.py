"""eval.py: benchmarks, and questions about one's own video.

    python eval.py --bench charades                                    # the toy base on the toy stand-in, unless data/charades exists
    python eval.py --bench all --model assets/toy-base runs/joint      # before and after, every benchmark, one table
    python eval.py --bench charades --model Qwen/Qwen2.5-VL-7B-Instruct --data data/charades
    torchrun --nproc-per-node 8 eval.py --bench mvbench,videomme       # questions shared out, each counted once
    python eval.py --bench charades --model runs/demo --blind          # frames replaced by grey: what it knows without looking
    python eval.py --bench nextgqa --model runs/joint --clues          # answer, look again where the answer pointed, answer again
    python eval.py --bench charades --compare runs/sft runs/grpo       # of two evaluations: the difference, and how sure it is
    python eval.py --video clip.mp4 --ask "When does the red circle appear?"

A score is worth as much as what is known about how it was made. Each is saved in results.json with the
prompt, frames, pixels, decoding, versions, data and weights it was made with, and every single
answer stands in predictions.jsonl. A model that was not trained is scored by the same code under the
same settings. Whatever cannot be read as an answer counts as wrong; nothing is left out of the mean.

An evaluation that was interrupted continues where it stopped when the same command is given again.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import replace
from datetime import timedelta

import runtime.threads  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import grpo
import rewards
from annotations.judge import load_judge
from annotations.readers import DATASETS, find_data, read_dataset
from data import VideoBudget, load_prompt
from model import ATTENTION, encode_videos
from runtime.decoder import Decoder
from runtime.errors import NUMBER, BadInput, check_flags, first_line, read_object, run_program
from runtime.folders import (
    append_line,
    expect_kind,
    kind_of,
    locks_released,
    read_lines,
    remove_lines,
    set_aside,
    take,
)
from runtime.metrics import versions
from runtime.models import load
from runtime.processes import on_each, on_first, start_processes
from runtime.settings import TOY_MODEL
from runtime.shown import plt
from tasks import TASKS, as_task, longest_answer, question_text, score
from toy.world import ensure

# ------------------------------------------------------------------------------------------------
# Which model, which data
# ------------------------------------------------------------------------------------------------


def find_model(name):
    """A run folder, a model folder or a hub name → (what `load` takes, name to show, the run's settings or {})."""
    settings_file = os.path.join(name, "settings.json")
    if kind_of(name) == "evaluation":
        raise BadInput(
            f"--model {name} is an evaluation of eval.py: give the run or the model that was evaluated"
        )
    if os.path.isfile(settings_file):
        policy = os.path.join(name, "policy")
        if not os.path.isdir(policy):
            raise BadInput(
                f"run folder {name} has no policy/ yet: the run has not saved one; see --save-every of train.py"
            )
        try:
            settings = read_object(
                settings_file, model_name=str, method=str, think=bool, max_new_tokens=int
            )
        except BadInput as e:
            raise BadInput(f"{e}; --model {policy} evaluates the weights without it") from e
        return policy, f"{settings['model_name']} + {settings['method'].upper()} ({name})", settings
    return name, "toy base" if os.path.abspath(name) == TOY_MODEL else name, {}


def fingerprint(folder):
    """Names, sizes and times of a local model's weight files: predictions of other weights must not be continued."""
    if not os.path.isdir(folder):
        return folder
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    stats = [os.stat(os.path.join(folder, f)) for f in files]
    return [[f, s.st_size, int(s.st_mtime)] for f, s in zip(files, stats)]


def digest(examples):
    """Of what is asked, and what is right: answers to other questions must not be continued either."""
    return hashlib.sha1(
        repr([(e.id, e.question, e.options, e.answer, e.span) for e in examples]).encode()
    ).hexdigest()


# ------------------------------------------------------------------------------------------------
# Answers
# ------------------------------------------------------------------------------------------------


def read_predictions(path):
    """predictions.jsonl as {id: record}, without a line that was being written when a call was killed, or is damaged."""
    wanted = dict(id=str, group=str, text=str, format=NUMBER)
    return {record["id"]: record for record in read_lines(path, **wanted) if "answer" in record}


def answered(path):
    """The ids in predictions.jsonl, which is cleaned of a half-written last line, so that more can be appended, and of
    questions whose video could not be read: it may be there by now."""
    done = {id for id, record in read_predictions(path).items() if "error" not in record}
    if os.path.exists(path):
        remove_lines(path, lambda record: record.get("id") in done and "error" not in record)
    return done


def answer_all(
    model, tokenizer, examples, budget, think, blind, max_new_tokens, batch_size, path, bar, decoder
):
    """Answers examples greedily and appends a record of each to `path` (predictions.jsonl).

    An example whose video cannot be read is recorded with its error and counts as wrong.
    """
    stop_ids = model.generation_config.eos_token_id
    for i in range(0, len(examples), batch_size):
        readable, prompts = [], []
        for e in examples[i : i + batch_size]:
            record = {
                "id": e.id,
                "group": e.group,
                "video": e.video,
                "question": e.question,
                "answer": e.answer,
            }
            try:
                prompts.append(load_prompt(e, budget, tokenizer, think, blind, read=decoder.read))
                readable.append((e, record))
            except BadInput as error:
                append_line(
                    path,
                    record
                    | {"text": "", "error": str(error), **score(e.task, "", e.answer, think)},
                )
        if prompts:
            with torch.no_grad():
                features = encode_videos(model, prompts)
            completions, mask, _ = grpo.sample_groups(
                model, prompts, features, 1, max_new_tokens, stop_ids
            )
            texts = grpo.completion_texts(completions[:, 0], mask[:, 0], tokenizer, stop_ids)
            for (e, record), prompt, text in zip(readable, prompts, texts):
                append_line(
                    path,
                    record
                    | {
                        "text": text,
                        "seconds": prompt.duration,
                        **score(e.task, text, e.answer, think),
                    },
                )
        bar.update(min(batch_size, len(examples) - i))


def second_look(examples, records, budget):
    """--clues: the same questions about the interval that each first answer named, with twice the frames a second and
    twice the pixels a frame, as far as --total-pixels allows.

    (VideoChat-R1's "temporal clue-driven reasoning".) An answer that named no interval, or one beyond the video's end,
    keeps the whole video. A shorter interval than two seconds is widened to that, as far as the video goes; several
    intervals are taken as one, from the first start to the last end.
    """
    again = []
    for e in examples:
        found = rewards.merged(
            rewards.parse_intervals(rewards.inside(records[e.id]["text"], "glue")) or []
        )
        span, duration = e.span, records[e.id].get("seconds", 0.0)
        if found and found[0][0] < duration:
            start, end, offset = (
                found[0][0],
                min(found[-1][1], duration),
                e.span[0] if e.span else 0.0,
            )
            middle, half = (start + end) / 2, max(1.0, (end - start) / 2)
            span = (offset + max(0.0, middle - half), offset + min(duration, middle + half))
        again.append(replace(e, span=span))
    finer = replace(
        budget,
        fps=2 * budget.fps,
        max_frame_pixels=2 * budget.max_frame_pixels,
        min_frame_pixels=2 * budget.min_frame_pixels,
    )
    return again, finer


def draw_intervals(path, records, title, rows=14):
    """predictions.png: the first queries, each a time axis with the true interval above the predicted one."""
    shown = records[:rows]
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(shown) + 1.3), layout="constrained")
    for row, r in enumerate(shown):
        start, end = r["answer"]
        prediction = rewards.parse_interval(rewards.inside(r["text"], "answer"))
        axis.barh(row - 0.17, end - start, 0.3, start, color="tab:green")
        if prediction is None:
            axis.text(
                0.1, row + 0.17, "no readable answer", va="center", fontsize=7, color="tab:red"
            )
        else:
            start, end = prediction
            axis.barh(row + 0.17, max(end - start, 0.05), 0.3, start, color="tab:orange")
    axis.set_yticks(
        range(len(shown)),
        [f"{r['question'][:52]}   {100 * r['iou']:.0f}" for r in shown],
        fontsize=8,
    )
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


PATIENCE = timedelta(
    days=7
)  # shares of long videos are unequal, and who has finished waits; torchrun ends those of a dead process
MISSING = 0.1  # Some clips of most benchmarks can no longer be had. Where more than this share is not there, the folder is wrong.


def metrics_of(task, records):
    """The task's metrics, with the share of right forms; all in percent."""
    try:
        return TASKS[task].metrics(records) | {
            "format": 100 * sum(r["format"] for r in records) / len(records)
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise BadInput(f"the predictions cannot be scored, so predictions.jsonl is damaged ({type(e).__name__}: {first_line(e)}): "
                       "move it away and give the same command again") from e  # fmt: skip


@locks_released()
def bench(bench_name, name, args, rank, world, device):
    """Evaluates one model on one benchmark. Returns (name of the model, name of the data, metrics) on process 0, None on the others."""
    path, shown, run = find_model(name)
    budget = VideoBudget.of_model(path, **vars(args))
    think = args.think if args.think is not None else run.get("think", True)
    folder, data_name = on_first(rank, world, lambda: find_data(bench_name, args.data, ensure))
    left_out = []  # what the reader cannot use, said in its words
    examples = read_dataset(bench_name, "test", folder, left_out.append)[: args.limit]
    if rank == 0:
        print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    videos = {e.video for e in examples}
    missing = {video for video in videos if not os.path.exists(video)}
    sentence = f"{len(missing)} of the {len(videos)} videos of {bench_name} are missing, the first is {min(missing, default=None)}"
    if len(missing) > MISSING * len(videos):
        raise BadInput(
            f"{sentence}. {bench_name} is: {DATASETS[bench_name].source}; --limit N takes the first N questions only"
        )
    if missing and rank == 0:
        print(f"WARNING: {sentence}; questions about them count as wrong", file=sys.stderr)
    own_task = examples[0].task
    task = task_asked(bench_name, own_task, args)
    examples = as_task(examples, task)
    usual = longest_answer((run or {"model_name": shown})["model_name"] == "toy base", [task])
    max_new_tokens = args.max_new_tokens or max(usual, run.get("max_new_tokens", 0))
    settings = {
        "bench": bench_name, "data": folder, "data_name": data_name, "task": task, "questions": len(examples), "asked": digest(examples), "model": path, "model_name": shown,
        "weights": fingerprint(path), "think": think, "blind": args.blind, "clues": args.clues, "judge": args.judge, "decoding": "greedy", "max_new_tokens": max_new_tokens,
        "video_budget": vars(budget), "prompt": question_text(examples[0], 30.0, think), "device": args.device, "versions": versions(),
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))
    out = args.out or os.path.join(
        name if run else os.path.join("runs", "eval", os.path.basename(os.path.normpath(name))),
        evaluation_folder(bench_name, own_task, args),
    )
    on_first(rank, world, lambda: open_evaluation(out, settings))
    if rank == 0:
        print(f"model: {shown}   data: {data_name}, {len(examples)} questions   frames: {budget.fps:g} a second, at most {budget.max_frames}"
              f"   think: {think}   decoding: greedy{'   BLIND: all frames grey' if args.blind else ''}")  # fmt: skip
    model, tokenizer = on_each(world, lambda: load(path, device, attn=args.attn))
    decoder = Decoder(args.decode_timeout)

    def answers(file_name, asked, seen):
        """All records of one round of questions, in their order; what the file holds already is not asked again."""
        predictions = os.path.join(out, file_name)
        done = on_first(rank, world, lambda: answered(predictions))
        mine = [e for e in asked if e.id not in done][
            rank::world
        ]  # shared out by number: each question is answered by one process
        with tqdm(
            total=len(mine),
            desc=f"answering {bench_name}",
            unit="question",
            dynamic_ncols=True,
            disable=rank != 0,
        ) as bar:
            on_each(
                world,
                lambda: answer_all(
                    model,
                    tokenizer,
                    mine,
                    seen,
                    think,
                    args.blind,
                    max_new_tokens,
                    args.batch_size,
                    predictions,
                    bar,
                    decoder,
                ),
            )
        found = read_predictions(predictions)
        return [found[e.id] for e in asked]

    records = first = answers("predictions.jsonl", examples, budget)
    if args.clues:
        records = answers(
            "predictions-second-look.jsonl",
            *second_look(examples, {r["id"]: r for r in first}, budget),
        )
    decoder.stop()
    if rank == 0:
        failed = [r for r in records if "error" in r]
        unread = [r["id"] for r in records if "error" not in r and not r["format"]]
        for r in failed[:5]:
            print(f"counted as wrong: {r['id']}: {r['error']}", file=sys.stderr)
        if failed or unread:
            print(
                f"{len(failed)} questions are about videos that could not be read, {len(unread)} answers are not in the form that was asked for; {out}/results.json lists them",
                file=sys.stderr,
            )
        metrics = metrics_of(task, records)
        if args.clues:
            metrics = {
                "accuracy, first look": metrics_of(task, first)["accuracy"],
                "accuracy": metrics["accuracy"],
                "format": metrics["format"],
            }
        results = {
            "metrics": metrics,
            "failed": [r["id"] for r in failed],
            "not in the form": unread,
            "left out": left_out,
            "settings": settings,
        }
        write_object(os.path.join(out, "results.json"), results)
        if task == "grounding":
            title = f"{shown}\non {data_name}{', BLIND' * args.blind}: mIoU {metrics['mIoU']:.1f}"
            try:
                draw_intervals(os.path.join(out, "predictions.png"), records, title)
            except Exception as e:  # a picture is no reason to lose a score
                print(
                    f"predictions.png could not be drawn ({type(e).__name__}: {first_line(e)})",
                    file=sys.stderr,
                )
        print(f"wrote {out}/\n")
        return shown + ", blind" * args.blind, data_name, metrics
    return None


def task_asked(bench_name, own_task, args):
    """As which task a benchmark's questions are asked: its own, or another of the same data (--task, --clues)."""
    task = "gqa" if args.clues else args.task or own_task
    if args.clues and own_task not in ("qa", "gqa"):
        raise BadInput(f"--clues asks a multiple-choice question twice; {bench_name} has none")
    if args.clues and args.task:
        raise BadInput(
            "--clues asks for the answer and its seconds, the task gqa: leave --task away"
        )
    if task == "gqa" and own_task == "qa" and not args.clues:
        raise BadInput(f"--task gqa: no seconds are annotated in {bench_name}")
    if TASKS[task].data != TASKS[own_task].data:
        raise BadInput(
            f"--task {task} is asked about {TASKS[task].data}; the questions of {bench_name} are of the task {own_task}"
        )
    return task


def evaluation_folder(bench_name, own_task, args):
    other = f"-{args.task}" if args.task not in (None, own_task) else ""
    return f"eval-{bench_name}" + other + "-blind" * args.blind + "-clues" * args.clues


def open_evaluation(out, settings):
    """Makes the folder and locks it. Predictions from other settings are moved aside: only like is continued."""
    settings_path = os.path.join(out, "settings.json")
    try:
        there = expect_kind(out, "evaluation")
        os.makedirs(out, exist_ok=True)
        take(out)
        if there:
            try:
                before = read_object(settings_path)
                changed = [k for k in settings if before.get(k) != settings[k]]
            except BadInput as e:
                print(f"{e}", file=sys.stderr)
                changed = ["settings.json is damaged"]
            if changed:
                aside = set_aside(out)
                print(
                    f"{out} holds predictions made with other settings ({', '.join(changed)}): starting anew, they are now in {aside}/",
                    file=sys.stderr,
                )
        write_object(settings_path, settings | {"kind": "evaluation"})
    except OSError as e:
        raise BadInput(f"cannot write to --out {out}: {e.strerror}") from e


def write_object(path, content):
    """A .json file, complete or not there."""
    try:
        with open(path + ".partial", "w", encoding="utf-8") as f:
            json.dump(content, f, indent=2)
        os.replace(path + ".partial", path)
    except OSError as e:
        raise BadInput(f"{path} cannot be written: {e.strerror}") from e


def print_table(columns):
    """columns: [(name of the model, {benchmark: (name of the data, metrics)})]; with two, also their difference.

    A figure of the toy world says so in its line.
    """
    if len(columns) == 2:
        (_, a), (_, b) = columns
        columns = columns + [
            (
                "difference",
                {
                    k: (a[k][0], {m: b[k][1][m] - v for m, v in a[k][1].items() if m in b[k][1]})
                    for k in a
                },
            )
        ]
    toy_model = any("toy" in name for name, _ in columns)
    lines = []
    for bench_name, (data_name, metrics) in columns[0][1].items():
        for metric in metrics:
            label = (
                f"toy {bench_name} {metric}"
                if "toy" in data_name
                else f"{bench_name} {metric}" + " (toy model)" * toy_model
            )
            values = [results[bench_name][1].get(metric) for _, results in columns]
            lines.append((
                label,
                [
                    "–" if v is None else f"{v:+.1f}" if name == "difference" else f"{v:.1f}"
                    for v, (name, _) in zip(values, columns)
                ],
            ))
    width = max(len(label) for label, _ in lines)
    print("in percent, on: " + "; ".join(data_name for data_name, _ in columns[0][1].values()))
    print(" " * width, *(name for name, _ in columns), sep="  ")
    for label, values in lines:
        print(
            f"{label:<{width}}",
            *(f"{v:>{len(name)}}" for v, (name, _) in zip(values, columns)),
            sep="  ",
        )


def compare(bench_name, run_a, run_b, args, samples=10_000):
    """Prints each metric of two evaluations of the same questions, its difference, and a 95 % interval of that.

    Paired bootstrap: questions are drawn with replacement, the same ones for both models, and the difference
    is taken anew each time. An interval that holds 0 says that these questions cannot tell the two apart.
    """
    own_task = read_dataset(
        bench_name, "test", find_data(bench_name, args.data, ensure)[0], lambda line: None
    )[0].task
    task, name = (
        task_asked(bench_name, own_task, args),
        evaluation_folder(bench_name, own_task, args),
    )
    pair, judges = [], set()
    for run in (run_a, run_b):
        places = (
            os.path.join(run, name),
            os.path.join("runs", "eval", os.path.basename(os.path.normpath(run)), name),
            run,
        )  # the last: a folder made with --out
        folder = next((f for f in places if os.path.isfile(os.path.join(f, "results.json"))), None)
        if folder is None:
            flags = (
                f" --task {args.task}" * bool(args.task)
                + " --blind" * args.blind
                + " --clues" * args.clues
            )
            raise BadInput(
                f"{run} has no evaluation on {bench_name} yet: python eval.py --bench {bench_name}{flags} --model {run}"
            )
        settings = read_object(os.path.join(folder, "results.json"), settings=dict)["settings"]
        for key, wanted in {
            "bench": bench_name,
            "task": task,
            "clues": args.clues,
            "blind": args.blind,
        }.items():
            if settings.get(key, wanted) != wanted:
                raise BadInput(
                    f"{folder} holds an evaluation with {key} {settings[key]}, not {wanted}: give --compare the flags that both were made with"
                )
        judges.add(settings.get("judge") if task == "caption" else None)
        pair.append(
            read_predictions(
                os.path.join(
                    folder, "predictions-second-look.jsonl" if args.clues else "predictions.jsonl"
                )
            )
        )
    a, b = pair
    if not a:
        raise BadInput(
            f"{run_a} has no predictions on {bench_name} that can be read: evaluate it again"
        )
    if set(a) != set(b):
        raise BadInput(
            f"{run_a} and {run_b} were not asked the same questions ({len(a)} and {len(b)}): evaluate both again"
        )
    if len(judges) > 1:
        raise BadInput(
            f"{run_a} and {run_b} were judged differently (--judge): evaluate both again"
        )
    if judges != {None}:
        rewards.judge = load_judge(judges.pop(), args.device)
    each = [[metrics_of(task, [x[i]]) for i in a] for x in (a, b)]
    groups = np.array([a[i]["group"] for i in a])
    rows = [(metric, metric, np.full(len(a), True)) for metric in each[0][0]]
    if len(set(groups)) > 1:  # of each group the first metric alone
        rows += [(group, rows[0][1], groups == group) for group in sorted(set(groups))]
    rng = np.random.default_rng(0)
    print(
        f"{bench_name}, {len(a)} questions: {run_b} minus {run_a}, in points, with the 95 % interval of a paired bootstrap"
    )
    width = max(10, *(len(label) for label, *_ in rows))
    for label, metric, chosen in rows:
        difference = np.array([y[metric] - x[metric] for x, y in zip(*each)])[chosen]
        draws = rng.integers(0, len(difference), size=(samples, len(difference)))
        low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
        print(f"  {label:<{width}} {difference.mean():+6.1f}   [{low:+.1f}, {high:+.1f}]")


# ------------------------------------------------------------------------------------------------
# A question about one's own video
# ------------------------------------------------------------------------------------------------


def ask(args):
    """Answers --ask about --video, printing the answer as it is decoded."""
    path, shown, run = find_model(args.model[0])
    model, tokenizer = load(path, args.device, attn=args.attn)
    video = data.load_video(args.video, VideoBudget.of_model(path, **vars(args)), args.blind)
    t, h, w = video.grid
    print(
        f"[{shown}; {video.duration:.1f} s of video as {2 * t} frames of {w * data.PATCH} × {h * data.PATCH} pixels, {video.n_tokens} tokens]"
    )
    prompt = data.build_prompt(args.ask, video, tokenizer)
    said, printed = [], ""

    def stream(token):
        nonlocal printed
        said.append(int(token[0]))
        text = tokenizer.decode(said, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            print(text[len(printed) :], end="", flush=True)
            printed = text

    with torch.no_grad():
        features = encode_videos(model, [prompt])
    grpo.sample_groups(
        model,
        [prompt],
        features,
        1,
        args.max_new_tokens or 256,
        model.generation_config.eos_token_id,
        on_token=stream,
    )
    print()


# ------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    g = p.add_argument_group("benchmarks")
    g.add_argument(
        "--bench", help=f"one or several of {', '.join(DATASETS)}, with commas between, or all"
    )
    g.add_argument(
        "--data",
        help="folder of the data set; with several benchmarks the folder that holds a folder of each (default: data/NAME where it exists, else the toy one)",
    )
    g.add_argument(
        "--task",
        choices=list(TASKS),
        help="ask the questions as this task of the same data: qa of nextgqa, the answer without its seconds (default: the benchmark's own)",
    )
    g.add_argument("--limit", type=int, help="only the first so many questions of each")
    g.add_argument(
        "--judge",
        help="captions: a local language model that decides whether a caption tells of an event (default: matching content words)",
    )
    g.add_argument(
        "--clues",
        action="store_true",
        help="multiple choice: answer, look closely at the interval that was named, answer again",
    )
    g.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="no model is run: the difference of two evaluations that are there, with its uncertainty",
    )
    g.add_argument(
        "--out",
        help="folder for predictions and results (default: inside the run, or runs/eval/MODEL)",
    )
    g = p.add_argument_group("or a question about one's own video")
    g.add_argument("--video", help="a video file")
    g.add_argument("--ask", help="the question")
    g = p.add_argument_group("model and decoding (always greedy)")
    g.add_argument(
        "--model",
        nargs="+",
        default=[TOY_MODEL],
        help="run folders of train.py, local model folders or hub names (default: the toy base)",
    )
    g.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ask for a <think> block (default: as the run was trained, else yes)",
    )
    g.add_argument("--blind", action="store_true", help="replace every frame by grey")
    g.add_argument(
        "--max-new-tokens",
        type=int,
        help="longest answer (default: the task's usual length, or the run's if that is more; with --ask 256)",
    )
    g.add_argument("--batch-size", type=int, default=16, help="questions answered together")
    g.add_argument(
        "--decode-timeout",
        type=float,
        default=600,
        help="seconds after which a video counts as unreadable; an hour of video takes minutes",
    )
    g.add_argument(
        "--student",
        metavar="DIR",
        help="with the functions you wrote in DIR (course/) instead of this repository's own",
    )
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    g.add_argument(
        "--attn",
        default="sdpa",
        choices=ATTENTION,
        help="sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA",
    )
    data.add_budget_flags(p)
    args = p.parse_args(argv)
    check_flags(args)
    if (args.bench is None) == (args.video is None):
        raise BadInput('give either --bench charades, or --video FILE with --ask "…"')
    args.benches = list(DATASETS) if args.bench == "all" else (args.bench or "").split(",")
    for name in args.benches if args.bench else ():
        if name not in DATASETS:
            raise BadInput(f"--bench {name} is unknown; there is: {', '.join(DATASETS)}, all")
    if args.video and not args.ask:
        raise BadInput('--video needs a question: --ask "…"')
    if args.compare and args.judge:
        raise BadInput(
            "--compare scores with the judge that the evaluations were made with: leave --judge away"
        )
    if args.out and len(args.model) * len(args.benches) > 1:
        raise BadInput(
            "--out is one folder; with several models or benchmarks leave it away, each gets its own"
        )
    return args


def start():
    args = parse_args()
    if args.student:
        from course import exercises

        exercises.install(args.student, show=os.environ.get("RANK", "0") == "0")
    if args.video:
        return ask(args)
    if args.compare:
        for bench_name in args.benches:
            compare(bench_name, *args.compare, args)
        return
    rank, world, device = start_processes(args.device, PATIENCE)
    if args.judge:
        rewards.judge = load_judge(args.judge, device)
    columns = []
    for name in args.model:
        rows = {
            bench_name: bench(bench_name, name, args, rank, world, device)
            for bench_name in args.benches
        }
        if rank == 0:
            columns.append((
                next(iter(rows.values()))[0],
                {bench_name: row[1:] for bench_name, row in rows.items()},
            ))
    if rank == 0:
        print_table(columns)
    if world > 1:
        dist.destroy_process_group()


def main():
    run_program(start, memory="lower --batch-size, --total-pixels or --max-new-tokens",
                interrupted="the same command continues where it stopped")  # fmt: skip


if __name__ == "__main__":
    main()
