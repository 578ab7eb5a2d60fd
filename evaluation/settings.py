"""settings.py: the flags of eval.py, the effect of each, and its default."""

from argparse import Namespace

from annotations.readers import DATASETS
from lib import flags
from lib.errors import BadInput
from tasks import TASKS

LOOKS = ("grey", "shuffled", "middle")  # controls of a model, see data.looked_at

EVAL_FLAGS = {
    "benchmarks": [
        ("--bench", {}, f"one or several of {', '.join(DATASETS)}, with commas between, or all"),
        ("--data", {}, "folder of the data set; with several benchmarks the folder that holds a "
            "folder of each; toy: made-up clips (default: data/NAME where it exists, else, for "
            "the toy model, toy)"),
        ("--task", {"choices": list(TASKS)}, "ask the questions as this task of the same "
            "data: qa of nextgqa, the answer without its seconds (default: the benchmark's own)"),
        ("--limit", flags.COUNT, "only the first so many questions of each"),
        flags.JUDGE,
        ("--controls", {"nargs": "*", "choices": LOOKS, "metavar": "LOOK"}, "ask each model again "
            "with grey frames, with shuffled ones and (multiple choice) with the middle one alone; "
            "grey, shuffled or middle: with these"),
        ("--clues", flags.YES, "multiple choice: answer, look closely at the interval that was "
            "named, answer again"),
        ("--compare", {"nargs": 2, "metavar": ("A", "B")}, "no model is run: the difference of "
            "two evaluations that are there, with its uncertainty"),
        ("--out", {}, "folder for predictions and results; --controls adds OUT-grey and so on "
            "(default: inside the run, or runs/eval/MODEL)"),
    ],
    "or a question about one's own video": [
        ("--video", {}, "a video file"),
        ("--ask", {}, "the question"),
    ],
    "model and decoding (always greedy)": [
        ("--model", {"nargs": "+", "default": [flags.TOY_MODEL]}, "run folders of train.py, "
            "folders or hub names of Qwen2.5-VL or Qwen3-VL (default: the toy base)"),
        ("--think", {"nargs": "?", "const": True, "choices": ("both",)}, "ask for a <think> block "
            "(default: as the run was trained, else yes); both: once with and once without, in two "
            "folders"),
        ("--no-think", {"dest": "think", "action": "store_false", "default": None}, "ask for the "
            "answer alone"),
        flags.PROMPT,
        ("--blind", flags.YES, "replace every frame by grey: what a model knows without looking"),
        ("--max-new-tokens", flags.COUNT, "longest answer (default: the task's usual length, or "
            "the run's if that is more; with --ask 256)"),
        ("--batch-size", flags.COUNT, "questions answered together (toy model: 64; others: 16)"),
        ("--decode-timeout", flags.PATIENCE | {"default": 600}, "seconds after which a video "
            "counts as unreadable; an hour of video takes minutes"),
        flags.STUDENT,
        flags.DEVICES,
        flags.ATTN,
    ],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# What eval.py makes of its flags
# ------------------------------------------------------------------------------------------------


def parse_args(argv=None, description=__doc__):
    """The flags of eval.py as a namespace. Raises BadInput for those that do not go together."""
    args = flags.parser_of(description, EVAL_FLAGS | flags.BUDGET_FLAGS).parse_args(argv)
    if (args.bench is None) == (args.video is None):
        raise BadInput('give either --bench charades, or --video FILE with --ask "…"')
    if (args.video is None) != (args.ask is None):
        raise BadInput('--video FILE and --ask "…" belong together: give both')
    args.benches = [] if args.bench is None else args.bench.split(",")
    if args.bench == "all":
        args.benches = list(DATASETS)
    for name in args.benches:
        if name not in DATASETS:
            raise BadInput(f"--bench {name} is unknown; there is: {', '.join(DATASETS)}, all")
    if args.compare and args.judge:
        raise BadInput("--compare scores with the evaluations' own judge: leave --judge away")
    if args.template is not None and args.think == "both":
        raise BadInput("--prompt says itself whether to think: leave --think both away")
    args.template = None if args.template is None else flags.read_template(args.template)
    thinking = {"": args.think}
    if args.think == "both":
        thinking = {", thinking": True, ", not thinking": False}
    args.look = "grey" if args.blind else ""
    looks = (args.look,) if args.controls is None else ("", *(args.controls or LOOKS))
    args.way, given = "", vars(args)
    args.ways = [
        Namespace(**given | {"way": way, "think": think, "look": look})
        for way, think in thinking.items()
        for look in looks
    ]
    if args.out and len(args.model) * max(1, len(args.benches)) * len(thinking) > 1:
        several = "several models or benchmarks or --think both"
        raise BadInput(f"--out is one folder: leave it away with {several}, each gets its own")
    if args.controls is not None and (args.blind or args.compare):
        raise BadInput("--controls asks in all these ways: leave --blind and --compare away")
    return args
