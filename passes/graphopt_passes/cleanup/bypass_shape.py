"""bypass-shape: Shape reads the earliest tensor that has the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Numerics, Pass, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import same_shape

# Inputs of a producer that are compared with its output.
_MAX_INPUTS: Final = 8


@dataclass(frozen=True)
class BypassShape(Pass):
    """Shape(f(x)) = Shape(x), and Size likewise, where f(x) provably has the shape of x.

    Nothing is read for its shape alone then, so its producer may die or be fused. The attributes `start`
    and `end` stay as they are.
    """

    name: ClassVar[str] = "bypass-shape"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Read from as far upstream as the shape goes, walking every stretch of the graph once."""
        tops: dict[Tensor, Tensor] = {}
        for node in graph.by_op("Shape", "Size"):
            tensor = graph.input(node, 0)
            if tensor is None or graph.keeps(node) or not graph.is_live(node):
                continue
            found = _top(graph, tensor, tops)
            if found is not tensor:
                graph.set_input(node, 0, found, f"{tensor.name} has the shape of {found.name}")


def _top(graph: GraphView, tensor: Tensor, tops: dict[Tensor, Tensor]) -> Tensor:
    """The furthest tensor upstream with the shape of `tensor`; `tops` remembers the way."""
    way: list[Tensor] = []
    found: Tensor = tensor
    while found not in tops:
        way.append(found)
        above = _upstream(graph, found)
        if above is None:
            tops[found] = found
            break
        found = above
    top = tops[found]
    tops.update(dict.fromkeys(way, top))
    return top


def _upstream(graph: GraphView, tensor: Tensor) -> Tensor | None:
    """An input of the producer of `tensor` with the same shape."""
    producer = graph.producer(tensor)
    if producer is None:
        return None
    for t in producer.inputs[:_MAX_INPUTS]:
        if t.name and not graph.is_constant(t) and same_shape(graph, tensor, t):
            return t
    return None
