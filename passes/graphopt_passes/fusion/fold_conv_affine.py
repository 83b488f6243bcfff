"""Fold a scale or bias behind a convolution into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import affine_of, channel_vector
from graphopt_passes.fusion._conv import fold_after, read_conv
from graphopt_passes.fusion._operands import absorbed, constant_operand, declines_reversed


@dataclass(frozen=True)
class FoldConvAffine(NodePass):
    """Conv(x, w, b) * s + t = Conv(x, w*s, b*s + t), for Mul, Div, Add and Sub by constants.

    The constant is one number, or one per output channel: its shape, aligned at the right as broadcasting
    does, is 1 everywhere but on axis 1 (`(C, 1, 1)` behind a 2-D convolution; a vector `(C,)` lies along
    the width).

    Refuses when: the convolution's output has another reader or is a graph output; its weight or bias is
    not constant; the constant is not per channel, would enlarge the output, or comes first (`c - x`,
    `c / x`); the folded weights are not finite or lose precision in float16; a weight with other
    readers would have to be copied and is large.
    """

    name: ClassVar[str] = "fold-conv-affine"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Add", "Sub")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the elementwise `node`."""
        operands = constant_operand(graph, node)
        if operands is None:
            return
        before = absorbed(graph, node, operands.variable, "Conv", "ConvTranspose")
        if before is None:
            return
        declines_reversed(node, operands)
        conv = read_conv(graph, before)
        values = operands.small_values(graph, conv.channels_out)
        vector = None if values is None else channel_vector(values, conv.rank, 1, conv.channels_out)
        if vector is None:
            raise RefusedRewrite(f"{operands.constant.name} is not one number per output channel")
        fold_after(graph, ctx, node, conv, *affine_of(node.op, vector))
