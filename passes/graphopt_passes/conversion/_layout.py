"""Where the channels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import onnx

from graphopt.passkit import Adapter

Layout: TypeAlias = Literal["nhwc", "nchw"]
Dim = onnx.TensorShapeProto.Dimension


def to_layout(layout: Layout, rank: int) -> list[int]:
    """The permutation from the other layout to `layout`."""
    if layout == "nhwc":
        return [0, *range(2, rank), 1]
    return [0, rank - 1, *range(1, rank - 1)]


def from_layout(layout: Layout, rank: int) -> list[int]:
    """The permutation from `layout` to the other."""
    return to_layout("nchw" if layout == "nhwc" else "nhwc", rank)


def channels_at(dims: Sequence[Dim]) -> int | None:
    """The axis that is denoted to be the channels."""
    return next((axis for axis, dim in enumerate(dims) if dim.denotation == "DATA_CHANNEL"), None)


def denoted(dims: Sequence[Dim], layout: Layout) -> list[Dim]:
    """`dims`, which are in `layout`, with ONNX's denotations."""
    channel = len(dims) - 1 if layout == "nhwc" else 1
    found = []
    for axis, dim in enumerate(dims):
        made = Dim()
        made.CopyFrom(dim)
        made.denotation = "DATA_BATCH" if axis == 0 else "DATA_CHANNEL" if axis == channel else "DATA_FEATURE"
        found.append(made)
    return found


def permuted(perm: Sequence[int]) -> Adapter:
    """Between a value and its transpose by `perm`."""
    back = [int(axis) for axis in np.argsort(perm)]
    return Adapter(
        f"transposed by {list(perm)}",
        lambda value: np.ascontiguousarray(value.transpose(perm)),
        lambda value: np.ascontiguousarray(value.transpose(back)),
    )
