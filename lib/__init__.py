"""The ground that the chapters stand on: it imports nothing above it."""

import os

# How PyTorch's CPU threads wait: it looks once, when it is imported. They otherwise spin, and on a
# machine that does anything else at the same time a decoding step took 40 times as long (0.24 →
# 9 s for 30 tokens here).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
