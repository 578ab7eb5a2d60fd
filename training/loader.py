"""loader.py: the training data: which prompts a step has, and their clips, decoded while the step
before runs."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch

from data import Batch, load_prompt, read_frames
from lib.decoder import Decoder
from lib.errors import BadInput
from lib.identity import is_toy
from lib.processes import on_first, rank, world
from tasks import TASKS, as_task

STAND_INS = 10  # examples tried for one prompt, before the data as a whole counts as unreadable
FIXED = 3  # prompts, the run's first, whose answers are looked at again and again


def training_examples(settings, stand_in):
    """Examples of all tasks, names of their data sets, and flags with which eval.py asks each task.

    stand_in: makes the data of a data set that is not there, see annotations.readers.find_data.
    Tasks are mixed in proportion to their examples, as in the paper.
    """
    examples, names, flags = [], [], []
    say = lambda sentence: print(sentence, file=sys.stderr) if rank() == 0 else None
    from annotations.readers import find_data, read_dataset  # --plan and --help need none

    toy_model = is_toy(settings.model)
    for task in settings.tasks:
        source = TASKS[task].data
        folder, name = on_first(partial(find_data, source, settings.data, stand_in, toy_model))
        read = read_dataset(source, "train", folder, say)[: settings.examples]
        examples += as_task(read, task)
        names.append(name)
        data = f" --data {settings.data}" if settings.data else ""
        flags.append(f"--bench {source} --task {task}{data}")
    return examples, ", ".join(dict.fromkeys(names)), flags


@lru_cache(maxsize=2)
def order_of(n, seed, epoch):
    """A permutation for each pass over the data, the same in every process and world size."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def candidates(examples, position, seed):
    """The example whose turn it is, and those that stand in for it if it cannot be read.

    position: how many prompts the run has had before.
    """
    epoch, i = divmod(position, len(examples))
    order, n = order_of(len(examples), seed, epoch), len(examples)
    return [examples[order[(i + j) % n]] for j in range(min(n, STAND_INS))]


def generator_for(seed, step, k):
    """Random numbers of prompt k of a step: the same in any process, on any device, and beside any
    other prompts."""
    state = np.random.SeedSequence([seed, step, k]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Loader:
    """Gives one process its share of each step: prompts rank · B / world and on, of B per step."""

    def __init__(self, examples, tokenizer, budget, settings, room):
        """room: tokens that a prompt may have."""
        self.examples, self.tokenizer, self.budget = examples, tokenizer, budget
        self.settings, self.room = settings, room
        self.decoder = Decoder(settings.decode_timeout, read_frames)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.kept, self.n_fixed = None, min(FIXED, len(examples))  # what `fixed` has read

    def batches(self, first, steps):
        """Yields (step, data.Batch) for steps first … steps − 1, the next one being read meanwhile.

        Raises BadInput if STAND_INS examples in a row cannot be read.
        """
        upcoming = self.thread.submit(self.share, first) if first < steps else None
        for step in range(first, steps):
            began = time.perf_counter()
            batch = upcoming.result()
            batch.waited = time.perf_counter() - began
            if step + 1 < steps:
                upcoming = self.thread.submit(self.share, step + 1)
            yield step, batch

    def share(self, step):
        """This process's Batch of a step."""
        examples, prompts, generators, skipped = [], [], [], []
        B = self.settings.prompts_per_step
        for k in range(rank() * B // world(), (rank() + 1) * B // world()):
            some = candidates(self.examples, step * B + k, self.settings.seed)
            example, prompt = self.readable(some, step, skipped)
            examples.append(example)
            prompts.append(prompt)
            generators.append(generator_for(self.settings.seed, step, k))
        return Batch(examples, prompts, generators, self.tokenizer, skipped)

    def readable(self, some, step, skipped):
        """(Example, Prompt) of the first of some examples that can be read."""
        for example in some:
            try:
                how = {"max_tokens": self.room, "template": self.settings.template}
                how |= {"think": self.settings.think, "read": self.decoder.read}
                return example, load_prompt(example, self.budget, self.tokenizer, **how)
            except BadInput as e:
                skipped.append({"step": step + 1, "id": example.id, "why": str(e)})
        why = skipped[-1]["why"]
        error = BadInput(f"{len(some)} examples in a row cannot be read, the last because: {why}")
        error.process = rank()  # the only process that knows about it
        raise error

    def fixed(self):
        """The run's first FIXED prompts, shared out: this process's [(number, Example, Prompt,
        Generator)], the generator being the one that the first step samples with.

        Every process gets equally many: where they do not come out even, some prompts are several
        processes' (their numbers are n_fixed and up). They are read once. No example stands in for
        two of them.
        """
        n, seed = self.n_fixed, self.settings.seed
        if self.kept is None:
            numbers = range(rank(), -(-n // world()) * world(), world())
            order = [self.examples[i] for i in order_of(len(self.examples), seed, 0)]
            some = [order[number % n :: n][:STAND_INS] for number in numbers]
            # In the thread: the decoder's process serves one read at a time.
            read = list(self.thread.map(lambda few: self.readable(few, 0, []), some))
            self.kept = [(number, *asked) for number, asked in zip(numbers, read)]
        return [(*kept, generator_for(seed, 0, kept[0] % n)) for kept in self.kept]

    def close(self):
        """Ends the thread and the decoder's process, whatever they are reading."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.decoder.close()
