"""What distillation can fit: layers with a bias or a place for one, and the affine part of normalizations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from graphopt.passkit import (
    Array,
    AttributeRef,
    GraphView,
    Node,
    RefusedRewrite,
    Rewriter,
)
from graphopt_passes.linear.layer import Floats, LinearLayer, bias_place

#: Normalizations, with the axis of their channels; scale and bias are their inputs 1 and 2.
NORMS: Final = {
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "LayerNormalization": -1,
    "RMSNormalization": -1,
}
# Opset from which on a Gemm may do without a bias.
_GEMM_WITHOUT_BIAS: Final = 11


@dataclass(frozen=True, eq=False)
class Bias:
    """What adds to the outputs of a layer.

    Attributes:
        node, slot: what reads it, or would.
        values: the constant as it is; None where there is none yet.
        beta: what it is multiplied by.
    """

    node: Node
    slot: int
    values: Array | None
    beta: float = 1.0

    def shifted(self, shift: Floats) -> Array:
        """The constant that adds `shift`, one number per output, more than this."""
        step = shift.reshape(-1) / self.beta
        if self.values is None:
            return step.astype(np.float32)
        if self.values.size == 1:
            moved = self.values.astype(np.float64).reshape(-1) + step
        else:
            moved = self.values.astype(np.float64) + step.reshape(self.values.shape)
        result: Array = moved.astype(self.values.dtype)
        return result


@dataclass(frozen=True, eq=False)
class NormTarget:
    """A normalization whose scale and bias can be fitted.

    Attributes:
        node: the node.
        axis: of the channels in its output.
        channels: how many there are.
        shifted: it has a bias, or takes one.
    """

    node: Node
    axis: int
    channels: int
    shifted: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """As a layer whose outputs have one input each."""
        return self.channels, 1, 1


def find_bias(graph: GraphView, layer: LinearLayer, outputs: int | None = None) -> Bias | None:
    """The bias of a layer; None where it has none that is one number per output, and no place for one."""
    place = bias_place(graph, layer.node)
    if place is None or layer.slot == 0 or graph.keeps(place[0]):
        return None
    node, slot = place
    beta = graph.attr(node, "beta") if node.op == "Gemm" else 1.0
    if isinstance(beta, AttributeRef) or not beta:
        return None
    tensor = graph.input(node, slot)
    if tensor is None:
        if node.op == "Gemm" and graph.opset < _GEMM_WITHOUT_BIAS:
            return None
        weight = graph.constant(graph.input(layer.node, layer.slot))
        single = weight is not None and np.dtype(weight.dtype) == np.float32
        return Bias(node, slot, None, float(beta)) if single else None
    values = graph.array(tensor)
    if values is None:
        return None
    whole = values.size == layer.outputs and values.shape[-1] == layer.outputs
    if not whole and values.size != 1:
        return None
    return Bias(node, slot, values, float(beta))


def find_norm(graph: GraphView, node: Node) -> NormTarget | None:
    """`node` as a normalization that can be fitted; None when it is none.

    Raises:
        RefusedRewrite: it is one, and cannot.
    """
    if node.op not in NORMS or not graph.is_op(node, node.op):
        return None
    if graph.attr(node, "training_mode"):
        raise RefusedRewrite(f"{node.op} is in training mode")
    axis = NORMS[node.op]
    if axis == -1 and graph.attr(node, "axis") not in (None, -1, (graph.rank(node.outputs[0]) or 0) - 1):
        raise RefusedRewrite(f"{node.op} has more than one axis")
    scale = graph.constant(graph.input(node, 1))
    if scale is None or len(scale.shape) != 1:
        raise RefusedRewrite(f"the scale of {node.op} is not one constant per channel")
    tensor = graph.input(node, 2)
    if tensor is not None:
        bias = graph.constant(tensor)
        if bias is None or bias.shape != scale.shape:
            raise RefusedRewrite(f"the bias of {node.op} is not one constant per channel")
    shifted = tensor is not None or node.op == "LayerNormalization"
    return NormTarget(node, axis, int(scale.shape[0]), shifted)


def set_line(graph: Rewriter, target: NormTarget, slope: Floats, shift: Floats, why: str) -> None:
    """Have a normalization compute slope * y + shift instead of y, per channel."""
    node = target.node
    scale, bias = graph.array(graph.input(node, 1)), graph.array(graph.input(node, 2))
    assert scale is not None
    with graph.site(node, why):
        name = node.inputs[1].name
        fresh = (scale.astype(np.float64) * slope).astype(scale.dtype)
        graph.set_input(node, 1, graph.new_constant(name, fresh))
        if target.shifted:
            old = np.zeros(target.channels) if bias is None else bias.astype(np.float64)
            moved = (old * slope + shift).astype(scale.dtype)
            graph.set_input(
                node, 2, graph.new_constant(f"{name}_bias" if bias is None else node.inputs[2].name, moved)
            )
