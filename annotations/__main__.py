"""python -m annotations DATASET FILE …: how many examples an annotation file holds, and the first."""

import argparse
import os

from annotations.readers import DATASETS
from runtime.errors import run_program


def main():
    p = argparse.ArgumentParser(prog="python -m annotations", description=__doc__)
    p.add_argument("dataset", choices=DATASETS, metavar="DATASET", help=", ".join(DATASETS))
    p.add_argument("files", nargs="+", metavar="FILE")
    args = p.parse_args()
    dataset = DATASETS[args.dataset]
    for path in args.files:
        home = os.path.dirname(path.rstrip("/"))
        home = home.removesuffix("json") if args.dataset == "mvbench" else home
        examples = dataset.reader(path, os.path.join(home, dataset.videos))
        about = len({e.video for e in examples})
        print(
            f"{path}: {len(examples):,} examples about {about:,} videos; the first:\n "
            f" {examples[0]}"
        )


if __name__ == "__main__":
    run_program(main)
