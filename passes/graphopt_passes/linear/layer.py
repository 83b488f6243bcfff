"""Convolutions and matrix products as the product of rows of inputs and a matrix of weights.

Every layer is seen as Y = X W^T in groups: X (G, rows, K), W (G, N, K), Y (G, rows, N). G is 1 except for
grouped and depthwise convolutions. What a bias adds is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graphopt.passkit import Array, AttributeRef, Constant, GraphView, Node, RefusedRewrite, Rewriter
from graphopt_passes.linear.rows import ConvRows, MatrixRows

Floats = NDArray[np.float64]

#: Where layers read their weight; the first slot that holds a constant counts.
WEIGHT_SLOTS: Final[Mapping[str, tuple[int, ...]]] = {"Conv": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}
#: Where operators read the bias.
BIAS_SLOTS: Final[Mapping[str, int]] = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A node with a constant weight, and how to see it as a matrix.

    Attributes:
        node: a Conv, Gemm or MatMul.
        slot: where it reads the weight.
        unfolding: how inputs and outputs become rows.
        shape: (G, N, K).
        stored: shape of the weight as it is stored.
        flip: the stored weight is (K, N).
    """

    node: Node
    slot: int
    unfolding: MatrixRows | ConvRows
    shape: tuple[int, int, int]
    stored: tuple[int, ...]
    flip: bool

    @property
    def data_slot(self) -> int:
        """Where the node reads what is multiplied with the weight."""
        return 1 - self.slot

    @property
    def outputs(self) -> int:
        """Outputs per row of all groups together."""
        return self.shape[0] * self.shape[1]

    @property
    def is_depthwise(self) -> bool:
        """A convolution whose outputs see one channel each."""
        return self.shape[0] > 1 and self.node.op == "Conv" and self.stored[1] == 1

    @property
    def channel_axis(self) -> int:
        """The axis of the node's output along which its outputs lie; negative ones count from the end."""
        if isinstance(self.unfolding, ConvRows):
            return 1
        return -2 if self.unfolding.flip_y else -1

    def to_rows(self, weight: Array) -> Array:
        """The stored form as (G, N, K)."""
        rows: Array = (weight.T if self.flip else weight).reshape(self.shape)
        return rows

    def from_rows(self, rows: Array) -> Array:
        """(G, N, K) in the stored form."""
        if self.flip:
            rows = rows.reshape(self.stored[::-1]).T
        return np.ascontiguousarray(rows.reshape(self.stored))


def linear_layers(
    graph: Rewriter, check: Callable[[LinearLayer], None] = lambda layer: None
) -> list[LinearLayer]:
    """The layers of a body whose weight is a float constant, in the order of the graph.

    What has a constant weight and still cannot be taken is refused with a reason.

    Args:
        graph: a body.
        check: raises RefusedRewrite for a layer that is not wanted.
    """
    layers = []
    for node in graph.nodes():
        if node.op not in WEIGHT_SLOTS or not graph.is_op(node, node.op):
            continue
        slot = weight_slot(graph, node)
        if slot is None:
            continue
        try:
            layer = read_linear(graph, node, slot)
            if graph.keeps(node):
                raise RefusedRewrite(f"{node.name} is kept")
            check(layer)
        except RefusedRewrite as refused:
            graph.refuse(node, refused.reason)
            continue
        layers.append(layer)
    return layers


def weight_slot(graph: GraphView, node: Node) -> int | None:
    """Where `node` reads a float constant of two axes or more as its weight; None when it reads none."""
    for slot in WEIGHT_SLOTS.get(node.op, ()):
        constant = graph.constant(graph.input(node, slot))
        if constant is not None and len(constant.shape) >= 2 and _is_float(constant):
            return slot
    return None


def _is_float(constant: Constant) -> bool:
    # Half precision from ml_dtypes has kind V: told by its name.
    dtype = np.dtype(constant.dtype)
    return dtype.kind == "f" or dtype.name == "bfloat16"


def read_linear(
    graph: GraphView, node: Node, slot: int, stored: tuple[int, ...] | None = None
) -> LinearLayer:
    """`node` as rows and columns.

    Args:
        graph: its body.
        node: the node.
        slot: where it reads the weight.
        stored: the weight's shape where `slot` does not hold the constant itself.

    Raises:
        RefusedRewrite: it is not a convolution or the product with one matrix.
    """
    if stored is None:
        constant = graph.constant(graph.input(node, slot))
        if constant is None:
            raise RefusedRewrite("the weight is not constant")
        stored = tuple(int(d) for d in constant.shape)
    if 0 in stored:
        raise RefusedRewrite("the weight has no elements")
    if node.op == "Conv":
        return _conv(graph, node, slot, stored)
    if node.op not in ("Gemm", "MatMul"):
        raise RefusedRewrite(f"{node.op} is no convolution or matrix product")
    if len(stored) != 2:
        raise RefusedRewrite(f"the weight of {node.op} has {len(stored)} axes, not 2")
    trans_a = trans_b = False
    alpha = 1.0
    if node.op == "Gemm":
        trans_a, trans_b, alpha = (_attribute(graph, node, n) for n in ("transA", "transB", "alpha"))
    if slot == 0:
        columns, rows = stored if trans_a else stored[::-1]
        unfolding = MatrixRows(not trans_b, True, float(alpha))
        return LinearLayer(node, slot, unfolding, (1, rows, columns), stored, bool(trans_a))
    rows, columns = stored if trans_b else stored[::-1]
    unfolding = MatrixRows(bool(trans_a), False, float(alpha))
    return LinearLayer(node, slot, unfolding, (1, rows, columns), stored, not trans_b)


def _conv(graph: GraphView, node: Node, slot: int, stored: tuple[int, ...]) -> LinearLayer:
    if slot != 1 or len(stored) < 3:
        raise RefusedRewrite("the weight of Conv is not its filter")
    kernel = stored[2:]
    ones = (1,) * len(kernel)
    read = {n: _attribute(graph, node, n) for n in ("group", "auto_pad", "strides", "dilations", "pads")}
    groups, mode = int(read["group"]), str(read["auto_pad"] or "NOTSET")
    if groups < 1 or stored[0] % groups:
        raise RefusedRewrite("the weight of Conv does not fit its groups")
    unfolding = ConvRows(
        groups,
        kernel,
        tuple(read["strides"] or ones),
        tuple(read["dilations"] or ones),
        tuple(read["pads"] or (0,) * 2 * len(kernel)) if mode == "NOTSET" else None,
        mode,
    )
    shape = groups, stored[0] // groups, math.prod(stored[1:])
    return LinearLayer(node, slot, unfolding, shape, stored, False)


def _attribute(graph: GraphView, node: Node, name: str) -> Any:
    value = graph.attr(node, name)
    if isinstance(value, AttributeRef):
        raise RefusedRewrite(f"{name} of {node.op} is a parameter of the function")
    return value.decode() if isinstance(value, bytes) else value


def weight_rows(graph: GraphView, layer: LinearLayer) -> Floats:
    """The weight of a layer, (G, N, K), a copy."""
    values = graph.array(graph.input(layer.node, layer.slot))
    assert values is not None
    return layer.to_rows(values).astype(np.float64)


def set_weight_rows(graph: Rewriter, layer: LinearLayer, rows: Floats, why: str) -> None:
    """Have a layer read another weight of the same shape and dtype, a new initializer.

    Other readers of the old one keep it.

    Args:
        graph: the layer's body.
        layer: the layer.
        rows: (G, N, K).
        why: the change in words, if this call is a site of its own.

    Raises:
        RefusedRewrite: a weight is too large for the dtype, or the user keeps the node.
    """
    old = graph.constant(graph.input(layer.node, layer.slot))
    assert old is not None
    with np.errstate(over="ignore"):
        values = layer.from_rows(rows).astype(old.dtype)
    if not np.isfinite(values).all():
        raise RefusedRewrite(f"its new weights are too large for {np.dtype(old.dtype).name}")
    with graph.site(layer.node, why):
        graph.set_input(layer.node, layer.slot, graph.new_constant(old.name, values))


def bias_place(graph: GraphView, node: Node) -> tuple[Node, int] | None:
    """The node and slot that read the bias of `node`, or would; None where there is no place for one.

    For a MatMul that is the Add behind it, where that adds a constant of one axis longer than 1 at most. The
    constant may come through DequantizeLinear.
    """
    if node.op in BIAS_SLOTS:
        return node, BIAS_SLOTS[node.op]
    if node.op != "MatMul":
        return None
    add = graph.sole_consumer(node.outputs[0])
    if add is None or not graph.is_op(add, "Add") or len(add.inputs) != 2:
        return None
    slot = 1 if add.inputs[0] is node.outputs[0] else 0
    other = add.inputs[slot]
    dq = graph.producer_op(other, "DequantizeLinear")
    source = other if dq is None else graph.input(dq, 0)
    shape = graph.static_shape(other)
    if not graph.is_constant(source) or shape is None or len([d for d in shape if d != 1]) > 1:
        return None
    return add, slot
