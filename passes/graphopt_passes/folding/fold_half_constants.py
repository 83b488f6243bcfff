"""As fold-constants, with arithmetic in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import GraphView, Node, Numerics
from graphopt_passes.folding._foldable import may_fold
from graphopt_passes.folding.fold_constants import FoldConstants


@dataclass(frozen=True)
class FoldHalfConstants(FoldConstants):
    """Like fold-constants, but also arithmetic on float16 and bfloat16, and rounding to them.

    A runtime without kernels for half precision computes in float32 and does not round between one such
    node and the next, nor at a Cast before it. Folding some of them rounds in between, which is what the
    operators say, but not the same bits: hence a pass of its own.

    Refuses as fold-constants does.
    """

    name: ClassVar[str] = "fold-half-constants"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def folds(self, node: Node, graph: GraphView) -> bool:
        """Whether `node` may be computed ahead of time by this pass."""
        return may_fold(node, graph)
