"""The room of eval.py."""
