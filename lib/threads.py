"""threads.py: how PyTorch's CPU threads wait. To be imported before torch, which looks once."""

import os

# They otherwise spin while they wait, and on a machine that does anything else at the same time a
# decoding step took 40 times as long (0.24 → 9 s for 30 tokens here).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
