"""merge.py: a run's adapters put into its base, as a plain model folder: W + (α / r) B A.

    python -m tools.merge runs/x/policy merged/

The run was trained with --lora; merged/ is a model that `--model` takes.
"""

import os

from safetensors import SafetensorError

from data import VideoBudget
from lib.errors import BadInput, first_line, run_program
from lib.flags import parser_of
from lib.weights import save
from model import load

FLAGS = {"from where to where": [
    ("adapters", {}, "the policy/ folder of a run that was trained with --lora"),
    ("out", {}, "the folder to make; it must not be there yet"),
]}  # fmt: skip


def start():
    args = parser_of(__doc__, FLAGS, prog="python -m tools.merge").parse_args()
    if not os.path.isfile(os.path.join(args.adapters, "adapter_config.json")):
        raise BadInput(
            f"{args.adapters} has no adapter_config.json: give the policy/ folder of a run that was"
            " trained with --lora"
        )
    out = args.out.rstrip("/")
    if os.path.lexists(out):
        raise BadInput(f"{out} is there already: give a new folder")
    model, tokenizer = load(args.adapters)  # load merges
    try:
        save(model, tokenizer, VideoBudget.of_model(args.adapters, model.config.model_type), out)
    except (OSError, SafetensorError) as e:
        raise BadInput(f"cannot write to {out}: {first_line(e)}") from e
    print(f"merged into {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
