"""remove-noop-transpose: a Transpose that leaves every axis in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import AttributeRef, Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class RemoveNoopTranspose(NodePass):
    """Transpose(x, perm=[0, 1, ...]) = x, and Transpose(x) = x for x of rank 0 or 1.

    Leaves alone a permutation that moves only axes of length 1 (that is a Reshape), and one that is an
    argument of the enclosing function.
    """

    name: ClassVar[str] = "remove-noop-transpose"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        perm = graph.attr(node, "perm")
        if isinstance(perm, AttributeRef):
            return
        if perm is None:
            rank = graph.rank(source)
            still = rank is not None and rank <= 1
        else:
            still = list(perm) == list(range(len(perm)))
        if still:
            graph.bypass(result, source, "Transpose leaves every axis in its place")
