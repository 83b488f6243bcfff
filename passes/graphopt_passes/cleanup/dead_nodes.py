"""dead-nodes: what nobody reads need not be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter


@dataclass(frozen=True)
class DeadNodes(Pass):
    """Erase nodes none of whose outputs is read.

    Readers in nested bodies count, and so does being an output of any body. Refuses what the user keeps.
    """

    name: ClassVar[str] = "dead-nodes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Erase, readers before what they read."""
        for node in reversed(graph.nodes()):
            if graph.is_live(node) and not any(t.name and graph.is_read(t) for t in node.outputs):
                graph.erase(node)
