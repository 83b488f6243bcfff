"""What onnxruntime does to a quantized graph before it looks for integer kernels.

In its order: needless operators go; pairs that follow pairs are merged; equal operators become one; constants
are quantized; MatMul + Add becomes Gemm; pairs spread over operators that only move data; float biases (and
weights) beside quantized inputs are quantized; every reader gets a DequantizeLinear of its own. Then Relu and
Clip go where the range of the next QuantizeLinear implies them, and int8 pairs become uint8.

None of this is documented as a promise. It is what version 1.32 does, found by experiment, and a test
compares the outcome with what the installed version really executes.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import numpy as np
import onnx

from graphopt.quantization.kernels_pairs import (
    drop_implied_activations,
    make_unsigned,
    quantize_biases,
    same_grid,
    split_dequantizers,
    spread_backward,
    spread_forward,
)
from graphopt.quantization.kernels_shadow import DQ, Key, Literal, Made, Op, Q, Shadow

_T: Final = onnx.TensorProto
_RANDOM: Final = frozenset(
    "Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
# One round rarely leaves work for a second, and hardly ever for a third.
_ROUNDS: Final = 3


def settle(shadow: Shadow) -> None:
    """Bring `shadow` into the form in which onnxruntime looks for integer kernels."""
    split_dequantizers(shadow)
    for _ in range(_ROUNDS):
        drop_needless(shadow)
        merge_double_pairs(shadow)
        merge_equal(shadow)
        quantize_constants(shadow)
        fuse_matmul_add(shadow)
        spread_forward(shadow)
        spread_backward(shadow)
        quantize_biases(shadow)
        split_dequantizers(shadow)
        shadow.resort()
    drop_implied_activations(shadow)
    make_unsigned(shadow)


# -- rewrites -------------------------------------------------------------------------------------------


def drop_needless(shadow: Shadow) -> None:
    """Identity, Expand to the shape that is there, and Dropout whose mask nobody reads."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, "Identity", "Dropout", "Expand") or op.input(0) is None:
            continue
        if op.op == "Expand" and not _keeps_shape(shadow, op):
            continue
        source, result = op.inputs[0], op.result
        if source is None or result is None or any(key in shadow.returned for key in op.outputs):
            continue
        if any(slot < 0 for _, slot in shadow.edges(result)) or any(map(shadow.edges, op.outputs[1:])):
            continue
        shadow.remove(op)
        shadow.redirect(result, source)


def _keeps_shape(shadow: Shadow, op: Op) -> bool:
    before, after = shadow.shape(op.input(0)), shadow.shape(op.result)
    return before is not None and before == after and all(isinstance(d, int) for d in before)


def merge_double_pairs(shadow: Shadow) -> None:
    """Q1 -> DQ1 -> Q2 -> DQ2 = Q -> DQ: the middle goes, if each link is read by the next alone."""
    for first in list(shadow.ops):
        if not shadow.is_op(first, DQ) or first not in shadow.ops:
            continue
        parent = shadow.source(first.input(0), Q)
        child = shadow.sole_reader(first.result)
        if parent is None or shadow.sole_reader(parent.result) is not first or not shadow.is_op(child, Q):
            continue
        assert child is not None
        last = shadow.sole_reader(child.result)
        if last is None or not shadow.is_op(last, DQ):
            continue
        types = {shadow.quantized_type(op) for op in (first, child)}
        if len(types) > 1 or not types <= {_T.UINT8, _T.INT8}:
            continue
        if not (same_grid(shadow, parent, first) and same_grid(shadow, child, last)):
            continue
        merged = _common_grid(shadow, first, child)
        shadow.remove(child)
        shadow.remove(first)
        assert parent.result is not None
        shadow.set_input(last, 0, parent.result)
        if merged is not None:
            for op in (parent, last):
                for slot, literal in enumerate(merged, 1):
                    key = Made(op.inputs[slot])
                    shadow.set_literal(key, literal)
                    shadow.set_input(op, slot, key)


def _common_grid(shadow: Shadow, a: Op, b: Op) -> tuple[Literal, Literal] | None:
    """The grid over the range that both have; None when they are the same."""
    (sa, za), (sb, zb) = ((shadow.literal(op.input(1)), shadow.literal(op.input(2))) for op in (a, b))
    if sa is None or za is None or sb is None or zb is None:
        return None
    numbers = [float(x.number or 0.0) for x in (sa, za, sb, zb)]
    if numbers[:2] == numbers[2:]:
        return None
    low, high = (0, 255) if za.dtype == _T.UINT8 else (-128, 127)
    bottom = max((low - numbers[1]) * numbers[0], (low - numbers[3]) * numbers[2])
    top = min((high - numbers[1]) * numbers[0], (high - numbers[3]) * numbers[2])
    scale = (top - bottom) / (high - low)
    zero = float(np.clip(np.round(low - bottom / scale), low, high)) if scale > 0 else 0.0
    return (
        Literal(sa.dtype, sa.shape, np.array(scale, np.float32).reshape(sa.shape)),
        Literal(za.dtype, za.shape, np.array(zero).reshape(za.shape)),
    )


def merge_equal(shadow: Shadow) -> None:
    """One operator for those that compute the same from the same; constants go by value. Not for DQ."""
    seen: dict[Hashable, Op] = {}
    for op in list(shadow.ops):
        if op.captures or op.op in _RANDOM or shadow.is_op(op, DQ) or op.domain not in ("", "com.microsoft"):
            continue
        if any(
            isinstance(v, list) and v and not isinstance(v[0], int | float | str) for v in op.attrs.values()
        ):
            continue
        key = (
            op.op,
            op.domain,
            len(op.outputs),
            tuple(shadow.identity(k) for k in op.inputs),
            tuple(sorted((name, str(value)) for name, value in op.attrs.items())),
        )
        other = seen.setdefault(key, op)
        if other is op or any(k in shadow.returned for k in op.outputs):
            continue
        if any(slot < 0 for k in op.outputs for _, slot in shadow.edges(k)):
            continue
        shadow.remove(op)
        other.nodes += op.nodes
        for mine, theirs in zip(op.outputs, other.outputs, strict=True):
            if mine is not None and theirs is not None:
                shadow.redirect(mine, theirs)


def quantize_constants(shadow: Shadow) -> None:
    """QuantizeLinear, and moves of data, of constants are computed while loading; DequantizeLinear is not."""
    moves = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Cast", "Identity")
    for op in list(shadow.ops):
        if not shadow.is_op(op, Q, *moves) or op.result is None or op.result in shadow.returned:
            continue
        given = [shadow.literal(key) for key in op.inputs if key is not None]
        if not given or any(literal is None for literal in given):
            continue
        source = given[0]
        assert source is not None
        dtype = shadow.quantized_type(op) if op.op == Q else source.dtype
        shape = shadow.shape(op.result) or source.shape
        if dtype is None or not all(isinstance(d, int) for d in shape):
            continue
        result = op.result
        shadow.remove(op)
        shadow.set_literal(result, Literal(dtype, tuple(shape)))
        shadow.set_type(result, dtype)


def fuse_matmul_add(shadow: Shadow) -> None:
    """MatMul(a, b) + c = Gemm(a, b, c) where c is one row; inputs of higher rank are reshaped around it."""
    for op in list(shadow.ops):
        if op not in shadow.ops or not shadow.is_op(op, "MatMul"):
            continue
        add = shadow.sole_reader(op.result)
        if not shadow.is_op(add, "Add") or add is None:
            continue
        a, b = shadow.shape(op.input(0)), shadow.shape(op.input(1))
        if a is None or b is None or len(b) != 2:
            continue
        other = add.inputs[1 - add.inputs.index(op.result)]
        c = shadow.shape(other)
        if c is None or other is None or other == op.result:
            continue
        n = b[1]
        flat = len(a) == 2
        if not flat and not (all(isinstance(d, int) for d in (*a, *b)) and not _is_attention(shadow, op)):
            continue
        fits = len(c) == 1 and c[0] == n
        if flat and len(c) == 2:
            fits = (c[0] == 1 and c[1] == n) or (c[0] == a[0] and c[1] in (1, n))
        if fits:
            _make_gemm(shadow, op, add, other, flat)


def _is_attention(shadow: Shadow, op: Op) -> bool:
    """The projection behind an attention, which is left for another fusion."""
    reshape = shadow.source(op.input(0), "Reshape")
    transpose = shadow.source(reshape.input(0), "Transpose") if reshape is not None else None
    product = shadow.source(transpose.input(0), "MatMul") if transpose is not None else None
    return product is not None and shadow.source(product.input(0), "Softmax") is not None


def _make_gemm(shadow: Shadow, op: Op, add: Op, bias: Key, flat: bool) -> None:
    a, b = op.inputs[0], op.inputs[1]
    shadow.remove(op)
    shadow.remove(add)
    result = add.result
    if not flat:
        inner, outer = Made(a, shaped=False), Made(result, shaped=False)
        shape = Made(None)
        shadow.set_literal(shape, Literal(_T.INT64, (2,)))
        shadow.add(Op("Reshape", [a, shape], [inner]))
        shadow.add(Op("Gemm", [inner, b, bias], [outer], {}, (*op.nodes, *add.nodes)))
        shadow.add(Op("Reshape", [outer, shape], [result]))
        return
    shadow.add(Op("Gemm", [a, b, bias], [result], {}, (*op.nodes, *add.nodes)))
