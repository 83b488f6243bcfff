"""orient-gemm: constant matrices of Gemm the way integer kernels want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import (
    AttributeRef,
    Constant,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)


@dataclass(frozen=True)
class OrientGemm(NodePass):
    """Gemm(a, B, c, transB=1) = Gemm(a, B', c) for a constant B; a bias of shape (1, N) becomes (N,).

    Runtimes turn a quantized weight and its Gemm into one kernel only if the matrix stands as it is
    multiplied and the bias is a vector. Run this before passes that quantize weights: afterwards the
    matrix is stored in integers, whose blocks would have to be turned too.

    Refuses when: the matrix has other readers or is an output (it would be stored twice); it is kept.
    """

    name: ClassVar[str] = "orient-gemm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Gemm",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Turn the matrix of one Gemm."""
        flag = graph.attr(node, "transB")
        if isinstance(flag, AttributeRef) or graph.opset < 7:
            return
        matrix = graph.constant(graph.input(node, 1)) if flag else None
        bias = _flat_bias(graph, node)
        if matrix is None and bias is None:
            return
        for t in (node.inputs[1],) if matrix is not None else ():
            if graph.n_uses(t) > 1 or graph.is_output(t):
                raise RefusedRewrite(f"the matrix {t.name} has another reader or is an output")
        with graph.site(node, "the matrix of Gemm stands as it is multiplied"):
            if matrix is not None:
                values = graph.array(node.inputs[1])
                assert values is not None
                turned: Tensor = graph.new_constant(matrix.name, np.ascontiguousarray(values.T))
                graph.set_input(node, 1, turned)
                graph.set_attr(node, "transB", None)
            if bias is not None:
                values = graph.array(bias)
                assert values is not None
                graph.set_input(node, 2, graph.new_constant(bias.name, values.reshape(-1)))


def _flat_bias(graph: GraphView, node: Node) -> Constant | None:
    """The constant bias of shape (1, N), where N > 1 is the number of columns for sure."""
    found = graph.constant(graph.input(node, 2))
    if found is None or graph.keeps(found):
        return None
    shape = tuple(found.shape)
    return found if len(shape) == 2 and shape[0] == 1 and shape[1] > 1 else None
