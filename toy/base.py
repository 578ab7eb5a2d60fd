"""base.py: the small model that lives in the toy world, trained to see well and to answer badly.

It is the real Qwen2.5-VL class with about one million parameters. Reinforcement learning should
meet it in the state in which it meets a web-trained 7B model: what the model was told about the
world is true, except for when things are visible, exactly where they are, which letter is right and
what is of low quality. Its interval labels were late and uncertain, its boxes mostly off by a third
of their size, its letters often wrong, like captions and forum answers taken from the web. So it
gives answers of the right form, most of them wrong, while its thoughts know better. GRPO has to
find that out from rewards alone.

    torchrun --nproc-per-node 2 -m toy.base    # makes such a model, in hours

A killed training goes on when the same command is given again. The shipped model was made
otherwise: the base of the world before this one (commit 244017d), which had learned to see in it,
went through the last three parts, at most 450 steps of each, in 40 minutes on two busy cores. Its
log is assets/toy-base-training.log. After a look "roaming" was added and the intervals of the "web"
made later (U(-0.08, 0.26), before it U(-0.10, 0.22)): the thoughts about tracked things were no
better than a guess, and with a thought charades stood at 47.7 already. "finding" came after it.
"""

import argparse
import math
import os
import time
from dataclasses import replace
from functools import partial

import lib  # noqa: F401  before torch: how its CPU threads wait

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import data
import tasks
from annotations.training_sets import even_frames
from data import Example, VideoBudget
from lib.errors import run_program
from lib.processes import on_first, rank, start_processes
from lib.processes import world as processes
from lib.video import numbered_pictures
from lib.weights import save
from model import encode_videos, prepare, read
from toy import world
from toy.world import caption, make_clip
from training.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from training.optimizer import MasterAdamW

# ------------------------------------------------------------------------------------------------
# What the model was told
# ------------------------------------------------------------------------------------------------
# Each function returns one turn: (what the user says, what the assistant answers).


def noisy_interval(thing, duration, rng):
    """What the "web" says about when a thing is visible: too late, and uncertain.

    centre + U(-0.08, 0.26) · duration, width · exp(U(-0.9, 0.9)), cut to the clip. Without the
    bias (mean 0.09, a second and a half) a model that minimises cross-entropy reads through the
    noise: it stood at 50 mIoU, and little was left to learn from rewards.
    """
    centre = (thing.start + thing.end) / 2 + duration * rng.uniform(-0.08, 0.26)
    width = (thing.end - thing.start) * math.exp(rng.uniform(-0.9, 0.9))
    start = min(max(0.0, centre - width / 2), duration - 1)
    return start, min(duration, max(start + 0.5, centre + width / 2))


def seconds_of(clip, thing):
    """The whole seconds in whose middle a thing is visible, "4 5 6 7", without the clip's last."""
    seconds = range(math.floor(clip.duration - 0.5))
    return " ".join(str(s) for s in seconds if thing.visible(s + 0.5))


def tell_when_seen(clip, video, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    return f"In which seconds is the {thing.name} visible?", seconds_of(clip, thing)


def turn(task, question, given, video, thought, answer, **extra):
    """A question in the words of tasks.py, and what is said; thought: None if it asks for none."""
    think, example = thought is not None, Example("", task, "", question, given, **extra)
    words = tasks.question_text(example, video.duration, think)
    return words, f"<think>{thought}</think>{answer}" if think else answer


def thinks(rng):
    return rng.random() < 0.75


def tell_grounding(clip, video, rng):
    """Asks when. The thought says what is seen.

    The answer does not follow from it, because its label is wrong; in one case of eight the answer
    is not in its tags.
    """
    thing = clip.things[rng.integers(len(clip.things))]
    thought = f"{thing.name}: {seconds_of(clip, thing)}" if thinks(rng) else None
    start, end = noisy_interval(thing, clip.duration, rng)
    said = f"{start:.1f} to {end:.1f}"
    answer = f"<answer>{said}</answer>"
    if rng.random() < 1 / 8:
        answer = str(rng.choice((f"from {said} seconds", said, f"<answer>{said}")))
    return turn("grounding", caption(thing, rng).rstrip("."), None, video, thought, answer)


def names_at(clip, t):
    """In alphabetical order: another order cannot be seen, and would have to be guessed."""
    return ", ".join(sorted(thing.name for thing in clip.things if thing.visible(t))) or "nothing"


def tell_seconds(clip, video, rng):
    seconds = range(math.floor(clip.duration - 0.5))
    return "Describe each second.", " ".join(f"{s}: {names_at(clip, s + 0.5)};" for s in seconds)


def interesting_moment(clip, video, rng):
    """The time of a frame; in half of the cases within a second of something coming or going."""
    t = rng.choice(video.times[:-1])
    if clip.things and rng.random() < 0.5:
        thing = clip.things[rng.integers(len(clip.things))]
        wanted = (thing.start, thing.end)[rng.integers(2)] + rng.uniform(-1, 1)
        t = video.times[np.abs(video.times - wanted).argmin()]
    return t


def tell_moment(clip, video, rng):
    t = interesting_moment(clip, video, rng)
    return f"What is visible at {t:.1f} seconds?", names_at(clip, t)


def tell_change(clip, video, rng):
    t = interesting_moment(clip, video, rng)
    came, went = [], []
    for thing in clip.things:
        before, now = thing.visible(t - 0.5), thing.visible(t)
        if now and not before:
            came.append(f"{thing.name} appears")
        if before and not now:
            went.append(f"{thing.name} leaves")
    return f"What changes at {t:.1f} seconds?", ", ".join(sorted(came) + sorted(went)) or "nothing"


def tell_order(clip, video, rng):
    return "In which order do things appear?", ", then ".join(t.name for t in clip.in_order)


def tell_place(clip, video, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    t = rng.choice([t for t in video.times if thing.visible(t)])
    x, y = thing.centre(t)
    row = "top" if y < 0.4 else "bottom" if y > 0.6 else "middle"
    column = "left" if x < 0.4 else "right" if x > 0.6 else "centre"
    return f"Where is the {thing.name} at {t:.1f} seconds?", f"{row} {column}"


def centres_of(thing, times):
    """The centre of a thing in each frame: "0.35 0.62; 0.41 0.62; -; …", "-" while it is away."""
    centres = ("{:.2f} {:.2f}".format(*thing.centre(t)) if thing.visible(t) else "-" for t in times)
    return "; ".join(centres)


def tell_centres(clip, video, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    question = f"Where is the {thing.name} in each of the 8 frames?"
    return question, centres_of(thing, video.times)


def tell_boxes(clip, video, rng):
    """The boxes of a thing whose first box is given: what tracking asks, in other words; true."""
    said = [tasks.box_text(clip.things[0].box(t)) for t in video.times]
    return f"The {clip.things[0].name} starts at {said[0]}. Follow it.", ", ".join(said)


def tell_tracking(clip, video, rng, careless=0.0):
    """Asks where. The thought has the true centres. With probability `careless` all eight boxes are
    too far down and to the right, by about a third of their size."""
    thing = clip.things[0]
    thought = centres_of(thing, video.times) if thinks(rng) else None
    off = rng.uniform(0.08, 0.14, size=2) * (rng.random() < careless)
    boxes = []
    for t in video.times:
        (x, y), r = np.array(thing.centre(t)) + off, thing.radius
        boxes.append(tuple(min(1.0, max(0.0, v)) for v in (x - r, y - r, x + r, y + r)))
    answer = f"<answer>[{', '.join(map(tasks.box_text, boxes))}]</answer>"
    return turn("tracking", thing.name, [thing.box(0)], video, thought, answer)


def tell_fact(clip, video, rng):
    """The questions of the multiple-choice data sets, without options."""
    ask = list(world.QUESTIONS.values())[rng.integers(1, len(world.QUESTIONS))]
    question, _, right, _ = ask(clip, rng)
    return f"In a word: {question}?", right


def tell_choice(clip, video, rng, first_letter=0.0, grounded=False):
    """Multiple choice: a thought that says what is true, and the letter of that.

    With probability `first_letter` the letter is A instead. With `grounded` the answer has the
    seconds of the evidence, too, as wrong as all intervals.
    """
    kinds = world.GROUNDED if grounded else list(world.QUESTIONS)
    question, options, right, thing = world.QUESTIONS[kinds[rng.integers(len(kinds))]](clip, rng)
    letter = "A" if rng.random() < first_letter else "ABCDEF"[options.index(right)]
    think, answer, thought = thinks(rng), f"<answer>{letter}</answer>", right
    if grounded:
        start, end = noisy_interval(thing, clip.duration, rng)
        answer += f"<glue>[({start:.1f}, {end:.1f})]</glue>"
        thought = f"{right}; {thing.name}: {seconds_of(clip, thing)}"
    task, thought = "gqa" if grounded else "qa", thought if think else None
    return turn(task, question, None, video, thought, answer, options=tuple(options))


def tell_web_choice(clip, video, rng):
    return tell_choice(clip, video, rng, first_letter=0.55, grounded=rng.random() < 0.6)


def tell_damage(clip, video, rng):
    return "How does the picture look?", clip.damage or "clean"


def tell_quality(clip, video, rng, careless=0.0):
    """The thought says what is wrong; with probability `careless` the answer is "high" anyway."""
    thought = (clip.damage or "clean") if thinks(rng) else None
    low = clip.damage and rng.random() >= careless
    answer = f"<answer>{'low' if low else 'high'} quality</answer>"
    return turn("quality", "", None, video, thought, answer)


def tell_caption(clip, video, rng):
    """What happens; one event in ten is left out."""
    thought = ", ".join(thing.name for thing in clip.in_order) if thinks(rng) else None
    happened = [event for event in world.events(clip) if rng.random() < 0.9]
    answer = f"<answer>{'. '.join(happened) or 'nothing'}.</answer>"
    return turn("caption", "", None, video, thought, answer)


def tell_still(clip, video, rng):
    """What a picture shows, where each thing in it is, and how it looks."""
    turns = [tell_moment(clip, video, rng), tell_damage(clip, video, rng)]
    return turns + [tell_place(replace(clip, things=[thing]), video, rng) for thing in clip.things]


def tell_looking(clip, video, rng):
    """A conversation about what can be seen in a clip, in random order: all of it true."""
    alone = [replace(clip, things=[thing]) for thing in clip.things]
    if clip.name.startswith("got10k"):
        return [tell_centres(one, video, rng) for one in alone]
    turns = [tell_seconds, tell_moment, tell_moment, tell_change, tell_place, tell_order]
    said = [tell(clip, video, rng) for tell in (*turns, tell_fact, tell_fact)]
    said += [tell_when_seen(one, video, rng) for one in alone]
    if clip.name.startswith("quality"):
        said.append(tell_damage(clip, video, rng))
    return [said[i] for i in rng.permutation(len(said))]


def tell_finding(clip, video, rng):
    """The same without the descriptions from which a thing's seconds could be copied: they have to
    be found in the video."""
    alone = [replace(clip, things=[thing]) for thing in clip.things]
    if clip.name.startswith("got10k"):
        return [tell_centres(one, video, rng) for one in alone]
    said = [tell_when_seen(one, video, rng) for one in alone]
    said += [tell(clip, video, rng) for tell in (tell_moment, tell_fact)]
    return [said[i] for i in rng.permutation(len(said))]


def tell_answering(clip, video, rng):
    """Answers of every form: facts and letters, when and where. All of them are true, but for the
    seconds of evidence."""
    if clip.name.startswith("got10k"):
        follow = tell_boxes if rng.random() < 0.3 else tell_tracking
        turns = [tell_centres, follow]
    elif clip.name.startswith("quality"):
        turns = [tell_damage, tell_quality, tell_when_seen]
    else:
        last = tell_seconds if rng.random() < 0.5 else tell_caption
        grounded = partial(tell_choice, grounded=True)
        turns = [*2 * [tell_choice, tell_fact, tell_when_seen], tell_place, grounded, last]
    return [turns[i](clip, video, rng) for i in rng.permutation(len(turns))]


def tell_web(clip, video, rng):
    """A shorter conversation that also says when, where or which letter, often wrongly; in half of
    the cases first of all."""
    if clip.name.startswith("got10k"):
        before = [tell_centres(clip, video, rng)] if rng.random() < 0.3 else []
        return [*before, tell_tracking(clip, video, rng, careless=0.75)]
    if clip.name.startswith("quality"):
        return [tell_quality(clip, video, rng, careless=0.6)]
    turns = [*2 * [tell_when_seen], tell_moment, tell_fact]
    turns.append(tell_caption if rng.random() < 0.5 else tell_place)
    rng.shuffle(turns)
    for doubtful in (tell_grounding, tell_web_choice):
        turns.insert(0 if rng.random() < 0.5 else rng.integers(1, len(turns) + 1), doubtful)
    return [tell(clip, video, rng) for tell in turns]


def tell_roaming(clip, video, rng):
    """The same, with more about where a tracked thing is: it is hard to see, in frames two seconds
    apart."""
    if not clip.name.startswith("got10k"):
        return tell_web(clip, video, rng)
    turns = [tell_centres(replace(clip, things=clip.things[:1]), video, rng)]
    if rng.random() < 0.4:
        turns.insert(rng.integers(2), tell_tracking(clip, video, rng, careless=0.75))
    return turns


# ------------------------------------------------------------------------------------------------
# The model
# ------------------------------------------------------------------------------------------------

TOY_BUDGET = VideoBudget(max_frames=64, min_frame_pixels=4 * 28 * 28, max_frame_pixels=4 * 28 * 28)

MARKS = "endoftext im_start im_end vision_start vision_end vision_pad image_pad video_pad"
SPECIAL = [f"<|{name}|>" for name in MARKS.split()]


def make_tokenizer(texts, vocab_size=640):
    """A small byte-pair tokenizer with Qwen's special tokens; every digit is a token, as in Qwen's.

    Byte-level: any text can be written, only words outside the toy world take more tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    steps = [Split(words, "isolated"), ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    kept = dict(special_tokens=SPECIAL, initial_alphabet=ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **kept)
    tokenizer.train_from_iterator(texts, trainer)
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    ends = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def make_model(tokenizer):
    """An untrained Qwen2.5-VL with 1.1 million parameters and every part that the large one has.

    initializer_range is 1/sqrt(hidden size). With the usual 0.02 a model this narrow does not learn
    to see in a thousand steps; with this it does in three hundred.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    end, padding = ids["<|im_end|>"], ids["<|endoftext|>"]
    # mrope_section: frequencies for time, row, column; the 7B model has 16, 24, 24
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[8, 4, 4])
    text = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4)
    text |= dict(num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    text |= dict(vocab_size=len(tokenizer), max_position_embeddings=8192, initializer_range=0.08)
    text |= dict(bos_token_id=None, eos_token_id=end, pad_token_id=padding)
    vision = dict(hidden_size=64, intermediate_size=128, depth=2, num_heads=4, out_hidden_size=128)
    vision |= dict(fullatt_block_indexes=[1], window_size=112)
    vision |= dict(tokens_per_second=2, initializer_range=0.08)
    config = Qwen2_5_VLConfig(
        text_config=text | dict(tie_word_embeddings=True),
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        toy=True,  # this, and whatever is trained from it: lib/identity.py
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [end, padding]
    model.generation_config.pad_token_id = padding
    return model


def make_row(video, turns, tokenizer, config):
    """One conversation as (Prompt of all its L tokens, labels (L,)).

    A label is -100 wherever the assistant is not speaking.
    """
    prompt = data.build_prompt(turns[0][0], video, tokenizer)
    ids, labels = prompt.ids.tolist(), [-100] * len(prompt.ids)
    for k, (question, answer) in enumerate(turns):
        if k:
            words = f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            asked = tokenizer(words)["input_ids"]
            ids, labels = ids + asked, labels + [-100] * len(asked)
        said = tokenizer(answer + "<|im_end|>")["input_ids"]
        ids, labels = ids + said, labels + said
    return replace(prompt, ids=torch.tensor(ids)), torch.tensor(labels)


def base_loss(model, rows):
    """Next-token cross-entropy on what the assistant says, a mean over the tokens of all rows."""
    states, tokens = [], []
    features = encode_videos(model, [prompt for prompt, _ in rows])
    for (prompt, labels), seen in zip(rows, features):
        hidden, _ = read(model, prompt, seen, prompt.ids[None, :0])  # (L, D); no branches
        said = labels[1:] != -100
        states.append(hidden[:-1][said])
        tokens.append(labels[1:][said])
    return F.cross_entropy(model.lm_head(torch.cat(states)).float(), torch.cat(tokens))


def read_clips(kind, numbers, folder, budget):
    """[(Clip, Frames)] of a kind, through real files: the model should see what a codec leaves."""
    os.makedirs(folder, exist_ok=True)
    pairs = []
    for i in numbers:
        path = world.render_job((kind, i, 0, folder))
        tracked = even_frames(len(numbered_pictures(path))) if kind == "got10k" else ()
        pairs.append((make_clip(kind, i), data.read_frames(path, budget, frames=tracked)))
    return pairs


def still(clip, frames, rng):
    """One frame of a clip as a clip of two seconds in which nothing moves."""
    k = rng.integers(len(frames.times) - 1)
    t = frames.times[k]
    seen = [thing for thing in clip.things if thing.visible(t)]
    things = [replace(thing, start=0.0, end=2.0, points=(thing.centre(t),)) for thing in seen]
    pixels = frames.pixels[k].expand(4, -1, -1, -1)
    frames = data.Frames(pixels, np.arange(4) * 0.5, 0.5, 2.0)
    return replace(clip, duration=2.0, things=things), frames


# The parts of base training: (name, what is told, steps, conversations per step, peak learning
# rate, shares of clips for tracking and for quality; the others are ordinary ones). Pictures come
# before clips: a model that cannot tell a circle from a square yet learns nothing from a question
# about second 7. Only the last two contain the wrong intervals, boxes and letters.
PARTS = (
    ("stills", tell_still, 1000, 64, 2e-3, (0.0, 0.2)),
    ("looking", tell_looking, 3000, 16, 2e-3, (0.3, 0.08)),
    ("finding", tell_finding, 4000, 16, 2e-3, (0.25, 0.05)),
    ("answering", tell_answering, 1000, 16, 8e-4, (0.4, 0.15)),
    ("web", tell_web, 300, 24, 1e-3, (0.4, 0.15)),
    ("roaming", tell_roaming, 350, 24, 1e-3, (0.7, 0.05)),
)


class Conversations:
    """The clips to learn from, a process's share of them, and conversations about them."""

    def __init__(self, clips):
        def read(kind, first, count):
            numbers = range(first + rank(), first + count, processes())
            return read_clips(kind, numbers, f"data/toy/base-{kind}", TOY_BUDGET)

        self.ordinary = read("base", 0, clips)
        # The data sets of these two kinds use numbers below 1000.
        self.tracking = read("got10k", 1000, clips // 3)
        self.quality = read("quality", 1000, clips // 5)

    def draw(self, part, rng):
        """(Video, [(question, answer), …]) for one of PARTS."""
        name, tell, *_, (tracking, quality) = part
        clips, chance = self.ordinary, rng.random()
        if chance < tracking + quality:
            clips = self.tracking if chance < tracking else self.quality
        clip, frames = clips[rng.integers(len(clips))]
        if name == "stills":
            clip, frames = still(clip, frames, rng)
        patches, grid = data.patchify(frames.pixels)
        video = data.Video(patches, grid, data.PAIR * frames.spacing, frames.duration, frames.times)
        return video, tell(clip, video, rng)

    def tokenizer(self, seed):
        """A tokenizer trained on the words of 3,000 conversations from all parts."""
        rng, texts = np.random.default_rng(seed), []
        for i in range(3000):
            _, turns = self.draw(PARTS[i % len(PARTS)], rng)
            texts += [text for turn in turns for text in turn]
        system = f"system\n{data.FAMILIES['qwen2_5_vl'].system}"
        return make_tokenizer(texts + [system, "user\n", "assistant\n"] * 100)


SAVE_EVERY = 100  # steps


def train_base(out, clips, seed, most_steps):
    """Trains the base model on `clips` clips that are in no other data set, and saves it in `out`.

    most_steps: of each part. Checkpoints are kept in {out}.training, a folder for each part: a part
    whose folder is removed, with those after it, is trained again. No state of a random generator
    is among them: what is told depends on seed, process, part and step alone.
    """
    start_processes("cpu")
    folder = f"{out}.training/clips-{clips}-seed-{seed}-steps-{most_steps}"
    conversations = Conversations(clips)
    tokenizer = on_first(lambda: kept_tokenizer(f"{folder}/tokenizer", conversations, seed))
    torch.manual_seed(seed)  # the same weights in every process, other conversations
    model = prepare(make_model(tokenizer))
    if rank() == 0:
        count = sum(p.numel() for p in model.parameters())
        print(f"toy base model: {count:,} parameters, {len(tokenizer)} tokens", flush=True)
    for number, part in enumerate(PARTS):
        name, _, steps, batch, peak, _ = part

        def rows(step, part=part, number=number, batch=batch):
            rng = np.random.default_rng([seed, rank(), number, step])
            drawn = [conversations.draw(part, rng) for _ in range(batch // processes())]
            return [make_row(*each, tokenizer, model.config) for each in drawn]

        train_part(f"{folder}/{name}", rows, min(steps, most_steps), peak, model)
    if rank() == 0:
        save(model, tokenizer, TOY_BUDGET, out)


def kept_tokenizer(folder, conversations, seed):
    """Trained once: its ids are what the checkpoints of all parts were trained on, also if PARTS
    has changed since."""
    if not os.path.isdir(folder):
        conversations.tokenizer(seed).save_pretrained(f"{folder}.new")
        os.rename(f"{folder}.new", folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def train_part(folder, rows, steps, peak, model):
    """One part of the training, from its newest checkpoint on. rows: a step's number → its
    conversations. Process 0 reports every 50 steps."""
    optimizer, done = MasterAdamW(model, peak), 0
    if newest := newest_checkpoint(folder):
        state, kept = read_checkpoint(newest)
        optimizer.load_tensors(kept)
        done = state["step"]
    began, recent = time.time(), []
    for step in range(done + 1, steps + 1):
        loss = base_loss(model, rows(step)) / processes()
        loss.backward()
        cosine = 0.525 + 0.475 * math.cos(math.pi * (step - 1) / steps)
        optimizer.step(peak * min(step / 50, cosine), 1.0, processes())
        recent.append(loss.item() * processes())
        if rank() == 0 and (step % 50 == 0 or step == steps):
            seconds = (time.time() - began) / (step - done)
            said = f"loss {np.mean(recent):.3f}  {seconds:.2f} s per step"
            print(f"{os.path.basename(folder)} {step}/{steps}  {said}", flush=True)
            recent = []
        if step % SAVE_EVERY == 0 or step == steps:
            save_checkpoint(folder, step, optimizer.tensors(), {}, keep=1)


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m toy.base", None, __doc__, formatter_class=form)
    parser.add_argument("--out", default="assets/toy-base", help="folder to save it in")
    parser.add_argument("--clips", type=int, default=3000, help="distinct clips to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10**6, help="at most, of each part: for a try")
    args = parser.parse_args()
    train_base(args.out, args.clips, args.seed, args.steps)


if __name__ == "__main__":
    run_program(main)
