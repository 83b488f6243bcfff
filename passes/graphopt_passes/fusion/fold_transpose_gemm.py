"""Let Gemm transpose its operands itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._gemm import GEMM_WITHOUT_C, gemm_attrs, is_matrix_product, read_gemm
from graphopt_passes.fusion._operands import attribute

_GEMM_BFLOAT16 = 13


@dataclass(frozen=True)
class FoldTransposeGemm(NodePass):
    """Gemm(Transpose(a), b, c) = Gemm(a, b, c, transA=1), and so for b; transposing twice is not at all.

    A MatMul of matrices becomes a Gemm without bias, where the opset has that (11).

    Refuses when: the Transpose would stay, because something else than a Gemm or MatMul reads it or it is
    a graph output; MatMul is not known to multiply matrices.
    """

    name: ClassVar[str] = "fold-transpose-gemm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Absorb the Transposes that the product `node` reads."""
        flips = [self._transposed(graph, node, slot) for slot in (0, 1)]
        if flips == [None, None]:
            return
        if node.op == "MatMul" and graph.opset < GEMM_WITHOUT_C:
            return
        gemm = read_gemm(graph, node)
        if gemm.dtype == onnx.TensorProto.BFLOAT16 and graph.opset < _GEMM_BFLOAT16:
            raise RefusedRewrite("Gemm does not take bfloat16 before opset 13")
        if not is_matrix_product(graph, gemm):
            return  # Transposes of a stack of matrices are not what a Gemm does
        for slot, source in enumerate(flips):
            if source is not None:
                self._check_vanishes(graph, node.inputs[slot])
        a, b = (source or tensor for source, tensor in zip(flips, (gemm.a, gemm.b), strict=True))
        attrs = gemm_attrs(
            gemm.alpha,
            gemm.beta,
            gemm.trans_a != (flips[0] is not None),
            gemm.trans_b != (flips[1] is not None),
        )
        with graph.site(node, "Gemm transposes its operand itself"):
            graph.replace(node.outputs[0], "Gemm", [a, b, gemm.c], attrs=attrs)

    @staticmethod
    def _transposed(graph: Rewriter, node: Node, slot: int) -> Tensor | None:
        """What the operand at `slot` is the matrix transpose of, if a Transpose of this body makes it."""
        transpose = graph.producer_op(graph.input(node, slot), "Transpose")
        if transpose is None or not graph.is_live(transpose) or graph.keeps(transpose):
            return None
        source = graph.input(transpose, 0)
        perm = attribute(graph, transpose, "perm")
        # Without perm all axes are reversed, which for the matrices that the caller insists on is the same.
        return source if perm is None or list(perm) == [1, 0] else None

    @staticmethod
    def _check_vanishes(graph: Rewriter, tensor: Tensor) -> None:
        """Every reader of the Transpose's output can absorb it as well."""
        if graph.is_output(tensor):
            raise RefusedRewrite(f"the Transpose output {tensor.name} is a graph output")
        for use in graph.uses(tensor):
            matrices = graph.is_op(use.node, "Gemm") or (
                graph.is_op(use.node, "MatMul") and all(graph.rank(t) == 2 for t in use.node.inputs)
            )
            if not matrices or use.slot > 1 or not graph.is_live(use.node) or graph.keeps(use.node):
                raise RefusedRewrite(f"the Transpose output {tensor.name} has another reader")
