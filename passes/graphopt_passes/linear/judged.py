"""Which tensor tells whether a layer does its work: not always its own output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import GraphView, Node, PassContext, Tensor, Watch
from graphopt_passes.linear.layer import LinearLayer, bias_place
from graphopt_passes.linear.moments import LayerMoments, selection_of, twin_of


@dataclass(frozen=True)
class Judged:
    """Where a layer is compared with the teacher.

    Attributes:
        tensor: the layer's output plus what does not depend on it.
        bounds: what all readers of `tensor` clip it to.
    """

    tensor: Tensor
    bounds: tuple[float, float] = (-np.inf, np.inf)


def judged_by(graph: GraphView, layer: LinearLayer, depth: Mapping[Tensor, int]) -> Judged:
    """The output of a layer, behind its bias and in the residual sum that it goes into; what clips that.

    What is added in between, on the way of the signal past the layer, carries the errors of the layers
    before: the layer can make up for those as well (He, Zhang, Sun, arXiv:1707.06168, section 3.3). So the
    sum is what it is judged by, if everything else that is added is as it will be by the time that the layer
    is looked at.

    Args:
        graph: the layer's body.
        layer: the layer.
        depth: of each tensor the number of layers on the way to it, see `depths`.
    """
    tensor = layer.node.outputs[0]
    level = depth.get(tensor, 0)
    bias = bias_place(graph, layer.node)
    while (reader := graph.sole_consumer(tensor)) is not None and graph.is_live(reader):
        if not graph.is_op(reader, "Add"):
            return Judged(tensor, clipped_to(graph, reader))
        added = reader.outputs[0]
        other = reader.inputs[1 if reader.inputs[0] is tensor else 0]
        constant = bias is not None and reader is bias[0]
        if not constant and depth.get(other, 0) >= level:
            break
        if graph.shape(added) is None or graph.shape(added) != graph.shape(tensor):
            break
        if not constant and graph.shape(other) != graph.shape(tensor):
            break
        tensor = added
    return Judged(tensor)


def watch_layer(layer: LinearLayer, ctx: PassContext, output: Judged | None) -> Watch:
    """What to observe of a layer: its inputs and, given `output`, that and what the teacher has there.

    Where the teacher does not have it, or on another scale, the layer's own output takes its place.
    """
    x = layer.node.inputs[layer.data_slot]
    for tensor in (output.tensor, layer.node.outputs[0]) if output is not None else ():
        twin = twin_of(ctx, tensor)
        if twin is not None:
            moments = LayerMoments(layer.unfolding, selection_of(ctx, tensor))
            return Watch(moments, student=(x, tensor), teacher=(twin,))
    return Watch(LayerMoments(layer.unfolding), student=(x,))


def clipped_to(graph: GraphView, node: Node) -> tuple[float, float]:
    """The range to which `node` clips its first input, elsewhere passing it on; infinite for none."""
    if graph.is_op(node, "Relu"):
        return 0.0, np.inf
    if not graph.is_op(node, "Clip"):
        return -np.inf, np.inf
    bounds = []
    for slot, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = graph.attr(node, name)  # before opset 11
        if value is None:
            tensor = graph.input(node, slot)
            value = default if tensor is None else graph.scalar(tensor)
        if not isinstance(value, int | float):
            return -np.inf, np.inf
        bounds.append(float(value))
    low, high = bounds
    return (low, high) if low < high else (-np.inf, np.inf)
