"""families.py: what Qwen2.5-VL, which the paper trains, and Qwen3-VL do differently: a row each.

How can a model know at which second something happens?

    Qwen2.5-VL   by positions: a video is one block of tokens, and the time axis of their positions
                 advances with the seconds (model.mrope_positions). No word says so.
    Qwen3-VL     by reading: each pair of frames is a block of its own with its second before it,
                 "<12.3 seconds>". Positions know rows, columns and the order of the blocks.

Positions cost no tokens, but those of a long video lie further apart than any in training, and what
a distance means must be learned at all rates of frames. Written seconds cost about ten tokens a
pair, and need only be copied into an answer (arXiv 2511.21631).

Who reads the chapters for the paper needs the first row alone. The decoder's process reads this
file too: what takes long to import is imported in functions.
"""

from types import SimpleNamespace as Row


def one_block(video):
    """The blocks in which a data.Video stands in a prompt: (words before it, grid, seconds per
    grid) of each."""
    return [("", video.grid, video.seconds_per_grid)]


def block_per_pair(video):
    """The same; a pair's second is the mean of its frames'. The first frame of a part of a file can
    have come on screen before the part began, at less than 0."""
    times = video.times.clip(min=0).reshape(-1, 2).mean(axis=1)
    return [(f"<{t:.1f} seconds>", (1, *video.grid[1:]), 0.0) for t in times]


def windows(grids, config):
    """What the tower derives from its grids: most layers attend inside windows of 8 × 8 patches."""
    from transformers.vision_utils import get_vision_window_index as windows_of

    sides = config.spatial_merge_size, config.window_size, config.patch_size
    return dict(zip(("window_index", "cu_window_seqlens"), windows_of(grids, *sides)))


def places(grids, config):
    """A square table of learned embeddings is stretched over the frame. Returned are the four
    neighbours of each patch in that table, and their shares."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights as places_of

    side, merge = int(config.num_position_embeddings**0.5), config.spatial_merge_size
    found = places_of(grids, side, align_corners=True, spatial_merge_size=merge)
    return dict(zip(("interp_indices", "interp_weights"), found))


def deepstack(is_video, deeper):
    """DeepStack (arXiv 2406.04334): the text model's first three layers add features of three
    earlier layers of the tower, at the places of the video's tokens."""
    at = is_video.nonzero()[:, 0].to(deeper[0].device)  # counted on the CPU: nothing waits
    return {"visual_pos_masks": at, "deepstack_visual_embeds": deeper}


def add_at(hidden, at, seen):
    """Stands in for the text model's own, whose mask would make the CPU wait for the GPU."""
    return hidden.index_add(1, at, seen[None].to(hidden.dtype))


QWEN2_5_VL = Row(
    name="Qwen2.5-VL", patch=14, cell=28,  # pixels: of a patch's side, of a token's
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),  # CLIP's
    system="You are a helpful assistant.", blocks=one_block, written=0, layout=windows,
    deepstack=lambda *_: {}, head_norms=False,
)  # fmt: skip
QWEN3_VL = Row(
    name="Qwen3-VL", patch=16, cell=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    system="", blocks=block_per_pair, written=10, layout=places,  # tokens a pair
    deepstack=deepstack, head_norms=True,  # of every head's queries and keys, in decode_step
)  # fmt: skip
FAMILIES = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}  # by the config's model_type
