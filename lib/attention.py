"""attention.py: the kernels of attention, and the vision tower's windows and patches.

A kernel computes softmax(scale · Q Kᵀ) V for given tensors; which token sees which is decided in
model.py for the language model, and below for the vision tower.

The vision tower's numbers are those of transformers. Three things are gained: none of the 32 layers
makes the CPU wait for the GPU, windows of one size are attended to together (a clip has hundreds of
windows and a handful of sizes), and patches are embedded by one matrix product.
"""

import importlib.util
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from lib.errors import BadInput
from lib.families import FAMILIES

# cuDNN's attention comes first on Hopper and plans anew for every shape (pytorch #155958); in video
# RL hardly two shapes are alike. Without it PyTorch takes its own flash kernel.
torch.backends.cuda.enable_cudnn_sdp(False)

# ------------------------------------------------------------------------------------------------
# Kernels
# ------------------------------------------------------------------------------------------------


def sdpa(query, key, value, scale, causal=False):
    """softmax(scale · Q Kᵀ) V, as PyTorch has it.

    query (B, H, n, d) on key, value (B, K, m, d) → (B, H, n, d). `causal` is aligned to the *lower
    right*: the last query sees all m keys, the one before it m − 1, … (`is_causal=True` is aligned
    to the upper left, which for n < m would hide the prompt.) On CUDA causal_lower_right runs in a
    flash kernel, without a mask in memory; elsewhere it becomes an n × m mask.
    """
    n, m, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if grouped and not knows_groups(query):
        rep, grouped = query.shape[1] // key.shape[1], False
        key, value = (x.repeat_interleave(rep, dim=1) for x in (key, value))
    mask = causal_lower_right(n, m) if causal and n != m else None
    square = causal and n == m
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=square, scale=scale, enable_gqa=grouped
    )


def knows_groups(query):
    """Whether query heads may share a key head. On a GPU flash alone lets them, in 16 bits and from
    the A100 on; where they do, the memory-efficient kernel leaves it to the one that keeps all
    scores."""
    flash = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return not query.is_cuda or (flash and query.dtype.itemsize == 2)


def flash_attention_2(query, key, value, scale, causal=False):
    """The same by the flash-attn package, which aligns to the lower right of its own accord."""
    from flash_attn import flash_attn_func

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return flash_attn_func(query, key, value, softmax_scale=scale, causal=causal).transpose(1, 2)


ATTENTION = {"sdpa": sdpa, "flash_attention_2": flash_attention_2}

# ------------------------------------------------------------------------------------------------
# The vision tower
# ------------------------------------------------------------------------------------------------


def vision_layout(grids, config, device):
    """What the vision tower derives from its grids, as keyword arguments for it.

    grids: (videos, 3) int64, on the CPU, where all of it is computed: on a GPU each step would make
    the CPU wait. Boundaries of windows and frames (seqlens) stay there, where window_attention
    reads them.
    """
    vision = config.vision_config
    layout = FAMILIES[config.model_type].layout(grids, vision)
    layout["position_ids"] = get_vision_position_ids(grids, vision.spatial_merge_size)
    layout["cu_seqlens"] = get_vision_cu_seqlens(grids)
    return {key: x if "seqlens" in key else x.to(device) for key, x in layout.items()}


class PatchProduct(torch.nn.Module):
    """Patches (N, 1176) → (N, D). Where a convolution's step is its kernel, as here, it is one
    matrix product; transformers calls conv3d, which on a CPU takes several times as long.

    proj: transformers' convolution, which keeps its weight and the weight's name."""

    def __init__(self, proj):
        super().__init__()
        self.proj = proj

    def forward(self, patches, *_, **__):
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)  # Qwen2.5-VL's has none


def register_windows(attention):
    """Makes "flash_like_windows_NAME" known to transformers for each {NAME: attention function}.

    transformers hands the windows' boundaries only to implementations whose names hold "flash".
    """
    for name, attend in attention.items():
        windowed = partial(window_attention, attend=attend)
        AttentionInterface.register(f"flash_like_windows_{name}", windowed)


def window_attention(
    module, query, key, value, attention_mask, scaling, cu_seq_lens_q, attend, **_
):
    """What each layer of the vision tower calls: attention inside windows (or frames), not across.

    query, key, value (1, H, N, d); cu_seq_lens_q: where windows begin and end among the N patches.
    Returns (1, N, H, d), None, as transformers expects.
    """
    places, back = windows_by_size(cu_seq_lens_q, query.device)
    chunks = []
    for place in places:  # (windows, size)
        # (1, H, N, d) → (windows, H, size, d)
        q, k, v = (x[0][:, place].transpose(0, 1) for x in (query, key, value))
        # → (windows · size, H, d)
        chunks.append(attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
    return torch.cat(chunks)[back][None], None


@lru_cache(maxsize=4)
def windows_by_size(boundaries, device):
    """The patches of each window, windows of one size together, and the way back to their order.

    Args:    boundaries (windows + 1,) on the CPU.
    Returns: a list of (windows of that size, size) patch numbers, and (N,): the place of each patch
             in these lists, one after the other; both on `device`.

    Remembered by the tensor itself (as keys, tensors are equal only to themselves): all layers of a
    forward get the same two, of windows and of frames.

    >>> places, back = windows_by_size(torch.tensor([0, 2, 3, 5]), torch.device("cpu"))
    >>> [place.tolist() for place in places], back.tolist()
    ([[[2]], [[0, 1], [3, 4]]], [1, 2, 0, 3, 4])
    """
    starts, sizes = boundaries[:-1].long(), boundaries.diff()
    places = [starts[sizes == n][:, None] + torch.arange(n) for n in sizes.unique().tolist()]
    back = torch.cat([place.flatten() for place in places]).argsort()
    return [place.to(device) for place in places], back.to(device)


def check_attention(attn, device):
    """Raises BadInput where --attn cannot run."""
    if attn != "flash_attention_2":
        return
    if str(device) == "cpu":
        missing = "runs on CUDA only"
    elif importlib.util.find_spec("flash_attn") is None:
        missing = "needs the package flash-attn (pip install flash-attn --no-build-isolation)"
    else:
        return
    raise BadInput(
        f"--attn flash_attention_2 {missing}; --attn sdpa needs nothing and is about as fast"
    )
