"""Matching tensors by what they hold, where names are gone and fusions have left little structure.

Of every tensor in question a sketch is kept: its shape, its RMS, and its product with a few random vectors of
signs. Two tensors that differ by noise have nearly the same sketch; others do not, or only by a chance that
the number of products makes negligible. Values are read in slices, so that memory stays bounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.graph.text import op_text
from graphopt.ir import Tensor
from graphopt.runtime.values import Array
from graphopt.validation.matching import Matching, Pair, grow
from graphopt.validation.metrics import is_float
from graphopt.validation.net import Net
from graphopt.validation.watching import Watch, slices

if TYPE_CHECKING:
    from graphopt.validation.layers import Comparison

_PRODUCTS: Final = 8
_BLOCK: Final = 1 << 16
# Smaller tensors are found equal in too many places.
_LEAST: Final = 8
# Largest difference of sketches that counts as noise, and where candidates move the numbers on purpose.
_NOISE: Final = 1e-4
_MOVED: Final = 0.03
# Below this share of tensors in question, structure has found enough.
_WORTH: Final = 0.1


@dataclass(frozen=True)
class Sketch:
    """What is kept of a tensor.

    Attributes:
        key: shapes and kind of element; only tensors of one key are compared.
        rms: root mean square.
        products: with vectors of signs, over the norm of the tensor.
    """

    key: tuple[object, ...]
    rms: float
    products: tuple[float, ...]

    def is_near(self, other: Sketch, tolerance: float) -> bool:
        """The two may be one tensor, up to noise of so large a share."""
        if abs(self.rms - other.rms) > tolerance * max(self.rms, other.rms):
            return False
        return all(abs(a - b) <= 3 * tolerance for a, b in zip(self.products, other.products, strict=True))


def sketch(values: Sequence[Array]) -> Sketch | None:
    """The sketch of all values of a tensor in one run; None for what says too little."""
    if not values or not all(is_float(v.dtype) and v.dtype.kind != "c" for v in values):
        return None
    size = sum(v.size for v in values)
    if size < _LEAST:
        return None
    total = np.zeros(_PRODUCTS)
    energy, number = 0.0, 0
    for value in values:
        flat = np.ascontiguousarray(value).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK].astype(np.float64)
            if not np.isfinite(block).all():
                return None
            energy += float(block @ block)
            total += _signs(number)[:, : block.size] @ block
            number += 1
    if not energy or not math.isfinite(energy):
        return None
    key = (tuple(v.shape for v in values),)
    return Sketch(key, math.sqrt(energy / size), tuple(total / math.sqrt(energy)))


@functools.lru_cache(8)
def _signs(block: int) -> Array:
    """Rows of +1 and -1 that belong to the block of this number."""
    rng = np.random.default_rng([17, block])
    return rng.integers(0, 2, (_PRODUCTS, _BLOCK), np.int8) * 2.0 - 1.0


def match_by_value(comparison: Comparison) -> int:
    """Find counterparts by value for what has none, or one by looks only; returns how many were found."""
    matching = comparison.matching
    mine, theirs = _open(matching, of_candidate=True), _open(matching, of_candidate=False)
    everything = sum(1 for t in matching.candidate.values if _is_wanted(matching.candidate, t))
    if not mine or not theirs or len(mine) < _WORTH * everything:
        return 0
    tolerance = _NOISE if comparison.budget is None else _MOVED
    left = dict(_sketches(comparison.candidate, mine, comparison.slice_bytes))
    right = dict(_sketches(comparison.reference, theirs, comparison.slice_bytes))
    places: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor, found in right.items():
        places.setdefault(found.key, []).append(tensor)
    pairs: list[Pair] = []
    used: set[Tensor] = set()
    for tensor, found in left.items():
        old = matching.of_candidate(tensor)
        near = [t for t in places.get(found.key, ()) if t not in used and right[t].is_near(found, tolerance)]
        if not near or (old is not None and old.reference in near):
            if old is not None and near:
                used.add(old.reference)
            continue
        best = min(near, key=lambda t: _unlike(matching, t, tensor))
        used.add(best)
        pairs.append(Pair(best, tensor, "value"))
    for pair in pairs:
        for old in (matching.of_candidate(pair.candidate), matching.of_reference(pair.reference)):
            if old is not None:
                matching.remove(old)
        matching.add(pair)
    grow(matching, pairs)
    return len(pairs)


def _is_wanted(net: Net, tensor: Tensor) -> bool:
    """It is computed from what is fed, and may hold floats."""
    return bool(net.sources(tensor)) and not net.places[tensor].entry


def _open(matching: Matching, *, of_candidate: bool) -> list[Tensor]:
    """Tensors without counterpart, or whose counterpart only looks alike."""
    net = matching.candidate if of_candidate else matching.reference
    known = matching.of_candidate if of_candidate else matching.of_reference
    ports = set(net.outputs.values())
    found = []
    for tensor in net.values:
        pair = known(tensor)
        settled = pair is not None and (pair.certain or pair.by != "structure")
        if not settled and tensor not in ports and _is_wanted(net, tensor):
            found.append(tensor)
    return found


def _sketches(watch: Watch, tensors: Sequence[Tensor], most: int) -> Iterator[tuple[Tensor, Sketch]]:
    for part in slices(tensors, watch.sizes(tensors), most):
        for tensor, values in watch.read(part).items():
            found = sketch(values)
            if found is not None:
                yield tensor, found


def _unlike(matching: Matching, theirs: Tensor, mine: Tensor) -> tuple[bool, bool, int]:
    """Of several that hold the same: another operator, another body, how far along the depth."""
    a, b = matching.reference.places[theirs], matching.candidate.places[mine]
    return (op_text(a.node) != op_text(b.node), a.body != b.body, abs(a.depth - b.depth))
