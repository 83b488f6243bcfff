"""Labels of elements that can only be removed together: a union-find over integers, and arrays of them.

The *layout* of a tensor is an int64 array of its rank that holds a label per element: of the tensor's size
along axes on which elements can be removed, and of size 1 along all others. Elements with the same label
stay or go together. Label 0 is that of elements which always stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.passkit import RefusedRewrite

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

# A model with more of them is left alone from there on: some hundred times what wide models have.
_MAX_LABELS = 1 << 22


class Labels:
    """Which labels are the same, and which must stay, and why."""

    def __init__(self) -> None:
        self._parent: Ints = np.zeros(1024, np.int64)
        self.count = 1
        self._reasons: dict[int, str] = {0: "it is no channel that could be removed"}

    def fresh(self, shape: int | Sequence[int]) -> Ints:
        """A layout of labels that nothing else has."""
        size = int(np.prod(shape, dtype=np.int64))
        start, self.count = self.count, self.count + size
        if self.count > _MAX_LABELS:
            raise RefusedRewrite("the model has more channels than are looked at")
        if self.count > len(self._parent):
            grown = np.zeros(2 * self.count, np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        made = np.arange(start, self.count, dtype=np.int64)
        self._parent[start : self.count] = made
        return made.reshape(shape)

    def find(self, labels: Ints) -> Ints:
        """The representative of each label."""
        while True:
            above = self._parent[labels]
            if (above == labels).all():
                return above
            labels = above

    def join(self, a: Ints, b: Ints, reason: str) -> None:
        """From now on `a` and `b`, which broadcast against each other, are the same.

        Args:
            a, b: labels.
            reason: why those must stay that meet label 0.
        """
        left, right = np.broadcast_arrays(self.find(a), self.find(b))
        differ = left != right
        if not differ.any():
            return
        parent = self._parent
        for x, y in np.unique(np.stack([left[differ], right[differ]], axis=1), axis=0).tolist():
            while parent[x] != x:
                x = int(parent[x])
            while parent[y] != y:
                y = int(parent[y])
            if x == y:
                continue
            low, high = min(x, y), max(x, y)
            if low == 0:
                # Not made one with label 0: then all that stays would be one group.
                self._reasons.setdefault(high, reason)
                continue
            parent[high] = low
            kept = self._reasons.pop(high, None)
            if kept is not None:
                self._reasons.setdefault(low, kept)

    def pin(self, labels: Ints, reason: str) -> None:
        """These labels must stay."""
        for root in np.unique(self.find(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, root: int) -> str | None:
        """Why the label `root`, a representative, must stay; None when it need not."""
        return self._reasons.get(root)

    def is_pinned(self, layout: Ints) -> bool:
        """Whether all elements must stay."""
        return all(root in self._reasons for root in np.unique(self.find(layout)).tolist())

    def level(self, layout: Ints, axes: Iterable[int], reason: str = "") -> Ints:
        """`layout` made constant along `axes`, which then have size 1."""
        for axis in axes:
            if layout.shape[axis] > 1:
                first = layout.take([0], axis)
                self.join(layout, first, reason)
                layout = first
        return layout

    def compress(self, layout: Ints) -> Ints:
        """`layout` by representatives, with size 1 along the axes on which it does not vary."""
        layout = self.find(layout)
        for axis in range(layout.ndim):
            if layout.shape[axis] > 1:
                first = layout.take([0], axis)
                if (layout == first).all():
                    layout = first
        return layout

    def varying(self, layout: Ints) -> list[int]:
        """The axes along which `layout` varies."""
        return [axis for axis, size in enumerate(self.compress(layout).shape) if size > 1]


def fixed(rank: int) -> Ints:
    """The layout of a tensor of which everything stays."""
    return np.zeros((1,) * rank, np.int64)


def along(labels: Ints, axis: int, rank: int) -> Ints:
    """Labels (n,) along one axis of a layout of `rank`."""
    shape: list[Any] = [1] * rank
    shape[axis] = -1
    return labels.reshape(shape)
