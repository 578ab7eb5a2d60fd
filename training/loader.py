"""loader.py: the training data: which prompts a step has, and their clips, decoded while the step
before runs."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch

from data import Batch, load_prompt, read_frames
from lib.decoder import Cancelled, Decoder
from lib.errors import BadInput
from lib.identity import is_toy
from lib.processes import add_up, on_first, rank, world
from tasks import TASKS, as_task

STAND_INS = 10  # examples tried for one prompt, before the data as a whole counts as unreadable
FIXED = 3  # prompts, the run's first, whose answers are looked at again and again


def training_examples(settings, stand_in):
    """Examples of all tasks, names of their data sets, and flags for eval.py to ask what was
    trained.

    stand_in: makes the data of a data set that is not there, see annotations.readers.find_data.
    Tasks are mixed in proportion to their examples, as in the paper.
    """
    examples, names, own, other = [], [], [], []
    say = lambda sentence: print(sentence, file=sys.stderr) if rank() == 0 else None
    from annotations.readers import find_data, read_dataset  # --plan and --help need none

    toy_model = is_toy(settings.model)
    for task in settings.tasks:
        source = TASKS[task].data
        find = partial(find_data, source, settings.data, stand_in, toy_model)
        folder, name = on_first(find)
        read = read_dataset(source, "train", folder, say)[: settings.examples]
        if read[0].task == task:
            own.append(source)
        else:
            other.append(f"--bench {source} --task {task}")
        examples += as_task(read, task)
        names.append(name)
    flags = [f"--bench {','.join(own)}"] if own else []
    data = f" --data {settings.data}" if settings.data else ""
    return examples, ", ".join(dict.fromkeys(names)), [words + data for words in flags + other]


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

    def __init__(self, examples, tokenizer, budget, settings, room, device):
        """room: tokens that a prompt may have."""
        self.examples, self.tokenizer, self.budget = examples, tokenizer, budget
        self.settings, self.room, self.device = settings, room, device
        self.decoder = Decoder(settings.decode_timeout, read_frames)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.kept, self.n_fixed = None, min(FIXED, len(examples))  # what `fixed` has read

    def batches(self, first, steps):
        """Yields (step, data.Batch) for steps first … steps − 1, the next one being read meanwhile.

        Ends early where `cancel` ended a read, in whichever process: all of them end at the same
        step. Raises BadInput if STAND_INS examples in a row cannot be read.
        """
        upcoming = self.thread.submit(self.share, first) if first < steps else None
        for step in range(first, steps):
            began = time.perf_counter()
            try:
                batch = upcoming.result()
            except Cancelled:
                batch = None
            if add_up({"cancelled": batch is None}, self.device)["cancelled"]:
                return
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
                how = (self.budget, self.tokenizer, self.settings.think)
                asked = {"max_tokens": self.room, "template": self.settings.template}
                return example, load_prompt(example, *how, read=self.decoder.read, **asked)
            except BadInput as e:
                skipped.append({"step": step + 1, "id": example.id, "why": str(e)})
        why = skipped[-1]["why"]
        error = BadInput(f"{len(some)} examples in a row cannot be read, the last because: {why}")
        error.process = rank()  # the only process that knows about it
        raise error

    def fixed(self):
        """The run's first FIXED prompts, shared out: this process's [(number, Example, Prompt,
        Generator)], the generator being the one that the first step samples with. [] in all
        processes where one cannot read its own, or was cancelled.

        Every process calls this, and gets equally many: where they do not come out even, some
        prompts are several processes' (their numbers are n_fixed and up). They are read once. No
        example stands in for two of them.
        """
        n, seed = self.n_fixed, self.settings.seed
        if self.kept is None:
            own, failed = [], 0.0
            order = order_of(len(self.examples), seed, 0)
            try:
                for number in range(rank(), -(-n // world()) * world(), world()):
                    some = [self.examples[i] for i in order[number % n :: n][:STAND_INS]]
                    # In the thread: the decoder's process serves one read at a time.
                    read = self.thread.submit(self.readable, some, 0, [])
                    own.append((number, *read.result()))
            except (Cancelled, BadInput) as e:
                failed = 1.0
                if isinstance(e, BadInput):
                    said = "the run's first clips cannot be read: no samples.jsonl"
                    print(f"{said} ({e})", file=sys.stderr)
            self.kept = [] if add_up({"failed": failed}, self.device)["failed"] else own
        return [(*kept, generator_for(seed, 0, kept[0] % n)) for kept in self.kept]

    def cancel(self):
        """Ends a read that waits. May be called from a signal handler."""
        self.decoder.cancel()

    def close(self):
        """Ends the thread and the decoder's process, whatever they are reading."""
        self.decoder.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.decoder.stop()
