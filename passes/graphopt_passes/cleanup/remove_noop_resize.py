"""remove-noop-resize: a nearest-neighbour Resize to the size that the input has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from graphopt.passkit import AttributeRef, GraphView, Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import same_shape, uniform

# At scale 1 these send every coordinate to itself, exactly. Not among them: tf_crop_and_resize, which
# looks at a region, and tf_half_pixel_for_nn, which is off by one half.
_FIXED: Final = frozenset(
    {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"}
)


@dataclass(frozen=True)
class RemoveNoopResize(NodePass):
    """Resize(x, scales=ones, mode=nearest) = x; likewise with sizes that are provably those of x.

    Also Upsample. Leaves alone the interpolating modes, which weigh neighbours by 0 (and make NaN of an
    infinite one), and transformations of coordinates that do not keep them at scale 1.
    """

    name: ClassVar[str] = "remove-noop-resize"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None or graph.attr(node, "mode") != "nearest":
            return
        modern = node.op == "Resize" and graph.opset >= 11
        if modern and graph.attr(node, "coordinate_transformation_mode") not in _FIXED:
            return
        if _scales_are_one(graph, node, modern) or (modern and _sizes_stay(graph, node, source, result)):
            graph.bypass(result, source, f"{node.op} to the size that the input has")


def _scales_are_one(graph: GraphView, node: Node, modern: bool) -> bool:
    if node.op == "Upsample" and graph.opset < 9:
        scales = graph.attr(node, "scales")
        given = scales is not None and not isinstance(scales, AttributeRef)
        return given and all(s == 1.0 for s in scales)
    value: np.generic | None = uniform(graph, graph.input(node, 2 if modern else 1))
    return value is not None and float(value) == 1.0


def _sizes_stay(graph: GraphView, node: Node, source: Tensor, result: Tensor) -> bool:
    if graph.input(node, 3) is None or not same_shape(graph, source, result):
        return False
    return graph.opset < 18 or graph.attr(node, "keep_aspect_ratio_policy") == "stretch"
