"""Fold BatchNormalization into the convolution behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import batch_norm_affine, check_offset
from graphopt_passes.fusion._conv import fold_before, read_conv
from graphopt_passes.fusion._operands import absorbed, read_batch_norm


@dataclass(frozen=True)
class FoldBatchNormConv(NodePass):
    """Conv(BN(x), w, b) = Conv(x, w*s, b + Conv(t, w)), s and t as in fold-conv-bn.

    The padding of a convolution is zeros that BatchNormalization never saw, so with padding the shift `t`
    must be zero. A ConvTranspose takes no shift at all: how many taps reach an output element depends on
    where it lies.

    Refuses when: BatchNormalization's output has another reader or is a graph output; there is a shift
    and padding; the means are so large compared to the deviations that subtracting them after the
    product instead of before would cancel digits; and for the reasons of fold-conv-bn.
    """

    name: ClassVar[str] = "fold-bn-conv"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the BatchNormalization that the convolution `node` reads."""
        norm = absorbed(graph, node, graph.input(node, 0), "BatchNormalization")
        if norm is None:
            return
        conv = read_conv(graph, node)
        stats = read_batch_norm(graph, norm)
        if stats.channels != conv.channels_in:
            raise RefusedRewrite(f"BatchNormalization does not have {conv.channels_in} channels")
        scale, shift = batch_norm_affine(stats.gamma, stats.beta, stats.mean, stats.var, stats.epsilon)
        if shift.any():
            check_offset(stats.mean, stats.deviation)
        fold_before(graph, ctx, norm, conv, norm.inputs[0], scale, shift)
