"""k-means of numbers on a line, exact: the palette of least squared error. Pure numpy.

The best clusters of sorted numbers are runs, so that dynamic programming finds them:
D[k, j] = min_i D[k - 1, i] + cost(i, j), with cost(i, j) the squared error of points i..j-1 around their
mean. The i that is best for j never falls as j rises, so that halving the range of j again and again looks
at O(n log n) pairs per k instead of O(n^2) (Wang and Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011; Song
and Zhong, "Efficient weighted univariate clustering", Bioinformatics 36/20, 2020).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from graphopt.passkit import Array

# More distinct values than that are merged into so many cells first.
CELLS: Final = 4096
_ROUNDS: Final = 50


def kmeans(
    values: Array,
    entries: int,
    importance: Array | None = None,
    *,
    keep_zero: bool = False,
    cells: int = CELLS,
) -> Array:
    """At most `entries` ascending numbers that stand for `values` with the least weighted squared error.

    Exact where there are no more than `cells` distinct values. More are merged into cells, none of which
    holds more than 4 / cells of the weight W, or 2 / cells of the range R, unless it is one value alone. An
    optimal palette has borders in some of the cells, and moving what lies in such a cell across them costs at
    most 2 (width of the cell) (distance of the entries) per unit of weight. Hence the result is no worse than
    the optimum by more than 16 W (R / cells)^2, and Lloyd's iteration on all values only improves it.

    Args:
        values: finite numbers of any shape.
        entries: how many numbers at most.
        importance: what a squared error counts, not negative, of the same shape; None: 1 everywhere.
        keep_zero: 0 is one of them. Lloyd's iteration leaves it where it is.
        cells: see above.

    Returns:
        float64, ascending, each different from the one before.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    mass = np.ones(flat.size) if importance is None else np.asarray(importance, np.float64).reshape(-1)
    distinct, mass = _distinct(flat, mass)
    if len(distinct) <= entries and not keep_zero:
        return distinct
    free = entries
    if keep_zero:
        rest = distinct != 0
        distinct, mass, free = distinct[rest], mass[rest], entries - 1
        if not free or not distinct.size:
            return np.zeros(1)
    if len(distinct) <= free:
        centers = distinct
    else:
        points, weights = _cells(distinct, mass, cells)
        centers = points if len(points) <= free else optimal_runs(points, weights, free)
        centers = _lloyd(distinct, mass, centers, keep_zero=keep_zero)
    return np.unique(np.append(centers, 0.0) if keep_zero else centers)


def nearest(values: Array, ascending: Array) -> Array:
    """Index of the nearest of at most 256 ascending numbers, for each value; uint8."""
    middles = (ascending[:-1].astype(np.float64) + ascending[1:]) / 2
    found: Array = np.searchsorted(middles, values).astype(np.uint8)
    return found


def optimal_runs(points: Array, weights: Array, clusters: int) -> Array:
    """Means of the best partition of ascending points into at most `clusters` runs.

    Args:
        points: float64 `(n,)`, ascending.
        weights: float64 `(n,)`, positive.
        clusters: how many runs, at least 1.
    """
    n = len(points)
    # Around their mean, so that sums of squares do not cancel.
    middle = float(np.average(points, weights=weights))
    x = points - middle
    w, s, q = (np.concatenate([[0.0], np.cumsum(t)]) for t in (weights, weights * x, weights * x * x))

    def cost(i: Array, j: Array) -> Array:
        spread: Array = q[j] - q[i] - np.square(s[j] - s[i]) / (w[j] - w[i])
        return np.maximum(spread, 0.0)

    levels = _halvings(n)
    ends = np.arange(1, n + 1)
    best = np.concatenate([[0.0], cost(np.zeros(n, np.int64), ends)])
    starts = []
    for _ in range(1, clusters):
        start = np.zeros(n + 2, np.int32)
        start[n + 1] = n - 1
        total = np.zeros(n + 1)
        for j, before, after in levels:
            low, high = start[before], np.minimum(start[after], j - 1)
            count = high - low + 1
            first = np.concatenate([[0], np.cumsum(count)[:-1]])
            i = np.arange(int(count.sum())) - np.repeat(first - low, count)
            tried = best[i] + cost(i, np.repeat(j, count))
            total[j] = np.minimum.reduceat(tried, first)
            hits = np.flatnonzero(tried == np.repeat(total[j], count))
            # The first hit of each j: later ones are overwritten.
            owner = np.repeat(np.arange(len(j)), count)[hits]
            start[j[owner[::-1]]] = i[hits[::-1]]
        starts.append(start)
        best = total
    cuts = [n]
    for start in reversed(starts):
        cuts.append(int(start[cuts[-1]]))
    edges = np.unique([0, *cuts])
    means: Array = np.diff(s[edges]) / np.diff(w[edges]) + middle
    return means


def _halvings(n: int) -> list[tuple[Array, Array, Array]]:
    """1..n in the order of bisection: numbers whose neighbours on either side came before, and these."""
    step = 1 << max(0, n.bit_length() - 1)
    levels = []
    while step:
        j = np.arange(step, n + 1, 2 * step)
        levels.append((j, j - step, np.minimum(j + step, n + 1)))
        step >>= 1
    return levels


def _distinct(flat: Array, mass: Array) -> tuple[Array, Array]:
    """Distinct values, ascending, and the weight of each; weights of 0 count a little."""
    floor = mass.mean() * 1e-6 if mass.size and mass.any() else 1.0
    distinct, index = np.unique(flat, return_inverse=True)
    return distinct, np.bincount(index.reshape(-1), np.maximum(mass, floor), len(distinct))


def _cells(distinct: Array, mass: Array, cells: int) -> tuple[Array, Array]:
    """Runs of neighbouring values as weighted points at their means."""
    if len(distinct) <= cells:
        return distinct, mass
    # Half of the cells bound the width, half of them the weight. What is heavier than a cell stands alone.
    half = cells // 2
    total = np.concatenate([[0.0], np.cumsum(mass)])
    wide = np.linspace(distinct[0], distinct[-1], half + 1)[1:-1]
    even = np.searchsorted(total, np.linspace(0.0, total[-1], half + 1)[1:-1])
    heavy = np.flatnonzero(mass > total[-1] / half)
    edges = np.concatenate([[0, len(distinct)], np.searchsorted(distinct, wide), even, heavy, heavy + 1])
    edges = np.unique(np.clip(edges, 0, len(distinct)))
    weights = np.add.reduceat(mass, edges[:-1])
    return np.add.reduceat(mass * distinct, edges[:-1]) / weights, weights


def _lloyd(distinct: Array, mass: Array, centers: Array, *, keep_zero: bool) -> Array:
    """Centers moved to the means of what is nearest to them, until none moves; with `keep_zero`, beside 0."""
    total = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * distinct)])
    if keep_zero:
        centers = np.unique(np.append(centers, 0.0))
    for _ in range(_ROUNDS):
        borders = np.searchsorted(distinct, (centers[:-1] + centers[1:]) / 2, side="right")
        edges = np.concatenate([[0], borders, [len(distinct)]])
        weight = np.diff(total[edges])
        mean = np.divide(np.diff(moment[edges]), weight, out=centers.copy(), where=weight > 0)
        if keep_zero:
            mean[centers == 0] = 0.0
        if np.array_equal(mean, centers):
            break
        centers = np.sort(mean)
    return centers
