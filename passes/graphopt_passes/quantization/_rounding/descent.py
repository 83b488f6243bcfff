"""Coordinate descent over codes and scales: every step is the exact minimum along one coordinate.

The objective is a convex quadratic, so along one weight the best code is the one nearest to the parabola's
minimum. As in "QuantEase: Optimization-based Quantization for Language Models" (K. Behdin et al.,
arXiv:2309.01885, 2023), started from a solution instead of from the float weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem

BLOCK = 64
# A code moves only if that lowers the objective by more than rounding errors may suggest: the parabola's
# minimum is nearer to the new code by this part of a step.
_MARGIN = 1e-6
# Part of the codes that a sweep has to change for another one to be worth its time.
_FEW = 2e-4


def descend(problem: Problem, codes: Floats, sweeps: int, *, block: int = BLOCK) -> Floats:
    """Improve `codes` one column at a time until next to none changes.

    Args:
        problem: what to minimize.
        codes: a solution, (G, N, K); not changed.
        sweeps: how often to go over all columns at most.
        block: columns whose changes reach the gradient of the rest in one matrix product.

    Returns:
        Codes whose objective is no higher in any row.
    """
    hessian, lattice = problem.hessian, problem.lattice
    codes = codes.copy()
    diagonal = problem.diagonal
    columns = codes.shape[2]
    gradient = (lattice.values(codes) - problem.target) @ hessian
    for _ in range(sweeps):
        moved = 0
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            inner = gradient[..., start:stop]  # a view: steps below keep it up to date
            steps = np.zeros((*codes.shape[:2], stop - start))
            for k in range(start, stop):
                at = slice(k, k + 1)
                part = lattice.columns(at)
                old = codes[..., at]
                wanted = -inner[..., k - start : k - start + 1] / (diagonal[:, None, k, None] * part.scale)
                new = np.clip(np.rint(old + wanted), part.low, part.high)
                new = part.pin(np.where(np.abs(wanted) > 0.5 + _MARGIN, new, old))
                step = (new - old) * part.scale
                if not step.any():
                    continue
                codes[..., at] = new
                steps[..., k - start : k - start + 1] = step
                inner += step * hessian[:, None, k, start:stop]
            if steps.any():
                moved += int(np.count_nonzero(steps))
                gradient[..., :start] += steps @ hessian[:, start:stop, :start]
                gradient[..., stop:] += steps @ hessian[:, start:stop, stop:]
        if moved <= _FEW * codes.size:
            break
    return codes


def fit_scales(problem: Problem, codes: Floats, groups: NDArray[Any], *, sweeps: int = 3) -> Lattice:
    """The scales that suit `codes` best: least squares per scale, cyclically where a row has several.

    Args:
        problem: what to minimize.
        codes: (G, N, K).
        groups: (K,): which columns of a row share a scale, as ranks from 0.
        sweeps: how often to go over all groups of columns.

    Returns:
        The lattice with new scales (float32 values, positive) of shape (G, N, K) or, if there is but one
        group, (G, N, 1). No row gets a higher objective.
    """
    lattice = problem.lattice
    units = codes - lattice.zero
    count = int(groups.max()) + 1
    scale = np.broadcast_to(lattice.scale, codes.shape).copy()
    gradient = (units * scale - problem.target) @ problem.hessian
    members = [np.flatnonzero(groups == g) for g in range(count)]
    for _ in range(1 if count == 1 else sweeps):
        for columns in members:
            part = units[..., columns]
            reach = part @ problem.hessian[:, columns, :]
            curve = np.einsum("gnk,gnk->gn", reach[..., columns], part)
            slope = np.einsum("gnk,gnk->gn", gradient[..., columns], part)
            old = scale[..., columns[0]]
            step = np.divide(-slope, curve, out=np.zeros_like(slope), where=curve > 0)
            new = (old + step).astype(np.float32).astype(np.float64)
            # Half or twice the scale is no fit but a sign that the row has next to no codes.
            new = np.where((new > 0.5 * old) & (new < 2.0 * old), new, old)
            scale[..., columns] = new[..., None]
            gradient += (new - old)[..., None] * reach
    zero = lattice.zero if count == 1 else np.broadcast_to(lattice.zero, codes.shape)
    fitted = replace(lattice, scale=scale[..., :1] if count == 1 else scale, zero=zero)
    worse = replace(problem, lattice=fitted).losses(codes) > problem.losses(codes)
    kept = np.where(worse[..., None], lattice.scale, fitted.scale)
    return replace(fitted, scale=kept)
