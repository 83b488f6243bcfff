"""Integer tensors that provably hold the same dims become one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import GraphView, Numerics, Pass, PassContext, Rewriter, Sym, Tensor


def dims_key(tensor: Tensor, graph: GraphView) -> Hashable | None:
    """Equal for integer tensors which hold equal expressions in dims; None when that cannot be said."""
    elements = graph.sym_value(tensor)
    if elements is None or not any(isinstance(e, Sym) for e in elements):
        return None
    shape, dtype = graph.static_shape(tensor), graph.dtype(tensor)
    if shape is None or dtype is None:
        return None
    return dtype, shape, tuple((type(e).__name__, e) for e in elements)


@dataclass(frozen=True)
class MergeEqualShapes(Pass):
    """Common subexpressions of shape arithmetic: tensors with equal symbolic elements become one.

    Shape(x)[0] and Shape(f(x))[0] are the same number where f keeps the rows, whichever way it was
    computed. The first in topological order stays.

    Refuses when both are outputs.
    """

    name: ClassVar[str] = "merge-equal-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Number the symbolic values of the body in one sweep."""
        first: dict[Hashable, Tensor] = {}
        for node in graph.nodes():
            if not graph.is_live(node):
                continue
            for t in list(node.outputs):
                if not t.name or graph.is_constant(t) or not graph.is_live(node):
                    continue
                key = dims_key(t, graph)
                if key is None:
                    continue
                known = first.get(key)
                if known is None or graph.producer(known) is None:
                    # None so far, or it went when its last reader was merged with another.
                    first[key] = t
                elif graph.is_read(t) and not graph.keeps(node):
                    self._merge(t, known, graph)
                    if graph.is_read(t):
                        first[key] = t

    def _merge(self, t: Tensor, known: Tensor, graph: Rewriter) -> None:
        node = graph.producer(t)
        if node is not None and graph.is_output(t) and graph.is_output(known):
            graph.refuse(node, f"{t.name} and {known.name} are both outputs")
            return
        graph.bypass(t, known, f"{t.name} is always {known.name}")
