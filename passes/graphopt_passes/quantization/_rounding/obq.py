"""OBQ: the weight whose rounding costs least is rounded first, and all others make up for it.

E. Frantar, S. P. Singh, D. Alistarh: "Optimal Brain Compression: A Framework for Accurate Post-Training
Quantization and Pruning", arXiv:2208.11580, 2022. Exact and greedy: each row has an order of its own, and so
an inverse Hessian of its own, which makes it a method for small layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem

# Elements of the inverse Hessians that are held at a time: 128 MiB.
_HELD = 1 << 24
#: Multiplications that a layer may cost.
LIMIT = 4 << 30


def obq_cost(groups: int, rows: int, columns: int) -> int:
    """Multiplications that `obq` needs for a layer; it is meant for those within `LIMIT`."""
    return groups * rows * columns**3


def obq(problem: Problem) -> Floats:
    """Codes, (G, N, K), by OBQ. Never worse than rounding to nearest in any row."""
    codes = np.empty_like(problem.target)
    columns = codes.shape[2]
    count = max(1, _HELD // columns**2)
    for group, hessian in enumerate(problem.hessian):
        inverse = np.linalg.inv(hessian)
        inverse = (inverse + inverse.T) / 2
        for start in range(0, codes.shape[1], count):
            rows = slice(start, start + count)
            lattice = _rows(problem.lattice, group, rows, problem.target.shape)
            codes[group, rows] = _greedy(inverse, problem.target[group, rows], lattice)
    return problem.better(problem.lattice.nearest(problem.target), codes)


def _rows(lattice: Lattice, group: int, rows: slice, shape: tuple[int, ...]) -> Lattice:
    scale = np.broadcast_to(lattice.scale, shape)[group, rows]
    zero = np.broadcast_to(lattice.zero, shape)[group, rows]
    pinned = None if lattice.pinned is None else lattice.pinned[group, rows]
    return Lattice(scale, zero, lattice.low, lattice.high, pinned)


def _greedy(inverse: Floats, target: Floats, lattice: Lattice) -> Floats:
    """OBQ of rows (n, K) that share the inverse Hessian (K, K) at the start."""
    weights = target.copy()
    codes = np.zeros_like(weights)
    count, columns = weights.shape
    inverses = np.repeat(inverse[None], count, axis=0)
    done = np.zeros(weights.shape, dtype=bool)
    row = np.arange(count)
    for _ in range(columns):
        pick = _cheapest(weights, lattice, np.diagonal(inverses, axis1=1, axis2=2), done)
        pinned = None if lattice.pinned is None else lattice.pinned[row, pick]
        part = Lattice(lattice.scale[row, pick], lattice.zero[row, pick], lattice.low, lattice.high, pinned)
        value = weights[row, pick]
        code = part.nearest(value)
        codes[row, pick] = code
        line = inverses[row, pick]  # symmetric: its column as well
        pivot = np.maximum(line[row, pick], 1e-300)
        weights -= ((value - part.values(code)) / pivot)[:, None] * line
        inverses -= (line / pivot[:, None])[:, :, None] * line[:, None, :]
        # The eliminated row and column are zero but for rounding errors, which must not grow.
        inverses[row, pick, :] = 0.0
        inverses[row, :, pick] = 0.0
        done[row, pick] = True
    return codes


def _cheapest(weights: Floats, lattice: Lattice, diagonal: Floats, done: NDArray[Any]) -> NDArray[Any]:
    """For each row the weight to round next, (n,).

    The one that raises the objective least; but weights that have been pushed out of the grid's range go
    first, before they are pushed further (section 5 of the paper).
    """
    error = np.abs(weights - lattice.values(lattice.nearest(weights)))
    cost = np.divide(error**2, diagonal, out=np.full_like(error, np.inf), where=(diagonal > 0) & ~done)
    outside = (error > 0.5 * lattice.scale * (1 + 1e-9)) & ~done
    cost = np.where(outside, -error, cost)
    cost[done] = np.inf
    # Columns without a usable pivot come last, in order.
    cost = np.where(np.isinf(cost) & ~done, np.finfo(np.float64).max, cost)
    picks: NDArray[Any] = np.argmin(cost, axis=1)
    return picks
