"""What statistics share: values as rows of float32, one row per channel, and sums without rounding."""

from __future__ import annotations

from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Bool: TypeAlias = NDArray[np.bool_]
Int64: TypeAlias = NDArray[np.int64]

#: Elements that are worked on at once: what is computed from them stays in the processor's cache.
BLOCK: Final = 1 << 15

_STEP: Final = 32  # bits between the grids of an ExactSum
_LOWEST: Final = -10 * _STEP  # products of float32 values are multiples of 2**-298


def rows_of(value: Array, axis: int | None) -> Float32:
    """Values by channel.

    Args:
        value: any shape and numeric dtype; what float32 cannot hold becomes the nearest float32.
        axis: the channels' axis, negative ones count from the end; None for one channel.

    Returns:
        shape (channels, values per channel).

    Raises:
        ValueError: the value has no such axis.
        TypeError: it holds no numbers.
    """
    value = np.asarray(value)
    if value.dtype.kind in "OSUTMmc":
        raise TypeError(f"statistics are taken of real numbers, not of {value.dtype}")
    if axis is None:
        value = value.reshape(1, -1)
    else:
        if not -value.ndim <= axis < value.ndim:
            raise ValueError(f"a value of shape {value.shape} has no axis {axis}")
        value = np.moveaxis(value, axis, 0)
        value = value.reshape(value.shape[0], value.size // max(value.shape[0], 1))
    if value.dtype == np.float32:
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(np.float32)


def extremes(rows: Float32) -> tuple[Float32, Float32, Bool | None]:
    """Smallest and largest finite value of each row, and which values are finite (None: all of them).

    A row without any has (inf, -inf). Rows must have elements.
    """
    zero = np.float32(0)  # added to -0.0, which min and max keep or not as they please, it makes 0.0
    low, high = rows.min(axis=1) + zero, rows.max(axis=1) + zero  # NaN wins in both
    if np.isfinite(low).all() and np.isfinite(high).all():
        return low, high, None
    finite = np.isfinite(rows)
    low = np.where(finite, rows, np.float32(np.inf)).min(axis=1) + zero
    high = np.where(finite, rows, np.float32(-np.inf)).max(axis=1) + zero
    return low, high, finite


class ExactSum:
    """Sums of float64 values, one per channel, without any rounding: the order of terms does not matter.

    Every term is split into multiples of 2**(32 k) of at most 2**32 such units each, so that adding up
    2**20 of them is exact in float64 (Demmel and Nguyen, "Fast reproducible floating-point summation",
    2013, with grids that are fixed rather than chosen by the data). Totals are Python integers.
    """

    def __init__(self) -> None:
        self._units: list[int] = []  # in units of 2**_LOWEST

    def add(self, terms: Float64) -> None:
        """Take in terms of shape (channels, n), finite; multiples of 2**-298 of less than 2**321."""
        if not self._units:
            self._units = [0] * terms.shape[0]
        width = max(1, BLOCK // max(terms.shape[0], 1))
        for start in range(0, terms.shape[1], width):
            self._add(terms[:, start : start + width])

    def _add(self, rest: Float64) -> None:
        while largest := float(np.abs(rest).max(initial=0.0)):
            grid = (int(np.frexp(largest)[1]) - 1) // _STEP * _STEP
            # Adding and subtracting 1.5 * 2**52 units rounds to a whole number of units.
            anchor = np.ldexp(1.5, 52 + grid)
            part = rest + anchor
            part -= anchor
            rest = rest - part
            sums = np.ldexp(part.sum(axis=1), -grid)
            shift = grid - _LOWEST
            for channel in np.flatnonzero(sums):
                self._units[channel] += int(sums[channel]) << shift

    def merge(self, other: Self) -> None:
        """Add the totals of another sum over the same channels."""
        if not self._units:
            self._units = list(other._units)
        elif other._units:
            self._units = [a + b for a, b in zip(self._units, other._units, strict=True)]

    def minus(self, other: ExactSum) -> Float64:
        """This total minus another, each correctly rounded once."""
        pairs = zip(self._units, other._units, strict=True)
        return np.array([(a - b) / (1 << -_LOWEST) for a, b in pairs], np.float64)

    @property
    def totals(self) -> Float64:
        """The sums, shape (channels,), correctly rounded."""
        return np.array([units / (1 << -_LOWEST) for units in self._units], np.float64)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return 64 * len(self._units)
