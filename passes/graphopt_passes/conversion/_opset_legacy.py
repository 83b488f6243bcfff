"""Adapters for what opsets before 7 did otherwise: broadcasting by attributes, and telling training apart."""

from __future__ import annotations

from typing import Final

import numpy as np

from graphopt.passkit import Node, RefusedRewrite, Tensor
from graphopt_passes.conversion._opset_adapters import Adapter, Step


def _broadcast_7(step: Step) -> Node:
    """The second operand stood at `axis` of the first; now it always stands at the end."""
    a, b = step.node.inputs
    axis = step.known("axis") if step.known("broadcast") else None
    step.drop("axis", "broadcast")
    if axis is not None:
        rank, own = step.graph.rank(a), step.graph.rank(b)
        if rank is None or own is None:
            raise RefusedRewrite(f"the ranks of {a.name} and {b.name} say how they are broadcast")
        behind = rank - (axis + rank if axis < 0 else axis) - own
        step.inputs([a, _with_dims_behind(step, b, behind)])
    return step.node


def _with_dims_behind(step: Step, tensor: Tensor, count: int) -> Tensor:
    """`tensor` with `count` dims of 1 more at its end."""
    if count <= 0:
        return tensor
    graph, rank = step.graph, step.graph.rank(tensor)
    values = graph.array(tensor)
    if values is not None:
        return graph.new_constant(step.hint("operand"), values.reshape(*values.shape, *[1] * count))
    assert rank is not None
    axes = list(range(rank, rank + count))
    if step.new < 13:
        return graph.op("Unsqueeze", [tensor], attrs={"axes": axes}, hint=step.hint("operand"))
    held = graph.new_constant(step.hint("axes"), np.asarray(axes, np.int64))
    return graph.op("Unsqueeze", [tensor, held], hint=step.hint("operand"))


def _prelu_7(step: Step) -> Node:
    """A slope for each channel, that is of axis 1; now it is broadcast from the last axis."""
    x, slope = step.node.inputs
    shape, rank = step.graph.static_shape(slope), step.graph.rank(x)
    if shape is None or len(shape) > 1 or rank is None:
        raise RefusedRewrite(f"the shapes of {x.name} and {slope.name} say how they are broadcast")
    if shape not in ((), (1,)):
        step.inputs([x, _with_dims_behind(step, slope, rank - 2)])
    return step.node


def _gemm_7(step: Step) -> Node:
    step.drop("broadcast")
    return step.node


def _inference_7(step: Step) -> Node:
    """BatchNormalization, Dropout: they trained unless told not to."""
    if not step.known("is_test"):
        raise RefusedRewrite("without is_test it is in training mode")
    step.drop("is_test")
    return step.node


_BROADCAST: Final = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")

#: (operator, version that changed it) -> adapter.
ADAPTERS: Final[dict[tuple[str, int], Adapter]] = {
    **{(op, 7): _broadcast_7 for op in _BROADCAST},
    ("BatchNormalization", 7): _inference_7,
    ("Dropout", 7): _inference_7,
    ("Gemm", 7): _gemm_7,
    ("PRelu", 7): _prelu_7,
}
