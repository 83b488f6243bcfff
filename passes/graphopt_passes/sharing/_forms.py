"""How a weight with few values is stored: nodes that make it of a palette, and what that takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from graphopt.passkit import Array, Rewriter, Tensor
from graphopt.quantkit import QUANT_TYPES, Grid, weight_grid
from graphopt_passes.quantization._unpacked import ints, unpacked
from graphopt_passes.sharing._palettes import Shared

#: The opset with BitShift, which takes packed indices apart.
SHIFT_OPSET = 11
_ROUNDS = 20


def gathered(graph: Rewriter, name: str, shared: Shared, *, packed: bool) -> Tensor:
    """Gather(palettes, index), inside a site.

    Args:
        graph: the body.
        name: the float weight's, after which things are named.
        shared: what is stored.
        packed: indices in as many bits as they need, which BitShifts take apart; else a byte each.
    """
    if packed:
        flat = unpacked(graph, name, shared.indices, shared.bits)
        index = graph.op("Reshape", [flat, ints(graph, name, shared.indices.shape)], hint=f"{name}_indices")
    else:
        stored = graph.new_constant(f"{name}_bytes", shared.indices)
        index = graph.op("Cast", [stored], attrs={"to": int(onnx.TensorProto.INT32)}, hint=f"{name}_index")
    offsets = shared.offsets()
    if offsets is not None:
        first = graph.new_constant(f"{name}_first", offsets)
        index = graph.op("Add", [index, first], hint=f"{name}_entry")
    palette = graph.new_constant(f"{name}_palette", shared.palettes.reshape(-1))
    return graph.op("Gather", [palette, index], hint=f"{name}_shared")


def gathered_bytes(name: str, shared: Shared, *, packed: bool) -> int:
    """About what `gathered` adds to a file: indices, palettes, nodes and names."""
    size, bits = shared.indices.size, shared.bits
    offsets = shared.offsets()
    nodes = 320 + 13 * len(name)
    if offsets is not None:
        nodes += offsets.nbytes + 150 + 5 * len(name)
    if packed and bits != 8:
        # For each power of two in the width a plane with nodes of its own.
        nodes += bits.bit_count() * (650 + 28 * len(name)) - 320
    stored = -(-size * bits // 8) if packed else size
    return stored + shared.palettes.nbytes + nodes


def stored_arrays(shared: Shared, *, packed: bool) -> list[Array]:
    """What the initializers of `gathered` hold, as bytes that deflate about as well."""
    if not packed or shared.bits == 8:
        return [shared.palettes, shared.indices]
    places = np.arange(shared.bits, dtype=np.uint8)
    # Only the sample that is deflated matters.
    flat = shared.indices.reshape(-1)
    return [shared.palettes, np.packbits((flat[:, None] >> places) & 1)]


def uniform_grid(
    values: Array, bits: int, axis: int | None, block: int, importance: Array | None, *, four: bool
) -> Grid:
    """The palette of evenly spaced entries around 0 of least (weighted) squared error.

    The search of `weight_grid`, and then by turns the nearest entries and the best step for them.

    Args:
        values: a weight.
        bits: 2**bits entries.
        axis, block: what has a step of its own, as for `weight_grid`.
        importance: what the square of each weight's error counts; None: the same.
        four: 4-bit integers exist in the model's opset.
    """
    container = QUANT_TYPES["int4" if four and bits <= 4 else "int8"]
    type = replace(container, qmin=-(1 << (bits - 1)), qmax=(1 << (bits - 1)) - 1)
    grid = weight_grid(values, type, axis=axis, block=block, method="mse")
    if importance is None:
        return grid
    for _ in range(_ROUNDS):
        q = grid.quantize(values).astype(np.float64)
        up, down = (_sums(importance * q * t, axis, block) for t in (values, q))
        scale = np.divide(up, down, out=grid.scale.astype(np.float64), where=(down > 0) & (up > 0))
        scale = scale.astype(np.float32)
        if np.array_equal(scale, grid.scale):
            break
        grid = replace(grid, scale=scale)
    return grid


def _sums(terms: Array, axis: int | None, block: int) -> Array:
    """Sums of what shares a step."""
    if axis is None:
        return np.asarray(terms.sum())
    if not block:
        return np.asarray(terms.sum(axis=tuple(a for a in range(terms.ndim) if a != axis)))
    return np.add.reduceat(terms, np.arange(0, terms.shape[axis], block), axis=axis)
