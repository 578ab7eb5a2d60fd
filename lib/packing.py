"""packing.py: what shares a forward: questions about one clip, and prompts that are small.

On a small model a forward is mostly the starting of kernels, and eight prompts in one row start an
eighth as many. On a large one a prompt fills the machine by itself, and more of them at once would
only take memory. So rows are filled up to a budget of tokens.
"""

from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

ROW = 4096  # tokens of a row, if more than one prompt is in it


def rows_of(model, items, size, tokens=ROW):
    """Cuts a list into rows that are read in one forward each.

    Args:    items: a list; size: a function, item → its tokens; tokens: a row's at most. An item
             that is longer has a row of its own.
    Returns: lists of neighbours.

    Of a sharded model (sharding.py) every process must run each layer equally often, and each has
    prompts of other lengths: there each item has a row of its own.

    >>> rows_of(None, [500, 300, 300, 2000, 100], int, tokens=1000)
    [[500, 300], [300], [2000], [100]]
    """
    if hasattr(model, "unshard"):
        return [[item] for item in items]
    rows, room = [], 0
    for item in items:
        if size(item) > room:
            rows.append([])
            room = tokens
        rows[-1].append(item)
        room -= size(item)
    return rows


@dataclass
class Clip:
    """Q prompts about one clip: prompt, a data.Prompt of what they begin with in common (P tokens,
    all of the video among them); features of its video; rest (Q, T) ids, how each goes on, padded
    on the right; lengths: of the Q rests without padding."""

    prompt: object
    features: torch.Tensor
    rest: torch.Tensor
    lengths: list

    @property
    def shape(self):
        return len(self.prompt.ids), *self.rest.shape

    @property
    def size(self):
        return len(self.prompt.ids) + self.rest.numel()

    @property
    def ends(self):
        """Places of the Q last tokens in [prompt | rest 1 | … | rest Q]."""
        P, _, T = self.shape
        return [P + q * T + n - 1 for q, n in enumerate(self.lengths)]


def clips_of(prompts, features, video_token):
    """Prompts as Clips, each of which is read once.

    Args:    prompts: B of data.Prompt; those about one clip are neighbours and hold the same
             patches, as data.ask makes them; features: their videos'; video_token: the id of
             <|video_pad|>.
    Returns: B / Q Clips of Q prompts. If numbers of prompts differ between clips, or the words
             stand before the video, or nothing is in common: B Clips, each a prompt without a rest
             (Q = 1, T = 0).
    """
    pairs = list(zip(prompts, features, strict=True))
    alone = [Clip(p, seen, p.ids[None, :0], [0]) for p, seen in pairs]
    clips = [list(same) for _, same in groupby(pairs, key=lambda pair: id(pair[0].patches))]
    if len(clips) == len(pairs) or len({len(same) for same in clips}) > 1:
        return alone
    common = [common_length([p.ids.tolist() for p, _ in same]) for same in clips]
    cut = [(p.ids[n:] == video_token).any() for same, n in zip(clips, common) for p, _ in same]
    if any(cut) or not all(common):
        return alone
    made = []
    for same, n in zip(clips, common):
        prompt, seen = same[0]
        rests = [p.ids[n:] for p, _ in same]
        beginning, rest = replace(prompt, ids=prompt.ids[:n]), pad_sequence(rests, batch_first=True)
        made.append(Clip(beginning, seen, rest, [len(ids) for ids in rests]))
    return made


def common_length(rows):
    """How many tokens all rows begin with in common, short of the end of each.

    >>> common_length([[1, 2, 3, 4], [1, 2, 5], [1, 2, 6]])
    2
    """
    most = min(map(len, rows)) - 1
    differing = (i for i in range(most) if len({row[i] for row in rows}) > 1)
    return next(differing, most)
