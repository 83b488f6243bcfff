"""Palettes: few values that stand for many. Pure numpy.

A palette has 2**b entries or fewer, and a weight is an index into it, times a scale where the palette is one
of fixed shape. `fit` finds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.passkit import Array
from graphopt_passes.sharing.kmeans import kmeans as best_palette
from graphopt_passes.sharing.kmeans import nearest

Kind = Literal["kmeans", "binary", "ternary", "nf4", "pow2", "apot"]

# The 16 values of NF4: quantiles of the normal distribution, with an exact zero, scaled to -1..1 (Dettmers
# et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314, appendix E).
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@dataclass(frozen=True)
class Palette:
    """Weights as indices.

    Attributes:
        values: float32 `(entries,)`, or `(groups, entries)`: a palette per group.
        indices: uint8 `(groups, elements)`.
        scale: float32 `(groups,)`; None where the values are the weights themselves.
    """

    values: Array
    indices: Array
    scale: Array | None = None

    @property
    def bits(self) -> int:
        """Bits that an index needs."""
        return max(1, int(self.values.shape[-1] - 1).bit_length())

    def expand(self) -> Array:
        """The weights that it stands for, float32 `(groups, elements)`."""
        if self.values.ndim == 1:
            found = self.values[self.indices]
        else:
            found = np.take_along_axis(self.values, self.indices.astype(np.int64), axis=1)
        return found if self.scale is None else found * self.scale[:, None]


def fit(rows: Array, kind: Kind, bits: int) -> Palette:
    """The palette of `kind` for groups of weights.

    Args:
        rows: float32 `(groups, elements)`; what has a palette, or a scale, of its own.
        kind: which values may be used.
        bits: bits per index, where the kind leaves a choice.
    """
    if kind == "kmeans":
        found = [kmeans(row, 1 << bits) for row in rows]
        return Palette(np.stack([v for v, _ in found]), np.stack([i for _, i in found]))
    if kind == "binary":
        return _binary(rows)
    if kind == "ternary":
        return _ternary(rows)
    if kind == "nf4":
        scale = _or_one(np.abs(rows).max(axis=1, initial=0.0))
        return Palette(NF4, nearest(rows / scale[:, None], NF4), scale)
    levels = powers(bits) if kind == "pow2" else additive_powers(bits)
    return _scaled(rows, levels, power_of_two=kind == "pow2")


def kmeans(values: Array, entries: int) -> tuple[Array, Array]:
    """The palette of least squared error for numbers on a line, and the index of each.

    Returns:
        float32 `(entries,)`, ascending, and uint8 `(elements,)`.
    """
    centers = best_palette(values, entries)
    palette = np.full(entries, centers[-1], np.float32)
    palette[: len(centers)] = centers
    return palette, nearest(values.astype(np.float32), palette[: len(centers)])


def _binary(rows: Array) -> Palette:
    """Sign times the mean magnitude, which is the least-squares scale (XNOR-Net, arXiv:1603.05279, eq. 6)."""
    scale = _or_one(np.abs(rows).mean(axis=1))
    return Palette(np.array([-1.0, 1.0], np.float32), (rows >= 0).astype(np.uint8), scale)


def _ternary(rows: Array) -> Palette:
    """-a, 0, a with threshold 0.7 E|w| and a the mean magnitude above it (TWN, arXiv:1605.04711, eq. 6)."""
    magnitude = np.abs(rows)
    large = magnitude > 0.7 * magnitude.mean(axis=1, keepdims=True)
    count = large.sum(axis=1)
    scale = _or_one(
        np.divide((magnitude * large).sum(axis=1), count, where=count > 0, out=np.zeros(len(rows)))
    )
    index = np.where(large, np.where(rows > 0, 2, 0), 1).astype(np.uint8)
    return Palette(np.array([-1.0, 0.0, 1.0], np.float32), index, scale)


def powers(bits: int) -> Array:
    """0 and plus and minus 1, 1/2, 1/4, ..., as many as `bits` can tell apart (INQ, arXiv:1702.03044)."""
    positive = np.exp2(-np.arange((1 << (bits - 1)) - 1, dtype=np.float64))
    return _mirrored(positive)


def additive_powers(bits: int) -> Array:
    """Sums of powers of two from interleaved sets of 2-bit terms, scaled to a maximum of 1.

    Denser towards the middle than equal steps, and far less so than single powers (Li, Dong, Wang, "Additive
    Powers-of-Two Quantization", ICLR 2020, arXiv:1909.13144, eq. 5). An odd bit makes a term of one bit.
    """
    left, widths = bits - 1, []
    while left:
        widths.append(min(2, left))
        left -= widths[-1]
    sums = np.zeros(1)
    for i, width in enumerate(widths):
        term = [0.0, *(2.0 ** -(i + j * len(widths)) for j in range((1 << width) - 1))]
        sums = (sums[:, None] + np.array(term)[None, :]).reshape(-1)
    positive = np.unique(sums)
    positive = positive[positive > 0]
    return _mirrored(positive / positive.max())


def _mirrored(positive: Array) -> Array:
    return np.concatenate([-np.sort(positive)[::-1], [0.0], np.sort(positive)]).astype(np.float32)


def _scaled(rows: Array, levels: Array, power_of_two: bool) -> Palette:
    """Levels of fixed shape with the scale per group of least squared error."""
    peak = _or_one(np.abs(rows).max(axis=1, initial=0.0))
    if power_of_two:
        # A palette of powers of two stays one only under such a scale.
        exact = np.exp2(np.floor(np.log2(peak * 4.0 / 3.0)))
        candidates = [exact * f for f in (2.0, 1.0, 0.5, 0.25)]
    else:
        candidates = [peak * f for f in np.linspace(1.0, 0.4, 25)]
    best = candidates[0].astype(np.float32)
    index = nearest(rows / best[:, None], levels)
    error = _error(rows, levels, index, best)
    for candidate in candidates[1:]:
        scale = candidate.astype(np.float32)
        other = nearest(rows / scale[:, None], levels)
        other_error = _error(rows, levels, other, scale)
        better = other_error < error
        best, error = np.where(better, scale, best), np.where(better, other_error, error)
        index = np.where(better[:, None], other, index)
    return Palette(levels, index, best.astype(np.float32))


def _error(rows: Array, levels: Array, index: Array, scale: Array) -> Array:
    total: Array = np.square(levels[index] * scale[:, None] - rows).sum(axis=1)
    return total


def _or_one(scale: Array) -> Array:
    return np.where(scale > 0, scale, 1.0).astype(np.float32)
