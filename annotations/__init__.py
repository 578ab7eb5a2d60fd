"""The files that data sets come as, read into Examples; and the judge of captions."""

import lib.threads  # noqa: F401  before torch: how its CPU threads wait

# A file in every made-up data set (toy/world.py): results on it are called toy results.
MARK = "MADE_BY_TOY_PY"
