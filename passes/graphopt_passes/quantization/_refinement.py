"""Refining one layer, from its moments to new codes, scales and bias; and which layers at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from graphopt.passkit import Array, RefusedRewrite
from graphopt.quantkit import Grid
from graphopt_passes.linear.error import OutputError
from graphopt_passes.linear.least_squares import damped
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.quantization._layers import Layer
from graphopt_passes.quantization._rounding import (
    Floats,
    Lattice,
    Method,
    Problem,
    gptq,
    solve,
)

Match = Literal["teacher", "weights"]

# Weights from which on it can be told whether they are scaled, or only rounded.
_TELLING: Final = 8
# GPTQ's own, for data that cannot be halved.
GPTQ_DAMPING: Final = 0.01
# What is tried where no damping is given: towards the teacher's outputs, and towards the float weights'.
_TOWARD_OUTPUTS: Final = (1.0, 0.1, 0.01, 1e-3, 1e-4)
_TOWARD_WEIGHTS: Final = (0.1, 0.01, 1e-3)
# Rows per input of an output below which the teacher's outputs are no target: there is too much freedom in
# making up for errors, and the layers behind then learn from inputs that are better than they will ever be.
_ROWS_PER_INPUT: Final = 8
# Inputs of an output from which on a trial is dear, and dampings are chosen without rounding.
_DEAR: Final = 512
# Outputs of a layer on which dampings are compared.
_JUDGED_ROWS: Final = 64
# Relative decrease of the error below which a layer stays as it is.
_WORTH: Final = 2e-3


@dataclass(frozen=True, eq=False)
class Refined:
    """What a layer becomes.

    Attributes:
        codes: integers as they are stored.
        grid: new scales; None for the old ones.
        shift: what is added to the bias, (G * N,); None for nothing.
        before, after: squared error over the data.
        why: the change in words.
    """

    codes: Array
    grid: Grid | None
    shift: Floats | None
    before: float
    after: float
    why: str


def refine(
    layer: Layer,
    moments: LayerMoments,
    codes: Array,
    wanted: Array,
    *,
    method: Method = "gptq",
    damping: float | None = None,
    sweeps: int = 20,
    scales: bool = False,
    shift: bool = False,
) -> Refined:
    """New codes for a layer, which have a lower error on the data.

    Args:
        layer: the layer.
        moments: of its inputs; the target is the teacher's output if they have it, else that of `wanted`.
        codes: the stored integers now.
        wanted: the float weights.
        method, damping, sweeps: see `RefineWeights`.
        scales: choose scales as well, if rows do not share them.
        shift: the mean error is made up for by the bias, so the weights need not care about it.

    Raises:
        RefusedRewrite: nothing that was tried is better, or the data cannot say.
    """
    total = moments.total
    if not total.count:
        raise RefusedRewrite("the data has no finite inputs for it")
    if not moments.is_finite:
        raise RefusedRewrite("its inputs or outputs are too large to be squared in float32")
    integers = codes.astype(np.int32)
    lattice = layer.lattice(integers)
    old = layer.to_rows(integers).astype(np.float64)
    now = lattice.values(old)
    floats = layer.to_rows(wanted).astype(np.float64)
    if (floats == 0).any():
        lattice = replace(lattice, pinned=(floats == 0) & (now == 0))
    _check_same_layer(now, floats)
    if damping is None:
        damping, toward = _cross_validated(moments, lattice, now, floats, shift)
    else:
        toward = True
    error = OutputError(total, now, floats, shift)
    problem = problem_of(error, lattice, damping, toward)
    groups = layer.scale_groups() if scales else None
    solution = solve(problem, method, sweeps=sweeps, groups=groups)
    fresh = solution.lattice.values(solution.codes)
    before, after = error.of(now), error.of(fresh)
    if not after < before * (1 - _WORTH):
        raise RefusedRewrite(f"{solution.method} does not lower its error on the data")
    dtype = layer.quantized.grid.type.dtype
    grid = None if solution.lattice is lattice else layer.with_scales(solution.lattice)
    return Refined(
        layer.from_rows(solution.codes).astype(np.int32).astype(dtype),
        grid,
        error.shift(fresh).reshape(-1) if shift else None,
        before,
        after,
        f"weights rounded by {solution.method}: SQNR of the output {error.sqnr(before):.1f} -> "
        f"{error.sqnr(after):.1f} dB",
    )


def _cross_validated(
    moments: LayerMoments, lattice: Lattice, now: Floats, floats: Floats, shift: bool
) -> tuple[float, bool]:
    """How to fit the layer so that what is learned from one half of the data suits the other half best.

    Few samples can be matched well by weights that are worse on all others: a layer with 1,500 inputs has
    that many ways to make up for the noise of a few thousand rows.

    Returns:
        The damping, and whether to come close to the teacher's outputs rather than to the float weights'.

    Raises:
        RefusedRewrite: all that was tried is worse on data that it was not fitted to.
    """
    rows = slice(None, None, -(-now.shape[1] // _JUDGED_ROWS))
    now, floats = now[:, rows], floats[:, rows]
    pinned = None if lattice.pinned is None else lattice.pinned[:, rows]
    lattice = replace(lattice, scale=lattice.scale[:, rows], zero=lattice.zero[:, rows], pinned=pinned)
    halves = [OutputError(half.of_rows(rows), now, floats, shift) for half in moments.halves if half.count]
    if len(halves) < 2:
        return GPTQ_DAMPING, False
    folds = (halves, halves[::-1])
    dear = now.shape[2] > _DEAR
    tried = [(GPTQ_DAMPING, False)] if dear else [(d, False) for d in _TOWARD_WEIGHTS]
    if halves[0].sees_outputs and moments.total.count >= _ROWS_PER_INPUT * now.shape[2]:
        outputs = [(d, True) for d in _TOWARD_OUTPUTS]
        if dear:
            unrounded = [sum(b.of(a.ideal(d)) for a, b in folds) for d, _ in outputs]
            outputs = [outputs[int(np.argmin(unrounded))]]
        tried += outputs
    errors = [
        sum(judged.of(lattice.values(gptq(problem_of(learned, lattice, *how)))) for learned, judged in folds)
        for how in tried
    ]
    best, present = int(np.argmin(errors)), sum(half.of(now) for half in halves)
    if errors[best] >= present > 0:
        raise RefusedRewrite("other weights suit the data that they are fitted to, and no other data")
    return tried[best]


def problem_of(error: OutputError, lattice: Lattice, damping: float, toward_outputs: bool) -> Problem:
    """What rounding has to minimize; weights about which the data says little are drawn to the float ones."""
    toward = error.sees_outputs and toward_outputs
    return Problem(damped(error.xx, damping), error.ideal(damping) if toward else error.wanted, lattice)


def _check_same_layer(now: Floats, floats: Floats) -> None:
    """Refuse a layer whose channels were scaled since: its outputs are not meant to be the teacher's."""
    for axis in (1, 2):
        if now.shape[axis] < _TELLING:
            continue
        product = (now * floats).sum(axis=axis)
        power = (floats**2).sum(axis=axis)
        similar = product**2 > 0.95 * power * (now**2).sum(axis=axis)
        ratio = np.divide(product, power, out=np.ones_like(power), where=power > 0)
        if bool((similar & (power > 0) & ((ratio < 0.6) | (ratio > 1.67)) & (product > 0)).any()):
            raise RefusedRewrite("its weights are scaled against those of the float model")
