"""What an input's values have to be, from the ops that use them.

A role is such a demand: indices into V rows, the very shape that Reshape must be told, positive numbers
for Log. Where the roles come from: `rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx

from graphopt.runtime.structure import Shapes, attribute
from graphopt.runtime.values import Array

RoleKind: TypeAlias = Literal[
    "exact", "index", "mask", "additive-mask", "uniform", "nonzero", "choice", "boxes"
]


@dataclass(frozen=True)
class Role:
    """A demand on an input's values.

    Attributes:
        kind: "exact" is `value`, reshaped; "index" draws integers from [low, high); "mask" is ones and
            then zeros along the last axis; "uniform" is floats from [low, high]; "nonzero" keeps away
            from zero; "choice" picks from `value`; "boxes" are ascending corner coordinates.
        low, high: bounds; `high` may be a sequence, one bound per place on the last axis.
        axis: along it indices must be distinct; None if they may repeat.
        value: see `kind`.
    """

    kind: RoleKind
    low: float = 0
    high: float | Sequence[int] = 1
    axis: int | None = None
    value: Any = None


def exact(value: Any) -> Role:
    """Nothing but this value."""
    return Role("exact", value=np.asarray(value))


def index(high: float | Sequence[int] | None, axis: int | None = None, low: int = 0) -> Role | None:
    """Integers from [low, high); no demand when `high` is unknown."""
    return None if high is None else Role("index", low, high, axis)


def uniform(low: float, high: float) -> Role:
    """Floats from [low, high]."""
    return Role("uniform", low, high)


class Place:
    """A node's slot, with the shapes around it."""

    def __init__(self, node: onnx.NodeProto, slot: int, shapes: Shapes) -> None:
        self.node, self.slot, self.shapes = node, slot, shapes

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return attribute(self.node, name, default)

    def ins(self, i: int) -> tuple[int | None, ...] | None:
        """The shape of input i."""
        return self.shapes.of(self.node.input[i]) if self.has(i) else None

    def out(self, i: int = 0) -> tuple[int | None, ...] | None:
        """The shape of output i."""
        return self.shapes.of(self.node.output[i]) if len(self.node.output) > i else None

    def has(self, i: int) -> bool:
        """Input i is there."""
        return len(self.node.input) > i and bool(self.node.input[i])

    def const(self, i: int) -> Array | None:
        """The value of input i if it is a small constant."""
        return self.shapes.structure.constant(self.node.input[i]) if self.has(i) else None

    def whole(self, dims: tuple[int | None, ...] | None) -> tuple[int, ...] | None:
        """`dims` if they are all known."""
        if dims is None or any(d is None for d in dims):
            return None
        return tuple(int(d) for d in dims if d is not None)

    def length(self) -> int:
        """Number of elements of this slot's own input, 1 when unknown."""
        dims = self.whole(self.ins(self.slot))
        return math.prod(dims) if dims is not None else 1

    def dim(self, i: int, axis: int) -> int | None:
        """Size of one axis of input i."""
        dims = self.ins(i)
        return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None


_PRIORITY: dict[RoleKind, int] = {
    "exact": 0,
    "index": 1,
    "choice": 1,
    "boxes": 2,
    "mask": 3,
    "nonzero": 4,
    "uniform": 5,
}


def strongest(roles: Sequence[Role]) -> Role | None:
    """The one demand that satisfies most of `roles`: exact values first, then the tightest indices."""
    if not roles:
        return None
    best = min(roles, key=lambda r: _PRIORITY[r.kind])
    if best.kind == "index":
        scalar = [r for r in roles if r.kind == "index" and isinstance(r.high, int | float)]
        if scalar and best in scalar:
            low = max(r.low for r in scalar)
            high = min(float(r.high) for r in scalar if isinstance(r.high, int | float))
            axis = next((r.axis for r in scalar if r.axis is not None), None)
            return Role("index", low, max(high, low + 1), axis)
    if best.kind == "uniform":
        low = max(r.low for r in roles if r.kind == "uniform")
        high = min(float(r.high) for r in roles if r.kind == "uniform" and isinstance(r.high, int | float))
        return Role("uniform", low, high) if low < high else best
    return best
