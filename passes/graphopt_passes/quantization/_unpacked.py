"""Indices of any width in packed bytes, and the standard operators that take them apart."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.passkit import Array, Rewriter, Tensor

# Widths that divide a byte: an index of other width is cut into such planes.
_PLANES = (8, 4, 2, 1)


def unpacked(graph: Rewriter, name: str, indices: Array, bits: int) -> Tensor:
    """int32 indices, as a vector, from new initializers that hold `bits` bits of each; inside a site."""
    flat = indices.reshape(-1).astype(np.uint8)
    total: Tensor | None = None
    done = 0
    for width in _PLANES:
        if not (bits - done) & width:
            continue
        plane = (flat >> done) & ((1 << width) - 1)
        part = _plane(graph, name, plane, width)
        if done:
            factor = graph.new_constant(f"{name}_place", np.array(1 << done, np.int32))
            part = graph.op("Mul", [part, factor], hint=f"{name}_plane")
        total = part if total is None else graph.op("Add", [total, part], hint=f"{name}_planes")
        done += width
    assert total is not None
    return total


def _plane(graph: Rewriter, name: str, plane: Array, width: int) -> Tensor:
    """A vector of int32 of `width` bits each, from whole bytes."""
    to = {"to": int(onnx.TensorProto.INT32)}
    if width == 8:
        return graph.op("Cast", [graph.new_constant(f"{name}_bytes", plane)], attrs=to, hint=f"{name}_index")
    per = 8 // width
    rows = np.pad(plane, (0, -plane.size % per)).reshape(-1, per)
    places = (np.arange(per) * width).astype(np.uint8)
    packed = np.bitwise_or.reduce(rows << places, axis=1).astype(np.uint8).reshape(-1, 1)
    # What stands above an element leaves to the left, what stands below it to the right.
    left = graph.new_constant(f"{name}_left", (8 - width - places).astype(np.uint8))
    right = graph.new_constant(f"{name}_right", np.array(8 - width, np.uint8))
    stored = graph.new_constant(f"{name}_packed", packed)
    top = graph.op("BitShift", [stored, left], attrs={"direction": "LEFT"}, hint=f"{name}_top")
    each = graph.op("BitShift", [top, right], attrs={"direction": "RIGHT"}, hint=f"{name}_each")
    flat = graph.op("Reshape", [each, ints(graph, name, (-1,))], hint=f"{name}_row")
    if plane.size % per:
        bounds = [ints(graph, name, (n,)) for n in (0, plane.size)]
        flat = graph.op("Slice", [flat, *bounds], hint=f"{name}_cut")
    return graph.op("Cast", [flat], attrs=to, hint=f"{name}_index")


def ints(graph: Rewriter, name: str, numbers: tuple[int, ...]) -> Tensor:
    """A new initializer of int64 numbers: a shape, or bounds."""
    return graph.new_constant(f"{name}_shape", np.array(numbers, np.int64))
