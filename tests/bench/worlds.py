"""The same three steps on 1, 2 and 4 processes, copied or sharded: how far apart do they end?

python tests/bench/worlds.py        # on the CPU, with gloo
"""

import argparse
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import lib.threads  # noqa: F401  before torch: how its CPU threads wait

# isort: split
from safetensors.torch import load_file

STEPS = [
    *"train.py --task grounding --steps 3 --prompts-per-step 4 --group-size 8".split(),
    *"--device cpu --quiet".split(),
]


def weights(out):
    return load_file(os.path.join(out, "policy", "model.safetensors"))


def norm(tensors):
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    home = tempfile.mkdtemp()
    start = load_file(os.path.join(ROOT, "assets", "toy-base", "model.safetensors"))
    print("relative distance of all parameters to those of one process:")
    for processes, flags in ((1, []), (2, []), (4, []), (2, ["--shard"]), (4, ["--shard"])):
        out = os.path.join(home, f"{processes}{''.join(flags)}")
        launcher = "-m torch.distributed.run --standalone --nproc-per-node".split()
        launcher = [*launcher, str(processes)] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, *STEPS, *flags, "--out", out],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        ended = weights(out)
        if processes == 1:
            one, moved = ended, norm(ended[k] - start[k] for k in ended) / norm(start.values())
            print(f"  1 process, which moved by {moved:.1e}")
        else:
            apart = norm(ended[k] - one[k] for k in one) / norm(one.values())
            how = "sharded (FSDP2)" if flags else "copied"
            print(f"  {processes} processes, {how:<16} {apart:.1e}")


if __name__ == "__main__":
    main()
