"""cancel-squeeze-unsqueeze: axes that are inserted only to be dropped, or dropped to be inserted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import normalized, operand


@dataclass(frozen=True)
class CancelSqueezeUnsqueeze(NodePass):
    """Squeeze(Unsqueeze(x, axes), axes) = Unsqueeze(Squeeze(x, axes), axes) = x.

    In both orders the two lists of axes count in the same shape, so no shape need be known. The inner node
    may have other readers. Refuses axes that are not constant, and lists that count from different ends
    where the rank is unknown.
    """

    name: ClassVar[str] = "cancel-squeeze-unsqueeze"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Squeeze", "Unsqueeze")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers of the pair read what it starts from."""
        inner = graph.producer_op(graph.input(node, 0), "Unsqueeze" if node.op == "Squeeze" else "Squeeze")
        source = None if inner is None else graph.input(inner, 0)
        result = graph.output(node, 0)
        if inner is None or source is None or result is None:
            return
        outer_axes, inner_axes = operand(graph, node, "axes", 1, 13), operand(graph, inner, "axes", 1, 13)
        if not outer_axes or not inner_axes:
            return  # "all axes of length 1"
        if sorted(outer_axes) != sorted(inner_axes):
            wide = graph.rank(inner.outputs[0] if node.op == "Squeeze" else source)
            if wide is None:
                raise RefusedRewrite(f"the axes may differ from those of the {inner.op} before it")
            if set(normalized(outer_axes, wide, node)) != set(normalized(inner_axes, wide, inner)):
                return
        graph.bypass(result, source, f"{node.op} undoes the {inner.op} before it")
