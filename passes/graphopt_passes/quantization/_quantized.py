"""Nodes that read quantized weights: finding them, and giving them other weights or biases.

The form is standard ONNX: an integer initializer goes through DequantizeLinear into the node; activations go
through QuantizeLinear and DequantizeLinear; a bias is float, or int32 through DequantizeLinear with the
scale of the activation times that of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from graphopt.passkit import Array, Constant, GraphView, Node, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import QUANT_TYPES, Grid, QuantType, quant_type
from graphopt_passes.linear.layer import BIAS_SLOTS, bias_place

#: Where operators read weights.
WEIGHT_SLOTS: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
}

INT32: Final = QUANT_TYPES["int32"]
# int32 biases stay below this, so that what is added to them in the accumulator does not overflow.
BIAS_LIMIT: Final = (1 << 30) - 1


@dataclass(frozen=True, eq=False)
class QuantizedNode:
    """A node that reads a quantized weight.

    Attributes:
        node: the node.
        slot: where it reads the weight.
        dq: the DequantizeLinear in between.
        q: the integers, an initializer.
        grid: their grid.
        inputs: grids of the node's other inputs that come out of a QuantizeLinear and DequantizeLinear, by
            slot; empty where only weights are quantized.
        bias: the constant bias, None without one; of a MatMul that of the Add behind it.
        bias_at: the node and slot that read the bias, or would.
        bias_dq: the DequantizeLinear of an integer bias.
    """

    node: Node
    slot: int
    dq: Node
    q: Constant
    grid: Grid
    inputs: Mapping[int, Grid]
    bias: Tensor | None = None
    bias_at: tuple[Node, int] | None = None
    bias_dq: Node | None = None

    @property
    def data_slot(self) -> int:
        """Where the node reads what is multiplied with the weight."""
        return 1 - self.slot


def read_grid(graph: GraphView, node: Node) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None when it is not constant or no integer grid."""
    scale = graph.array(graph.input(node, 1))
    zero_tensor = graph.input(node, 2)
    zero = graph.array(zero_tensor)
    if scale is None or scale.dtype != np.float32 or (zero_tensor is not None and zero is None):
        return None
    kind = _integers(graph, node)
    if kind is None:
        return None
    if scale.size == 1 and scale.ndim <= 1:
        return Grid(kind, scale.reshape(()), None if zero is None else zero.reshape(()))
    rank = graph.rank(graph.input(node, 0))
    axis = graph.attr(node, "axis")
    axis = 1 if axis is None else int(axis)
    if axis < 0:
        if rank is None:
            return None
        axis += rank
    block = int(graph.attr(node, "block_size") or 0)
    if (scale.ndim != 1) == (block == 0):
        return None
    return Grid(kind, scale, zero, axis, block)


def _integers(graph: GraphView, node: Node) -> QuantType | None:
    if node.op == "DequantizeLinear":
        return quant_type(graph.dtype(graph.input(node, 0)))
    zero = graph.input(node, 2)
    if zero is not None:
        return quant_type(graph.dtype(zero))
    return quant_type(graph.attr(node, "output_dtype") or QUANT_TYPES["uint8"].onnx_type)


def activation_grid(graph: GraphView, tensor: Tensor | None) -> Grid | None:
    """The grid on which `tensor` lies when it comes out of a QuantizeLinear and a DequantizeLinear.

    Also when operators that only move elements stand between the two.
    """
    dq = graph.producer_op(tensor, "DequantizeLinear")
    if dq is None or graph.is_constant(graph.input(dq, 0)):
        return None
    return read_grid(graph, dq)


def find_quantized(graph: GraphView) -> list[QuantizedNode]:
    """The nodes of this body that read a weight through DequantizeLinear, in topological order."""
    found = []
    for node in graph.nodes():
        if node.domain or node.op not in WEIGHT_SLOTS or not graph.is_op(node, node.op):
            continue
        for slot in WEIGHT_SLOTS[node.op]:
            quantized = _read(graph, node, slot)
            if quantized is not None:
                found.append(quantized)
                break
    return found


def find_quantized_node(graph: GraphView, node: Node) -> QuantizedNode | None:
    """`node` as a node with a quantized weight, None when it has none."""
    for slot in WEIGHT_SLOTS.get(node.op, ()):
        quantized = _read(graph, node, slot)
        if quantized is not None:
            return quantized
    return None


def _read(graph: GraphView, node: Node, slot: int) -> QuantizedNode | None:
    dq = graph.producer_op(graph.input(node, slot), "DequantizeLinear")
    q = None if dq is None else graph.constant(graph.input(dq, 0))
    grid = None if dq is None or q is None else read_grid(graph, dq)
    if dq is None or q is None or grid is None:
        return None
    inputs = {}
    for other in range(len(node.inputs)):
        if other not in (slot, BIAS_SLOTS.get(node.op)):
            activation = activation_grid(graph, graph.input(node, other))
            if activation is not None:
                inputs[other] = activation
    made = QuantizedNode(node, slot, dq, q, grid, inputs)
    return _with_bias(graph, made)


def _with_bias(graph: GraphView, quantized: QuantizedNode) -> QuantizedNode:
    place = bias_place(graph, quantized.node)
    if place is None:
        return quantized
    bias = graph.input(*place)
    dq = graph.producer_op(bias, "DequantizeLinear")
    if dq is not None and graph.is_constant(graph.input(dq, 0)):
        return replace(quantized, bias=bias, bias_at=place, bias_dq=dq)
    if bias is not None and not graph.is_constant(bias):
        return quantized  # computed at run time: not ours to change
    return replace(quantized, bias=bias, bias_at=place)


def weight_array(graph: GraphView, quantized: QuantizedNode) -> Array:
    """The float values of the weight as the node reads it."""
    q = graph.array(quantized.q)
    assert q is not None
    return quantized.grid.dequantize(q)


def bias_array(graph: GraphView, quantized: QuantizedNode) -> Array | None:
    """The float values of the bias as the node reads it, None when there is none."""
    if quantized.bias_dq is None:
        return graph.array(quantized.bias)
    q, grid = graph.array(graph.input(quantized.bias_dq, 0)), read_grid(graph, quantized.bias_dq)
    return None if q is None or grid is None else grid.dequantize(q)


def bias_scale(activation: Grid, weight: Grid) -> Array | None:
    """What one unit of the product's accumulator is worth: float32, scalar or per output; None in blocks."""
    if weight.block or activation.scale.ndim:
        return None
    product: Array = activation.scale * weight.scale
    return product


def dequantize(
    graph: Rewriter, q: Array, grid: Grid, hint: str, *, parts: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """A DequantizeLinear of a new initializer `q`.

    Args:
        graph: where to put it; inside a site.
        q: stored integers.
        grid: their grid.
        hint: what to name it after.
        parts: scale and zero point to read, where initializers of them are there already.
    """
    scale, zero = parts or (
        graph.new_constant(f"{hint}_scale", grid.scale),
        graph.new_constant(f"{hint}_zero_point", grid.zero_points()),
    )
    constant = graph.new_constant(f"{hint}_quantized", q)
    return graph.op("DequantizeLinear", [constant, scale, zero], attrs=grid_attrs(grid), hint=f"{hint}_dq")


def grid_attrs(grid: Grid) -> dict[str, int]:
    """Attributes of QuantizeLinear and DequantizeLinear for `grid`."""
    attrs = {} if grid.axis is None else {"axis": grid.axis}
    return {**attrs, "block_size": grid.block} if grid.block else attrs


def set_weight(
    graph: Rewriter, quantized: QuantizedNode, q: Array, why: str, *, grid: Grid | None = None
) -> QuantizedNode:
    """Have the node read other integers, from new initializers; other readers keep the old ones.

    Args:
        graph: the body of the node.
        quantized: the node.
        q: integers of the old shape and dtype.
        why: the change in words.
        grid: their grid where it differs from the old one; an integer bias is then rounded again.

    Returns:
        The node as it is now.

    Raises:
        RefusedRewrite: the user keeps the node.
    """
    node, old = quantized.node, quantized.dq
    name = quantized.q.name.removesuffix("_quantized")
    bias = bias_array(graph, quantized) if grid is not None and quantized.bias_dq is not None else None
    with graph.site(node, why):
        parts = None
        if grid is None and len(old.inputs) == 3:
            parts = (old.inputs[1], old.inputs[2])
        fresh = dequantize(graph, q, grid or quantized.grid, name, parts=parts)
        graph.set_input(node, quantized.slot, fresh)
        if bias is not None:
            now = find_quantized_node(graph, node)
            assert now is not None
            set_bias(graph, now, bias, why)
    return find_quantized_node(graph, node) or quantized


def set_bias(
    graph: Rewriter, quantized: QuantizedNode, bias: Array, why: str, *, integer: bool | None = None
) -> QuantizedNode:
    """Have the node add another bias, from a new initializer.

    Args:
        graph: the body of the node.
        quantized: the node; of a MatMul the Add behind it gets the bias.
        bias: float values of the old bias's shape, or one per output of a node without a bias.
        why: the change in words.
        integer: int32 through DequantizeLinear, or float; as before by default, and without a bias before
            int32 where unsigned activations are multiplied.

    Returns:
        The node as it is now.

    Raises:
        RefusedRewrite: there is no place for a bias, or the user keeps the node.
    """
    node, place = quantized.node, quantized.bias_at
    if place is None:
        raise RefusedRewrite(f"{node.op} {node.name} has no constant bias and no place for one")
    activation = quantized.inputs.get(quantized.data_slot)
    scale = None if activation is None else bias_scale(activation, quantized.grid)
    if integer is None:
        had = quantized.bias_dq is not None
        unsigned = activation is not None and not activation.type.signed
        integer = had or (quantized.bias is None and unsigned)
    values = np.asarray(bias, np.float32)
    hint = f"{node.name or node.outputs[0].name}_bias"
    with graph.site(node, why):
        if integer and scale is not None:
            graph.set_input(*place, int32_bias(graph, values, scale, hint))
        else:
            graph.set_input(*place, graph.new_constant(hint, values))
    return find_quantized_node(graph, node) or quantized


def int32_bias(graph: Rewriter, values: Array, scale: Array, hint: str) -> Tensor:
    """A bias as DequantizeLinear of int32, with one scale per element or one in all; inside a site.

    Args:
        graph: where to put it.
        values: float values, of one axis longer than 1 at most.
        scale: see `bias_scale`.
        hint: what to name it after.
    """
    flat = values.reshape(-1)
    spread = np.broadcast_to(scale.reshape(-1) if scale.ndim else scale, flat.shape).astype(np.float32)
    q = np.clip(np.rint(flat.astype(np.float64) / spread), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return dequantize(graph, q, Grid(INT32, np.array(spread), None, 0), hint)
