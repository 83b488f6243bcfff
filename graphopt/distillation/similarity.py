"""How similar tensors of two models are: linear CKA over positions of the same samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graphopt.graph.view import Array

Floats = NDArray[np.float32]

#: Positions that are kept, at most, and of each sample.
ROWS: Final = 768
_PER_SAMPLE: Final = 8
# Channels that are kept as they are; of more, random mixtures.
_CHANNELS: Final = 4096


class Samples:
    """Some positions of the first samples of a tensor, the same for all tensors of one form.

    Args:
        axis: along which the channels lie.

    Attributes:
        shape: of the value, without its first axis; None before the first update.
    """

    #: Positions must be those of the same samples in both models.
    exact = True

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.shape: tuple[int, ...] | None = None
        self._parts: list[Floats] = []
        self._count = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Samples", self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return sum(part.nbytes for part in self._parts)

    @property
    def rows(self) -> Floats:
        """What is kept, (positions, channels)."""
        return np.concatenate(self._parts) if self._parts else np.zeros((0, 0), np.float32)

    def fresh(self) -> Samples:
        """An empty one with the same settings."""
        return Samples(self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch."""
        for value in values:
            if value.ndim < 2:
                continue
            if self.shape is None:
                self.shape = tuple(value.shape[1:])
            if self._count >= ROWS or value.shape[1:] != self.shape:
                continue
            rows = np.moveaxis(value, self.axis, -1).reshape(len(value), -1, value.shape[self.axis])
            count = rows.shape[1]
            at = np.unique(np.linspace(0, count - 1, min(count, _PER_SAMPLE)).astype(int))
            kept = rows[:, at].reshape(-1, rows.shape[2])[: ROWS - self._count].astype(np.float32)
            self._count += len(kept)
            self._parts.append(_mixed(kept))

    def merge(self, other: Samples) -> None:
        """Take in what another one has seen, after this one."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        self.shape = self.shape or other.shape
        for part in other._parts:
            part = part[: ROWS - self._count]
            self._count += len(part)
            self._parts.append(part)


def _mixed(rows: Floats) -> Floats:
    """The rows, or random mixtures of their channels, which keep inner products well enough."""
    channels = rows.shape[1]
    if channels <= _CHANNELS:
        return rows
    mixture = np.random.default_rng(channels).standard_normal((channels, _CHANNELS), np.float32)
    mixed: Floats = rows @ mixture / np.float32(np.sqrt(_CHANNELS))
    return mixed


def similarities(a: Sequence[Floats], b: Sequence[Floats]) -> NDArray[np.float64]:
    """Linear CKA between each of `a` and each of `b`, (len(a), len(b)); between 0 and 1 but for its noise.

    S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of neural network representations revisited",
    arXiv:1905.00414 (2019), with the estimate of HSIC that few rows do not bias towards wide layers: L. Song
    et al., "Feature selection via dependence maximization", JMLR 13 (2012), equation 5. Invariant to rotation
    and scale, so that a student with other channels can be compared.

    Args:
        a, b: rows of the same positions; tensors with another number of rows have similarity 0.
    """
    found = np.zeros((len(a), len(b)))
    for count in {len(rows) for rows in a} & {len(rows) for rows in b}:
        if count < 4:
            continue
        mine = [i for i, rows in enumerate(a) if len(rows) == count]
        theirs = [j for j, rows in enumerate(b) if len(rows) == count]
        left = np.stack([_gram(a[i]).reshape(-1) for i in mine])
        right = np.stack([_gram(b[j]).reshape(-1) for j in theirs])
        found[np.ix_(mine, theirs)] = left @ right.T
    return np.clip(np.nan_to_num(found), 0.0, 1.0)


def _gram(rows: Floats) -> Floats:
    """Inner products of rows, centered without bias, of norm 1."""
    good = np.isfinite(rows).all(axis=1, keepdims=True)
    x = np.where(good, rows, 0).astype(np.float64)
    x = x - x.mean(axis=0)
    x /= max(float(np.abs(x).max(initial=0.0)), 1e-30)
    gram = x @ x.T
    n = len(gram)
    np.fill_diagonal(gram, 0.0)
    means = gram.sum(axis=0) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    gram -= means[:, None] + means[None, :]
    np.fill_diagonal(gram, 0.0)
    norm = float(np.linalg.norm(gram))
    result: Floats = (gram / norm if norm > 0 else gram).astype(np.float32)
    return result


def correlations(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Of each channel of `a` with each of `b` over the same rows; 0 for channels that do not vary."""
    parts: list[Any] = []
    for rows in (a, b):
        x = np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)
        x = x - x.mean(axis=0)
        norm = np.linalg.norm(x, axis=0)
        parts.append(np.divide(x, norm, out=np.zeros_like(x), where=norm > 0))
    found: NDArray[np.float64] = parts[0].T @ parts[1]
    return found
