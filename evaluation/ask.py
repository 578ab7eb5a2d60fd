"""ask.py: a question about one's own video, eval.py --video FILE --ask "…"."""

import torch

from data import VideoBudget, build_prompt, load_video
from evaluation.predictions import find_model
from grpo import sample_groups
from lib.processes import start_processes
from lib.weights import room_for_prompt
from model import encode_videos, load


def ask(args):
    """Answers --ask about --video, printing the answer as it is decoded."""
    device = start_processes(args.device)
    path, shown, _ = find_model(args.model[0])
    model, tokenizer = load(path, device, attn=args.attn)
    budget = VideoBudget.of_model(path, model.config.model_type, **vars(args))
    video, patch = load_video(args.video, budget, args.look), model.config.vision_config.patch_size
    t, h, w = video.grid
    print(
        f"[{shown}; {video.duration:.1f} s of video as {2 * t} frames of "
        f"{w * patch} × {h * patch} pixels, {video.n_tokens} tokens]"
    )
    longest = args.max_new_tokens or 256
    room = room_for_prompt(model, longest)
    prompt = build_prompt(args.ask, video, tokenizer, room)
    said, printed = [], ""

    def stream(token):
        nonlocal printed
        said.append(int(token[0]))
        text = tokenizer.decode(said, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            print(text[len(printed) :], end="", flush=True)
            printed = text

    with torch.no_grad():
        features = encode_videos(model, [prompt])
    stop_ids = model.generation_config.eos_token_id
    sample_groups(model, [prompt], features, 1, longest, stop_ids, on_token=stream)
    print()
