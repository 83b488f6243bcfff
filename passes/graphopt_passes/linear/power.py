"""How large the inputs of a layer are, column by column of its weights."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from graphopt.passkit import Array
from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.rows import ConvRows, MatrixRows


class ColumnPower:
    """Mean squares of the columns of X: the diagonal of X^T X / rows, at a fraction of its cost.

    Rows with NaN or infinity are left out.

    Args:
        unfolding: how values become rows.

    Attributes:
        squares: sums of squares, float64 (G, K); of no size where there was nothing to add.
        count: rows per group.
    """

    def __init__(self, unfolding: ConvRows | MatrixRows) -> None:
        self.unfolding = unfolding
        self.squares: Floats = np.zeros(0)
        self.count = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("ColumnPower", self.unfolding)

    @property
    def mean(self) -> Floats:
        """Mean square per column, (G, K)."""
        return self.squares / max(self.count, 1)

    def fresh(self) -> ColumnPower:
        """An empty one with the same settings."""
        return ColumnPower(self.unfolding)

    def update(self, *values: Array) -> None:
        """Take in one batch of the layer's input."""
        for (rows,) in self.unfolding.blocks(values[0].astype(np.float32, copy=False)):
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(rows).all(axis=(0, 2))
                # What is too large to square shows in the sums.
                self._add(np.square(rows[:, finite]).sum(axis=1, dtype=np.float64), int(finite.sum()))

    def merge(self, other: ColumnPower) -> None:
        """Take in what another one has seen."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        if other.count:
            self._add(other.squares, other.count)

    def _add(self, squares: Floats, count: int) -> None:
        self.squares = self.squares + squares if self.squares.size else squares
        self.count += count
