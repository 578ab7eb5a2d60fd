"""settings.py: the flags of train.py, the effect of each, and its default."""

import os

from lib.errors import BadInput
from lib.flags import (
    ATTN,
    BUDGET_FLAGS,
    COUNT,
    DEVICES,
    FROM_0,
    JUDGE,
    PATIENCE,
    POSITIVE,
    PROMPT,
    STUDENT,
    TOY_MODEL,
    YES,
    YES_OR_NO,
    check_template,
    number,
    parser_of,
    read_template,
)
from lib.identity import is_toy
from tasks import JOINTLY, TASKS, longest_answer
from variants import KLS, VARIANTS

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # those that torchrun started
NO_BFLOAT16 = "this GPU has no bfloat16: give --dtype float16, with --lora 64 --recompute"

# Where the toy and the paper (VideoChat-R1) need different numbers: (toy, paper). A model of a
# million parameters learns from steps 300 times as large, and says all in a few words.
DEFAULTS = {
    "steps": (300, None),  # None: one pass over the data
    "lr": (3e-4, 1e-6),
    "lr of adapters": (1e-3, 1e-5),  # --lora: B begins at zero and has far to go
    "train_vision": (True, False),
}


def two_defaults(name):
    """A row of DEFAULTS in the words of --help."""
    words = {None: "one pass over the data", True: "yes", False: "no"}
    toy, paper = (words.get(value, value) for value in DEFAULTS[name])
    return f"(toy model: {toy}; others: {paper})"


TRAIN_FLAGS = {
    "what is learned": [
        ("--task", {"default": "grounding"}, f"one of {', '.join(TASKS)}; several with + between; "
            f"or all, which is {'+'.join(JOINTLY)} as in the paper"),
        ("--method", {"default": "grpo", "choices": ("grpo", "sft")}, "grpo: from "
            "rewards on own answers; sft: from the true answers"),
        ("--think", YES_OR_NO | {"default": True}, "ask for a <think> block before the answer "
            "(never with SFT, which has none to show; with --prompt: whether that names <think>)"),
        PROMPT,
        JUDGE,
    ],
    "from what": [
        ("--model", {"default": TOY_MODEL}, "the base: folder or hub name of a Qwen2.5-VL or a "
            "Qwen3-VL (default: the toy's)"),
        ("--data", {}, "folder of the data set; toy: made-up clips, rendered into data/toy when "
            "first needed (default: data/NAME where it exists, else, for the toy model, toy)"),
        ("--examples", COUNT, "use only the first so many training examples of each task"),
    ],
    "the run": [
        ("--out", {}, "folder for what the run leaves (default: runs/TASK-METHOD-1, -2, …)"),
        ("--overwrite", YES, "begin anew: the run that --out holds is renamed to OUT.old-1 first"),
        ("--steps", COUNT, "steps: each samples --prompts-per-step groups, then makes "
            f"--updates-per-rollout optimizer updates {two_defaults('steps')}"),
        ("--seed", FROM_0 | {"default": 0}, "of the order of examples and of sampling"),
        STUDENT,
        DEVICES,
        ("--dtype", {"choices": ("float32", "bfloat16", "float16")}, "what the policy computes "
            "in; float16 is for GPUs older than the A100, and scales its gradients (default: "
            "float32 on a CPU, bfloat16 on CUDA; weights in training and moments are float32 "
            "always)"),
        ATTN,
        ("--rollouts-every", COUNT | {"default": 5}, "steps between two groups in rollouts.jsonl"),
        ("--quiet", YES, "show neither a group every tenth step nor the hint of step 1"),
        ("--save-every", COUNT | {"default": 100}, "steps between two saves, with one at the end"),
        ("--keep", COUNT | {"default": 2}, "checkpoints kept, the newest"),
        ("--resume", YES, "go on from the newest checkpoint in --out; begin where there is none"),
        ("--decode-timeout", PATIENCE | {"default": 60}, "seconds that reading a video may take"),
    ],
    "GRPO": [
        ("--group-size", COUNT | {"default": 8}, "G: completions of each prompt"),
        ("--prompts-per-step", COUNT | {"default": 8}, "B: prompts of a step, of all processes"),
        ("--max-new-tokens", COUNT, "longest completion (toy model: 64, and 320 for tracking and "
            "captions; others: 1024)"),
        ("--beta", number(float, "[0, inf)") | {"default": 0.04}, "weight of the KL; 0: no KL"),
        ("--kl", {"default": "k3", "choices": KLS}, "the KL's term per token, see variants.py"),
        ("--loss", {"default": "grpo", "choices": VARIANTS}, "GRPO or a variant: variants.py"),
        ("--updates-per-rollout", COUNT | {"default": 1}, "optimizer steps on the same "
            "completions; the clip acts from the second on"),
        ("--clip", POSITIVE, "ε: the ratio is clipped to 1 ± ε (default: the variant's own)"),
        ("--clip-high", POSITIVE, "ε for ratios above 1, if it is to be another"),
        ("--mask-unfinished", YES, "the loss leaves out what ran into --max-new-tokens"),
    ],
    "optimizer (AdamW)": [
        ("--lr", POSITIVE, "peak learning rate: up to it in 5 steps, at most in a tenth of the "
            "steps, then straight down to a tenth "
            f"{two_defaults('lr')}; with --lora {two_defaults('lr of adapters')}"),
        ("--grad-clip", number(float, "(0, inf]") | {"default": 1.0}, "largest gradient norm"),
    ],
    "models that do not fit": [
        ("--plan", COUNT | {"nargs": "?", "const": PROCESSES, "metavar": "PROCESSES"}, "load "
            "nothing: print what memory and time the run needs with so many processes, one GPU "
            "each (default: those that torchrun started, or 1)"),
        ("--gpu", {}, "of --plan: the GPU that is meant, T4 to H200 by name or its memory in GB "
            "(default: this machine's, else an H100)"),
        ("--lora", COUNT | {"metavar": "RANK"}, "train adapters of this rank: lib/adapters.py"),
        ("--train-vision", YES_OR_NO, f"the vision tower as well {two_defaults('train_vision')}"),
        ("--recompute", YES, "keep one activation a layer and compute the others twice"),
        ("--shard", YES, "split weights, gradients, optimizer over torchrun's processes (FSDP2)"),
        ("--offload", YES, "keep float32 weights and optimizer in the CPU's memory"),
    ],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# What train.py makes of its flags
# ------------------------------------------------------------------------------------------------


def parse_args(argv=None, description=__doc__):
    """The flags of train.py as a namespace, with all defaults filled in.

    Raises BadInput for those that mean nothing, or do not go together.
    """
    args = parser_of(description, TRAIN_FLAGS | BUDGET_FLAGS).parse_args(argv)
    args.tasks = tasks_of(args.task)
    if args.template is not None:
        args.template = read_template(args.template)
        for task in args.tasks:
            check_template(args.template, task, TASKS[task].prompt)
        args.think = "<think>" in args.template
    fill_in(args)
    if args.gpu and not args.plan:
        raise BadInput("--gpu is a part of --plan; --device cuda:1 chooses the GPU of a run")
    if args.group_size < 2 and args.method == "grpo":
        raise BadInput("--group-size must be at least 2: an advantage compares completions")
    if args.resume and (args.out is None or args.overwrite):
        raise BadInput("--resume goes on with the run in --out: give that, and not --overwrite")
    return args


def tasks_of(names):
    """--task as a list of TASKS, each once: "all" stands for those that are trained jointly."""
    tasks = []
    for name in names.split("+"):
        tasks += JOINTLY if name == "all" else [name]
    for task in tasks:
        if task not in TASKS:
            raise BadInput(f"--task {task} is unknown; there is: {', '.join(TASKS)}, all")
    return list(dict.fromkeys(tasks))


def fill_in(args):
    """Replaces what was not given by what it depends on, in place."""
    toy_model = is_toy(args.model)
    for name in ("steps", "lr", "train_vision"):
        if getattr(args, name) is None:
            toy, paper = DEFAULTS["lr of adapters" if name == "lr" and args.lora else name]
            setattr(args, name, toy if toy_model else paper)
    if args.lora is not None:
        args.train_vision = False
    if args.dtype is None:
        on_cpu = args.device == "cpu" and not args.plan  # a plan is for GPUs, wherever it is made
        args.dtype = "float32" if on_cpu else "bfloat16"
    low, high = VARIANTS[args.loss].clip
    if args.clip_high is None:
        args.clip_high = args.clip or high
    if args.clip is None:
        args.clip = low
    if args.max_new_tokens is None:
        args.max_new_tokens = longest_answer(toy_model, args.tasks)
    args.think = args.think and args.method == "grpo"


def check_processes(args, world):
    """Raises BadInput if `world` processes cannot do what the flags ask for.

    Both the run and --plan ask this.
    """
    if args.prompts_per_step % world:
        B = args.prompts_per_step
        raise BadInput(f"--prompts-per-step {B} cannot be shared evenly by {world} processes")
    if args.shard and world == 1 and "WORLD_SIZE" not in os.environ:
        start = "start with torchrun --nproc-per-node N train.py …, or give --plan their number"
        raise BadInput(f"--shard splits weights over processes: {start}")
