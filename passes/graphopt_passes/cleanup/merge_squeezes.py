"""merge-squeezes: two Squeezes in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import absorbable, normalized, operand


@dataclass(frozen=True)
class MergeSqueezes(NodePass):
    """Squeeze(Squeeze(x, a), b) = Squeeze(x, a + b), b counted in the shape of x.

    Squeeze(Squeeze(x, a)), which drops every axis of length 1, is Squeeze(x). Refuses when the inner one
    has other readers, when axes are not constant, or are counted from the back and the rank is unknown.
    """

    name: ClassVar[str] = "merge-squeezes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Make one Squeeze of both."""
        middle = graph.input(node, 0)
        inner = absorbable(graph, middle, "Squeeze")
        source = None if inner is None else graph.input(inner, 0)
        if inner is None or source is None:
            return
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name} is kept")
        outer_axes, inner_axes = operand(graph, node, "axes", 1, 13), operand(graph, inner, "axes", 1, 13)
        if outer_axes is None:
            with graph.site(node, "Squeeze of a Squeeze"):
                graph.set_input(node, 0, source)
            return
        if not outer_axes or not inner_axes:
            raise RefusedRewrite("which axes the Squeeze before it drops is not known")
        rank = graph.rank(source)
        axes = squeezed_axes(
            normalized(inner_axes, rank, inner),
            normalized(outer_axes, None if rank is None else rank - len(inner_axes), node),
        )
        with graph.site(node, "Squeeze of a Squeeze"):
            set_axes(graph, node, axes, 13)
            graph.set_input(node, 0, source)


def squeezed_axes(first: list[int], second: list[int]) -> list[int]:
    """Axes of the original that are gone once `first`, then `second` of what is left, are dropped."""
    left = [i for i in range(max([*first, *second]) + len(first) + 1) if i not in set(first)]
    return sorted([*first, *(left[i] for i in second)])


def set_axes(graph: Rewriter, node: Node, axes: list[int], since: int) -> None:
    """Give `node` these axes: as an attribute, or from opset `since` as input 1."""
    if graph.opset < since:
        graph.set_attr(node, "axes", axes)
    else:
        graph.set_input(node, 1, graph.new_constant(f"{node.outputs[0].name}/axes", np.array(axes, np.int64)))
