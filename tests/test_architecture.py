"""The house: a line uses what stands below it, chapters stay short, the whole stays small.

Branches and columns are ruff's to count: `make lint`.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

from conftest import ROOT
from course.exercises import EXERCISES

FLOORS = ["lib", "rewards", "tasks", "data", "model", "variants", "grpo", "annotations",
          "training evaluation", "train eval course tools toy"]  # fmt: skip
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms.split()}
BANDIT = ("grpo", "course")  # `python grpo.py` alone looks up
EXEMPT = {name for exercise in EXERCISES for name in exercise.functions}
EXEMPT |= {"attention", "window_attention"}  # transformers says what it passes
PATHS = [p for room in FLOOR for p in Path(ROOT).glob(f"{room}.py")]
CHAPTERS, PATHS = PATHS, PATHS + [p for room in FLOOR for p in Path(ROOT, room).glob("*.py")]
NAMES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PATHS]
TREES = {name: ast.parse(p.read_text(encoding="utf-8")) for name, p in zip(NAMES, PATHS)}


@cache
def imports(module):
    nodes = [n for n in ast.walk(TREES[module]) if isinstance(n, (ast.Import, ast.ImportFrom))]
    found = {getattr(n, "module", None) or a.name for n in nodes for a in n.names}
    found |= {f"{n.module}.{a.name}" for n in nodes if "module" in n._fields for a in n.names}
    return (found & set(TREES)) - {module}


def test_a_line_uses_what_stands_below_it():
    for module, other in ((m, o) for m in TREES for o in imports(m)):
        (room, below), top = (name.split(".")[0] for name in (module, other)), len(FLOORS) - 1
        assert (
            room == below
            or FLOOR[below] < FLOOR[room]
            or (room, below) == BANDIT
            or (FLOOR[room] == FLOOR[below] == top and below != "eval")
        ), f"{module} imports {other}"
    apart = {"course.bandit", "train"}  # programs: what stands behind them is their own chain
    chain = cache(lambda m: 1 + max(map(chain, imports(m) - apart), default=0))
    assert max(map(chain, TREES)) <= 8  # a circle would never end


def test_few_modules_stand_behind_train():
    said = subprocess.check_output(
        [sys.executable, "-c", "import sys, train; print(*sys.modules)"], cwd=ROOT, text=True
    )
    assert len(set(said.split()) & set(TREES)) <= 30


def test_the_house_is_small():
    lines = lambda paths: [len(p.read_text(encoding="utf-8").splitlines()) for p in paths]
    assert max(lines(CHAPTERS)) <= 430 and sum(lines(CHAPTERS)) <= 2330
    assert sum(lines(PATHS)) <= 13_600 and sum(lines(Path(ROOT, "tests").rglob("*.py"))) <= 12_500
    for module, tree in TREES.items():
        for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            own = [a for a in f.args.args + f.args.kwonlyargs if a.arg != "self"]
            few = len(own) <= 7 or f.name in EXEMPT
            assert f.end_lineno - f.lineno < 60 and few, f"{module}.{f.name}"
