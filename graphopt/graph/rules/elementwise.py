"""Operators whose output has the shape of an input, or of the inputs broadcast together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from graphopt.graph.dims import Sym, broadcast, fresh_int, maximum, minimum
from graphopt.graph.rules.call import (
    BOOL,
    FLOAT,
    INT64,
    WIDE_INTEGERS,
    Call,
    Element,
    Rule,
    Shape,
    SymValue,
    Unknown,
    axis_of,
)
from graphopt.graph.rules.values import (
    VALUE_DTYPES,
    VALUE_UNARY,
    binary,
    broadcast_elements,
    cast,
    complete,
    count,
    is_dim_arithmetic,
    unary,
)


def broadcast_shapes(a: Shape | None, b: Shape | None) -> Shape | None:
    """Multidirectional broadcasting; None if a rank is unknown."""
    if a is None or b is None:
        return None
    if a == b:
        return a
    if len(a) < len(b):
        a, b = b, a
    lead = len(a) - len(b)
    return a[:lead] + tuple(map(broadcast, a[lead:], b))


def broadcast_all(shapes: Sequence[Shape | None]) -> Shape | None:
    """All of `shapes` broadcast together."""
    result: Shape | None = ()
    for shape in shapes:
        result = broadcast_shapes(result, shape)
    return result


def same(call: Call) -> None:
    """Output 0 has the shape and dtype of input 0."""
    call.out(0, call.dtype(0), call.shape(0))


def predicate(call: Call) -> None:
    """A boolean for each element of input 0."""
    call.out(0, BOOL, call.shape(0))


def unary_value(call: Call) -> None:
    """As `same`, following the values of small tensors."""
    dtype, shape = call.dtype(0), call.shape(0)
    value = None
    if dtype in VALUE_DTYPES and count(shape) is not None:
        known = call.elements(0)
        if known is not None:
            value = complete([unary(call.node.op, e, dtype) for e in known], dtype)
    call.out(0, dtype, shape, value)


def identity(call: Call) -> None:
    """Everything known about input 0 holds for output 0."""
    call.out(0, call.dtype(0), call.shape(0), call.elements(0))


def dropout(call: Call) -> None:
    """Identity at inference; the mask is boolean (before opset 10: of the input's dtype)."""
    dtype, shape = call.dtype(0), call.shape(0)
    training = call.opset >= 12 and call.tensor(2) is not None
    call.out(0, dtype, shape, None if training else call.value(0))
    call.out(1, BOOL if call.opset >= 10 else dtype, shape)


def _legacy_shape(call: Call) -> Shape | None:
    """Before opset 7, the second operand was broadcast to the first."""
    return call.shape(0)


def _two_operand(call: Call, boolean: bool) -> None:
    a, b = call.shape(0), call.shape(1)
    shape = broadcast_shapes(a, b) if call.opset >= 7 or call.node.domain else _legacy_shape(call)
    dtype = call.dtype(0)
    if dtype is None and not boolean:
        dtype = call.dtype(1) if call.node.op != "Pow" else None
    out_dtype = BOOL if boolean else dtype
    value = None
    if dtype in VALUE_DTYPES:
        total = count(shape)
        if total is not None and a is not None and b is not None and shape is not None:
            op = call.node.op
            if op == "Mod" and call.attr("fmod", 0):
                op = "fmod"
            left, right = call.elements(0), call.elements(1)
            if left is not None and right is not None and call.dtype(1) == dtype and out_dtype is not None:
                left = broadcast_elements(left, a, shape, total)
                right = broadcast_elements(right, b, shape, total)
                results = [binary(op, x, y, dtype, out_dtype) for x, y in zip(left, right, strict=True)]
                value = complete(results, out_dtype)
    call.out(0, out_dtype, shape, value)


def arithmetic(call: Call) -> None:
    """Add, Sub, ...: operands broadcast, dtype of the first."""
    _two_operand(call, boolean=False)


def comparison(call: Call) -> None:
    """Equal, Less, And, ...: operands broadcast, boolean."""
    _two_operand(call, boolean=True)


def variadic(call: Call) -> None:
    """Max, Min, Sum, Mean of any number of operands."""
    n = len(call.node.inputs)
    if n == 2 and call.node.op != "Mean" and call.opset >= 8:
        arithmetic(call)
        return
    shapes = [call.shape(i) for i in range(n)]
    shape = broadcast_all(shapes) if call.opset >= 8 else shapes[0]
    dtype = next((d for d in (call.dtype(i) for i in range(n)) if d is not None), None)
    value = None
    if n == 1:
        value = call.value(0)
    elif dtype in WIDE_INTEGERS and call.node.op in ("Max", "Min", "Sum") and shape is not None:
        value = _fold_operands(call, shapes, shape, dtype)
    call.out(0, dtype, shape, value)


def _fold_operands(call: Call, shapes: Sequence[Shape | None], shape: Shape, dtype: int) -> SymValue | None:
    total = count(shape)
    if total is None:
        return None
    result: list[Element] | None = None
    for slot, operand_shape in enumerate(shapes):
        operand = call.elements(slot)
        if operand is None or operand_shape is None:
            return None
        spread = broadcast_elements(operand, operand_shape, shape, total)
        if result is None:
            result = list(spread)
            continue
        folded = [binary(call.node.op, x, y, dtype, dtype) for x, y in zip(result, spread, strict=True)]
        made = complete(folded, dtype)
        if made is None:
            return None
        result = list(made)
    return None if result is None else tuple(result)


def where(call: Call) -> None:
    """Elements of `x` where the condition holds, of `y` elsewhere."""
    shapes = [call.shape(i) for i in range(3)]
    shape = broadcast_all(shapes)
    dtype = call.dtype(1) if call.dtype(1) is not None else call.dtype(2)
    value = None
    total = count(shape)
    if dtype in VALUE_DTYPES and total is not None and shape is not None:
        condition, x, y = call.value(0), call.elements(1), call.elements(2)
        if x is not None and y is not None:
            x = broadcast_elements(x, shapes[1] or (), shape, total)
            y = broadcast_elements(y, shapes[2] or (), shape, total)
            if condition is None:
                chosen: list[Element | None] = [a if _same(a, b) else None for a, b in zip(x, y, strict=True)]
            else:
                condition = broadcast_elements(condition, shapes[0] or (), shape, total)
                chosen = [
                    (a if _same(a, b) else _either(a, b)) if isinstance(c, Sym) else a if c else b
                    for c, a, b in zip(condition, x, y, strict=True)
                ]
            value = complete(chosen, dtype)
    call.out(0, dtype, shape, value)


def _same(a: Element, b: Element) -> bool:
    return a == b and (not isinstance(a, float) or repr(a) == repr(b))  # 0.0 is not -0.0


def _either(a: Element, b: Element) -> Element | None:
    """One of two ints, not known which: a symbol between their bounds."""
    if isinstance(a, float) or isinstance(b, float):
        return None
    if not is_dim_arithmetic(a) or not is_dim_arithmetic(b):
        return None
    low, high = minimum(a, b), maximum(a, b)
    return fresh_int(
        low.lower if isinstance(low, Sym) else low, high.upper if isinstance(high, Sym) else high
    )


def clip(call: Call) -> None:
    """Clip: `min(max(x, low), high)` with optional bounds."""
    dtype, shape = call.dtype(0), call.shape(0)
    value = None
    if dtype in WIDE_INTEGERS and count(shape) is not None and call.opset >= 11:
        known = call.elements(0)
        for slot, op in ((1, "Max"), (2, "Min")):
            if known is None or call.tensor(slot) is None:
                continue
            bound = call.value(slot)
            if bound is None or len(bound) != 1:
                known = None
            else:
                known = complete([binary(op, e, bound[0], dtype, dtype) for e in known], dtype)
        value = known
    call.out(0, dtype, shape, value)


def cast_to(call: Call) -> None:
    """Cast to the type that an attribute names."""
    _cast(call, call.attr("to"))


def cast_like(call: Call) -> None:
    """Cast to the type of input 1."""
    _cast(call, call.dtype(1))


def _cast(call: Call, target: int | None) -> None:
    shape, source = call.shape(0), call.dtype(0)
    value = None
    if target in VALUE_DTYPES and source is not None and count(shape) is not None:
        known = call.elements(0)
        if known is not None:
            value = complete([cast(e, source, target) for e in known], target)
    call.out(0, target, shape, value)


def prelu(call: Call) -> None:
    """The slope is broadcast to the input; onnxruntime lets it be wider than the standard does."""
    x, slope = call.shape(0), call.shape(1)
    if x is not None and (slope is None or len(slope) > len(x)):
        x = broadcast_shapes(x, slope)
    elif x is not None and slope is not None:
        lead = len(x) - len(slope)
        wider = any(a == 1 and isinstance(b, int) and b != 1 for a, b in zip(x[lead:], slope, strict=True))
        x = broadcast_shapes(x, slope) if wider else x
    call.out(0, call.dtype(0), x)


def normalization(call: Call) -> None:
    """LayerNormalization and RMSNormalization; statistics keep the axes before `axis`, others are 1."""
    shape = call.shape(0)
    call.out(0, call.dtype(0), shape)
    if len(call.node.outputs) > 1 and shape is not None:
        axis = axis_of(call.attr("axis", -1), len(shape))
        reduced = shape[:axis] + (1,) * (len(shape) - axis)
        statistics = call.attr("stash_type", FLOAT)
        call.out(1, statistics, reduced)
        call.out(2, statistics, reduced)


def batch_normalization(call: Call) -> None:
    """Output 0 is like the input; in training mode the running statistics follow."""
    same(call)
    if len(call.node.outputs) > 1:
        if call.opset < 14:
            raise Unknown
        call.out(1, call.dtype(3), call.shape(3))
        call.out(2, call.dtype(4), call.shape(4))


def eye_like(call: Call) -> None:
    """A matrix of the input's shape, of the dtype asked for."""
    call.out(0, call.attr("dtype", call.dtype(0)), call.shape(0))


def cumsum(call: Call) -> None:
    """CumSum of an int vector follows the values."""
    dtype, shape = call.dtype(0), call.shape(0)
    value = None
    if dtype == INT64 and shape is not None and len(shape) == 1 and count(shape) is not None:
        known = call.elements(0)
        if known is not None and not call.attr("exclusive", 0) and not call.attr("reverse", 0):
            sums: list[Element] = []
            for element in known:
                total = binary("Add", sums[-1], element, INT64, INT64) if sums else element
                if total is None:
                    break
                sums.append(total)
            value = tuple(sums) if len(sums) == len(known) else None
    call.out(0, dtype, shape, value)


def bitwise(call: Call) -> None:
    """BitwiseAnd, BitShift, ...: operands broadcast, dtype of the first."""
    call.out(0, call.dtype(0), broadcast_shapes(call.shape(0), call.shape(1)))


_SAME: Final = (
    "Acos Acosh Asin Asinh Atan Atanh BitwiseNot Celu Cos Cosh CumProd Elu Erf Exp Gelu GroupNormalization "
    "HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization LRN LeakyRelu Log LogSoftmax "
    "LpNormalization MeanVarianceNormalization Mish Reciprocal Relu ReverseSequence RotaryEmbedding Scatter "
    "ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan "
    "Tanh TensorScatter ThresholdedRelu Trilu"
).split()

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(VALUE_UNARY, unary_value),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Pow"), arithmetic),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"), bitwise),
    **dict.fromkeys(
        ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"), comparison
    ),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    **dict.fromkeys(("IsNaN", "IsInf"), predicate),
    "BatchNormalization": batch_normalization,
    "Cast": cast_to,
    "CastLike": cast_like,
    "Clip": clip,
    "CumSum": cumsum,
    "Dropout": dropout,
    "EyeLike": eye_like,
    "Identity": identity,
    "LayerNormalization": normalization,
    "PRelu": prelu,
    "RMSNormalization": normalization,
    "SimplifiedLayerNormalization": normalization,
    "Where": where,
}
