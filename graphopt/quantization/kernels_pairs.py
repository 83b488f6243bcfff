"""How onnxruntime spreads, splits and retypes Q/DQ pairs while it loads a model: part of kernels_rewrites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx

from graphopt.quantization.grid import quant_type
from graphopt.quantization.kernels_shadow import DQ, Key, Literal, Made, Op, Q, Shadow

_T: Final = onnx.TensorProto
#: Operators over which onnxruntime moves a pair, and the versions of them that it knows.
SPREADS: Final = {
    "MaxPool": (12, 22),
    "Reshape": (5, 13, 14, 19, 21, 23, 24, 25),
    "Squeeze": (1, 11, 13, 21, 23, 24, 25),
    "Slice": (1, 10, 11, 13),
    "Transpose": (1, 13, 21, 23, 24, 25),
    "Unsqueeze": (1, 11, 13, 21, 23, 24, 25),
}


def scalar_pair(shadow: Shadow, op: Op) -> bool:
    """Whether a Q or DQ has a constant scalar scale, and such a zero point if it has one."""
    scale = shadow.literal(op.input(1))
    if scale is None or not scale.is_scalar:
        return False
    if op.input(2) is None:
        return True
    zero = shadow.literal(op.input(2))
    return zero is not None and zero.is_scalar


def same_grid(shadow: Shadow, a: Op, b: Op) -> bool:
    """Whether a Q and a DQ agree, both with an explicit zero point, in constant scalars."""
    if a.input(2) is None or b.input(2) is None or not (scalar_pair(shadow, a) and scalar_pair(shadow, b)):
        return False
    (sa, za), (sb, zb) = ((shadow.literal(op.input(1)), shadow.literal(op.input(2))) for op in (a, b))
    if sa is None or sb is None or za is None or zb is None:
        return False
    return za.dtype == zb.dtype and sa.number == sb.number and za.number == zb.number


def _spreads(shadow: Shadow, op: Op | None) -> bool:
    if op is None or not shadow.is_op(op, *SPREADS):
        return False
    return shadow.version(op) in SPREADS[op.op]


def _insert_pair(shadow: Shadow, key: Key, readers: list[tuple[Op, int]], like: Op) -> list[Key]:
    """Put Q -> DQ with the parameters of `like` between a tensor and some readers, a DQ for each."""
    dtype = shadow.quantized_type(like)
    middle = Made(key)
    if dtype is not None:
        shadow.set_type(middle, dtype)
    parameters = like.inputs[1:3]
    shadow.add(Op(Q, [key, *parameters], [middle]))
    made: list[Key] = []
    for reader, slot in readers:
        result = Made(key)
        shadow.add(Op(DQ, [middle, *parameters], [result]))
        shadow.set_input(reader, slot, result)
        made.append(result)
    return made


def spread_forward(shadow: Shadow) -> None:
    """DQ -> move -> x becomes DQ -> move -> Q -> DQ -> x, which makes the move one of integers."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, DQ) or not scalar_pair(shadow, op):
            continue
        pending = [shadow.sole_reader(op.result)]
        while pending:
            mover = pending.pop()
            if not _spreads(shadow, mover) or mover is None or mover.result is None:
                continue
            result = mover.result
            if result in shadow.returned:
                if not shadow.edges(result):
                    _return_pair(shadow, mover, op)
                continue
            readers = list(shadow.edges(result))
            if not readers or any(slot < 0 or shadow.is_op(reader, Q) for reader, slot in readers):
                continue
            _insert_pair(shadow, result, readers, op)
            pending.extend(reader for reader, slot in readers if slot == 0)


def _return_pair(shadow: Shadow, mover: Op, like: Op) -> None:
    """A pair between an operator and the output of the body that it computes."""
    result = mover.result
    assert result is not None
    inner, middle = Made(result), Made(result)
    dtype = shadow.quantized_type(like)
    if dtype is not None:
        shadow.set_type(middle, dtype)
    shadow.set_output(mover, inner)
    shadow.add(Op(Q, [inner, *like.inputs[1:3]], [middle]))
    shadow.add(Op(DQ, [middle, *like.inputs[1:3]], [result]))


def spread_backward(shadow: Shadow) -> None:
    """X -> move -> Q becomes x -> Q -> DQ -> move -> Q, as long as nobody else reads on the way."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, Q) or not scalar_pair(shadow, op):
            continue
        key = op.input(0)
        reader: Op = op
        while key is not None and shadow.sole_reader(key) is reader:
            mover = shadow.producer.get(key)
            if not _spreads(shadow, mover) or mover is None:
                break
            key = mover.input(0)
            source = shadow.producer.get(key) if key is not None else None
            if key is None or shadow.source(key, DQ) is not None:
                break
            if source is not None and shadow.sole_reader(key) is not mover:
                break
            _insert_pair(shadow, key, [(mover, 0)], op)
            if source is None:
                break
            # The next step asks who reads what the operator before computes: now the new Q alone.
            reader = shadow.edges(key)[0][0]


def quantize_biases(shadow: Shadow) -> None:
    """Float bias, and float weight, of Conv, ConvTranspose and Gemm between a DQ and a Q are quantized."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, "Conv", "ConvTranspose", "Gemm") or not _leads_to_quantize(shadow, op):
            continue
        x = shadow.source(op.input(0), DQ)
        scale = shadow.shape(x.input(1)) if x is not None else None
        if x is None or scale not in ((), (1,)):
            continue
        weight, bias = shadow.source(op.input(1), DQ), op.input(2)
        raw = shadow.literal(op.input(1))
        if weight is None and (raw is None or raw.dtype != _T.FLOAT):
            continue
        size = None
        if bias is not None:
            found = shadow.literal(bias)
            if found is None or len(found.shape) != 1:
                continue
            size = found.shape[0]
        elif weight is not None:
            continue
        if weight is not None and not _axis_fits(shadow, op, weight, size):
            continue
        if weight is None:
            _dequantized(shadow, op, 1, _T.INT8)
        if bias is not None:
            _dequantized(shadow, op, 2, _T.INT32)


def _leads_to_quantize(shadow: Shadow, op: Op) -> bool:
    current: Op | None = op
    while current is not None:
        if len(current.outputs) != 1 or len(shadow.edges(current.result)) != 1:
            return False
        current = shadow.edges(current.result)[0][0]
        if current.op == Q:
            return True
        if current.op not in ("Relu", "Clip"):
            return False
    return False


def _axis_fits(shadow: Shadow, op: Op, weight: Op, size: int | None) -> bool:
    scale, shape = shadow.shape(weight.input(1)), shadow.shape(weight.input(0))
    if scale in ((), (1,)):
        return True
    if (
        scale is None
        or shape is None
        or len(scale) != 1
        or scale[0] != size
        or weight.attrs.get("block_size")
    ):
        return False
    axis = int(weight.attrs.get("axis", 1)) % max(1, len(shape))
    expected = 0 if op.op != "Gemm" or op.attrs.get("transB") else 1
    return axis == expected


def _dequantized(shadow: Shadow, op: Op, slot: int, dtype: int) -> None:
    literal = shadow.literal(op.inputs[slot])
    assert literal is not None
    stored, scale, result = (Made(op.inputs[slot]) for _ in range(3))
    shadow.set_literal(stored, Literal(dtype, literal.shape))
    shadow.set_type(stored, dtype)
    shadow.set_literal(scale, Literal(_T.FLOAT, ()))
    inputs: list[Key | None] = [stored, scale]
    if dtype != _T.INT32:
        zero = Made(op.inputs[slot])
        shadow.set_literal(zero, Literal(dtype, (), np.zeros((), np.int8)))
        inputs.append(zero)
    shadow.add(Op(DQ, inputs, [result]))
    shadow.set_input(op, slot, result)


def split_dequantizers(shadow: Shadow) -> None:
    """Every reader of a DQ gets one of its own; outputs and nested bodies keep the original."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, DQ) or op.result is None:
            continue
        edges = [edge for edge in shadow.edges(op.result) if edge[1] >= 0]
        shared = len(edges) != len(shadow.edges(op.result)) or op.result in shadow.returned
        for reader, slot in edges if shared else edges[1:]:
            result = Made(op.result)
            shadow.add(Op(DQ, list(op.inputs), [result], op.attrs, op.nodes))
            shadow.set_input(reader, slot, result)


def is_implied(shadow: Shadow, op: Op, quantizer: Op) -> bool:
    """Whether quantizing cuts off at least what a Relu or Clip cuts off."""
    scale, zero = shadow.literal(quantizer.input(1)), shadow.literal(quantizer.input(2))
    dtype = shadow.quantized_type(quantizer)
    found = quant_type(dtype)
    if scale is None or scale.shape != () or found is None or found.bits not in (8, 16):
        return False
    if quantizer.input(2) is None:
        point = 0.0
    elif zero is None or zero.shape != () or zero.number is None:
        return False
    else:
        point = zero.number
    low, high = found.qmin, found.qmax
    if op.op == "Relu":
        return point == low
    bounds = _clip_bounds(shadow, op)
    if bounds is None or not scale.number:
        return False
    return bool(
        np.rint(bounds[0] / scale.number) + point <= low and np.rint(bounds[1] / scale.number) + point >= high
    )


def _clip_bounds(shadow: Shadow, op: Op) -> tuple[float, float] | None:
    if shadow.opset < 11:
        return float(op.attrs.get("min", -3.4e38)), float(op.attrs.get("max", 3.4e38))
    found: list[Any] = []
    for slot, default in ((1, -3.4e38), (2, 3.4e38)):
        literal = shadow.literal(op.input(slot))
        if op.input(slot) is not None and (literal is None or literal.number is None):
            return None
        found.append(default if literal is None else literal.number)
    return found[0], found[1]


def drop_implied_activations(shadow: Shadow) -> None:
    """Relu and Clip before a Q that implies them."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, "Relu", "Clip") or op.result is None or op.input(0) is None:
            continue
        quantizer = shadow.sole_reader(op.result)
        if not shadow.is_op(quantizer, Q) or quantizer is None or quantizer.input(2) is None:
            continue
        zero = shadow.literal(quantizer.input(2))
        found = quant_type(zero.dtype) if zero is not None else None
        # For Relu, onnxruntime looks at the zero point alone, whatever the scale's shape is.
        least = found is not None and found.bits == 8 and zero is not None and zero.number == found.qmin
        relu = op.op == "Relu" and least
        if relu or is_implied(shadow, op, quantizer):
            source = op.inputs[0]
            assert source is not None
            shadow.remove(op)
            shadow.set_input(quantizer, 0, source)
            quantizer.nodes += op.nodes


def make_unsigned(shadow: Shadow) -> None:
    """An int8 Q that exactly one DQ reads becomes uint8 together with it."""
    for op in list(shadow.ops):
        if not shadow.is_op(op, Q) or op.result is None or shadow.quantized_type(op) != _T.INT8:
            continue
        reader = shadow.sole_reader(op.result)
        if not shadow.is_op(reader, DQ) or reader is None:
            continue
        zeros = [shadow.literal(o.input(2)) for o in (op, reader)]
        if any(zero is None or zero.number is None or zero.dtype != _T.INT8 for zero in zeros):
            continue
        first, second = zeros
        if first is None or second is None or first.number != second.number:
            continue
        unsigned = Made(op.inputs[2])
        values = np.asarray((first.number or 0) + 128).reshape(())
        shadow.set_literal(unsigned, replace(first, dtype=int(_T.UINT8), shape=(), values=values))
        shadow.set_type(op.result, _T.UINT8)
        for o in (op, reader):
            shadow.set_input(o, 2, unsigned)
