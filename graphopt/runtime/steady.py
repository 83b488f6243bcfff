"""When a series of run times has become steady.

A series is divided at its change points, found by a rank test (Mann and Whitney's, at every cut, corrected
for trying all of them), which outliers do not disturb. Segments of practically equal medians are one. What
comes before the last of them is warm-up. (Barrett et al., "Virtual machine warmup blows hot and cold", 2017,
do the same with another test.) Runs right after each other are alike, which such tests do not expect; so a
long series is first divided into bins, of which the medians count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np

Kind = Literal["flat", "warm-up", "slowdown", "no steady state"]

#: Medians that differ by less than this share count as equal.
TOLERANCE: Final = 0.03
_SIGNIFICANT: Final = 0.01
_LEAST_SEGMENT: Final = 5
_BINS: Final = 50
#: The last steady segment must be at least this share of the series, or it may still be changing.
_LEAST_SHARE: Final = 0.4
#: Fewer runs tell nothing.
LEAST_RUNS: Final = 8


@dataclass(frozen=True)
class Steadiness:
    """What a series of run times looks like.

    Attributes:
        start: the first run of the steady state; the number of runs where there is none.
        kind: "flat" from the first run on; "warm-up" if it was slower before; "slowdown" if it was faster;
            "no steady state" where the last change is too recent to tell.
    """

    start: int
    kind: Kind

    @property
    def steady(self) -> bool:
        """There is a steady state."""
        return self.kind != "no steady state"


def steadiness(times: Sequence[float], tolerance: float = TOLERANCE) -> Steadiness:
    """Where the steady state of a series begins.

    Args:
        times: of successive runs, in any unit.
        tolerance: what medians of segments may differ by, as a share.
    """
    runs = np.log(np.maximum(np.asarray(times, np.float64), 1e-12))
    if len(runs) < LEAST_RUNS:
        return Steadiness(len(runs), "no steady state")
    size = max(len(runs) // _BINS, 1) // 2 * 2 + 1  # odd, so that an outlier is no part of a median
    x = np.array([np.median(part) for part in np.array_split(runs, max(len(runs) // size, 1))])
    n = len(x)
    bounds = [0, *_change_points(x, 0), n]
    medians = [float(np.median(x[a:b])) for a, b in itertools.pairwise(bounds)]
    last = len(medians) - 1
    while last > 0 and abs(medians[last - 1] - medians[-1]) <= tolerance:
        last -= 1
    start = bounds[last]
    if start == 0:
        return Steadiness(_first_runs(runs), "flat")
    if n - start < max(_LEAST_SEGMENT, _LEAST_SHARE * n):
        return Steadiness(len(runs), "no steady state")
    return Steadiness(start * size, "warm-up" if medians[last - 1] > medians[-1] else "slowdown")


def _first_runs(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> int:
    """How many runs at the very start are slower than nearly all others: too few for a test."""
    limit = float(np.quantile(x[1:], 0.95))
    count = 0
    while count < _LEAST_SEGMENT and x[count] > limit + TOLERANCE:
        count += 1
    return count


def _change_points(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]], offset: int) -> list[int]:
    """Indices at which the distribution of a series changes, by binary segmentation."""
    n = len(x)
    if n < 2 * _LEAST_SEGMENT:
        return []
    ranks = np.empty(n)
    ranks[np.argsort(x, kind="stable")] = np.arange(1, n + 1)
    t = np.arange(1, n)
    z = np.abs(2 * np.cumsum(ranks)[:-1] - t * (n + 1)) / np.sqrt(t * (n - t) * (n + 1) / 3)
    z[: _LEAST_SEGMENT - 1] = z[n - _LEAST_SEGMENT :] = 0
    cut = int(np.argmax(z)) + 1
    tried = n - 2 * _LEAST_SEGMENT + 1
    if 2 * tried * NormalDist().cdf(-float(z[cut - 1])) > _SIGNIFICANT:
        return []
    return [*_change_points(x[:cut], offset), offset + cut, *_change_points(x[cut:], offset + cut)]
