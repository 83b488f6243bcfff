"""remove-add-zero: adding 0.0 to floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.cleanup.operands import FLOATS, is_neutral_shape, uniform


@dataclass(frozen=True)
class RemoveAddZero(NodePass):
    """x + 0.0 = x and x - -0.0 = x, but for the sign of a zero.

    Leaves alone an addition that broadcasts x to another shape, or may.
    """

    name: ClassVar[str] = "remove-add-zero"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Add", "Sub")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the other operand."""
        left, right, result = graph.input(node, 0), graph.input(node, 1), graph.output(node, 0)
        if left is None or right is None or result is None:
            return
        for data, constant in [(left, right), (right, left)][: 2 if node.op == "Add" else 1]:
            if graph.dtype(constant) not in FLOATS:
                return
            value = uniform(graph, constant)
            if value is not None and float(value) == 0.0 and is_neutral_shape(graph, result, data, constant):
                graph.bypass(result, data, f"{node.op} of zero")
                return
