"""prune-initializers: weights that nobody reads need not be stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter


@dataclass(frozen=True)
class PruneInitializers(Pass):
    """Drop initializers that nobody reads.

    Readers in nested bodies count. Stays: an initializer that is also an input (it belongs to the model's
    interface), one that a quantization annotation or the training information names, and what the user
    keeps.
    """

    name: ClassVar[str] = "prune-initializers"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Drop them one by one."""
        for constant in list(graph.body.initializers):
            graph.erase_constant(constant)
