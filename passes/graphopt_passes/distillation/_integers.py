"""Fitting layers whose weights are integers: the same target, and codes of their grid as the unknowns."""

from __future__ import annotations

import numpy as np

from graphopt.passkit import GraphView, Node, PassContext, Rewriter
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.quantization._layers import Layer
from graphopt_passes.quantization._quantized import bias_array, set_bias, set_weight
from graphopt_passes.quantization._refinement import refine


def bias_node(graph: GraphView, layer: Layer) -> Node | None:
    """What adds a constant bias, one number per output, that can take the mean error; None without one."""
    quantized = layer.quantized
    bias = bias_array(graph, quantized)
    if bias is None or quantized.slot == 0 or quantized.bias_at is None or graph.keeps(quantized.bias_at[0]):
        return None
    return quantized.bias_at[0] if bias.size == layer.outputs == bias.shape[-1] else None


def fit_integers(
    graph: Rewriter,
    ctx: PassContext,
    layer: Layer,
    moments: LayerMoments,
    *,
    shift: bool,
    damping: float | None,
) -> None:
    """Give a quantized layer the codes, scales and bias with which its outputs come closest to the teacher's.

    Weights that the float model had pruned keep the code of 0.

    Raises:
        RefusedRewrite: nothing is better, or the data cannot say.
    """
    quantized = layer.quantized
    codes = graph.array(quantized.q)
    assert codes is not None
    floats = ctx.reference.array(quantized.node, quantized.slot)
    if floats is None or floats.shape != layer.stored:
        floats = quantized.grid.dequantize(codes)
    found = refine(layer, moments, codes, floats, damping=damping, scales=True, shift=shift)
    bias = bias_array(graph, quantized) if shift else None
    with graph.site(quantized.node, found.why):
        now = set_weight(graph, quantized, found.codes, found.why, grid=found.grid)
        if bias is not None and found.shift is not None:
            moved = bias.astype(np.float64) + found.shift.reshape(bias.shape)
            set_bias(graph, now, moved.astype(np.float32), found.why)
