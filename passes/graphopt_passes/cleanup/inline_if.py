"""An If whose condition is known becomes the branch that is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Graph, Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class InlineIf(NodePass):
    """If(true) {then} else {else} = then; the branch that cannot be reached goes.

    The condition is known when it is constant, or when it follows from the shapes of tensors (an exported
    `squeeze` asks whether a dim is 1).

    Refuses when the condition depends on the data, or can be overridden.
    """

    name: ClassVar[str] = "inline-if"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("If",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Inline the branch that `node` always takes."""
        if graph.keeps(node):
            return
        taken = condition(node, graph)
        if taken is None:
            return
        branch = node.attrs.get("then_branch" if taken else "else_branch")
        if isinstance(branch, Graph):
            graph.inline(node, branch, f"the condition is always {str(taken).lower()}")


def condition(node: Node, graph: Rewriter) -> bool | None:
    """The value of the condition of an If, None when it is not known."""
    tensor = graph.input(node, 0)
    value = graph.scalar(tensor)
    if value is not None:
        return bool(value)
    elements = graph.sym_value(tensor)
    if elements is not None and len(elements) == 1 and isinstance(elements[0], int):
        return bool(elements[0])
    return None
