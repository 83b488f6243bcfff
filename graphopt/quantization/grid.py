"""Number formats: integer types, and the grids of values that a scale and a zero point make of them.

Pure numpy. The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear, bit for bit as ONNX Runtime
executes them: division (not multiplication by a reciprocal) in float32, rounding half to even, saturation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.graph.view import Array

WeightMethod = Literal["minmax", "mse"]

_T: Final = onnx.TensorProto


@dataclass(frozen=True)
class QuantType:
    """An integer type that tensors are quantized to.

    Attributes:
        name: what users and ONNX call it.
        bits: bits of an element as stored.
        signed: it has negative values.
        qmin, qmax: least and largest value used; less than what the type holds for a `reduced` one.
        onnx_type: its onnx.TensorProto.DataType.
        dtype: numpy (or ml_dtypes) dtype of stored arrays.
        min_opset: from which opset on QuantizeLinear and DequantizeLinear take it per tensor; per axis
            needs 13, blocks need 21. 32-bit integers are dequantized only.
    """

    name: str
    bits: int
    signed: bool
    qmin: int
    qmax: int
    onnx_type: int
    dtype: np.dtype[Any]
    min_opset: int

    @property
    def levels(self) -> int:
        """Number of steps between the least and the largest value."""
        return self.qmax - self.qmin


def _type(name: str, onnx_type: int, dtype: Any, bits: int, min_opset: int) -> QuantType:
    signed = not name.startswith("u")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return QuantType(name, bits, signed, low, high, int(onnx_type), np.dtype(dtype), min_opset)


#: Every type by its name.
QUANT_TYPES: Final[dict[str, QuantType]] = {
    t.name: t
    for t in (
        _type("uint8", _T.UINT8, np.uint8, 8, 10),
        _type("int8", _T.INT8, np.int8, 8, 10),
        _type("uint16", _T.UINT16, np.uint16, 16, 21),
        _type("int16", _T.INT16, np.int16, 16, 21),
        _type("int32", _T.INT32, np.int32, 32, 10),
        _type("uint4", _T.UINT4, ml_dtypes.uint4, 4, 21),
        _type("int4", _T.INT4, ml_dtypes.int4, 4, 21),
        _type("uint2", _T.UINT2, ml_dtypes.uint2, 2, 25),
        _type("int2", _T.INT2, ml_dtypes.int2, 2, 25),
    )
}

_BY_ONNX_TYPE: Final = {t.onnx_type: t for t in QUANT_TYPES.values()}

PER_AXIS_OPSET: Final = 13
BLOCKED_OPSET: Final = 21


def quant_type(onnx_type: int | None) -> QuantType | None:
    """The type with this onnx.TensorProto.DataType, None when tensors are not quantized to it."""
    return None if onnx_type is None else _BY_ONNX_TYPE.get(onnx_type)


def reduced(type: QuantType) -> QuantType:
    """`type` with one bit unused, so that sums of two products of 8-bit values fit into 16 bits.

    x86 processors without VNNI multiply unsigned by signed bytes and add pairs with saturation at 16 bits:
    with 7-bit weights it cannot set in. The stored dtype stays the same.
    """
    return replace(type, qmin=-(1 << (type.bits - 2)) if type.signed else 0, qmax=_reduced_max(type))


def _reduced_max(type: QuantType) -> int:
    return (1 << (type.bits - 2)) - 1 if type.signed else (1 << (type.bits - 1)) - 1


@dataclass(frozen=True, eq=False)
class Grid:
    """The values q -> (q - zero_point) * scale for q in qmin..qmax.

    Attributes:
        type: integer type.
        scale: float32; scalar (), per axis (C,), or blocked: the tensor's rank, one per block of `axis`.
        zero_point: integer array of the scale's shape, None for zero.
        axis: which axis of the tensor the scale runs along; None for one scale.
        block: elements of `axis` that share a scale; 0 for one scale per index (or one in all).
    """

    type: QuantType
    scale: NDArray[np.float32]
    zero_point: Array | None = None
    axis: int | None = None
    block: int = 0

    @property
    def min_opset(self) -> int:
        """From which opset on DequantizeLinear takes this grid."""
        form = BLOCKED_OPSET if self.block else PER_AXIS_OPSET if self.axis is not None else 10
        return max(self.type.min_opset, form)

    def zero_points(self) -> Array:
        """The zero point in the stored dtype and the scale's shape, also where it is None."""
        if self.zero_point is None:
            return np.zeros(self.scale.shape, self.type.dtype)
        return np.asarray(self.zero_point).astype(self.type.dtype)

    def same_as(self, other: Grid) -> bool:
        """Whether both hold the same values under the same integers."""
        return (
            self.type == other.type
            and (self.axis, self.block) == (other.axis, other.block)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_points(), other.zero_points())
        )

    def steps(self, rank: int, length: int) -> NDArray[np.float32]:
        """The scale in a shape that broadcasts to the tensor; `length` is that of its `axis`."""
        return self._spread(self.scale, rank, length)

    def quantize(self, x: Array) -> Array:
        """Stored integers, in the shape of `x`, as QuantizeLinear computes them. NaN is undefined there."""
        x = np.asarray(x, dtype=np.float32)
        scale, zero = self._operands(x)
        with np.errstate(over="ignore", invalid="ignore"):
            q = np.rint(np.divide(x, scale, dtype=np.float32))
        # Saturated around the zero point and only then shifted: floats this small are exact integers.
        if zero is None:
            return np.clip(q, self.type.qmin, self.type.qmax).astype(np.int32).astype(self.type.dtype)
        shift = zero.astype(np.float32)
        q = np.clip(q, self.type.qmin - shift, self.type.qmax - shift) + shift
        return q.astype(np.int32).astype(self.type.dtype)

    def dequantize(self, q: Array) -> NDArray[np.float32]:
        """float32 values of stored integers, as DequantizeLinear computes them."""
        q = np.asarray(q)
        scale, zero = self._operands(q)
        wide = q.astype(np.int64)
        if zero is not None:
            wide = wide - zero.astype(np.int64)
        result: NDArray[np.float32] = wide.astype(np.float32) * scale
        return result

    def fake(self, x: Array) -> NDArray[np.float32]:
        """The values on the grid nearest to `x`, in float32."""
        return self.dequantize(self.quantize(x))

    def _operands(self, x: Array) -> tuple[Array, Array | None]:
        length = 1 if self.axis is None else x.shape[self.axis]
        scale = self._spread(self.scale, x.ndim, length)
        if self.zero_point is None or not np.any(np.asarray(self.zero_point).astype(np.int32)):
            return scale, None
        return scale, self._spread(self.zero_points(), x.ndim, length)

    def _spread(self, values: Array, rank: int, length: int) -> Array:
        values = np.asarray(values)
        if self.axis is None:
            return values.reshape(())
        if self.block:
            repeated = np.repeat(values, self.block, axis=self.axis)
            return repeated.take(np.arange(length), axis=self.axis)
        shape = [1] * rank
        shape[self.axis] = -1
        return values.reshape(shape)


def grid_for_range(
    low: Any,
    high: Any,
    type: QuantType,
    *,
    symmetric: bool = False,
    power_of_two: bool = False,
    axis: int | None = None,
) -> Grid:
    """The finest grid of `type` that spans `low`..`high` and 0, which it holds exactly.

    Args:
        low, high: bounds; scalars, or vectors with one element per index of `axis`.
        type: integer type.
        symmetric: the zero point is 0 (unsigned types: the middle). The range need not be symmetric: a
            signed type has one more value below zero than above, which is made use of.
        power_of_two: round the scale up to a power of two (fixed point).
        axis: what the elements of `low` and `high` belong to.

    Raises:
        ValueError: a bound is not finite, or bounds are swapped.
    """
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(bottom).all() and np.isfinite(top).all()):
        raise ValueError("a range to quantize is not finite")
    if (bottom > top).any():
        raise ValueError("a range to quantize has its bounds swapped")
    # 0 is always on the grid: padding, masks and Relu make exact zeros, which must stay exact.
    bottom, top = np.minimum(bottom, 0.0), np.maximum(top, 0.0)
    if symmetric:
        middle = 0 if type.signed else (type.qmin + type.qmax + 1) // 2
        step = np.maximum(top / (type.qmax - middle), bottom / (type.qmin - middle))
    else:
        step = (top - bottom) / type.levels
    scale = _usable(step, power_of_two)
    if symmetric:
        zero = np.full(scale.shape, middle)
    else:
        zero = np.clip(np.rint(type.qmin - bottom / scale.astype(np.float64)), type.qmin, type.qmax)
    return Grid(type, scale, zero.astype(np.int32).astype(type.dtype), axis)


def _usable(step: Array, power_of_two: bool) -> NDArray[np.float32]:
    """Steps as float32 scales: normal, and 1 where there is nothing to represent but 0."""
    info = np.finfo(np.float32)
    step = np.where(step > 0, np.clip(step, info.tiny, info.max), 1.0)
    if power_of_two:
        step = np.exp2(np.clip(np.ceil(np.log2(step) - 1e-9), info.minexp, info.maxexp - 1))
    return np.asarray(step, np.float32)


# -- weights -------------------------------------------------------------------------------------------

# Rows are worked on in pieces of this many elements, which stay in a core's cache.
_PIECE: Final = 1 << 18
# Fractions of the full range that the search tries first, and how closely it looks around the best.
_COARSE: Final = np.linspace(1.0, 0.3, 15)
_FINE: Final = np.linspace(-0.04, 0.04, 9)


def weight_grid(
    w: Array,
    type: QuantType,
    *,
    axis: int | None,
    block: int = 0,
    symmetric: bool = True,
    method: WeightMethod = "minmax",
    power_of_two: bool = False,
) -> Grid:
    """A grid for a constant, from its values.

    "mse" gives up the tails where that lowers the mean squared error of the rounded weights, per scale: a
    search over the fraction of the range that is kept, then the scale that is optimal in the least-squares
    sense for the integers found (Banner et al., "Post training 4-bit quantization of convolutional networks",
    2019; Choukroun et al., "Low-bit quantization of neural networks for efficient inference", 2019).

    Args:
        w: the weights, any float dtype.
        type: integer type.
        axis: axis with a scale per index (or per block); None for one scale in all.
        block: elements of `axis` per scale; the last block may be shorter.
        symmetric: no zero point (unsigned types: the middle one).
        method: "minmax" covers all values.
        power_of_two: scales are powers of two.

    Raises:
        ValueError: a weight is not finite, or `block` without an axis.
    """
    values = np.asarray(w, np.float32)
    shape: tuple[int, ...]
    if axis is None:
        if block:
            raise ValueError("blocks need an axis")
        rows, shape = values.reshape(1, -1), ()
    elif block:
        axis = axis % values.ndim
        rows, shape = _blocks(values, axis, block)
    else:
        axis = axis % values.ndim
        shape = (values.shape[axis],)
        # Not -1: of no elements at all it cannot be told how many there are per row.
        rows = np.moveaxis(values, axis, 0).reshape(shape[0], values.size // max(1, shape[0]))
    low, high = rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)
    grid = grid_for_range(low, high, type, symmetric=symmetric, power_of_two=power_of_two, axis=0)
    if method == "mse":
        grid = _least_error(rows, low, high, grid, symmetric, power_of_two)
    scale, zero = grid.scale, grid.zero_points()
    if block and axis is not None:
        scale = np.moveaxis(scale.reshape(shape), -1, axis)
        zero = np.moveaxis(zero.reshape(shape), -1, axis)
    else:
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return Grid(type, np.asarray(scale, order="C"), np.asarray(zero, order="C"), axis, block)


def _blocks(values: Array, axis: int, block: int) -> tuple[Array, tuple[int, ...]]:
    """Blocks as rows, and the shape of what there is one of per block, with the blocked axis last."""
    last = np.moveaxis(values, axis, -1)
    short = -last.shape[-1] % block
    if short:
        # Zeros are on every grid: they neither widen a range nor add to an error.
        last = np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, short)])
    shape = (*last.shape[:-1], last.shape[-1] // block)
    return last.reshape(-1, block), shape


def _least_error(
    rows: Array, low: Array, high: Array, full: Grid, symmetric: bool, power_of_two: bool
) -> Grid:
    scale, zero = full.scale.copy(), full.zero_points().astype(np.int32)
    for piece in _pieces(rows):
        part = rows[piece]
        best = Grid(full.type, scale[piece], zero[piece].astype(full.type.dtype), 0)
        error = _error(part, best)
        kept = np.ones(len(part))

        def attempt(
            fraction: Array,
            part: Array = part,
            piece: slice = piece,
        ) -> tuple[Grid, Array]:
            grid = grid_for_range(
                low[piece] * fraction,
                high[piece] * fraction,
                full.type,
                symmetric=symmetric,
                power_of_two=power_of_two,
                axis=0,
            )
            return grid, _error(part, grid)

        for factor in _COARSE[1:]:
            best, error, kept = _keep_better(best, error, kept, *attempt(np.full(len(part), factor)), factor)
        if not power_of_two:
            center = kept.copy()
            for offset in _FINE:
                fraction = np.clip(center + offset, 0.05, 1.0)
                best, error, kept = _keep_better(best, error, kept, *attempt(fraction), fraction)
            for _ in range(3):
                refit = _refit(part, best)
                best, error, kept = _keep_better(best, error, kept, refit, _error(part, refit), kept)
        scale[piece], zero[piece] = best.scale, best.zero_points().astype(np.int32)
    return Grid(full.type, scale, zero.astype(full.type.dtype), 0)


def _pieces(rows: Array) -> Iterator[slice]:
    count = max(1, _PIECE // max(1, rows.shape[1]))
    for start in range(0, len(rows), count):
        yield slice(start, start + count)


def _error(rows: Array, grid: Grid) -> Array:
    """Sum of squared errors of each row."""
    difference = grid.fake(rows) - rows
    total: Array = np.einsum("rc,rc->r", difference, difference, dtype=np.float64)
    return total


def _refit(rows: Array, grid: Grid) -> Grid:
    """The grid whose scales fit `rows` best given the integers that `grid` rounds them to."""
    q = grid.quantize(rows).astype(np.float32) - grid.zero_points().astype(np.float32)[:, None]
    power = np.einsum("rc,rc->r", q, q, dtype=np.float64)
    match = np.einsum("rc,rc->r", q, rows, dtype=np.float64)
    fitted = np.divide(match, power, out=grid.scale.astype(np.float64), where=power > 0)
    return replace(grid, scale=_usable(fitted, False))


def _keep_better(
    best: Grid, error: Array, kept: Array, other: Grid, other_error: Array, fraction: Array | float
) -> tuple[Grid, Array, Array]:
    better = other_error < error
    scale = np.where(better, other.scale, best.scale)
    zero = np.where(better, other.zero_points().astype(np.int32), best.zero_points().astype(np.int32))
    grid = Grid(best.type, scale, zero.astype(best.type.dtype), best.axis)
    return grid, np.where(better, other_error, error), np.where(better, fraction, kept)
