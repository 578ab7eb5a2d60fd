"""figures.py: matplotlib without a screen, and figures as files."""

import io
import os

import matplotlib

matplotlib.use("Agg")
# A "$" in a question or a path is a dollar, not mathematics. Text in a PDF stays text (42).
matplotlib.rcParams.update({"text.parse_math": False, "text.usetex": False, "pdf.fonttype": 42})

import matplotlib.pyplot as plt

from lib.files import replace_file


def save(figure, path):
    """Writes a figure, whole or not at all, in the format that its name ends in."""
    made = io.BytesIO()
    figure.savefig(made, format=os.path.splitext(path)[1][1:], dpi=110)
    plt.close(figure)
    replace_file(path, made.getvalue())
