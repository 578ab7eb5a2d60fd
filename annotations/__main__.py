"""python -m annotations DATASET FILE …: how many examples they hold, and the first."""

import argparse
import os

from annotations.readers import DATASETS
from lib.errors import run_program


def start():
    p = argparse.ArgumentParser(prog="python -m annotations", description=__doc__)
    p.add_argument("dataset", choices=DATASETS, metavar="DATASET", help=", ".join(DATASETS))
    p.add_argument("files", nargs="+", metavar="FILE")
    args = p.parse_args()
    dataset = DATASETS[args.dataset]
    for path in args.files:
        home = os.path.dirname(path.rstrip("/"))
        if os.path.basename(home) == "json":  # the folder of videos is beside it
            home = os.path.dirname(home)
        examples = dataset.reader(path, os.path.join(home, dataset.videos))
        videos = len({e.video for e in examples})
        print(f"{path}: {len(examples):,} examples about {videos:,} videos; the first:")
        print(f"  {examples[0]}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
