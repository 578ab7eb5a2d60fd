"""Exercises, their checks, grading and the hand-out."""
