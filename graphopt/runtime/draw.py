"""Drawing an input's values: what its role demands, in its dtype and shape."""

from __future__ import annotations

import math
import re
from typing import Literal, TypeAlias

import numpy as np

from graphopt.runtime.roles import Role
from graphopt.runtime.values import Array

# How values are drawn where nothing is demanded of them; later ones are meeker, for models that refuse.
Style: TypeAlias = Literal["typical", "meek", "ones", "zeros"]

_MASK = re.compile(r"mask", re.I)
_WORDS = ("the", "quick", "brown fox", "Jumps", "over 13", "lazy-dogs", "a@b.org", "")


def generate(
    role: Role | None,
    name: str,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    probe: int,
    style: Style = "typical",
    additive: bool = False,
) -> Array:
    """An array of this shape and dtype that does what `role` demands."""
    kind = role.kind if role is not None else None
    if role is not None and kind == "exact":
        return np.asarray(role.value).reshape(shape).astype(dtype)
    if role is not None and kind == "choice":
        picked = [role.value[i] for i in rng.integers(0, len(role.value), math.prod(shape))]
        return np.array(picked, dtype=object).reshape(shape).astype(dtype)
    if dtype.kind == "O":
        words = [_WORDS[i] for i in rng.integers(0, len(_WORDS) - (style == "meek"), math.prod(shape))]
        return np.array(words, dtype=object).reshape(shape)
    if role is not None and kind == "index":
        return _indices(role, name, rng, shape, style).astype(dtype)
    if style in ("ones", "zeros"):
        return np.full(shape, 1 if style == "ones" or kind in ("nonzero", "uniform") else 0).astype(dtype)
    if kind == "mask" or (_MASK.search(name) and dtype.kind in "biuf"):
        ones = _mask(rng, shape, probe)
        if dtype.kind == "f" and kind != "mask" and additive:
            return np.where(ones, 0.0, -1e4).astype(dtype)
        return ones.astype(dtype)
    if dtype.kind == "b":
        return np.array(probe % 2 == 0) if shape == () else np.asarray(rng.random(shape) < 0.5)
    if role is not None and kind == "boxes":
        return _boxes(rng, shape).astype(dtype)
    integral = dtype.kind in "iu" or dtype.name in ("int4", "uint4", "int2", "uint2")
    if role is not None and kind == "nonzero":
        high = float(role.high) if isinstance(role.high, int | float) else 2.0
        if integral:
            return rng.integers(int(role.low), int(high), shape).astype(dtype)
        return np.asarray(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)).astype(dtype)
    if integral:
        return _integers(role, rng, shape, dtype, style)
    if role is not None and kind == "uniform":
        high = float(role.high) if isinstance(role.high, int | float) else 1.0
        return rng.uniform(role.low, high, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape) if style == "typical" else rng.random(shape)).astype(dtype)


def _integers(
    role: Role | None,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    style: Style,
) -> Array:
    if style == "meek":
        return rng.integers(0, 2, shape).astype(dtype)
    if role is not None and role.kind == "uniform":
        return rng.integers(1, 4, shape).astype(dtype)
    if dtype in (np.uint8, np.int8):
        low, high = (0, 256) if dtype == np.uint8 else (-128, 128)
        return rng.integers(low, high, shape).astype(dtype)
    low = 0 if dtype.kind == "u" or dtype.name.startswith("uint") else -4
    return rng.integers(low, 4 if dtype.itemsize == 1 else 8, shape).astype(dtype)


def _indices(role: Role, name: str, rng: np.random.Generator, shape: tuple[int, ...], style: Style) -> Array:
    low = int(role.low)
    if not isinstance(role.high, int | float):
        bounds = [max(1, int(b)) for b in role.high]
        rows, total = math.prod(shape[:-1]), math.prod(bounds)
        if role.axis is not None and 0 < rows <= total <= 1 << 24:
            flat = rng.choice(total, rows, replace=False)
            return np.stack(np.unravel_index(flat, bounds), axis=-1).reshape(shape)
        return rng.integers(0, bounds, shape)
    high = max(low + 1, int(role.high))
    if style in ("ones", "zeros"):
        return np.full(shape, min(high - 1, max(low, int(style == "ones"))))
    if re.search(r"position|pos_id", name, re.I) and shape:
        return np.broadcast_to(np.arange(shape[-1]) % (high - low) + low, shape)
    if role.axis is not None and shape and shape[role.axis] <= high - low <= 1 << 20:
        moved = list(shape)
        length = moved.pop(role.axis)
        drawn = [low + rng.permutation(high - low)[:length] for _ in range(math.prod(moved))]
        return np.moveaxis(np.array(drawn).reshape(*moved, length), -1, role.axis)
    return rng.integers(low, high, shape)


def _mask(rng: np.random.Generator, shape: tuple[int, ...], probe: int) -> Array:
    """True, then False, along the last axis; at least half True, so that no row is fully masked."""
    if not shape:
        return np.array(True)
    n = shape[-1]
    lengths = rng.integers((n + 1) // 2, n + 1, shape[:-1])
    if probe % 2 == 0:
        lengths = np.where(np.arange(lengths.size).reshape(lengths.shape) == 0, n, lengths)
    elif lengths.size == 1 and n > 1:
        lengths = np.full(lengths.shape, max(1, n - max(1, n // 4)))
    return np.asarray(np.arange(n) < lengths[..., None])


def _boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values = rng.random(shape)
    if shape and shape[-1] == 4:
        half = np.sort(values.reshape(*shape[:-1], 2, 2), axis=-2)
        values = half.reshape(shape)
    return values
