"""For all tests: one thread for matrix products, since pytest-xdist already uses every core."""

from __future__ import annotations

import os

# Read once, when numpy is imported; the commands that tests start inherit them.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
