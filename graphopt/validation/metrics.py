"""How far two arrays are apart, in one pass over blocks, so that it costs no copy of either."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from graphopt.runtime.values import Array, Value

_BLOCK = 1 << 18

# Attention masks leave values like -1e4, -1e9 or the dtype's minimum in outputs: one of them would set
# the scale for all others.
_FILL = 9e3
_FILL_RATIO = 1e3


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype are inexact: floats of any width, and complex numbers."""
    if dtype.kind in "fc":
        return True
    try:
        _finfo(dtype)
    except ValueError:
        return False
    return True


def eps(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next larger value of a float dtype."""
    if dtype.kind == "c":
        dtype = np.dtype(np.float32 if dtype.itemsize == 8 else np.float64)
    return float(_finfo(dtype).eps)


def _finfo(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def _wide(block: Array) -> Array:
    if block.dtype.kind == "c":
        block = block.view(np.float32 if block.dtype.itemsize == 8 else np.float64)
    with np.errstate(invalid="ignore"):  # the cast of a signalling NaN
        return block.astype(np.float64)


def _blocks(*arrays: Array) -> Iterator[list[Array]]:
    flat = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield [_wide(a[start : start + _BLOCK]) for a in flat]


@dataclass(frozen=True)
class Scale:
    """How large an array's values are.

    Attributes:
        rms: root mean square of the finite values that are at most `cut` in magnitude.
        cut: values above it are fills (an attention mask's, say), judged relative to themselves.
    """

    rms: float
    cut: float = math.inf


def scale_of(array: Array) -> Scale:
    """The scale of a float array; zero for an empty one."""
    small = small_count = large = large_count = 0.0
    for (x,) in _blocks(array):
        x = np.abs(x[np.isfinite(x)])
        low = x[x < _FILL]
        small += float(np.dot(low, low))
        small_count += low.size
        if low.size < x.size:
            high = x[x >= _FILL]
            with np.errstate(over="ignore"):
                large += float(np.dot(high, high))
            large_count += high.size
    small_rms = math.sqrt(small / small_count) if small_count else 0.0
    if large_count and small_rms and _FILL_RATIO * small_rms < _FILL:
        return Scale(small_rms, _FILL)
    count = small_count + large_count
    return Scale(math.sqrt((small + large) / count) if count else 0.0)


@dataclass(frozen=True)
class Metrics:
    """The distance of `value` from `reference`: two arrays of the same shape and dtype.

    Attributes:
        bit_equal: equal bit for bit, NaN positions and signs of zero included (NaN payloads are not).
        same_pattern: NaN, +Inf and -Inf stand at the same places.
        max_abs: largest absolute difference of finite values (for strings: 1 if any differs).
        max_rel: largest absolute difference over max(|reference|, rms / 1000).
        cosine: cosine similarity; None when one of them is all zeros.
        sqnr_db: signal to noise ratio in dB; None when there is no noise, or no signal.
        argmax_agreement: share of rows (last axis) whose largest value stands at the same place; None
            where there are no rows of floats.
        rms: root mean square of the finite reference values.
        differing: number of values that differ.
        count: number of values.
        worst_index: flat index of the largest difference; None when none differs.
    """

    bit_equal: bool
    same_pattern: bool
    max_abs: float
    max_rel: float
    cosine: float | None
    sqnr_db: float | None
    argmax_agreement: float | None
    rms: float
    differing: int
    count: int
    worst_index: int | None = None


def bit_equal(a: Array, b: Array) -> bool:
    """Equal dtype, shape and bits; NaNs are equal to NaNs whatever their payload."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == object:
        return bool(np.array_equal(a, b))
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if a.tobytes() == b.tobytes() if a.nbytes < 4096 else np.array_equal(_words(a), _words(b)):
        return True
    if not is_float(a.dtype):
        return False
    for x, y in zip(_split(a), _split(b), strict=True):
        both_nan = np.isnan(x) & np.isnan(y)
        same = (_words(x) == _words(y)).reshape(x.size, -1).all(axis=1)
        if not (same | both_nan).all():
            return False
    return True


def _words(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _split(array: Array) -> Iterator[Array]:
    if array.dtype.kind == "c":
        array = array.reshape(-1).view(np.float32 if array.dtype.itemsize == 8 else np.float64)
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def measure(reference: Array, value: Array) -> Metrics:
    """Compare two arrays of the same shape and dtype; the caller has checked both."""
    exact = bit_equal(reference, value)
    if reference.dtype == object or reference.dtype.kind in "US":
        unequal = np.asarray(reference != value)
        n = int(np.count_nonzero(unequal))
        worst = int(np.argmax(unequal)) if n else None
        return Metrics(
            exact, True, float(n > 0), float(n > 0), None, None, None, 0.0, n, reference.size, worst
        )
    rms = _plain_rms(reference)
    dot = ref2 = val2 = noise = max_abs = max_rel = 0.0
    differing, pattern, worst, position = 0, True, None, 0
    for x, y in _blocks(reference, value):
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            unlike = ~finite & ~((x == y) | (np.isnan(x) & np.isnan(y)))
            if unlike.any():
                worst = position + int(np.argmax(unlike)) if pattern else worst
                pattern, differing = False, differing + int(np.count_nonzero(unlike))
            x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            difference = np.abs(x - y)
            dot, ref2, val2 = dot + float(x @ y), ref2 + float(x @ x), val2 + float(y @ y)
            noise += float(difference @ difference)
        n = int(np.count_nonzero(difference))
        if n:
            differing += n
            at = int(np.argmax(difference))
            if difference[at] > max_abs:
                max_abs = float(difference[at])
                worst = position + at if pattern else worst
            relative = difference / np.maximum(np.abs(x), max(rms / 1000, 1e-300))
            max_rel = max(max_rel, float(relative.max()))
        position += x.size
    if not exact and not is_float(reference.dtype):
        # float64 cannot tell large 64-bit integers apart
        unequal = np.asarray(reference != value)
        differing, worst = int(np.count_nonzero(unequal)), worst if max_abs else int(np.argmax(unequal))
        max_abs = max(max_abs, 1.0)
    norm = math.sqrt(ref2) * math.sqrt(val2)
    return Metrics(
        bit_equal=exact,
        same_pattern=pattern,
        max_abs=max_abs,
        max_rel=max_rel,
        cosine=max(-1.0, min(1.0, dot / norm)) if norm and math.isfinite(norm) else None,
        sqnr_db=10 * math.log10(ref2 / noise) if noise and ref2 and math.isfinite(noise) else None,
        argmax_agreement=_argmax_agreement(reference, value),
        rms=rms,
        differing=differing,
        count=reference.size,
        worst_index=worst,
    )


def _plain_rms(array: Array) -> float:
    total, count = 0.0, 0
    for (x,) in _blocks(array):
        x = x[np.isfinite(x)]
        with np.errstate(over="ignore"):
            total, count = total + float(x @ x), count + x.size
    return math.sqrt(total / count) if count else 0.0


def _argmax_agreement(reference: Array, value: Array) -> float | None:
    if not is_float(reference.dtype) or reference.dtype.kind == "c":
        return None
    if not reference.ndim or not reference.size or reference.shape[-1] < 2:
        return None
    rows = reference.shape[-1]
    a, b = reference.reshape(-1, rows), value.reshape(-1, rows)
    step, same = max(1, _BLOCK // rows), 0
    for i in range(0, len(a), step):
        # ml_dtypes' argmax is missing for some types, hence the cast.
        x, y = a[i : i + step].astype(np.float64), b[i : i + step].astype(np.float64)
        same += int(np.count_nonzero(x.argmax(axis=-1) == y.argmax(axis=-1)))
    return same / len(a)


def leaves(name: str, value: Value) -> dict[str, Array | None]:
    """The arrays in a value, by path: "y", "y[0]" in a sequence, "y.keys" and "y.values" of a map.

    An empty sequence or optional is a leaf that is None, so that two values have the same structure
    exactly if their paths, and which of them are None, are the same.
    """
    if value is None:
        return {name: None}
    if isinstance(value, Mapping):
        return {f"{name}.keys": _as_array(list(value)), f"{name}.values": _as_array(list(value.values()))}
    if isinstance(value, np.ndarray | np.generic):
        return {name: np.asarray(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not len(value):
            return {name: None}
        return {k: v for i, item in enumerate(value) for k, v in leaves(f"{name}[{i}]", item).items()}
    return {name: _as_array(value)}


def _as_array(items: Any) -> Array:
    array = np.asarray(items)
    return array.astype(object) if array.dtype.kind in "US" else array
