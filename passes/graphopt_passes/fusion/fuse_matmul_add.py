"""Turn MatMul + Add of matrices into one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._gemm import Gemm, gemm_attrs, read_gemm
from graphopt_passes.fusion._operands import NUMPY_BROADCASTING, absorbed

# Gemm takes bfloat16 from this opset on.
_GEMM_BFLOAT16 = 13


@dataclass(frozen=True)
class FuseMatMulAdd(NodePass):
    """MatMul(a, b) + c = Gemm(a, b, c), for matrices; Gemm(a, b) + c likewise.

    `c`, constant or not, must be provably no larger than the product in any dimension: Gemm broadcasts it
    to `(M, N)` and nothing to it.

    Refuses when: the product's output has another reader or is a graph output; an operand is not known to
    be a matrix (a stack of matrices has no Gemm); `c` is not known to broadcast to the product; the product
    is quantized already.
    """

    name: ClassVar[str] = "fuse-matmul-add"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Add",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Turn the Add `node` and a product that it reads into one Gemm."""
        if graph.opset < NUMPY_BROADCASTING or len(node.inputs) != 2:
            return
        refusal: RefusedRewrite | None = None
        for slot in (0, 1):
            product, bias = node.inputs[slot], node.inputs[1 - slot]
            before = graph.producer_op(product, "MatMul", "Gemm")
            if before is None or (before.op == "Gemm" and graph.input(before, 2) is not None):
                continue
            if before.op == "MatMul" and 2 != graph.rank(product) is not None:
                continue  # a stack of matrices, or a vector: not a near miss
            if graph.producer_op(before.inputs[0], "DequantizeLinear"):
                refusal = RefusedRewrite("the product is quantized: it is placed for integer kernels")
                continue
            try:
                if absorbed(graph, node, product, before.op) is not None:
                    self._rewrite(node, read_gemm(graph, before), product, bias, graph)
                    return
            except RefusedRewrite as declined:
                refusal = declined
        if refusal is not None:
            raise refusal

    @staticmethod
    def _rewrite(node: Node, gemm: Gemm, product: Tensor, bias: Tensor, graph: Rewriter) -> None:
        if gemm.dtype == onnx.TensorProto.BFLOAT16 and graph.opset < _GEMM_BFLOAT16:
            raise RefusedRewrite("Gemm does not take bfloat16 before opset 13")
        if gemm.is_matmul:
            for t in (gemm.a, gemm.b):
                if graph.rank(t) != 2:
                    raise RefusedRewrite(f"{t.name} is not known to be a matrix")
        result, shape = graph.shape(product), graph.shape(bias)
        if result is None or shape is None or len(result) != 2 or len(shape) > 2:
            raise RefusedRewrite(f"{bias.name} is not known to broadcast to the product")
        for have, want in zip(reversed(shape), reversed(result), strict=False):
            if have not in (1, want):
                raise RefusedRewrite(f"{bias.name} is not known to broadcast to the product")
        attrs = gemm_attrs(gemm.alpha, 1.0, gemm.trans_a, gemm.trans_b)
        with graph.site(node, f"{gemm.node.op} and Add are a Gemm"):
            graph.replace(node.outputs[0], "Gemm", [gemm.a, gemm.b, bias], attrs=attrs)
