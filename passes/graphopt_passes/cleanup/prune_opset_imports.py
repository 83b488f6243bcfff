"""prune-opset-imports: operator sets that nothing is from need not be imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Function, Numerics, Pass, PassContext, Rewriter


@dataclass(frozen=True)
class PruneOpsetImports(Pass):
    """Drop imports of domains that no node uses, of the model and of each local function.

    Stays: the standard domain, what the training information uses, and in the model what its functions
    belong to or import (runtimes expand functions in place).
    """

    name: ClassVar[str] = "prune-opset-imports"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Drop what is not used by the body or by those it holds."""
        if graph.is_main or isinstance(graph.body, Function):
            for domain in graph.unused_opset_imports():
                graph.erase_opset_import(domain)
