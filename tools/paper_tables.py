"""paper_tables.py: what tools/paper.py runs and shows: cells, tables, findings.

All of it was written down before any of it was run: which model is compared with which, on what,
with how many steps, and what difference counts. Nothing here is changed to make a finding hold.

A *cell* is a model: the toy base, or a way to train it (one run per seed). A *column* is an
evaluation and one of its metrics, "charades mIoU". A table says which cells are its rows.
"""

from dataclasses import dataclass, field

from tasks import JOINTLY
from toy.world import make_clip

# ------------------------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------------------------

# An epoch is 36 steps of 16 prompts: 576 examples of a task, each once. A run on several tasks has
# as many times the steps, so that each task is seen as often. Toy captions and quality have 200
# training clips, which are seen 2.9 times. Runs train adapters of rank 16, but for the table
# "rank": all weights of so small a model forget whatever is not trained on. GRPO makes two updates
# per step on one rollout, SFT one. All else is train.py's default.
PROMPTS, EPOCH, RANK = 16, 36, 16


@dataclass(frozen=True)
class Cell:
    """A model. task None: the toy base as it is."""

    task: str | None = None
    method: str = "grpo"
    think: bool = False  # whether it is trained and asked with a <think> block
    epochs: int = 1
    more: dict = field(default_factory=dict)  # other settings of train.py, by their names


def settings_of(cell, epoch):
    """What is given to train.py, by the names of its settings; epoch: steps of one task."""
    tasks = len(JOINTLY) if cell.task == "all" else cell.task.count("+") + 1
    return {
        "task": cell.task,
        "method": cell.method,
        "think": cell.think,
        "steps": cell.epochs * epoch * tasks,
        "examples": PROMPTS * EPOCH,
        "prompts_per_step": PROMPTS,
        "updates_per_rollout": 2 if cell.method == "grpo" else 1,
        "lora": RANK,
    } | cell.more


def on_clips(n):
    """The setting that trains on the first n clips of toy charades, with all their queries."""
    return {"examples": sum(len(make_clip("train", i).things) for i in range(n))}


def ways(task):
    """SFT has no thoughts to imitate; GRPO is trained and asked without and with them."""
    return {
        f"{task}-sft": Cell(task, "sft"),
        f"{task}-grpo": Cell(task),
        f"{task}-grpo-think": Cell(task, think=True),
    }


CLIPS, GROUPS, BETAS = (100, 300, 1000), (2, 4, 16), (0, 0.01, 0.16)
RANKS = {"rank4": 4, "rank64": 64, "all-weights": None}
NOISE = 0.2  # share of its decisions that the noisy judge gets wrong

CELLS = (
    {"base": Cell(), "base-think": Cell(think=True)}
    | ways("grounding")
    | ways("tracking")
    | ways("gqa")
    | ways("qa")
    | ways("all")
    | {
        "grounding+gqa-grpo": Cell("grounding+gqa"),
        "grounding+gqa-grpo-think": Cell("grounding+gqa", think=True),
        "grounding-sft-3": Cell("grounding", "sft", epochs=3),
        "grounding-grpo-3": Cell("grounding", epochs=3),
        "grounding-grpo-think-3": Cell("grounding", think=True, epochs=3),
        "caption-sft": Cell("caption", "sft"),
        "caption-grpo": Cell("caption"),
        "caption-grpo-noisy": Cell("caption", more={"judge": f"noisy:{NOISE}"}),
        "quality-sft": Cell("quality", "sft"),
        "quality-grpo": Cell("quality"),
    }
    # What users ask first: grounding, thinking, as train.py does by default.
    | {f"sft-clips{n}": Cell("grounding", "sft", False, 3, on_clips(n)) for n in CLIPS}
    | {f"grpo-clips{n}": Cell("grounding", "grpo", True, 3, on_clips(n)) for n in CLIPS}
    | {f"group{g}": Cell("grounding", think=True, more={"group_size": g}) for g in GROUPS}
    | {f"beta{b:g}": Cell("grounding", think=True, more={"beta": b}) for b in BETAS}
    | {f"sft-{k}": Cell("grounding", "sft", False, 3, {"lora": r}) for k, r in RANKS.items()}
    | {f"grpo-{k}": Cell("grounding", "grpo", True, 3, {"lora": r}) for k, r in RANKS.items()}
)

# ------------------------------------------------------------------------------------------------
# Columns
# ------------------------------------------------------------------------------------------------
# "EVALUATION METRIC": the metric as eval.py names it in results.json; "run METRIC": of the training
# itself (its minutes on one core, and the KL of its last ten steps, in nats per token).

# What an evaluation is called here, which is how eval.py names its folder, and the flags that ask
# for it. Those that are not named are benchmarks, asked as they are: --bench NAME.
EVALUATIONS = {
    "nextgqa-qa": "--bench nextgqa --task qa",
    "videomme-clues": "--bench videomme --clues",
    "longvideobench-clues": "--bench longvideobench --clues",
}

CHARADES = ["charades mIoU", "charades R@0.5", "charades R@0.7"]
ACTIVITYNET = ["activitynet mIoU", "activitynet R@0.5", "activitynet R@0.7"]
NEXTGQA = ["nextgqa mIoU", "nextgqa accuracy"]
GOT10K = ["got10k overlap", "got10k R@0.5"]
CHAT = ["videomme accuracy", "mvbench accuracy", "perceptiontest accuracy"]
KEPT = ["videomme accuracy", "mvbench accuracy", "quality accuracy", "caption recall"]
DREAM = ["dream1k F1", "dream1k precision", "dream1k recall"]
LOOKS = [
    f"{bench}-clues accuracy{look}"
    for bench in ("videomme", "longvideobench")
    for look in (", first look", "")
]

# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """rows: (words, cell, the paper's figures in the columns' order).

    Of the paper's figures "–" is one that it does not give, "×" a model that cannot answer any
    more; a row without any is only ours.
    """

    title: str
    columns: list
    rows: list


# The paper's figures: VideoChat-R1, arXiv 2504.06958 v5, tables 1 to 8. Qwen2.5-VL-7B on real data
# (captions: Qwen2-VL-7B); its Video-MME is the short subset, but for table 8.
TABLES = {
    "1": Table("SFT and joint GRPO", [*CHARADES, *ACTIVITYNET, *NEXTGQA, *GOT10K, *CHAT], [
        ("base", "base", "29.0 24.2 11.1 21.1 15.8 7.5 15.4 59.5 12.6 1.1 71.3 66.9 69.1"),
        ("base, thinking", "base-think", ""),
        ("SFT on grounding", "grounding-sft", "46.3 45.0 25.3 20.6 16.7 7.9 – – – – × × ×"),
        ("SFT on tracking", "tracking-sft", "– – – – – – – – 41.8 29.5 59.2 58.6 58.5"),
        ("SFT on grounded QA", "gqa-sft", "– – – – – – 28.2 64.8 – – 60.1 59.2 60.7"),
        ("SFT on all three", "all-sft", ""),
        ("GRPO on all three", "all-grpo",
            "60.8 71.7 50.2 36.6 33.4 17.7 32.4 70.6 43.8 38.2 72.2 67.9 70.0"),
        ("the same, thinking", "all-grpo-think",
            "59.9 70.6 47.2 35.5 33.3 16.7 36.1 69.2 43.3 33.9 74.2 66.2 69.6"),
    ]),
    "2": Table("which tasks together (GRPO)",
               [*CHARADES, *ACTIVITYNET, *NEXTGQA, *GOT10K, CHAT[0]], [
        ("grounding", "grounding-grpo", ""),
        ("grounded QA", "gqa-grpo", "36.0 33.5 15.5 24.9 20.6 10.7 35.1 68.7 36.1 26.7 72.0"),
        ("tracking", "tracking-grpo", "28.7 25.1 9.6 20.1 16.2 6.8 15.6 60.5 42.5 30.6 71.4"),
        ("grounding + grounded QA", "grounding+gqa-grpo",
            "59.8 69.7 47.0 33.7 31.0 16.0 35.7 67.7 36.5 28.9 72.2"),
        ("all three", "all-grpo", "60.8 71.7 50.2 36.6 33.4 17.7 32.4 70.6 43.8 38.2 72.2"),
        ("grounding, thinking", "grounding-grpo-think",
            "59.3 70.4 46.0 30.7 27.5 12.9 31.4 61.2 27.8 12.9 72.6"),
        ("grounded QA, thinking", "gqa-grpo-think", ""),
        ("tracking, thinking", "tracking-grpo-think", ""),
        ("grounding + grounded QA, thinking", "grounding+gqa-grpo-think", ""),
        ("all three, thinking", "all-grpo-think", ""),
    ]),
    "3": Table("epochs of SFT and of GRPO on grounding",
               [CHARADES[0], "charades R@0.3", *CHARADES[1:],
                ACTIVITYNET[0], "activitynet R@0.3", *ACTIVITYNET[1:], CHAT[0]], [
        ("base", "base", "29.0 44.7 24.2 11.1 21.1 28.3 15.8 7.4 71.3"),
        ("base, thinking", "base-think", "28.1 41.8 23.4 11.1 17.7 22.7 13.4 7.7 71.3"),
        ("SFT, 1 epoch", "grounding-sft", "46.3 63.9 45.0 25.3 20.6 30.2 16.7 7.9 ×"),
        ("SFT, 3 epochs", "grounding-sft-3", "34.6 51.7 36.3 20.6 17.3 26.1 10.0 3.9 ×"),
        ("GRPO, 1 epoch", "grounding-grpo", "58.7 80.9 67.7 45.4 31.9 46.3 28.8 14.1 72.6"),
        ("GRPO, 3 epochs", "grounding-grpo-3", ""),
        ("GRPO, thinking, 1 epoch", "grounding-grpo-think",
            "59.3 81.7 70.4 46.0 30.7 45.0 27.5 12.9 73.6"),
        ("GRPO, thinking, 3 epochs", "grounding-grpo-think-3",
            "61.3 83.1 72.8 51.5 34.3 50.4 32.2 16.2 70.9"),
    ]),
    "4": Table("tracking", [*GOT10K, "got10k R@0.7", CHAT[0]], [
        ("base", "base", "12.6 1.1 0 71.3"),
        ("base, thinking", "base-think", ""),
        ("SFT", "tracking-sft", "41.8 29.5 3.9 59.2"),
        ("GRPO", "tracking-grpo", "42.5 30.6 3.9 71.4"),
        ("GRPO, thinking", "tracking-grpo-think", ""),
    ]),
    "5": Table("multiple choice: the letter alone, or with its seconds (glue)",
               ["nextgqa-qa accuracy", *NEXTGQA, CHAT[0]], [
        ("base", "base", "41.7 15.4 59.5 71.3"),
        ("SFT on letters", "qa-sft", "65.1 – – 60.2"),
        ("SFT with glue", "gqa-sft", "– 28.2 64.8 60.1"),
        ("GRPO on letters", "qa-grpo", "70.1 16.2 70.2 71.7"),
        ("GRPO with glue", "gqa-grpo", "– 35.1 68.7 72.0"),
        ("base, thinking", "base-think", "47.7 20.2 53.3 73.0"),
        ("GRPO on letters, thinking", "qa-grpo-think", "68.8 – – 74.7"),
        ("GRPO with glue, thinking", "gqa-grpo-think", "– 32.9 66.9 75.3"),
    ]),
    "6": Table("captions and quality",
               [*DREAM, "caption recall", "quality accuracy", CHAT[0]], [
        ("base", "base", "30.6 33.8 27.9 – 70.7 –"),
        ("SFT on captions", "caption-sft", "31.4 32.6 30.2 – – –"),
        ("GRPO on captions", "caption-grpo", "38.2 45.4 33.1 – – –"),
        ("SFT on quality", "quality-sft", "– – – – 71.7 –"),
        ("GRPO on quality", "quality-grpo", "– – – – 72.6 –"),
    ]),
    "7": Table("who judges captions in training (all are tested by content words; the paper's "
               "judges: Qwen2.5-72B, GPT-3.5-turbo)", [*DREAM, "caption recall"], [
        ("base", "base", "30.6 33.8 27.9 –"),
        ("content words", "caption-grpo", "38.2 45.4 33.1 –"),
        (f"the same, wrong in {NOISE:.0%} of its decisions", "caption-grpo-noisy",
            "37.9 44.4 33.0 –"),
    ]),
    "8": Table("a second look (all lengths)", LOOKS, [
        ("base, thinking", "base-think", "64.4 63.3 56.0 55.2"),
        ("GRPO on all three, thinking", "all-grpo-think", "62.1 63.6 51.9 58.2"),
    ]),
    "data": Table("how many clips? (grounding, 108 steps of each)",
                  [*CHARADES[:2], ACTIVITYNET[0], CHAT[0]], [
        *[(f"SFT, {n:,} clips", f"sft-clips{n}", "") for n in CLIPS],
        *[(f"GRPO, thinking, {n:,} clips", f"grpo-clips{n}", "") for n in CLIPS],
    ]),
    "group": Table("how large a group? (GRPO on grounding, 36 steps)",
                   [*CHARADES[:2], ACTIVITYNET[0], "run minutes"], [
        ("G = 2", "group2", ""),
        ("G = 4", "group4", ""),
        ("G = 8", "grounding-grpo-think", ""),
        ("G = 16", "group16", ""),
    ]),
    "beta": Table("how much KL? (GRPO on grounding, 36 steps)",
                  [*CHARADES[:1], ACTIVITYNET[0], *KEPT, "run kl"], [
        ("β = 0", "beta0", ""),
        ("β = 0.01", "beta0.01", ""),
        ("β = 0.04", "grounding-grpo-think", ""),
        ("β = 0.16", "beta0.16", ""),
    ]),
    "rank": Table("what is forgotten, by the rank of the adapters (grounding, 108 steps)",
                  [*CHARADES[:1], ACTIVITYNET[0], *KEPT], [
        ("base", "base", ""),
        ("SFT, rank 4", "sft-rank4", ""),
        ("SFT, rank 16", "grounding-sft-3", ""),
        ("SFT, rank 64", "sft-rank64", ""),
        ("SFT, all weights", "sft-all-weights", ""),
        ("base, thinking", "base-think", ""),
        ("GRPO, thinking, rank 4", "grpo-rank4", ""),
        ("GRPO, thinking, rank 16", "grounding-grpo-think-3", ""),
        ("GRPO, thinking, rank 64", "grpo-rank64", ""),
        ("GRPO, thinking, all weights", "grpo-all-weights", ""),
    ]),
}  # fmt: skip


def wanted(names):
    """{cell: the evaluations that these tables need of it}."""
    needed = {}
    for table in (TABLES[name] for name in names):
        asked = dict.fromkeys(c.split(" ")[0] for c in table.columns if not c.startswith("run "))
        for _, cell, _ in table.rows:
            needed.setdefault(cell, {}).update(asked)
    return {cell: list(asked) for cell, asked in needed.items()}


def columns_of(cell):
    """All columns of the tables that a cell is in, each once."""
    in_it = [table for table in TABLES.values() if cell in [row[1] for row in table.rows]]
    return list(dict.fromkeys(column for table in in_it for column in table.columns))


# ------------------------------------------------------------------------------------------------
# Findings
# ------------------------------------------------------------------------------------------------

# "Hardly a difference" means one below so many points.
MARGIN = 3.0

# The paper's six, each with comparisons (a, b, column, what b − a should be): "+" above 0, "-"
# below it, "0" hardly a difference. A cell beside itself: its second look minus its first.
FINDINGS = {
    "GRPO beats SFT in domain, out of domain, and in what is kept": [
        ("grounding-sft", "grounding-grpo", "charades mIoU", "+"),
        ("tracking-sft", "tracking-grpo", "got10k overlap", "+"),
        ("gqa-sft", "gqa-grpo", "nextgqa accuracy", "+"),
        ("grounding-sft", "grounding-grpo", "activitynet mIoU", "+"),
        ("grounding-sft", "grounding-grpo", "videomme accuracy", "+"),
        ("tracking-sft", "tracking-grpo", "videomme accuracy", "+"),
        ("gqa-sft", "gqa-grpo", "videomme accuracy", "+"),
    ],
    "More epochs hurt SFT and help GRPO": [
        ("grounding-sft", "grounding-sft-3", "charades mIoU", "-"),
        ("grounding-sft", "grounding-sft-3", "activitynet mIoU", "-"),
        ("grounding-grpo-think", "grounding-grpo-think-3", "charades mIoU", "+"),
        ("grounding-grpo-think", "grounding-grpo-think-3", "activitynet mIoU", "+"),
    ],
    "Tasks help each other": [
        ("grounding-grpo", "all-grpo", "charades mIoU", "+"),
        ("grounding-grpo", "all-grpo", "activitynet mIoU", "+"),
        ("tracking-grpo", "all-grpo", "got10k overlap", "+"),
        ("gqa-grpo", "all-grpo", "nextgqa accuracy", "+"),
    ],
    "Thinking helps questions and hardly grounding": [
        ("base", "base-think", "videomme accuracy", "+"),
        ("qa-grpo", "qa-grpo-think", "videomme accuracy", "+"),
        ("grounding-grpo", "grounding-grpo-think", "charades mIoU", "0"),
    ],
    "The judge of captions matters little": [
        ("caption-grpo", "caption-grpo-noisy", "caption recall", "0"),
    ],
    "A second look helps the model that points well and hurts the one that does not": [
        ("all-grpo-think", "all-grpo-think", "videomme-clues accuracy", "+"),
        ("all-grpo-think", "all-grpo-think", "longvideobench-clues accuracy", "+"),
        ("base-think", "base-think", "videomme-clues accuracy", "-"),
        ("base-think", "base-think", "longvideobench-clues accuracy", "-"),
    ],
}  # fmt: skip


def verdict(low, high, wanted):
    """What a 95 % interval of b − a, in points, says about a comparison.

    >>> verdict(0.5, 3.0, "+"), verdict(-4.0, -1.0, "+"), verdict(-1.0, 2.0, "+")
    ('holds here', 'does not hold here', 'cannot tell')
    >>> verdict(-1.0, 2.0, "0"), verdict(4.0, 9.0, "0"), verdict(1.0, 5.0, "0")
    ('holds here', 'does not hold here', 'cannot tell')
    """
    if wanted == "0":
        holds, against = -MARGIN < low and high < MARGIN, low > MARGIN or high < -MARGIN
    else:
        low, high = (low, high) if wanted == "+" else (-high, -low)
        holds, against = low > 0, high < 0
    return "holds here" if holds else "does not hold here" if against else "cannot tell"


def together(verdicts):
    """A finding holds if all its comparisons do, and does not if one of them says the opposite."""
    for one in ("does not hold here", "cannot tell"):
        if one in verdicts:
            return one
    return "holds here"


# ------------------------------------------------------------------------------------------------
# As a page
# ------------------------------------------------------------------------------------------------


def spread(values, digits=1):
    """Mean and standard deviation over seeds as words: [60, 62] → "61.0 ± 1.4"."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def grid(head, rows):
    """The lines of a markdown table; head, rows: the words of its cells."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def table_lines(name, results, brief=False):
    """The lines of one table in markdown; [] unless all its cells are there, with some seed.

    brief: without the shares above a threshold (R@θ), which say what the mean says.
    """
    table, cells = TABLES[name], results["cells"]
    columns = [column for column in table.columns if not (brief and " R@" in column)]
    shown = dict.fromkeys(cell for _, cell, _ in table.rows)
    asked = [column for column in table.columns if not column.startswith("run ")]
    if not all(set(asked) <= set().union(*cells.get(cell, {}).values()) for cell in shown):
        return []
    rows = []
    for words, cell, paper in table.rows:
        row, said = [words], dict(zip(table.columns, paper.split()))
        for column in columns:
            figure = said.get(column, "–")
            values = [seed[column] for seed in cells[cell].values() if column in seed]
            toy = spread(values, 3 if column == "run kl" else 1) if values else "–"
            row.append(toy if figure == "–" else f"{toy} *({figure})*")
        rows.append(row)
    runs = sum(len(cells[cell]) for cell in shown if CELLS[cell].task)
    minutes = sum(results["minutes"][cell] for cell in shown)
    made = f"{runs} runs, {minutes:.0f} minutes of one core (with what other tables share)"
    title = f"### {'Table' if name.isdigit() else 'Beyond the paper,'} {name}: {table.title}"
    return [
        title,
        "",
        *grid(["toy", *columns], rows),
        "",
        f"`python -m tools.paper {name}`: {made}",
        "",
    ]


def finding_lines(findings):
    """The findings as one table: a row for each, and below it one for each comparison."""
    rows = []
    for finding in findings:
        rows.append([f"**{finding['finding']}**", "", "", "", f"**{finding['verdict']}**"])
        for c in finding["comparisons"]:
            what = f"{c['a']} → {c['b']}" if c["a"] != c["b"] else f"{c['a']}, second look"
            difference = f"{c['difference']:+.1f} [{c['low']:+.1f}, {c['high']:+.1f}]"
            ends = [f"{c[end]:.1f}" for end in ("from", "to")]
            words = f"{c['column']}: {what} ({c['wanted']})"
            rows.append([words, *ends, difference, c["verdict"]])
    head = ["finding, and what is compared on the toy", "from", "to", "difference, 95 %", "verdict"]
    note = (
        f"(+): expected above 0, (-): below, (0): within {MARGIN:g} points. The interval is that of"
        " a paired bootstrap over questions and seeds."
    )
    return [*grid(head, rows), "", note] if findings else ["Not all of their models are there yet."]


def how_made(results):
    """What all tables have in common, in two paragraphs."""
    seeds = sorted({int(seed) for of_cell in results["cells"].values() for seed in of_cell})
    of = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]} alone"
    runs = sum(len(by_seed) for cell, by_seed in results["cells"].items() if CELLS[cell].task)
    hours = sum(results["minutes"].values()) / 60
    return [
        f"Toy base (1.1 million parameters), toy data, in percent, {of}: the mean and, after ±, the"
        " standard deviation over seeds. *In brackets the paper's"
        " figure: another model (Qwen2.5-VL-7B) on other data, so compare directions alone; × says"
        " that it cannot answer any more.* Models answer directly where a row does not say"
        " “thinking”.",
        "",
        f"Runs train adapters of rank {RANK}. An epoch is {results['settings']['steps']} steps of"
        f" {PROMPTS} prompts. SFT and GRPO see the same samples; GRPO makes two updates per step."
        f" In all {runs} runs with their evaluations, {hours:.1f} hours of one core.",
        "",
    ]


def tables_page(results, brief=False):
    """All tables that are complete, in markdown."""
    tables = [line for name in TABLES for line in table_lines(name, results, brief)]
    if not tables:
        return "Nothing has been run with this command yet."
    return "\n".join(how_made(results) + tables).rstrip()


def findings_page(results):
    return "\n".join(finding_lines(results["findings"]))


def page(results):
    """Tables and findings in markdown, from results.json alone."""
    findings = f"### The paper's findings, tested on the toy\n\n{findings_page(results)}"
    return tables_page(results) + f"\n\n{findings}" * bool(results["findings"])


END = "<!-- to here -->"


def mark(part):
    return f"<!-- {part}, from here: python -m tools.paper all --docs -->"


def put_into(text, results):
    """docs/results.md with what stands between its marks replaced by these results."""
    parts = {"findings": findings_page(results), "tables": tables_page(results, brief=True)}
    for part, lines in parts.items():
        before, _, rest = text.partition(mark(part))
        text = f"{before}{mark(part)}\n\n{lines}\n\n{END}{rest.partition(END)[2]}"
    return text


def whole_page(results):
    """docs/tables.md: every column."""
    return f"""# Every column of the tables

Written by `python -m tools.paper all --docs`, from [results.json](results.json).
[Results](results.md) says what the tables show.

{tables_page(results)}
"""
