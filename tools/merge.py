"""merge.py: a run's adapters put into its base, as a plain model folder: W + (α / r) B A.

    python -m tools.merge runs/x/policy merged/

The run was trained with --lora; merged/ is a model that `--model` takes.
"""

import argparse
import json
import os

from safetensors import SafetensorError

from data import VideoBudget
from lib.errors import BadInput, first_line, run_program
from lib.files import MERGED, expect_merged
from lib.weights import load, save


def start():
    p = argparse.ArgumentParser(
        prog="python -m tools.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("adapters", help="the policy/ folder of a run that was trained with --lora")
    p.add_argument(
        "out", help="the folder to make; an existing one is replaced only if this command made it"
    )
    args = p.parse_args()
    if not os.path.isfile(os.path.join(args.adapters, "adapter_config.json")):
        raise BadInput(
            f"{args.adapters} has no adapter_config.json: give the policy/ folder of a run that was"
            " trained with --lora"
        )
    out = args.out.rstrip("/")
    for folder in (out, out + ".partial", out + ".old"):  # the last two: while it is replaced
        expect_merged(folder)
    model, tokenizer = load(args.adapters)  # load merges

    def write(folder):
        os.makedirs(folder)
        with open(os.path.join(folder, MERGED), "w", encoding="utf-8") as f:
            json.dump({"kind": "merged model", "adapters": os.path.abspath(args.adapters)}, f)
        model.save_pretrained(folder)

    try:
        save(model, tokenizer, VideoBudget.of_model(args.adapters), out, write)
    except (OSError, SafetensorError) as e:
        raise BadInput(f"cannot write to {out}: {first_line(e)}") from e
    print(f"merged into {args.out}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
