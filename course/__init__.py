"""Exercises, their checks, grading and the hand-out."""

import runtime.threads  # noqa: F401  before torch: how its CPU threads wait
