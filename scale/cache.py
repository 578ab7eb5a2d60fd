"""cache.py: the keys and values that sampling goes on from (prefill and decode_step of model.py)."""

import torch
import torch.nn.functional as F


class GroupCache:
    """Keys and values of B prompts, each held once, and of the rows that go on from them.

    While rows are read, `read[layer]` gets one ((1, K, P + Q·T, d), the same) for each prompt with
    its Q tails of T tokens. After start_decoding, `prompt[layer]` is ((B, K, P, d), the same),
    padded on the left to the longest prompt, and `completions[layer]` (B·G, K, T + C, d): a row's
    tail, then room for its completion. mask (B·G, P + T + C) hides with −inf the padding and the
    places not yet written; length, a tensor: how many of the T + C are written.
    """

    def __init__(self):
        self.read, self.prompt, self.completions = {}, {}, {}
        self.groups, self.lengths = [], []  # (P, Q, T) of each prompt; each tail's own length, (Q,)

    def update(self, key, value, layer):
        """Called by transformers' layers while a row is read."""
        pairs = self.read.setdefault(layer, [])
        lengths = [P + Q * T for P, Q, T in self.groups[len(pairs) :]]
        pairs += zip(*(x.split(lengths, dim=2) for x in (key, value)))
        return key, value

    def start_decoding(self, group_size, max_new_tokens):
        """Makes room for group_size completions of each tail (of each prompt, if it has none)."""
        longest, _, tail = (max(numbers) for numbers in zip(*self.groups))

        def prompts(tensors):  # B of (1, K, P + Q·T, d) → (B, K, P, d)
            both = zip(tensors, self.groups)
            return torch.cat([F.pad(x[:, :, :P], (0, 0, longest - P, 0)) for x, (P, _, _) in both])

        def tails(tensors):  # → (B·G, K, T + C, d). Zeros, as 0 · NaN of masked places is NaN
            each = [x[0, :, P:].unflatten(1, (Q, T)) for x, (P, Q, T) in zip(tensors, self.groups)]
            room = [F.pad(x, (0, 0, 0, tail - x.shape[2] + max_new_tokens)) for x in each]
            return torch.cat(room, dim=1).transpose(0, 1).repeat_interleave(group_size, dim=0)

        for layer in list(self.read):
            keys, values = zip(*self.read.pop(layer))
            self.prompt[layer] = prompts(keys), prompts(values)
            self.completions[layer] = tails(keys), tails(values)
        mask = torch.full(
            (sum(map(len, self.lengths)), longest + tail + max_new_tokens), -torch.inf
        )
        own = [(P, n) for (P, _, _), lengths in zip(self.groups, self.lengths) for n in lengths]
        for row, (P, n) in enumerate(own):
            mask[row, longest - P : longest + n] = 0.0
        self.mask = mask.repeat_interleave(group_size, dim=0).to(keys[0])
        self.tail, self.length = tail, torch.full((1,), tail, device=keys[0].device)

    @property
    def prompt_length(self):
        return self.prompt[0][0].shape[2]
