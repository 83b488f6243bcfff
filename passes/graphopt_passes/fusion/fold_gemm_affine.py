"""Fold a scale or bias behind a matrix product into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import affine_of, channel_vector
from graphopt_passes.fusion._gemm import Gemm, fold_after, read_gemm
from graphopt_passes.fusion._operands import absorbed, constant_operand, declines_reversed


@dataclass(frozen=True)
class FoldGemmAffine(NodePass):
    """Gemm(a, b, c) * s + t = Gemm(a, b*s, c*s + t), for Mul, Div, Add and Sub by constants.

    The constant is one number, or one per column: its shape is 1 everywhere but on the last axis.
    One number goes into a constant operand, or into alpha and beta of a Gemm that has none. MatMul takes
    scales only (fuse-matmul-add gives it a bias).

    Refuses when: the product's output has another reader or is a graph output; the operand or bias that
    would change is not constant; the constant is not per column, may enlarge the output, or comes first
    (`c - x`, `c / x`); the bias varies by row; the folded weights are not finite or lose precision in
    float16; a weight with other readers would have to be copied and is large.
    """

    name: ClassVar[str] = "fold-gemm-affine"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Add", "Sub")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the elementwise `node`."""
        operands = constant_operand(graph, node)
        before = None if operands is None else graph.producer_op(operands.variable, "Gemm", "MatMul")
        if operands is None or before is None or not self._may_fold(node, before, graph):
            return
        if absorbed(graph, node, operands.variable, before.op) is None:
            return
        declines_reversed(node, operands)
        gemm = read_gemm(graph, before)
        columns = gemm.columns(graph)
        values = operands.small_values(graph, columns or 1)
        rank = self._output_rank(gemm, graph)
        if values is not None and rank is None and values.ndim == 0:
            rank = 0
        vector = None
        if values is not None and rank is not None:
            vector = channel_vector(values, rank, rank - 1, columns or 1)
        if vector is None:
            raise RefusedRewrite(f"{operands.constant.name} is not one number per column")
        fold_after(graph, ctx, node, gemm, *affine_of(node.op, vector))

    @staticmethod
    def _may_fold(node: Node, before: Node, graph: Rewriter) -> bool:
        """Whether the pair is worth a word when it is not folded."""
        if before.op == "Gemm":
            return graph.is_constant(before.inputs[1]) or node.op in ("Mul", "Div")
        return node.op in ("Mul", "Div") and any(graph.is_constant(t) for t in before.inputs)

    @staticmethod
    def _output_rank(gemm: Gemm, graph: Rewriter) -> int | None:
        """Rank of the product, or a lower bound that aligns the last axis just as well."""
        if not gemm.is_matmul:
            return 2
        rank = graph.rank(gemm.node.outputs[0])
        if rank is None and gemm.columns(graph) is not None:
            return 1
        return rank
