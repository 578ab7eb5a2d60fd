"""exercises.py: write the core of this project yourself, and know for certain whether it is right.

    python -m course list                          # the twelve exercises, the easy ones first
    python -m course start all --into homework     # writes one file each; a number in place of `all` writes one
    python -m course check 5 --into homework       # tests it; a failure shows the smallest case that fails
    python -m course hint 5
    python -m course solution 5                    # our own; with --into DIR written as if you had handed it in
    python train.py --student homework                # trains with your functions in the place of ours (eval.py takes it too)

For instructors:

    python -m course handout --into class          # a copy of the repository that does not hold the solutions
    python -m course grade submissions --out grades.csv    # submissions/ANNA/ex01_….py, submissions/BEN/…

A student's file is made from the reference code itself: its functions with the bodies taken out.
What is checked, and what a failure usually means, stands in checks.py and checks_model.py.

Every check runs in a process of its own with a time limit, so that code which hangs, crashes or
leaves costs itself alone. That protects from accidents. It is no jail: on a machine that matters,
grade in a container.
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
BLANKS = os.path.join(
    ROOT, "handout"
)  # is there in a hand-out alone: the students' files, and what the checks expect


class Mistake(Exception):
    """What the user can mend; str() is one clear sentence. (Not data.BadInput: `list` should not
    wait for torch.)
    """


@dataclass(frozen=True)
class Exercise:
    """functions: names of what is to be written, in that order in one file, as they are in
    `module`.
    """

    number: int
    title: str
    module: str
    functions: tuple
    lesson: str
    hint: str

    @property
    def file(self):
        return f"ex{self.number:02}_{self.functions[-1]}.py"


EXERCISES = (
    Exercise(1, "temporal IoU", "rewards", ("temporal_iou",),
        "The reward of grounding. A policy under training will answer with every pair of numbers there is, so the function has to be total: reversed and empty intervals earn 0, and nothing is ever divided by 0.",
        "Deal with intervals that hold nothing first. Then the overlap: from the later start to the earlier end, and never below 0."),
    Exercise(2, "box IoU", "rewards", ("box_iou",),
        "The reward of tracking, one frame of it. The same as before in two dimensions, with one more trap: an overlap that is negative in both.",
        "Clamp all eight numbers to the frame, which is [0, 1]. Widths and heights are max(0, end − start), those of the overlap too; only then multiply."),
    Exercise(3, "strict format reward", "rewards", ("well_formed",),
        "What a rule pays for is what the policy becomes: a rule that lets a second <answer> pass teaches to answer twice. The whole text must be the blocks that were asked for, in order, each once, and around them nothing but white space. Inside a block anything may stand but a tag, line breaks too.",
        "Count every tag of TAGS: 1 of those asked for, 0 of the others. Then one pattern must match all of the text: re.fullmatch, with re.DOTALL so that . is a line break too."),
    Exercise(4, "IoU of sets of intervals", "rewards", ("merged", "interval_set_iou"),
        "The evidence for an answer may be several intervals, and a policy may give some that overlap. Seconds that are said twice must not be paid twice, on either side of the fraction.",
        "merged: go through the intervals by their start and either extend the last of the output or append. Beware of an interval inside the one before it. Then: the union of both sets is merged(a + b)."),
    Exercise(5, "group advantages", "grpo", ("group_advantages",),
        "No network estimates how good an answer should be: the other answers to the same prompt say it. That is GRPO's G and R.",
        "mean and std over the last dimension, with keepdim=True. torch.std divides by n − 1 unless it is told otherwise. 1e-4 is added to the std, not under its root."),
    Exercise(6, "KL by the k3 estimator", "grpo", ("kl_k3",),
        "Why not simply logp − logp_ref? That is unbiased as well, but often negative for a single token. exp(Δ) − 1 has mean 0 under the policy, Σ p · (p_ref/p) − 1 = 0, so adding it to −Δ changes no mean; and since exp(Δ) ≥ 1 + Δ, the sum is never negative and 0 only where both agree.",
        "Δ is the reference's log-prob minus the policy's. Two terms and a −1, for each token, with gradient."),
    Exercise(7, "the mask of a completion", "grpo", ("completion_mask",),
        "Completions of a group end at different times. The stop token is an action of the policy like any other: without it in the mask, nothing would ever teach the policy when to stop. What stands behind it is padding, and may be the stop token again.",
        "Count with cumsum how many stop tokens stand *before* each place, itself not counted. A place is the completion's own where that is 0."),
    Exercise(8, "token log-probs", "model", ("predicting_states", "token_logprobs"),
        "A language model's output at one place is its distribution of the *next* token. With the group packed in one row, the place before a completion's first token is the end of the prompt, not the end of the sibling before it.",
        "predicting_states: hidden[P − 1] for the first tokens, expanded to (G, 1, D); for the others each completion's states but the last. token_logprobs: log_softmax, then gather. 0 · −inf is NaN: the entropy needs a clamp or torch.where, and torch.no_grad()."),
    Exercise(9, "the clipped objective", "grpo", ("token_weights", "policy_loss"),
        "The heart. Its value says little (before the first update it is 0 whatever the rewards were); its gradient is everything. Padding may hold anything, −inf too, and must not reach the loss or the gradient.",
        "Make the log-ratio 0 outside the mask with torch.where before any exp. Both ρ · A and clip(ρ) · A, then torch.minimum of the two: clipping ρ alone is wrong for one sign of A. gspo differs in one line: the log-ratio's mean over the completion, for each of its tokens."),
    Exercise(10, "M-RoPE positions of a video", "model", ("mrope_positions",),
        "How Qwen2.5-VL can tell time at all. Current releases of transformers get the text after a video wrong; yours should not.",
        "Walk through the videos with two counters: the place in ids and the next free position. torch.meshgrid(time, rows, columns, indexing=\"ij\") makes a video's positions; grids count patches, and 2 × 2 of them are a token. floor after multiplying."),
    Exercise(11, "sampling with a shared cache", "grpo", ("sample_groups",),
        "The group at work: needed are prefill, decode_step, draw and completion_mask. prefill reads every prompt once; cache.start_decoding(G, C) then lets G rows share it. Row b·G + g is completion g of prompt b. decode_step(model, cache, tokens, positions) takes the tokens just sampled and their positions, and gives the next logits. One uniform number a token goes into draw(): with torch.rand(…, dtype=torch.float64, generator=generators[b]) for prompt b. (fast_decoding makes ours faster: call decode_step in its place.) Example: with stop_ids [9], one prompt and G = 2, the draws 5 9 and 6 7 9 give completions [[[5, 9, 9], [6, 7, 9]]] and mask [[[1, 1, 0], [1, 1, 1]]].",
        "logits.repeat_interleave(G, dim=0), the same with the position. Each step: log_softmax, draw (argmax if there are no generators), the stop token for rows that have ended, write down token and log-prob, leave the loop when all have ended, and logits = decode_step(model, cache, token, position + step). At the end the mask from the tokens, log-probs 0 outside it, and everything cut to the longest completion."),
    Exercise(12, "attention of the packed group", "model", ("packed_attention",),
        "The group's prompt is read once, not G times: with thousands of video tokens that is the difference between a run and no run. attend(query, key, value, scale, causal=True) is attention aligned to the lower right: the last query sees all keys, the one before it all but the last, and so on.",
        "First call: the prompt on itself. For the second make the completions a batch: queries (G, H, C, d), keys and values (G, K, P + C, d), the prompt's expanded to each. Then put the outputs back in one row, completion after completion."),
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
    """The source with the bodies of some functions replaced by the statement `instead`; docstrings
    stay.
    """
    lines = source.splitlines()
    for node in sorted(
        (functions_of(source)[name] for name in names), key=lambda node: -node.lineno
    ):
        first = node.body[0]
        has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        lines[first.end_lineno if has_docstring else first.lineno - 1 : node.end_lineno] = [
            "    " + instead
        ]
    return "\n".join(lines) + "\n"


def imports_for(tree, names, module):
    """The import lines that some functions of a module need when they stand alone, their
    docstrings' examples included.
    """
    used = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            for part in (node, *(ast.parse(example.source) for example in examples)):
                used |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
    lines, ours = [], []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [a for a in node.names if (a.asname or a.name) in used]
            lines += [ast.unparse(node)] if node.names else []
        else:
            defined = (
                [node.name]
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                else [
                    t.id
                    for t in ast.walk(node)
                    if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)
                ]
            )
            ours += [name for name in defined if name in used and name not in names]
    return "\n".join(lines + [f"from {module} import {', '.join(sorted(ours))}"] * bool(ours))


def write_up(exercise, solved=False):
    """The text of a student's file: blank, or with our solution."""
    if in_handout():
        if solved:
            raise Mistake(
                "this is a hand-out: it does not hold the solutions, your instructor does; `hint`"
                " helps"
            )
        with open(os.path.join(BLANKS, exercise.file), encoding="utf-8") as f:
            return f.read()
    with open(os.path.join(ROOT, exercise.module + ".py"), encoding="utf-8") as f:
        source = f.read()
    header = imports_for(ast.parse(source), exercise.functions, exercise.module)
    if not solved:
        source = without_bodies(
            source,
            exercise.functions,
            f'raise NotImplementedError("exercise {exercise.number}: write me")',
        )
    lines, found = source.splitlines(), functions_of(source)
    code = []
    for node in (found[name] for name in exercise.functions):
        code.append(
            "\n".join(
                lines[
                    min([node.lineno, *(d.lineno for d in node.decorator_list)])
                    - 1 : node.end_lineno
                ]
            )
        )
    opening = f'''"""Exercise {exercise.number}: {exercise.title}.

{fill(exercise.lesson, 110)}

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
            found = functions_of(f.read())
    except (SyntaxError, ValueError):
        return ""  # loading it will say where
    blank = [name for name in exercise.functions if name in found and is_blank(found[name])]
    return f"{', '.join(blank)} in {path}: not written yet" if blank else ""


def load_functions(exercise, folder):
    """Runs a student's file; {name: function}."""
    path = os.path.abspath(os.path.join(folder, exercise.file))
    spec = importlib.util.spec_from_file_location(f"student_{exercise.file[:-3]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that place() finds the names that it imported from ours
    spec.loader.exec_module(module)
    missing = [name for name in exercise.functions if not callable(getattr(module, name, None))]
    if missing:
        raise Mistake(f"{path} defines no function {missing[0]}: keep the names that `start` wrote")
    return {name: getattr(module, name) for name in exercise.functions}


def place(module, name, new):
    """Puts a function in the place of module.name, wherever it was imported to.

    Returns what undoes it.
    """
    old = getattr(importlib.import_module(module), name)
    holders = [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is old]
    for m in holders:
        setattr(m, name, new)
    return lambda: [setattr(m, name, old) for m in holders]


def install(folder, but=None, show=True):
    """Puts all finished functions of a student's folder in the place of ours, in every module that
    uses them.

    but: an exercise that is left out. In a hand-out there are none of ours for the rest: a run then
    needs all.
    """
    if not os.path.isdir(folder):
        raise BadInput(
            f"--student {folder} is no folder: python -m course start all --into {folder} makes it"
        )
    theirs, ours = [], []
    for exercise in EXERCISES:
        importlib.import_module(exercise.module)
    for exercise in EXERCISES:
        if exercise is but or unfinished(exercise, folder):
            ours.append(exercise)
            continue
        try:
            found = load_functions(exercise, folder)
        except Exception as e:
            raise BadInput(
                f"{os.path.join(folder, exercise.file)} cannot be loaded: {type(e).__name__}: {e}"
            ) from e
        theirs += [(exercise.module, name, function) for name, function in found.items()]
    for (
        module,
        name,
        function,
    ) in theirs:  # only now, so that the students' files find each other's functions too
        place(module, name, function)
    if but is None and ours and in_handout():
        raise BadInput(
            "a hand-out can run only when all exercises are done; not done:"
            f" {', '.join(str(e.number) for e in ours)}"
        )
    if show:
        print(
            f"yours: {', '.join(f'{module}.{name}' for module, name, _ in theirs) or 'none'}\nthe"
            " reference's:"
            f" {', '.join(name for exercise in ours for name in exercise.functions) or 'none'}"
        )


@contextmanager
def hidden(exercise):
    """While a student's code is checked, the reference's version of it does not answer: it cannot
    be handed in.
    """

    def refuse(*_, **__):
        raise NotImplementedError(
            f"this is exercise {exercise.number} itself: the reference's function does not answer"
            " while yours is checked"
        )

    undo = [place(exercise.module, name, refuse) for name in exercise.functions]
    try:
        yield
    finally:
        for one in undo:
            one()


# ------------------------------------------------------------------------------------------------
# Checking
# ------------------------------------------------------------------------------------------------


def cases_of(exercise):
    """The exercise's cases, a generator function of checks.py or checks_model.py."""
    import checks
    import checks_model

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
            found = checks.guard(
                lambda: load_functions(exercise, folder), os.path.join(folder, exercise.file)
            )
            count = checks.run(
                cases_of(exercise),
                found,
                os.path.join(folder, exercise.file),
                tell,
                expected_of(exercise),
            )
    except (checks.Wrong, Mistake, BadInput) as e:
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
    pipe.send((
        "at",
        "the beginning",
    ))  # from here on time counts: loading torch is not the student's fault
    if quiet:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        result = examine(EXERCISES[number - 1], folder, lambda case: pipe.send(("at", case)))
        sys.stdout.flush()  # what the student's code printed; once the result is there, this process is ended
        pipe.send(result)
    except Exception as e:
        pipe.send((
            "not checked",
            f"the check itself failed, which is no fault of yours: {type(e).__name__}: {e}",
        ))


def check_apart(exercise, folder, limit, quiet=True):
    """examine() in a process of its own.

    Returns (status, message); the status may also be "hung" or "died".
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if ROOT not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [ROOT, os.environ.get("PYTHONPATH")])
        )
    if why := unfinished(exercise, folder):
        return "to do", why
    # A server that has imported torch once and splits in two for each check saves five seconds a
    # check.
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(["checks_model"])
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
        return (
            "hung",
            (
                f"not done after {limit:g} seconds; it was at: {at}\n  usually  a loop whose end"
                " never comes, or Python loops over what tensors do at once"
            ),
        )
    except EOFError:
        process.join(5)
        return (
            "died",
            (
                f"your code ended the whole process (exit code {process.exitcode}); it was at:"
                f" {at}\n  usually  a call of exit, or no memory left"
            ),
        )
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
        print(
            f"{exercise.number:2}  {exercise.title:32}"
            f" {status}{f' ({message})' if status == 'right' else ''}"
        )
        if status != "right":
            print(f"  {message}" + ("\n" if status != "to do" else ""))
    if len(chosen) > 1:
        print(
            f"{right} of {len(chosen)} right"
            + (
                "; now train with them: python train.py --student " + folder
                if right == len(EXERCISES)
                else ""
            )
        )
    return right


# ------------------------------------------------------------------------------------------------
# For instructors
# ------------------------------------------------------------------------------------------------


ROOMS = ("", "runtime", "scale", "annotations", "toy", "course", "tools")  # all but the tests


def source_files():
    """(folder, file name) of all of the project's Python files but the tests."""
    for folder in ROOMS:
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith(".py"):
                yield folder, name


def handout(into):
    """A copy of the repository for a class. The solutions are not in it: no bodies of the
    exercises' functions, no tests, no history; and of the checks' own slow computations only what
    they gave, in handout/expected.pt.
    """
    import torch

    if os.path.exists(into) and os.listdir(into):
        raise Mistake(f"{into} is not empty: give a new folder")
    os.makedirs(os.path.join(into, "handout"))
    for exercise in EXERCISES:
        with open(os.path.join(into, "handout", exercise.file), "w", encoding="utf-8") as f:
            f.write(write_up(exercise))
    torch.save(
        {e.number: [case.expected() for case in cases_of(e)] for e in EXERCISES},
        os.path.join(into, "handout", "expected.pt"),
    )
    for folder, name in source_files():
        with open(os.path.join(ROOT, folder, name), encoding="utf-8") as f:
            source = f.read()
        for exercise in EXERCISES:
            if folder == "" and name == exercise.module + ".py":
                comes_first = (
                    f'raise NotImplementedError("exercise {exercise.number} comes first: python -m'
                    f' course start {exercise.number}")'
                )
                source = without_bodies(source, exercise.functions, comes_first)
        if folder == "course" and name.startswith("checks"):
            slow = [function for function in functions_of(source) if function.startswith("slow_")]
            source = without_bodies(
                source,
                slow,
                'raise NotImplementedError("not in a hand-out: see handout/expected.pt")',
            )
        os.makedirs(os.path.join(into, folder), exist_ok=True)
        with open(os.path.join(into, folder, name), "w", encoding="utf-8") as f:
            f.write(source)
    for name in ("README.md", "LICENSE", "requirements.txt", "Makefile", "tools/report.html"):
        shutil.copy(os.path.join(ROOT, name), os.path.join(into, name))
    shutil.copytree(os.path.join(ROOT, "assets"), os.path.join(into, "assets"))
    write_files(EXERCISES, os.path.join(into, "homework"))
    print(
        f"{into} is ready to be handed out; its students hand in the folder homework, and `python"
        " -m course grade` here grades them"
    )


def grade(submissions, out, limit):
    """Checks every sub-folder and writes one line for each: 1 or 0 an exercise, the sum, and
    remarks.
    """
    if in_handout():
        raise Mistake("this is a hand-out: grade with the whole repository")
    if not os.path.isdir(submissions):
        raise Mistake(f"{submissions} is no folder: it should hold one folder for each student")
    students = sorted(
        name for name in os.listdir(submissions) if os.path.isdir(os.path.join(submissions, name))
    )
    if not students:
        raise Mistake(f"{submissions} holds no folders: it should hold one for each student")
    jobs = [(student, exercise) for student in students for exercise in EXERCISES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(
            zip(
                jobs,
                pool.map(
                    lambda job: check_apart(job[1], os.path.join(submissions, job[0]), limit), jobs
                ),
            )
        )
    with open(out, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["student", *(f"ex{e.number:02}" for e in EXERCISES), "right", "remarks"])
        for student in students:
            points = [int(results[student, e][0] == "right") for e in EXERCISES]
            remarks = [
                f"{e.number} {status}"
                + (f": {' '.join(message.split())[:300]}" if status != "to do" else "")
                for e in EXERCISES
                for status, message in [results[student, e]]
                if status != "right"
            ]
            writer.writerow([student, *points, sum(points), " | ".join(remarks)])
            print(f"{student:24} {sum(points):2} of {len(EXERCISES)}")
    print(f"wrote {out}")


# ------------------------------------------------------------------------------------------------


def chosen_by(which):
    """'5' or 'all' → exercises."""
    if which == "all":
        return EXERCISES
    if which not in [str(e.number) for e in EXERCISES]:
        raise Mistake(
            f"there is no exercise {which}: give a number from 1 to {len(EXERCISES)}, or all"
        )
    return (EXERCISES[int(which) - 1],)


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "command", choices=("list", "start", "check", "hint", "solution", "handout", "grade")
    )
    p.add_argument("which", nargs="?", help="a number, or all; of grade: the folder of submissions")
    p.add_argument(
        "--into", help="the student's folder (default: homework); of handout: the folder to make"
    )
    p.add_argument("--out", default="grades.csv", help="of grade: the file to write")
    p.add_argument("--limit", type=float, default=20.0, help="seconds that a check may take")
    args = p.parse_args(argv)
    folder = args.into or "homework"
    try:
        if args.command == "list":
            for e in EXERCISES:
                print(
                    f"{e.number:2}  {e.title:32}"
                    f" {', '.join(f'{e.module}.{name}' for name in e.functions)}"
                )
            return 0
        if args.command == "handout":
            if not args.into:
                raise Mistake("handout needs --into DIR: the folder to make")
            if in_handout():
                raise Mistake("this is a hand-out already")
            handout(args.into)
            return 0
        if args.which is None:
            raise Mistake(
                f"{args.command} what? python -m course {args.command} "
                + ("FOLDER" if args.command == "grade" else "5")
            )
        if args.command == "grade":
            grade(args.which, args.out, args.limit)
            return 0
        chosen = chosen_by(args.which)
        if args.command == "start" or args.command == "solution" and args.into:
            write_files(chosen, folder, solved=args.command == "solution")
        elif args.command == "check":
            return int(check(chosen, folder, args.limit) < len(chosen))
        else:
            print(
                "\n\n".join(
                    e.hint if args.command == "hint" else write_up(e, solved=True) for e in chosen
                )
            )
        return 0
    except Mistake as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: {e.filename}: {e.strerror}", file=sys.stderr)
        return 2
