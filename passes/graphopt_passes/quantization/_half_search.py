"""Which nodes have to stay in float32 for the outputs to stay close: found by measuring groups of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final

# Groups that the nodes are divided into before anything is known about them.
_GROUPS: Final = 8
# Measurements after which what makes most of the noise is kept in float32 wholesale.
_MOST_MEASURED: Final = 64

#: Noise power over signal power of the outputs when these units are in half precision and no others.
Noise = Callable[[Sequence[int]], float]


def find_noisy(count: int, noise: Noise, limit: float) -> list[int]:
    """Units out of `range(count)` that make too much noise, as few as bisection finds.

    The noise of separate units about adds up. So all of them are tried at once, which mostly is the end of
    it; then groups of neighbours, of which the noisiest is split, and split again, until single units are
    left whose being kept brings the rest below the limit.

    Args:
        count: number of units, in topological order.
        noise: measures a set of units, sorted.
        limit: the noise that is allowed for all that is not kept.

    Returns:
        The units to keep in float32, sorted.
    """
    if not count or noise(range(count)) <= limit:
        return []
    kept: set[int] = set()
    size = -(-count // _GROUPS)
    heap: list[tuple[float, int, range]] = []
    measured = 1

    def push(group: range) -> None:
        nonlocal measured
        measured += 1
        # Noise that cannot be measured (NaN) is the worst there is.
        found = noise(group)
        heapq.heappush(heap, (-found if found == found else -float("inf"), group.start, group))

    for start in range(0, count, size):
        push(range(start, min(start + size, count)))
    while heap:
        if -sum(entry[0] for entry in heap) <= limit or measured >= _MOST_MEASURED:
            rest = [u for u in range(count) if u not in kept]
            if noise(rest) <= limit:
                break
            measured += 1
        _, _, group = heapq.heappop(heap)
        if len(group) == 1 or measured >= _MOST_MEASURED:
            kept.update(group)
            continue
        middle = len(group) // 2
        push(group[:middle])
        push(group[middle:])
    return sorted(kept)
