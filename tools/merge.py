"""merge.py: a run's adapters put into its base, as a plain model folder: W + (α / r) B A.

    python -m tools.merge runs/x/policy merged/

The run was trained with --lora; merged/ is a model that `--model` takes.
"""

import argparse
import os

from safetensors import SafetensorError

from data import VideoBudget
from lib.errors import BadInput, first_line, run_program
from lib.weights import save
from model import load


def start():
    p = argparse.ArgumentParser(
        prog="python -m tools.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("adapters", help="the policy/ folder of a run that was trained with --lora")
    p.add_argument("out", help="the folder to make; it must not be there yet")
    args = p.parse_args()
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
        save(model, tokenizer, VideoBudget.of_model(args.adapters), out)
    except (OSError, SafetensorError) as e:
        raise BadInput(f"cannot write to {out}: {first_line(e)}") from e
    print(f"merged into {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
