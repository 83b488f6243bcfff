"""remove-noop-slice: a Slice that takes everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import known_ints, operand, same_shape

# What the Slice operator's documentation recommends for "to the end".
_TO_THE_END: Final = 2**31 - 1


@dataclass(frozen=True)
class RemoveNoopSlice(NodePass):
    """Slice(x, 0, end, step=1) = x where end is provably at or beyond the end of every axis it cuts.

    With steps of 1 it is enough that the result provably has the shape of x: a contiguous part as long as
    the whole is the whole. Without known shapes: starts of 0 (or before any) and ends that mean "to the end".
    """

    name: ClassVar[str] = "remove-noop-slice"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Slice",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        if graph.opset >= 10 and graph.input(node, 4) is not None:
            steps = known_ints(graph, graph.input(node, 4))
            if steps is None or any(step != 1 for step in steps):
                return
        if same_shape(graph, source, result) or _takes_all(graph, node):
            graph.bypass(result, source, "Slice takes everything")


def _takes_all(graph: GraphView, node: Node) -> bool:
    """From 0 to the end, whatever the shape."""
    try:
        starts = operand(graph, node, "starts", 1, 10)
        ends = operand(graph, node, "ends", 2, 10)
    except RefusedRewrite:
        return False
    if starts is None or ends is None:
        return False
    return all(s == 0 or s <= -_TO_THE_END for s in starts) and all(e >= _TO_THE_END for e in ends)
