"""Scales that fit the data: the range is cut, or stretched, where that lowers the error of the output.

A grid search per row over the fraction of the range that is kept, by the squared error of the layer's output
rather than of the weights (Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295,
2021, section 3.1), and after rounding with GPTQ rather than to nearest: what one weight's rounding costs
depends on what the others can make up for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantization._rounding.gptq import Ordered, sweep
from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem

#: Fractions of the scale that are tried.
FRACTIONS: Final = np.linspace(1.1, 0.4, 29)
# Weights that are rounded at a time, and what all fractions may cost: large layers try fewer.
_HELD: Final = 1 << 23
_WORK: Final = 1 << 31


def search_scales(problem: Problem, groups: NDArray[Any]) -> Lattice:
    """For each row the fraction of its scales with which GPTQ gets the lowest error.

    Args:
        problem: what to minimize, with the scales to start from.
        groups: (K,): which columns of a row share a scale, as ranks from 0. Where there are several, each
            block first gets the fraction that suits rounding to nearest.

    Returns:
        The lattice with scales of shape (G, N, K) or, if there is but one group, (G, N, 1). The fraction 1 is
        among those tried.
    """
    count = int(groups.max()) + 1
    lattice = problem.lattice
    width = 1 if count == 1 else problem.target.shape[2]
    shape = (*problem.target.shape[:2], width)
    scale = np.broadcast_to(lattice.scale[..., :width], shape)
    zero = np.broadcast_to(lattice.zero[..., :width], shape)
    lattice = replace(lattice, scale=scale, zero=zero)
    ordered = Ordered.of(problem)
    best, least = _by_gptq(ordered, problem.target, lattice)
    if count > 1:
        blocks, losses = _by_gptq(ordered, problem.target, _by_block(problem, lattice, groups, count))
        best = replace(best, scale=np.where((losses < least)[..., None], blocks.scale, best.scale))
    return best


def _by_gptq(ordered: Ordered, target: Floats, lattice: Lattice) -> tuple[Lattice, Floats]:
    """The best fraction of all scales of a row, and the rows' errors: several are tried in one go."""
    groups, rows, columns = target.shape
    tried = _affordable(groups * rows * columns * columns)
    best = np.full((groups, rows), np.inf)
    kept = lattice.scale.copy()
    pinned = lattice.pinned
    size = max(1, _HELD // max(1, groups * rows * columns))
    for start in range(0, len(tried), size):
        part = tried[start : start + size]
        scales = [_storable(lattice.scale * f) for f in part]
        stacked = replace(
            lattice,
            scale=np.concatenate(scales, axis=1),
            zero=np.concatenate([lattice.zero] * len(part), axis=1),
            pinned=None if pinned is None else np.concatenate([pinned] * len(part), axis=1),
        )
        _, found = sweep(ordered, np.concatenate([target] * len(part), axis=1), stacked)
        for losses, scale in zip(np.split(found, len(part), axis=1), scales, strict=True):
            wins = losses < best
            best = np.where(wins, losses, best)
            kept = np.where(wins[..., None], scale, kept)
    return replace(lattice, scale=kept), best


def _affordable(work: int) -> Floats:
    """Some of the fractions, 1 first so that ties keep the scale."""
    count = int(np.clip(_WORK // max(work, 1), 5, len(FRACTIONS)))
    chosen = FRACTIONS[:: -(-len(FRACTIONS) // count)]
    return np.concatenate([[1.0], chosen[np.abs(chosen - 1.0) > 1e-9]])


def _by_block(problem: Problem, lattice: Lattice, groups: NDArray[Any], count: int) -> Lattice:
    """The lattice in which each block of columns has the fraction with the lowest error of its own."""
    scale = lattice.scale.copy()
    for group in range(count):
        columns = np.flatnonzero(groups == group)
        hessian, target = problem.hessian[:, columns[:, None], columns], problem.target[..., columns]
        zero = lattice.zero[..., columns]
        pinned = None if lattice.pinned is None else lattice.pinned[..., columns]
        best = np.full(target.shape[:2], np.inf)
        kept = lattice.scale[..., columns]
        for fraction in _affordable(0):
            trial = replace(
                lattice, scale=_storable(lattice.scale[..., columns] * fraction), zero=zero, pinned=pinned
            )
            part = Problem(hessian, target, trial)
            losses = part.losses(trial.nearest(target))
            wins = losses < best
            best = np.where(wins, losses, best)
            kept = np.where(wins[..., None], trial.scale, kept)
        scale[..., columns] = kept
    return replace(lattice, scale=scale)


def _storable(scale: Floats) -> Floats:
    """Scales as they are stored, in float32."""
    return scale.astype(np.float32).astype(np.float64)
