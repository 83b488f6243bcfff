"""com.microsoft's DynamicQuantizeLSTM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from graphopt.passkit import Array, AttributeRef, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import QuantType, WeightMethod, weight_grid
from graphopt_passes.quantization._weights import finite_values

_OP = "DynamicQuantizeLSTM"
_ATTRS = (
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
)
_PEEPHOLES = 7


def quantize_lstm(
    graph: Rewriter,
    ctx: PassContext,
    node: Node,
    type: QuantType,
    method: WeightMethod,
    min_elements: int,
) -> None:
    """DynamicQuantizeLSTM computes what the LSTM `node` does.

    Its weights are W (directions, input, 4 * hidden) and R (directions, hidden, 4 * hidden): transposed with
    respect to LSTM's. Scales and zero points are (directions, 4 * hidden).

    Raises:
        RefusedRewrite: it cannot.
    """
    if not ctx.target.has_contrib(_OP):
        raise RefusedRewrite(f"{_OP} is not known to the target {ctx.target.name}")
    if graph.dtype(node.inputs[0]) not in (None, onnx.TensorProto.FLOAT):
        raise RefusedRewrite("DynamicQuantizeLSTM takes float32 only")
    if graph.input(node, _PEEPHOLES) is not None:
        raise RefusedRewrite("LSTM has peepholes, which stay float")
    if graph.attr(node, "layout"):
        raise RefusedRewrite("LSTM has layout=1, which the kernel does not know")
    attrs: dict[str, Any] = {}
    for key in _ATTRS:
        if key in node.attrs:
            if isinstance(node.attrs[key], AttributeRef):
                raise RefusedRewrite(f"{key} of LSTM is a parameter of the function")
            attrs[key] = node.attrs[key]
    parts = [_matrix(graph, node, slot, type, method, min_elements) for slot in (1, 2)]
    with graph.site(node, "LSTM with int8 weights, activations quantized at run time"):
        inputs: list[Tensor | None] = [node.inputs[0]]
        tails: list[Tensor | None] = []
        for slot, (q, scale) in zip((1, 2), parts, strict=True):
            name = node.inputs[slot].name
            inputs.append(graph.new_constant(f"{name}_quantized", q))
            tails.append(graph.new_constant(f"{name}_scale", scale))
            tails.append(graph.new_constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8)))
        inputs.extend(graph.input(node, slot) for slot in range(3, 7))
        graph.import_domain("com.microsoft", 1)
        outputs = list(node.outputs)
        while outputs and not outputs[-1].name:
            outputs.pop()
        inputs += [None, *tails]
        if all(t.name for t in outputs):
            graph.replace(outputs, _OP, inputs, attrs=attrs, domain="com.microsoft")
            return
        made = graph.op(_OP, inputs, attrs=attrs, domain="com.microsoft", n_outputs=len(outputs), hint="lstm")
        kernel = graph.producer(made[0])
        assert kernel is not None
        for slot, (old, new) in enumerate(zip(outputs, made, strict=True)):
            if old.name:
                graph.bypass(old, new)
            else:
                graph.omit_output(kernel, slot)


def _matrix(
    graph: Rewriter, node: Node, slot: int, type: QuantType, method: WeightMethod, min_elements: int
) -> tuple[Array, Array]:
    """Integers (directions, depth, 4 * hidden) and scales (directions, 4 * hidden)."""
    tensor = graph.input(node, slot)
    constant = graph.constant(tensor)
    if tensor is None or constant is None:
        raise RefusedRewrite(f"input {slot} of LSTM is not constant")
    if graph.n_uses(tensor) > 1 or graph.is_output(tensor):
        raise RefusedRewrite(f"the weight {tensor.name} of LSTM has another reader or is an output")
    if graph.keeps(tensor):
        raise RefusedRewrite(f"the weight {tensor.name} of LSTM is kept")
    if len(constant.shape) != 3 or constant.dtype != np.float32:
        raise RefusedRewrite(f"the weight {tensor.name} of LSTM is not float32 of rank 3")
    if math.prod(constant.shape) < min_elements:
        raise RefusedRewrite(f"the weight {tensor.name} of LSTM has too few elements to bother")
    values = finite_values(graph, tensor)
    directions, gates, depth = values.shape
    rows = values.reshape(directions * gates, depth)
    grid = weight_grid(rows, type, axis=0, method=method)
    q = grid.quantize(rows).reshape(values.shape)
    return np.ascontiguousarray(q.transpose(0, 2, 1)), grid.scale.reshape(directions, gates)
