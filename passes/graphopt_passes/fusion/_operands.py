"""Reading the surroundings of a linear operator: what a fold may absorb, and what it may cost.

The readers raise RefusedRewrite with the reason when a node that looks right cannot take part in a fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.passkit import Array, AttributeRef, GraphView, Node, PassContext, RefusedRewrite, Tensor

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
# Before opset 7 elementwise operators broadcast by attribute, and Gemm's C likewise.
NUMPY_BROADCASTING = 7


def attribute(graph: GraphView, node: Node, name: str) -> Any:
    """An attribute's value in this body.

    Raises:
        RefusedRewrite: it refers to an attribute of the enclosing function, so it has no one value.
    """
    value = graph.attr(node, name)
    if isinstance(value, AttributeRef):
        raise RefusedRewrite(f"{name} of {node.op} is a parameter of the function")
    return value


def absorbed(graph: GraphView, reader: Node, tensor: Tensor | None, *ops: str) -> Node | None:
    """The node of type `ops` that computes `tensor`, if a rewrite of `reader` makes it vanish.

    Returns:
        None when something else computes it.

    Raises:
        RefusedRewrite: it would have to stay: it has other readers, or is an output, or is kept.
    """
    node = graph.producer_op(tensor, *ops)
    if node is None or tensor is None or not graph.is_live(node) or node.outputs[0] is not tensor:
        return None
    if graph.is_output(tensor):
        raise RefusedRewrite(f"the {node.op} output {tensor.name} is a graph output")
    if graph.sole_consumer(tensor) is not reader:
        raise RefusedRewrite(f"the {node.op} output {tensor.name} has another reader")
    if graph.keeps(node):
        raise RefusedRewrite(f"{node.name or tensor.name} is kept")
    return node


@dataclass(frozen=True)
class Operands:
    """The operands of a binary elementwise node, one of which is constant.

    Attributes:
        constant_first: the node is `constant op variable`.
    """

    variable: Tensor
    constant: Tensor
    constant_first: bool

    def small_values(self, graph: GraphView, limit: int) -> Array | None:
        """The constant's values; None, without loading them, when there are more than `limit`."""
        found = graph.constant(self.constant)
        if found is None or math.prod(found.shape) > max(limit, 1):
            return None
        return graph.array(self.constant)


def constant_operand(graph: GraphView, node: Node) -> Operands | None:
    """The operands of a binary elementwise node.

    Returns:
        None when neither or both are constant, or the node broadcasts by attribute (opset < 7).
    """
    left, right = graph.input(node, 0), graph.input(node, 1)
    if left is None or right is None or graph.opset < NUMPY_BROADCASTING:
        return None
    first, second = graph.is_constant(left), graph.is_constant(right)
    if first == second:
        return None
    return Operands(right, left, True) if first else Operands(left, right, False)


def declines_reversed(node: Node, operands: Operands) -> None:
    """Decline `c - x` and `c / x`, which scale by -1 or do not scale at all."""
    if operands.constant_first and node.op in ("Sub", "Div"):
        raise RefusedRewrite(f"{node.op} takes the constant {operands.constant.name} first")


def ends_composite(graph: GraphView, tensor: Tensor) -> bool:
    """Whether `tensor` looks like the end of an activation or normalization spelled out in small operators.

    Gelu, HardSwish, LayerNormalization and their kin end in a product or quotient of two computed tensors,
    perhaps followed by constants. Runtimes recognize the spelling and execute it as one kernel, which they
    cannot once its last constant has moved elsewhere.
    """
    for _ in range(4):
        node = graph.producer_op(tensor, "Mul", "Div", "Add", "Sub", "Cast")
        if node is None:
            return False
        if node.op == "Cast":
            tensor = node.inputs[0]
            continue
        operands = constant_operand(graph, node)
        if operands is None:
            return node.op in ("Mul", "Div")
        tensor = operands.variable
    return False


@dataclass(frozen=True)
class BatchNorm:
    """The parameters of an inference BatchNormalization, each `(C,)`."""

    gamma: Array
    beta: Array
    mean: Array
    var: Array
    epsilon: float

    @property
    def channels(self) -> int:
        """C."""
        return len(self.gamma)

    @property
    def deviation(self) -> Array:
        """How far the input spreads around its mean: sqrt(var + epsilon), float64."""
        deviation: Array = np.sqrt(self.var.astype(np.float64) + self.epsilon)
        return deviation


def read_batch_norm(graph: GraphView, node: Node) -> BatchNorm:
    """Read a BatchNormalization.

    Raises:
        RefusedRewrite: it trains, normalizes every element by itself (spatial=0), or has a parameter that
            is not constant.
    """
    # Training is an attribute from opset 14 on, asked for by further outputs from 7 on, and the default
    # before that.
    trains = any(t.name for t in node.outputs[1:])
    if graph.opset >= 14:
        trains = trains or bool(attribute(graph, node, "training_mode"))
    elif graph.opset < NUMPY_BROADCASTING:
        trains = trains or not attribute(graph, node, "is_test")
    if trains:
        raise RefusedRewrite("BatchNormalization is in training mode")
    if attribute(graph, node, "spatial") == 0:  # None from opset 9 on
        raise RefusedRewrite("BatchNormalization has spatial=0")
    epsilon = float(attribute(graph, node, "epsilon"))
    arrays: list[Array] = []
    shape = graph.static_shape(graph.input(node, 1))
    for t in node.inputs[1:5]:
        if not graph.is_constant(t):
            raise RefusedRewrite(f"{t.name} of BatchNormalization is not constant")
        values = graph.array(t)
        if values is None or values.ndim != 1 or values.shape != shape:
            raise RefusedRewrite("the parameters of BatchNormalization are not vectors of one size")
        arrays.append(values)
    if len(arrays) != 4:
        raise RefusedRewrite("BatchNormalization lacks parameters")
    gamma, beta, mean, var = arrays
    return BatchNorm(gamma, beta, mean, var, epsilon)


def check_growth(
    graph: GraphView,
    ctx: PassContext,
    node: Node,
    replaced: Iterable[tuple[Tensor | None, int]],
    folded: Node | None = None,
) -> None:
    """Decline a fold that copies a large constant which somebody else still reads.

    Args:
        graph: the body.
        ctx: for the limits.
        node: the linear operator that vanishes.
        replaced: pairs of a constant that `node` reads (None: it reads none) and the number of bytes of
            the constant that takes its place.
        folded: the other operator that vanishes, and with it the constants that only it reads.

    Raises:
        RefusedRewrite: the model would grow by more than the limit.
    """
    growth, shared = 0, ""
    for old, nbytes in replaced:
        growth += nbytes
        constant = graph.constant(old)
        if old is None or constant is None:
            continue
        if graph.only_read_by(old, (node,)):
            growth -= constant.nbytes
        else:
            shared = f"{old.name} has other readers: "
    for t in dict.fromkeys(folded.inputs if folded is not None else ()):
        constant = graph.constant(t)
        if folded is not None and constant is not None and graph.only_read_by(t, (folded,)):
            growth -= constant.nbytes
    if growth > ctx.limits.growth_bytes:
        raise RefusedRewrite(f"{shared}a folded copy would add {growth} bytes to the model")
