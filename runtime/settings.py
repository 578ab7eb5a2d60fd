"""settings.py: the flags of train.py, what each does, and its default."""

import argparse
import os

import torch

import data
import grpo
from model import ATTENTION
from runtime.errors import BadInput, check_flags
from tasks import JOINTLY, TASKS, longest_answer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOY_MODEL = os.path.join(ROOT, "assets", "toy-base")

# Where the toy and the paper need different numbers. A model of a million parameters learns from
# steps 300 times as large, and says what it has to say in a few words.
DEFAULTS = {
    #                  toy   paper (VideoChat-R1)
    "steps":          (300, None),  # None: one pass over the data
    "lr":             (3e-4, 1e-6),
    "lr of adapters": (1e-3, 1e-5),  # --lora: B begins at zero and has far to go
    "train_vision":   (True, False),
}  # fmt: skip


def parse_args(argv=None, description=__doc__):
    p = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def both(name):
        toy, paper = DEFAULTS[name]
        said = {None: "one pass over the data", True: "yes", False: "no"}
        return f"(toy model: {said[toy] if toy is True else toy}; others: {paper if isinstance(paper, float) else said[paper]})"

    g = p.add_argument_group("what is learned")
    g.add_argument(
        "--task",
        default="grounding",
        help=f"one of {', '.join(TASKS)}; several with + between; or all, which is {'+'.join(JOINTLY)} as in the paper",
    )
    g.add_argument(
        "--method",
        default="grpo",
        choices=("grpo", "sft"),
        help="grpo: from rewards on own answers; sft: from the true answers, one token after the other",
    )
    g.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for a <think> block before the answer (SFT has no thoughts to show, so it never does)",
    )
    g.add_argument(
        "--judge",
        help="captions: a local language model that decides whether a caption tells of an event (default: matching content words)",
    )

    g = p.add_argument_group("from what")
    g.add_argument(
        "--model",
        default=TOY_MODEL,
        help="local folder or hub name of the policy to start from (default: the toy base)",
    )
    g.add_argument(
        "--data",
        help="folder of the data set (default: the toy one, rendered into data/toy when first needed)",
    )
    g.add_argument(
        "--examples", type=int, help="use only the first so many training examples of each task"
    )

    g = p.add_argument_group("the run")
    g.add_argument(
        "--out", help="folder for what the run leaves (default: runs/TASK-METHOD-1, -2, …)"
    )
    g.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the run that --out holds first, file by file; refused where there is anything else in it",
    )
    g.add_argument(
        "--steps",
        type=int,
        help=f"steps: each samples --prompts-per-step groups, then makes --updates-per-rollout optimizer updates {both('steps')}",
    )
    g.add_argument("--seed", type=int, default=0, help="of the order of examples and of sampling")
    g.add_argument(
        "--student",
        metavar="DIR",
        help="train with the functions you wrote in DIR (course/) instead of this repository's own",
    )
    g.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda or cpu (default: cuda where there is one)",
    )
    g.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the policy computes in (default: float32 on a CPU, bfloat16 on CUDA; weights in training and moments are float32 always)",
    )
    g.add_argument(
        "--attn",
        default="sdpa",
        choices=ATTENTION,
        help="sdpa: PyTorch's attention; flash_attention_2: the flash-attn package's, on CUDA",
    )
    g.add_argument(
        "--rollouts-every",
        type=int,
        default=5,
        help="steps between two groups written to rollouts.jsonl",
    )
    g.add_argument(
        "--quiet", action="store_true", help="do not show a group in the terminal every tenth step"
    )
    g.add_argument(
        "--save-every",
        type=int,
        default=100,
        help="steps between two saves of the policy and a checkpoint; always at the end and when told to stop",
    )
    g.add_argument("--keep", type=int, default=2, help="checkpoints kept, the newest")
    g.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in --out; begin where there is none",
    )
    g.add_argument(
        "--decode-timeout",
        type=float,
        default=60,
        help="seconds after which a video counts as unreadable",
    )
    g.add_argument(
        "--tensorboard",
        action="store_true",
        help="the metrics for TensorBoard as well, in --out/tensorboard",
    )

    g = p.add_argument_group("GRPO")
    g.add_argument("--group-size", type=int, default=8, help="G: completions of each prompt")
    g.add_argument(
        "--prompts-per-step",
        type=int,
        default=8,
        help="B: prompts of a step, over all processes together",
    )
    g.add_argument(
        "--max-new-tokens",
        type=int,
        help="longest completion (toy model: 64, and 320 for tracking and captions; others: 1024)",
    )
    g.add_argument(
        "--beta",
        type=float,
        default=0.04,
        help="weight of the KL to the reference policy; 0 does without one",
    )
    g.add_argument(
        "--loss", default="grpo", choices=grpo.LOSSES, help="variant of the loss, see grpo.py"
    )
    g.add_argument(
        "--updates-per-rollout",
        type=int,
        default=1,
        help="optimizer steps on the same completions; the clip acts from the second on",
    )
    g.add_argument(
        "--clip",
        type=float,
        default=0.2,
        help="ε: the ratio is clipped to 1 ± ε (--loss gspo needs about 3e-4: give it yourself)",
    )
    g.add_argument(
        "--clip-high",
        type=float,
        help="ε for ratios above 1, if it is to be another (dapo uses 0.28)",
    )

    g = p.add_argument_group("optimizer (AdamW)")
    g.add_argument(
        "--lr",
        type=float,
        help=f"peak learning rate: 5 steps of warm-up, then straight down to a tenth {both('lr')}; with --lora {both('lr of adapters')}",
    )
    g.add_argument(
        "--grad-clip",
        type=float,
        default=1.0,
        help="largest norm of the gradient; inf: it is not clipped",
    )

    g = p.add_argument_group("models that do not fit")
    g.add_argument(
        "--plan",
        type=int,
        nargs="?",
        const=int(os.environ.get("WORLD_SIZE", "1")),
        metavar="PROCESSES",
        help="load nothing: print what the run needs of each GPU's memory and time, and whether it fits; for so many processes, one GPU each (default: those that torchrun started, or 1)",
    )
    g.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help="train adapters of this rank and nothing else, see scale/adapters.py",
    )
    g.add_argument(
        "--train-vision",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"train the vision tower as well {both('train_vision')}",
    )
    g.add_argument(
        "--recompute",
        action="store_true",
        help="keep one activation a layer and compute the others twice",
    )
    g.add_argument(
        "--shard",
        action="store_true",
        help="split weights, gradients and optimizer over all processes (FSDP2); needs torchrun",
    )
    g.add_argument(
        "--offload",
        action="store_true",
        help="keep float32 weights and optimizer in the CPU's memory",
    )

    data.add_budget_flags(p)
    args = p.parse_args(argv)
    check_flags(args)
    toy_model = os.path.abspath(args.model) == TOY_MODEL
    for name in ("steps", "lr", "train_vision"):
        if getattr(args, name) is None:
            toy, paper = DEFAULTS["lr of adapters" if name == "lr" and args.lora else name]
            setattr(args, name, toy if toy_model else paper)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.clip_high = args.clip if args.clip_high is None else args.clip_high
    args.think = args.think and args.method == "grpo"
    # With a KL every group teaches; sharded, every process must run each layer equally often.
    args.score_every_group = args.beta > 0 or args.shard
    args.tasks = list(
        dict.fromkeys(
            t for name in args.task.split("+") for t in (JOINTLY if name == "all" else [name])
        )
    )
    for task in args.tasks:
        if task not in TASKS:
            raise BadInput(f"--task {task} is unknown; there is: {', '.join(TASKS)}, all")
    args.max_new_tokens = (
        longest_answer(toy_model, args.tasks)
        if args.max_new_tokens is None
        else args.max_new_tokens
    )
    if args.group_size < 2 and args.method == "grpo":
        raise BadInput(
            "--group-size must be at least 2: an advantage compares a completion with its siblings"
        )
    if args.lora is not None:
        args.train_vision = False
    if args.resume and (args.out is None or args.overwrite):
        raise BadInput(
            "--resume goes on with the run in --out: it needs --out, and --overwrite would throw that run away"
        )
    return args


def check_processes(args, world):
    """Raises BadInput where `world` processes cannot do what the flags ask for. Asked by the run and by --plan."""
    if args.prompts_per_step % world:
        fits = -(-args.prompts_per_step // world) * world
        raise BadInput(
            f"--prompts-per-step {args.prompts_per_step} cannot be shared evenly by {world} processes; --prompts-per-step {fits} can"
        )
    if args.shard and world == 1 and "WORLD_SIZE" not in os.environ:
        plan_for = ", or give --plan their number" if args.plan else ""
        raise BadInput(
            f"--shard splits weights over processes: start with torchrun --nproc-per-node N train.py …{plan_for}"
        )
