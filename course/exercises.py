"""exercises.py: write the core of this project yourself, and know for certain whether it is right.

    python -m course list                        # the twelve exercises, the easy ones first
    python -m course start all --into homework   # writes a file for each; or a number for `all`
    python -m course check 5 --into homework     # shows the smallest case that fails
    python -m course hint 5
    python -m course solution 5                  # our own; --into DIR writes it like a student's
    python train.py --student homework           # trains with your functions in place of ours

eval.py takes --student, too. For instructors:

    python -m course handout --into class        # a copy of the repository without the solutions
    python -m course grade submissions --out grades.csv

where submissions/ holds a folder for each student, ANNA/ex01_temporal_iou.py, BEN/….

A student's file is made from the reference code itself: its functions without their bodies. What is
checked, and what a failure usually means, is in checks.py and checks_model.py.

Every check runs in its own process with a time limit: code that hangs, crashes or exits harms only
itself. That protects from accidents. It is no jail: on a machine that matters, grade in a
container.
"""

import argparse
import ast
import csv
import doctest
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill

from runtime.errors import BadInput

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Only a hand-out has this folder: the students' files, and what the checks expect.
BLANKS = os.path.join(ROOT, "handout")


@dataclass(frozen=True)
class Exercise:
    number: int
    title: str
    module: str  # the chapter that holds the reference's functions
    functions: tuple  # names of what the student writes, in this order in one file
    lesson: str
    hint: str

    @property
    def file(self):
        return f"ex{self.number:02}_{self.functions[-1]}.py"


EXERCISES = (
    Exercise(1, "temporal IoU", "rewards", ("temporal_iou",),
        lesson="The reward of grounding. A policy under training will answer with every pair of "
               "numbers there is, so the function has to be total: reversed and empty intervals "
               "earn 0, and nothing is ever divided by 0.",
        hint="Deal with intervals that hold nothing first. Then the overlap: from the later "
             "start to the earlier end, and never below 0."),
    Exercise(2, "box IoU", "rewards", ("box_iou",),
        lesson="The reward of tracking, one frame of it. The same as before in two dimensions, "
               "with one more trap: an overlap that is negative in both.",
        hint="Clamp all eight numbers to the frame, which is [0, 1]. Widths and heights are "
             "max(0, end − start), those of the overlap too; only then multiply."),
    Exercise(3, "strict format reward", "rewards", ("well_formed",),
        lesson="What a rule pays for is what the policy becomes: a rule that lets a second "
               "<answer> pass teaches to answer twice. The whole text must be the blocks that were"
               " asked for, in order, each once, and around them nothing but white space. Inside a"
               " block anything may stand but a tag, line breaks too.",
        hint="Count every tag of TAGS: 1 of those asked for, 0 of the others. Then one pattern "
             "must match all of the text: re.fullmatch, with re.DOTALL so that . is a line break"
             " too."),
    Exercise(4, "IoU of sets of intervals", "rewards", ("merged", "interval_set_iou"),
        lesson="The evidence for an answer may be several intervals, and a policy may give some "
               "that overlap. Seconds that are said twice must not be paid twice, on either side "
               "of the fraction.",
        hint="merged: go through the intervals by their start and either extend the last of the "
             "output or append. Beware of an interval inside the one before it. Then: the union "
             "of both sets is merged(a + b)."),
    Exercise(5, "group advantages", "grpo", ("group_advantages",),
        lesson="No network estimates how good an answer should be: the other answers to the same "
               "prompt say it. That is GRPO's G and R.",
        hint="mean and std over the last dimension, with keepdim=True. torch.std divides by n − "
             "1 unless it is told otherwise. 1e-4 is added to the std, not under its root."),
    Exercise(6, "KL by the k3 estimator", "grpo", ("kl_k3",),
        lesson="Why not simply logp − logp_ref? That is unbiased as well, but often negative for a"
               " single token. exp(Δ) − 1 has mean 0 under the policy, Σ p · (p_ref/p) − 1 = 0, so"
               " adding it to −Δ changes no mean; and since exp(Δ) ≥ 1 + Δ, the sum is never "
               "negative and 0 only where both agree.",
        hint="Δ is the reference's log-prob minus the policy's. Two terms and a −1, for each "
             "token, with gradient."),
    Exercise(7, "the mask of a completion", "grpo", ("completion_mask",),
        lesson="Completions of a group end at different times. The stop token is an action of the "
               "policy like any other: without it in the mask, nothing would ever teach the policy"
               " when to stop. What stands behind it is padding, and may be the stop token again.",
        hint="Count with cumsum how many stop tokens stand *before* each place, itself not "
             "counted. A place is the completion's own where that is 0."),
    Exercise(8, "token log-probs", "model", ("predicting_states", "token_logprobs"),
        lesson="A language model's output at one place is its distribution of the *next* token. "
               "With the group packed in one row, the place before a completion's first token is "
               "the end of the prompt, not the end of the sibling before it.",
        hint="predicting_states: hidden[P − 1] for the first tokens, expanded to (G, 1, D); for "
             "the others each completion's states but the last. token_logprobs: log_softmax, "
             "then gather. 0 · −inf is NaN: the entropy needs a clamp or torch.where, and "
             "torch.no_grad()."),
    Exercise(9, "the clipped objective", "grpo", ("token_weights", "policy_loss"),
        lesson="The heart. Its value says little (before the first update it is 0 whatever the "
               "rewards were); its gradient is everything. Padding may hold anything, −inf too, "
               "and must not reach the loss or the gradient.",
        hint="Make the log-ratio 0 outside the mask with torch.where before any exp. Both ρ · A "
             "and clip(ρ) · A, then torch.minimum of the two: clipping ρ alone is wrong for one "
             "sign of A. gspo differs in one line: the log-ratio's mean over the completion, for"
             " each of its tokens."),
    Exercise(10, "M-RoPE positions of a video", "model", ("mrope_positions",),
        lesson="How Qwen2.5-VL can tell time at all. Current releases of transformers get the text"
               " after a video wrong; yours should not.",
        hint="Walk through the videos with two counters: the place in ids and the next free "
             "position. torch.meshgrid(time, rows, columns, indexing=\"ij\") makes a video's "
             "positions; grids count patches, and 2 × 2 of them are a token. floor after "
             "multiplying."),
    Exercise(11, "sampling with a shared cache", "grpo", ("sample_groups",),
        lesson="The group at work: needed are prefill, decode_step, draw and completion_mask. "
               "prefill reads every prompt once; cache.start_decoding(G, C) then lets G rows share"
               " it. Row b·G + g is completion g of prompt b. decode_step(model, cache, tokens, "
               "positions) takes the tokens just sampled and their positions, and gives the next "
               "logits. One uniform number per token goes into draw(): torch.rand(…, "
               "dtype=torch.float64, generator=generators[b]) for prompt b. (fast_decoding makes "
               "ours faster: call decode_step in its place.) Example: with stop_ids [9], one "
               "prompt and G = 2, the draws 5 9 and 6 7 9 give completions [[[5, 9, 9], [6, 7, "
               "9]]] and mask [[[1, 1, 0], [1, 1, 1]]].",
        hint="logits.repeat_interleave(G, dim=0), the same with the position. Each step: "
             "log_softmax, draw (argmax if there are no generators), the stop token for rows "
             "that have ended, write down token and log-prob, leave the loop when all have "
             "ended, and logits = decode_step(model, cache, token, position + step). At the end "
             "the mask from the tokens, log-probs 0 outside it, and everything cut to the "
             "longest completion."),
    Exercise(12, "attention of the packed group", "model", ("packed_attention",),
        lesson="The group's prompt is read once, not G times: with thousands of video tokens that "
               "is the difference between a run and no run. attend(query, key, value, scale, "
               "causal=True) is attention aligned to the lower right: the last query sees all "
               "keys, the one before it all but the last, and so on. A prompt that is only read "
               "has no completions: C = 0.",
        hint="First call: the prompt on itself. For the second make the completions a batch: "
             "queries (G, H, C, d), keys and values (G, K, P + C, d), the prompt's expanded to "
             "each. Then put the outputs back in one row, completion after completion."),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------
# From the reference code to a student's file
# ------------------------------------------------------------------------------------------------


def functions_of(source):
    """{name: node} of the functions at the top level of a module."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def is_blank(node):
    """Is the body what `start` left there: a docstring, then `raise NotImplementedError`?"""
    last = node.body[-1]
    raised = getattr(last.exc, "func", last.exc) if isinstance(last, ast.Raise) else None
    return len(node.body) <= 2 and getattr(raised, "id", None) == "NotImplementedError"


def without_bodies(source, names, instead):
    """The source with the bodies of some functions replaced by a statement; docstrings stay."""
    lines = source.splitlines()
    functions = functions_of(source)
    for node in sorted((functions[name] for name in names), key=lambda node: -node.lineno):
        first = node.body[0]
        has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        start = first.end_lineno if has_docstring else first.lineno - 1
        lines[start : node.end_lineno] = ["    " + instead]
    return "\n".join(lines) + "\n"


def names_used(tree, names):
    """The names that some functions of a module use, in the examples of their docstrings too."""
    used = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            for part in (node, *(ast.parse(example.source) for example in examples)):
                used |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
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
        lines.append(f"from {module} import {', '.join(sorted(ours))}")
    return "\n".join(lines)


def write_up(exercise, solved=False):
    """The text of a student's file: blank, or with our solution."""
    if in_handout():
        if solved:
            raise BadInput(
                "this is a hand-out: it does not hold the solutions, your instructor does; `hint`"
                " helps"
            )
        with open(os.path.join(BLANKS, exercise.file), encoding="utf-8") as f:
            return f.read()
    with open(os.path.join(ROOT, exercise.module + ".py"), encoding="utf-8") as f:
        source = f.read()
    header = imports_for(ast.parse(source), exercise.functions, exercise.module)
    if not solved:
        blank = f'raise NotImplementedError("exercise {exercise.number}: write me")'
        source = without_bodies(source, exercise.functions, blank)
    lines, functions = source.splitlines(), functions_of(source)
    code = []
    for node in (functions[name] for name in exercise.functions):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        code.append("\n".join(lines[first - 1 : node.end_lineno]))
    opening = f'''"""Exercise {exercise.number}: {exercise.title}.

{fill(exercise.lesson, 100)}

    python -m course check {exercise.number} --into DIR     (DIR: the folder of this file)
    python -m course hint {exercise.number}
"""'''
    return "\n\n\n".join([opening + "\n\n" + header, *code]) + "\n"


def in_handout():
    return os.path.isdir(BLANKS)


def write_files(chosen, folder, solved=False):
    os.makedirs(folder, exist_ok=True)
    for exercise in chosen:
        path, text = os.path.join(folder, exercise.file), write_up(exercise, solved)
        if os.path.exists(path) and not unfinished(exercise, folder):
            print(f"{path} is already worked on and stays as it is: delete it to start again")
            continue
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        print(f"wrote {path}")


# ------------------------------------------------------------------------------------------------
# A student's functions in the place of ours
# ------------------------------------------------------------------------------------------------


def unfinished(exercise, folder):
    """Why there is nothing to check yet, or "" if there is."""
    path = os.path.join(folder, exercise.file)
    if not os.path.isfile(path):
        return f"{path} is not there: python -m course start {exercise.number} --into {folder}"
    try:
        with open(path, encoding="utf-8") as f:
            theirs = functions_of(f.read())
    except (SyntaxError, ValueError):
        return ""  # loading it will say where
    blank = [name for name in exercise.functions if name in theirs and is_blank(theirs[name])]
    return f"{', '.join(blank)} in {path}: not written yet" if blank else ""


def load_functions(exercise, folder):
    """Runs a student's file and returns its functions, {name: function}."""
    path = os.path.abspath(os.path.join(folder, exercise.file))
    spec = importlib.util.spec_from_file_location(f"student_{exercise.file[:-3]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that place() finds the names that it imported from ours
    spec.loader.exec_module(module)
    missing = [name for name in exercise.functions if not callable(getattr(module, name, None))]
    if missing:
        raise BadInput(
            f"{path} defines no function {missing[0]}: keep the names that `start` wrote"
        )
    return {name: getattr(module, name) for name in exercise.functions}


def place(module, name, new):
    """Puts a function in place of module.name, in every module that imported it.

    Returns a function that undoes it.
    """
    old = getattr(importlib.import_module(module), name)
    holders = [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is old]
    for m in holders:
        setattr(m, name, new)
    return lambda: [setattr(m, name, old) for m in holders]


def install(folder, but=None, show=True):
    """Puts a student's finished functions in place of ours, in every module that uses them.

    but: an exercise that is left out. Raises BadInput if the folder is not there, if a file in it
    cannot be loaded, or, in a hand-out, which has none of our functions, if any is unfinished.
    """
    if not os.path.isdir(folder):
        raise BadInput(
            f"--student {folder} is no folder: python -m course start all --into {folder} makes it"
        )
    for exercise in EXERCISES:
        importlib.import_module(exercise.module)
    theirs, ours = [], []
    for exercise in EXERCISES:
        if exercise is but or unfinished(exercise, folder):
            ours.append(exercise)
            continue
        try:
            functions = load_functions(exercise, folder)
        except Exception as e:
            path = os.path.join(folder, exercise.file)
            raise BadInput(f"{path} cannot be loaded: {type(e).__name__}: {e}") from e
        theirs += [(exercise.module, name, function) for name, function in functions.items()]
    # Only now, so that the students' files find each other's functions, too.
    for module, name, function in theirs:
        place(module, name, function)
    if but is None and ours and in_handout():
        raise BadInput(
            "a hand-out can run only when all exercises are done; not done: "
            + ", ".join(str(e.number) for e in ours)
        )
    if show:
        names = ", ".join(f"{module}.{name}" for module, name, _ in theirs)
        print(f"yours: {names or 'none'}")
        names = ", ".join(name for exercise in ours for name in exercise.functions)
        print(f"the reference's: {names or 'none'}")


@contextmanager
def hidden(exercise):
    """While a student's code is checked, the reference's version raises: nobody can hand it in."""

    def refuse(*_, **__):
        raise NotImplementedError(
            f"this is exercise {exercise.number} itself: the reference's function does not answer"
            " while yours is checked"
        )

    undo = [place(exercise.module, name, refuse) for name in exercise.functions]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


# ------------------------------------------------------------------------------------------------
# Checking
# ------------------------------------------------------------------------------------------------


def cases_of(exercise):
    """The exercise's cases, a generator function of checks.py or checks_model.py."""
    from course import checks, checks_model

    name = exercise.functions[-1] + "_cases"
    return (getattr(checks, name, None) or getattr(checks_model, name))()


def expected_of(exercise):
    """What each case should give, in a hand-out, where it cannot be computed; else None."""
    if not in_handout():
        return None
    import torch

    return torch.load(os.path.join(BLANKS, "expected.pt"), weights_only=True)[exercise.number]


def examine(exercise, folder, tell=lambda case: None):
    """Checks one exercise of a student's folder, in this process.

    tell: called with each case, as text, before it is tried.
    Returns ("right" | "wrong" | "to do", message).
    """
    from course import checks

    if why := unfinished(exercise, folder):
        return "to do", why
    try:
        if in_handout():  # where the other functions are the student's own, or there are none
            install(folder, but=exercise, show=False)
        with hidden(exercise):
            tell("reading the file")
            path = os.path.join(folder, exercise.file)
            functions = checks.guard(lambda: load_functions(exercise, folder), path)
            count = checks.run(cases_of(exercise), functions, path, tell, expected_of(exercise))
    except (checks.Wrong, BadInput) as e:
        return "wrong", str(e)
    return "right", f"{count} cases"


def child(number, folder, quiet, pipe):
    """What the process of a check does."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that whatever the student's code starts can be ended with it
    from course import checks_model  # noqa: F401

    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))  # 4 GB of memory
    # Time counts from here on: loading torch is not the student's fault.
    pipe.send(("at", "the beginning"))
    if quiet:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        result = examine(EXERCISES[number - 1], folder, lambda case: pipe.send(("at", case)))
        # What the student's code printed: this process is killed once the result has arrived.
        sys.stdout.flush()
        pipe.send(result)
    except Exception as e:
        ours = "the check itself failed, which is no fault of yours"
        pipe.send(("not checked", f"{ours}: {type(e).__name__}: {e}"))


def check_apart(exercise, folder, limit, quiet=True):
    """examine() in a process of its own.

    Returns (status, message); the status may also be "hung" or "died".
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *paths])
    if why := unfinished(exercise, folder):
        return "to do", why
    # A server that imports torch once and forks for each check saves five seconds per check.
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(["course.checks_model"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=child, args=(exercise.number, folder, quiet, theirs), daemon=True
    )
    process.start()
    theirs.close()
    at, deadline = None, time.monotonic() + 180
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            status, message = ours.recv()
            if status != "at":
                return status, message
            deadline = time.monotonic() + limit if at is None else deadline
            at = message
        usually = "a loop whose end never comes, or Python loops over what tensors do at once"
        said = f"not done after {limit:g} seconds; it was at: {at}\n  usually  {usually}"
        return "hung", said
    except EOFError:
        process.join(5)
        said = f"your code ended the whole process (exit code {process.exitcode}); it was at: {at}"
        return "died", f"{said}\n  usually  a call of exit, or no memory left"
    finally:
        kill_all(process)


def kill_all(process):
    """Ends a check's process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, OSError):  # no process groups on this system, or it has ended
        process.kill()
    process.join()


def check(chosen, folder, limit):
    """Prints the result of each exercise. Returns how many are right."""
    right = 0
    for exercise in chosen:
        status, message = check_apart(exercise, folder, limit, quiet=len(chosen) > 1)
        right += status == "right"
        count = f" ({message})" if status == "right" else ""
        print(f"{exercise.number:2}  {exercise.title:32} {status}{count}")
        if status != "right":
            print(f"  {message}" + ("\n" if status != "to do" else ""))
    if len(chosen) > 1:
        done = right == len(EXERCISES)
        train = f"; now train with them: python train.py --student {folder}" if done else ""
        print(f"{right} of {len(chosen)} right{train}")
    return right


# ------------------------------------------------------------------------------------------------
# For instructors
# ------------------------------------------------------------------------------------------------


COPIED = (
    "CONTRIBUTING.md",
    "README.md",
    "LICENSE",
    "requirements.txt",
    "pyproject.toml",
    "Makefile",
    "tools/report.html",
)
ROOMS = ("", "runtime", "scale", "annotations", "toy", "course", "tools")  # all but the tests


def source_files():
    """(folder, file name) of all of the project's Python files but the tests."""
    for folder in ROOMS:
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith(".py"):
                yield folder, name


def without_solutions(folder, name):
    """A source file as a hand-out has it.

    Of the checks' own slow computations a hand-out holds only the results: without_solutions takes
    their bodies out, as it does with those of the exercises' functions.
    """
    with open(os.path.join(ROOT, folder, name), encoding="utf-8") as f:
        source = f.read()
    for exercise in EXERCISES:
        if folder == "" and name == exercise.module + ".py":
            number = exercise.number
            said = f"exercise {number} comes first: python -m course start {number}"
            instead = f'raise NotImplementedError("{said}")'
            source = without_bodies(source, exercise.functions, instead)
    if folder == "course" and name.startswith("checks"):
        slow = [function for function in functions_of(source) if function.startswith("slow_")]
        instead = 'raise NotImplementedError("not in a hand-out: see handout/expected.pt")'
        source = without_bodies(source, slow, instead)
    return source


def handout(into):
    """Makes a copy of the repository for a class, without the solutions, the tests and the history.

    handout/expected.pt holds what the checks' cases should give. Raises BadInput if `into` is not
    empty.
    """
    import torch

    if os.path.exists(into) and os.listdir(into):
        raise BadInput(f"{into} is not empty: give a new folder")
    blanks = os.path.join(into, os.path.basename(BLANKS))
    os.makedirs(blanks)
    for exercise in EXERCISES:
        with open(os.path.join(blanks, exercise.file), "w", encoding="utf-8") as f:
            f.write(write_up(exercise))
    expected = {e.number: [case.expected() for case in cases_of(e)] for e in EXERCISES}
    torch.save(expected, os.path.join(blanks, "expected.pt"))
    for folder, name in source_files():
        os.makedirs(os.path.join(into, folder), exist_ok=True)
        with open(os.path.join(into, folder, name), "w", encoding="utf-8") as f:
            f.write(without_solutions(folder, name))
    for name in COPIED:
        shutil.copy(os.path.join(ROOT, name), os.path.join(into, name))
    for name in ("assets", "docs"):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(into, name))
    write_files(EXERCISES, os.path.join(into, "homework"))
    print(
        f"{into} is ready to be handed out; its students hand in the folder homework, and"
        " `python -m course grade` here grades them"
    )


def grade(submissions, out, limit):
    """Checks every sub-folder and writes a line for each: 1 or 0 per exercise, the sum, remarks."""
    if in_handout():
        raise BadInput("this is a hand-out: grade with the whole repository")
    if not os.path.isdir(submissions):
        raise BadInput(f"{submissions} is no folder: it should hold one folder for each student")
    students = sorted(e.name for e in os.scandir(submissions) if e.is_dir())
    if not students:
        raise BadInput(f"{submissions} holds no folders: it should hold one for each student")

    def check_job(job):
        student, exercise = job
        return check_apart(exercise, os.path.join(submissions, student), limit)

    jobs = [(student, exercise) for student in students for exercise in EXERCISES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, pool.map(check_job, jobs)))
    with open(out, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["student", *(f"ex{e.number:02}" for e in EXERCISES), "right", "remarks"])
        for student in students:
            points = [int(results[student, e][0] == "right") for e in EXERCISES]
            remarks = []
            for e in EXERCISES:
                status, message = results[student, e]
                if status == "to do":
                    remarks.append(f"{e.number} to do")
                elif status != "right":
                    remarks.append(f"{e.number} {status}: {' '.join(message.split())[:300]}")
            writer.writerow([student, *points, sum(points), " | ".join(remarks)])
            print(f"{student:24} {sum(points):2} of {len(EXERCISES)}")
    print(f"wrote {out}")


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------


def chosen_by(which):
    """'5' or 'all' → exercises."""
    if which == "all":
        return EXERCISES
    if which not in [str(e.number) for e in EXERCISES]:
        raise BadInput(
            f"there is no exercise {which}: give a number from 1 to {len(EXERCISES)}, or all"
        )
    return (EXERCISES[int(which) - 1],)


def start(args):
    write_files(chosen_by(args.which), args.into or "homework")


def check_chosen(args):
    chosen = chosen_by(args.which)
    return int(check(chosen, args.into or "homework", args.limit) < len(chosen))


def show_hints(args):
    print("\n\n".join(e.hint for e in chosen_by(args.which)))


def show_solutions(args):
    if args.into:
        write_files(chosen_by(args.which), args.into, solved=True)
    else:
        print("\n\n".join(write_up(e, solved=True) for e in chosen_by(args.which)))


def make_handout(args):
    if not args.into:
        raise BadInput("handout needs --into DIR: the folder to make")
    if in_handout():
        raise BadInput("this is a hand-out already")
    handout(args.into)


def list_exercises(args):
    for e in EXERCISES:
        functions = ", ".join(f"{e.module}.{name}" for name in e.functions)
        print(f"{e.number:2}  {e.title:32} {functions}")


COMMANDS = {
    "list": list_exercises,
    "start": start,
    "check": check_chosen,
    "hint": show_hints,
    "solution": show_solutions,
    "handout": make_handout,
    "grade": lambda args: grade(args.which, args.out, args.limit),
}


def main(argv=None):
    """Runs one command. Returns the exit status: 1 if `check` found anything that is not right."""
    p = argparse.ArgumentParser(
        prog="python -m course",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("command", choices=COMMANDS)
    p.add_argument("which", nargs="?", help="a number, or all; of grade: the folder of submissions")
    p.add_argument(
        "--into", help="the student's folder (default: homework); of handout: the folder to make"
    )
    p.add_argument("--out", default="grades.csv", help="of grade: the file to write")
    p.add_argument("--limit", type=float, default=20.0, help="seconds that a check may take")
    args = p.parse_args(argv)
    if args.which is None and args.command not in ("list", "handout"):
        example = "FOLDER" if args.command == "grade" else "5"
        raise BadInput(f"{args.command} what? python -m course {args.command} {example}")
    try:
        return COMMANDS[args.command](args) or 0
    except OSError as e:
        raise BadInput(f"{e.filename}: {e.strerror}") from e
