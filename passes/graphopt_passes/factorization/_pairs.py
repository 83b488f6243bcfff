"""Layers that are two factors already."""

from __future__ import annotations

from typing import Final

import numpy as np

from graphopt.passkit import GraphView, Node, RefusedRewrite
from graphopt_passes.linear.layer import LinearLayer, read_linear, weight_slot

#: Operators that can be factorized.
OPS: Final = ("Conv", "Gemm", "MatMul")


def factors_with(graph: GraphView, layer: LinearLayer) -> tuple[LinearLayer, LinearLayer] | None:
    """The layer and the one before or behind it, if they are two factors: fewer channels between them.

    Nothing else reads what is between them, and nothing is added to it.
    """
    x, y = layer.node.inputs[layer.data_slot], layer.node.outputs[0]
    behind = _layer(graph, graph.sole_consumer(y))
    if behind is not None and _are_factors(graph, layer, behind):
        return layer, behind
    before = _layer(graph, graph.producer(x)) if graph.sole_consumer(x) is layer.node else None
    if before is not None and _are_factors(graph, before, layer):
        return before, layer
    return None


def _are_factors(graph: GraphView, first: LinearLayer, second: LinearLayer) -> bool:
    if first.node.op != second.node.op:
        return False
    if second.node.inputs[second.data_slot] is not first.node.outputs[0]:
        return False
    bias = graph.input(first.node, 2)
    if bias is not None and (not graph.is_constant(bias) or np.any(graph.array(bias))):
        return False
    if first.node.op == "Conv" and any(d != 1 for d in second.stored[2:]):
        return False
    return first.outputs < min(second.outputs, first.shape[0] * first.shape[2])


def _layer(graph: GraphView, node: Node | None) -> LinearLayer | None:
    slot = None if node is None or not graph.is_op(node, *OPS) else weight_slot(graph, node)
    if node is None or slot is None or not graph.is_live(node):
        return None
    try:
        return read_linear(graph, node, slot)
    except RefusedRewrite:
        return None
