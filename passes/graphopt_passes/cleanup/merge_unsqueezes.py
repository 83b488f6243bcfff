"""merge-unsqueezes: two Unsqueezes in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.merge_squeezes import set_axes
from graphopt_passes.cleanup.operands import absorbable, normalized, operand


@dataclass(frozen=True)
class MergeUnsqueezes(NodePass):
    """Unsqueeze(Unsqueeze(x, a), b) = Unsqueeze(x, b + a), a counted in the final shape.

    Several Unsqueezes may read the inner one, which goes with the last of them.

    Refuses when the inner one has readers of another kind, when axes are not constant, or are counted from
    the back and the rank is unknown.
    """

    name: ClassVar[str] = "merge-unsqueezes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Make one Unsqueeze of both."""
        inner = absorbable(graph, graph.input(node, 0), "Unsqueeze", siblings=True)
        source = None if inner is None else graph.input(inner, 0)
        if inner is None or source is None:
            return
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name} is kept")
        outer_axes, inner_axes = operand(graph, node, "axes", 1, 13), operand(graph, inner, "axes", 1, 13)
        if not outer_axes or not inner_axes:
            return
        rank = graph.rank(source)
        middle = None if rank is None else rank + len(inner_axes)
        axes = unsqueezed_axes(
            normalized(inner_axes, middle, inner),
            normalized(outer_axes, None if middle is None else middle + len(outer_axes), node),
        )
        with graph.site(node, "Unsqueeze of an Unsqueeze"):
            set_axes(graph, node, axes, 13)
            graph.set_input(node, 0, source)


def unsqueezed_axes(first: list[int], second: list[int]) -> list[int]:
    """Axes of the final shape that are new once `first`, then `second` have been inserted."""
    older = [i for i in range(max([*first, *second]) + len(second) + 1) if i not in set(second)]
    return sorted([*second, *(older[i] for i in first)])
