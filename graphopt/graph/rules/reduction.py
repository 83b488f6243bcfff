"""Reductions, selections of extreme elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from graphopt.graph.dims import Dim, as_dim, fresh_dim, maximum, minimum, product
from graphopt.graph.rules.call import (
    INT64,
    WIDE_INTEGERS,
    Call,
    Rule,
    SymValue,
    Unknown,
    axis_of,
    dims_of,
)
from graphopt.graph.rules.values import in_range, is_dim_arithmetic

# Opset from which the axes are an input.
_AXES_INPUT: Final = {"ReduceSum": 13}
_FOLDS: Final[Mapping[str, Callable[[Any], Dim]]] = {
    "ReduceProd": product,
    "ReduceSum": lambda dims: functools.reduce(lambda a, b: a + b, dims),
    "ReduceMax": lambda dims: maximum(*dims),
    "ReduceMin": lambda dims: minimum(*dims),
}


def reduce(call: Call) -> None:
    """Reduce over `axes`; over all axes when none are given, unless `noop_with_empty_axes`."""
    op = call.node.op
    dtype, shape = call.dtype(0), call.shape(0)
    keep = bool(call.attr("keepdims", 1))
    axes: list[int] | None
    if call.opset >= _AXES_INPUT.get(op, 18):
        axes = None
        if call.tensor(1) is not None:
            axes = call.ints(1)
            if axes is None:
                _unknown_axes(call, keep)
                return
        if not axes and call.attr("noop_with_empty_axes", 0):
            if op in ("ReduceLogSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
                value = None  # these still apply their function to each element
            else:
                value = call.value(0)
            call.out(0, dtype, shape, value if op in _FOLDS else None)
            return
    else:
        given = call.attr("axes")
        axes = None if given is None else list(given)
    if shape is None:
        call.out(0, dtype, () if not axes and not keep else None)
        return
    drop = {axis_of(a, len(shape)) for a in axes} if axes else set(range(len(shape)))
    result = tuple(1 if i in drop else d for i, d in enumerate(shape) if keep or i not in drop)
    call.out(0, dtype, result, _folded(call, op, dtype) if len(shape) <= 1 and drop else None)


def _unknown_axes(call: Call, keep: bool) -> None:
    shape, axes = call.shape(0), call.shape(1)
    dtype = call.dtype(0)
    if shape is None:
        call.out(0, dtype, None)
    elif keep:
        call.out(0, dtype, tuple(1 if d == 1 else fresh_dim() for d in shape))
    elif axes is not None and isinstance(axes[0], int) and 0 < axes[0] <= len(shape):
        call.out(0, dtype, tuple(fresh_dim() for _ in range(len(shape) - axes[0])))
    else:
        call.out(0, dtype, None)


def _folded(call: Call, op: str, dtype: int | None) -> SymValue | None:
    fold = _FOLDS.get(op)
    if fold is None or dtype not in WIDE_INTEGERS:
        return None
    known = call.elements(0)
    if not known or not all(is_dim_arithmetic(e) for e in known):
        return None
    result = in_range(fold(dims_of(known)), dtype)
    return None if result is None else (result,)


def arg_extremum(call: Call) -> None:
    """ArgMax and ArgMin along one axis."""
    shape = call.need_shape(0)
    axis = axis_of(call.attr("axis", 0), len(shape))
    middle = (1,) if call.attr("keepdims", 1) else ()
    call.out(0, INT64, shape[:axis] + middle + shape[axis + 1 :])


def top_k(call: Call) -> None:
    """TopK: values and indices, `k` along the axis."""
    shape = call.need_shape(0)
    axis = axis_of(call.attr("axis", -1), len(shape))
    size: Dim
    if call.opset < 10:
        size = call.attr("k")
    else:
        k = call.elements(1)
        if k is not None and len(k) != 1:
            raise Unknown
        size = fresh_dim() if k is None else as_dim(dims_of(k)[0])
    result = shape[:axis] + (size,) + shape[axis + 1 :]
    call.out(0, call.dtype(0), result)
    call.out(1, INT64, result)


_REDUCTIONS: Final = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
).split()

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_REDUCTIONS, reduce),
    "ArgMax": arg_extremum,
    "ArgMin": arg_extremum,
    "TopK": top_k,
}
