"""branches.py: questions about one clip are read as branches of what they have in common.

The video stands first in a prompt, so questions about it begin alike, and all that is long in them
is read once: the idea of model.py's section 3 once more.
"""

from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from lib.decoding import GroupCache
from model import read, token_logits


def prefill(model, prompts, features):
    """As model.prefill; of prompts about one clip what they have in common is read only once."""
    clips, last, after = clips_of(prompts, features, model.config.video_token_id), [], []
    cache = GroupCache([(len(clip.prompt.ids), clip.lengths) for clip in clips])
    for clip in clips:
        hidden, positions = read(model, clip.prompt, clip.features, clip.rest, cache)
        last += [hidden[i] for i in clip.ends]
        after.append(positions[:, clip.ends].amax(dim=0) + 1)
    last = torch.stack(last)
    return token_logits(model, last), cache, torch.cat(after).to(last.device)


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
    def ends(self):
        """Places of the Q last tokens in [prompt | rest 1 | … | rest Q]."""
        P, T = len(self.prompt.ids), self.rest.shape[1]
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
