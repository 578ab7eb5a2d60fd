"""What is made of runs afterwards: the report page, the paper's comparison, merged adapters."""

import lib.threads  # noqa: F401  before torch: how its CPU threads wait
