"""checkpoint.py: what a run must keep to go on as if it had never stopped.

    RUN/checkpoints/step-000300/
        part-000.safetensors, …  float32 weights and Adam's two moments of every trained parameter
        state.json               the step, counters, size and checksum of each part; written last

That is all. Nothing random is carried from step to step: the order of the data and every sampled
token come from (seed, step, number of the prompt), so a run that continues at step 301 sees and
says what it would have seen and said.

A checkpoint is complete or it is not there: it is written under another name, flushed to the disk,
and renamed. Whenever a machine dies, the checkpoint before is whole.
"""

import itertools
import json
import os
import re
import shutil
import sys
import zlib

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.errors import NUMBER, BadInput, read_object, wrong_key
from lib.files import (
    clear,
    expect_kind,
    remove_checkpoint,
    remove_lines,
    replace_file,
    rescue,
    take,
)
from lib.processes import whole
from training.policy import save_policy

PART_BYTES = 4e9  # of one file: what process 0 must hold in memory at a time


def folders(run):
    """Complete checkpoints, newest first."""
    home = os.path.join(run, "checkpoints")
    names = os.listdir(home) if os.path.isdir(home) else []
    paths = [os.path.join(home, name) for name in names if re.fullmatch(r"step-\d+", name)]
    complete = [path for path in paths if os.path.lexists(os.path.join(path, "state.json"))]
    return sorted(complete, reverse=True)


def checksum(path):
    value = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def flush(path):
    """Puts a file or folder on the disk itself: a rename could outlive a power cut, and its data
    not."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def save_checkpoint(run, step, tensors, state, keep, rank):
    """Writes a checkpoint and removes all but the last `keep`. Every process calls it, and the
    first writes.

    Args:    tensors: {name: tensor}, sharded or not, gathered a few at a time; state: what else to
             remember, as JSON.
    Returns: None, or why it could not be written (a full disk must not end a run that is otherwise
             well).
    """
    folder = os.path.join(run, "checkpoints", f"step-{step:06d}")
    partial, failed, files = folder + ".partial", None, {}

    def write(part):
        name = f"part-{len(files):03d}.safetensors"
        path = os.path.join(partial, name)
        save_file({k: t.contiguous() for k, t in part.items()}, path)
        flush(path)
        files[name] = [os.path.getsize(path), checksum(path)]

    part, size = {}, 0
    try:
        if rank == 0:
            remove_checkpoint(partial)
            os.makedirs(partial, exist_ok=True)
    except OSError as e:
        failed = e
    for k, (name, tensor) in enumerate(tensors.items(), 1):
        tensor = whole(tensor)  # all processes take part, also when the first can no longer write
        if rank or failed:
            continue
        part[name], size = tensor, size + tensor.nbytes
        if size > PART_BYTES or k == len(tensors):
            try:
                write(part)
            except (OSError, SafetensorError) as e:
                failed = e
            part, size = {}, 0
    if rank:
        return None
    try:
        if failed:
            raise failed
        with open(os.path.join(partial, "state.json"), "w", encoding="utf-8") as f:
            json.dump(state | {"step": step, "files": files}, f)
        flush(os.path.join(partial, "state.json"))
        remove_checkpoint(folder)
        os.rename(partial, folder)
        flush(os.path.dirname(folder))
        for old in folders(run)[keep:]:
            remove_checkpoint(old)
    except (OSError, SafetensorError) as e:
        remove_checkpoint(partial)
        return (
            f"checkpoint of step {step} could not be written ({e}); "
            "the run goes on, the one before it is kept"
        )
    return None


def newest_checkpoint(run, say):
    """(folder, state) of the newest checkpoint that is whole, or None; says which ones are not."""
    for folder in folders(run):
        try:
            state = read_object(
                os.path.join(folder, "state.json"), step=int, files=dict, counts=dict
            )
            if wrong := wrong_key(state["counts"], dict.fromkeys(state["counts"], NUMBER)):
                raise ValueError(f"state.json: {wrong}")
            if os.path.basename(folder) != f"step-{state['step']:06d}":
                raise ValueError(f"state.json is of step {state['step']}")
            for name, (size, value) in state["files"].items():
                path = os.path.join(folder, name)
                if os.path.getsize(path) != size or checksum(path) != value:
                    raise ValueError(f"{name} is damaged")
            return folder, state
        except (BadInput, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            say(f"checkpoint {folder} cannot be used ({e}): looking for an older one")
    return None


def read_checkpoint(folder, state):
    """A function name → CPU tensor, reading from the disk only what is asked for."""
    file_of = {}  # name of a tensor: the open file that holds it
    for name in state["files"]:
        file = safe_open(os.path.join(folder, name), "pt")
        file_of |= dict.fromkeys(file.keys(), file)

    def tensor(key):
        if key not in file_of:
            raise BadInput(
                f"checkpoint {folder} has no {key}: "
                "it belongs to another model or to other settings"
            )
        return file_of[key].get_tensor(key)

    return tensor


def check_room(run, needed):
    """Raises BadInput if the disk has less than `needed` bytes left: now, not after a day."""
    free = shutil.disk_usage(run).free
    if free < needed:
        raise BadInput(
            f"the disk of {run} has {free / 1e9:.1f} GB left "
            f"and this run's checkpoints and policy need {needed / 1e9:.1f} GB: "
            "choose another --out, a lower --keep, or make room"
        )


# ------------------------------------------------------------------------------------------------
# The run's folder
# ------------------------------------------------------------------------------------------------

# Settings that decide nothing about what is learned: a resumed run may have others.
MAY_CHANGE = ("processes", "device", "dtype", "quiet", "save_every", "rollouts_every", "keep",
              "resume", "overwrite", "decode_timeout", "tensorboard", "offload", "recompute",
              "versions", "out", "kind", "score_every_group", "score_tokens")  # fmt: skip
LOGS = ("metrics.jsonl", "rollouts.jsonl", "skipped.jsonl")


def open_run_folder(settings, room):
    """Makes the run's folder and locks it; one process alone calls this.

    Args:    settings: a dict, of which "out" and "kind" are set here; room: bytes that the run
             needs there, including what the folder already holds.
    Returns: (the folder's path, its newest checkpoint or None).
    Raises:  BadInput, also where --resume is given with other settings than the run began with
             (except those in MAY_CHANGE).
    """
    folder = settings["out"] or unused_folder(settings)
    settings["out"], settings["kind"], checkpoint = folder, "run", None
    if settings["resume"] and os.path.exists(path := os.path.join(folder, "settings.json")):
        read_object(path)  # says what is wrong with it, where something is
    try:
        is_run = expect_kind(folder, "run")
        if is_run and not settings["resume"] and not settings["overwrite"]:
            raise BadInput(
                f"{folder} already holds a run: give another --out, --resume to go on with it, "
                "or --overwrite to replace it"
            )
        os.makedirs(folder, exist_ok=True)
        take(folder)
        if is_run and settings["overwrite"]:
            inputs = ("data", "model", "student", "judge")
            clear(folder, {f"--{name}": settings[name] for name in inputs})
        elif is_run:
            checkpoint = resumable(folder, settings)
        check_room(folder, room - size_of(folder))
        step = checkpoint[1]["step"] if checkpoint else 0
        for name in LOGS:
            remove_lines_after(step, os.path.join(folder, name))
        # The samples before a run's next step are taken when that begins: they will be taken again.
        remove_lines_after(step - 1, os.path.join(folder, "samples.jsonl"))
        if os.path.isdir(path := os.path.join(folder, "metrics.jsonl")):  # the run needs it
            raise BadInput(f"{path} cannot be read (Is a directory)")
        write_settings(folder, settings)
    except OSError as e:
        raise BadInput(f"cannot write to --out {folder}: {e.strerror}") from e
    return folder, checkpoint


def unused_folder(settings):
    """runs/TASK-METHOD-K with the first K that is free."""
    for k in itertools.count(1):
        folder = os.path.join("runs", f"{settings['task']}-{settings['method']}-{k}")
        if not os.path.exists(folder):
            return folder


def size_of(folder):
    """Bytes of all files in a folder and below it."""
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return sum(os.lstat(path).st_size for path in paths)


def remove_lines_after(step, path):
    """Removes the lines of a log that are later than a checkpoint: they will be written again."""
    if os.path.isfile(path):
        has_step = lambda record: not wrong_key(record, {"step": int})
        remove_lines(path, lambda record: has_step(record) and record["step"] <= step)


def resumable(folder, settings):
    """The checkpoint that --resume goes on from; None where the run ended before its first."""
    before = read_object(os.path.join(folder, "settings.json"))
    now = json.loads(json.dumps(settings))  # as a file would give them: no tuples
    changed = [k for k in now if k not in MAY_CHANGE and before.get(k) != now[k]]
    if changed:
        raise BadInput(
            f"{folder} was begun with other settings, so it cannot go on: "
            + ", ".join(f"{k} was {before.get(k)}, now {now[k]}" for k in changed[:5])
            + f", and {len(changed) - 5} more" * (len(changed) > 5)
        )
    checkpoint = newest_checkpoint(folder, lambda sentence: print(sentence, file=sys.stderr))
    if checkpoint is None and folders(folder):
        raise BadInput(
            f"none of the checkpoints of {folder} can be read: "
            "give --overwrite in place of --resume to begin anew"
        )
    if checkpoint is None and os.path.exists(os.path.join(folder, "policy")):
        raise BadInput(
            f"{folder} holds a policy and no checkpoint to go on from: "
            "give another --out, or --overwrite in place of --resume to begin anew"
        )
    return checkpoint


def write_settings(folder, settings):
    replace_file(os.path.join(folder, "settings.json"), json.dumps(settings, indent=2))


def save_all(run, step, counts, policy, tokenizer, budget, optimizer, settings, args, rank):
    """The checkpoint and the policy of a step. Every process calls it; the first writes.

    Returns what could not be written, one sentence each. Neither a full disk nor a folder that was
    removed (it is made again) must end a run that is otherwise well.
    """
    state = {"counts": counts}
    problems = [save_checkpoint(run, step, optimizer.tensors(), state, args.keep, rank)]
    try:
        if rank == 0 and not os.path.isfile(os.path.join(run, "settings.json")):
            os.makedirs(run, exist_ok=True)
            write_settings(run, settings)
        # Those that a save removes.
        for name in ("policy", "policy.old", "policy.partial") if rank == 0 else ():
            if place := rescue(run, name):
                held = f"{run}/{name} held files that are not the policy's"
                print(f"{held}: they are now in {place}", file=sys.stderr)
    except OSError as e:
        problems.append(f"{run} could not be written ({e}); the run goes on")
    try:
        save_policy(policy, tokenizer, budget, run, args, rank)
    except (OSError, SafetensorError) as e:
        problems.append(f"the policy of step {step} could not be written ({e}); the run goes on")
    return [problem for problem in problems if problem]


# Skipped examples as a share of those read. Among the first hundred, five are allowed in any case.
SKIPPED_AT_MOST = 0.05


def check_counts(counts, skipped_file):
    """Raises BadInput where a run would go on learning from nothing."""
    if counts["skipped"] > SKIPPED_AT_MOST * max(100, counts["drawn"]):
        tried = counts["drawn"] + counts["skipped"]
        raise BadInput(
            f"{counts['skipped']:.0f} of {tried:.0f} examples could not be read, "
            f"and above {SKIPPED_AT_MOST:.0%} the run stops; "
            f"each is named in {skipped_file}, with the reason"
        )
    if counts["dropped_in_a_row"] >= 10:
        raise BadInput(
            "the gradient was not finite (NaN or infinite) in 10 steps in a row: "
            "lower --lr; the last checkpoint is intact"
        )
