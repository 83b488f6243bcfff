"""remove-noop-tile: a Tile that repeats everything once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.cleanup.operands import known_ints, same_shape


@dataclass(frozen=True)
class RemoveNoopTile(NodePass):
    """Tile(x, ones) = x; so is any Tile that provably keeps the shape."""

    name: ClassVar[str] = "remove-noop-tile"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Tile",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None or graph.opset < 6:
            return
        repeats = known_ints(graph, graph.input(node, 1))
        if same_shape(graph, source, result) or (repeats is not None and all(r == 1 for r in repeats)):
            graph.bypass(result, source, "Tile repeats nothing")
