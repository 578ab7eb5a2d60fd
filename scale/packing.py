"""packing.py: how many prompts share a forward.

On a small model a forward is mostly the starting of kernels, and eight prompts in one row start an
eighth as many. On a large one a prompt fills the machine by itself, and more of them at once would
only take memory: so rows are filled up to a budget of tokens.
"""

ROW = 4096  # tokens of a row, if more than one prompt is in it


def rows_of(model, lengths, tokens=ROW):
    """Which neighbours share a row: lists of their numbers.

    Args:    lengths: tokens of each; tokens: a row's at most. What is longer has a row of its own.

    Of a sharded model (sharding.py) every process must run each layer equally often, and each has
    prompts of other lengths: there each has a row of its own.

    >>> rows_of(None, [500, 300, 300, 2000, 100], tokens=1000)
    [[0, 1], [2], [3], [4]]
    """
    if hasattr(model, "unshard"):
        return [[i] for i in range(len(lengths))]
    rows, room = [], 0
    for i, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = tokens
        rows[-1].append(i)
        room -= length
    return rows
