"""Operators that bound their input: Relu, Clip, and Min / Max by a scalar."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from graphopt.passkit import AttributeRef, Node, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._region import Region, accepts

BOUNDING = ("Relu", "Clip", "Min", "Max")
_TYPES = onnx.TensorProto.DataType
# Bounds became inputs of Clip here, and Min / Max learned to broadcast there.
_CLIP_INPUTS, _BROADCASTING = 11, 8
# Types for which ONNX Runtime has a Clip kernel from opset 12 on.
_CLIP_TYPES = frozenset(
    {_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.DOUBLE, _TYPES.INT8, _TYPES.UINT8, _TYPES.INT32, _TYPES.UINT32}
    | {_TYPES.INT64, _TYPES.UINT64}
)
Number = int | float


@dataclass(frozen=True)
class Bounds:
    """`min(max(x, low), high)`, in this order: with low > high it is high everywhere.

    Open ends are infinite for float types, and the type's own limits for integers.
    """

    x: Tensor
    low: Number
    high: Number

    def inside(self, inner: Bounds) -> Bounds:
        """These bounds applied to the result of `inner`; never reversed, which some runtimes refuse."""
        high = min(max(inner.high, self.low), self.high)
        return Bounds(inner.x, min(max(inner.low, self.low), high), high)


def limits(dtype: int) -> tuple[Number, Number] | None:
    """The lowest and highest finite numbers of a type; None if it has none."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    if kind.kind in "iu":
        return int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    if dtype in (_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.DOUBLE, _TYPES.BFLOAT16):
        info = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
        return float(info.min), float(info.max)
    return None


def ends(dtype: int) -> tuple[Number, Number] | None:
    """What stands for no bound at all: infinities, or the limits of an integer type."""
    found = limits(dtype)
    return (-math.inf, math.inf) if found is not None and isinstance(found[0], float) else found


def read_bounds(region: Region, node: Node) -> Bounds | None:
    """What `node`, one of BOUNDING, computes; None if its bounds are not constant scalars."""
    graph = region.graph
    dtype = graph.dtype(node.outputs[0])
    finite, open_ends = (None, None) if dtype is None else (limits(dtype), ends(dtype))
    if finite is None or open_ends is None:
        return None
    if node.op == "Relu":
        return Bounds(node.inputs[0], 0, open_ends[1])
    if node.op == "Clip":
        return _clip(region, node, dtype, finite)
    if graph.opset < _BROADCASTING or len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        value = _number(region, other)
        if value is not None and not graph.is_constant(x):
            return Bounds(x, value, open_ends[1]) if node.op == "Max" else Bounds(x, open_ends[0], value)
    return None


def _clip(region: Region, node: Node, dtype: int | None, finite: tuple[Number, Number]) -> Bounds | None:
    graph = region.graph
    found: list[Number] = []
    for slot, name in enumerate(("min", "max")):
        value: Number | None
        if graph.opset >= _CLIP_INPUTS:
            # An omitted bound is the type's largest finite number: Clip maps infinity to it.
            tensor = graph.input(node, slot + 1)
            value = finite[slot] if tensor is None else _number(region.fork(), tensor)
        else:
            attribute = graph.attr(node, name)
            known = attribute is not None and not isinstance(attribute, AttributeRef)
            value = float(attribute) if known and dtype == _TYPES.FLOAT else None
        if value is None:
            return None
        found.append(value)
    return Bounds(node.inputs[0], found[0], found[1])


def _number(region: Region, tensor: Tensor) -> Number | None:
    if region.scalar(tensor) is None:
        return None
    value: Number = region.graph.scalar(tensor)
    return None if math.isnan(value) else value


def write_bounds(graph: Rewriter, old: Tensor, bounds: Bounds, has_clip: bool) -> None:
    """The plainest operator that bounds like `bounds` computes `old`.

    Args:
        graph: the body.
        old: the tensor to compute.
        bounds: what it must be.
        has_clip: there is a Clip for this type already, so whoever executes the model has one.

    Raises:
        RefusedRewrite: the opset has no such operator for the type, or does not need one.
    """
    dtype = graph.dtype(old)
    finite, open_ends = (None, None) if dtype is None else (limits(dtype), ends(dtype))
    if dtype is None or finite is None or open_ends is None:
        raise RefusedRewrite("the type is not known")
    low, high = bounds.low, bounds.high
    no_low, no_high = low == open_ends[0], high == open_ends[1]
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)

    def constant(value: Number, name: str) -> Tensor:
        return graph.new_constant(f"{old.name}_{name}", np.asarray(value).astype(kind))

    if low == 0 and no_high and accepts(graph, "Relu", dtype):
        graph.replace(old, "Relu", [bounds.x])
    elif no_low != no_high and graph.opset >= _BROADCASTING and accepts(graph, "Min", dtype):
        op, value = ("Max", low) if no_high else ("Min", high)
        graph.replace(old, op, [bounds.x, constant(value, op.lower())])
    elif graph.opset >= _CLIP_INPUTS and accepts(graph, "Clip", dtype):
        if not has_clip and (dtype not in _CLIP_TYPES or (graph.opset < 12 and dtype != _TYPES.FLOAT)):
            raise RefusedRewrite(f"Clip is not commonly implemented for {_TYPES.Name(dtype)}")
        inputs: list[Tensor | None] = [bounds.x]
        inputs.append(None if low == finite[0] else constant(low, "min"))
        inputs.append(None if high == finite[1] else constant(high, "max"))
        graph.replace(old, "Clip", inputs)
    elif graph.opset >= 6 and dtype == _TYPES.FLOAT and math.isfinite(low) and math.isfinite(high):
        graph.replace(old, "Clip", [bounds.x], attrs={"min": float(low), "max": float(high)})
    else:
        raise RefusedRewrite(f"no Clip for these bounds at opset {graph.opset}")
