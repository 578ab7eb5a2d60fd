"""exercises.py: the exercises, and the files that students write.

    python -m course list                        # the exercises, the easy ones first
    python -m course start all --into homework   # writes a file for each; or a number for `all`
    python -m course check 5 --into homework     # shows the smallest case that fails
    python -m course hint 5                      # a question; then --level 2, --level 3
    python -m course solution 5                  # our own; --into DIR writes it like a student's
    python grpo.py --student homework            # the bandit, with your functions in place of ours
    python train.py --student homework           # a training; eval.py takes --student, too

For instructors (docs/course.md):

    python -m course handout --into class        # what a class needs, with blank files
    python -m course grade submissions --out grades.csv
    python -m course gradescope --out autograder.zip

A student's file is made from the reference code itself, its functions without their bodies, and the
lesson in exercises.md, which has the hints as well.
"""

import ast
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from textwrap import fill

from lib.errors import BadInput

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Exercise:
    number: int
    title: str
    module: str  # it holds the reference's functions
    functions: tuple  # names of what the student writes, in this order in one file
    points: tuple  # of each function; multiples of 4 (grading.py)

    @property
    def file(self):
        return f"ex{self.number:02}_{self.functions[-1]}.py"

    @property
    def plain(self):
        """Whether it needs no tensors, so that a check need not wait for torch."""
        return self.module == "rewards"


EXERCISES = (
    Exercise(1, "temporal IoU", "rewards", ("temporal_iou",), (4,)),
    Exercise(2, "box IoU", "rewards", ("box_iou",), (4,)),
    Exercise(3, "strict format reward", "rewards", ("well_formed",), (8,)),
    Exercise(4, "IoU of sets of intervals", "rewards", ("merged", "interval_set_iou"), (4, 4)),
    Exercise(5, "group advantages", "grpo", ("group_advantages",), (8,)),
    Exercise(6, "KL by the k3 estimator", "grpo", ("kl_k3",), (4,)),
    Exercise(7, "the mask of a completion", "grpo", ("completion_mask",), (8,)),
    Exercise(8, "token log-probs", "model", ("predicting_states", "token_logprobs"), (4, 8)),
    Exercise(9, "the clipped objective", "grpo", ("token_weights", "policy_loss"), (4, 12)),
    Exercise(10, "M-RoPE positions of a video", "model", ("mrope_positions",), (8,)),
    Exercise(11, "sampling with a shared cache", "grpo", ("sample_groups",), (12,)),
    Exercise(12, "attention of the packed group", "model", ("packed_attention",), (8,)),
    Exercise(13, "a reward that cannot be gamed", "course.further", ("caption_f1",), (8,)),
    Exercise(14, "a later variant: CISPO", "course.further", ("cispo_loss",), (8,)),
)


def prose(exercise):
    """(the lesson, [three hints]) of an exercise, as exercises.md has them."""
    page = read(os.path.join(ROOT, "course", "exercises.md")).decode()
    section = re.split(r"^## \d+\. .*$", page, flags=re.MULTILINE)[exercise.number]
    lesson, *hints = re.split(r"^\d\. ", section, flags=re.MULTILINE)
    return lesson.strip(), [" ".join(hint.split()) for hint in hints]


def source_of(module):
    """The path of a module's source, from the root."""
    return module.replace(".", os.sep) + ".py"


def blank_line(name):
    """What stands in the place of a function's body until it is written."""
    return f'raise NotImplementedError("write {name}")'


def functions_of(source):
    """{name: node} of the functions at the top level of a module's source."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def without_bodies(source, names, instead):
    """The source with the bodies of some functions replaced; docstrings stay.

    instead: a statement, or a function that gives it for a name.
    """
    lines = source.splitlines()
    functions = functions_of(source)
    for node in sorted((functions[name] for name in names), key=lambda node: -node.lineno):
        first = node.body[0]
        has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        start = first.end_lineno if has_docstring else first.lineno - 1
        said = instead(node.name) if callable(instead) else instead
        lines[start : node.end_lineno] = ["    " + said]
    return "\n".join(lines) + "\n"


def names_used(tree, names):
    """The names that functions of a module take from outside, in examples of docstrings too."""
    import doctest  # which brings a debugger: not into every check

    used = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            for part in (node, *(ast.parse(example.source) for example in examples)):
                inside = [n for n in ast.walk(part) if isinstance(n, ast.Name)]
                own = {n.id for n in inside if isinstance(n.ctx, ast.Store)}
                own |= {n.arg for n in ast.walk(part) if isinstance(n, ast.arg)}
                used |= {n.id for n in inside} - own
    return used


def names_defined(node):
    """The names that a statement at the top level of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    inside = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return [n.id for n in inside if isinstance(n.ctx, ast.Store)]


def imports_for(tree, names, module):
    """The import lines that some functions of a module need when they stand alone."""
    used, lines, ours = names_used(tree, names), [], []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [a for a in node.names if (a.asname or a.name) in used]
            lines += [ast.unparse(node)] if node.names else []
        else:
            ours += [name for name in names_defined(node) if name in used and name not in names]
    if ours:
        lines.append(f"from {module} import {', '.join(sorted(set(ours)))}")
    return "\n".join(lines)


def write_up(exercise, solved=False):
    """The text of a student's file: blank, or with our solution."""
    source = read(os.path.join(ROOT, source_of(exercise.module))).decode()
    header = imports_for(ast.parse(source), exercise.functions, exercise.module)
    if not solved:
        source = without_bodies(source, exercise.functions, blank_line)
    lines, functions = source.splitlines(), functions_of(source)
    code = []
    for node in (functions[name] for name in exercise.functions):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        code.append("\n".join(lines[first - 1 : node.end_lineno]))
    opening = f'''"""Exercise {exercise.number}: {exercise.title}.

{fill(prose(exercise)[0], 100)}

    python -m course check {exercise.number} --into DIR     (DIR: the folder of this file)
    python -m course hint {exercise.number}
"""'''
    return "\n\n\n".join([opening + "\n\n" + header, *code]) + "\n"


def write_files(chosen, folder, solved=False):
    os.makedirs(folder, exist_ok=True)
    for exercise in chosen:
        path, blank = os.path.join(folder, exercise.file), write_up(exercise).encode()
        if os.path.exists(path) and read(path) != blank:
            print(f"{path} is already worked on and stays as it is: delete it to start again")
            continue
        with open(path, "wb") as f:
            f.write(write_up(exercise, solved=True).encode() if solved else blank)
        print(f"wrote {path}")


def read(path):
    with open(path, "rb") as f:
        return f.read()


def blanks(exercise, text):
    """The names of an exercise's functions that are not written yet in a file's text, as bytes."""

    def last(name):  # its last definition, up to the next line that begins with a word or an @
        pattern = rb"^def %b\b.*?(?=^[\w@]|\Z)" % name.encode()
        return (re.findall(pattern, text, re.MULTILINE | re.DOTALL) or [b""])[-1]

    return [name for name in exercise.functions if blank_line(name).encode() in last(name)]


def unfinished(exercise, folder):
    """Why an exercise is not done yet, or "" if it is."""
    path = os.path.join(folder, exercise.file)
    if not os.path.isfile(path):
        return f"{path} is not there: python -m course start {exercise.number} --into {folder}"
    blank = blanks(exercise, read(path))
    return f"{', '.join(blank)} in {path}: not written yet" if blank else ""


def load_functions(exercise, folder):
    """Runs a student's file and returns its functions, {name: function}."""
    path = os.path.abspath(os.path.join(folder, exercise.file))
    spec = importlib.util.spec_from_file_location(f"student_{exercise.file[:-3]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that place() finds the names that it imported from ours
    spec.loader.exec_module(module)
    for name in exercise.functions:
        if not callable(getattr(module, name, None)):
            raise BadInput(f"{path} defines no function {name}: keep the names that `start` wrote")
    return {name: getattr(module, name) for name in exercise.functions}


def place(module, name, new):
    """Puts a function in place of module.name, in every module that imported it."""
    old = getattr(importlib.import_module(module), name)
    for m in list(sys.modules.values()):
        if getattr(m, "__dict__", {}).get(name) is old:
            setattr(m, name, new)


def install(folder, show=True, only=None):
    """Puts a student's finished functions in place of ours, in every module that uses them.

    only: names of functions; no others are put in place. Raises BadInput if the folder is not
    there, or if a file in it cannot be loaded.
    """
    if not os.path.isdir(folder):
        makes = f"python -m course start all --into {folder} makes it"
        raise BadInput(f"--student {folder} is no folder: {makes}")
    called = [e for e in EXERCISES if e.module != "course.further"]  # that a run calls
    for exercise in called:
        importlib.import_module(exercise.module)
    theirs, ours = [], []
    for exercise in called:
        if only and not set(exercise.functions) <= set(only):
            continue
        if unfinished(exercise, folder):
            ours.append(exercise)
            continue
        try:
            functions = load_functions(exercise, folder)
        except (Exception, SystemExit) as e:
            path = os.path.join(folder, exercise.file)
            raise BadInput(f"{path} cannot be loaded: {type(e).__name__}: {e}") from e
        theirs += [(exercise.module, name, function) for name, function in functions.items()]
    # Only now, so that the students' files find each other's functions, too.
    for module, name, function in theirs:
        place(module, name, function)
    if show:
        names = ", ".join(f"{module}.{name}" for module, name, _ in theirs)
        print(f"yours: {names or 'none'}")
        names = ", ".join(name for exercise in ours for name in exercise.functions)
        print(f"the reference's: {names or 'none'}")
