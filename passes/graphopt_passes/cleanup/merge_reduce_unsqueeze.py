"""merge-reduce-unsqueeze: a reduction and the Unsqueeze or Squeeze that redoes its keepdims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import absorbable, attribute, label, normalized, operand

_ONE_AXIS: Final = ("ArgMax", "ArgMin")
_REDUCTIONS: Final = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
    *_ONE_AXIS,
)


@dataclass(frozen=True)
class MergeReduceUnsqueeze(NodePass):
    """Unsqueeze(Reduce(x, axes, keepdims=0), axes) = Reduce(x, axes, keepdims=1).

    For every Reduce* and ArgMax / ArgMin; likewise Squeeze(Reduce(x, axes, keepdims=1), axes) with
    keepdims=0. Refuses when the reduction has other readers, and when axes are unknown or differ.
    """

    name: ClassVar[str] = "merge-reduce-unsqueeze"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Unsqueeze", "Squeeze")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let the reduction compute the result."""
        result, reduced = graph.output(node, 0), graph.input(node, 0)
        producer = graph.producer_op(reduced, *_REDUCTIONS)
        wanted = 1 if node.op == "Unsqueeze" else 0
        if producer is None or result is None or graph.attr(producer, "keepdims") != 1 - wanted:
            return
        reduction = absorbable(graph, reduced, *_REDUCTIONS)
        if reduction is None:
            return
        rank = graph.rank(reduction.inputs[0])
        axes = _reduced_axes(graph, reduction, rank)
        given = operand(graph, node, "axes", 1, 13)
        if not given:
            raise RefusedRewrite(f"{label(node)} does not say which axes")
        if sorted(given) != sorted(axes) and (
            set(normalized(given, rank, node)) != set(normalized(axes, rank, reduction))
        ):
            raise RefusedRewrite(f"{label(node)} is not along the axes of {label(reduction)}")
        attrs = {**reduction.attrs, "keepdims": wanted}
        graph.replace(
            result, reduction.op, reduction.inputs, attrs=attrs, why=f"{reduction.op} can do the {node.op}"
        )


def _reduced_axes(graph: GraphView, node: Node, rank: int | None) -> list[int]:
    """The axes that a reduction reduces, as given; all of them if none are given."""
    if node.op in _ONE_AXIS:
        return [int(attribute(graph, node, "axis"))]
    axes = operand(graph, node, "axes", 1, 13 if node.op == "ReduceSum" else 18)
    if axes:
        return axes
    if rank is None or attribute(graph, node, "noop_with_empty_axes"):
        raise RefusedRewrite(f"the axes of {label(node)} are not known")
    return list(range(rank))
