"""clips.py: the questions of an evaluation, by clip: which are answered together, by which process,
and their clips, read while the model answers."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import torch.distributed as dist

from annotations.readers import DATASETS, read_dataset
from lib.errors import BadInput
from lib.processes import world

# Some clips of most benchmarks can no longer be had. If more than this share is not there, the
# folder is wrong.
MISSING = 0.1


def read_questions(bench_name, folder, limit, loud):
    """(Examples of a benchmark's test split, sentences about what its reader had to leave out).

    loud: whether to print these sentences, and a warning if some videos are missing. Raises
    BadInput if more than the share MISSING is.
    """
    left_out = []
    examples = read_dataset(bench_name, "test", folder, left_out.append)[:limit]
    for sentence in left_out if loud else []:
        print(sentence, file=sys.stderr)
    videos = {e.video for e in examples}
    if missing := sorted(video for video in videos if not os.path.exists(video)):
        sentence = f"{len(missing)} of the {len(videos)} videos of {bench_name} are missing"
        sentence += f", the first is {missing[0]}"
        if len(missing) > MISSING * len(videos):
            source = f"{bench_name} is: {DATASETS[bench_name].source}"
            raise BadInput(f"{sentence}. {source}; --limit N takes the first N questions only")
        if loud:
            print(f"WARNING: {sentence}; they count as wrong", file=sys.stderr)
    return examples, left_out


def batches_of(examples, size):
    """Questions in batches that are answered together, at most `size` in each.

    Returns: batches, each a list of clips, each a list of Examples about one video, or the same
    part or frames of it. All clips of a batch have the same number of questions, so that each can
    be read once for all of them (branches.py). Those of the most clips, which cost the most,
    come first.

    >>> from types import SimpleNamespace as S
    >>> about = lambda name, i: S(id=f"{name}{i}", video=name, span=None, frames=())
    >>> examples = [about("a", 1), about("b", 1), about("a", 2), about("c", 1), about("c", 2)]
    >>> [[[e.id for e in clip] for clip in batch] for batch in batches_of(examples, 4)]
    [[['a1', 'a2'], ['c1', 'c2']], [['b1']]]
    """
    clips, by_number, batches = {}, {}, []
    for e in examples:
        clips.setdefault((e.video, e.span, e.frames), []).append(e)
    for clip in clips.values():
        for part in (clip[i : i + size] for i in range(0, len(clip), size)):
            by_number.setdefault(len(part), []).append(part)
    for number, parts in by_number.items():
        together = size // number
        batches += [parts[i : i + together] for i in range(0, len(parts), together)]
    return sorted(batches, key=len, reverse=True)


CALLS = count()  # every process counts alike


def turns(n):
    """Numbers 0 … n − 1, each for one of the processes: the one that asks next. A process with
    long videos asks less often, so that all end at about the same time."""
    call = next(CALLS)
    if world() == 1:
        yield from range(n)
        return
    store = dist.distributed_c10d._get_default_store()  # what the processes found each other by
    while (k := store.add(f"turns of {call}", 1) - 1) < n:
        yield k


def read_ahead(items, read):
    """Yields (item, read(item)), the next one being read in a thread meanwhile."""
    thread, upcoming = ThreadPoolExecutor(max_workers=1), []
    try:
        for item in items:
            upcoming.append((item, thread.submit(read, item)))
            if len(upcoming) == 2:
                before, reading = upcoming.pop(0)
                yield before, reading.result()
        for item, reading in upcoming:
            yield item, reading.result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
