"""Multiply the factors of a Gemm into its constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.fusion._affine import scaled
from graphopt_passes.fusion._gemm import GEMM_WITHOUT_C, gemm_attrs, read_gemm
from graphopt_passes.fusion._operands import check_growth


@dataclass(frozen=True)
class NormalizeGemm(NodePass):
    """Gemm(a, b, c, alpha, beta) = Gemm(a, alpha*b, beta*c), for constant b (or a) and constant c.

    A bias that is constant zeros, or that beta=0 switches off, is left out where the opset allows it
    (11); beta without a bias is dropped.

    Refuses when: a factor would have to go into an operand that is not constant; the result is not
    finite or loses precision in float16; a constant with other readers would have to be copied and is
    large.
    """

    name: ClassVar[str] = "normalize-gemm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Gemm",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Normalize one Gemm."""
        gemm = read_gemm(graph, node)
        c, beta = gemm.c, gemm.beta
        if c is not None and graph.opset >= GEMM_WITHOUT_C and self._is_zero(graph, c, beta, gemm.dtype):
            c = None
        if c is None:
            beta = 1.0
        scales_c = beta != 1.0 and graph.is_constant(c)
        slot = next((s for s in (1, 0) if graph.is_constant(node.inputs[s])), None)
        scales_ab = gemm.alpha not in (0.0, 1.0) and slot is not None
        if not scales_ab and not scales_c and c is gemm.c and beta == gemm.beta:
            return
        sizes: list[tuple[Tensor | None, int]] = []
        for scales, t in ((scales_ab, node.inputs[slot or 0]), (scales_c, c)):
            constant = graph.constant(t)
            if scales and constant is not None:
                sizes.append((t, constant.nbytes))
        check_growth(graph, ctx, node, sizes)
        alpha, operands, bias = gemm.alpha, [gemm.a, gemm.b], c
        with graph.site(node, "the factors of Gemm moved into its constants"):
            if scales_ab and slot is not None:
                values = graph.array(operands[slot])
                assert values is not None
                hint = operands[slot].name
                operands[slot] = graph.new_constant(hint, scaled(values, np.asarray(alpha)))
                alpha = 1.0
            if scales_c and c is not None:
                values = graph.array(c)
                assert values is not None
                bias = graph.new_constant(c.name, scaled(values, np.asarray(beta), "bias"))
                beta = 1.0
            attrs = gemm_attrs(alpha, beta, gemm.trans_a, gemm.trans_b)
            graph.replace(node.outputs[0], "Gemm", [*operands, bias], attrs=attrs)

    @staticmethod
    def _is_zero(graph: Rewriter, c: Tensor, beta: float, dtype: int) -> bool:
        """Whether `beta * c` is zeros, so that leaving it out changes no more than the sign of zeros."""
        constant = graph.constant(c)
        if constant is None or constant.nbytes > 1 << 20:
            return False
        values = constant.values
        return bool(np.isfinite(values).all()) and (beta == 0.0 or not values.any())
