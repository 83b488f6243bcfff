"""Fitting one layer to the teacher's outputs, checked on data that it was not fitted to.

Given the student's own inputs X, the layer's outputs are X W^T + b, and its error the quadratic
|Y - X W^T - b|^2 of its weights, where Y are the teacher's outputs. With ridge regression the weights are
drawn towards what they are by d |W - W_now|^2, and with a mask only those that are not zero change. Without
b, which takes the mean error, the minimum for each row w with support S is

    (X^T X + d I)_SS w_S = (X^T Y + d w_now)_S,

the normal equations, in which X^T X and X^T Y are sums over the data. Of the data one half chooses w for
several d, and the other says which d is best, if any is better than the weights as they are; and the other
way around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from graphopt.passkit import RefusedRewrite
from graphopt_passes.linear.channels import ChannelLines
from graphopt_passes.linear.error import OutputError
from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.least_squares import Mask
from graphopt_passes.linear.moments import LayerMoments

# What is tried where no damping is given, relative to the mean of the inputs' second moments.
_DAMPINGS: Final = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
# Inputs of an output from which on trying is dear.
_DEAR: Final = 1024
_FEW_DAMPINGS: Final = (0.1, 0.01, 1e-3)
#: Relative decrease of the error below which a layer stays as it is.
WORTH: Final = 1e-3
_NO_BETTER: Final = "nothing comes closer to the teacher's outputs on data that it was not fitted to"


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a layer becomes.

    Attributes:
        weights: (G, N, K); None where they stay.
        shift: what is added to the bias, (G, N); None where there is none, or it stays.
        before, after: squared error over the data.
        why: the change in words.
    """

    weights: Floats | None
    shift: Floats | None
    before: float
    after: float
    why: str


def fit_layer(
    moments: LayerMoments,
    now: Floats,
    support: Mask | None,
    *,
    shifts: bool,
    damping: float | None = None,
    fixed: bool = False,
) -> Fitted:
    """The weights and bias of a layer with a lower error, on the data and across its halves.

    Args:
        moments: of its inputs, its outputs and the teacher's.
        now: the weights, (G, N, K).
        support: which of them may change; None: all.
        shifts: there is a bias, or a place for one, that takes the mean error.
        damping: of the ridge regression; None: chosen by cross-validation.
        fixed: only the bias may change.

    Raises:
        RefusedRewrite: nothing is better, or the data cannot say.
    """
    total = moments.total
    if not total.count:
        raise RefusedRewrite("the data has no finite inputs for it")
    if not moments.is_finite:
        raise RefusedRewrite("its inputs or outputs are too large to be squared in float32")
    plain = OutputError(total, now, now, centered=False)
    error = OutputError(total, now, now, centered=shifts)
    before = plain.of(now)
    chosen = None if fixed else _cross_validated(moments, now, support, shifts, damping)
    weights = now if chosen is None else error.ideal(chosen, support)
    after = error.of(weights)
    if chosen is not None and not after < error.of(now) * (1 - WORTH):
        chosen, weights, after = None, now, error.of(now)
    if not after < before * (1 - WORTH):
        raise RefusedRewrite(
            "nothing comes closer to the teacher's outputs on data that it was not fitted to"
        )
    what = "bias" if chosen is None else "weights and bias" if shifts else "weights"
    return Fitted(
        None if chosen is None else weights,
        error.shift(weights) if shifts else None,
        before,
        after,
        f"{what} {fitted_words(plain.power, before, after)}",
    )


def fitted_words(power: float, before: float, after: float) -> str:
    """What fitting gained: squared errors of the output before and after, relative to its power."""
    tiny = np.finfo(np.float64).tiny
    ratios = [
        10 * np.log10(max(power, tiny) / max(error, power * 1e-14, tiny * 1e30)) for error in (before, after)
    ]
    return f"fitted to the teacher's outputs: SQNR {ratios[0]:.1f} -> {ratios[1]:.1f} dB"


def _cross_validated(
    moments: LayerMoments, now: Floats, support: Mask | None, shifts: bool, damping: float | None
) -> float | None:
    """The damping with which what one half of the data says suits the other best; None if staying does."""
    halves = [OutputError(half, now, now, centered=shifts) for half in moments.halves if half.count]
    if len(halves) < 2:
        return None
    tried: tuple[float, ...] = _DAMPINGS if damping is None else (damping,)
    if damping is None and now.shape[2] > _DEAR:
        tried = _FEW_DAMPINGS
    folds = (halves, halves[::-1])
    errors = [sum(judge.of(learn.ideal(d, support)) for learn, judge in folds) for d in tried]
    best, present = int(np.argmin(errors)), sum(half.of(now) for half in halves)
    return tried[best] if errors[best] < present * (1 - WORTH) else None


def fit_lines(lines: ChannelLines, *, shifted: bool) -> tuple[Floats, Floats, float, float]:
    """Slope and shift per channel, 1 and 0 where they are no better on the other half of the data.

    Args:
        lines: of the student's values and the teacher's.
        shifted: whether there may be a shift.

    Returns:
        Slope and shift, and the squared errors before and after.

    Raises:
        RefusedRewrite: nothing is better, or the data cannot say.
    """
    total = lines.total
    halves = [half for half in lines.halves if half.count]
    if len(halves) < 2:
        raise RefusedRewrite("there is too little data")
    one, zero = np.ones_like(total.s), np.zeros_like(total.s)
    with np.errstate(invalid="ignore", over="ignore"):
        present = sum(half.error(one, zero) for half in halves)
        crossed = sum(b.error(*a.line(shifted=shifted)) for a, b in (halves, halves[::-1]))
        slope, shift = total.line(shifted=shifted)
        # A slope far from 1 is no correction but another function.
        better = (crossed < present * (1 - WORTH)) & (slope > 0.2) & (slope < 5.0)
        better &= np.isfinite(slope) & np.isfinite(shift)
    slope, shift = np.where(better, slope, one), np.where(better, shift, zero)
    before, after = float(total.error(one, zero).sum()), float(total.error(slope, shift).sum())
    if not better.any() or not after < before * (1 - WORTH):
        raise RefusedRewrite(
            "nothing comes closer to the teacher's outputs on data that it was not fitted to"
        )
    return slope, shift, before, after
