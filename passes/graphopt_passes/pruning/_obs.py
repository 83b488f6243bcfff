"""Pruning by second order: what removing a weight costs once all others have made up for it.

The squared error of a layer's outputs is a quadratic of its weights with the Hessian H = X^T X. Removing
weight k of a row, and moving the others of that row to where they make up best, costs w_k^2 / [H^-1]_kk: the
optimal brain surgeon (B. Hassibi and D. G. Stork, NeurIPS 1992), applied to layers and exactly by

    E. Frantar, S. P. Singh, D. Alistarh: "Optimal Brain Compression: A Framework for Accurate Post-Training
    Quantization and Pruning", arXiv:2208.11580, 2022,

where weights go one after another. For layers too large for that, columns are visited once, and within a
block of columns those weights go that cost least:

    E. Frantar, D. Alistarh: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arXiv:2301.00774, 2023.

Both only choose what goes here; where the others have to be then is a least-squares problem.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.least_squares import Mask
from graphopt_passes.pruning._structure import Structure, least, removed

#: Multiplications up to which the exact method is used.
LIMIT: Final = 3 << 30
# Elements of the inverse Hessians that are held at a time: 128 MiB.
_HELD: Final = 1 << 24
# Columns in which SparseGPT chooses at a time.
_BLOCK: Final = 128
# The exact method drops what is eliminated from its matrices when so much of them is.
_SHRINK: Final = 0.25


def choose(hessian: Floats, weights: Floats, sparsity: float, structure: Structure) -> Mask:
    """Which weights go, (G, N, K): weights that are zero already go first.

    Args:
        hessian: (G, K, K), positive definite.
        weights: (G, N, K), columns in the order of `channels_last`.
        sparsity: share that goes.
        structure: what goes together.
    """
    groups, rows, columns = weights.shape
    mask = np.zeros(weights.shape, bool)
    exact = structure.block == (1, 1) and groups * rows * columns**3 <= LIMIT
    if exact and not structure.of:
        # All groups compete for the same share, as the rows of one group do.
        traces = [
            _eliminate_all(np.linalg.inv(h), w, Structure()) for h, w in zip(hessian, weights, strict=True)
        ]
        costs = np.stack([cost for _, cost in traces])
        gone = least(costs, round(sparsity * weights.size))
        for g, (order, _) in enumerate(traces):
            np.put_along_axis(mask[g], order, gone[g], axis=1)
        return mask
    for g, (h, w) in enumerate(zip(hessian, weights, strict=True)):
        if exact:
            order, _ = _eliminate_all(np.linalg.inv(h), w, structure)
            np.put_along_axis(mask[g], order, True, axis=1)
        else:
            mask[g] = _sparse_gpt(h, w, sparsity, structure)
    return mask


def _eliminate_all(inverse: Floats, weights: Floats, structure: Structure) -> tuple[NDArray[Any], Floats]:
    """The order in which the weights of each row go, and what each costs, never less than those before it."""
    count = max(1, _HELD // weights.shape[1] ** 2)
    parts = [
        _eliminate(inverse, weights[start : start + count], structure)
        for start in range(0, len(weights), count)
    ]
    order = np.concatenate([part[0] for part in parts])
    costs = np.concatenate([part[1] for part in parts])
    # What costs less than something before it goes only together with that.
    return order, np.maximum.accumulate(costs, axis=1)


def _eliminate(inverse: Floats, weights: Floats, structure: Structure) -> tuple[NDArray[Any], Floats]:
    """Remove the cheapest weight of each row until no more may go."""
    rows, columns = weights.shape
    steps = columns
    if structure.of:
        steps = columns // structure.of * (structure.of - structure.keep)
    inverses = np.repeat(((inverse + inverse.T) / 2)[None], rows, axis=0)
    left = weights.copy()
    where = np.repeat(np.arange(columns)[None], rows, axis=0)  # of what is left, the column it was
    gone = np.zeros((rows, columns), bool)
    quota = np.full((rows, columns // structure.of), structure.of - structure.keep) if structure.of else None
    row = np.arange(rows)
    order, costs = np.zeros((rows, steps), np.int64), np.zeros((rows, steps))
    for step in range(steps):
        diagonal = np.diagonal(inverses, axis1=1, axis2=2)
        cost = np.where(gone | (diagonal <= 0), np.inf, left**2 / np.where(diagonal > 0, diagonal, 1.0))
        # A column without a usable pivot goes last, but may go.
        cost = np.where(~gone & np.isinf(cost), np.finfo(np.float64).max, cost)
        if quota is not None:
            cost = np.where(np.take_along_axis(quota, where // structure.of, 1) > 0, cost, np.inf)
        pick = np.argmin(cost, axis=1)
        order[:, step], costs[:, step] = where[row, pick], cost[row, pick]
        if quota is not None:
            quota[row, where[row, pick] // structure.of] -= 1
        line = inverses[row, pick]
        pivot = np.maximum(line[row, pick], 1e-300)
        left -= (left[row, pick] / pivot)[:, None] * line
        inverses -= (line / pivot[:, None])[:, :, None] * line[:, None, :]
        # The eliminated row and column are zero but for rounding errors, which must not grow.
        inverses[row, pick, :] = 0.0
        inverses[row, :, pick] = 0.0
        left[row, pick] = 0.0
        gone[row, pick] = True
        size = gone.shape[1]
        done = step + 1 - (columns - size)
        if quota is None and done >= _SHRINK * size and size - done > 8:
            stay = np.argsort(gone, axis=1, kind="stable")[:, : size - done]
            inverses = np.take_along_axis(inverses, stay[:, :, None], 1)
            inverses = np.take_along_axis(inverses, stay[:, None, :], 2)
            left, where = np.take_along_axis(left, stay, 1), np.take_along_axis(where, stay, 1)
            gone = np.zeros(left.shape, bool)
    return order, costs


def _sparse_gpt(hessian: Floats, weights: Floats, sparsity: float, structure: Structure) -> Mask:
    """One visit to all columns, (N, K); what is removed is made up for by the columns that follow."""
    factor = inverse_factor(hessian)
    left = weights.copy()
    columns = left.shape[1]
    mask = np.zeros(left.shape, bool)
    # N of M are chosen when a group is reached, everything before it being made up for; others by the block.
    chosen = structure.of or -(-_BLOCK // structure.block[1]) * structure.block[1]
    size = -(-_BLOCK // chosen) * chosen
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        errors = np.zeros((len(left), stop - start))
        for k in range(start, stop):
            if (k - start) % chosen == 0:
                at = slice(k, min(k + chosen, stop))
                costs = (left[:, at] / np.diagonal(factor)[at]) ** 2
                mask[:, at] = removed(costs[None], sparsity, structure)[0]
            error = np.where(mask[:, k], left[:, k], 0.0) / factor[k, k]
            errors[:, k - start] = error
            left[:, k:stop] -= error[:, None] * factor[k, k:stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return mask


def inverse_factor(hessian: Floats) -> Floats:
    """Upper triangular U with U^T U = H^-1, for one (K, K)."""
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))
