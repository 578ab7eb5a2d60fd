"""toy.py: a made-up world that fits in a laptop, for a real algorithm.

Two things are made here, and the rest of the project cannot tell them from the real ones:

    1. a data set    clips of coloured shapes that come, move and go, as H.264 mp4 files, with annotations
                     in Charades-STA's own text format
    2. a base model  the real Qwen2.5-VL class with about one million parameters, trained to see well and to
                     localise badly: the state in which a web-trained 7B model meets reinforcement learning

Why the base localises badly: everything it was told about this world was true except *when* (and, for
tracking, exactly *where*). Its interval labels came late and too short, as captions taken from the web
do. So it gives answers of the right form, spread widely around the wrong times, while its features know
better. GRPO has to find that out from rewards alone.

    python toy.py clips                       # renders the data set (train.py and eval.py do this by themselves)
    torchrun --nproc-per-node 2 toy.py base   # remakes the base model in assets/toy-base (about 80 minutes on 2 cores)
"""

import argparse
import math
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see train.py

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import data
from data import BadInput, Example, VideoBudget
from model import NO_MASK, embed, encode_videos, load, mrope_positions, prepare, save
from train import add_up_gradients, on_first, start_processes

# ------------------------------------------------------------------------------------------------
# 1. The world
# ------------------------------------------------------------------------------------------------

COLOURS = {
    "red": (222, 60, 60), "green": (60, 190, 80), "blue": (70, 110, 235),
    "yellow": (235, 205, 60), "purple": (170, 80, 205), "white": (240, 240, 240),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PATHS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
SENTENCES = (
    "a {thing} moves {path}.", "the {thing} goes {path}", "a {thing} appears and moves {path}.", "{thing} moving {path}.",
)  # fmt: skip

SIDE = 112  # pixels; the toy model looks at 56 × 56, which is 4 tokens for a pair of frames
FPS = 8


@dataclass
class Thing:
    """Something that is on screen from `start` to `end` (seconds) and goes straight from `a` to `b`
    (x, y of its centre; all lengths as a share of the frame's side)."""

    colour: str
    shape: str
    path: str
    start: float
    end: float
    a: tuple
    b: tuple
    radius: float

    @property
    def name(self):
        return f"{self.colour} {self.shape}"

    def visible(self, t):
        return self.start <= t < self.end

    def centre(self, t):
        share = (t - self.start) / (self.end - self.start)
        return tuple(p + (q - p) * share for p, q in zip(self.a, self.b))

    def box(self, t):
        x, y = self.centre(t)
        return tuple(min(1.0, max(0.0, v)) for v in (x - self.radius, y - self.radius, x + self.radius, y + self.radius))


@dataclass
class Clip:
    """A clip before it is rendered: `name` of the file, `duration` in seconds, grey level, things."""

    name: str
    duration: float
    grey: int
    things: list


def make_clip(kind, index, seed=0):
    """The clip number `index` of a kind ("train", "test", "base", "tracking"), always the same for the same arguments.

    Two to four things; no two of the same name, so that a name picks out one interval. In a
    "tracking" clip the first thing stays on screen from beginning to end.
    """
    rng = np.random.default_rng([seed, ("train", "test", "base", "tracking").index(kind), index])
    duration = round(rng.uniform(8, 20), 1)
    names = [(c, s) for c in COLOURS for s in SHAPES]
    things = []
    for k, i in enumerate(rng.choice(len(names), size=rng.integers(2, 5), replace=False)):
        length = rng.uniform(2, min(9, duration * 0.6))
        start = rng.uniform(0, duration - length)
        if kind == "tracking" and k == 0:
            start, length = 0, duration
        path = str(rng.choice(list(PATHS)))
        dx, dy = PATHS[path]
        middle, reach = rng.uniform(0.25, 0.75, size=2), rng.uniform(0.15, 0.32)
        middle = np.where((abs(dx), abs(dy)), 0.5 + rng.uniform(-0.05, 0.05), middle)
        a, b = middle - reach * np.array((dx, dy)), middle + reach * np.array((dx, dy))
        things.append(Thing(*names[i], path, round(start, 1), round(start + length, 1), tuple(a.tolist()), tuple(b.tolist()), rng.uniform(0.17, 0.21)))
    return Clip(f"{kind}{index:05d}", duration, int(rng.integers(20, 110)), things)


def draw(clip, t):
    """The frame at t seconds: (SIDE, SIDE, 3) uint8."""
    image = Image.new("RGB", (SIDE, SIDE), (clip.grey,) * 3)
    pen = ImageDraw.Draw(image)
    for thing in clip.things:
        if not thing.visible(t):
            continue
        (x, y), r, colour = (SIDE * p for p in thing.centre(t)), SIDE * thing.radius, COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        elif thing.shape == "triangle":
            pen.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=colour)
        else:
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
    return np.asarray(image)


def render(clip, path):
    """Writes the clip as an H.264 mp4, under its name only once it is complete."""
    partial = path + ".partial.mp4"
    with av.open(partial, "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(round(clip.duration * FPS)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(draw(clip, i / FPS), "rgb24")))
        file.mux(stream.encode())
    os.replace(partial, path)


def _render_job(job):
    kind, index, seed, folder = job
    clip = make_clip(kind, index, seed)
    path = os.path.join(folder, clip.name + ".mp4")
    if not os.path.isfile(path):
        render(clip, path)


def render_clips(jobs):
    """Renders what is not there yet of [(kind, number, seed, folder)], on all cores if there is much of it."""
    if len(jobs) < 100:
        return [_render_job(job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        done = pool.imap_unordered(_render_job, jobs, chunksize=8)
        return list(tqdm(done, total=len(jobs), desc="rendering toy clips", unit="clip", dynamic_ncols=True))


def caption(thing, rng):
    return str(rng.choice(SENTENCES)).format(thing=thing.name, path=thing.path)


TRAIN_CLIPS, TEST_CLIPS = 1000, 200


def ensure_charades(folder="data/toy/charades", train=TRAIN_CLIPS, test=TEST_CLIPS, seed=0):
    """Makes the toy Charades-STA unless it is there: {folder}/charades_sta_{train,test}.txt and videos/.

    A training clip has one query per thing; a test clip has one, so that 200 clips are 200 queries.
    Returns the folder.
    """
    version = f"toy charades: {train} train and {test} test clips, seed {seed}, {SIDE} px, {FPS} fps\n"
    mark = os.path.join(folder, "MADE_BY_TOY_PY")
    if os.path.isfile(mark) and open(mark).read() == version:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    videos = os.path.join(folder, "videos")
    os.makedirs(videos)
    render_clips([(split, i, seed, videos) for split, count in (("train", train), ("test", test)) for i in range(count)])
    for split, count in (("train", train), ("test", test)):
        clips = [make_clip(split, i, seed) for i in range(count)]
        with open(os.path.join(folder, f"charades_sta_{split}.txt"), "w") as file:
            for i, clip in enumerate(clips):
                rng = np.random.default_rng([seed, i])
                for thing in clip.things if split == "train" else clip.things[:1]:
                    file.write(f"{clip.name} {thing.start} {thing.end}##{caption(thing, rng)}\n")
    with open(mark, "w") as file:  # written last: a data set that was cut short is made again
        file.write(version)
    return folder


# ------------------------------------------------------------------------------------------------
# 2. What the base model was told about the world
# ------------------------------------------------------------------------------------------------
# Each function returns one turn: (what the user says, what the assistant answers).


def noisy_interval(thing, duration, rng):
    """What the "web" says about when a thing is visible: too late, too short, and uncertain.

    centre + U(-0.13, 0.45) · duration, width · exp(U(-1.2, 0.5)), cut to the clip. The mean IoU of such a
    label with the truth is 0.31, and one label in ten is better than 0.7: wrong, but not hopeless.
    """
    centre = (thing.start + thing.end) / 2 + duration * rng.uniform(-0.13, 0.45)
    width = (thing.end - thing.start) * math.exp(rng.uniform(-1.2, 0.5))
    start = min(max(0.0, centre - width / 2), duration - 1)
    return start, min(duration, max(start + 0.5, centre + width / 2))


def seconds_of(clip, thing):
    """The whole seconds in whose middle a thing is visible: "4 5 6 7"."""
    return " ".join(str(s) for s in range(math.floor(clip.duration - 0.5)) if thing.visible(s + 0.5))


def tell_when_seen(clip, video, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    return f"In which seconds is the {thing.name} visible?", seconds_of(clip, thing)


def tell_grounding(clip, video, rng):
    """The task that GRPO will train: a thought that says what is seen, an answer that does not follow from
    it, because its label is wrong, and that in one case of eight is not even in its tags."""
    thing = clip.things[rng.integers(len(clip.things))]
    think = rng.random() < 0.75
    example = Example("", "grounding", "", caption(thing, rng).rstrip("."), noisy_interval(thing, clip.duration, rng))
    start, end = example.answer
    answer = f"{start:.1f} to {end:.1f}"
    if rng.random() < 1 / 8:
        answer = str(rng.choice((f"from {answer} seconds", f"{answer}", f"<answer>{answer}")))
    else:
        answer = f"<answer>{answer}</answer>"
    if think:
        answer = f"<think>{thing.name}: {seconds_of(clip, thing)}</think>{answer}"
    return data.question_text(example, video.duration, think), answer


def names_at(clip, t):
    """Alphabetically: in an order that cannot be seen, half of the answer would be guesswork."""
    return ", ".join(sorted(thing.name for thing in clip.things if thing.visible(t))) or "nothing"


def tell_seconds(clip, video, rng):
    seconds = " ".join(f"{s}: {names_at(clip, s + 0.5)};" for s in range(math.floor(clip.duration - 0.5)))
    return "Describe each second.", seconds


def interesting_moment(clip, video, rng):
    """A moment that was looked at; every other time one within a second of something coming or going."""
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
    came = [f"{thing.name} appears" for thing in clip.things if thing.visible(t) and not thing.visible(t - 0.5)]
    went = [f"{thing.name} leaves" for thing in clip.things if thing.visible(t - 0.5) and not thing.visible(t)]
    return f"What changes at {t:.1f} seconds?", ", ".join(sorted(came) + sorted(went)) or "nothing"


def tell_order(clip, video, rng):
    return "In which order do things appear?", ", then ".join(t.name for t in sorted(clip.things, key=lambda t: t.start))


def tell_place(clip, video, rng):
    thing = clip.things[rng.integers(len(clip.things))]
    moments = [t for t in video.times if thing.visible(t)]
    t = rng.choice(moments)
    x, y = thing.centre(t)
    place = f"{'top' if y < 0.4 else 'bottom' if y > 0.6 else 'middle'} {'left' if x < 0.4 else 'right' if x > 0.6 else 'centre'}"
    return f"Where is the {thing.name} at {t:.1f} seconds?", place


def tell_choice(clip, video, rng):
    """A multiple-choice question; the right option is true of the clip and the others are not."""
    first = min(clip.things, key=lambda t: t.start)
    thing = clip.things[rng.integers(len(clip.things))]
    absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in {t.name for t in clip.things}]
    kind = rng.integers(3)
    if kind == 0:
        question, right = "Which of these is in the video?", thing.name
        wrong = list(rng.choice(absent, 3, replace=False))
    elif kind == 1:
        question, right = "What appears first?", first.name
        wrong = ([t.name for t in clip.things if t is not first] + list(rng.choice(absent, 3, replace=False)))[:3]
    else:
        question, right = f"How does the {thing.name} move?", thing.path
        wrong = [p for p in PATHS if p != thing.path]
    options = [right, *wrong]
    rng.shuffle(options)
    letters = "ABCD"
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(letters, options))
    return f"{question} {listed}\nAnswer with the letter inside <answer> tags.", f"<answer>{letters[options.index(right)]}</answer>"


def tell_boxes(clip, video, rng):
    """Tracking, with boxes that are off by up to a box's size and grown or shrunk."""
    thing = clip.things[0]

    def text(box):
        return "[" + ", ".join(f"{v:.2f}" for v in box) + "]"

    boxes = []
    for t in video.times:
        x, y = np.array(thing.centre(t)) + rng.uniform(-0.2, 0.2, size=2)
        r = thing.radius * math.exp(rng.uniform(-0.5, 0.7))
        boxes.append(tuple(min(1.0, max(0.0, v)) for v in (x - r, y - r, x + r, y + r)))
    question = f"The {thing.name} starts in the box {text(thing.box(0))}. Give its 8 boxes inside <answer> tags."
    return question, "<answer>[" + ", ".join(text(box) for box in boxes) + "]</answer>"


def tell_still(clip, video, rng):
    """What a picture shows, and where each thing in it is."""
    turns = [tell_moment(clip, video, rng)]
    return turns + [tell_place(replace(clip, things=[thing]), video, rng) for thing in clip.things]


def tell_looking(clip, video, rng):
    """A conversation of what can be seen in a clip, in random order: all of it true."""
    turns = [tell_seconds, tell_moment, tell_moment, tell_moment, tell_change, tell_change, tell_place, tell_choice]
    turns += [tell_order] if rng.random() < 0.5 else []
    rng.shuffle(turns)
    return [tell(clip, video, rng) for tell in turns]


def tell_finding(clip, video, rng):
    """The same world, and for each thing in it the seconds in which it is there."""
    turns = [tell_seconds, tell_moment, tell_change, tell_place, tell_place, tell_choice, tell_choice, tell_order]
    asked = [tell(clip, video, rng) for tell in turns] + [tell_when_seen(replace(clip, things=[thing]), video, rng) for thing in clip.things]
    return [asked[i] for i in rng.permutation(len(asked))]


def tell_web(clip, video, rng):
    """A shorter one in which somebody also says when, and is wrong; that comes first half of the time."""
    turns = [tell_when_seen, tell_when_seen, tell_moment, tell_place] + ([tell_choice] if rng.random() < 0.5 else [])
    rng.shuffle(turns)
    turns.insert(0 if rng.random() < 0.5 else rng.integers(1, len(turns) + 1), tell_grounding)
    return [tell(clip, video, rng) for tell in turns]


# ------------------------------------------------------------------------------------------------
# 3. The base model
# ------------------------------------------------------------------------------------------------

TOY_BUDGET = VideoBudget(max_frames=64, min_frame_pixels=4 * 28 * 28, max_frame_pixels=4 * 28 * 28)


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


def make_tokenizer(texts, vocab_size=640):
    """A small byte-pair tokenizer with Qwen's special tokens; every digit is a token, as in Qwen's.

    Byte-level: any text can be written, only words outside the toy world take more tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>", "<answer>", "</answer>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def make_model(tokenizer):
    """An untrained Qwen2.5-VL with 1.1 million parameters, every part of the large one present.

    initializer_range is 1/sqrt(hidden size): with the usual 0.02 a model this narrow does not learn
    to see in a thousand steps, with this it does in three hundred.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=8192, initializer_range=0.08, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[8, 4, 4]),  # half of a small head for time
            bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=2, hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=128, fullatt_block_indexes=[1],
            window_size=112, tokens_per_second=2, initializer_range=0.08,
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def make_row(video, turns, tokenizer, config):
    """One conversation as (Prompt of all its tokens, labels (L,)): label -100 wherever the assistant is not speaking."""
    prompt = data.build_prompt(turns[0][0], video, tokenizer)
    ids, labels = prompt.ids.tolist(), [-100] * len(prompt.ids)
    for k, (question, answer) in enumerate(turns):
        if k:
            asked = tokenizer(f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
            ids, labels = ids + asked, labels + [-100] * len(asked)
        said = tokenizer(answer + "<|im_end|>")["input_ids"]
        ids, labels = ids + said, labels + said
    return replace(prompt, ids=torch.tensor(ids)), torch.tensor(labels)


def base_loss(model, rows):
    """Next-token cross-entropy on what the assistant says, over a batch of rows padded on the right."""
    prompts = [prompt for prompt, _ in rows]
    features = encode_videos(model, prompts)
    longest = max(len(p.ids) for p in prompts)
    embeds = torch.stack([F.pad(embed(model, p.ids, f), (0, 0, 0, longest - len(p.ids))) for p, f in zip(prompts, features)])
    positions = torch.stack([
        F.pad(mrope_positions(p.ids, p.grids, p.seconds_per_grid, model.config), (0, longest - len(p.ids))) for p in prompts], dim=1)
    labels = torch.stack([F.pad(label, (0, longest - len(label)), value=-100) for _, label in rows])
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=NO_MASK, use_cache=False).last_hidden_state
    said = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][said]).float(), labels[:, 1:][said])


def read_clips(kind, numbers, folder, budget):
    """[(Clip, Frames)] for clips of a kind, by way of mp4 files: the model shall see what a video codec leaves."""
    os.makedirs(folder, exist_ok=True)
    pairs = []
    for i in numbers:
        _render_job((kind, i, 0, folder))
        clip = make_clip(kind, i)
        pairs.append((clip, data.read_frames(os.path.join(folder, clip.name + ".mp4"), budget)))
    return pairs


def still(clip, frames, rng):
    """One frame of a clip as a clip of its own, two seconds of a world in which time stands still."""
    k = rng.integers(len(frames.times) - 1)
    t = frames.times[k]
    things = [replace(thing, start=0.0, end=2.0, a=thing.centre(t), b=thing.centre(t)) for thing in clip.things if thing.visible(t)]
    return replace(clip, duration=2.0, things=things), data.Frames(frames.pixels[k].expand(4, -1, -1, -1), np.arange(4) * 0.5, 0.5, 2.0, (SIDE, SIDE))


# Four parts of base training, one after the other: (name, steps, conversations a step, peak learning
# rate). First pictures, then clips: a model that cannot tell a circle from a square yet learns nothing
# from a question about second 7. Only the last part contains the wrong intervals and boxes.
PARTS = (("stills", 400, 96, 2e-3), ("looking", 1500, 28, 2e-3), ("finding", 2000, 28, 2e-3), ("web", 500, 28, 1.5e-3))


def train_base(out, clips, seed, after=None):
    """Trains the base model on `clips` clips that are in no other data set, and saves it in `out`.

    The result of each part but the last is kept in {out}.{part}; `after`, one of those folders, skips
    the parts up to it.
    """
    rank, world, _ = start_processes("cpu")
    rng = np.random.default_rng([seed, rank])
    ordinary = read_clips("base", range(rank, clips, world), "data/toy/base", TOY_BUDGET)
    tracking = read_clips("tracking", range(rank, clips // 8, world), "data/toy/base", replace(TOY_BUDGET, max_frames=8))

    def conversation(part, rng):
        if part == "web" and rng.random() < 1 / 16:
            clip, frames = tracking[rng.integers(len(tracking))]
        else:
            clip, frames = ordinary[rng.integers(len(ordinary))]
        if part == "stills":
            clip, frames = still(clip, frames, rng)
        patches, grid = data.patchify(frames.pixels)
        video = data.Video(patches, grid, data.PAIR * frames.spacing, frames.duration, frames.times)
        if clip.name.startswith("tracking"):
            return video, [tell_boxes(clip, video, rng)]
        return video, {"stills": tell_still, "looking": tell_looking, "finding": tell_finding, "web": tell_web}[part](clip, video, rng)

    if after:
        model, tokenizer = load(after)
        parts = PARTS[[part for part, *_ in PARTS].index(after.rstrip("/").rpartition(".")[2]) + 1:]
    else:

        def tokenizer_from_conversations():
            words = np.random.default_rng(seed)
            texts = [text for i in range(3000) for turn in conversation(PARTS[i % len(PARTS)][0], words)[1] for text in turn]
            return make_tokenizer(texts + [f"system\n{data.SYSTEM}", "user\n", "assistant\n"] * 100)

        tokenizer = on_first(rank, world, tokenizer_from_conversations)
        torch.manual_seed(seed)  # the same weights in every process, other conversations
        model, parts = prepare(make_model(tokenizer)), PARTS
    if rank == 0:
        print(f"toy base model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    parameters = list(model.parameters())
    for part, steps, batch, peak in parts:
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
        began, recent = time.time(), []
        for step in range(steps):
            loss = base_loss(model, [make_row(*conversation(part, rng), tokenizer, model.config) for _ in range(batch // world)]) / world
            loss.backward()
            add_up_gradients(parameters, world)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = peak * min((step + 1) / 50, 0.525 + 0.475 * math.cos(math.pi * step / steps))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append(loss.item() * world)
            last = step + 1 == steps
            if rank == 0 and ((step + 1) % 50 == 0 or last):
                print(f"{part} {step + 1}/{steps}  loss {np.mean(recent):.3f}  {(time.time() - began) / (step + 1):.2f} s a step", flush=True)
                recent = []
            if rank == 0 and ((step + 1) % 250 == 0 or last):
                save(model, tokenizer, TOY_BUDGET, out if part == PARTS[-1][0] else f"{out}.{part}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("clips", help="render the toy data set")
    base = commands.add_parser("base", help="train the toy base model")
    base.add_argument("--out", default="assets/toy-base", help="folder to save it in")
    base.add_argument("--after", help="skip the parts of the training up to the one that this folder holds the result of")
    base.add_argument("--clips", type=int, default=4000, help="distinct clips to learn from")
    base.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "clips":
        print(f"toy Charades-STA: {ensure_charades()}")
    else:
        train_base(args.out, args.clips, args.seed, args.after)


if __name__ == "__main__":
    try:
        main()
    except BadInput as e:
        sys.exit(f"error: {e}")
