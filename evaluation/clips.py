"""clips.py: the questions of an evaluation, in batches that are answered together. Clips are read
while the model answers, and questions about one clip share their beginning.

The video stands first in a prompt, so questions about it begin alike, and all that is long in them
is read once: the idea of model.py's section 3 once more.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from annotations.readers import read_dataset
from lib.decoding import GroupCache
from lib.errors import BadInput
from model import read, token_logits

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
        counts = f"{bench_name} lacks {len(missing)} of its {len(videos)} videos"
        sentence = f"{counts}, {missing[0]} for one"
        if len(missing) > MISSING * len(videos):
            where = "docs/datasets.md says where to get them; --limit N takes the first N questions"
            raise BadInput(f"{sentence}. {where}")
        if loud:
            print(f"WARNING: {sentence}; each counts as wrong", file=sys.stderr)
    return examples, left_out


def batches_of(examples, size):
    """Questions in batches that are answered together, at most `size` in each.

    Returns: batches, each a list of clips, each a list of Examples about one video, or the same
    part or frames of it. All clips of a batch have the same number of questions, so that each can
    be read once for all of them (clips_of). Those of the most clips, which cost the most,
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


def prefill(model, prompts, features):
    """As model.prefill, but prompts about one clip share what they have in common, read once."""
    clips, last, after = clips_of(prompts, model.config.video_token_id), [], []
    cache = GroupCache([(P, [len(p.ids) - P for p in same]) for P, same in clips])
    seen = {id(prompt): of_it for prompt, of_it in zip(prompts, features, strict=True)}
    for P, same in clips:
        beginning = replace(same[0], ids=same[0].ids[:P])
        rests = pad_sequence([p.ids[P:] for p in same], batch_first=True)  # (Q, T)
        hidden, positions = read(model, beginning, seen[id(same[0])], rests, cache)
        # Places of the Q last tokens in [beginning | rest 1 | … | rest Q].
        ends = [q * rests.shape[1] + len(p.ids) - 1 for q, p in enumerate(same)]
        last += [hidden[i] for i in ends]
        after.append(positions[:, ends].amax(dim=0) + 1)
    last = torch.stack(last)
    return token_logits(model, last), cache, torch.cat(after).to(last.device)


def clips_of(prompts, video_token):
    """Prompts by clip, as [(how many tokens they begin with in common, [Q prompts])].

    Args:    prompts: data.Prompts; those about one clip are neighbours and hold the same patches,
             as data.ask makes them; video_token: the id of <|video_pad|>.

    If numbers of prompts differ between clips, or words stand before the video, nothing is shared:
    each prompt is alone, and all of it is its beginning.
    """
    clips = [list(same) for _, same in groupby(prompts, key=lambda p: id(p.patches))]
    rows = [[p.ids.tolist() for p in same] for same in clips]
    # Short of the end of each: a rest has at least one token.
    shared = [min(len(os.path.commonprefix(r)), min(map(len, r)) - 1) for r in rows]
    equal = len({len(same) for same in clips}) == 1 and len(clips) < len(prompts)
    if equal and not any(video_token in x[P:] for P, r in zip(shared, rows) for x in r):
        return list(zip(shared, clips))
    return [(len(p.ids), [p]) for p in prompts]
