"""remove-noop-cast: a Cast to the type that the input has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class RemoveNoopCast(NodePass):
    """Cast(x, to=dtype of x) = x, and CastLike(x, y) = x where y has the type of x.

    Leaves alone a Cast of an input whose type is not proven, such as an argument of a function.
    """

    name: ClassVar[str] = "remove-noop-cast"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        dtype = graph.dtype(source)
        target = graph.attr(node, "to") if node.op == "Cast" else graph.dtype(graph.input(node, 1))
        if dtype is not None and dtype == target:
            graph.bypass(result, source, f"{node.op} to the type that the input has")
