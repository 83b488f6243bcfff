"""bypass-shape: Shape reads the earliest tensor that has the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import same_shape

# Inputs of a producer that are compared with its output.
_MAX_INPUTS: Final = 8


@dataclass(frozen=True)
class BypassShape(NodePass):
    """Shape(f(x)) = Shape(x), and Size likewise, where f(x) provably has the shape of x.

    Nothing is read for its shape alone then, so its producer may die or be fused. The attributes `start`
    and `end` stay as they are.
    """

    name: ClassVar[str] = "bypass-shape"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Shape", "Size")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Read from as far upstream as the shape goes."""
        tensor = graph.input(node, 0)
        if tensor is None or graph.keeps(node):
            return
        found = tensor
        while (above := _upstream(graph, found)) is not None:
            found = above
        if found is not tensor:
            graph.set_input(node, 0, found, f"{tensor.name} has the shape of {found.name}")


def _upstream(graph: GraphView, tensor: Tensor) -> Tensor | None:
    """An input of the producer of `tensor` with the same shape."""
    producer = graph.producer(tensor)
    if producer is None:
        return None
    for t in producer.inputs[:_MAX_INPUTS]:
        if t.name and not graph.is_constant(t) and same_shape(graph, tensor, t):
            return t
    return None
