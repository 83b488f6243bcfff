"""remove-noop-reshape: a Reshape to the shape that the input has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import known_ints, same_shape

RESHAPES: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# How far up a chain of reshapes the shape is looked for.
_MAX_CHAIN: Final = 32


@dataclass(frozen=True)
class RemoveNoopReshape(NodePass):
    """Reshape(x) = x where x provably has that shape, for Reshape, Flatten, Squeeze and Unsqueeze.

    These keep the order of the elements, so a chain of them that ends in the shape in which it began
    changes nothing as a whole either. An Unsqueeze of no axes needs no shape (a Squeeze of no axes does:
    runtimes read an empty list as "all").
    """

    name: ClassVar[str] = "remove-noop-reshape"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = RESHAPES

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the tensor that has the same elements in the same shape."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        if node.op == "Unsqueeze" and _has_no_axes(graph, node):
            graph.bypass(result, source, "Unsqueeze of no axes")
            return
        same = _ancestor_of_shape(graph, source, result)
        if same is not None:
            graph.bypass(result, same, f"{same.name} has that shape already")


def _has_no_axes(graph: GraphView, node: Node) -> bool:
    """The axes are given, and there are none."""
    if graph.opset < 13:
        return bool(graph.attr(node, "axes") == [])
    return known_ints(graph, graph.input(node, 1)) == []


def _ancestor_of_shape(graph: GraphView, source: Tensor, result: Tensor) -> Tensor | None:
    """The nearest tensor upstream of `result`, through reshapes only, that has its shape."""
    tensor: Tensor | None = source
    for _ in range(_MAX_CHAIN):
        if tensor is None or same_shape(graph, tensor, result):
            return tensor
        node = graph.producer_op(tensor, *RESHAPES)
        tensor = None if node is None else graph.input(node, 0)
    return None
