"""Python's garbage collector around large graphs.

A graph is one big web of references that stays alive: every full collection walks all of it and frees
nothing. On 50,000 nodes that is a sixth of the time of a run.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Allocations before a collection of the young; rounds of the young before the old are looked at. Passes do
# drop cyclic garbage (nodes and tensors refer to each other), so it is collected now and then.
_RELAXED = (50_000, 50, 50)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No collection at all: for building and reading graphs, which makes no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Rarer collections: for rewriting graphs. What the caller has set is put back, and never lowered."""
    before = gc.get_threshold()
    if before[0]:  # 0 is the caller's way to have none
        gc.set_threshold(*map(max, before, _RELAXED))
    try:
        yield
    finally:
        gc.set_threshold(*before)
