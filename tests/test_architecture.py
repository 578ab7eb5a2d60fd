"""The house: who may import whom, no circles (imports inside functions count), lengths.

Branches and columns are ruff's to count: `make lint`.
"""

import ast
import os
from functools import cache

import pytest

from conftest import ROOT

CHAPTERS = ("rewards", "tasks", "data", "model", "variants", "grpo", "train", "eval")
LONGEST, TOGETHER = 430, 2330  # lines of a chapter, and of all of them
ROOMS = ("lib", "training", "evaluation", "annotations", "toy", "course", "tools")
MAY_IMPORT = {
    "rewards": {"lib.wording"},
    "tasks": {"rewards", "lib.errors"},
    "data": {"rewards", "tasks", "lib.video", "lib.errors"},
    "model": {"lib.attention", "lib.cache"},
    "variants": set(),
    "grpo": {"tasks", "model", "variants", "lib.decoding", "lib.threads"},
    "lib.errors": set(),
}  # fmt: skip


@cache
def files():
    """{module: its syntax tree} of the root and the rooms."""
    paths = {f"{name}.py": name for name in CHAPTERS}
    for room in ROOMS:
        for name in os.listdir(os.path.join(ROOT, room)):
            if name.endswith(".py"):
                module = f"{room}.{name[:-3]}".removesuffix(".__init__")
                paths[os.path.join(room, name)] = module
    trees = {}
    for path, module in paths.items():
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            trees[module] = tree = ast.parse(f.read())
        # What a file does as a program (`python grpo.py`) is no import of the module.
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__")]
    return trees


@cache
def imports(module):
    """The project's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(files()[module]):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        found |= {name for name in names if name in files()}
    packages = {name for name in found if any(other.startswith(name + ".") for other in found)}
    return found - packages - {module}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_a_chapter_imports_what_stands_before_it(module):
    assert imports(module) <= MAY_IMPORT[module]


def test_rooms_do_not_look_at_what_uses_them():
    for module in files():
        room = module.split(".")[0]
        if room in ("lib", "training", "annotations"):
            users = ("train", "eval", "course", "tools", "toy")
            assert not {m for m in imports(module) if m.split(".")[0] in users}, module
    assert "train" not in imports("eval")


def test_course_and_tools_are_imported_in_the_branch_that_asks_for_them():
    for chapter in ("train", "eval", "grpo"):
        for node in files()[chapter].body:
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in ("course", "tools"), chapter


def test_there_are_no_circles():
    def walk(module, path):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imports(module):
                walk(other, [*path, module])
            done.add(module)

    done = set()
    for module in files():
        walk(module, [])


def test_lengths():
    total = 0
    for chapter in CHAPTERS:
        with open(os.path.join(ROOT, chapter + ".py"), encoding="utf-8") as f:
            n = len(f.readlines())
        assert n <= LONGEST, f"{chapter}.py has {n} lines"
        total += n
    assert total <= TOGETHER, total
    for module, tree in files().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                where = f"{module}.{node.name}"
                assert node.end_lineno - node.lineno < 60, where


PROGRAMS = ("annotations", "course", "tools", "toy")  # rooms that are started with python -m


def test_every_program_says_how_threads_wait_before_torch_is_imported():
    """lib/threads.py is the one place. It is imported first of all by the chapters that are
    programs, by the rooms that are, and by what the benches share."""
    programs = ["grpo.py", "train.py", "eval.py", *(f"{room}/__init__.py" for room in PROGRAMS)]
    benches = sorted(os.listdir(os.path.join(ROOT, "tests", "bench")))
    for path in programs + [f"tests/bench/{name}" for name in benches if name.endswith(".py")]:
        if path.endswith(("trl_trainer.py", "peft_check.py")):  # in an environment of their own
            continue
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            order = imported_in_order(ast.parse(f.read()))
        late = [k for k, name in enumerate(order) if brings_torch(name)]
        first = [k for k, name in enumerate(order) if name in ("lib.threads", "common")]
        if late or path in programs:
            assert first and first[0] < min(late, default=len(order)), path


def imported_in_order(tree):
    """The modules that a file's own lines import, first to last."""
    nodes = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    each = [[n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
            for n in nodes]  # fmt: skip
    return [name for names in each for name in names]


@cache
def brings_torch(name):
    """Whether importing a module imports torch. (The rooms in PROGRAMS say first how it waits.)"""
    if name in files() and name.split(".")[0] not in PROGRAMS and name != "lib.threads":
        return any(map(brings_torch, imported_in_order(files()[name])))
    return name.split(".")[0] in ("torch", "transformers", "safetensors")
