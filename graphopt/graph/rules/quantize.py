"""Quantization, and operators that ONNX Runtime defines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graphopt.graph.rules import contraction, elementwise, spatial
from graphopt.graph.rules.call import UINT8, Call, Rule, Unknown


def quantize_linear(call: Call) -> None:
    """The type of the zero point, of `output_dtype`, or uint8."""
    dtype = call.attr("output_dtype", 0) or None
    if dtype is None:
        dtype = call.dtype(2) if call.tensor(2) is not None else UINT8
    call.out(0, dtype, call.shape(0))


def dequantize_linear(call: Call) -> None:
    """The type of the scale, or `output_dtype`."""
    call.out(0, call.attr("output_dtype", 0) or call.dtype(1), call.shape(0))


def skip_normalization(call: Call) -> None:
    """Skip(Simplified)LayerNormalization: output 3 is the sum before it is normalized."""
    elementwise.same(call)
    if len(call.node.outputs) > 1:
        shape = call.need_shape(0)
        for slot in (1, 2):
            call.out(slot, 1, (*shape[:-1], 1))
        call.out(3, call.dtype(0), shape)


def bias_split_gelu(call: Call) -> None:
    """Half of the last axis gates the other half."""
    shape = call.need_shape(0)
    call.out(0, call.dtype(0), (*shape[:-1], shape[-1] // 2))


def grouped_attention(call: Call) -> None:
    """GroupQueryAttention: the output is like the query, unless Q, K, V come packed."""
    if call.tensor(1) is None:
        raise Unknown
    elementwise.same(call)


def qlinear_binary(call: Call) -> None:
    """QLinearAdd, QLinearMul: a, scale, zero point, b, scale, zero point, ..."""
    call.out(0, call.dtype(0), elementwise.broadcast_shapes(call.shape(0), call.shape(3)))


STANDARD: Final[Mapping[str, Rule]] = {
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
}

_LIKE_INPUT: Final = (
    "BiasGelu BiasSoftmax FastGelu Gelu QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QuickGelu "
    "RotaryEmbedding"
).split()

MICROSOFT: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_LIKE_INPUT, elementwise.same),
    "BiasAdd": elementwise.same,
    "BiasSplitGelu": bias_split_gelu,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeMatMul": contraction.dynamic_quantize_matmul,
    "FusedConv": spatial.conv,
    "FusedGemm": contraction.gemm,
    "FusedMatMul": contraction.fused_matmul,
    "GroupQueryAttention": grouped_attention,
    "MatMulIntegerToFloat": contraction.integer_to_float,
    "MatMulNBits": contraction.matmul_nbits,
    "MultiHeadAttention": contraction.packed_attention,
    "QGemm": contraction.qgemm,
    "QLinearAdd": qlinear_binary,
    "QLinearMul": qlinear_binary,
    "QuantizeLinear": quantize_linear,
    "SkipLayerNormalization": skip_normalization,
    "SkipSimplifiedLayerNormalization": skip_normalization,
}
