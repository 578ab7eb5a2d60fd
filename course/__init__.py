"""Exercises, their checks, grading and the hand-out."""

import lib.threads  # noqa: F401  before torch: how its CPU threads wait
