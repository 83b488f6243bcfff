"""How much of a layer's output lies in how many directions. Pure numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt_passes.linear.layer import Floats, LinearLayer
from graphopt_passes.linear.least_squares import damped
from graphopt_passes.linear.moments import Sums


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The outputs of a layer, by their directions.

    Attributes:
        layer: the layer.
        rows: its weight W, (G, N, K).
        basis: orthonormal directions of the output, (G, N, m), those with the most energy first.
        energy: of the outputs in the first, second, ... direction, (m,), all groups together.
        mean: mean input, (G, K), where the energies are around the mean output, which the bias keeps; else
            None.
        seen: the energies are those of outputs on data, not of the weights.
    """

    layer: LinearLayer
    rows: Floats
    basis: Floats
    energy: Floats
    mean: Floats | None = None
    seen: bool = False

    @property
    def full(self) -> int:
        """What the layer multiplies for one row."""
        return math.prod(self.layer.shape)

    def cost(self, rank: int) -> int:
        """What its two factors multiply for one row."""
        groups, outputs, inputs = self.layer.shape
        return groups * rank * (outputs + inputs)

    def largest(self, multiple: int, saving: float) -> int:
        """The largest rank, a multiple of `multiple`, that saves at least the share `saving`; 0: none."""
        return int((1 - saving) * self.full / self.cost(1) + 1e-9) // multiple * multiple

    def lost(self, rank: int) -> float:
        """The share of the outputs' energy outside of the first `rank` directions."""
        total = float(self.energy.sum())
        return float(self.energy[rank:].sum()) / total if total > 0 else 0.0

    def rank_for(self, kept: float) -> int:
        """The least rank with the share `kept` of the energy."""
        total = float(self.energy.sum())
        if total <= 0:
            return 1
        reached = np.cumsum(self.energy) >= kept * total * (1 - 1e-12)
        return int(reached.argmax()) + 1 if reached.any() else len(self.energy)

    def factors(self, rank: int) -> tuple[Floats, Floats]:
        """U (G, N, r) and V (G, r, K) with the product U V nearest to W on the data."""
        basis = self.basis[:, :, :rank]
        return basis, np.swapaxes(basis, 1, 2) @ self.rows

    def shift(self, rank: int) -> Floats | None:
        """What the bias has to move by, (G, N), for the mean output to stay."""
        if self.mean is None:
            return None
        left, right = self.factors(rank)
        moved: Floats = np.einsum("gnk,gk->gn", self.rows - left @ right, self.mean)
        return moved


def weight_spectrum(layer: LinearLayer, rows: Floats) -> Spectrum:
    """The spectrum of a layer whose inputs are not known: all of them count the same, independently."""
    return Spectrum(layer, rows, *_directions(rows, None))


def output_spectrum(
    layer: LinearLayer, rows: Floats, sums: Sums, damping: float, *, centered: bool
) -> Spectrum:
    """The spectrum of a layer's outputs on data.

    Args:
        layer: the layer.
        rows: its weight, (G, N, K).
        sums: of its inputs.
        damping: added to the inputs' moments, relative to their mean: directions that the data does not show
            are not lost for nothing.
        centered: a bias keeps the mean output.

    Raises:
        ValueError: the inputs are not finite.
    """
    mean = sums.x / sums.count if centered else None
    moments = sums.xx if mean is None else sums.xx - sums.count * mean[:, :, None] * mean[:, None, :]
    return Spectrum(layer, rows, *_directions(rows, damped(moments, damping)), mean, True)


def _directions(rows: Floats, moments: Floats | None) -> tuple[Floats, Floats]:
    """Left singular vectors of W S with S S^T = `moments` (None: 1), and squares of its singular values."""
    outputs, inputs = rows.shape[1:]
    if outputs <= 2 * inputs:
        # Eigenvectors of W S S^T W^T: several times as fast.
        wide = rows if moments is None else rows @ moments
        values, vectors = np.linalg.eigh(wide @ np.swapaxes(rows, 1, 2))
        kept = min(outputs, inputs)
        energy = np.maximum(values[:, ::-1][:, :kept], 0.0)
        return vectors[:, :, ::-1][:, :, :kept], energy.sum(axis=0)
    if moments is not None:
        values, vectors = np.linalg.eigh(moments)
        rows = rows @ (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :])
    basis, singular, _ = np.linalg.svd(rows, full_matrices=False)
    return basis, np.square(singular).sum(axis=0)
