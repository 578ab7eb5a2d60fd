"""cache.py: keys and values that sampling goes on from (prefill and decode_step of model.py)."""

import torch
import torch.nn.functional as F


class GroupCache:
    """Keys and values of prompts, each held once, and of the rows that go on from them.

    lengths: of each of B prompts (P, [how long each of its Q branches is]); T: the longest branch.
    (In training Q = 1 and T = 0; evaluation/branches.py has others.) While prompts are read,
    `read[layer]` gets one ((1, K, P + Q·T, d), the same) for each. After start_decoding,
    `prompt[layer]` is ((B, K, P, d), the same), padded on the left to the longest, and
    `completions[layer]` (B·Q·G, K, T + C, d): each row's branch, then room for its completion. mask
    (B·Q·G, P + T + C) hides with −inf the padding and the places not yet written; length, a tensor:
    how many of the T + C are written.
    """

    def __init__(self, lengths):
        self.lengths, self.read, self.prompt, self.completions = lengths, {}, {}, {}

    def update(self, key, value, layer, *_, **__):
        """Called by transformers' layers while a prompt is read."""
        self.read.setdefault(layer, []).append((key, value))
        return key, value

    def start_decoding(self, group_size, max_new_tokens):
        """Makes room for group_size completions of each prompt."""
        shapes = [(P, len(branches), max(branches)) for P, branches in self.lengths]
        longest, _, self.tail = (max(numbers) for numbers in zip(*shapes))
        places = self.tail + max_new_tokens  # of a row, after what it shares

        def prompts(tensors):  # B of (1, K, P + Q·T, d) → (B, K, P, d)
            cut = [x[:, :, :P] for x, (P, _, _) in zip(tensors, shapes)]
            return torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in cut])

        def rests(tensors):  # → (B·Q·G, K, T + C, d). Zeros, as 0 · NaN of masked places is NaN
            each = [x[0, :, P:].unflatten(1, (Q, T)) for x, (P, Q, T) in zip(tensors, shapes)]
            room = [F.pad(x, (0, 0, 0, places - x.shape[2])) for x in each]
            return torch.cat(room, dim=1).transpose(0, 1).repeat_interleave(group_size, dim=0)

        for layer in list(self.read):
            keys, values = zip(*self.read.pop(layer))
            self.prompt[layer] = prompts(keys), prompts(values)
            self.completions[layer] = rests(keys), rests(values)
        mask = torch.full((sum(Q for _, Q, _ in shapes), longest + places), -torch.inf)
        own = [(P, n) for P, branches in self.lengths for n in branches]
        for row, (P, n) in enumerate(own):
            mask[row, longest - P : longest + n] = 0.0
        self.mask = mask.repeat_interleave(group_size, dim=0).to(keys[0])
        self.length = torch.full((1,), self.tail, device=keys[0].device)

    @property
    def shape(self):
        """(B, Q·G): the prompts, and the rows of each."""
        prompts, rows = len(self.prompt[0][0]), len(self.completions[0][0])
        return prompts, rows // prompts

    @property
    def prompt_length(self):
        return self.prompt[0][0].shape[2]
