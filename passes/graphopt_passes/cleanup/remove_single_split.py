"""remove-single-split: a Split into one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.cleanup.operands import operand


@dataclass(frozen=True)
class RemoveSingleSplit(NodePass):
    """Split(x) = x where there is one part: it is the whole axis.

    Refuses when the sizes of the parts are given and not known, or are several.
    """

    name: ClassVar[str] = "remove-single-split"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Split",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if len(node.outputs) != 1 or source is None or result is None:
            return
        sizes = operand(graph, node, "split", 1, 13)
        if (sizes is None or len(sizes) == 1) and node.attrs.get("num_outputs", 1) == 1:
            graph.bypass(result, source, "Split into one part")
