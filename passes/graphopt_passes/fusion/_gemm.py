"""Folding `y * scale + shift` into a Gemm or MatMul, on either side of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.passkit import Array, GraphView, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._affine import is_identity, rounded, scaled, wide
from graphopt_passes.fusion._operands import FLOATS, NUMPY_BROADCASTING, attribute, check_growth

# From this opset on Gemm's C may be omitted.
GEMM_WITHOUT_C = 11


@dataclass(frozen=True)
class Gemm:
    """A Gemm, or a MatMul seen as one: `alpha * a' @ b' + beta * c`.

    Attributes:
        c: None for MatMul.
        trans_a, trans_b: whether a' is the transpose of a, and b' of b.
        dtype: the common element type, a TensorProto.DataType.
    """

    node: Node
    a: Tensor
    b: Tensor
    c: Tensor | None
    alpha: float
    beta: float
    trans_a: bool
    trans_b: bool
    dtype: int

    @property
    def is_matmul(self) -> bool:
        """It is a MatMul, so its operands may have any rank."""
        return self.node.op == "MatMul"

    def columns(self, graph: GraphView) -> int | None:
        """N, the size of the output's last axis, when b is a constant matrix or stack of matrices."""
        shape = constant_matrix(graph, self.b)
        return None if shape is None else shape[0 if self.trans_b else -1]

    def depth(self, graph: GraphView, slot: int) -> int | None:
        """K, when the operand that is *not* at `slot` is a constant matrix or stack of matrices."""
        shape = constant_matrix(graph, self.a if slot else self.b)
        if shape is None:
            return None
        return shape[self.depth_axis(1 - slot, len(shape))]

    def depth_axis(self, slot: int, rank: int) -> int:
        """The axis of the operand at `slot`, of rank `rank`, along which products are summed."""
        if rank < 2:
            return 0
        if slot == 0:
            return 0 if self.trans_a else rank - 1
        return 1 if self.trans_b else rank - 2


def constant_matrix(graph: GraphView, tensor: Tensor) -> tuple[int, ...] | None:
    """The shape of a constant of rank 2 or more."""
    shape = graph.static_shape(tensor) if graph.is_constant(tensor) else None
    return shape if shape is not None and len(shape) >= 2 else None


def read_gemm(graph: GraphView, node: Node) -> Gemm:
    """Read a Gemm or MatMul.

    Raises:
        RefusedRewrite: it is an integer one, a Gemm of an opset that broadcasts by attribute, or one
            whose attributes are parameters of a function.
    """
    a, b, c = (graph.input(node, slot) for slot in range(3))
    if a is None or b is None:
        raise RefusedRewrite(f"{node.op} lacks an input")
    dtype = next((d for t in (a, b, node.outputs[0]) if (d := graph.dtype(t)) is not None), None)
    if dtype not in FLOATS:
        raise RefusedRewrite(f"{node.op} is not known to compute in floating point")
    if node.op == "MatMul":
        return Gemm(node, a, b, None, 1.0, 1.0, False, False, dtype)
    if graph.opset < NUMPY_BROADCASTING:
        raise RefusedRewrite("Gemm broadcasts by attribute before opset 7")
    alpha, beta, trans_a, trans_b = (attribute(graph, node, n) for n in ("alpha", "beta", "transA", "transB"))
    return Gemm(node, a, b, c, float(alpha), float(beta), bool(trans_a), bool(trans_b), dtype)


def is_matrix_product(graph: GraphView, gemm: Gemm) -> bool:
    """Whether both operands are provably matrices (rank 2), as a Gemm needs them."""
    return not gemm.is_matmul or (graph.rank(gemm.a) == 2 and graph.rank(gemm.b) == 2)


def gemm_attrs(alpha: float, beta: float, trans_a: bool, trans_b: bool) -> dict[str, Any]:
    """Attributes of a Gemm, defaults left out."""
    attrs: dict[str, Any] = {}
    if alpha != 1.0:
        attrs["alpha"] = alpha
    if beta != 1.0:
        attrs["beta"] = beta
    if trans_a:
        attrs["transA"] = 1
    if trans_b:
        attrs["transB"] = 1
    return attrs


def fold_after(graph: Rewriter, ctx: PassContext, root: Node, gemm: Gemm, scale: Array, shift: Array) -> None:
    """The output of `root`, which is `gemm * scale + shift`, comes from a product with other weights.

    Args:
        graph: the body.
        ctx: for the limits.
        root: the operator that is folded; it reads the product.
        gemm: the product.
        scale: float64, `()` or one per column.
        shift: likewise.

    Raises:
        RefusedRewrite: what would have to change is not constant, does not fit its dtype, or would make
            the model grow; or a MatMul that is not known to multiply matrices would need a bias.
    """
    scales, shifts = not is_identity(scale), bool(shift.any())
    c = None
    if shifts or (gemm.c is not None and scales):
        if gemm.c is not None and not graph.is_constant(gemm.c):
            if shifts or scale.ndim:
                raise RefusedRewrite(f"the bias {gemm.c.name} of Gemm is not constant")
            _fold_scalar(graph, root, gemm, gemm.a, gemm.b, scale)
            return
        c = _bias(graph, gemm, scale, shift)
    if not scales:
        _write(graph, ctx, root, gemm, c=c)
    elif (columns := gemm.columns(graph)) is not None:
        factor = scale
        if scale.ndim:
            assert scale.shape == (columns,)
            factor = scale[:, None] if gemm.trans_b else scale
        _write(graph, ctx, root, gemm, slot=1, factor=factor, c=c)
    elif not scale.ndim and graph.is_constant(gemm.a):
        _write(graph, ctx, root, gemm, slot=0, factor=scale, c=c)
    elif not scale.ndim and not shifts and not gemm.is_matmul:
        _fold_scalar(graph, root, gemm, gemm.a, gemm.b, scale)
    else:
        raise RefusedRewrite(f"no operand of {gemm.node.op} is constant")


def fold_before(
    graph: Rewriter,
    ctx: PassContext,
    root: Node,
    gemm: Gemm,
    slot: int,
    x: Tensor,
    scale: Array,
    shift: Array,
) -> None:
    """The product, which reads `x * scale + shift` from `root` at `slot`, is computed from `x`.

    Args:
        graph: the body.
        ctx: for the limits.
        root: the operator that is folded; the product reads it.
        gemm: the product.
        slot: which operand of the product `root` computes.
        x: what `root` reads.
        scale: float64, `()` or one per element of the axis that is summed over.
        shift: likewise.

    Raises:
        RefusedRewrite: as `fold_after`; or there is a shift at the right operand.
    """
    other = 1 - slot
    rank = len(constant_matrix(graph, gemm.b if other else gemm.a) or ())
    if not rank:
        if scale.ndim or shift.any() or gemm.is_matmul:
            raise RefusedRewrite(f"the other operand of {gemm.node.op} is not a constant matrix")
        a, b = (gemm.a, x) if slot else (x, gemm.b)
        _fold_scalar(graph, gemm.node, gemm, a, b, scale, root.op)
        return
    c = None
    if shift.any():
        if slot == 1 or rank != 2:
            raise RefusedRewrite(f"the shift by {root.op} is no bias of {gemm.node.op}")
        if gemm.c is not None and not graph.is_constant(gemm.c):
            raise RefusedRewrite(f"the bias {gemm.c.name} of Gemm is not constant")
        right = wide(_values(graph, gemm.b))
        right = right.T if gemm.trans_b else right
        moved = shift @ right if shift.ndim else shift * right.sum(axis=0)
        c = _bias(graph, gemm, np.ones(()), gemm.alpha * moved)
    factor: Array | None = None
    if not is_identity(scale):
        axis = gemm.depth_axis(other, rank)
        factor = scale[:, None] if scale.ndim and axis == rank - 2 else scale
    _write(graph, ctx, gemm.node, gemm, x=x, x_slot=slot, slot=other, factor=factor, c=c, folded=root)


def _fold_scalar(
    graph: Rewriter, root: Node, gemm: Gemm, a: Tensor, b: Tensor, scale: Array, folded: str = ""
) -> None:
    """Multiply alpha by a number, and for an operator behind the product beta too."""
    alpha = gemm.alpha * float(scale)
    beta = gemm.beta if folded or gemm.c is None else gemm.beta * float(scale)
    with np.errstate(all="ignore"):
        stored = [float(np.float32(factor)) for factor in (alpha, beta)]
    if not np.isfinite(stored).all():
        raise RefusedRewrite("the factor of Gemm would not be finite")
    if gemm.dtype == onnx.TensorProto.DOUBLE and stored != [alpha, beta]:
        raise RefusedRewrite("the attributes of Gemm are float32, too coarse for double")
    with graph.site(root, f"{folded or root.op} folded into alpha of Gemm"):
        attrs = gemm_attrs(alpha, beta, gemm.trans_a, gemm.trans_b)
        graph.replace(root.outputs[0], "Gemm", [a, b, gemm.c], attrs=attrs)


def _values(graph: GraphView, tensor: Tensor | None) -> Array:
    values = graph.array(tensor)
    assert values is not None  # the caller saw that it is constant
    return values


def _bias(graph: GraphView, gemm: Gemm, scale: Array, shift: Array) -> Array:
    """`beta * c * scale + shift` in float64, no larger than c or a row.

    Raises:
        RefusedRewrite: the bias would grow from a column into a matrix.
    """
    if gemm.c is None:
        columns = gemm.columns(graph)
        row = shift if columns is None else np.broadcast_to(shift, (columns,))
        return row
    # Row plus number, or row plus row, stays a row; a column plus a row would become a matrix.
    shape = graph.static_shape(gemm.c)
    assert shape is not None
    result = np.broadcast_shapes(shape, scale.shape, shift.shape)
    if math.prod(result) > max(math.prod(shape), scale.size, shift.size):
        raise RefusedRewrite(f"the bias {gemm.c.name} of Gemm varies by row, the constant by column")
    with np.errstate(all="ignore"):
        bias: Array = gemm.beta * wide(_values(graph, gemm.c)) * scale + shift
    return bias


def _write(
    graph: Rewriter,
    ctx: PassContext,
    root: Node,
    gemm: Gemm,
    *,
    x: Tensor | None = None,
    x_slot: int = 0,
    slot: int = 1,
    factor: Array | None = None,
    c: Array | None = None,
    folded: Node | None = None,
) -> None:
    """A product computes the output of `root`.

    Args:
        graph: the body.
        ctx: for the limits.
        root: whose output it computes; also the root of the site.
        gemm: the product that vanishes.
        x: its new operand at `x_slot`; None keeps the old one.
        x_slot: see `x`.
        slot: the constant operand that is multiplied by `factor`.
        factor: None leaves the operand alone.
        c: the new bias in float64, beta included; None keeps the old one, or its absence.
        folded: the operator that is folded, if it is not `root`.
    """
    if c is not None and not is_matrix_product(graph, gemm):
        raise RefusedRewrite("the operands of MatMul are not known to be matrices, so it takes no bias")
    operand = gemm.b if slot else gemm.a
    constant = graph.constant(operand)
    sizes: list[tuple[Tensor | None, int]] = []
    if factor is not None:
        assert constant is not None
        sizes.append((operand, constant.nbytes))
    np_dtype = onnx.helper.tensor_dtype_to_np_dtype(gemm.dtype)
    if c is not None:
        sizes.append((gemm.c, c.size * np_dtype.itemsize))
    check_growth(graph, ctx, gemm.node, sizes, folded or root)
    weight = None if factor is None else scaled(_values(graph, operand), factor)
    bias = None if c is None else rounded(c, np_dtype, "bias")
    becomes = "MatMul" if gemm.is_matmul and bias is None else "Gemm"
    with graph.site(root, f"{(folded or root).op} folded into {gemm.node.op}"):
        inputs: list[Tensor | None] = [gemm.a, gemm.b]
        if x is not None:
            inputs[x_slot] = x
        if weight is not None:
            inputs[slot] = graph.new_constant(operand.name, weight)
        attrs: dict[str, Any] = {}
        if becomes == "Gemm":
            inputs.append(gemm.c)
            if bias is not None:
                hint = f"{operand.name}_bias" if gemm.c is None else gemm.c.name
                inputs[2] = graph.new_constant(hint, bias)
            attrs = gemm_attrs(
                gemm.alpha,
                1.0 if bias is not None or gemm.c is None else gemm.beta,
                gemm.trans_a,
                gemm.trans_b,
            )
        graph.replace(root.outputs[0], becomes, inputs, attrs=attrs)
