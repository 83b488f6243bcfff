"""Second moments of rows: what least squares, GPTQ and layer-wise refits are computed from.

Sums are float64. Merged in another order they are equal up to rounding, some 1e-15 of the largest entry, and
not bit for bit: exact sums of products would cost a hundred times the matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from graphopt.calibration.values import Array, Float64

#: What makes rows of a value: an array (rows, columns), or several such blocks where one would be large.
#: Two statistics are the same only if their functions are equal: use a function of a module, or an object
#: with `__eq__` and `__hash__` (a frozen dataclass), not a lambda.
Unfold: TypeAlias = Callable[[Array], Array | Iterable[Array]]

_ROWS = 4096


def rows_of_last_axis(value: Array) -> Array:
    """The rows that a MatMul sees: all axes but the last are flattened."""
    return value.reshape(-1, value.shape[-1])


class Gram:
    """X^T X over the rows X that `unfold` makes of each value. Rows with NaN or infinity are left out.

    Args:
        unfold: rows of a value, see `Unfold`; by default those that a MatMul sees.

    Attributes:
        matrix: shape (columns, columns); (0, 0) before the first update.
        count: rows taken in.
        nonfinite: rows left out.
    """

    def __init__(self, unfold: Unfold = rows_of_last_axis) -> None:
        self.unfold = unfold
        self.matrix: Float64 = np.zeros((0, 0))
        self.count = self.nonfinite = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Gram", self.unfold)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self.matrix.nbytes

    def fresh(self) -> Gram:
        """An empty one with the same settings."""
        return Gram(self.unfold)

    def update(self, *values: Array) -> None:
        """Take in one batch of one or more tensors.

        Raises:
            ValueError: rows of another length than before.
        """
        for value in values:
            for block in _blocks(self.unfold(value)):
                rows, bad = _finite_rows(block)
                self.nonfinite += bad
                self.count += len(rows)
                self.matrix = _add(self.matrix, rows, rows)

    def merge(self, other: Gram) -> None:
        """Take in what another one has seen."""
        if getattr(other, "key", None) != self.key:
            raise ValueError("statistics of different kinds do not merge")
        self.count += other.count
        self.nonfinite += other.nonfinite
        self.matrix = _total(self.matrix, other.matrix)


class CrossGram:
    """X^T X, X^T Y and Y^T Y over rows X of the student's value and rows Y of the teacher's.

    Args:
        unfold: rows of the student's value, see `Unfold`; by default those that a MatMul sees.
        unfold_teacher: rows of the teacher's value, as many; by default made as the student's.

    Attributes:
        xx, xy, yy: shapes (columns of X or Y, columns of X or Y); (0, 0) before the first update.
        count: pairs of rows taken in.
        nonfinite: pairs left out because one of them has NaN or infinity.
    """

    def __init__(self, unfold: Unfold = rows_of_last_axis, unfold_teacher: Unfold | None = None) -> None:
        self.unfold, self.unfold_teacher = unfold, unfold_teacher or unfold
        self.xx: Float64 = np.zeros((0, 0))
        self.xy: Float64 = np.zeros((0, 0))
        self.yy: Float64 = np.zeros((0, 0))
        self.count = self.nonfinite = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("CrossGram", self.unfold, self.unfold_teacher)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self.xx.nbytes + self.xy.nbytes + self.yy.nbytes

    def fresh(self) -> CrossGram:
        """An empty one with the same settings."""
        return CrossGram(self.unfold, self.unfold_teacher)

    def update(self, *values: Array) -> None:
        """Take in the student's and the teacher's value of one batch.

        Raises:
            ValueError: they make different numbers of rows, or rows of another length than before.
        """
        student, teacher = values
        pairs = zip(_blocks(self.unfold(student)), _blocks(self.unfold_teacher(teacher)), strict=True)
        for x, y in pairs:
            if len(x) != len(y):
                raise ValueError(f"{len(x)} rows of the student, {len(y)} of the teacher")
            (x, bad_x), (y, bad_y) = _finite_rows(x, drop=False), _finite_rows(y, drop=False)
            if bad_x or bad_y:
                good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
                self.nonfinite += len(x) - int(good.sum())
                x, y = x[good], y[good]
            self.count += len(x)
            self.xx, self.xy, self.yy = _add(self.xx, x, x), _add(self.xy, x, y), _add(self.yy, y, y)

    def merge(self, other: CrossGram) -> None:
        """Take in what another one has seen."""
        if getattr(other, "key", None) != self.key:
            raise ValueError("statistics of different kinds do not merge")
        self.count += other.count
        self.nonfinite += other.nonfinite
        self.xx, self.xy = _total(self.xx, other.xx), _total(self.xy, other.xy)
        self.yy = _total(self.yy, other.yy)


def _blocks(unfolded: Array | Iterable[Array]) -> Iterator[Array]:
    """Blocks of at most `_ROWS` rows, so that their float64 copies stay small."""
    for rows in [unfolded] if isinstance(unfolded, np.ndarray) else unfolded:
        if rows.ndim != 2:
            raise ValueError(f"unfolding gave shape {rows.shape}, not rows and columns")
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS]


def _finite_rows(rows: Array, drop: bool = True) -> tuple[Float64, int]:
    rows = rows.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return rows, 0
    good = np.isfinite(rows).all(axis=1)
    return (rows[good] if drop else rows), len(rows) - int(good.sum())


def _add(total: Float64, x: Float64, y: Float64) -> Float64:
    return _total(total, x.T @ y)


def _total(a: Float64, b: Float64) -> Float64:
    if not a.size or not b.size:
        return b.copy() if b.size else a
    if a.shape != b.shape:
        raise ValueError(f"rows of another length: {b.shape} where it was {a.shape}")
    a += b
    return a
