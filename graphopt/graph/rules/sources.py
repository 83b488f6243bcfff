"""Operators that make tensors out of attributes, shapes or scalars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx

from graphopt.graph.dims import Dim, Sym, as_dim, at_least, ceildiv, fresh_dim, maximum, product
from graphopt.graph.rules.call import (
    FLOAT,
    INT64,
    MAX_ELEMENTS,
    STRING,
    WIDE_INTEGERS,
    Call,
    Element,
    Rule,
    Shape,
    SymValue,
    Unknown,
    dims_of,
)
from graphopt.graph.rules.values import binary, complete, count, from_array
from graphopt.io.dtypes import onnx_dtype


def constant(call: Call) -> None:
    """Constant, in all its attribute forms."""
    attrs = call.node.attrs
    for name in attrs:
        call.attr(name)
    if "value" in attrs:
        tensor = call.facts.constant_facts(attrs["value"])
        call.out(0, *tensor)
    elif "value_int" in attrs:
        call.out(0, INT64, (), (attrs["value_int"],))
    elif "value_ints" in attrs:
        ints = attrs["value_ints"]
        call.out(0, INT64, (len(ints),), tuple(ints) if len(ints) <= MAX_ELEMENTS else None)
    elif "value_float" in attrs:
        call.out(0, FLOAT, (), _floats([attrs["value_float"]]))
    elif "value_floats" in attrs:
        floats = attrs["value_floats"]
        call.out(0, FLOAT, (len(floats),), _floats(floats) if len(floats) <= MAX_ELEMENTS else None)
    elif "value_string" in attrs:
        call.out(0, STRING, ())
    elif "value_strings" in attrs:
        call.out(0, STRING, (len(attrs["value_strings"]),))


def _floats(values: Any) -> SymValue | None:
    rounded = tuple(np.asarray(values, dtype=np.float32).tolist())
    return rounded if all(math.isfinite(v) for v in rounded) else None


def shape_of(call: Call) -> None:
    """Shape, from `start` to `end` (opset 15)."""
    shape = call.shape(0)
    if shape is None:
        call.out(0, INT64, (fresh_dim(),))
        return
    start, end = (call.attr("start", 0), call.attr("end")) if call.opset >= 15 else (0, None)
    rank = len(shape)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = rank if end is None else min(max(end + rank if end < 0 else end, 0), rank)
    part = shape[start:end] if start < end else ()
    call.out(0, INT64, (len(part),), part if len(part) <= MAX_ELEMENTS else None)


def size_of(call: Call) -> None:
    """Size: the number of elements, a scalar."""
    shape = call.shape(0)
    call.out(0, INT64, (), None if shape is None else (product(shape),))


def constant_of_shape(call: Call) -> None:
    """A tensor of the given shape, filled with one value (float 0 by default)."""
    fill: SymValue | None = (0.0,)
    dtype: int | None = FLOAT
    if call.attr("value") is not None:
        dtype, _, fill = call.facts.constant_facts(call.attr("value"))
    target = call.elements(0)
    shape: Shape | None
    if target is not None:
        shape = tuple(as_dim(d) for d in dims_of(target))
    else:
        of_target = call.shape(0)
        known_rank = of_target is not None and isinstance(of_target[0], int)
        shape = tuple(fresh_dim() for _ in range(of_target[0])) if known_rank and of_target else None  # type: ignore[arg-type]
    total = count(shape)
    value = fill * total if fill is not None and total is not None and len(fill) == 1 else None
    call.out(0, dtype, shape, value)


def range_(call: Call) -> None:
    """Range: `max(ceil((limit - start) / delta), 0)` elements."""
    dtype = call.dtype(0)
    parts = [call.elements(i) for i in range(3)]
    if any(p is None or len(p) != 1 for p in parts):
        call.out(0, dtype, (fresh_dim(),))
        return
    start, limit, delta = (p[0] for p in parts if p)
    size = _range_size(start, limit, delta)
    value = None
    if isinstance(size, int) and size <= MAX_ELEMENTS and dtype in WIDE_INTEGERS:
        steps = [binary("Mul", delta, i, dtype, dtype) for i in range(size)]
        sums = [None if s is None else binary("Add", start, s, dtype, dtype) for s in steps]
        value = complete(sums, dtype)
    call.out(0, dtype, (size,), value)


def _range_size(start: Element, limit: Element, delta: Element) -> Dim:
    if isinstance(delta, Sym):
        return fresh_dim()
    if delta == 0:
        raise Unknown
    if not isinstance(start, Sym) and not isinstance(limit, Sym):
        span = limit - start
        if isinstance(span, int) and isinstance(delta, int):
            return max(-(span // -delta), 0)
        return max(math.ceil(span / delta), 0)
    if not all(isinstance(v, Sym) or float(v).is_integer() for v in (start, limit, delta)):
        return fresh_dim()
    first, last, step = (v if isinstance(v, Sym) else int(v) for v in (start, limit, delta))
    assert isinstance(step, int)
    size = ceildiv(last - first, step)
    return size if at_least(size, 0) else as_dim(maximum(size, 0))


def random_tensor(call: Call) -> None:
    """RandomNormal, RandomUniform: shape and dtype are attributes."""
    call.out(0, call.attr("dtype", FLOAT), call.attr("shape"))


def random_like(call: Call) -> None:
    """RandomNormalLike, RandomUniformLike, Bernoulli."""
    call.out(0, call.attr("dtype", call.dtype(0)), call.shape(0))


def multinomial(call: Call) -> None:
    """Samples per row."""
    rows = call.need_shape(0)[0]
    call.out(0, call.attr("dtype", onnx.TensorProto.INT32), (rows, call.attr("sample_size", 1)))


def window(call: Call) -> None:
    """HannWindow and friends: a vector of the given length."""
    size = call.elements(0)
    length: Dim = as_dim(dims_of(size)[0]) if size is not None and len(size) == 1 else fresh_dim()
    call.out(0, call.attr("output_datatype", FLOAT), (length,))


def array_facts(array: np.ndarray[Any, Any]) -> tuple[int, Shape, SymValue | None]:
    """dtype, shape, and the elements if they are few and numeric."""
    value = None
    if array.size <= MAX_ELEMENTS and array.dtype.kind in "biuf":
        value = from_array(array)
        if not all(math.isfinite(e) for e in value):  # type: ignore[arg-type]
            value = None
    return onnx_dtype(array.dtype), tuple(array.shape), value


RULES: Final[Mapping[str, Rule]] = {
    "Bernoulli": random_like,
    "BlackmanWindow": window,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "HammingWindow": window,
    "HannWindow": window,
    "Multinomial": multinomial,
    "RandomNormal": random_tensor,
    "RandomNormalLike": random_like,
    "RandomUniform": random_tensor,
    "RandomUniformLike": random_like,
    "Range": range_,
    "Shape": shape_of,
    "Size": size_of,
}
