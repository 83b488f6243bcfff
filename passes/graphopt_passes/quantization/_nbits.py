"""com.microsoft's MatMulNBits: a product with a matrix of few bits, block by block."""

from __future__ import annotations

import numpy as np

from graphopt.passkit import Array, GraphView, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import Grid
from graphopt_passes.quantization._weights import Role, Weight, is_symmetric

MICROSOFT = "com.microsoft"
OP = "MatMulNBits"


def check_product(graph: GraphView, ctx: PassContext, role: Role) -> None:
    """Decline what MatMulNBits cannot express.

    Raises:
        RefusedRewrite: with the reason.
    """
    node = role.node
    if not ctx.target.has_contrib(OP):
        raise RefusedRewrite(f"{OP} is not known to the target {ctx.target.name}")
    if not graph.is_op(node, "MatMul", "Gemm"):
        raise RefusedRewrite(f"{OP} does not compute a {node.op}")
    if role.slot != 1:
        raise RefusedRewrite(f"the weight of {node.op} is its left operand, {OP} has it on the right")
    shape = graph.static_shape(node.inputs[1])
    if shape is None or len(shape) != 2:
        raise RefusedRewrite(f"{OP} takes one matrix, not a stack of them")
    if node.op == "MatMul":
        return
    if graph.attr(node, "transA"):
        raise RefusedRewrite(f"Gemm transposes its left operand, {OP} does not")
    if not graph.attr(node, "alpha") > 0:
        raise RefusedRewrite("alpha of Gemm is not positive, so no scale can take it in")
    if graph.input(node, 2) is not None and graph.attr(node, "beta") != 1.0:
        raise RefusedRewrite("beta of Gemm is not 1: run normalize-gemm first")


def pack(q: Array, grid: Grid) -> tuple[Array, Array, Array | None]:
    """The initializers of MatMulNBits for `q` of shape (K, N) and a grid in blocks along axis 0.

    A byte holds 8 / bits values, the first in its lowest bits; what K lacks to a whole block is filled up.

    Returns:
        B, uint8 of shape (N, blocks, block * bits / 8); scales, float32 of shape (N * blocks,); zero points,
        uint8 of shape (N, ceil(blocks * bits / 8)), None when all are the default, 2 ** (bits - 1).
    """
    bits, block = grid.type.bits, grid.block
    depth, columns = q.shape
    blocks = -(-depth // block)
    middle = 1 << (bits - 1) if grid.type.signed else 0
    unsigned = q.astype(np.int16) + middle
    zeros = grid.zero_points().astype(np.int16) + middle  # (blocks, N)
    padded = np.broadcast_to(np.repeat(zeros, block, axis=0), (blocks * block, columns)).copy()
    padded[:depth] = unsigned
    packed = _bytes(padded.T.astype(np.uint8), bits).reshape(columns, blocks, block * bits // 8)
    scales = np.ascontiguousarray(grid.scale.T).reshape(-1)
    if is_symmetric(grid) and grid.type.signed:
        return packed, scales, None
    return packed, scales, _bytes(zeros.T.astype(np.uint8), bits)


def _bytes(values: Array, bits: int) -> Array:
    """Rows of small integers as rows of bytes, each filled up with zeros."""
    per = 8 // bits
    short = -values.shape[1] % per
    filled = np.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, per)
    shifts = (np.arange(per) * bits).astype(np.uint8)
    result: Array = np.bitwise_or.reduce(filled << shifts, axis=-1).astype(np.uint8)
    return result


def replace_by_nbits(
    graph: Rewriter, weight: Weight, q: Array, grid: Grid, dtype: np.dtype[np.generic], accuracy_level: int
) -> None:
    """MatMulNBits computes what the readers of `weight` did; inside a site, after `check_product` of each.

    Args:
        graph: the body.
        weight: a matrix.
        q: its integers, in the weight's shape.
        grid: what they stand for, in blocks along the axis that products are summed over.
        dtype: the weight's.
        accuracy_level: 4: activations are rounded to 8 bits, block by block; 0 and 1: float32.
    """
    if weight.depth == 1:
        flipped = Grid(grid.type, grid.scale.T, grid.zero_points().T, 0, grid.block)
        q, grid = q.T, flipped
    packed, scales, zeros = pack(q, grid)
    name = weight.tensor.name
    data = graph.new_constant(f"{name}_q{grid.type.bits}", packed)
    zero_points = None if zeros is None else graph.new_constant(f"{name}_zero_points", zeros)
    graph.import_domain(MICROSOFT, 1)
    shared: dict[float, Tensor] = {}
    for role in weight.roles:
        node = role.node
        alpha = 1.0 if node.op == "MatMul" else float(graph.attr(node, "alpha"))
        if alpha not in shared:
            shared[alpha] = graph.new_constant(f"{name}_scales", (scales * np.float32(alpha)).astype(dtype))
        attrs = {"K": q.shape[0], "N": q.shape[1], "bits": grid.type.bits, "block_size": grid.block}
        if accuracy_level:
            attrs["accuracy_level"] = accuracy_level
        inputs: list[Tensor | None] = [node.inputs[0], data, shared[alpha], zero_points]
        bias = graph.input(node, 2) if node.op == "Gemm" else None
        output = node.outputs[0]
        if bias is None:
            graph.replace(output, OP, inputs, attrs=attrs, domain=MICROSOFT)
        elif graph.static_shape(bias) == (q.shape[1],):
            graph.replace(output, OP, [*inputs, None, bias], attrs=attrs, domain=MICROSOFT)
        else:
            product = graph.op(OP, inputs, attrs=attrs, domain=MICROSOFT, hint=f"{output.name}_product")
            graph.replace(output, "Add", [product, bias])
