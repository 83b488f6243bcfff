"""Weights that come closest to wanted outputs in least squares, with some of them held at zero.

Everything works on stacks: G groups, N rows (outputs) each, K columns (inputs of one output).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.linear.layer import Floats

Mask = NDArray[np.bool_]

# What a column that no input ever moves gets on the diagonal, relative to the mean of the live ones.
_DEAD: Final = 1e-6
# Multiplications up to which rows with zeros of their own are solved one by one, exactly.
_DIRECT: Final = 1 << 36
# Conjugate gradients, for larger layers: steps at most, and the relative residual that is small enough.
_STEPS: Final = 200
_RESIDUAL: Final = 1e-6


def damped(hessian: Floats, damping: float) -> Floats:
    """`hessian` made safe to invert: `damping` times the mean of its diagonal added to the diagonal.

    Args:
        hessian: (G, K, K), positive semidefinite; columns may be zero, and there may be fewer rows of data
            than columns.
        damping: relative; 0.01 in GPTQ. Some is always added.

    Raises:
        ValueError: an element is not finite.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("the inputs of the layer are not finite")
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    live = diagonal > 0
    count = np.maximum(live.sum(axis=1), 1)
    mean = np.where(live.any(axis=1), diagonal.sum(axis=1) / count, 1.0)
    extra = np.where(live, max(damping, 1e-9), max(damping, _DEAD)) * mean[:, None]
    result = hessian.copy()
    at = np.arange(hessian.shape[1])
    result[:, at, at] += extra
    return result


def ideal_weights(
    hessian: Floats, cross: Floats, weights: Floats, damping: float, support: Mask | None = None
) -> Floats:
    """The real weights that come closest to the wanted outputs, drawn towards `weights`.

    Minimizes |X t^T - Y|^2 + d |t - w|^2 with the d that `damped` adds: where the inputs say nothing about a
    direction, the weights stay what they were.

    Args:
        hessian: X^T X, (G, K, K), not damped.
        cross: X^T Y, (G, K, N).
        weights: w, (G, N, K).
        damping: as for `damped`.
        support: (G, N, K): where t may differ from zero; None for everywhere.
    """
    safe = damped(hessian, damping)
    at = np.arange(hessian.shape[1])
    extra = safe[:, at, at] - hessian[:, at, at]
    wanted = np.swapaxes(cross, 1, 2) + extra[:, None, :] * weights
    return solve_supported(safe, wanted, support, weights)


def solve_supported(hessian: Floats, wanted: Floats, support: Mask | None, start: Floats) -> Floats:
    """The t that minimizes 1/2 t H t^T - t b^T for each row, zero outside of its support.

    Rows are solved exactly where that is affordable: those that share a support at once. Of large layers
    with zeros all over, conjugate gradients on the support, preconditioned by the diagonal, begin at `start`
    and are no worse than it at any step.

    Args:
        hessian: H, (G, K, K), positive definite.
        wanted: b, (G, N, K).
        support: (G, N, K); None: everywhere.
        start: (G, N, K), zero outside of the support.
    """
    if support is None or support.all():
        return np.ascontiguousarray(np.swapaxes(np.linalg.solve(hessian, np.swapaxes(wanted, 1, 2)), 1, 2))
    parts = [np.unique(rows, axis=0, return_inverse=True) for rows in support]
    cost = sum(int((kinds.sum(axis=1, dtype=np.int64) ** 3).sum()) for kinds, _ in parts)
    if cost > _DIRECT:
        return _conjugate_gradients(hessian, wanted, support, start)
    result = np.zeros_like(wanted)
    for group, (kinds, kind) in enumerate(parts):
        for number, row_support in enumerate(kinds):
            columns = np.flatnonzero(row_support)
            rows = np.flatnonzero(kind.reshape(-1) == number)
            if len(columns):
                at = np.ix_(rows, columns)
                inner = hessian[group][np.ix_(columns, columns)]
                result[group][at] = np.linalg.solve(inner, wanted[group][at].T).T
    return result


def _conjugate_gradients(hessian: Floats, wanted: Floats, support: Mask, start: Floats) -> Floats:
    scale = np.diagonal(hessian, axis1=1, axis2=2)[:, None, :]
    solution = np.where(support, start, 0.0)
    residual = np.where(support, wanted - solution @ hessian, 0.0)
    stop = _RESIDUAL**2 * np.maximum(_dot(np.where(support, wanted, 0.0), wanted / scale), 1e-300)
    direction = residual / scale
    power = _dot(residual, direction)
    for _ in range(_STEPS):
        live = power > stop
        if not live.any():
            break
        reach = np.where(support, direction @ hessian, 0.0)
        curve = _dot(direction, reach)
        step = np.where(live & (curve > 0), power / np.where(curve > 0, curve, 1.0), 0.0)[..., None]
        solution += step * direction
        residual -= step * reach
        scaled = residual / scale
        after = _dot(residual, scaled)
        ratio = np.where(live, after / np.where(power > 0, power, 1.0), 0.0)[..., None]
        direction = scaled + ratio * direction
        power = after
    return solution


def _dot(a: Floats, b: Floats) -> Floats:
    result: Floats = np.einsum("gnk,gnk->gn", a, b)
    return result


def supports(weights: NDArray[Any]) -> Mask | None:
    """Where pruned weights may differ from zero: where they do now. None where nothing is pruned."""
    support: Mask = weights != 0
    return None if support.all() else support
