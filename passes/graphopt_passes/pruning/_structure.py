"""Which weights may be removed together, and which of them a score says matter least."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.linear.layer import Floats, LinearLayer
from graphopt_passes.linear.least_squares import Mask
from graphopt_passes.linear.rows import ConvRows


@dataclass(frozen=True)
class Structure:
    """Zeros anywhere, N of M, or in blocks.

    Attributes:
        keep, of: of every `of` weights that follow each other along the inputs of an output, `keep` stay;
            both 0 where zeros may be anywhere. In a convolution the inputs are the channels, one group of
            them per position of the kernel.
        block: rows (outputs) and columns (inputs) that go or stay together.
    """

    keep: int = 0
    of: int = 0
    block: tuple[int, int] = (1, 1)

    @staticmethod
    def parse(text: str) -> Structure:
        """`none`, `2:4` (2 of 4 stay), or `4x1` (blocks of 4 outputs and 1 input).

        Raises:
            ValueError: it is none of these.
        """
        if text in ("", "none"):
            return Structure()
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            keep, of = int(found[1]), int(found[2])
            if not 0 < keep < of:
                raise ValueError(f"structure {text} must keep at least one of several, as in 2:4")
            return Structure(keep, of)
        if found := re.fullmatch(r"(\d+)x(\d+)", text):
            rows, columns = int(found[1]), int(found[2])
            if rows < 1 or columns < 1:
                raise ValueError(f"structure {text} must have blocks of at least 1x1")
            return Structure(block=(rows, columns))
        raise ValueError(f"structure must be none, N:M such as 2:4, or RxC such as 4x1, not {text!r}")

    @property
    def sparsity(self) -> float | None:
        """The share of zeros, where the structure says it all."""
        return 1 - self.keep / self.of if self.of else None


def channels_last(layer: LinearLayer) -> NDArray[Any]:
    """An order of the columns in which the input channels of one position of the kernel are neighbors."""
    columns = layer.shape[2]
    if not isinstance(layer.unfolding, ConvRows):
        return np.arange(columns)
    positions = int(np.prod(layer.unfolding.kernel))
    order: NDArray[Any] = np.arange(columns).reshape(-1, positions).T.reshape(-1)
    return order


def least(scores: Floats, count: int) -> Mask:
    """True for the `count` smallest of `scores`, of any shape; of equal ones the first."""
    flat = np.zeros(scores.size, bool)
    flat[np.argsort(scores.reshape(-1), kind="stable")[:count]] = True
    return flat.reshape(scores.shape)


def removed(scores: Floats, sparsity: float, structure: Structure, *, per_row: bool = False) -> Mask:
    """Which weights go: True where `scores` are least.

    Args:
        scores: not negative, (G, N, K), columns in the order of `channels_last`.
        sparsity: share that goes.
        structure: what goes together.
        per_row: that share of every row, not of the whole.
    """
    if structure.of:
        return _n_of_m(scores, structure)
    if structure.block != (1, 1):
        return _blocks(scores, sparsity, structure.block)
    if per_row:
        count = round(sparsity * scores.shape[-1])
        order = np.argsort(scores, axis=-1, kind="stable")
        mask = np.zeros(scores.shape, bool)
        np.put_along_axis(mask, order[..., :count], True, axis=-1)
        return mask
    return least(scores, round(sparsity * scores.size))


def _n_of_m(scores: Floats, structure: Structure) -> Mask:
    groups = scores.reshape(*scores.shape[:-1], -1, structure.of)
    order = np.argsort(groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., : structure.of - structure.keep], True, axis=-1)
    return mask.reshape(scores.shape)


def _blocks(scores: Floats, sparsity: float, block: tuple[int, int]) -> Mask:
    """Blocks at the edges may be smaller; each is judged by its mean."""
    rows, columns = block
    groups, n, k = scores.shape
    shape = groups, -(-n // rows), -(-k // columns)
    total, size = np.zeros(shape), np.zeros(shape)
    row, column = np.arange(n)[:, None] // rows, np.arange(k)[None] // columns
    for g in range(groups):
        np.add.at(total[g], (row, column), scores[g])
        np.add.at(size[g], (row, column), 1.0)
    order = np.argsort((total / size).reshape(-1), kind="stable")
    gone = np.zeros(total.size, bool)
    # The share is one of weights, not of blocks.
    filled = np.cumsum(size.reshape(-1)[order])
    gone[order[: int(np.searchsorted(filled, sparsity * scores.size + 0.5, side="right"))]] = True
    return gone.reshape(shape)[:, row, column]
