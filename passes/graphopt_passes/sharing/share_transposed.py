"""share-transposed: a matrix and its transpose are stored once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np
import onnx

from graphopt.passkit import (
    Array,
    AttributeRef,
    Constant,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
    Use,
)

# The corner that is compared first.
_CORNER: Final = 16
# Bytes that are compared at a time.
_PIECE: Final = 1 << 22
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
# Before it, C of Gemm could not be left out.
_GEMM_WITHOUT_C: Final = 11


@dataclass(frozen=True)
class ShareTransposed(Pass):
    """B = A^T, bit for bit: what multiplies by B reads A, and B goes.

    The case that occurs is the tied embedding of a language model: Gather(A, ids) in front, MatMul(x, B) at
    the end, and an exporter that stored the transpose. A Gemm flips transA or transB. For MatMul there is a
    choice:

      transpose: MatMul(x, Transpose(A)). Only the file is smaller: runtimes compute the transpose while they
        load the model, and then hold both, as before. No slower, and any operator set will do.
      direct: Gemm with transB = 1 between two matrices, else com.microsoft's FusedMatMul where the target has
        it. One copy in memory as well, where the runtime does not repack constant operands (ONNX Runtime does
        on the CPU, unless the session says session.disable_prepacking=1).
      none: MatMuls stay, and what they read.

    Run it last: `fold-constants` computes the Transpose of a small matrix again.

    Refuses when: neither matrix can go, because it has readers that are neither Gemm nor MatMul, that are
    kept, or that stand in another body; either is a graph output or kept by name. A matrix that can be
    overridden is no constant.
    """

    name: ClassVar[str] = "share-transposed"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    products: Literal["transpose", "direct", "none"] = field(
        default="transpose", metadata={"help": "what becomes of MatMuls that read a transposed matrix"}
    )
    min_bytes: int = field(default=1 << 16, metadata={"help": "leave smaller matrices alone"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.min_bytes < 0:
            raise ValueError("min_bytes must not be negative")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Share the matrices of one body."""
        for one, other in _transposes(graph, self.min_bytes):
            if not (graph.is_read(one) and graph.is_read(other)):
                continue  # it went a moment ago
            reasons = []
            # What only Gemms read goes first: it costs no node. Then the one that comes later.
            for goes, stays in sorted(
                [(other, one), (one, other)], key=lambda p: self._costs_nodes(graph, p[0])
            ):
                try:
                    with graph.site(
                        graph.uses(goes)[0].node, f"{goes.name} is the transpose of {stays.name}"
                    ):
                        self._redirect(graph, ctx, goes, stays)
                    break
                except RefusedRewrite as refused:
                    reasons.append(refused.reason)
            else:
                graph.refuse(graph.uses(other)[0].node, "; ".join(reasons))

    def _costs_nodes(self, graph: Rewriter, goes: Constant) -> bool:
        return any(not graph.is_op(use.node, "Gemm") for use in graph.uses(goes))

    def _redirect(self, graph: Rewriter, ctx: PassContext, goes: Constant, stays: Constant) -> None:
        """All that read `goes` read `stays`, inside a site.

        Raises:
            RefusedRewrite: one of them cannot.
        """
        for tensor in (goes, stays):
            if graph.is_output(tensor) or graph.keeps(tensor):
                raise RefusedRewrite(f"{tensor.name} has to stay as it is")
        flipped: Tensor | None = None
        for use in graph.uses(goes):
            node = use.node
            if not graph.is_live(node):
                raise RefusedRewrite(f"{node.op} {node.name}, which reads {goes.name}, is in another body")
            if graph.is_op(node, "Gemm") and use.slot < 2:
                self._flip(graph, use, stays)
            elif graph.is_op(node, "MatMul") and self.products == "direct":
                self._multiply(graph, ctx, use, stays)
            elif graph.is_op(node, "MatMul") and self.products == "transpose":
                if flipped is None:
                    flipped = graph.op("Transpose", [stays], attrs={"perm": [1, 0]}, hint=goes.name)
                graph.set_input(node, use.slot, flipped)
            else:
                raise RefusedRewrite(
                    f"{goes.name} is read by {node.op} {node.name}, which cannot transpose it"
                )

    def _flip(self, graph: Rewriter, use: Use, stays: Constant) -> None:
        name = "transB" if use.slot else "transA"
        now = graph.attr(use.node, name)
        if isinstance(now, AttributeRef):
            raise RefusedRewrite(f"{name} of Gemm is a parameter of the function")
        graph.set_attr(use.node, name, 0 if now else 1)
        graph.set_input(use.node, use.slot, stays)

    def _multiply(self, graph: Rewriter, ctx: PassContext, use: Use, stays: Constant) -> None:
        """A MatMul as an operator that transposes `stays` itself."""
        node = use.node
        inputs: list[Tensor | None] = [*node.inputs]
        inputs[use.slot] = stays
        flag = {"transB" if use.slot else "transA": 1}
        ranks = [graph.rank(t) for t in node.inputs]
        if inputs[1 - use.slot] is node.inputs[use.slot]:
            raise RefusedRewrite(f"{node.name} multiplies {node.inputs[0].name} with itself")
        if ranks == [2, 2] and graph.opset >= _GEMM_WITHOUT_C and graph.dtype(stays) in _FLOATS:
            graph.replace(node.outputs[0], "Gemm", inputs, attrs=flag)
        elif (
            ctx.target.has_contrib("FusedMatMul")
            and graph.dtype(stays) == _FLOATS[0]
            and min(rank or 0 for rank in ranks) >= 2
        ):
            graph.import_domain("com.microsoft", 1)
            graph.replace(node.outputs[0], "FusedMatMul", inputs, attrs=flag, domain="com.microsoft")
        else:
            raise RefusedRewrite(
                f"{node.name} multiplies no two matrices of floats, and the target has no FusedMatMul for it"
            )


def _transposes(graph: Rewriter, least: int) -> list[tuple[Constant, Constant]]:
    """Pairs of initializers of this body of which one is the transpose of the other."""
    found: list[tuple[Constant, Constant]] = []
    seen: dict[tuple[str, tuple[int, ...]], list[Constant]] = defaultdict(list)
    for constant in graph.body.initializers:
        shape = tuple(int(d) for d in constant.shape)
        if len(shape) != 2 or constant.nbytes < max(least, 1) or min(shape) < 2:
            continue
        if not graph.is_constant(constant) or not graph.is_read(constant):
            continue
        dtype = np.dtype(constant.dtype)
        if dtype.itemsize not in (1, 2, 4, 8) or dtype.hasobject:
            continue
        found += [(c, constant) for c in seen[dtype.name, shape[::-1]] if _is_transpose(graph, c, constant)]
        seen[dtype.name, shape].append(constant)
    return found


def _is_transpose(graph: Rewriter, one: Constant, other: Constant) -> bool:
    """Whether the two are each other's transposes, bit for bit: 0.0 and -0.0 differ."""
    a, b = (_bits(graph, c) for c in (one, other))
    corner = slice(0, _CORNER)
    if not np.array_equal(a[corner, corner], b[corner, corner].T):
        return False
    rows = max(1, _PIECE // max(1, a.shape[1] * a.itemsize))
    starts: Sequence[int] = range(0, a.shape[0], rows)
    return all(np.array_equal(a[s : s + rows], b[:, s : s + rows].T) for s in starts)


def _bits(graph: Rewriter, constant: Constant) -> Array:
    values = graph.array(constant)
    assert values is not None
    bits: Array = np.asarray(values).view(f"u{values.dtype.itemsize}")
    return bits
