"""Fold BatchNormalization into the matrix product before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import batch_norm_affine
from graphopt_passes.fusion._gemm import fold_after, is_matrix_product, read_gemm
from graphopt_passes.fusion._operands import absorbed, read_batch_norm


@dataclass(frozen=True)
class FoldGemmBatchNorm(NodePass):
    """BN(Gemm(a, b, c)) = Gemm(a, b*s, c*s + t), s = gamma / sqrt(var + eps), t = beta - mean*s.

    `s` and `t` lie along the columns, which are axis 1 of a matrix; a MatMul becomes a Gemm if `t` is
    not zero. For a stack of matrices axis 1 is something else, so both operands must be known to be
    matrices.

    Refuses when: the product's output has another reader or is a graph output; the right operand, the
    bias or a parameter of BatchNormalization is not constant; a MatMul is not known to multiply
    matrices; the bias varies by row; BatchNormalization trains or has spatial=0; the folded weights are
    not finite or lose precision in float16; a weight with other readers would have to be copied and is
    large.
    """

    name: ClassVar[str] = "fold-gemm-bn"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the BatchNormalization `node`."""
        before = absorbed(graph, node, graph.input(node, 0), "Gemm", "MatMul")
        if before is None:
            return
        gemm = read_gemm(graph, before)
        if not is_matrix_product(graph, gemm):
            raise RefusedRewrite("the operands of MatMul are not known to be matrices")
        stats = read_batch_norm(graph, node)
        if gemm.columns(graph) != stats.channels:
            raise RefusedRewrite(f"{gemm.b.name} is not a constant with {stats.channels} columns")
        scale, shift = batch_norm_affine(stats.gamma, stats.beta, stats.mean, stats.var, stats.epsilon)
        fold_after(graph, ctx, node, gemm, scale, shift)
