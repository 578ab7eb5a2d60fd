"""checkpoint.py: the files from which a run goes on after it was stopped.

    RUN/checkpoints/step-000300/
        part-000.safetensors, …  float32 weights and Adam's two moments of every trained parameter
        state.json               the step, the number of parts, counters; written last

That is all. Nothing random is carried from step to step: the order of the data and every sampled
token come from (seed, step, number of the prompt), so a run that continues at step 301 goes on
exactly as if it had not stopped, on whatever number of processes.

A checkpoint is complete or it is not there: it is written under another name, and renamed. Whenever
a run dies, the checkpoint before is whole.
"""

import json
import os
import sys
from contextlib import suppress
from glob import escape, glob
from itertools import count

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.errors import BadInput, read_object
from lib.files import expect_kind, locks_released, put_aside, remove_lines, replace_file, take
from lib.processes import rank, whole

PART, TENSORS = "part-{:03d}.safetensors", 64  # of a part, which process 0 holds in memory


def folders(run):
    """Complete checkpoints, newest first."""
    paths = glob(os.path.join(escape(run), "checkpoints", "step-*[0-9]", "state.json"))
    return sorted(map(os.path.dirname, paths), reverse=True)


def remove_checkpoint(folder):
    """Removes a checkpoint's own files, and its folder if that is empty then."""
    with suppress(OSError):
        for name in ("state.json", "part-*.safetensors"):
            for path in glob(os.path.join(escape(folder), name)):
                os.remove(path)
        os.rmdir(folder)


def save_checkpoint(run, step, tensors, counts, keep):
    """Writes a checkpoint and removes all but the last `keep`; every process calls it.

    Args:    tensors: {name: tensor}, sharded or not; counts: {name: number} since the run began.
    Raises:  OSError or SafetensorError where the disk does not take it. Those before are kept.
    """
    folder = os.path.join(run, "checkpoints", f"step-{step:06d}")
    partial, names = folder + ".partial", list(tensors)
    parts = [names[k : k + TENSORS] for k in range(0, len(names), TENSORS)]
    if rank() == 0:
        remove_checkpoint(partial)
        os.makedirs(partial, exist_ok=True)
    for number, of_part in enumerate(parts):
        part = {}
        for name in of_part:
            tensor = whole(tensors[name])  # with every process, though the first alone keeps it
            if rank() == 0:
                part[name] = tensor.contiguous()
        if rank() == 0:
            save_file(part, os.path.join(partial, PART.format(number)))
    if rank() == 0:
        state = json.dumps({"step": step, "parts": len(parts), "counts": counts})
        replace_file(os.path.join(partial, "state.json"), state)
        remove_checkpoint(folder)
        os.rename(partial, folder)
        for old in folders(run)[keep:]:
            remove_checkpoint(old)


def read_checkpoint(folder):
    """(state, a function name → CPU tensor that reads from the disk only what is asked for)."""
    state = read_object(os.path.join(folder, "state.json"), step=int, parts=int, counts=dict)
    parts = [os.path.join(folder, PART.format(number)) for number in range(state["parts"])]
    files = [safe_open(path, "pt") for path in parts]
    file_of = {name: file for file in files for name in file.keys()}
    return state, lambda name: file_of[name].get_tensor(name)


def newest_checkpoint(run):
    """The folder of the newest checkpoint that can be read, or None; says which ones cannot."""
    for folder in folders(run):
        try:
            read_checkpoint(folder)
            return folder
        except (BadInput, OSError, SafetensorError) as e:
            print(f"checkpoint {folder} cannot be read ({e}): an older one?", file=sys.stderr)
    return None


LAYOUT = 2  # counts up when checkpoints of older runs cannot be read any more

# Settings that decide nothing about what is learned: a resumed run may have others.
MAY_CHANGE = "processes device dtype quiet save_every rollouts_every keep resume overwrite".split()
MAY_CHANGE += "decode_timeout offload recompute versions out kind".split()
CONTENTS = {"model_fingerprint": "--model has other weights", "examples_hash": "other examples"}


def open_run_folder(settings):
    """Makes the run's folder and locks it; one process alone calls this.

    settings: a dict, of which "out", "kind" and "layout" are set here.
    Returns (the folder's path, that of its newest checkpoint or None).
    """
    free = (f"runs/{settings['task']}-{settings['method']}-{k}" for k in count(1))
    folder = settings["out"] or next(path for path in free if not os.path.exists(path))
    checkpoint = None
    settings |= {"out": folder, "kind": "run", "layout": LAYOUT}
    try:
        is_run = expect_kind(folder, "run")
        if is_run and not settings["resume"] and not settings["overwrite"]:
            why = "already holds a run: give another --out, --resume to go on with it"
            raise BadInput(f"{folder} {why}, or --overwrite to rename it and begin anew")
        if is_run and settings["overwrite"]:
            with locks_released():
                take(folder)
                print(f"{folder}: the run before is now {put_aside(folder)}", file=sys.stderr)
        os.makedirs(folder, exist_ok=True)
        take(folder)
        if is_run and settings["resume"]:
            checkpoint = resumable(folder, settings)
        step = read_checkpoint(checkpoint)[0]["step"] if checkpoint else 0
        for name in ("metrics", "rollouts", "skipped", "samples"):
            # What comes later is written again; samples are taken before a step.
            last = step - (name == "samples")
            path = os.path.join(folder, f"{name}.jsonl")
            remove_lines(path, lambda line, last=last: line["step"] <= last, step=int)
        replace_file(os.path.join(folder, "settings.json"), json.dumps(settings, indent=2))
    except OSError as e:
        raise BadInput(f"cannot write to --out {folder}: {e}") from e
    return folder, checkpoint


def resumable(folder, settings):
    """The checkpoint that --resume goes on from; None where the run ended before its first."""
    before = read_object(os.path.join(folder, "settings.json"))
    if before.get("layout") != LAYOUT:
        why = "is a run of an older version, and cannot go on: give another --out"
        raise BadInput(f"{folder} {why} (its policy/ can be read)")
    now = json.loads(json.dumps(settings))  # as a file would give them: no tuples
    changed = [k for k in now if k not in MAY_CHANGE and before.get(k) != now[k]]
    if changed:
        was = lambda k: CONTENTS.get(k, f"{k} was {before.get(k)}, now {now[k]}")
        told = ", ".join(map(was, changed))
        raise BadInput(f"{folder} was begun with other settings, so it cannot go on: {told}")
    checkpoint = newest_checkpoint(folder)
    if not checkpoint and (folders(folder) or os.path.exists(os.path.join(folder, "policy"))):
        raise BadInput(f"{folder} has no checkpoint that can be read: give --overwrite instead")
    return checkpoint
