"""What rounding minimizes: the squared error of a layer's output on data, over integer weights.

Everything works on stacks, so that the groups of a grouped or depthwise convolution are solved at once:
G groups, N rows (output channels) each, K columns (inputs of one output). An ordinary layer has G = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lattice:
    """The values that each weight may take: (code - zero) * scale for code in low..high.

    Attributes:
        scale: positive; broadcasts to (G, N, K): its last axis has length K, or 1 for one scale per row.
        zero: code of 0, of the shape of `scale`.
        low, high: least and largest code.
        pinned: (G, N, K): weights that must stay 0 because they were pruned; None for none.
    """

    scale: Floats
    zero: Floats
    low: int
    high: int
    pinned: Mask | None = None

    def nearest(self, values: Floats) -> Floats:
        """Codes, as float64, of the values nearest to `values`: rounding half to even, saturating."""
        return self.pin(np.clip(np.rint(values / self.scale) + self.zero, self.low, self.high))

    def floor(self, values: Floats) -> Floats:
        """Codes, as float64, of the values at or below `values`, saturating."""
        return self.pin(np.clip(np.floor(values / self.scale) + self.zero, self.low, self.high))

    def pin(self, codes: Floats) -> Floats:
        """`codes` with those of pinned weights standing for 0."""
        return codes if self.pinned is None else np.where(self.pinned, self.zero, codes)

    def values(self, codes: Floats) -> Floats:
        """What codes stand for."""
        result: Floats = (codes - self.zero) * self.scale
        return result

    def columns(self, at: slice) -> Lattice:
        """The lattice of some columns, contiguous ones."""
        pinned = None if self.pinned is None else self.pinned[..., at]
        if self.scale.shape[-1] == 1:
            return self if pinned is None else replace(self, pinned=pinned)
        return replace(self, scale=self.scale[..., at], zero=self.zero[..., at], pinned=pinned)

    def reordered(self, order: NDArray[Any]) -> Lattice:
        """The lattice with the columns of each group permuted; `order`: (G, K)."""
        at = order[:, None, :]
        pinned = None if self.pinned is None else np.take_along_axis(self.pinned, at, -1)
        if self.scale.shape[-1] == 1:
            return self if pinned is None else replace(self, pinned=pinned)
        return replace(
            self,
            scale=np.take_along_axis(self.scale, at, -1),
            zero=np.take_along_axis(self.zero, at, -1),
            pinned=pinned,
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """Find codes q that minimize sum over rows of (v(q) - t) H (v(q) - t)^T, with v the lattice's values.

    Attributes:
        hessian: H = X^T X over the inputs of the layer, (G, K, K), symmetric and positive definite.
        target: t, (G, N, K): the real weights that would be best.
        lattice: what the codes stand for.
    """

    hessian: Floats
    target: Floats
    lattice: Lattice

    @property
    def diagonal(self) -> Floats:
        """Diagonal of the Hessian, (G, K)."""
        return np.diagonal(self.hessian, axis1=1, axis2=2)

    def losses(self, codes: Floats) -> Floats:
        """The objective for each row, (G, N)."""
        error = self.lattice.values(codes) - self.target
        result: Floats = np.einsum("gnk,gnk->gn", error @ self.hessian, error)
        return result

    def loss(self, codes: Floats) -> float:
        """The objective."""
        return float(self.losses(codes).sum())

    def better(self, codes: Floats, other: Floats) -> Floats:
        """Row by row the one of two solutions with the lower objective; `codes` where they are equal."""
        wins = self.losses(other) < self.losses(codes)
        return np.where(wins[..., None], other, codes)
