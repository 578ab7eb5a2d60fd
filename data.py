"""data.py: from a video file and an annotation line to what the model reads.

The way of one example (letters as in the README: T frames, N patches, P prompt tokens):

    mp4 ──decord──▶ frames (T, H, W, 3) uint8 ──▶ patches (N, 1176) + grid (t, h, w) ─┐
    annotation ──▶ Example ──▶ prompt text ───────────────────────────────────────────┴▶ Prompt

Everything that the usual "processor" of Qwen2.5-VL hides is done here by hand: which frames are
looked at, how large they are, and how they are cut into patches. A wrong constant in this file does
not crash; it quietly makes the model see another clip. So each one is explained.

What is missing: images, audio, and several videos in one question.

    python data.py data/charades/charades_sta_test.txt    # counts, and the first example as the model gets it
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, fields, replace

import decord
import numpy as np
import torch
import torch.nn.functional as F

decord.logging.set_level(decord.logging.QUIET)  # its C++ errors would interleave with our one-sentence ones


class BadInput(Exception):
    """A mistake in what the user gave us, told in one sentence: what is wrong, where, what to do.

    `train.py`, `eval.py` and `toy.py` print it without a traceback and exit with status 2.
    """


# ------------------------------------------------------------------------------------------------
# 1. Which frames, and how large
# ------------------------------------------------------------------------------------------------

PATCH = 14  # side of a patch in pixels
MERGE = 2  # 2 × 2 neighbouring patches become one token ...
PAIR = 2  # ... and so do 2 consecutive frames
CELL = PATCH * MERGE  # 28 pixels: both sides of a frame are multiples of this


@dataclass(frozen=True)
class VideoBudget:
    """How much of a video the model gets to see. The defaults are the paper's.

    A token covers 28 × 28 pixels of two consecutive frames. Pixel counts below are therefore
    (number of tokens) · 28 · 28, and the two frames of a pair count once.

    The values travel with the model: a saved policy carries them in `video_budget.json`, so that it
    is evaluated on what it was trained on, and the toy policy brings its own small ones.
    """

    fps: float = 2.0  # frames looked at per second of video
    max_frames: int = 768  # a longer video is looked at less often, evenly over its whole length
    total_pixels: int = 3584 * 28 * 28  # 3584 video tokens at most
    min_frame_pixels: int = 16 * 28 * 28  # a pair of frames gets at least 16 tokens ...
    max_frame_pixels: int = 768 * 28 * 28  # ... and at most 768

    FILE = "video_budget.json"

    @classmethod
    def of_model(cls, folder, **overrides):
        """The budget saved beside a model, or the paper's; `overrides` that are not None win."""
        path = os.path.join(folder, cls.FILE)
        budget = cls()
        if os.path.isfile(path):
            with open(path) as f:
                budget = cls(**json.load(f))
        known = {f.name for f in fields(cls)}
        return replace(budget, **{k: v for k, v in overrides.items() if k in known and v is not None}).checked()

    def checked(self):
        if self.fps <= 0 or self.max_frames < MIN_FRAMES:
            raise BadInput(f"--fps must be above 0 and --max-frames at least {MIN_FRAMES}: got {self.fps} and {self.max_frames}")
        if not CELL * CELL <= self.min_frame_pixels <= self.max_frame_pixels:
            raise BadInput("the pixel budget needs 28*28 <= --min-frame-pixels <= --max-frame-pixels")
        if self.total_pixels * PAIR < self.min_frame_pixels * MIN_FRAMES:
            raise BadInput("--total-pixels leaves no room for 4 frames of --min-frame-pixels: raise it")
        return self

    def save(self, folder):
        with open(os.path.join(folder, self.FILE), "w") as f:
            json.dump(asdict(self), f, indent=2)


MIN_FRAMES = 4


def add_budget_flags(parser):
    """The command-line flags of a VideoBudget, for train.py and eval.py; what is not given stays None."""
    group = parser.add_argument_group("how much video the model sees (default: what is saved beside the model, else the paper's)")
    group.add_argument("--fps", type=float, help="frames looked at per second")
    group.add_argument("--max-frames", type=int, help="frames at most")
    group.add_argument("--total-pixels", type=int, help="pixels of all frames at most, a pair of frames counted once")
    group.add_argument("--min-frame-pixels", type=int, help="pixels of a frame at least")
    group.add_argument("--max-frame-pixels", type=int, help="pixels of a frame at most")


def frame_times(duration, budget):
    """The moments at which a video is looked at.

    Args:    duration in seconds; budget: a VideoBudget.
    Returns: times (T,) in seconds, evenly spaced from 0, T even and at least 4, and their spacing.

    The spacing is exactly 1/fps unless the video is too short for 4 frames or too long for the
    budget; then the frames spread evenly over the whole video. Everything later uses the returned
    spacing and nothing assumes 1/fps: a model that is told the wrong spacing gives answers that are
    shifted in time, and no error ever says so.
    """
    room = PAIR * budget.total_pixels // budget.min_frame_pixels  # frames that fit at the smallest size
    most = min(budget.max_frames, room) // PAIR * PAIR
    wanted = int(np.ceil(duration * budget.fps - 1e-6))
    if MIN_FRAMES <= wanted <= most:
        # An odd count is made even with one more moment just after the end: the reader shows the
        # last frame there, so this repeats it.
        count, spacing = wanted + wanted % PAIR, 1.0 / budget.fps
    else:
        count = MIN_FRAMES if wanted < MIN_FRAMES else most
        spacing = duration / count
    return np.arange(count) * spacing, spacing


def frame_size(height, width, n_frames, budget):
    """The size that frames are resized to: both sides multiples of 28, aspect ratio about kept.

    Args:    height, width in pixels; n_frames: T, how many frames share the total budget.
    Returns: (height, width) in pixels, with
             height · width <= min(max_frame_pixels, total_pixels · 2 / T), and about min_frame_pixels at least.

    >>> frame_size(360, 640, 72, VideoBudget())   # 36 s of a Charades clip: 36 pairs of 7 × 13 tokens = 3276
    (196, 364)
    """
    if max(height, width) > 200 * min(height, width):
        raise BadInput(f"a frame of {width} × {height} pixels is too narrow to be a video")
    most = min(budget.max_frame_pixels, PAIR * budget.total_pixels // n_frames)
    least = min(budget.min_frame_pixels, most)
    h, w = (max(CELL, round(side / CELL) * CELL) for side in (height, width))
    if h * w > most:
        shrink = (height * width / most) ** 0.5
        h, w = (max(CELL, int(side / shrink / CELL) * CELL) for side in (height, width))
    elif h * w < least:
        grow = (least / (height * width)) ** 0.5
        h, w = (int(np.ceil(side * grow / CELL)) * CELL for side in (height, width))
    while h * w > most:  # a side cannot be less than a cell, and growing rounds up: the budget wins over the shape
        h, w = (h - CELL, w) if h >= w else (h, w - CELL)
    return h, w


@dataclass
class Frames:
    """What was looked at: pixels (T, H, W, 3) uint8, times (T,) in seconds at which each frame went
    on screen, spacing between the moments asked for, duration and original size (height, width)."""

    pixels: torch.Tensor
    times: np.ndarray
    spacing: float
    duration: float
    original_size: tuple


def read_frames(path, budget):
    """Reads a video file and returns the frames that the budget allows, resized.

    Times come from the file's own timestamps, never from `index / fps`: phone and web videos have
    variable frame rates, and an average rate would drift by seconds. The frame for moment t is the
    one on screen at t.

    Raises BadInput for a missing, empty or undecodable file.
    """
    if not os.path.isfile(path):
        raise BadInput(f"video file {path} does not exist: check the path, or --data")
    if os.path.getsize(path) == 0:
        raise BadInput(f"video file {path} is empty (0 bytes): download it again")
    try:
        reader = decord.VideoReader(path, num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64)  # (F, 2): on, off
        on_screen, duration = stamps[:, 0] - stamps[0, 0], float(stamps[-1, 1] - stamps[0, 0])
        if not duration > 0:
            raise BadInput(f"video file {path} has no duration: it holds {len(reader)} frame(s)")
        moments, spacing = frame_times(duration, budget)
        index = np.searchsorted(on_screen, moments + 1e-6, side="right") - 1  # the frame on screen at each moment
        original = reader[0].shape[:2]
        height, width = frame_size(*original, len(index), budget)
        pixels = torch.cat([  # 16 at a time: a long video at full size would not fit in memory
            resize(torch.from_numpy(reader.get_batch(index[i:i + 16]).asnumpy()), height, width)
            for i in range(0, len(index), 16)
        ])
    except (decord.DECORDError, RuntimeError, IndexError) as e:
        reason = str(e).strip().splitlines()[-1][:150] if str(e).strip() else type(e).__name__
        raise BadInput(f"video file {path} cannot be decoded, it may be damaged or no video ({reason})") from e
    return Frames(pixels, on_screen[index], spacing, duration, tuple(original))


def resize(frames, height, width):
    """(T, H, W, 3) uint8 → (T, height, width, 3) uint8: bicubic with antialiasing, as Qwen2.5-VL was trained."""
    if frames.shape[1:3] == (height, width):
        return frames
    x = F.interpolate(frames.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=True)
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ------------------------------------------------------------------------------------------------
# 2. Frames to patches
# ------------------------------------------------------------------------------------------------

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's channel statistics, which Qwen2.5-VL uses
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def patchify(pixels):
    """Cuts frames into the rows that the vision tower reads.

    Args:    pixels (T, H, W, 3) uint8; T even, H and W multiples of 28.
    Returns: patches (N, 1176) float32 with N = T/2 · H/14 · W/14 and 1176 = 3 · 2 · 14 · 14 numbers
             (colour, frame of the pair, row, column), and the grid (t, h, w) = (T/2, H/14, W/14).

    The order of the rows is part of the pretrained weights: pair of frames, then 28 × 28 cell (row,
    column), then the cell's 2 × 2 patches. So four consecutive rows are the four that the vision
    tower merges into one token.
    """
    T, H, W, _ = pixels.shape
    assert T % PAIR == 0 and H % CELL == 0 and W % CELL == 0, f"frames {tuple(pixels.shape)} were not prepared by read_frames"
    x = ((pixels.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)  # (T, 3, H, W)
    t, h, w = T // PAIR, H // PATCH, W // PATCH
    #       0  1     2  3           4      5      6           7      8
    x = x.reshape(t, PAIR, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/2, w/2 | 2, 2 | 3, pair, 14, 14)
    return x.reshape(t * h * w, 3 * PAIR * PATCH * PATCH).contiguous(), (t, h, w)


@dataclass
class Video:
    """A clip ready for the model: patches (N, 1176), grid (t, h, w), seconds from one pair of frames
    to the next, duration in seconds, times (T,) of the frames."""

    patches: torch.Tensor
    grid: tuple
    seconds_per_grid: float
    duration: float
    times: np.ndarray

    @property
    def n_tokens(self):
        t, h, w = self.grid
        return t * h * w // MERGE**2


def load_video(path, budget, blind=False):
    """A file to a Video. `blind` replaces every frame by mid-grey, keeping times and sizes: what a
    model still answers then, it knows without looking."""
    frames = read_frames(path, budget)
    pixels = torch.full_like(frames.pixels, 128) if blind else frames.pixels
    patches, grid = patchify(pixels)
    return Video(patches, grid, PAIR * frames.spacing, frames.duration, frames.times)


# ------------------------------------------------------------------------------------------------
# 3. Annotation files to Examples
# ------------------------------------------------------------------------------------------------


@dataclass
class Example:
    """One question about one video, as annotated.

    id: unique in its file ("OHOFG/0": first query about OHOFG); task: a key of PROMPTS;
    video: path; question: the event's sentence; answer: (start, end) in seconds.
    """

    id: str
    task: str
    video: str
    question: str
    answer: tuple


def read_charades(path, videos, report=print):
    """Charades-STA annotations, in either of the two forms in circulation.

    The original text file, one query a line, times in seconds:

        3MSZA 24.3 30.4##person turn a light on.

    and the JSON dictionary:

        {"3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4]], "sentences": ["person turn a light on."]}}

    Args:    path of the file; videos: the folder of the clips; report: called with one sentence for
             every malformed entry, which is then skipped.
    Returns: list of Example. Raises BadInput if the file is missing or holds no valid entry.

    End times may exceed the clip (30.0 in a clip of 29.46 s): annotators worked in whole steps. They
    are kept as they are, as everyone who reports scores on this data does.
    """
    text = read_text(path)
    examples, counts = [], {}

    def add(where, name, start, end, sentence):
        try:
            start, end = float(start), float(end)
        except (TypeError, ValueError):
            start, end = 0.0, 0.0
        sentence = " ".join(str(sentence).split()).rstrip(".")
        # A video's name becomes a path. Letters, digits, "_", "-", "." inside: no way out of the folder.
        if not re.fullmatch(r"\w[\w.-]*", str(name)) or not 0 <= start < end < float("inf") or not sentence:
            report(f"{where}: skipped, not a name, a start before an end (seconds) and a sentence")
            return
        k = counts[name] = counts.get(name, -1) + 1
        examples.append(Example(f"{name}/{k}", "grounding", video_path(videos, name), sentence, (start, end)))

    if text.lstrip().startswith("{"):
        try:
            entries = json.loads(text).items()
        except json.JSONDecodeError as e:
            raise BadInput(f"{path}, line {e.lineno}: broken JSON ({e.msg}); download the file again") from e
        for name, entry in entries:
            try:
                pairs = list(zip(entry["timestamps"], entry["sentences"], strict=True))
                rows = [(start, end, sentence) for (start, end), sentence in pairs]
            except (KeyError, TypeError, ValueError):
                report(f"{path}, entry {name!r}: skipped, needs equally many 'timestamps' [start, end] and 'sentences'")
                continue
            for k, row in enumerate(rows):
                add(f"{path}, entry {name!r}, query {k}", name, *row)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(\S+) (\S+) (\S+)##(.*)", line.strip())
            add(f"{path}, line {number}", *(match.groups() if match else ("", 0, 0, "")))
    if not examples:
        raise BadInput(f"{path} holds no valid Charades-STA query; a line reads: 3MSZA 24.3 30.4##person turn a light on.")
    return examples


def read_text(path):
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise BadInput(f"annotation file {path} is not a UTF-8 text file") from e


def video_path(folder, name):
    """`name` with the extension that exists in the folder; .mp4 where none does (an error later names it)."""
    for extension in ("", ".mp4", ".mkv", ".webm", ".avi", ".mov"):
        if os.path.isfile(path := os.path.join(folder, name + extension)):
            return path
    return os.path.join(folder, name + ".mp4")


CHARADES_HELP = (
    "Charades-STA has two parts: annotations (charades_sta_train.txt, charades_sta_test.txt: github.com/jiyanggao/TALL) "
    "and clips (Charades_v1_480.zip: prior.allenai.org/projects/charades), to be unpacked as DIR/videos/*.mp4"
)


def charades_examples(folder, split, report=print):
    """All examples of DIR for `split` ("train" or "test"), from whichever annotation file is there.

    Layout: DIR/charades_sta_{split}.txt (or charades_{split}*.json) and the clips in DIR/videos/.
    """
    if not os.path.isdir(folder):
        raise BadInput(f"data folder {folder} does not exist. {CHARADES_HELP}")
    pattern = re.compile(rf"charades(_sta)?_{split}\b.*\.(txt|json)|charades_sta_{split}\.txt")
    found = sorted((f for f in os.listdir(folder) if pattern.fullmatch(f)), key=lambda f: (not f.endswith(".txt"), f))
    if not found:
        raise BadInput(f"no charades_sta_{split}.txt (or charades_{split}.json) in {folder}. {CHARADES_HELP}")
    videos = os.path.join(folder, "videos")
    if not os.path.isdir(videos):
        raise BadInput(f"no folder {videos} with the clips. {CHARADES_HELP}")
    return read_charades(os.path.join(folder, found[0]), videos, report)


# ------------------------------------------------------------------------------------------------
# 4. Example to prompt
# ------------------------------------------------------------------------------------------------

# One row a task: the question, and the two ways to ask for the answer. The forms asked for here are
# the ones that rewards.py pays for; a test checks that the example in each prompt earns full marks.
PROMPTS = {
    "grounding": (
        'The video lasts {duration:.1f} seconds. When does this happen: "{question}"?',
        {
            True: "First reason inside <think> tags, then give the start and the end in seconds inside <answer> tags, "
                  "like this: <think>your reasoning</think><answer>12.54 to 17.83</answer>",
            False: "Give only the start and the end in seconds inside <answer> tags, "
                   "like this: <answer>12.54 to 17.83</answer>",
        },
    ),
}  # fmt: skip


def question_text(example, duration, think):
    """The words of the user's turn. duration: of the video as read, in seconds."""
    question, answer_form = PROMPTS[example.task]
    return question.format(question=example.question, duration=duration) + "\n" + answer_form[think]


def ideal_answer(example, thought=None):
    """The completion that earns every reward; `thought`, if given, fills the <think> block."""
    start, end = example.answer
    answer = f"<answer>{start:.2f} to {end:.2f}</answer>"
    return answer if thought is None else f"<think>{thought}</think>{answer}"


@dataclass
class Prompt:
    """What the model reads: token ids (P,), and for its videos (one here; the model takes any number)
    patches (N, 1176), grids [(t, h, w)] and seconds_per_grid [float]. `text` is for people to read."""

    ids: torch.Tensor
    patches: torch.Tensor
    grids: list
    seconds_per_grid: list
    text: str


SYSTEM = "You are a helpful assistant."


def build_prompt(text, video, tokenizer, max_tokens=None):
    """Qwen's chat markup around a video and a question, as token ids.

    The video stands as t · h/2 · w/2 copies of <|video_pad|>, one per video token; the model puts the
    vision tower's features in their places. They are never cut off to make a prompt fit: a cut would
    pair the remaining features with the wrong places. A prompt over `max_tokens` is BadInput.
    """
    pads = "<|video_pad|>" * video.n_tokens
    markup = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{text}<|im_end|>\n"
        f"<|im_start|>assistant\n"
    )
    ids = torch.tensor(tokenizer(markup)["input_ids"])
    pad_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    if (ids == pad_id).sum() != video.n_tokens:
        raise BadInput(f"the question contains the model's own mark <|video_pad|>, which stands for video: {text[:80]!r}")
    if max_tokens is not None and len(ids) > max_tokens:
        raise BadInput(
            f"a prompt of {len(ids)} tokens ({video.n_tokens} of them video) does not fit in {max_tokens}: "
            "lower --fps, --max-frames or --total-pixels"
        )
    readable = markup.replace(pads, f"[{video.n_tokens} video tokens]")
    return Prompt(ids, video.patches, [video.grid], [video.seconds_per_grid], readable)


def load_prompt(example, budget, tokenizer, think=True, blind=False, max_tokens=None):
    """Example → Prompt: reads the video and asks the task's question about it."""
    video = load_video(example.video, budget, blind)
    return build_prompt(question_text(example, video.duration, think), video, tokenizer, max_tokens)


def completion_texts(completions, mask, tokenizer, stop_ids):
    """Sampled tokens to text, without the stop token that ended each.

    Args: completions (G, C), mask (G, C). Other special tokens stay visible: a completion that says
    <|im_start|> in the middle is not well-formed, and must not look as if it were.
    """
    texts = []
    for ids, own in zip(completions.tolist(), mask.tolist()):
        ids = [i for i, mine in zip(ids, own) if mine]
        texts.append(tokenizer.decode(ids[:-1] if ids[-1] in stop_ids else ids, skip_special_tokens=False))
    return texts


if __name__ == "__main__":
    try:
        for path in sys.argv[1:] or sys.exit(__doc__):
            examples = read_charades(path, os.path.join(os.path.dirname(path), "videos"))
            print(f"{path}: {len(examples)} queries about {len({e.video for e in examples})} videos; the first:")
            print(f"  {examples[0]}\n\n{question_text(examples[0], examples[0].answer[1], think=True)}\n")
    except BadInput as e:
        sys.exit(f"error: {e}")
