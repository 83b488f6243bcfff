"""What TensorRT takes of a quantized model with explicit precision, as its documentation and issues say."""

from __future__ import annotations

from typing import Final

import numpy as np

from graphopt.graph.view import GraphView
from graphopt.ir import Node, Tensor
from graphopt.quantization.kernels_conditions import PAIR, Verdict

#: Operators that TensorRT runs in int8 between Q and DQ.
INTEGER: Final = frozenset(
    "Add AveragePool Concat Conv ConvTranspose Gemm GlobalAveragePool MatMul MaxPool Mul Relu Reshape "
    "Slice Split "
    "Squeeze Transpose Unsqueeze Flatten Resize".split()
)
_WEIGHTED: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def judge(view: GraphView) -> dict[Node, tuple[Verdict, bool]]:
    """Verdicts per node that has an integer form."""
    return {
        node: (_node(view, node), False)
        for node in view.nodes()
        if node.op in INTEGER and view.is_op(node, node.op)
    }


def _node(view: GraphView, node: Node) -> Verdict:
    sources = [view.producer_op(t, "DequantizeLinear") for t in node.inputs]
    data = [t for t in node.inputs if t.name]
    if not any(sources):
        return Verdict(None)
    for source in sources:
        if source is None:
            continue
        problem = _pair(view, source)
        if problem is not None:
            return problem
    if node.op in ("Add", "Mul", "MatMul", "Concat"):
        for tensor, source in zip(data, sources, strict=False):
            if source is None and not (node.op in ("Add", "Mul") and view.is_constant(tensor)):
                return Verdict(
                    None, f"its input {tensor.name} is not quantized", f"put {PAIR} on {tensor.name}"
                )
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        if sources[0] is None or sources[1] is None:
            missing = node.inputs[0 if sources[0] is None else 1].name
            return Verdict(None, f"its input {missing} is not quantized", f"put {PAIR} on {missing}")
        if len(sources) > 2 and sources[2] is not None:
            return Verdict(
                None, f"TensorRT rejects the quantized bias {node.inputs[2].name}", "leave the bias float"
            )
    axis = _WEIGHTED.get(node.op)
    if axis is not None and sources[0] is not None and _is_per_axis(view, sources[0]):
        return Verdict(
            None,
            f"its activation {node.inputs[0].name} has a scale per channel, which TensorRT takes for "
            "weights only",
            "use one scale for the tensor",
        )
    return Verdict("int8")


def _pair(view: GraphView, dequantizer: Node) -> Verdict | None:
    zero = view.input(dequantizer, 2)
    if zero is None:
        return None
    values = view.array(zero)
    if values is None:
        return Verdict(None, f"the zero point {zero.name} is computed", "make it a constant zero")
    if values.dtype == np.uint8:
        return Verdict(
            None,
            f"{_name(dequantizer)} is uint8, and TensorRT takes int8 only",
            "quantize it to int8, symmetric",
        )
    if np.any(values.astype(np.int64)):
        return Verdict(
            None,
            f"{_name(dequantizer)} has a zero point other than 0, which TensorRT rejects",
            "quantize it symmetrically",
        )
    return None


def _name(dequantizer: Node) -> str:
    tensor: Tensor = dequantizer.outputs[0]
    return str(tensor.name)


def _is_per_axis(view: GraphView, dequantizer: Node) -> bool:
    if view.is_constant(dequantizer.inputs[0]):
        return False
    shape = view.static_shape(view.input(dequantizer, 1))
    return shape is not None and int(np.prod(shape)) > 1
