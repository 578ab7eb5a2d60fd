"""exercises.py: the exercises, and the files that students write.

    python -m course list                        # the exercises, the easy ones first
    python -m course start all --into homework   # writes a file for each; or a number for `all`
    python -m course check 5 --into homework     # shows the smallest case that fails
    python -m course hint 5                      # a question; then --level 2, --level 3
    python -m course solution 5                  # our own; --into DIR writes it like a student's
    python grpo.py --student homework            # the bandit, with your functions in place of ours
    python train.py --student homework           # a training; eval.py takes --student, too

For instructors (docs/course.md):

    python -m course handout --into class        # a copy of the repository without the solutions
    python -m course grade submissions --out grades.csv
    python -m course gradescope --out autograder.zip

A student's file is made from the reference code itself: its functions without their bodies. What is
checked, and what a failure usually means, is in the files checks*.py; how a student's code
is run, apart from all that, in apart.py and calls.py.
"""

import ast
import doctest
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from textwrap import fill

from lib.errors import BadInput

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What an exercise is of, or may import.
CHAPTERS = ("rewards", "tasks", "data", "model", "grpo", "course.further")
# Only a hand-out has this folder: the students' files, what the checks expect, and the exercises'
# functions, compiled.
BLANKS = os.path.join(ROOT, "handout")


@dataclass(frozen=True)
class Exercise:
    number: int
    title: str
    module: str  # of CHAPTERS: it holds the reference's functions
    functions: tuple  # names of what the student writes, in this order in one file
    points: tuple  # of each function; multiples of 4 (grading.py)
    lesson: str
    hints: tuple  # a question, the plan, nearly the lines

    @property
    def file(self):
        return f"ex{self.number:02}_{self.functions[-1]}.py"


EXERCISES = (
    Exercise(1, "temporal IoU", "rewards", ("temporal_iou",),
        points=(4,),
        lesson="The reward of grounding. A policy under training will answer with every pair of "
               "numbers there is, so the function has to be total: reversed and empty intervals "
               "earn 0, and nothing is ever divided by 0.",
        hints=(
            "When do two intervals share no time, and what is the largest of their starts "
            "then, compared with the smallest of their ends? What if one of them runs "
            "backwards?",
            "Deal with intervals that hold nothing first. Then the overlap: from the later "
            "start to the earlier end, and never below 0.",
            "Return 0.0 unless both intervals end after they start. shared = max(0.0, min of "
            "ends − max of starts); return shared / (length a + length b − shared).")),
    Exercise(2, "box IoU", "rewards", ("box_iou",),
        points=(4,),
        lesson="The reward of tracking, one frame of it. The same as before in two dimensions, "
               "with one more trap: an overlap that is negative in both.",
        hints=(
            "Two boxes overlap only if they do so in both directions. What happens to a "
            "product if both overlaps are negative?",
            "Clamp all eight numbers to the frame, which is [0, 1]. Widths and heights are "
            "max(0, end − start), those of the overlap too; only then multiply.",
            "Clamp a and b. area(box) = max(0, x1 − x0) · max(0, y1 − y0). The shared box is "
            "(max x0, max y0, min x1, min y1), and its area is area() of it. union = area(a) + "
            "area(b) − shared; return shared / union if both areas are above 0, else 0.0.")),
    Exercise(3, "strict format reward", "rewards", ("well_formed",),
        points=(8,),
        lesson="What a rule pays for is what the policy becomes: a rule that lets a second "
               "<answer> pass teaches to answer twice. The whole text must be the blocks that were"
               " asked for, in order, each once, and around them nothing but white space. Inside a"
               " block anything may stand but a tag, line breaks too.",
        hints=(
            "Which texts would please a rule that only looks for <answer> somewhere? Write "
            "down five of them before you write the rule.",
            "Count every tag of TAGS: 1 of those asked for, 0 of the others. Then one pattern "
            "must match all of the text: re.fullmatch, with re.DOTALL so that . is a line "
            "break too.",
            "wanted = [\"think\"] * think + [\"answer\"] + [\"glue\"] * glue. Return False if any "
            "tag of TAGS is counted other than once (wanted) or zero times (others). pattern = "
            "r\"\\s*\".join(f\"<{n}>.*</{n}>\" for n in wanted), with \\s* at both ends too; "
            "re.fullmatch(pattern, text, re.DOTALL) is not None.")),
    Exercise(4, "IoU of sets of intervals", "rewards", ("merged", "interval_set_iou"),
        points=(4, 4),
        lesson="The evidence for an answer may be several intervals, and a policy may give some "
               "that overlap. Seconds that are said twice must not be paid twice, on either side "
               "of the fraction.",
        hints=(
            "If you merge each set first, what is left that could be counted twice? And how do "
            "you get the union from a function that merges?",
            "merged: go through the intervals by their start and either extend the last of the "
            "output or append. Beware of an interval inside the one before it. Then: the union "
            "of both sets is merged(a + b).",
            "out = []; for start, end in sorted(intervals): skip it unless end > start; if out "
            "and start <= out[-1][1], then out[-1] = (out[-1][0], max(out[-1][1], end)), else "
            "append. With seconds(x) = the sum of lengths of merged(x): union = seconds(a + "
            "b), shared = seconds(a) + seconds(b) − union.")),
    Exercise(5, "group advantages", "grpo", ("group_advantages",),
        points=(8,),
        lesson="No network estimates how good an answer should be: the other answers to the same "
               "prompt say it. That is GRPO's G and R.",
        hints=(
            "Which dimension is the group, and what must the sum of the advantages over it be?",
            "mean and std over the last dimension, with keepdim=True. torch.std divides by n − "
            "1 unless it is told otherwise. 1e-4 is added to the std, not under its root.",
            "centred = rewards − rewards.mean(dim=-1, keepdim=True); unless divide_by_std "
            "return it; else centred / (rewards.std(dim=-1, keepdim=True) + 1e-4).")),
    Exercise(6, "KL by the k3 estimator", "grpo", ("kl_k3",),
        points=(4,),
        lesson="Why not simply logp − logp_ref? That is unbiased as well, but often negative for a"
               " single token. exp(Δ) − 1 has mean 0 under the policy, Σ p · (p_ref/p) − 1 = 0, so"
               " adding it to −Δ changes no mean; and since exp(Δ) ≥ 1 + Δ, the sum is never "
               "negative and 0 only where both agree.",
        hints=(
            "For which Δ is exp(Δ) − Δ − 1 zero, and can it ever be negative? Which of the two "
            "log-probs is subtracted from the other?",
            "Δ is the reference's log-prob minus the policy's. Two terms and a −1, for each "
            "token, with gradient.",
            "delta = logp_ref − logp; return delta.exp() − delta − 1.")),
    Exercise(7, "the mask of a completion", "grpo", ("completion_mask",),
        points=(8,),
        lesson="Completions of a group end at different times. The stop token is an action of the "
               "policy like any other: without it in the mask, nothing would ever teach the policy"
               " when to stop. What stands behind it is padding, and may be the stop token again.",
        hints=(
            "For the tokens 5 9 7 9 with stop token 9, which belong to the completion? What do "
            "you know about a token if a stop token stands before it?",
            "Count with cumsum how many stop tokens stand *before* each place, itself not "
            "counted. A place is the completion's own where that is 0.",
            "is_stop = torch.isin(tokens, stop_ids).int(); before = is_stop.cumsum(dim=-1) − "
            "is_stop; return before == 0.")),
    Exercise(8, "token log-probs", "model", ("predicting_states", "token_logprobs"),
        points=(4, 8),
        lesson="A language model's output at one place is its distribution of the *next* token. "
               "With the group packed in one row, the place before a completion's first token is "
               "the end of the prompt, not the end of the sibling before it.",
        hints=(
            "Which state predicts the first token of the second completion? Draw the packed "
            "row for P = 2, G = 2, C = 2.",
            "predicting_states: hidden[P − 1] for the first tokens, expanded to (G, 1, D); for "
            "the others each completion's states but the last. token_logprobs: log_softmax, "
            "then gather. 0 · −inf is NaN: the entropy needs a clamp or torch.where, and "
            "torch.no_grad().",
            "first = hidden[P − 1].expand(G, 1, D); rest = hidden[P:].view(G, C, D)[:, :-1]; "
            "torch.cat of both along dim 1. Then logp = logits.log_softmax(−1); logp.gather(1, "
            "tokens[:, None])[:, 0]; the entropy is −(p · logp) with p = logp.exp() and 0 "
            "where p is 0.")),
    Exercise(9, "the clipped objective", "grpo", ("token_weights", "policy_loss"),
        points=(4, 12),
        lesson="The heart. Its value says little (before the first update it is 0 whatever the "
               "rewards were); its gradient is everything. Padding may hold anything, −inf too, "
               "and must not reach the loss or the gradient.",
        hints=(
            "For A > 0 and A < 0, and ρ above and below the clip: in which of the four cases "
            "should the gradient stop?",
            "Make the log-ratio 0 outside the mask with torch.where before any exp. Both ρ · A "
            "and clip(ρ) · A, then torch.minimum of the two: clipping ρ alone is wrong for one "
            "sign of A. gspo differs in one line: the log-ratio's mean over the completion, "
            "for each of its tokens.",
            "log_ratio = torch.where(mask, logp − logp_old, 0.0), for gspo its mean over own "
            "tokens for each of them; ratio = log_ratio.exp(); plain = ratio · A[:, None]; "
            "held = ratio.clamp(1 − low, 1 + high) · A[:, None]; objective = "
            "torch.minimum(plain, held). With a reference subtract beta · kl, whose inputs are "
            "0 outside the mask, too. loss = −(weights · objective) summed; clipped = held < "
            "plain, inside the mask.")),
    Exercise(10, "M-RoPE positions of a video", "model", ("mrope_positions",),
        points=(8,),
        lesson="How Qwen2.5-VL can tell time at all. Current releases of transformers get the text"
               " after a video wrong; yours should not.",
        hints=(
            "Where does the text after a video go on: after as many positions as it has "
            "tokens, or after the largest position that any of them has?",
            "Walk through the videos with two counters: the place in ids and the next free "
            "position. torch.meshgrid(time, rows, columns, indexing=\"ij\") makes a video's "
            "positions; grids count patches, and 2 × 2 of them are a token. floor after "
            "multiplying.",
            "At text: positions[:, i] = next, and next + 1. At a video of grid (t, h, w): "
            "times = (torch.arange(t) · seconds · tokens_per_second).floor(), rows = arange(h "
            "// merge), columns = arange(w // merge); meshgrid, flatten and stack to (3, N), "
            "plus next; then next = the largest of it + 1.")),
    Exercise(11, "sampling with a shared cache", "grpo", ("sample_groups",),
        points=(12,),
        lesson="The group at work: needed are prefill, decode_step, draw and completion_mask. "
               "prefill reads every prompt once; cache.start_decoding(G, C) then lets G rows share"
               " it. Row b·G + g is completion g of prompt b. decode_step(model, cache, tokens, "
               "positions) takes the tokens just sampled and their positions, and gives the next "
               "logits. One uniform number per token goes into draw(): torch.rand(…, "
               "dtype=torch.float64, generator=generators[b]) for prompt b. (fast_decoding makes "
               "ours faster: call decode_step in its place.) Example: with stop_ids [9], one "
               "prompt and G = 2, the draws 5 9 and 6 7 9 give completions [[[5, 9, 9], [6, 7, "
               "9]]] and mask [[[1, 1, 0], [1, 1, 1]]].",
        hints=(
            "What is the same for all completions of a prompt, so that it is computed once? "
            "What does each need for itself in every step?",
            "logits.repeat_interleave(G, dim=0), the same with the position. Each step: "
            "log_softmax, draw (argmax if there are no generators), the stop token for rows "
            "that have ended, write down token and log-prob, leave the loop when all have "
            "ended, and logits = decode_step(model, cache, token, position + step). At the end "
            "the mask from the tokens, log-probs 0 outside it, and everything cut to the "
            "longest completion.",
            "logits, cache, position = prefill(…); repeat logits and positions for G rows; "
            "cache.start_decoding(G, C). for step in range(C): logp = logits.log_softmax(−1); "
            "u = one number per row, prompt by prompt from its generator; token = draw(logp, "
            "u), or stop_ids[0] where done; keep token and its logp; done |= isin(token, "
            "stop_ids); break if all are done; logits = decode_step(…, position + step).")),
    Exercise(12, "attention of the packed group", "model", ("packed_attention",),
        points=(8,),
        lesson="The group's prompt is read once, not G times: with thousands of video tokens that "
               "is the difference between a run and no run. attend(query, key, value, scale, "
               "causal=True) is attention aligned to the lower right: the last query sees all "
               "keys, the one before it all but the last, and so on. A prompt that is only read "
               "has no completions: C = 0.",
        hints=(
            "Which keys does the first token of the second completion see? Which calls of "
            "`attend` with causal=True give exactly these?",
            "First call: the prompt on itself. For the second make the completions a batch: "
            "queries (G, H, C, d), keys and values (G, K, P + C, d), the prompt's expanded to "
            "each. Then put the outputs back in one row, completion after completion.",
            "q, k, v of the prompt are [:, :, :P]; out_prompt = attend(q_p, k_p, v_p, scale, "
            "causal=True). Completions: x[0, :, P:].unflatten(1, (G, C)).transpose(0, 1) gives "
            "(G, H, C, d); keys = cat of the prompt's, expanded to G, and their own along dim "
            "2. Then out.transpose(0, 1).flatten(1, 2)[None], behind out_prompt along dim 2.")),
    Exercise(13, "a reward that cannot be gamed", "course.further", ("caption_f1",),
        points=(8,),
        lesson="rewards.caption_recall pays for true events and charges for nothing. A policy finds"
               " out: it lists whatever might happen, repeats itself, or puts all words into one "
               "sentence, and earns 1.0 without a look at the video. Write a rule that such texts "
               "lose by. To train with it, copy it into tasks.py, write its name where "
               "caption_recall stands there, and compare what the policy says after 100 steps.",
        hints=(
            "Take a text that earns everything from caption_recall and describes nothing. What "
            "about it would a person object to, and which count of yours would grow with it?",
            "Three lists: the content words of each sentence, those of each event, and which "
            "events are still free. One sentence may use up one event, and one event may be "
            "used up by one sentence. What stays over on either side is in the denominator.",
            "claims = content_words of each piece of re.split(r\"[.;!?\\n]\", inside(text, "
            "\"answer\") or \"\"), without the empty ones. For each claim look through the events "
            "that are left; the first with len(claim & event) >= 0.75 · max(len(claim), "
            "len(event)) is removed and counted. Return 2 · pairs / (len(claims) + "
            "len(answer)).")),
    Exercise(14, "a later variant: CISPO", "course.further", ("cispo_loss",),
        points=(8,),
        lesson="GRPO's clip silences a token: once ρ has moved far enough, its gradient is 0. The "
               "tokens that move first are the rare ones, and among them are those at which a "
               "thought turns. CISPO bounds how much a token counts and lets every token speak. "
               "Compare with exercise 9: where are the values equal, and where the gradients? (Our "
               "own stands in grpo.policy_loss; train.py --loss cispo --clip 1 --clip-high 0.28 "
               "runs it.)",
        hints=(
            "In exercise 9, which factor carried the gradient? If the clipped ratio is a "
            "constant, which other factor can carry one?",
            "The ratio as in exercise 9, made safe outside the mask. Clamp it, detach it. What "
            "it multiplies is A · logp, with logp made safe outside the mask as well: 0 · −inf "
            "is NaN.",
            "log_ratio = torch.where(mask, logp − logp_old, 0.0); held = log_ratio.exp().clamp(1"
            " − clip_low, 1 + clip_high).detach(); return −(weights · held · "
            "advantages[:, None] · torch.where(mask, logp, 0.0)).sum().")),
)  # fmt: skip


def source_of(module):
    """The path of a module's source, from the root."""
    return module.replace(".", os.sep) + ".py"


# ------------------------------------------------------------------------------------------------
# From the reference code to a student's file
# ------------------------------------------------------------------------------------------------


def functions_of(source):
    """{name: node} of the functions at the top level of a module's source, text or bytes."""
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
    with open(os.path.join(ROOT, source_of(exercise.module)), encoding="utf-8") as f:
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
    return os.path.isfile(os.path.join(BLANKS, "expected.pt"))


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


def blanks(exercise, folder):
    """The names of an exercise's functions that are not written yet: all, if there is no file."""
    try:
        with open(os.path.join(folder, exercise.file), "rb") as f:
            theirs = functions_of(f.read())
    except FileNotFoundError:
        return list(exercise.functions)
    except (SyntaxError, ValueError):
        return []  # loading it will say where
    return [name for name in exercise.functions if name in theirs and is_blank(theirs[name])]


def unfinished(exercise, folder):
    """Why an exercise is not done yet, or "" if it is."""
    path, blank = os.path.join(folder, exercise.file), blanks(exercise, folder)
    if not os.path.isfile(path):
        return f"{path} is not there: python -m course start {exercise.number} --into {folder}"
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
        raise BadInput(
            f"--student {folder} is no folder: python -m course start all --into {folder} makes it"
        )
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
