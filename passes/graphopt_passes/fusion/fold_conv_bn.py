"""Fold BatchNormalization into the convolution before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import batch_norm_affine
from graphopt_passes.fusion._conv import fold_after, read_conv
from graphopt_passes.fusion._operands import absorbed, read_batch_norm


@dataclass(frozen=True)
class FoldConvBatchNorm(NodePass):
    """BN(Conv(x, w, b)) = Conv(x, w*s, b*s + t), s = gamma / sqrt(var + eps), t = beta - mean*s.

    ConvTranspose likewise, with `s` along its output channels (axis 1 of the weight, by groups).

    Refuses when: the convolution's output has another reader or is a graph output; weight, bias or a
    parameter of BatchNormalization is not constant; BatchNormalization trains or has spatial=0; the
    folded weights are not finite or lose precision in float16; a weight with other readers would have
    to be copied and is large.
    """

    name: ClassVar[str] = "fold-conv-bn"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the BatchNormalization `node`."""
        before = absorbed(graph, node, graph.input(node, 0), "Conv", "ConvTranspose")
        if before is None:
            return
        conv = read_conv(graph, before)
        stats = read_batch_norm(graph, node)
        if stats.channels != conv.channels_out:
            raise RefusedRewrite(f"BatchNormalization does not have {conv.channels_out} channels")
        scale, shift = batch_norm_affine(stats.gamma, stats.beta, stats.mean, stats.var, stats.epsilon)
        fold_after(graph, ctx, node, conv, scale, shift)
