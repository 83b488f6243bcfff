"""Operators that join tensors, or select from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from graphopt.graph.dims import (
    Dim,
    Sym,
    as_dim,
    at_least,
    at_most,
    ceildiv,
    clamp_index,
    exact_quotient,
    fresh_dim,
    maximum,
    product,
)
from graphopt.graph.rules.call import (
    INT64,
    Call,
    Element,
    Rule,
    Shape,
    SymValue,
    Unknown,
    axis_of,
    dims_of,
)
from graphopt.graph.rules.reshaping import moved
from graphopt.graph.rules.values import as_array, count, from_array

_TO_THE_END: Final = 2**31 - 1


def concat(call: Call) -> None:
    """Concatenate along `axis`; elsewhere the dims of all inputs agree."""
    slots = range(len(call.node.inputs))
    shapes = [call.shape(i) for i in slots]
    dtype = next((d for d in (call.dtype(i) for i in slots) if d is not None), None)
    known = [s for s in shapes if s is not None]
    if not known:
        call.out(0, dtype, None)
        return
    rank = len(known[0])
    if any(len(s) != rank for s in known):
        raise Unknown
    axis = axis_of(call.attr("axis", 1 if call.opset < 4 else None), rank)
    shape = list(_agreeing(known, axis))
    total: Dim = fresh_dim() if len(known) < len(shapes) else 0
    if len(known) == len(shapes):
        for s in known:
            total = total + s[axis]
    shape[axis] = total
    value = None
    if len(known) == len(shapes) and rank <= 3 and count(tuple(shape)) is not None:
        value = _concat_values(call, known, axis)
    call.out(0, dtype, shape, value)


def _agreeing(shapes: Sequence[Shape], axis: int) -> Shape:
    """The dims that tensors to be joined along `axis` share, the most precise of each."""
    best = list(shapes[0])
    for shape in shapes[1:]:
        for i, dim in enumerate(shape):
            if i != axis and isinstance(best[i], Sym) and isinstance(dim, int):
                best[i] = dim
    return tuple(best)


def _concat_values(call: Call, shapes: Sequence[Shape], axis: int) -> SymValue | None:
    values = [call.elements(i) for i in range(len(shapes))]
    if any(v is None for v in values):
        return None
    if len(shapes[0]) == 1:
        return tuple(e for v in values for e in v or ())
    parts = [as_array(v or (), s) for v, s in zip(values, shapes, strict=True)]
    return from_array(np.concatenate(parts, axis=axis))


def split(call: Call) -> None:
    """Split along `axis` into the given parts, or into equal ones (the last may be smaller)."""
    shape = call.shape(0)
    dtype = call.dtype(0)
    parts = len(call.node.outputs)
    if shape is None:
        for i in range(parts):
            call.out(i, dtype, None)
        return
    axis = axis_of(call.attr("axis", 0), len(shape))
    sizes = _split_sizes(call, shape[axis], parts)
    array = moved(call, shape) if len(shape) == 1 else None
    start = 0
    for i, size in enumerate(sizes):
        value = None
        if array is not None and isinstance(size, int) and start >= 0:
            value = from_array(array[start : start + size])
        start = start + size if isinstance(size, int) and start >= 0 else -1
        call.out(i, dtype, shape[:axis] + (size,) + shape[axis + 1 :], value)


def _split_sizes(call: Call, dim: Dim, parts: int) -> list[Dim]:
    given: Sequence[Element] | None
    if call.opset < 13:
        given = call.attr("split")
    elif call.tensor(1) is not None:
        given = call.elements(1)
        if given is None:
            return [fresh_dim() for _ in range(parts)]
    else:
        given = None
    if given is not None:
        if len(given) != parts:
            raise Unknown
        return [as_dim(d) for d in dims_of(tuple(given))]
    if isinstance(dim, int):
        size = -(-dim // parts)
        return [*[size] * (parts - 1), dim - size * (parts - 1)]
    if call.opset < 18:  # the dim is known to be divisible
        size_sym = exact_quotient(dim, parts)
        return [fresh_dim() if size_sym is None else size_sym] * parts
    chunk = ceildiv(dim, parts)
    if chunk * parts == dim:
        return [chunk] * parts
    return [*[chunk] * (parts - 1), as_dim(dim - chunk * (parts - 1))]


def slice_(call: Call) -> None:
    """Slice; bounds are clamped, negative ones count from the end."""
    shape = call.need_shape(0)
    dtype = call.dtype(0)
    rank = len(shape)
    if call.opset < 10:
        starts: SymValue | None = tuple(call.attr("starts"))
        ends: SymValue | None = tuple(call.attr("ends"))
        axes_attr = call.attr("axes")
        axes = list(axes_attr) if axes_attr is not None else list(range(len(starts or ())))
        steps: SymValue | None = (1,) * len(axes)
    else:
        starts, ends = call.elements(1), call.elements(2)
        axes_in = call.ints(3) if call.tensor(3) is not None else None
        if call.tensor(3) is not None and axes_in is None:
            call.out(0, dtype, tuple(fresh_dim() for _ in shape))
            return
        n = len(starts) if starts is not None else len(ends) if ends is not None else rank
        axes = axes_in if axes_in is not None else list(range(n))
        steps = call.elements(4) if call.tensor(4) is not None else (1,) * len(axes)
    result = list(shape)
    plan: list[Any] | None = [slice(None)] * rank
    for i, axis in enumerate(axes):
        axis = axis_of(axis, rank)
        start, end, step = (None if v is None else v[i] for v in (starts, ends, steps))
        result[axis] = _slice_dim(shape[axis], start, end, step)
        if plan is not None and all(isinstance(v, int) for v in (start, end, step)):
            plan[axis] = slice(start, end, step)
        else:
            plan = None
    array = moved(call, shape) if plan is not None and rank <= 3 else None
    value = None if array is None or plan is None else from_array(array[tuple(plan)])
    call.out(0, dtype, result, value)


def _slice_dim(dim: Dim, start: Element | None, end: Element | None, step: Element | None) -> Dim:
    if start is None or end is None or not isinstance(step, int) or step == 0:
        return fresh_dim()
    assert not isinstance(start, float)
    assert not isinstance(end, float)
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(dim)))  # Python clamps as ONNX does
    if step < 0:
        from_the_end = start == -1 or at_least(start, _TO_THE_END)
        if from_the_end and at_most(end, -_TO_THE_END):
            return ceildiv(dim, -step)
        return fresh_dim()
    low = clamp_index(start, dim)
    high = dim if at_least(end, _TO_THE_END) else clamp_index(end, dim)
    return as_dim(maximum(ceildiv(high - low, step), 0))


def gather(call: Call) -> None:
    """Gather along `axis`: the axis is replaced by the shape of the indices."""
    data, indices = call.shape(0), call.shape(1)
    if data is None or indices is None:
        call.out(0, call.dtype(0), None)
        return
    axis = axis_of(call.attr("axis", 0), len(data))
    value = None
    if len(data) <= 2 and count(data) is not None:
        array = moved(call, data)
        picked = call.ints(1) if array is not None else None
        if array is not None and picked is not None:
            index = np.array(picked, dtype=np.int64).reshape(indices)  # type: ignore[arg-type]
            taken = np.take(array, index, axis=axis)
            value = from_array(taken) if isinstance(taken, np.ndarray) else (taken,)
    call.out(0, call.dtype(0), data[:axis] + indices + data[axis + 1 :], value)


def gather_elements(call: Call) -> None:
    """One element for each index."""
    call.out(0, call.dtype(0), call.shape(1))


def gather_nd(call: Call) -> None:
    """The last dim of the indices says how many axes of the data each tuple addresses."""
    data, indices = call.need_shape(0), call.need_shape(1)
    depth = indices[-1]
    if not isinstance(depth, int):
        raise Unknown
    batch = call.attr("batch_dims", 0)
    call.out(0, call.dtype(0), indices[:-1] + data[batch + depth :])


def compress(call: Call) -> None:
    """Select along `axis`, or from the flattened input: how many is unknown."""
    axis = call.attr("axis")
    if axis is None:
        call.out(0, call.dtype(0), (fresh_dim(),))
        return
    shape = list(call.need_shape(0))
    shape[axis_of(axis, len(shape))] = fresh_dim()
    call.out(0, call.dtype(0), shape)


def nonzero(call: Call) -> None:
    """Indices of the nonzero elements, one column each."""
    shape = call.shape(0)
    # numpy and ORT treat a scalar as a vector of one element.
    rows: Dim = fresh_dim() if shape is None else max(len(shape), 1)
    call.out(0, INT64, (rows, fresh_dim()))


def unique(call: Call) -> None:
    """Unique elements or slices, then indices, inverse indices and counts."""
    shape, axis = call.shape(0), call.attr("axis")
    found = fresh_dim()
    if axis is None:
        call.out(0, call.dtype(0), (found,))
        length: Dim | None = None if shape is None else product(shape)
    elif shape is None:
        call.out(0, call.dtype(0), None)
        length = None
    else:
        at = axis_of(axis, len(shape))
        call.out(0, call.dtype(0), shape[:at] + (found,) + shape[at + 1 :])
        length = shape[at]
    call.out(1, INT64, (found,))
    call.out(2, INT64, (fresh_dim() if length is None else length,))
    call.out(3, INT64, (found,))


def onehot(call: Call) -> None:
    """A new axis of length `depth`."""
    indices, depth = call.shape(0), call.elements(1)
    dtype = call.dtype(2)
    if indices is None:
        call.out(0, dtype, None)
        return
    size: Dim = fresh_dim()
    if depth is not None and len(depth) == 1:
        known = depth[0]
        size = as_dim(int(known) if isinstance(known, float) else known)
    axis = axis_of(call.attr("axis", -1), len(indices) + 1)
    call.out(0, dtype, indices[:axis] + (size,) + indices[axis:])


RULES: Final[Mapping[str, Rule]] = {
    "Compress": compress,
    "Concat": concat,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": nonzero,
    "OneHot": onehot,
    "Slice": slice_,
    "Split": split,
    "Unique": unique,
}
