"""bypass-shape: Shape reads a tensor that is there for other reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import GraphView, Node, Numerics, Pass, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import same_shape

# Inputs of a producer that are compared with its output, and tensors downstream that are tried.
_MAX_INPUTS: Final = 8
_MAX_DOWN: Final = 8


@dataclass(frozen=True)
class BypassShape(Pass):
    """Shape(f(x)) = Shape(x), and Size likewise, where f(x) provably has the shape of x.

    Of all tensors up and down the stream that have the shape, the furthest upstream is read whose reading
    does no harm. Reading harms a tensor between a producer and its only other reader: the two could not
    be fused any more. Tensors that nothing reads but for their shape are not read at all, so they die.
    The attributes `start` and `end` stay as they are.
    """

    name: ClassVar[str] = "bypass-shape"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Move every Shape and Size, walking every stretch of the graph once."""
        best: dict[Tensor, Tensor | None] = {}
        for node in graph.by_op("Shape", "Size"):
            tensor = graph.input(node, 0)
            if tensor is None or graph.keeps(node) or not graph.is_live(node):
                continue
            found = _upstream_best(graph, tensor, best)
            if found is None:
                living = _living(graph, tensor)
                found = _downstream_best(graph, living, node) or living
            if found is not tensor:
                graph.set_input(node, 0, found, f"{tensor.name} has the shape of {found.name}")


def _readers(graph: GraphView, tensor: Tensor) -> list[Node]:
    """The nodes that read the elements of `tensor`, not only its shape."""
    return [n for n in graph.consumers(tensor) if not graph.is_op(n, "Shape", "Size")]


def _is_harmless(graph: GraphView, tensor: Tensor) -> bool:
    """Whether one more reader stands between nothing: an input, an output, or a tensor read in two places."""
    return graph.producer(tensor) is None or graph.is_output(tensor) or len(_readers(graph, tensor)) > 1


def _upstream_best(graph: GraphView, tensor: Tensor, best: dict[Tensor, Tensor | None]) -> Tensor | None:
    """The furthest harmless tensor upstream with the shape of `tensor`; `best` remembers the way."""
    way: list[Tensor] = []
    at: Tensor | None = tensor
    while at is not None and at not in best:
        way.append(at)
        at = _upstream(graph, at)
    found = None if at is None else best[at]
    for t in reversed(way):
        if found is None and _is_harmless(graph, t):
            found = t
        best[t] = found
    return found


def _upstream(graph: GraphView, tensor: Tensor) -> Tensor | None:
    """An input of the producer of `tensor` with the same shape."""
    producer = graph.producer(tensor)
    if producer is None:
        return None
    for t in producer.inputs[:_MAX_INPUTS]:
        if t.name and not graph.is_constant(t) and same_shape(graph, tensor, t):
            return t
    return None


def _living(graph: GraphView, tensor: Tensor) -> Tensor:
    """The first tensor upstream, from `tensor` on, that something reads for more than its shape."""
    at = tensor
    while not _readers(graph, at):
        above = _upstream(graph, at)
        if above is None:
            return at
        at = above
    return at


def _downstream_best(graph: GraphView, tensor: Tensor, shape: Node) -> Tensor | None:
    """The first harmless tensor behind `tensor`, each the only one made of the one before it."""
    at = tensor
    for _ in range(_MAX_DOWN):
        readers = _readers(graph, at)
        if len(readers) != 1 or not graph.is_live(readers[0]):
            return None
        after = next((t for t in readers[0].outputs if t.name and same_shape(graph, t, at)), None)
        if after is None or _depends(graph, readers[0], shape):
            return None
        if _is_harmless(graph, after):
            return after
        at = after
    return None


def _depends(graph: GraphView, node: Node, shape: Node) -> bool:
    """Whether `node` may need the result of `shape`: it is near enough to be looked for, or too far."""
    pending, seen = [*node.inputs], 0
    while pending:
        producer = graph.producer(pending.pop())
        if producer is shape:
            return True
        seen += 1
        if seen > 64:
            return True
        if producer is not None:
            pending.extend(t for t in producer.inputs if t.name)
            if any(True for _ in producer.bodies()):
                return True
    return False
