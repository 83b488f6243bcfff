"""Fold a scale or shift before a matrix product into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import affine_of, channel_vector, check_offset
from graphopt_passes.fusion._gemm import fold_before, read_gemm
from graphopt_passes.fusion._operands import absorbed, constant_operand, declines_reversed, ends_composite


@dataclass(frozen=True)
class FoldAffineGemm(NodePass):
    """(x*s) @ b = x @ (s*b) and Gemm(x + t, b, c) = Gemm(x, b, c + t@b), with Mul, Div, Add or Sub.

    The constant is one number, or one for each element of the axis that the product sums over. Scales are
    taken from either operand, shifts from the left one. One number goes into the alpha of a Gemm that has
    no constant operand.

    Refuses when: the elementwise operator has another reader or is a graph output; the constant does not
    lie along the axis that is summed over, may enlarge the operand, or comes first (`c - x`, `c / x`); what
    it works on looks like an activation spelled out (`x * f(x)`), whose end a runtime may need to
    recognize it;
    the shift is so large that it would cancel digits behind the product; and for the reasons of
    fold-gemm-affine.
    """

    name: ClassVar[str] = "fold-affine-gemm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold an elementwise operator that the product `node` reads."""
        for slot in (0, 1):
            if self._fold(node, slot, graph, ctx):
                return

    def _fold(self, node: Node, slot: int, graph: Rewriter, ctx: PassContext) -> bool:
        tensor = graph.input(node, slot)
        if node.op == "MatMul" and not graph.is_constant(node.inputs[1 - slot]):
            return False
        producer = graph.producer_op(tensor, "Mul", "Div", "Add", "Sub")
        operands = None if producer is None else constant_operand(graph, producer)
        if producer is None or operands is None:
            return False
        if producer.op in ("Add", "Sub") and (slot == 1 or not graph.is_constant(node.inputs[1])):
            return False
        if absorbed(graph, node, tensor, producer.op) is None:
            return False
        declines_reversed(producer, operands)
        if ends_composite(graph, operands.variable):
            raise RefusedRewrite(f"{producer.op} may end an activation that runtimes execute as one")
        gemm = read_gemm(graph, node)
        depth = gemm.depth(graph, slot)
        values = operands.small_values(graph, depth or 1)
        vector = None
        shape = graph.shape(operands.variable)
        if values is not None and values.ndim == 0:
            vector = channel_vector(values, 0, 0, 1)
        elif values is not None and shape:
            axis = gemm.depth_axis(slot, len(shape))
            vector = channel_vector(values, len(shape), axis, depth or 1)
            # The product sees the result of broadcasting: what is broadcast may itself be smaller.
            if vector is not None and vector.ndim and shape[axis] != depth:
                vector = None
        if vector is None:
            raise RefusedRewrite(f"{operands.constant.name} is not known to be one number per summed element")
        scale, shift = affine_of(producer.op, vector)
        if shift.any():
            check_offset(shift)
        fold_before(graph, ctx, producer, gemm, slot, operands.variable, scale, shift)
        return True
