"""The room of train.py."""
