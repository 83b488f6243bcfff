"""merge-concats: a Concat of Concats along the same axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import (
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)
from graphopt_passes.cleanup.operands import absorbable, attribute


@dataclass(frozen=True)
class MergeConcats(NodePass):
    """Concat(a, Concat(b, c), d) = Concat(a, b, c, d) along one axis.

    Refuses an inner Concat with other readers, and axes that cannot be compared because they count from
    different ends and the rank is unknown.
    """

    name: ClassVar[str] = "merge-concats"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Concat",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Put the operands of inner Concats, at any depth, in their places."""
        if graph.keeps(node) or self._is_inner(graph, node):
            return  # the outermost Concat takes them all at once: one by one would be quadratic
        operands: list[Tensor] = []
        absorbed = 0
        stack = list(reversed(node.inputs))
        while stack:
            tensor = stack.pop()
            inner = self._inner(graph, node, tensor)
            if inner is None:
                operands.append(tensor)
            else:
                stack.extend(reversed(inner.inputs))
                absorbed += 1
        if absorbed:
            graph.set_inputs(node, operands, f"Concat of {absorbed} Concat")

    @staticmethod
    def _is_inner(graph: GraphView, node: Node) -> bool:
        """Another Concat is going to take this one."""
        result = node.outputs[0]
        reader = graph.sole_consumer(result)
        if reader is None or not graph.is_op(reader, "Concat") or not graph.is_live(reader):
            return False
        return not graph.keeps(reader) and reader.attrs.get("axis") == node.attrs.get("axis")

    @staticmethod
    def _inner(graph: Rewriter, node: Node, tensor: Tensor) -> Node | None:
        try:
            inner = absorbable(graph, tensor, "Concat")
            if inner is None or _axis(graph, inner) == _axis(graph, node):
                return inner
        except RefusedRewrite as refused:
            graph.refuse(node, refused.reason)
        return None


def _axis(graph: GraphView, node: Node) -> int:
    axis = attribute(graph, node, "axis")
    axis = 1 if axis is None else int(axis)  # the default of opset 1
    if axis < 0:
        rank = graph.rank(node.outputs[0])
        if rank is None:
            raise RefusedRewrite("the rank is unknown, so the axes of two Concats cannot be compared")
        axis += rank
    return axis
