"""How much a block turns what goes through it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from graphopt.passkit import Array


class Influence:
    """1 - mean cosine similarity of what goes into a block and what comes out of it, over positions.

    X. Men et al., "ShortGPT: Layers in large language models are more redundant than you expect",
    arXiv:2403.03853 (2024), equation 1. Updated with the value before and the value behind the block.

    Args:
        axis: of the channels.

    Attributes:
        count: positions taken in.
        total: sum of their cosines.
        left_out: positions that are not finite.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis
        self.count = self.left_out = 0
        self.total = 0.0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Influence", self.axis)

    @property
    def value(self) -> float:
        """The influence: 0 where the direction stays, up to 2; NaN without data."""
        return 1 - self.total / self.count if self.count else float("nan")

    def fresh(self) -> Influence:
        """An empty one with the same settings."""
        return Influence(self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch.

        Raises:
            ValueError: the two values differ in shape.
        """
        x, y = (np.moveaxis(v, self.axis, -1).reshape(-1, v.shape[self.axis]) for v in values)
        if x.shape != y.shape:
            raise ValueError(f"before and behind the block the shapes differ: {x.shape}, {y.shape}")
        x, y = x.astype(np.float64), y.astype(np.float64)
        good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        self.left_out += good.size - int(good.sum())
        x, y = x[good], y[good]
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        products = np.einsum("rc,rc->r", x, y)
        same = (x == y).all(axis=1)  # zeros that stay zeros are not turned
        cosines = np.divide(products, norms, out=np.where(same, 1.0, 0.0), where=norms > 0)
        self.count += len(cosines)
        self.total += float(cosines.sum())

    def merge(self, other: Influence) -> None:
        """Take in what another one has seen."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        self.count += other.count
        self.left_out += other.left_out
        self.total += other.total
