"""Fold a scale or shift before a convolution into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import affine_of, channel_vector, check_offset
from graphopt_passes.fusion._conv import fold_before, read_conv
from graphopt_passes.fusion._operands import absorbed, constant_operand, declines_reversed, ends_composite


@dataclass(frozen=True)
class FoldAffineConv(NodePass):
    """Conv(x*s, w) = Conv(x, w*s) and Conv(x + t, w, b) = Conv(x, w, b + Conv(t, w)).

    The constant is one number, or one per input channel, of a Mul, Div, Add or Sub. A shift needs a
    Conv without padding: padding is zeros, not `t`.

    Refuses when: the elementwise operator has another reader or is a graph output; the constant is not
    per channel, may enlarge the input, or comes first (`c - x`, `c / x`); what it works on looks like an
    activation spelled out (`x * f(x)`), whose end a runtime may need to recognize it; there is a shift
    and padding, or a ConvTranspose; the shift is so large that it would cancel digits behind the
    product; and for the reasons of fold-conv-affine.
    """

    name: ClassVar[str] = "fold-affine-conv"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the elementwise operator that the convolution `node` reads."""
        producer = graph.producer_op(graph.input(node, 0), "Mul", "Div", "Add", "Sub")
        operands = None if producer is None else constant_operand(graph, producer)
        if producer is None or operands is None:
            return
        if absorbed(graph, node, graph.input(node, 0), producer.op) is None:
            return
        declines_reversed(producer, operands)
        if ends_composite(graph, operands.variable):
            raise RefusedRewrite(f"{producer.op} may end an activation that runtimes execute as one")
        conv = read_conv(graph, node)
        values = operands.small_values(graph, conv.channels_in)
        vector = None if values is None else channel_vector(values, conv.rank, 1, conv.channels_in)
        if values is None or vector is None:
            raise RefusedRewrite(f"{operands.constant.name} is not one number per input channel")
        # The Conv sees the result of broadcasting: what is broadcast may itself be smaller.
        shape = graph.shape(operands.variable)
        if values.ndim == conv.rank and (shape is None or len(shape) != conv.rank):
            raise RefusedRewrite(f"{operands.variable.name} is not known to have rank {conv.rank}")
        if vector.ndim and (shape is None or shape[1] != conv.channels_in):
            raise RefusedRewrite(f"{operands.variable.name} is not known to have {conv.channels_in} channels")
        scale, shift = affine_of(producer.op, vector)
        if shift.any():
            check_offset(shift)
        fold_before(graph, ctx, producer, conv, operands.variable, scale, shift)
