"""paper_tables.py: the tables of paper.md, what train.py and eval.py are given for them, and the
page that is made of them.

paper.md names the cells (rows: the toy base, or a way to train it), the columns (an evaluation and
one of its metrics: "charades mIoU") and the findings (which cells are compared, and what is
expected). A row that no training makes, as a control, needs no more than its numbers: see page.
"""

import os
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from tasks import JOINTLY
from toy.world import make_clip
from variants import VARIANTS

# ------------------------------------------------------------------------------------------------
# paper.md
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """rows: {name of a row: the paper's figures in the columns' order, as words}: "–" where it
    gives none, "×" for a model that cannot answer any more, nothing where all are ours."""

    title: str
    columns: list
    rows: dict


def read_tables():
    """(the words above all, {name: Table}, {finding: [(column, a, b, expected)]})."""
    with open(os.path.join(os.path.dirname(__file__), "paper.md"), encoding="utf-8") as f:
        words, *sections = f.read().split("\n## ")
    tables, findings = {}, {}
    for title, *lines in map(str.splitlines, sections):
        grid = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
        (first, *columns), _, *rows = grid
        if first == "cell":
            name, _, about = title.partition(": ")
            tables[name] = Table(about, columns, {row[0]: row[1:] for row in rows})
        else:
            findings[title] = [tuple(row) for row in rows]
    return words, tables, findings


WORDS, TABLES, FINDINGS = read_tables()
ROWS = list(dict.fromkeys(row for table in TABLES.values() for row in table.rows))
# A row is a cell; a cell with a look ("base-think, grey"), which is one more evaluation of it, or
# with "thoughts" (tools/thoughts.py); or the constant answer, which every evaluation has.
CELLS = [row for row in ROWS if "," not in row and row != "constant"]


def columns_of(row, names=TABLES):
    """All columns of the tables that a row is in, each once."""
    in_it = [TABLES[name] for name in names if row in TABLES[name].rows]
    return list(dict.fromkeys(column for table in in_it for column in table.columns))


def looks_of(cell, names=TABLES):
    """[(evaluation, look)] that the tables need of a cell; look: "" where it sees its videos."""
    asked = {}
    for row in ROWS:
        name, _, look = row.partition(", ")
        if name == cell:
            columns = columns_of(row, names)
            asked |= {(c.split(" ")[0], look.replace("thoughts", "")): None for c in columns}
    return [(evaluation, look) for evaluation, look in asked if evaluation != "run"]


# ------------------------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------------------------

PROMPTS, EPOCH, BASES = 16, 36, ("base", "base-think")  # an epoch in steps of so many prompts
LOSSES = {name: f"--loss {name}" for name in VARIANTS} | {
    "masked": "--mask-unfinished",
    "grpo-30": "--max-new-tokens 30",  # too few for many an answer
    "masked-30": "--max-new-tokens 30 --mask-unfinished",
}


def on_clips(n):
    """The flag that trains on the first n clips of toy charades, with all their queries."""
    return f"--examples {sum(len(make_clip('train', i).things) for i in range(n))}"


# Cells that are another one with more flags: {name: (that one, flags)}
SFT, GRPO = "grounding-sft-3", "grounding-grpo-think-3"
OTHERS = (
    {"caption-grpo-noisy": ("caption-grpo", "--judge noisy:0.2")}
    | {f"group{g}": ("grounding-grpo-think", f"--group-size {g}") for g in (2, 4, 16)}
    | {f"beta{b:g}": ("grounding-grpo-think", f"--beta {b}") for b in (0, 0.01, 0.16)}
    | {f"sft-clips{n}": (SFT, on_clips(n)) for n in (100, 300, 1000)}
    | {f"grpo-clips{n}": (GRPO, on_clips(n)) for n in (100, 300, 1000)}
    | {f"sft-rank{r}": (SFT, f"--lora {r}") for r in (4, 64)}
    | {f"grpo-rank{r}": (GRPO, f"--lora {r}") for r in (4, 64)}
    | {"sft-all-weights": (SFT, ""), "grpo-all-weights": (GRPO, "")}
)


def thinks(cell):
    return "think" in OTHERS.get(cell, (cell,))[0] or cell.startswith("loss-")


def train_flags(cell, epoch):
    """What train.py is given for a cell; epoch: steps of one task. Later flags win."""
    if cell.startswith("loss-"):
        return f"--steps 40 --updates-per-rollout 2 {LOSSES[cell.removeprefix('loss-')]}".split()
    name, more = OTHERS.get(cell, (cell, ""))
    task, method, *rest = name.split("-")
    tasks = len(JOINTLY) if task == "all" else task.count("+") + 1
    steps = epoch * tasks * (3 if "3" in rest else 1)
    words = f"--task {task} --method {method} --steps {steps} --prompts-per-step {PROMPTS}"
    words += f" --examples {PROMPTS * EPOCH} {'--think' if thinks(cell) else '--no-think'}"
    words += " --updates-per-rollout 2" * (method == "grpo")
    return f"{words} {'' if 'weights' in cell else '--lora 16'} {more}".split()


# Evaluations by the names of their folders, where the flags are not just --bench NAME.
EVALUATIONS = {
    "nextgqa-qa": "--bench nextgqa --task qa",
    "videomme-clues": "--bench videomme --clues",
    "longvideobench-clues": "--bench longvideobench --clues",
}

# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def spread(values, digits):
    """Mean and standard deviation over seeds as words: [60, 62] → "61.0 ± 1.4"."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def section(title, head, rows):
    """A heading and a markdown table; head, rows: the words of its cells."""
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}", "", *lines])


def table_section(name, cells):
    """A table in markdown; None unless all its rows are there, with some seed.

    cells: {row: {seed: {column: number}}}. Whatever has numbers is shown, with or without a run.
    """
    table, rows = TABLES[name], []
    asked = {column for column in table.columns if not column.startswith("run ")}
    if not all(asked <= set().union(*cells.get(row, {}).values()) for row in table.rows):
        return None
    for row, paper in table.rows.items():
        words = [row]
        for column, figure in zip_longest(table.columns, paper, fillvalue="–"):
            values = [seed[column] for seed in cells[row].values() if column in seed]
            toy = spread(values, 3 if column.startswith("run ") else 1) if values else "–"
            words.append(toy if figure == "–" else f"{toy} *({figure})*")
        rows.append(words)
    return section(f"{name}: {table.title}", ["cell", *table.columns], rows)


def finding_section(finding):
    rows = []
    for c in finding["comparisons"]:
        difference = f"{c['difference']:+.1f} [{c['low']:+.1f}, {c['high']:+.1f}]"
        rows.append([c["column"], c["a"], c["b"], c["expected"], difference, c["verdict"]])
    head = ["column", "from", "to", "expected", "difference, 95 %", "verdict"]
    return section(f"{finding['finding']}: {finding['verdict']}", head, rows)


def page(results):
    """paper.md with these results in it: tables and findings that have all their numbers."""
    tables = [table_section(name, results["cells"]) for name in TABLES]
    shown = [WORDS.rstrip(), *filter(None, tables), *map(finding_section, results["findings"])]
    return "\n\n".join(shown) + "\n"
