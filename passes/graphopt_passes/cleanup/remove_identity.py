"""remove-identity: Identity(x) = x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class RemoveIdentity(NodePass):
    """Identity(x) = x.

    Refuses when the Identity is what gives an output its name: it passes an input, a constant, another
    output or a tensor of an outer body on to an output.
    """

    name: ClassVar[str] = "remove-identity"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Identity",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is not None and result is not None:
            graph.bypass(result, source)
