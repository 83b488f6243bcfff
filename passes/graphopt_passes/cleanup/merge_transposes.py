"""merge-transposes: two Transposes in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import attribute


@dataclass(frozen=True)
class MergeTransposes(NodePass):
    """Transpose(Transpose(x, p), q) = Transpose(x, [p[i] for i in q]), and x where that moves nothing.

    The inner Transpose may have other readers: the outer one reads past it. Refuses when neither
    permutation is written out and the rank is unknown.
    """

    name: ClassVar[str] = "merge-transposes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Read past the inner Transpose."""
        middle, result = graph.input(node, 0), graph.output(node, 0)
        inner = graph.producer_op(middle, "Transpose")
        if inner is None or middle is None or result is None or not graph.is_local(middle):
            return
        source = graph.input(inner, 0)
        if source is None:
            return
        outer_perm, inner_perm = _permutations(graph, node, inner)
        perm = compose(inner_perm, outer_perm)
        if perm == list(range(len(perm))):
            graph.bypass(result, source, "two Transposes undo each other")
            return
        if graph.keeps(node) or graph.keeps(inner):
            raise RefusedRewrite(f"{middle.name} is kept")
        with graph.site(node, "Transpose of a Transpose"):
            graph.set_input(node, 0, source)
            graph.set_attr(node, "perm", perm)


def compose(first: list[int], second: list[int]) -> list[int]:
    """The permutation that is `first`, then `second`.

    Raises:
        RefusedRewrite: they are of different ranks.
    """
    if len(first) != len(second):
        raise RefusedRewrite("the permutations are of different ranks")
    return [first[i] for i in second]


def _permutations(graph: GraphView, outer: Node, inner: Node) -> tuple[list[int], list[int]]:
    given = [attribute(graph, node, "perm") for node in (outer, inner)]
    rank = next((len(p) for p in given if p is not None), graph.rank(inner.inputs[0]))
    if rank is None:
        raise RefusedRewrite("the rank is unknown, so a Transpose without perm is not known either")
    outer_perm, inner_perm = (list(range(rank))[::-1] if p is None else [int(a) for a in p] for p in given)
    return outer_perm, inner_perm
