"""Statistics of tensors, accumulated batch by batch.

Two halves of the data accumulated apart and merged give the same bits as all of it at once, in any order,
except for MovingMinMax, which depends on the order by definition, and for Gram and CrossGram, which are equal
up to the rounding of float64 sums. What is not finite is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

import numpy as np

from graphopt.calibration.gram import CrossGram, Gram, Unfold, rows_of_last_axis
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.values import Array, ExactSum, Float64, Int64, extremes, rows_of

__all__ = [
    "AbsMax",
    "CrossGram",
    "Gram",
    "Histogram",
    "MeanDifference",
    "MinMax",
    "Moments",
    "MovingMinMax",
    "Unfold",
    "rows_of_last_axis",
]


def _same(a: MinMax | MovingMinMax | Moments | MeanDifference, b: object) -> None:
    if getattr(b, "key", None) != a.key:
        raise ValueError(f"{getattr(b, 'key', b)} does not merge into {a.key}")


def _same_channels(before: int, now: int) -> None:
    if before != now:
        raise ValueError(f"{now} channels where there were {before} before")


class MinMax:
    """Least and largest value, of the tensor or per channel.

    Args:
        axis: the channels' axis; None for the whole tensor.

    Attributes:
        low, high: shape (channels,), float64; inf and -inf where there was no finite value.
        count: finite values, all channels together.
        nonfinite: NaNs and infinities.
    """

    #: The result has the same bits however the data is divided.
    exact = True

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low: Float64 = np.zeros(0)
        self.high: Float64 = np.zeros(0)
        self.count = self.nonfinite = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return (type(self).__name__, self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return 16 * len(self.low)

    def fresh(self) -> Self:
        """An empty one with the same settings."""
        return type(self)(self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch of one or more tensors."""
        for value in values:
            rows = rows_of(value, self.axis)
            if not rows.size:
                continue
            low, high, finite = extremes(rows)
            good = rows.size if finite is None else int(np.count_nonzero(finite))
            self.count += good
            self.nonfinite += rows.size - good
            self._widen(low.astype(np.float64), high.astype(np.float64))

    def merge(self, other: Self) -> None:
        """Take in what another one has seen."""
        _same(self, other)
        self.count += other.count
        self.nonfinite += other.nonfinite
        if len(other.low):
            self._widen(other.low, other.high)

    def _widen(self, low: Float64, high: Float64) -> None:
        if not len(self.low):
            self.low, self.high = low.copy(), high.copy()
            return
        _same_channels(len(self.low), len(low))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)


class AbsMax(MinMax):
    """Largest magnitude, of the tensor or per channel."""

    @property
    def values(self) -> Float64:
        """The largest magnitudes, shape (channels,); 0 where there was no finite value."""
        return np.asarray(np.where(self.low <= self.high, np.maximum(-self.low, self.high), 0.0))


class MovingMinMax:
    """Exponential moving averages of the batches' extremes (Jacob et al., "Quantization and training of
    neural networks for efficient integer-arithmetic-only inference", CVPR 2018, section 3.1).

    Depends on the order of batches and on their size. Merging weights both by their number of batches, which
    is not what one run over all batches gives.

    Args:
        momentum: weight of what was before, in [0, 1).
        axis: the channels' axis; None for the whole tensor.

    Attributes:
        low, high: the averages, shape (channels,).
        count: batches that had finite values.
        nonfinite: NaNs and infinities.
    """

    #: The result has the same bits however the data is divided.
    exact = True

    def __init__(self, momentum: float = 0.9, axis: int | None = None) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum must be in [0, 1), not {momentum}")
        self.momentum, self.axis = momentum, axis
        self.low: Float64 = np.zeros(0)
        self.high: Float64 = np.zeros(0)
        self.count = self.nonfinite = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("MovingMinMax", self.momentum, self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return 16 * len(self.low)

    def fresh(self) -> MovingMinMax:
        """An empty one with the same settings."""
        return MovingMinMax(self.momentum, self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch of one or more tensors."""
        batch = MinMax(self.axis)
        batch.update(*values)
        self.nonfinite += batch.nonfinite
        if batch.count:
            self._mix(batch.low, batch.high, 1 - self.momentum)
            self.count += 1

    def merge(self, other: MovingMinMax) -> None:
        """Average with another one, each weighted by its number of batches."""
        _same(self, other)
        self.nonfinite += other.nonfinite
        if other.count:
            self._mix(other.low, other.high, other.count / (self.count + other.count))
            self.count += other.count

    def _mix(self, low: Float64, high: Float64, weight: float) -> None:
        if not len(self.low):
            self.low, self.high = low.copy(), high.copy()
            return
        _same_channels(len(self.low), len(low))
        for mine, new in ((self.low, low), (self.high, high)):
            known = np.isfinite(new)
            old = np.where(np.isfinite(mine), mine, new)[known]
            mine[known] = old + weight * (new[known] - old)


class Moments:
    """Count, sum and sum of squares per channel, without rounding.

    Args:
        axis: the channels' axis; None for the whole tensor.

    Attributes:
        count: finite values per channel, shape (channels,).
        nonfinite: NaNs and infinities, all channels together.
    """

    #: The result has the same bits however the data is divided.
    exact = True

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.count: Int64 = np.zeros(0, np.int64)
        self.nonfinite = 0
        self._sum, self._squares = ExactSum(), ExactSum()

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Moments", self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self._sum.nbytes + self._squares.nbytes

    @property
    def sum(self) -> Float64:
        """Sums, shape (channels,)."""
        return self._sum.totals

    @property
    def sum_of_squares(self) -> Float64:
        """Sums of squares, shape (channels,)."""
        return self._squares.totals

    @property
    def mean(self) -> Float64:
        """Means, shape (channels,); 0 for a channel without values."""
        return np.asarray(self.sum / np.maximum(self.count, 1))

    @property
    def var(self) -> Float64:
        """Variances (of the values as a population), shape (channels,)."""
        return np.asarray(np.maximum(self.sum_of_squares / np.maximum(self.count, 1) - self.mean**2, 0.0))

    def fresh(self) -> Moments:
        """An empty one with the same settings."""
        return Moments(self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch of one or more tensors."""
        for value in values:
            rows = rows_of(value, self.axis)
            if not len(self.count):
                self.count = np.zeros(len(rows), np.int64)
            _same_channels(len(self.count), len(rows))
            terms, self.nonfinite = _finite(rows, self.count, self.nonfinite)
            self._sum.add(terms)
            self._squares.add(np.square(terms, out=terms))

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        _same(self, other)
        self.nonfinite += other.nonfinite
        if len(other.count):
            if len(self.count):
                _same_channels(len(self.count), len(other.count))
            self.count = self.count + other.count if len(self.count) else other.count.copy()
        self._sum.merge(other._sum)
        self._squares.merge(other._squares)


def _finite(rows: Array, count: Int64, nonfinite: int) -> tuple[Float64, int]:
    """`rows` as float64 with zeros for what is not finite; adds to `count`, returns the new `nonfinite`."""
    good = np.isfinite(rows)
    each = np.count_nonzero(good, axis=1)
    count += each
    missing = rows.size - int(each.sum())
    terms = rows.astype(np.float64)
    if missing:
        terms[~good] = 0.0
    return terms, nonfinite + missing


class MeanDifference:
    """Mean of student minus teacher per channel, without rounding before the last step.

    Updated with one student's value and one teacher's value, of the same shape.

    Args:
        axis: the channels' axis; None for the whole tensor.
    """

    #: The result has the same bits however the data is divided.
    exact = True

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self._student, self._teacher = Moments(axis), Moments(axis)

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("MeanDifference", self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self._student.nbytes + self._teacher.nbytes

    @property
    def count(self) -> Int64:
        """Pairs of values per channel."""
        return self._student.count

    @property
    def mean(self) -> Float64:
        """Mean difference, shape (channels,); 0 for a channel without values."""
        difference = self._student._sum.minus(self._teacher._sum)
        return np.asarray(difference / np.maximum(self.count, 1))

    def fresh(self) -> MeanDifference:
        """An empty one with the same settings."""
        return MeanDifference(self.axis)

    def update(self, *values: Array) -> None:
        """Take in the student's and the teacher's value of one batch."""
        student, teacher = (rows_of(value, self.axis) for value in values)
        if student.shape != teacher.shape:
            raise ValueError(f"student and teacher differ in shape: {values[0].shape}, {values[1].shape}")
        good = np.isfinite(student) & np.isfinite(teacher)
        if not good.all():  # a pair counts only as a pair
            student, teacher = np.where(good, student, np.nan), np.where(good, teacher, np.nan)
        for moments, rows in ((self._student, student), (self._teacher, teacher)):
            if not len(moments.count):
                moments.count = np.zeros(len(rows), np.int64)
            _same_channels(len(moments.count), len(rows))
            terms, moments.nonfinite = _finite(rows, moments.count, moments.nonfinite)
            moments._sum.add(terms)

    def merge(self, other: MeanDifference) -> None:
        """Take in what another one has seen."""
        _same(self, other)
        self._student.merge(other._student)
        self._teacher.merge(other._teacher)
