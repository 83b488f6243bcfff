"""The guard that keeps a Softmax over fully masked rows from being NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx

from graphopt.passkit import (
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)
from graphopt_passes.fusion._bounds import limits
from graphopt_passes.fusion._region import Region

_TYPES = onnx.TensorProto.DataType
# What `assume_finite` promises about the magnitude of scores. A mask of the lowest finite number plus a
# score is still finite in float, whose spacing is 2**104 there, but not in float16.
_SCORES: dict[int, float] = {
    _TYPES.FLOAT: 2.0**100,
    _TYPES.BFLOAT16: 2.0**100,
    _TYPES.DOUBLE: 2.0**100,
    _TYPES.FLOAT16: 2.0**13,
}
_DIGITS: dict[int, int] = {_TYPES.FLOAT: 24, _TYPES.BFLOAT16: 8, _TYPES.DOUBLE: 53, _TYPES.FLOAT16: 11}
_MOVES = ("Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Slice", "Identity", "Gather", "Tile")
_MAX_DEPTH = 24
_MAX_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class RemoveSoftmaxGuard(NodePass):
    """Where(IsNaN(p), 0, p) = p, for p = Softmax(s), where no row of s can make p NaN.

    A row of Softmax is NaN if s holds NaN or +inf there, or nothing but -inf. Exporters of PyTorch's
    scaled_dot_product_attention put the guard after every Softmax; it costs time and hides the attention
    from every other tool.

    That scores (results of MatMul) are finite cannot be proven for arbitrary inputs: `assume_finite` says
    that they are. What is added to them is looked at in any case: where no sum of mask constants reaches
    -inf, that is enough. Where one does, `assume_unmasked` must say that it never fills a whole row. While
    the promises are kept, the result is the same bit for bit.

    Refuses when: scores take part and `assume_finite` is not set; the mask can reach -inf (in float16,
    the lowest finite number plus a score does as well) and `assume_unmasked` is not set; the mask is not
    made of constants, or may hold +inf or NaN; the Where broadcasts.

    Options:
        assume_finite: no score is NaN, infinite, or large (beyond 2**100; float16: 2**13).
        assume_unmasked: no row of scores is masked as a whole.
    """

    name: ClassVar[str] = "remove-softmax-guard"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Where",)

    assume_finite: bool = field(
        default=False, metadata={"help": "no score is NaN, infinite, or beyond 2**100 (float16: 2**13)"}
    )
    assume_unmasked: bool = field(default=False, metadata={"help": "no row of scores is masked as a whole"})

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Remove the guard `node`."""
        condition, fallback, p = node.inputs
        test = graph.producer_op(condition, "IsNaN")
        softmax = graph.producer_op(p, "Softmax")
        if test is None or softmax is None or test.inputs[0] is not p:
            return
        region = Region(graph)
        if region.scalar(fallback) is None:
            raise RefusedRewrite(f"{fallback.name} is not a constant scalar")
        region.check_rank(p)
        dtype = graph.dtype(p)
        finite = None if dtype is None else limits(dtype)
        if dtype is None or finite is None:
            raise RefusedRewrite(f"the type of {p.name} is not known")
        logits = _range(graph, softmax.inputs[0], _SCORES[dtype], _MAX_DEPTH)
        if logits.scores > 1:
            raise RefusedRewrite("several results of MatMul add up to the scores")
        # A sum of floats rounds to infinity half a unit in the last place above the highest one.
        spacing = 2.0 ** (math.frexp(finite[1])[1] - _DIGITS[dtype])
        largest = finite[1] + spacing / 2.0
        if logits.high >= largest:
            raise RefusedRewrite("the mask may reach +inf, which makes NaN")
        if logits.low <= -largest and not self.assume_unmasked:
            raise RefusedRewrite(
                "the mask may reach -inf, and a whole row of it makes NaN; assume_unmasked says that none is"
            )
        if logits.scores and not self.assume_finite:
            raise RefusedRewrite("scores may be NaN or infinite; assume_finite says that they are not")
        graph.bypass(node.outputs[0], p, f"{p.name} is never NaN")


@dataclass(frozen=True)
class _Range:
    """All elements lie in [low, high]; `scores` results of MatMul take part."""

    low: float
    high: float
    scores: int = 0


def _range(graph: GraphView, tensor: Tensor, score: float, depth: int) -> _Range:
    """The range of the elements of `tensor`, where those of scores are at most `score` in magnitude.

    Raises:
        RefusedRewrite: there is no telling.
    """
    constant = graph.constant(tensor)
    if constant is not None:
        if math.prod(constant.shape) > _MAX_ELEMENTS:
            raise RefusedRewrite(f"{tensor.name} is too large to look at")
        values = constant.values.astype(np.float64)
        if not values.size:
            return _Range(0.0, 0.0)
        if not (values < math.inf).all():
            raise RefusedRewrite(f"{tensor.name} holds +inf or NaN")
        return _Range(float(values.min()), float(values.max()))
    if graph.producer_op(tensor, "MatMul", "Gemm", "Einsum") is not None:
        return _Range(-score, score, 1)
    cast = graph.producer_op(tensor, "Cast")
    if cast is not None and graph.dtype(cast.inputs[0]) == _TYPES.BOOL:
        return _Range(0.0, 1.0)
    node = graph.producer_op(tensor, "Add", "Sub", "Where", "Mul", "Div", "Neg", *_MOVES) if depth else None
    if node is None:
        raise RefusedRewrite(f"{tensor.name} may hold -inf, or NaN")
    if node.op in _MOVES:
        return _range(graph, node.inputs[0], score, depth - 1)
    left = _range(graph, node.inputs[0 if node.op == "Neg" else -2], score, depth - 1)
    if node.op == "Neg":
        return _Range(-left.high, -left.low, left.scores)
    right = _range(graph, node.inputs[-1], score, depth - 1)
    if node.op == "Where":
        low, high = min(left.low, right.low), max(left.high, right.high)
        return _Range(low, high, max(left.scores, right.scores))
    scores = left.scores + right.scores
    if node.op == "Add":
        return _Range(left.low + right.low, left.high + right.high, scores)
    if node.op == "Sub":
        if math.isinf(left.low) and math.isinf(right.low):
            raise RefusedRewrite(f"{tensor.name} may be -inf less -inf")
        return _Range(left.low - right.high, left.high - right.low, scores)
    if math.isinf(left.low) or math.isinf(right.low):
        raise RefusedRewrite(f"{tensor.name} multiplies -inf, perhaps by zero")
    if left.scores and right.scores:
        raise RefusedRewrite(f"{tensor.name} multiplies scores")
    if node.op == "Div":
        if right.scores or right.low <= 0.0 <= right.high:
            raise RefusedRewrite(f"{tensor.name} is divided by what may be zero")
        right = _Range(1.0 / right.high, 1.0 / right.low)
    if scores:
        # The promise is about scores as they are when a mask is added, after their scaling.
        return _Range(-score, score, 1)
    corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    return _Range(min(corners), max(corners))
