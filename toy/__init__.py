"""A made-up world as every data set, and the small model that lives in it."""

import lib.threads  # noqa: F401  before torch: how its CPU threads wait
