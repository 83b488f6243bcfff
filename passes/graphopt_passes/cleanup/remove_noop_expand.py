"""remove-noop-expand: an Expand that repeats nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.cleanup.operands import same_shape


@dataclass(frozen=True)
class RemoveNoopExpand(NodePass):
    """Expand(x, shape) = x where broadcasting x with `shape` provably gives the shape of x.

    `shape` may be smaller than x (Expand broadcasts both ways); an empty one needs no proof.
    """

    name: ClassVar[str] = "remove-noop-expand"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Expand",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        if same_shape(graph, source, result) or graph.shape(graph.input(node, 1)) == (0,):
            graph.bypass(result, source, "Expand repeats nothing")
