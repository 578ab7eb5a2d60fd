"""run.py: one run of train.py: what it writes down, shows and saves, and how it is told to stop.

Every process has a Run and calls its methods in the same order; process 0 writes and shows. A full
disk ends the run like a kill: what was saved before is whole, and --resume goes on from there.
"""

import math
import os
import signal
import sys
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from grpo import grpo_step
from lib.errors import BadInput
from lib.files import append_line, read_lines
from lib.identity import versions
from lib.processes import Progress, add_up, largest, on_first, rank, world
from training import log
from training.checkpoint import open_run_folder, read_checkpoint, save_checkpoint
from training.policy import save_policy

STOP = {"signal": None}


def stop_on_signals():
    """The first SIGTERM or SIGINT ends the run after its step, with a save; the second at once."""
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)


def stopped(signum, frame):
    """Notes that the run was told to stop. The next signal does what it does to any program."""
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, signal.SIG_DFL)
    STOP["signal"] = signum
    who = f"process {os.environ.get('RANK', '0')}: told to stop (signal {signum})"
    print(f"{who}: finishing this step, then saving", file=sys.stderr, flush=True)


class Clock:
    """Seconds by phase: `clock("sample")` books the time since the last call under that name."""

    def __init__(self, device, **seconds):
        self.seconds, self.cuda = seconds, "cuda" in str(device)
        self.last = time.perf_counter()

    def __call__(self, phase):
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now


def timed_grpo_step(policy, reference, batch, settings, update_weights, total, clock):
    """grpo_step, and the seconds of its phases. Each ends where something returns that the step was
    given: sampling with policy.sample, rewards and advantages with the sums over processes, …"""

    def ending(phase, function):
        def timed(*args):
            result = function(*args)
            clock(phase)
            return result

        return timed

    @contextmanager
    def timed_reference():
        with reference() as frozen:
            yield frozen
        clock("reference")

    sample = policy.sample
    policy.sample = ending("sample", sample)
    given = (ending("update", update_weights), ending("reward", total))
    try:
        return grpo_step(policy, timed_reference, batch, settings, *given)
    except BadInput as error:  # of a rule, and no other process knows about it
        error.process = rank()
        raise
    finally:
        policy.sample = sample


SAMPLED_EVERY = 25  # steps, between two looks at the same prompts


class Run:
    """The run's folder, opened and locked. With --resume, its newest checkpoint is loaded.

    first: the step it begins with, counted from 0; done: how many steps it has by now.
    """

    def __init__(self, settings, about, policy, tokenizer, budget, optimizer, device):
        self.settings, self.about, self.steps = settings, about, about["steps"]
        self.policy, self.tokenizer, self.budget = policy, tokenizer, budget
        self.optimizer, self.device = optimizer, device
        self.n_weights = sum(p.numel() for p in policy.parameters())
        self.n_trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        also = {"processes": world(), "video_budget": vars(budget), "versions": versions()}
        self.record = vars(settings) | about | also  # settings.json
        self.out, checkpoint = on_first(lambda: open_run_folder(self.record))
        self.first, self.lines, self.agreement = 0, [], None
        self.drawn = time.perf_counter()
        self.counts = dict.fromkeys(("drawn", "skipped", "dropped", "dropped_in_a_row"), 0)
        self.counts["loss_scale"] = optimizer.scale
        if checkpoint:
            state, tensor = read_checkpoint(checkpoint)
            optimizer.load_tensors(tensor)
            self.first, self.counts = state["step"], self.counts | state["counts"]
            optimizer.scale = self.counts["loss_scale"]
        if rank() == 0 and self.first:
            self.lines = read_lines(self.path("metrics.jsonl"))
        self.done = self.saved = self.first
        self.stopping = False
        self.greet()
        self.progress = Progress(self.steps, "step", done=self.first)

    def path(self, name):
        """The path of a file in the run's folder."""
        return os.path.join(self.out, name)

    def greet(self):
        """Says what is trained on what."""
        if rank() == 0:
            s, a = self.settings, self.about
            again = f", going on after step {self.first}" if self.first else ""
            print(
                f"{s.method} on {s.task}: {self.steps} steps, processes: {world()} ({self.device})"
                f"\nmodel: {a['model_name']}, {self.n_weights:,} weights, {self.n_trained:,} "
                f"trained\ndata: {a['data_name']}, {a['examples']} examples; "
                f"run folder {self.out}{again}"
            )

    # What is written down about a step ---------------------------------------------------------

    def log(self, step, batch, outcome, lr, clock):
        """Adds up the processes' sums and counts, checks the sampler once per run, and writes the
        step's lines."""
        sums = outcome.sums | {"drawn": len(batch.examples), "skipped": len(batch.skipped)}
        sums["stop"] = float(STOP["signal"] is not None)
        sums = add_up(sums, self.device)
        self.stopping, self.done = bool(sums["stop"]), step + 1
        if self.agreement is None and outcome.groups:
            dtype = getattr(torch, self.settings.dtype)
            self.agreement = check_sampler(outcome.sampler_gaps, dtype)
        dropped = not math.isfinite(outcome.grad_norm)
        more = {k: sums[k] for k in ("drawn", "skipped")}
        for name, n in (more | {"dropped": dropped, "dropped_in_a_row": dropped}).items():
            self.counts[name] += n
        self.counts["dropped_in_a_row"] *= dropped
        self.counts["loss_scale"] = self.optimizer.scale
        if outcome.groups:
            self.record_group(step, outcome.groups, clock)
        for record in batch.skipped:
            self.append("skipped.jsonl", record)
        if rank():
            return
        line = log.step_metrics(step + 1, sums, outcome.grad_norm, lr, clock.seconds, self.settings)
        line |= {k: self.counts[k] for k in ("skipped", "dropped")}
        if "cuda" in str(self.device):
            line["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        self.lines.append(line)
        self.append("metrics.jsonl", line)

    def record_group(self, step, groups, clock):
        """A line of rollouts.jsonl: every --rollouts-every steps a group, the step's first."""
        if step % self.settings.rollouts_every == 0:
            group = log.token_records(self.policy, self.tokenizer, groups[0])
            if rank() == 0:
                self.append("rollouts.jsonl", {"step": step + 1, **group})
            clock("record")

    def batches(self, loader):
        """Yields the loader's (step, batch). Before the first step, every SAMPLED_EVERY steps and
        after the last, it records the policy's answers to the same few prompts."""
        for step, batch in loader.batches(self.first, self.steps):
            if step % SAMPLED_EVERY == 0:
                self.record_samples(step, loader)
            yield step, batch
        if self.done == self.steps:
            self.record_samples(self.done, loader)

    def record_samples(self, done, loader):
        """Adds a line to samples.jsonl per fixed prompt: its number, and the answers after `done`
        steps. The random numbers are always the same, so answers change because the policy did;
        they are not the training's, which goes on as if nobody had looked."""
        if self.settings.method != "grpo":
            return
        for number, *prompt in loader.fixed():
            record = log.sampled_again(self.policy, self.tokenizer, self.settings, *prompt)
            if number < loader.n_fixed:
                self.append("samples.jsonl", {"step": done, "number": number, **record})

    def append(self, name, record):
        """Adds a record to one of the run's .jsonl files."""
        append_line(self.path(name), record)

    # What is kept --------------------------------------------------------------------------------

    @property
    def ending(self):
        """Whether the step that is done is the run's last."""
        return self.stopping or self.done == self.steps

    def save_if_due(self):
        """The checkpoint and the policy, every --save-every steps and at the end."""
        if self.done % self.settings.save_every == 0 or self.ending:
            self.save()

    def save(self):
        """Writes the checkpoint, then the policy. Raises BadInput where the disk refuses them."""
        tensors, models = self.optimizer.tensors(), (self.policy, self.tokenizer, self.budget)
        try:
            save_checkpoint(self.out, self.done, tensors, self.counts, self.settings.keep)
            save_policy(*models, self.out, self.settings, rank())
        except (OSError, SafetensorError) as e:
            then = "what was saved before is intact; make room, and --resume goes on from there"
            error = BadInput(f"step {self.done} could not be saved ({e}): {then}")
            error.process = rank()
            raise error from e
        self.saved = self.done

    # What is shown -------------------------------------------------------------------------------

    def show(self, step, outcome):
        """A group now and then, the progress bar, the curves. Raises BadInput (check_counts) where
        a run would go on learning from nothing."""
        if rank() == 0:
            line = self.lines[-1]
            if outcome.groups and step % 10 == 0 and not self.settings.quiet:
                from training.shown import group_text  # matplotlib takes its time

                text = group_text(step + 1, log.group_record(outcome.groups[0]))
                self.progress.write(f"{text}\n")
            names = ("reward", "kl", "length") if self.settings.method == "grpo" else ("loss",)
            figures = (f"{k}={line[k]:.3g}" for k in names if line[k] is not None)
            self.progress.update(figures=", ".join(figures))
            if self.agreement and step == self.first and not self.settings.quiet:
                self.progress.write(f"{self.agreement}\n{log.HINT if step == 0 else ''}")
            if self.ending or time.perf_counter() - self.drawn > 60:  # drawing takes a second
                from training.shown import draw_curves

                self.drawn = time.perf_counter()
                draw_curves(self.out, self.lines, self.record)
        check_counts(self.counts, self.path("skipped.jsonl"))

    # The end -------------------------------------------------------------------------------------

    def finish(self, next_commands):
        """Saves the steps since the last save and says how the run ended. Exits with 128 + the
        signal if it was told to stop."""
        if self.done < self.steps and self.saved < self.done:
            self.save()
        if rank() == 0:
            how, then = "done", "\n".join(next_commands)
            if self.done < self.steps:
                how = f"stopped after step {self.done}"
                then = f"the same command with --resume --out {self.out} goes on"
            took = f"{how} in {time.perf_counter() - self.progress.began:.0f} s"
            print(f"{took}; curves: {self.out}/curves.png; policy: {self.out}/policy\n{then}")
        if world() > 1:
            dist.destroy_process_group()
        if self.done < self.steps:
            sys.exit(128 + (STOP["signal"] or signal.SIGTERM))


# Skipped examples as a share of those read. Among the first hundred, five are allowed in any case.
SKIPPED_AT_MOST = 0.05


def check_counts(counts, skipped_file):
    """Raises BadInput where a run would go on learning from nothing."""
    if counts["skipped"] > SKIPPED_AT_MOST * max(100, counts["drawn"]):
        many = f"{counts['skipped']:.0f} of {counts['drawn'] + counts['skipped']:.0f} examples"
        why = f"could not be read, and above {SKIPPED_AT_MOST:.0%} the run stops"
        raise BadInput(f"{many} {why}; each is named in {skipped_file}, with the reason")
    if counts["dropped_in_a_row"] >= 10:
        why = "the gradient was not finite (NaN or infinite) in 10 steps in a row"
        raise BadInput(f"{why}: lower --lr; the last checkpoint is intact")


# How far apart a token's log-probs under sampler and scorer may be, in nats: (mean, 99th
# percentile). float32 differs by the order of its sums. bfloat16 keeps 8 bits; a limit on the
# largest difference would end healthy runs. Toy base, 48 completions: healthy 0.004, 0.06 and 0.25
# at most; with positions off by one 0.025, 0.36 and 4.6. (Over 9,483 tokens of another run a
# healthy mean was 0.023, the largest 0.56.) float16 keeps 11 bits: an eighth of that.
SAMPLER_LIMITS = {
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (0.1, 0.3),
    torch.float16: (0.0125, 0.04),
}


def check_sampler(gaps, dtype):
    """Stops a run whose sampler and scorer are different distributions: it would train on tokens
    that its policy did not draw.

    Args:    gaps (n,): |difference of the two log-probs| of this process's scored tokens of one
             step; every process calls this. dtype: what the policy computes in.
    Returns: a sentence for people.
    Raises:  BadInput over SAMPLER_LIMITS (percentiles: of the process where it is largest).
    """
    device, values = gaps.device, gaps.float()
    sums = add_up({"sum": float(values.sum()), "tokens": len(values)}, device)
    mean = sums["sum"] / sums["tokens"]
    p99 = largest(float(values.quantile(0.99)) if len(values) else 0.0, device)
    said = f"differ by {mean:.1e} on average and {p99:.1e} in the 99th percentile"
    most_mean, most_p99 = SAMPLER_LIMITS[dtype]
    if not (mean <= most_mean and p99 <= most_p99):  # not (…): NaN is beyond every limit
        why = f"rounding alone explains {most_mean:g} and {most_p99:g}: positions, masks or weights"
        raise BadInput(f"the sampler's and the scorer's log-probs {said}; {why} disagree")
    return f"log-probs of sampling and of scoring\n{said}: rounding."
