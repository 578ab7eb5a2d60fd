"""data.py: from a video file and an annotation line to what the model reads.

The way of one example (T frames, N patches, P prompt tokens; grid: pairs of frames, rows and
columns of patches):

    mp4 ─lib.video─▶ frames (T, H, W, 3) uint8 ──▶ patches (N, 1176) + grid (t, h, w) ─┐
    annotation ──▶ Example ──▶ prompt text ───────────────────────────────────────────┴▶ Prompt

Everything that the usual "processor" of Qwen2.5-VL hides is done here by hand: which frames are
looked at, how large they are, and how they are cut into patches. A wrong constant in this file does
not crash; it quietly makes the model see another clip. So each one is explained. Numbers in the
comments are Qwen2.5-VL's; those of the other family stand in lib/families.py.

What is missing: images, audio, and several videos in one question.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import torch
import torch.nn.functional as F

from lib.errors import NUMBER, BadInput, read_object
from lib.families import FAMILIES
from lib.video import Frames, opened
from tasks import words_around

# ------------------------------------------------------------------------------------------------
# 1. Which frames, and how large
# ------------------------------------------------------------------------------------------------

MERGE = 2  # 2 × 2 neighbouring patches of 14 × 14 pixels become one token ...
PAIR = 2  # ... and so do 2 consecutive frames
# So both sides of a frame are multiples of 28 pixels, the family's cell.


@dataclass(frozen=True)
class VideoBudget:
    """How much of a video the model gets to see. The defaults are the paper's.

    A token covers 28 × 28 pixels of two consecutive frames. Pixel counts below are therefore
    (number of tokens) · 28 · 28, and the two frames of a pair count once.

    The values travel with the model: a saved policy carries them in `video_budget.json`, so that it
    is evaluated on what it was trained on, and the toy policy brings its own small ones.
    """

    fps: float = 2.0  # frames looked at per second of video
    max_frames: int = 768  # at most; the next two values leave room for 448
    total_pixels: int = 3584 * 28 * 28  # 3584 video tokens at most
    min_frame_pixels: int = 16 * 28 * 28  # a pair of frames gets at least 16 tokens ...
    max_frame_pixels: int = 768 * 28 * 28  # ... and at most 768
    family: str = "qwen2_5_vl"  # whose patches: the model's own, a row of lib/families.py

    FILE = "video_budget.json"

    @classmethod
    def of_model(cls, folder, family="qwen2_5_vl", **overrides):
        """The budget saved beside a model, or the paper's tokens in pixels of its family;
        `overrides` that are not None win."""
        path, cell = os.path.join(folder, cls.FILE), FAMILIES[family].cell
        known = {f.name: NUMBER if f.name == "fps" else int for f in fields(cls)[:-1]}
        paper = {k: getattr(cls, k) // 28**2 * cell**2 for k in known if "pixels" in k}
        saved = read_object(path, **known) if os.path.exists(path) else paper
        given = saved | {k: v for k, v in overrides.items() if v is not None}
        return cls(**{k: v for k, v in given.items() if k in known}, family=family).checked()

    def checked(self):
        cell = FAMILIES[self.family].cell
        if not 0 < self.fps < float("inf") or self.max_frames < MIN_FRAMES:
            needed = f"--fps must be above 0 and --max-frames at least {MIN_FRAMES}"
            raise BadInput(f"{needed}: got {self.fps} and {self.max_frames}")
        if not cell * cell <= self.min_frame_pixels <= self.max_frame_pixels:
            needed = f"{cell}*{cell} <= --min-frame-pixels <= --max-frame-pixels"
            raise BadInput(f"a pixel budget needs {needed}")
        if self.total_pixels * PAIR < self.min_frame_pixels * MIN_FRAMES:
            raise BadInput("--total-pixels leaves no room for 4 frames of --min-frame-pixels")
        return self

    def save(self, folder):
        with open(os.path.join(folder, self.FILE), "w", encoding="utf-8") as f:
            known = {k: v for k, v in asdict(self).items() if k != "family"}  # config.json's to say
            json.dump(known, f, indent=2)


MIN_FRAMES = 4


def frame_times(duration, budget):
    """The moments at which a video is looked at.

    Args:    duration in seconds; budget: a VideoBudget.
    Returns: times (T,) in seconds, evenly spaced from 0, T even and at least 4, and their spacing.

    The spacing is exactly 1/fps unless the video is too short for 4 frames or too long for the
    budget; then the frames spread evenly over the whole video. Everything later uses the returned
    spacing and nothing assumes 1/fps: a model that is told the wrong spacing gives answers that are
    shifted in time, and no error ever says so.
    """
    fit = PAIR * budget.total_pixels // budget.min_frame_pixels  # at the least size
    most = min(budget.max_frames, fit) // PAIR * PAIR
    wanted = int(np.ceil(duration * budget.fps - 1e-6))
    if MIN_FRAMES <= wanted <= most:
        # An odd count is made even with one more moment just after the end: the reader shows the
        # last frame before the end there, so this repeats it.
        count, spacing = wanted + wanted % PAIR, 1.0 / budget.fps
    else:
        count = MIN_FRAMES if wanted < MIN_FRAMES else most
        spacing = duration / count
    return np.arange(count) * spacing, spacing


def frame_size(height, width, n_frames, budget):
    """The size that frames are resized to: both sides multiples of 28, aspect ratio about kept.

    Args:    height, width in pixels; n_frames: T, how many frames share the total budget.
    Returns: (height, width) in pixels, with
             height · width <= min(max_frame_pixels, total_pixels · 2 / T), and about
             min_frame_pixels at least.

    36 s of a Charades clip, 36 pairs of 7 × 13 tokens = 3276:

    >>> frame_size(360, 640, 72, VideoBudget())
    (196, 364)
    """
    cell = FAMILIES[budget.family].cell
    if max(height, width) > 200 * min(height, width):
        raise BadInput(f"a frame of {width} × {height} pixels is too narrow to be a video")
    most = min(budget.max_frame_pixels, PAIR * budget.total_pixels / n_frames)
    least = min(budget.min_frame_pixels, most)
    h, w = (max(cell, round(side / cell) * cell) for side in (height, width))
    if h * w > most:
        shrink = (height * width / most) ** 0.5
        cells = (int(side / shrink / cell + 1e-9) for side in (height, width))  # 4, not 3.999…
        h, w = (max(cell, n * cell) for n in cells)
    elif h * w < least:
        grow = (least / (height * width)) ** 0.5
        h, w = (int(np.ceil(side * grow / cell - 1e-9)) * cell for side in (height, width))
    # A side cannot be less than a cell, and growing rounds up: the budget wins over the shape.
    while h * w > most:
        h, w = (h - cell, w) if h >= w else (h, w - cell)
    return h, w


def read_frames(path, budget, span=None, frames=()):
    """Reads a video, or the part of it within `span` (start, end in seconds), as the budget allows.

    path: a video file, or a folder of numbered jpg or png frames; frames: the numbers of those to
    look at, where the question names them (tracking). Raises BadInput for a missing, empty or
    undecodable video.
    Times are the file's own timestamps: with variable rates `index / fps` would drift by seconds.
    """
    with opened(path) as clip:
        start, end = span or (0.0, clip.duration)
        start, end = max(0.0, start), min(clip.duration, end)
        if end <= start:
            part = f"the part from {span[0]:g} to {span[1]:g} s is not in it"
            raise BadInput(f"{path} lasts {clip.duration:.1f} s; {part}")
        if len(frames):
            index = np.array(frames)
            if index.max() >= (held := len(clip.on_screen)):
                asked = f"the question is about number {index.max()}, counted from 0"
                raise BadInput(f"{path} holds {held} frames; {asked}")
            spacing = np.ptp(clip.on_screen[index]) / (len(index) - 1)
        else:
            moments, spacing = frame_times(end - start, budget)
            # The frame on screen at each moment, and none from after the end.
            index = np.searchsorted(clip.on_screen, start + moments + 1e-6, side="right") - 1
            last = np.searchsorted(clip.on_screen, end - 1e-6) - 1
            index = index.clip(max=max(0, last))
        height, width = frame_size(*clip.size, len(index), budget)
        pictures = map(torch.from_numpy, clip.pictures(index))  # some at a time
        pixels = torch.cat([resize(some, height, width) for some in pictures])
    return Frames(pixels, clip.on_screen[index] - start, float(spacing), end - start)


def resize(frames, height, width):
    """(T, H, W, 3) uint8 → (T, height, width, 3) uint8: bicubic with antialiasing, as Qwen2.5-VL
    was trained."""
    if frames.shape[1:3] == (height, width):
        return frames
    x = frames.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (height, width), mode="bicubic", antialias=True)
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ------------------------------------------------------------------------------------------------
# 2. Frames to patches
# ------------------------------------------------------------------------------------------------


def patchify(pixels, family="qwen2_5_vl"):
    """Cuts frames into the rows that the vision tower reads.

    Args:    pixels (T, H, W, 3) uint8; T even, H and W multiples of 28.
    Returns: patches (N, 1176) float32 with N = T/2 · H/14 · W/14 and 1176 = 3 · 2 · 14 · 14 numbers
             (colour, frame of the pair, row, column), and the grid (t, h, w) = (T/2, H/14, W/14).

    The order of the rows is part of the pretrained weights: pair of frames, then 28 × 28 cell (row,
    column), then the cell's 2 × 2 patches. So four consecutive rows are the four that the vision
    tower merges into one token.
    """
    (T, H, W, _), row = pixels.shape, FAMILIES[family]
    patch, cell, mean, std = row.patch, row.cell, torch.tensor(row.mean), torch.tensor(row.std)
    assert T % PAIR == H % cell == W % cell == 0, f"{T, H, W}: not prepared by read_frames"
    x = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)  # (T, 3, H, W)
    t, h, w = T // PAIR, H // patch, W // patch
    #             0  1     2  3           4      5      6           7      8
    x = x.reshape(t, PAIR, 3, h // MERGE, MERGE, patch, w // MERGE, MERGE, patch)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/2, w/2 | 2, 2 | 3, pair, 14, 14)
    return x.reshape(t * h * w, 3 * PAIR * patch * patch).contiguous(), (t, h, w)


@dataclass
class Video:
    """A clip ready for the model: patches (N, 1176), grid (t, h, w), seconds from one pair of
    frames to the next, duration in seconds, times (T,) of the frames, whose patches they are."""

    patches: torch.Tensor
    grid: tuple
    seconds_per_grid: float
    duration: float
    times: np.ndarray
    family: str = "qwen2_5_vl"

    @property
    def n_tokens(self):
        t, h, w = self.grid
        return t * h * w // MERGE**2


def looked_at(pixels, look):
    """Frames (T, H, W, 3) as a control shows them, at the old times: "grey" (its answers then
    show what a model knows without looking), "shuffled" (in an order drawn once), "middle" (one
    frame, repeated); "" leaves them as they are."""
    if look == "grey":
        return torch.full_like(pixels, 128)
    if look == "middle":
        return pixels[len(pixels) // 2].expand_as(pixels)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order] if look == "shuffled" else pixels


def load_video(path, budget, look="", span=None, frames=(), read=read_frames):
    """A file or folder, as read_frames takes it, to a Video. look: see looked_at."""
    seen = read(path, budget, span, frames)
    patches, grid = patchify(looked_at(seen.pixels, look), budget.family)
    between = PAIR * seen.spacing
    return Video(patches, grid, between, seen.duration, seen.times, budget.family)


# ------------------------------------------------------------------------------------------------
# 3. Example to prompt
# ------------------------------------------------------------------------------------------------


@dataclass
class Example:
    """One question about one video, as annotated.

    id: unique in its file ("OHOFG/0": first query about OHOFG); task: a row of tasks.TASKS; video:
    path of a file, or of a folder of frames; question: the event, the object's name or the
    question, by task; answer: what the task's rules compare with (see rewards.py); options: of a
    multiple-choice question; span: (start, end) in seconds if the question is about that part of
    the file alone; group: a sub-task or kind of video, for a score of its own (not GRPO's group);
    frames: numbers of the frames that the question is about, of a folder of frames (tracking);
    duration: of the clip in seconds, where it is annotated.
    """

    id: str
    task: str
    video: str
    question: str
    answer: object
    options: tuple = ()
    span: tuple = None
    group: str = ""
    frames: tuple = ()
    duration: float = None


@dataclass
class Prompt:
    """What the model reads: token ids (P,), and for its videos (one here; the model takes any
    number) patches (N, 1176), grids [(t, h, w)] and seconds_per_grid [float]. `text` is for people
    to read; duration: of the (only) video, in seconds."""

    ids: torch.Tensor
    patches: torch.Tensor
    grids: list
    seconds_per_grid: list
    text: str
    duration: float = 0.0


@dataclass
class Batch:
    """One process's share of a step: Examples, their Prompts, and for each a torch.Generator to
    sample with; the tokenizer that reads what is sampled. skipped: examples that could not be read,
    and why; waited: seconds that the step had to wait for its clips."""

    examples: list
    prompts: list
    generators: list
    tokenizer: object
    skipped: list = field(default_factory=list)
    waited: float = 0.0


def build_prompt(text, video, tokenizer, max_tokens=None, before=""):
    """Qwen's chat markup around a video and a question, as token ids.

    text: the words after the video; before: those before it.

    The video stands as t · h/2 · w/2 copies of <|video_pad|>, one per video token; the model puts
    the vision tower's features in their places. They are never cut off to make a prompt fit: a cut
    would pair the remaining features with the wrong places. A prompt over `max_tokens` is BadInput.
    """
    family = FAMILIES[video.family]
    words, grids, seconds = zip(*family.blocks(video))  # Qwen2.5-VL's video is one, without words
    pads = "<|video_pad|>" * (video.n_tokens // len(grids))
    shown = "".join(f"{w}<|vision_start|>{pads}<|vision_end|>" for w in words)
    system = f"<|im_start|>system\n{family.system}<|im_end|>\n" if family.system else ""
    user = f"<|im_start|>user\n{before}{shown}{text}<|im_end|>\n"
    markup = f"{system}{user}<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer(markup)["input_ids"])
    pad_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    if (ids == pad_id).sum() != video.n_tokens:
        mark = "the question contains the model's own mark <|video_pad|>, which stands for video"
        raise BadInput(f"{mark}: {text[:80]!r}")
    if max_tokens is not None and len(ids) > max_tokens:
        raise BadInput(
            f"a prompt of {len(ids)} tokens ({video.n_tokens} of them video) does not fit in "
            f"{max_tokens}: lower --fps, --max-frames or --total-pixels"
        )
    short = f"<|vision_start|>[{video.n_tokens} video tokens]<|vision_end|>"
    readable = markup.replace(shown, short)
    return Prompt(ids, video.patches, list(grids), list(seconds), readable, video.duration)


def ask(example, video, tokenizer, think=True, max_tokens=None, template=None):
    """An Example and its Video → data.Prompt: the task's question about it, or the template's (see
    tasks.words_around). Prompts about one Video share its patches, and are read together."""
    before, after = words_around(example, video.duration, think, template)
    return build_prompt(after, video, tokenizer, max_tokens, before)


def load_prompt(example, budget, tokenizer, think=True, read=read_frames, **asked):
    """Example → data.Prompt. read: data.read_frames, or a Decoder's; asked: see `ask`."""
    video = load_video(example.video, budget, span=example.span, frames=example.frames, read=read)
    return ask(example, video, tokenizer, think, **asked)
