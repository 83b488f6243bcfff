"""remove-single-concat: variadic operators of one operand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class RemoveSingleConcat(NodePass):
    """Concat(x) = Sum(x) = Max(x) = Min(x) = Mean(x) = x."""

    name: ClassVar[str] = "remove-single-concat"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Concat", "Sum", "Max", "Min", "Mean")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the operand."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if len(node.inputs) == 1 and source is not None and result is not None:
            graph.bypass(result, source, f"{node.op} of one tensor")
