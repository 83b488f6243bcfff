"""prune-functions: local functions that nothing calls need not be stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter


@dataclass(frozen=True)
class PruneFunctions(Pass):
    """Drop model-local functions that nothing reachable from the main graph calls.

    Functions that only call each other go too. Stays: what the training information calls.
    """

    name: ClassVar[str] = "prune-functions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Drop them, once per model."""
        if graph.is_main:
            for function in graph.unreachable_functions():
                graph.erase_function(function)
