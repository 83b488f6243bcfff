"""What of a body is fitted, and where each of it is compared with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from graphopt.passkit import Node, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.distillation._integers import bias_node
from graphopt_passes.distillation._targets import Bias, NormTarget, find_bias, find_norm
from graphopt_passes.linear.judged import Judged, judged_by
from graphopt_passes.linear.layer import LinearLayer, linear_layers
from graphopt_passes.linear.moments import twin_of
from graphopt_passes.linear.sweeps import depths
from graphopt_passes.quantization._layers import Layer, layers_of

# Columns of the largest second-moment matrix: 512 MiB in float64.
_COLUMNS: Final = 8192
_UNKNOWN: Final = "the teacher does not compute this tensor, or on another scale"


@dataclass(frozen=True, eq=False)
class Fit:
    """One thing to be fitted: a layer with its bias, or a normalization.

    Attributes:
        node: where it stands.
        shape: groups, outputs and inputs of each.
        output: where it is compared with the teacher.
        layer: of layers, how to see it; a `Layer` of a quantized one.
        bias: of float layers, what can take the mean error.
        shifts: a bias takes the mean error.
        norm: of normalizations, its scale and bias.
    """

    node: Node
    shape: tuple[int, int, int]
    output: Judged
    layer: LinearLayer | None = None
    bias: Bias | None = None
    shifts: bool = False
    norm: NormTarget | None = None


def find_fits(
    graph: Rewriter, ctx: PassContext, wanted: Callable[[Node], bool], *, biases: bool, norms: bool
) -> list[Fit]:
    """What there is to fit; the rest is refused with a reason.

    Args:
        graph: a body.
        ctx: knows the teacher.
        wanted: tells the nodes to look at.
        biases: biases may change, and be added.
        norms: normalizations may change.
    """

    def check(layer: LinearLayer) -> None:
        if not wanted(layer.node):
            return
        if graph.is_function:
            raise RefusedRewrite("the tensors of a function are not observed")
        if layer.shape[2] > _COLUMNS:
            raise RefusedRewrite(f"{layer.shape[2]} inputs per output are more than {_COLUMNS}")

    layers = [*linear_layers(graph, check), *layers_of(graph, check)]
    layers = [layer for layer in layers if wanted(layer.node)]
    fits = _norms(graph, ctx, wanted) if norms and not graph.is_function else []
    depth = depths(graph, [layer.node for layer in layers] + [fit.node for fit in fits])
    for layer in layers:
        output = judged_by(graph, layer, depth)
        bias = find_bias(graph, layer) if biases and not isinstance(layer, Layer) else None
        adds = None if bias is None else bias.node
        if biases and isinstance(layer, Layer):
            adds = bias_node(graph, layer)
        own = layer.node.outputs[0]
        places = [output.tensor, own if adds is None else adds.outputs[0], own]
        known = next((t for t in places if twin_of(ctx, t) is not None), None)
        if known is None:
            graph.refuse(layer.node, _UNKNOWN)
            continue
        if known is not output.tensor:
            output = Judged(known)
        # What is added behind the tensor that the layer is judged by cannot take its mean error.
        shifts = adds is not None and (adds is layer.node or known is not own)
        fits.append(Fit(layer.node, layer.shape, output, layer, bias if shifts else None, shifts))
    return fits


def _norms(graph: Rewriter, ctx: PassContext, wanted: Callable[[Node], bool]) -> list[Fit]:
    fits = []
    for node in graph.nodes():
        try:
            norm = find_norm(graph, node) if wanted(node) else None
            if norm is None:
                continue
            if graph.keeps(node):
                raise RefusedRewrite(f"{node.name} is kept")
            if twin_of(ctx, node.outputs[0]) is None:
                raise RefusedRewrite(_UNKNOWN)
        except RefusedRewrite as refused:
            graph.refuse(node, refused.reason)
            continue
        fits.append(Fit(node, norm.shape, Judged(node.outputs[0]), norm=norm))
    return fits
