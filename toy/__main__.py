"""python -m toy [NAME …]: renders toy data sets into data/toy.

train.py and eval.py do it by themselves.
"""

import argparse

from lib.errors import BadInput, run_program
from toy.world import MAKERS, ensure


def start():
    p = argparse.ArgumentParser(prog="python -m toy", description=__doc__)
    some = f"some of {', '.join(MAKERS)} (default: all)"
    p.add_argument("names", nargs="*", metavar="NAME", help=some)
    for name in p.parse_args().names or MAKERS:
        if name not in MAKERS:
            raise BadInput(f"there is no toy {name}; there is: {', '.join(MAKERS)}")
        print(f"toy {name}: {ensure(name)}")


def main():
    run_program(start)


if __name__ == "__main__":
    main()
