"""identity.py: what a number was made with: whose weights, which examples, which versions.

A run that is resumed and an evaluation that goes on compare these with what they began with.
"""

import hashlib
import os
import platform
from glob import escape, glob
from importlib import import_module

from huggingface_hub import try_to_load_from_cache

from lib.adapters import under_adapters
from lib.errors import BadInput, read_object
from lib.flags import TOY_MODEL

BLOCKS, BLOCK = 64, 1 << 16  # of a large file so many blocks are read, each of so many bytes


def fingerprint(name):
    """A short text that tells a model's weights from others, in a fraction of a second.

    It is made of a folder's sizes, safetensors headers and 64 evenly spaced blocks of 64 KiB per
    file (adapters: also their base's), so a copy of the folder has the same. Files up to 8 MiB are
    read whole. In larger ones a change between the blocks is missed: a few numbers edited by hand,
    or a flipped bit; training moves all of them. A model of the hub is told by its revision.
    """
    base, adapters = under_adapters(name)
    parts = [] if os.path.isdir(base) else [base, revision(base)]
    for folder in [base, *adapters] if not parts else adapters:
        for path in sorted(glob(os.path.join(escape(folder), "*.safetensors"))):
            parts += [os.path.basename(path), hash_of_file(path)]
    return hash_of(parts)


def hash_of(value):
    """A short hash of what Python prints of a value."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def hash_of_file(path):
    """A hash of a file's size, its header and blocks all over it."""
    content, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as f:
        header = int.from_bytes(f.read(8), "little")  # safetensors: its length, then itself
        content.update(f"{size} ".encode() + f.read(min(header, size)))
        blocks = BLOCKS if size > 2 * BLOCKS * BLOCK else 2 * BLOCKS
        for k in range(blocks):
            f.seek(max(0, size - BLOCK) * k // (blocks - 1))
            content.update(f.read(BLOCK))
    return content.hexdigest()


def revision(name):
    """The commit of a hub's model in the local cache, which is where it is loaded from."""
    path = try_to_load_from_cache(name, "config.json")  # …/snapshots/COMMIT/config.json
    return os.path.basename(os.path.dirname(path)) if isinstance(path, str) else None


def hash_of_examples(examples):
    """A hash of what is asked and what is right; a data set may lie in another folder."""
    asked = [vars(e) | {"video": os.path.basename(e.video)} for e in examples]
    return hash_of([sorted(fields.items()) for fields in asked])


def is_toy(name):
    """Whether a model is the toy base or was trained from it: its config.json says so, and
    train.py copies that with all the rest of it."""
    try:
        base, _ = under_adapters(name)
        return read_object(os.path.join(base, "config.json")).get("toy") is True
    except BadInput:  # there is none, or it is damaged: loading it says what is wrong
        return False


def shown_name(name):
    """A model's name in logs and tables."""
    if os.path.abspath(name) == TOY_MODEL:
        return "toy base"
    return f"{name} (toy)" if is_toy(name) else name


def versions():
    """What a score depends on besides the settings."""
    packages = map(import_module, ("torch", "transformers", "decord"))
    return {"python": platform.python_version()} | {p.__name__: p.__version__ for p in packages}
