"""Operands that were attributes in older opsets and are inputs today, and nodes that can be absorbed."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from graphopt.passkit import AttributeRef, GraphView, Node, RefusedRewrite, Tensor

# onnx.TensorProto.DataType, as plain ints.
FLOATS: Final = frozenset({1, 10, 11, 16})
INTEGERS: Final = frozenset({2, 3, 4, 5, 6, 7, 12, 13})

# A constant of more elements than this is not searched for being uniform.
_MAX_UNIFORM: Final = 1 << 20


def known_ints(graph: GraphView, tensor: Tensor | None) -> list[int] | None:
    """The elements of a small integer tensor if all of them are known, whoever computes it."""
    values = graph.sym_value(tensor)
    if values is None or not all(isinstance(v, int) for v in values):
        return None
    return [int(v) for v in values if isinstance(v, int)]


def operand(graph: GraphView, node: Node, name: str, slot: int, since: int) -> list[int] | None:
    """The integers that `node` takes as attribute `name`, or from opset `since` as input `slot`.

    Returns:
        The integers, None where they are not given.

    Raises:
        RefusedRewrite: they are given, but not known before the model runs.
    """
    if graph.opset < since:
        given: Any = graph.attr(node, name)
        if isinstance(given, AttributeRef):
            raise RefusedRewrite(f"the {name} of {label(node)} is an argument of the function")
        return None if given is None else [int(v) for v in given]
    tensor = graph.input(node, slot)
    if tensor is None:
        return None
    values = known_ints(graph, tensor)
    if values is None:
        raise RefusedRewrite(f"the operand {name} of {label(node)} is not constant")
    return values


def attribute(graph: GraphView, node: Node, name: str) -> Any:
    """The value of an attribute, or its default.

    Raises:
        RefusedRewrite: it refers to an argument of the enclosing function.
    """
    value = graph.attr(node, name)
    if isinstance(value, AttributeRef):
        raise RefusedRewrite(f"{name} of {label(node)} is an argument of the function")
    return value


def label(node: Node) -> str:
    """How to name `node` to a person."""
    return f"{node.op} {node.name or next((t.name for t in node.outputs if t.name), '')}".rstrip()


def absorbable(graph: GraphView, tensor: Tensor | None, *ops: str, siblings: bool = False) -> Node | None:
    """The node of this body, one of `ops`, that computes `tensor` for a single reader.

    Args:
        graph: the body.
        tensor: what it computes.
        ops: accepted operator types.
        siblings: several readers will do if each is such a node as well, of this body and not kept: each
            may be merged with it in turn, and it goes with the last of them.

    Returns:
        The node, None when `tensor` is computed by something else, or in another body.

    Raises:
        RefusedRewrite: it is such a node, but must stay: others read `tensor`, or the user keeps it.
    """
    node = graph.producer_op(tensor, *ops)
    if node is None or tensor is None or not graph.is_local(tensor):
        return None
    if graph.is_output(tensor):
        raise RefusedRewrite(f"the {node.op} output {tensor.name} is a graph output")
    if graph.sole_consumer(tensor) is None and not (
        siblings
        and all(
            graph.is_live(n) and graph.is_op(n, *ops) and not graph.keeps(n) for n in graph.consumers(tensor)
        )
    ):
        raise RefusedRewrite(f"the {node.op} output {tensor.name} has another reader")
    if graph.keeps(node):
        raise RefusedRewrite(f"{label(node)} is kept")
    return node


def normalized(axes: list[int], rank: int | None, node: Node) -> list[int]:
    """`axes` counted from the front.

    Raises:
        RefusedRewrite: one is counted from the back and the rank is unknown, or there is no such axis, or
            one occurs twice.
    """
    if rank is None:
        if any(a < 0 for a in axes):
            raise RefusedRewrite(f"{label(node)} counts axes from the back and the rank is unknown")
        result = list(axes)
    else:
        if not all(-rank <= a < rank for a in axes):
            raise RefusedRewrite(f"{label(node)} has an axis that does not exist")
        result = [a % rank for a in axes]
    if len(set(result)) != len(result):
        raise RefusedRewrite(f"{label(node)} has the same axis twice")
    return result


def uniform(graph: GraphView, tensor: Tensor | None) -> np.generic | None:
    """The element of a constant all of whose elements are bit for bit the same, else None."""
    constant = graph.constant(tensor)
    if constant is None or not 0 < math.prod(constant.shape) <= _MAX_UNIFORM:
        return None
    values: np.ndarray[Any, Any] = constant.values
    if values.dtype.itemsize not in (1, 2, 4, 8) or values.dtype.kind == "O":
        return None
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = flat.view(f"u{flat.dtype.itemsize}")
    if bits[0] != bits[-1] or (bits != bits[0]).any():
        return None
    first: np.generic = flat[0]
    return first


def is_neutral_shape(graph: GraphView, output: Tensor, data: Tensor, constant: Tensor) -> bool:
    """Whether broadcasting `data` with `constant` provably gives `output` the shape of `data`."""
    shape = graph.shape(data)
    if shape is not None and graph.shape(output) == shape:
        return True
    # Before opset 7 broadcasting was another one, asked for by attributes.
    of_constant = graph.static_shape(constant)
    if graph.opset < 7 or of_constant is None or any(d != 1 for d in of_constant):
        return False
    return len(of_constant) == 0 or (shape is not None and len(of_constant) <= len(shape))


def same_shape(graph: GraphView, a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` provably have the same shape."""
    shape = graph.shape(a)
    return shape is not None and shape == graph.shape(b)
