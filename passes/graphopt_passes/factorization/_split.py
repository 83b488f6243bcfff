"""Writing a layer as two."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passkit import Array, GraphView, Node, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.linear.layer import Floats, LinearLayer, bias_place


def split(graph: Rewriter, layer: LinearLayer, left: Floats, right: Floats, shift: Floats | None) -> None:
    """Y = X V^T U^T: a new node multiplies with V, and the layer's node, which stays, with U. Inside a site.

    Args:
        graph: the layer's body.
        layer: the layer.
        left: U, (G, N, r).
        right: V, (G, r, K).
        shift: what its bias moves by, (G, N); None: it stays.

    Raises:
        RefusedRewrite: a number is too large for the weight's dtype.
    """
    node, slot = layer.node, layer.slot
    old = graph.constant(graph.input(node, slot))
    assert old is not None
    x = node.inputs[layer.data_slot]
    groups, rank, _ = right.shape
    if node.op == "Conv":
        first = _stored(right.reshape(groups * rank, *layer.stored[1:]), old.dtype)
        second = _stored(left.reshape(layer.outputs, rank, *(1,) * (len(layer.stored) - 2)), old.dtype)
    else:
        first, second = (_stored(m[0].T if layer.flip else m[0], old.dtype) for m in (right, left))
    inputs: list[Tensor | None] = [x, x]
    inputs[slot] = graph.new_constant(f"{old.name}_right", first)
    if node.op == "Gemm" and graph.opset < 11:
        inputs.append(graph.new_constant("zero", np.zeros(1, old.dtype)))  # C could not be left out yet
    inner = graph.op(
        node.op, inputs, attrs=_first_attributes(graph, layer), hint=f"{node.outputs[0].name}_low"
    )
    graph.set_input(node, slot, graph.new_constant(f"{old.name}_left", second))
    graph.set_input(node, layer.data_slot, inner)
    for name, value in _second_attributes(layer).items():
        if value is not None or name in node.attrs:
            graph.set_attr(node, name, value)
    if shift is not None:
        _move_bias(graph, node, shift, old.dtype)


def _stored(values: Floats, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values.astype(dtype))
    if not np.isfinite(stored.astype(np.float64)).all():
        raise RefusedRewrite(f"a factor is too large for {np.dtype(dtype).name}")
    return stored


def _first_attributes(graph: GraphView, layer: LinearLayer) -> dict[str, Any]:
    node = layer.node
    if node.op == "MatMul":
        return {}
    if node.op == "Gemm":
        flips = {name: graph.attr(node, name) for name in ("transA", "transB")}
        return {name: 1 for name, flip in flips.items() if flip}
    names = ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad")
    return {name: node.attrs[name] for name in names if name in node.attrs}


def _second_attributes(layer: LinearLayer) -> dict[str, Any]:
    """What the node, which reads the product with V, must be told now; None: nothing of the kind."""
    if layer.node.op == "MatMul":
        return {}
    if layer.node.op == "Gemm":
        # What the first product is comes as rows, whatever the data was.
        return {"transA" if layer.slot == 1 else "transB": None}
    spatial = len(layer.stored) - 2
    gone = dict.fromkeys(("strides", "pads", "dilations", "auto_pad"))
    return {"kernel_shape": [1] * spatial if "kernel_shape" in layer.node.attrs else None, **gone}


def can_shift(graph: GraphView, layer: LinearLayer) -> bool:
    """Whether the bias of the layer can take a change of the mean output.

    Not that of a MatMul: its rows are often tokens, and those of the padding have a mean of their own.
    """
    node = layer.node
    if node.op == "MatMul" or layer.slot != 1 or bias_place(graph, node) is None:
        return False
    bias = graph.input(node, 2)
    if bias is None:
        return node.op == "Conv"
    constant = graph.constant(bias)
    if constant is None or int(np.prod(constant.shape)) != layer.outputs:
        return False
    return constant.shape[-1] == layer.outputs and (node.op == "Conv" or graph.attr(node, "beta") == 1.0)


def _move_bias(graph: Rewriter, node: Node, shift: Floats, dtype: Any) -> None:
    bias = graph.array(graph.input(node, 2))
    moved = shift.reshape(-1) if bias is None else bias.astype(np.float64) + shift.reshape(bias.shape)
    graph.set_input(node, 2, graph.new_constant("bias", _stored(moved, dtype)))
