"""lesson.py: docs/lesson.md is the lesson; its outputs and docs/lesson.ipynb are made from it.

    python -m course.lesson      # runs the page's code, writes its outputs and the notebook anew

A block of Python is run, in one namespace from top to bottom; what it prints stands in the block of
text behind it. The notebook is the same page cell by cell, outputs included. A test makes both
again and compares them with what is there, so that page, outputs and notebook cannot drift apart.
No Jupyter is needed for that: the cells are plain Python, and a kernel would run the same lines.
"""

import contextlib
import io
import json
import os
import re

from lib.files import replace_file

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")
PAGE, NOTEBOOK = os.path.join(DOCS, "lesson.md"), os.path.join(DOCS, "lesson.ipynb")

CODE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
PATH = 'import sys\n\nsys.path.insert(0, "..")  # the repository\'s folder, where grpo.py is\n'


def run_page(page):
    """Runs a page's code.

    Returns: the page with what each block prints behind it, and its cells in order, [(kind, source,
    printed)] with kind "markdown" or "code".
    """
    cells, namespace, text, end = [("code", PATH, "")], {"__name__": "lesson"}, [], 0
    for match in CODE.finditer(page):
        code, printed = match[1], io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/lesson.md", "exec"), namespace)
        prose, printed = page[end : match.start()], printed.getvalue()
        cells += [("markdown", prose.strip("\n"), ""), ("code", code, printed)]
        text += [prose, f"```python\n{code}```\n", f"\n```text\n{printed}```\n" * bool(printed)]
        end = match.end()
    cells.append(("markdown", page[end:].strip("\n"), ""))
    return "".join([*text, page[end:]]), cells


def notebook(cells):
    """Cells as the text of an .ipynb file (nbformat 4.5)."""
    made = []
    for i, (kind, source, printed) in enumerate(cells):
        lines = source.rstrip("\n").splitlines(keepends=True)
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": lines}
        if kind == "code":
            shown = printed.splitlines(keepends=True)
            stream = {"name": "stdout", "output_type": "stream", "text": shown}
            cell |= {"execution_count": None, "outputs": [stream] * bool(printed)}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main():
    with open(PAGE, encoding="utf-8") as f:
        page, cells = run_page(f.read())
    for path, text in ((PAGE, page), (NOTEBOOK, notebook(cells))):
        replace_file(path, text)


if __name__ == "__main__":
    main()
