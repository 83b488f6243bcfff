"""Putting a wrong pair right: the two hold different things, but one of them is found beside the other.

Structure alone takes the Conv of a candidate for the Conv of the reference although a BatchNormalization has
been folded into it. Then the candidate's Conv computes what the reference's BatchNormalization does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.ir import Tensor
from graphopt.runtime.values import Array
from graphopt.validation.gaps import gap, spread_of
from graphopt.validation.matching import Matching, Pair, grow
from graphopt.validation.metrics import is_float
from graphopt.validation.net import Net, named_bodies
from graphopt.validation.watching import slices

if TYPE_CHECKING:
    from graphopt.validation.layers import Comparison

# How far around, in nodes, and how many tensors at most.
_REACH: Final = 6
_TENSORS: Final = 24
# Between tensors that agree and one that does not: most tensors to look at, and least cosine.
_MANY: Final = 64
_ALIKE: Final = 0.8


def rematch(comparison: Comparison, pair: Pair) -> bool:
    """Look for the right counterpart of a pair that is off; whether there was one.

    Names that count are believed, and so is what is computed in the same way.
    """
    matching = comparison.matching
    if pair.certain or (pair.by == "name" and matching.names_count):
        return False
    found = _beside(comparison, pair, of_reference=True) or _beside(comparison, pair, of_reference=False)
    if found is None:
        return False
    for old in (pair, matching.of_reference(found.reference), matching.of_candidate(found.candidate)):
        if old is not None and matching.of_candidate(old.candidate) is old:
            _forget(matching, old)
    matching.add(found)
    grow(matching, [found])
    return True


def resemble(comparison: Comparison, pair: Pair, near: list[Pair]) -> bool:
    """Pair what lies between a pair that is off and what agrees before it, by how alike the values are.

    Several nodes without counterpart may lead to a tensor that is off, and any of them may be at fault. A
    fault seldom changes a tensor beyond recognition: its cosine with what it should be is larger than with
    anything else. The first tensors on the way are looked at: that is where the fault is looked for.

    Args:
        comparison: where values come from.
        pair: the pair that is off.
        near: pairs before it, which agree.

    Returns:
        whether any pair was found.
    """
    matching = comparison.matching
    mine = _between(matching.candidate, pair.candidate, {p.candidate for p in near})
    theirs = _between(matching.reference, pair.reference, {p.reference for p in near})
    mine = [t for t in mine if matching.of_candidate(t) is None]
    theirs = [t for t in theirs if matching.of_reference(t) is None]
    mine = next(slices(mine[:_MANY], comparison.candidate.sizes(mine[:_MANY]), comparison.slice_bytes), [])
    theirs = next(
        slices(theirs[:_MANY], comparison.reference.sizes(theirs[:_MANY]), comparison.slice_bytes), []
    )
    if not mine or not theirs:
        return False
    left, right = comparison.candidate.read(mine), comparison.reference.read(theirs)
    scores = [
        (alike, i, j)
        for i, t in enumerate(mine)
        for j, u in enumerate(theirs)
        if (alike := _cosine(left.get(t, []), right.get(u, []))) >= _ALIKE
    ]
    found = False
    used: set[Tensor] = set()
    for _, i, j in sorted(scores, reverse=True):
        if mine[i] in used or theirs[j] in used:
            continue
        used |= {mine[i], theirs[j]}
        found |= matching.add(Pair(theirs[j], mine[i], "value"))
    return found


def _between(net: Net, tensor: Tensor, border: set[Tensor]) -> list[Tensor]:
    """What is computed on the way from `border` to `tensor`, neither of them included, in order."""
    found: set[Tensor] = set()
    stack = list(net.sources(tensor))
    while stack:
        current = stack.pop()
        if current in border or current in found or current is tensor or current not in net.places:
            continue
        found.add(current)
        stack.extend(net.sources(current))
    return sorted(found, key=lambda t: net.places[t].order)


def _cosine(a: list[Array], b: list[Array]) -> float:
    """Of all values of two tensors; -1 where they cannot be compared."""
    if len(a) != len(b) or not a or [v.shape for v in a] != [v.shape for v in b]:
        return -1.0
    if not _says_something(a) or not all(is_float(v.dtype) and v.dtype.kind != "c" for v in (*a, *b)):
        return -1.0
    x, y = (np.concatenate([v.reshape(-1).astype(np.float64) for v in values]) for values in (a, b))
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    norm = float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return float(x @ y) / norm if norm else -1.0


def _beside(comparison: Comparison, pair: Pair, *, of_reference: bool) -> Pair | None:
    """A tensor near one end of the pair that holds what the other end does."""
    matching = comparison.matching
    net = matching.reference if of_reference else matching.candidate
    watch = comparison.reference if of_reference else comparison.candidate
    fixed = pair.candidate if of_reference else pair.reference
    mine = (comparison.candidate if of_reference else comparison.reference).read([fixed]).get(fixed)
    if not mine or not _says_something(mine):
        return None
    start = pair.reference if of_reference else pair.candidate
    known = matching.of_reference if of_reference else matching.of_candidate
    around = []
    for tensor in _around(net, start):
        other = known(tensor)
        if other is None or (not other.certain and other.by == "structure"):
            around.append(tensor)
    for tensor, values in watch.read(around).items():
        a, b = (values, mine) if of_reference else (mine, values)
        spread = 0.0
        near = gap(a, b, budget=comparison.budget)
        if near is not None and not near.ok and comparison.budget is None:
            again = comparison.again.read([tensor if of_reference else pair.reference])
            spread = next((spread_of(a, v) for v in again.values()), 0.0)
            near = gap(a, b, spread=spread)
        if near is not None and near.ok:
            ends = (tensor, fixed) if of_reference else (fixed, tensor)
            return Pair(*ends, "value")
    return None


def _around(net: Net, start: Tensor) -> Iterator[Tensor]:
    """Tensors that are computed from `start`, the nearest first, in the same body."""
    place = net.places.get(start)
    body = place.body if place is not None else ""
    seen = {start}
    queue = deque([(start, 0)])
    given = 0
    while queue and given < _TENSORS:
        tensor, far = queue.popleft()
        if far >= _REACH:
            continue
        for node in net.readers.get(tensor, ()):
            for output in node.outputs:
                if output in seen or output not in net.places:
                    continue
                seen.add(output)
                if net.places[output].body != body or any(True for _ in named_bodies(node)):
                    continue
                yield output
                given += 1
                queue.append((output, far + 1))


def _says_something(values: list[Array]) -> bool:
    """Not just zeros, or one number: those are found in many places."""
    return any(v.size > 1 and v.dtype.kind not in "OSU" and bool(np.any(v)) for v in values)


def _forget(matching: Matching, pair: Pair) -> None:
    """Undo a pair, and what was concluded from it by structure alone."""
    cand = matching.candidate
    stack = [pair]
    while stack:
        current = stack.pop()
        if matching.of_candidate(current.candidate) is not current:
            continue
        matching.remove(current)
        for node in cand.readers.get(current.candidate, ()):
            for output in node.outputs:
                other = matching.of_candidate(output)
                if other is not None and other.by == "structure" and not other.certain:
                    stack.append(other)
