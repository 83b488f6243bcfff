"""Weights as indices into palettes, one palette for all of them or one per slice. Pure numpy."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.passkit import Array
from graphopt_passes.sharing.kmeans import CELLS, kmeans, nearest

# With many palettes there are few weights in each.
_MANY = 64
# Inputs that the data never showed still count for this share of the mean.
_LEAST_IMPORTANCE = 0.01
# What is deflated to learn how well everything would be.
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class Slices:
    """Which weights share a palette: those of `size` neighbouring indices of `axis`; of all, for None.

    Attributes:
        axis: axis of the weight.
        size: indices of it per palette; the last palette may have fewer.
    """

    axis: int | None = None
    size: int = 1

    def count(self, shape: tuple[int, ...]) -> int:
        """How many palettes there are."""
        return 1 if self.axis is None else -(-shape[self.axis] // self.size)

    def parts(self, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """For each palette the part of the weight."""
        if self.axis is None:
            return [(slice(None),) * len(shape)]
        before = (slice(None),) * self.axis
        starts = range(0, shape[self.axis], self.size)
        return [(*before, slice(start, start + self.size)) for start in starts]


@dataclass(frozen=True)
class Shared:
    """A weight with few values.

    Attributes:
        palettes: (palettes, entries), in the weight's dtype; the last entry of a shorter one is repeated.
        indices: uint8, of the weight's shape.
        slices: which palette an index goes into.
    """

    palettes: Array
    indices: Array
    slices: Slices

    @property
    def bits(self) -> int:
        """Bits that an index needs."""
        return max(1, int(self.palettes.shape[1] - 1).bit_length())

    def which(self) -> Array:
        """The palette of each weight, of the weight's shape."""
        if self.slices.axis is None:
            return np.zeros(self.indices.shape, np.int64)
        shape = [1] * self.indices.ndim
        shape[self.slices.axis] = -1
        numbers = np.arange(self.indices.shape[self.slices.axis]) // self.slices.size
        return np.broadcast_to(numbers.reshape(shape), self.indices.shape)

    def offsets(self) -> Array | None:
        """Where the palette of each weight begins, int32, to be added to its index; None for one palette."""
        if self.slices.axis is None or len(self.palettes) == 1:
            return None
        shape = [1] * self.indices.ndim
        shape[self.slices.axis] = -1
        which = np.arange(self.indices.shape[self.slices.axis], dtype=np.int32) // self.slices.size
        return (which * np.int32(self.palettes.shape[1])).reshape(shape)

    def expand(self) -> Array:
        """The weight."""
        offsets = self.offsets()
        index = self.indices.astype(np.int32)
        expanded: Array = self.palettes.reshape(-1)[index if offsets is None else index + offsets]
        return expanded


def share(
    values: Array, entries: int, slices: Slices, importance: Array | None, *, keep_zero: bool
) -> Shared:
    """The palettes of least (weighted) squared error, and the index of each weight.

    Args:
        values: a weight, finite.
        entries: entries of a palette, at most.
        slices: what has a palette of its own.
        importance: what the square of each weight's error counts, of the weight's shape; None: the same.
        keep_zero: 0 is an entry of every palette, and only zeros and what is nearest to them becomes 0.
    """
    parts = slices.parts(values.shape)
    cells = CELLS if len(parts) < _MANY else CELLS // 4
    found = []
    indices = np.empty(values.shape, np.uint8)
    for part in parts:
        counts = None if importance is None else importance[part]
        centers = kmeans(values[part], entries, counts, keep_zero=keep_zero, cells=cells)
        palette = np.unique(centers.astype(values.dtype))
        indices[part] = nearest(values[part].astype(np.float64), palette)
        found.append(palette)
    width = max(len(palette) for palette in found)
    rows = [np.pad(palette, (0, width - len(palette)), mode="edge") for palette in found]
    return Shared(np.stack(rows), indices, slices)


def spread_importance(power: Array) -> Array:
    """Mean squares per input as importance: no input counts for nothing, because data is a sample."""
    raised: Array = power + _LEAST_IMPORTANCE * power.mean()
    return raised


def has_zeros(values: Array, entries: int) -> bool:
    """Whether so many weights are exactly 0 that they were pruned: more than an entry's share, or 5%."""
    zeros = values.size - int(np.count_nonzero(values))
    return zeros * min(entries, 20) >= values.size


def decibels(values: Array, new: Array) -> float:
    """Signal to noise ratio of a changed weight in dB; infinite where nothing changed."""
    signal, noise = (
        float(np.square(v.astype(np.float64)).sum()) for v in (values, new.astype(np.float64) - values)
    )
    return float("inf") if not noise else 10.0 * float(np.log10(max(signal, 1e-300) / noise))


def deflated(*arrays: Any) -> int:
    """Bytes that arrays take in a zip file, about: of large ones a part is deflated."""
    total = 0.0
    for array in arrays:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        size, data = len(raw), raw.tobytes() if len(raw) <= 4 * _SAMPLE else b""
        if size > 4 * _SAMPLE:
            # From four places: what is pruned or small may lie together.
            quarter = _SAMPLE // 4
            data = b"".join(raw[start : start + quarter].tobytes() for start in range(0, size, size // 4))
        total += len(zlib.compress(data, 6)) * size / max(len(data), 1)
    return int(total)


@dataclass
class Totals:
    """What the weights of a pass take together; the pass remarks on it.

    Attributes:
        count: weights.
        file, deflated, memory: bytes before and after: in the file, compressed, and at run time.
    """

    count: int = 0
    file: tuple[int, int] = (0, 0)
    deflated: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)

    def add(self, before: int, after: int, packed: int, small: int, held: int) -> None:
        """One more weight, of `before` bytes, and `after` in the file, with what both deflate to."""
        self.count += 1
        self.file = self.file[0] + before, self.file[1] + after
        self.deflated = self.deflated[0] + packed, self.deflated[1] + small
        self.memory = self.memory[0] + before, self.memory[1] + held

    def __str__(self) -> str:
        figures = ", ".join(
            f"{what} {old:,} -> {new:,}" if old != new else f"{what} {old:,} as before"
            for what, (old, new) in (
                ("in the file", self.file),
                ("deflated", self.deflated),
                ("in memory", self.memory),
            )
        )
        return f"bytes of {self.count} weight{'s' * (self.count != 1)}: {figures}"
