"""Symbolic integers: the dims of tensors, and the elements of tensors that dims are computed with.

A `Dim` is a plain `int`, or a `Sym`: a polynomial with integer coefficients over *atoms*. An atom is a
named symbol (the `dim_param` of a graph input), an anonymous symbol (something unknown), or an operation
that has no polynomial form (`floor`, `max`, `min`, `broadcast`, `clamp`) applied to `Dim`s.

Every `Sym` is in canonical form, so `a == b` means *provably equal*; unequal means unknown. A `Sym` never
equals an int. Dims are known to be >= 0 and nothing more: a simplification which would be wrong for 0
(`a*b // b -> a`) is made only where the divisor is provably positive.

`Sym.lower` and `Sym.upper` bound the value where something is known; they take no part in equality.
Expressions that would grow without end are replaced by anonymous symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.graph.division import ceildiv, exact_quotient, floordiv, mod, truncdiv
from graphopt.graph.sym import (
    Dim,
    Sym,
    as_dim,
    at_least,
    at_most,
    equal,
    evaluate,
    fresh_dim,
    fresh_int,
    less,
    lower_bound,
    operation,
    product,
    symbol,
    upper_bound,
)

__all__ = [
    "Dim",
    "Sym",
    "as_dim",
    "at_least",
    "at_most",
    "broadcast",
    "ceildiv",
    "clamp_index",
    "equal",
    "evaluate",
    "exact_quotient",
    "floordiv",
    "fresh_dim",
    "fresh_int",
    "less",
    "maximum",
    "minimum",
    "mod",
    "product",
    "symbol",
    "truncdiv",
]


def maximum(*dims: Dim) -> Dim:
    """The largest."""
    return _extremum("max", dims)


def minimum(*dims: Dim) -> Dim:
    """The smallest."""
    return _extremum("min", dims)


def _extremum(op: str, dims: Sequence[Dim]) -> Dim:
    flat: list[Dim] = []
    for dim in dims:
        atom = dim.atom if isinstance(dim, Sym) else None
        flat.extend(atom.args if atom is not None and atom.op == op else (dim,))
    kept: list[Dim] = []
    for dim in flat:
        if not any(_beats(op, other, dim) for other in kept):
            kept = [other for other in kept if not _beats(op, dim, other)]
            kept.append(dim)
    if len(kept) == 1:
        return kept[0]
    kept.sort(key=str)
    # The extremum has every bound that all have; one bound of any is enough on the far side.
    lows, highs = [lower_bound(d) for d in kept], [upper_bound(d) for d in kept]
    known_lows, known_highs = [x for x in lows if x is not None], [x for x in highs if x is not None]
    if op == "max":
        low = max(known_lows, default=None)
        high = max(known_highs) if len(known_highs) == len(kept) else None
    else:
        low = min(known_lows) if len(known_lows) == len(kept) else None
        high = min(known_highs, default=None)
    return operation(op, tuple(kept), low, high)


def _beats(op: str, a: Dim, b: Dim) -> bool:
    """Whether `op(a, b)` is provably `a`."""
    difference = a - b if op == "max" else b - a
    return at_least(difference, 0)


def broadcast(a: Dim, b: Dim) -> Dim:
    """The dim that results when dims `a` and `b`, which are compatible, are broadcast.

    An int other than 1 decides, and so does a dim that is provably more than 1. Two ints which
    contradict each other give an unknown dim.
    """
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return fresh_dim() if isinstance(b, int) else a
    if isinstance(b, int) or at_least(b, 2):
        return b
    if at_least(a, 2):
        return a
    for x, bounded in ((a, b), (b, a)):
        # A buffer cut to `min(limit, x)` meets `x`: they differ only if the limit is 1, and then x wins.
        atom = bounded.atom
        limits = atom.args if atom is not None and atom.op == "min" else ()
        if x in limits and all(arg == x or at_least(arg, 1) for arg in limits):
            return x
    parts: set[Dim] = set()
    for dim in (a, b):
        atom = dim.atom
        parts.update(atom.args if atom is not None and atom.op == "broadcast" else (dim,))
    if len(parts) == 1:
        return parts.pop()
    return operation("broadcast", tuple(sorted(parts, key=str)), 0, None)


def clamp_index(index: Dim, dim: Dim) -> Dim:
    """Where a slice bound falls on an axis of length `dim`: in [0, dim], negative ones from the end."""
    if at_least(index, 0):
        return minimum(index, dim)
    if at_most(index, -1):
        return maximum(dim + index, 0)
    if isinstance(index, Sym) and index == -dim:  # 0 as -0, and 0 as dim - dim
        return 0
    return operation("clamp", (index, dim), 0, upper_bound(dim))
