"""Fold BatchNormalization into the matrix product behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import batch_norm_affine, check_offset
from graphopt_passes.fusion._gemm import fold_before, read_gemm
from graphopt_passes.fusion._operands import absorbed, read_batch_norm


@dataclass(frozen=True)
class FoldBatchNormGemm(NodePass):
    """Gemm(BN(x), b, c) = Gemm(x, s*b, c + t@b), s and t as in fold-gemm-bn; MatMul likewise.

    Refuses when: BatchNormalization's output has another reader or is a graph output, is not known to
    be a matrix, or is transposed by the Gemm (its channels are then not what is summed over); the means
    are so large compared to the deviations that subtracting them after the product instead of before
    would cancel digits; and for the reasons of fold-gemm-bn.
    """

    name: ClassVar[str] = "fold-bn-gemm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the BatchNormalization that the product `node` reads at the left."""
        norm = absorbed(graph, node, graph.input(node, 0), "BatchNormalization")
        if norm is None:
            return
        gemm = read_gemm(graph, node)
        if gemm.trans_a:
            raise RefusedRewrite("Gemm transposes what BatchNormalization computes")
        if graph.rank(norm.inputs[0]) != 2:
            raise RefusedRewrite(f"{norm.inputs[0].name} is not known to be a matrix")
        stats = read_batch_norm(graph, norm)
        if gemm.depth(graph, 0) != stats.channels:
            raise RefusedRewrite(f"{gemm.b.name} is not a constant with {stats.channels} rows")
        scale, shift = batch_norm_affine(stats.gamma, stats.beta, stats.mean, stats.var, stats.epsilon)
        if shift.any():
            check_offset(stats.mean, stats.deviation)
        fold_before(graph, ctx, norm, gemm, 0, norm.inputs[0], scale, shift)
