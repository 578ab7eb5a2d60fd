"""eval.py: benchmarks, and questions about one's own video.

    python eval.py --bench charades                      # the toy base on made-up clips
    python eval.py --bench all --model assets/toy-base runs/joint       # before and after
    torchrun --nproc-per-node 8 eval.py --bench mvbench,videomme        # questions are shared out
    python eval.py --bench charades --model runs/demo --controls        # without looking
    python eval.py --bench nextgqa --model runs/joint --clues           # a second, closer look
    python eval.py --bench charades --think both         # thinking and not, in two folders
    python eval.py --bench charades --compare runs/sft runs/grpo        # how sure a difference is
    python eval.py --video clip.mp4 --ask "When does the red circle appear?"
    python eval.py --help                                # every setting and its default

The table begins with the score of the best constant answer (evaluation/controls.py). results.json
holds a score together with the prompt, frames, pixels, decoding, versions, data and weights that
made it; predictions.jsonl holds every single answer. The same code under the same settings scores a
model that was not trained. An answer that cannot be read counts as wrong; no question is left out
of the mean.

An evaluation that was interrupted continues where it stopped when the same command is given again.
"""

import json
import os
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from itertools import product

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import torch
import torch.distributed as dist

import grpo
import tasks
from annotations.judge import install_judge
from annotations.readers import find_data
from data import VideoBudget, ask, load_video, read_frames
from evaluation import controls, predictions
from evaluation.clips import batches_of, prefill, read_ahead, read_questions
from evaluation.predictions import find_model
from evaluation.settings import parse_args
from lib.decoder import Decoder
from lib.errors import BadInput, run_program
from lib.files import append_line, locks_released, replace_file
from lib.identity import fingerprint, is_toy
from lib.processes import Progress, on_each, on_first, rank, start_processes, world
from lib.weights import family_of, room_for_prompt
from model import encode_videos, load
from toy.world import ensure

# How long a process waits for the others: shares of long videos are unequal. If one of them dies,
# torchrun ends the rest.
PATIENCE = timedelta(days=7)

# ------------------------------------------------------------------------------------------------
# Which model, which data
# ------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """One model and one benchmark, ready to be asked."""

    examples: list  # all questions, in the order of the data set
    budget: VideoBudget  # how much of each video the model sees
    settings: dict  # all that the answers depend on, as it is saved
    out: str  # folder of the answers and the results
    left_out: list  # what the data set's reader could not use, in its words
    model: torch.nn.Module
    tokenizer: object
    decoder: Decoder  # reads the videos, in a process of its own
    batch_size: int  # questions answered together


def prepare(bench_name, name, args, decoder, load_once):
    """Finds model and data and opens the folder for the answers. Returns an Evaluation; None where
    a control does not apply: one frame tells of multiple choice alone.

    load_once: a model's path → (model, tokenizer); it stays loaded over its benchmarks.
    """
    path, shown, run = find_model(name)
    toy_model = is_toy(path)
    folder, data_name = on_first(partial(find_data, bench_name, args.data, ensure, toy_model))
    examples, left_out = read_questions(bench_name, folder, args.limit, rank() == 0)
    if args.look == "middle" and not examples[0].options:
        return None
    budget = VideoBudget.of_model(path, family_of(path), **vars(args))
    usual_task = examples[0].task
    task = predictions.task_asked(bench_name, usual_task, args)
    examples = tasks.as_task(examples, task)
    data = (bench_name, folder, data_name)
    settings = predictions.settings_of(args, budget, (path, shown, run), data, task, examples)
    home = name if run else predictions.folder_without_run(name)
    folder_name = predictions.evaluation_folder(bench_name, usual_task, args)
    out = args.out or os.path.join(home, folder_name)
    if args.out and args.look and not args.blind:
        out = f"{args.out}-{args.look}"
    model, tokenizer = load_once(path)
    settings["weights"] = on_first(partial(fingerprint, path))
    on_first(lambda: predictions.open_evaluation(out, settings))
    if rank() == 0:
        look = f", {args.look}" if args.look else ""
        print(f"{shown}: {len(examples)} questions of {data_name}{look}")
    together = args.batch_size or (64 if toy_model else 16)
    return Evaluation(
        examples, budget, settings, out, left_out, model, tokenizer, decoder, together
    )


# ------------------------------------------------------------------------------------------------
# Ask and answer
# ------------------------------------------------------------------------------------------------
# A clip is read, seen and prefilled once for all questions about it (evaluation/clips.py). Where
# --prompt puts words before the video, each question is read whole.


def read_clips(evaluation, clips, budget):
    """Reads each clip of a batch once and asks its questions.

    clips: lists of Examples about one clip. Returns (Example, its Prompt) of each; where the video
    cannot be read, or the prompt does not fit, the BadInput that says so in place of the Prompt.
    """
    settings, asked = evaluation.settings, []
    room = room_for_prompt(evaluation.model, settings["max_new_tokens"])
    how = (evaluation.tokenizer, settings["think"], room, settings["template"])
    for questions in clips:
        e = questions[0]
        part = (settings["look"], e.span, e.frames, evaluation.decoder.read)
        video = or_error(load_video, e.video, budget, *part)
        unread = isinstance(video, BadInput)
        asked += [(e, video if unread else or_error(ask, e, video, *how)) for e in questions]
    return asked


def or_error(f, *args):
    try:
        return f(*args)
    except BadInput as error:
        return error


def answer_batch(evaluation, asked):
    """Answers questions together, greedily. asked: as read_clips returns them. Returns a record per
    question; one that could not be asked has its error in it, and counts as wrong."""
    model, settings, records = evaluation.model, evaluation.settings, []
    prompts = {e.id: prompt for e, prompt in asked if not isinstance(prompt, BadInput)}
    if prompts:
        stop_ids, longest = model.generation_config.eos_token_id, settings["max_new_tokens"]
        to_read = list(prompts.values())
        with torch.no_grad():
            features = encode_videos(model, to_read)
            begun = prefill(model, to_read, features)
        how = (1, longest, stop_ids)
        completions, mask, _ = grpo.sample_groups(model, to_read, features, *how, begun=begun)
        said = (completions[:, 0], mask[:, 0], evaluation.tokenizer, stop_ids)
        texts = dict(zip(prompts, grpo.completion_texts(*said)))
    for e, prompt in asked:
        record = {"id": e.id, "group": e.group, "video": e.video, "question": e.question}
        record |= {"answer": e.answer, "on offer": len(e.options)}
        if e.id in prompts:
            record |= {"text": texts[e.id], "seconds": prompt.duration}
        else:
            record |= {"text": "", "error": str(prompt)}
        think = settings["think"]
        records.append(record | predictions.rewards_of(e.task, record["text"], e.answer, think))
    return records


def answer_all(evaluation, examples, budget, path):
    """Answers questions batch by batch, and appends a record of each to the file. Each of W
    processes takes every W-th batch."""
    batches = batches_of(examples, evaluation.batch_size)
    taken = range(rank(), len(batches), world())
    sizes = [sum(map(len, batch)) for batch in batches]
    read = lambda k: read_clips(evaluation, batches[k], budget)
    progress = Progress(len(examples), "question", evaluation.settings["bench"])
    with progress.bar:
        for k, asked in read_ahead(taken, read):
            for record in answer_batch(evaluation, asked):
                append_line(path, record)
            progress.update(sum(sizes[: k + 1]) - progress.done)
        progress.update(len(examples) - progress.done)


def answer(evaluation, examples, budget, file_name):
    """Asks what the file has no answer to yet. Returns all its records, in the examples' order."""
    path = os.path.join(evaluation.out, file_name)
    done = on_first(lambda: predictions.answered(path))
    to_ask = [e for e in examples if e.id not in done]
    on_each(lambda: answer_all(evaluation, to_ask, budget, path))
    records = predictions.read_predictions(path)
    return [records[e.id] for e in examples]


# ------------------------------------------------------------------------------------------------
# Score
# ------------------------------------------------------------------------------------------------


def score(evaluation, name, records, first_look, constant):
    """Writes results.json: the metrics, and how they were made. Returns a controls.Scored.

    name: of the model, to show; records: of all questions, in their order; first_look: the same,
    but with --clues the answers before the second look; constant: a controls.Constant, or None.
    """
    settings, out, task = evaluation.settings, evaluation.out, evaluation.settings["task"]
    metrics = predictions.metrics_of(task, records)
    if settings["clues"]:
        before = predictions.metrics_of(task, first_look)["accuracy"]
        metrics = {"accuracy, first look": before} | {k: metrics[k] for k in ("accuracy", "format")}
    results = {
        "metrics": metrics,
        "constant": controls.earned(task, constant, records),
        "failed": [r["id"] for r in records if "error" in r],
        "not in the form": [r["id"] for r in records if "error" not in r and not r["format"]],
        "left out": evaluation.left_out,
        "settings": settings,
    }
    replace_file(os.path.join(out, "results.json"), json.dumps(results, indent=2))
    if task == "grounding":
        from evaluation.pictures import draw_predictions  # matplotlib takes a second to import

        draw_predictions(out, settings, records, metrics)
    predictions.say_what_was_written(results, records, out)
    asked = (settings["look"], settings["data_name"], task)
    return controls.Scored(name, *asked, records, metrics, constant)


@locks_released()
def bench(bench_name, name, args, decoder, load_once):
    """Evaluates one model on one benchmark. Returns a controls.Scored; None where a control does
    not apply, and on all processes but the first."""
    evaluation = prepare(bench_name, name, args, decoder, load_once)
    if evaluation is None:
        return None
    examples, budget = evaluation.examples, evaluation.budget
    records = first_look = answer(evaluation, examples, budget, "predictions.jsonl")
    if args.clues:
        from evaluation.second_look import second_look

        examples, budget = second_look(examples, {r["id"]: r for r in first_look}, budget)
        records = answer(evaluation, examples, budget, "predictions-second-look.jsonl")
    if rank() != 0:
        return None
    for e, record in zip(evaluation.examples, records):
        e.duration = e.duration or record.get("seconds")
    constant = controls.constant_of(bench_name, evaluation.settings["data"], evaluation.examples)
    shown = evaluation.settings["model_name"] + args.way
    return score(evaluation, shown, records, first_look, constant)


# ------------------------------------------------------------------------------------------------
# The program
# ------------------------------------------------------------------------------------------------


def run_benchmarks(args):
    """Every model on every benchmark, and a table of them all."""
    device = start_processes(args.device, PATIENCE)
    if args.judge:
        install_judge(args.judge, device)
    scored = {name: [] for name in args.benches}
    with closing(Decoder(args.decode_timeout, read_frames)) as decoder:
        for model in args.model:
            load_once = cache(lambda path: on_each(lambda: load(path, device, attn=args.attn)))
            for way, name in product(args.ways, args.benches):
                scored[name].append(bench(name, model, way, decoder, load_once))
    for rows in scored.values() if rank() == 0 else ():
        controls.print_benchmark([row for row in rows if row])
    if world() > 1:
        dist.destroy_process_group()


def start():
    """Reads the flags and does what they say."""
    args = parse_args(description=__doc__)
    if args.student:
        from course import exercises

        exercises.install(args.student, show=os.environ.get("RANK", "0") == "0")
    if args.video is not None:
        from evaluation.ask import ask

        ask(args)
    elif args.compare:
        from evaluation.compare import compare

        for name, way in product(args.benches, args.ways):
            compare(name, *args.compare, way, ensure)
    else:
        run_benchmarks(args)


def main():
    run_program(
        start,
        memory="lower --batch-size, --total-pixels or --max-new-tokens",
        interrupted="the same command continues where it stopped",
    )


if __name__ == "__main__":
    main()
