"""Polynomials over symbols with integer coefficients, in canonical form: see `graphopt.graph.dims`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

MAX_TERMS: Final = 48
_MAX_TEXT: Final = 400
_MAX_INT: Final = 2**64
_serial = itertools.count()


class Atom:
    """An indivisible factor; equal to another atom with the same text.

    Attributes:
        key: canonical text, which is also the sort key.
        op: "" for a symbol, otherwise the operation on `args`.
        name: the dim_param, "" for other atoms.
    """

    __slots__ = ("_hash", "args", "key", "lower", "name", "op", "upper")

    def __init__(
        self,
        key: str,
        *,
        op: str = "",
        args: tuple[Dim, ...] = (),
        name: str = "",
        lower: int | None = None,
        upper: int | None = None,
    ) -> None:
        self.key, self.op, self.args, self.name = key, op, args, name
        self.lower, self.upper = lower, upper
        self._hash = hash(key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Atom) and self.key == other.key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return self.key


Monomial: TypeAlias = tuple[Atom, ...]  # sorted by key, repeated for powers; () is the constant term


def _mono_key(mono: Monomial) -> tuple[int, tuple[str, ...]]:
    return (-len(mono), tuple(a.key for a in mono))


class Sym:
    """An integer expression that is not a known int. Immutable and hashable; see `graphopt.graph.dims`.

    `+ - * // %` accept `Dim`s and return `Dim`s; `//` and `%` are Python's (floor) and need a divisor
    that is not 0.
    """

    __slots__ = ("_hash", "_text", "lower", "terms", "upper")

    terms: tuple[tuple[Monomial, int], ...]
    lower: int | None
    upper: int | None

    def __init__(self, terms: tuple[tuple[Monomial, int], ...], lower: int | None, upper: int | None) -> None:
        self.terms, self.lower, self.upper = terms, lower, upper
        self._hash = hash(terms)
        self._text = ""

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Sym) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        if isinstance(other, Sym):
            for mono, coef in other.terms:
                terms[mono] = terms.get(mono, 0) + coef
        elif other == 0:
            return self
        else:
            terms[()] = terms.get((), 0) + other
        low, high = lower_bound(other), upper_bound(other)
        return build(
            terms,
            None if self.lower is None or low is None else self.lower + low,
            None if self.upper is None or high is None else self.upper + high,
        )

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: int) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, Sym):
            if other == 0:
                return 0
            if other == 1:
                return self
            low, high = self.lower, self.upper
            if other < 0:
                low, high = high, low
            low, high = None if low is None else low * other, None if high is None else high * other
            if abs(other) > 1:
                return build({mono: coef * other for mono, coef in self.terms}, low, high)
            return Sym(tuple((mono, -coef) for mono, coef in self.terms), low, high)
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                mono = tuple(sorted(left + right, key=_atom_key)) if left and right else left + right
                terms[mono] = terms.get(mono, 0) + a * b
        return build(terms, *_product_bounds(self.lower, self.upper, other.lower, other.upper))

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        from graphopt.graph.division import floordiv

        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        from graphopt.graph.division import floordiv

        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        from graphopt.graph.division import mod

        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        from graphopt.graph.division import mod

        return mod(other, self)

    @property
    def name(self) -> str | None:
        """The dim_param this is, if it is nothing but one."""
        atom = self.atom
        return atom.name or None if atom is not None else None

    @property
    def atom(self) -> Atom | None:
        """The atom this is, if it is nothing but one."""
        if len(self.terms) == 1:
            mono, coef = self.terms[0]
            if coef == 1 and len(mono) == 1:
                return mono[0]
        return None

    @property
    def symbols(self) -> frozenset[str]:
        """Keys of the symbols (named as their dim_param, anonymous as `?n`) that occur in this."""
        found: set[str] = set()
        stack: list[Dim] = [self]
        while stack:
            dim = stack.pop()
            if isinstance(dim, Sym):
                for mono, _ in dim.terms:
                    for atom in mono:
                        if atom.op:
                            stack.extend(atom.args)
                        else:
                            found.add(atom.name or atom.key)
        return frozenset(found)

    @property
    def is_anonymous(self) -> bool:
        """Whether something unknown occurs in this, so that no input's dims determine it."""
        stack: list[Dim] = [self]
        while stack:
            dim = stack.pop()
            if isinstance(dim, Sym):
                for mono, _ in dim.terms:
                    for atom in mono:
                        if not atom.op and not atom.name:
                            return True
                        stack.extend(atom.args)
        return False

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        """The value when each symbol has the value that `bindings` gives (see `symbols`).

        Raises:
            KeyError: a symbol is not bound.
        """
        total = 0
        for mono, coef in self.terms:
            for atom in mono:
                coef *= _evaluate_atom(atom, bindings)
            total += coef
        return total

    def __str__(self) -> str:
        if not self._text:
            self._text = _text(self.terms)
        return self._text

    def __repr__(self) -> str:
        return f"<{self}>"


Dim: TypeAlias = int | Sym


def _atom_key(atom: Atom) -> str:
    return atom.key


def _text(terms: tuple[tuple[Monomial, int], ...]) -> str:
    parts = []
    for mono, coef in terms:
        factors = "*".join(a.key for a in mono)
        if not mono:
            parts.append(str(coef))
        elif coef == 1:
            parts.append(factors)
        else:
            parts.append(f"-{factors}" if coef == -1 else f"{coef}*{factors}")
    return " + ".join(parts).replace("+ -", "- ")


def _evaluate_atom(atom: Atom, bindings: Mapping[str, int]) -> int:
    if not atom.op:
        return bindings[atom.name or atom.key]
    return _OPERATIONS[atom.op](*(evaluate(arg, bindings) for arg in atom.args))


def _broadcast_ints(*dims: int) -> int:
    return next((d for d in dims if d != 1), 1)


def _clamp_ints(index: int, dim: int) -> int:
    return min(max(index + dim if index < 0 else index, 0), dim)


_OPERATIONS: Final[dict[str, Callable[..., int]]] = {
    "floor": lambda a, b: a // b,
    "max": max,
    "min": min,
    "broadcast": _broadcast_ints,
    "clamp": _clamp_ints,
}


# -- construction --------------------------------------------------------------------------------------


def symbol(name: str) -> Sym:
    """The dim that a graph input calls `name`: the same everywhere in the model, >= 0."""
    key = name if name.isidentifier() else repr(name)
    return Sym((((Atom(key, name=name, lower=0),), 1),), 0, None)


def fresh_dim() -> Sym:
    """An unknown dim, equal to nothing but itself, >= 0."""
    return fresh_int(lower=0)


def fresh_int(lower: int | None = None, upper: int | None = None) -> Sym:
    """An unknown integer, equal to nothing but itself."""
    return Sym((((Atom(f"?{next(_serial)}", lower=lower, upper=upper),), 1),), lower, upper)


def operation(op: str, args: tuple[Dim, ...], lower: int | None, upper: int | None) -> Sym:
    """The opaque atom `op(args)`."""
    key = f"{op}({', '.join(map(str, args))})"
    if len(key) > _MAX_TEXT:
        return fresh_int(lower, upper)
    return Sym((((Atom(key, op=op, args=args, lower=lower, upper=upper),), 1),), lower, upper)


def build(terms: dict[Monomial, int], lower: int | None, upper: int | None) -> Dim:
    """The canonical Dim of `terms`, within the bounds given and those that follow from the atoms."""
    kept = [(mono, coef) for mono, coef in terms.items() if coef]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    if len(kept) > 1:
        kept.sort(key=lambda term: _mono_key(term[0]))
    low, high = _bounds(kept)
    lower = low if lower is None else lower if low is None else max(lower, low)
    upper = high if upper is None else upper if high is None else min(upper, high)
    if lower is not None and lower == upper:
        return lower
    if lower is not None and abs(lower) > _MAX_INT:
        lower = _MAX_INT if lower > 0 else None
    if upper is not None and abs(upper) > _MAX_INT:
        upper = -_MAX_INT if upper < 0 else None
    if len(kept) > MAX_TERMS or len(kept[0][0]) > MAX_TERMS or any(abs(coef) > _MAX_INT for _, coef in kept):
        return fresh_int(lower, upper)
    return Sym(tuple(kept), lower, upper)


def _bounds(terms: Iterable[tuple[Monomial, int]]) -> tuple[int | None, int | None]:
    lower: int | None = 0
    upper: int | None = 0
    for mono, coef in terms:
        low: int | None = 1
        high: int | None = 1
        for atom in mono:
            low, high = _product_bounds(low, high, atom.lower, atom.upper)
        if coef < 0:
            low, high = high, low
        lower = None if lower is None or low is None else lower + coef * low
        upper = None if upper is None or high is None else upper + coef * high
    return lower, upper


def _product_bounds(
    low: int | None, high: int | None, other_low: int | None, other_high: int | None
) -> tuple[int | None, int | None]:
    if low is not None and other_low is not None:
        if low >= 0 and other_low >= 0:
            return low * other_low, None if high is None or other_high is None else high * other_high
        if high is not None and other_high is not None:
            corners = (low * other_low, low * other_high, high * other_low, high * other_high)
            return min(corners), max(corners)
    return None, None


# -- what is known -------------------------------------------------------------------------------------


def lower_bound(dim: Dim) -> int | None:
    """The largest number that `dim` is known to be no less than."""
    return dim.lower if isinstance(dim, Sym) else dim


def upper_bound(dim: Dim) -> int | None:
    """The smallest number that `dim` is known to be no more than."""
    return dim.upper if isinstance(dim, Sym) else dim


def at_least(dim: Dim, bound: int) -> bool:
    """Whether `dim >= bound` is provable."""
    low = lower_bound(dim)
    return low is not None and low >= bound


def at_most(dim: Dim, bound: int) -> bool:
    """Whether `dim <= bound` is provable."""
    high = upper_bound(dim)
    return high is not None and high <= bound


def as_dim(value: Dim) -> Dim:
    """`value`, which is known to be the dim of a tensor and hence >= 0."""
    if isinstance(value, Sym) and (value.lower is None or value.lower < 0):
        return Sym(value.terms, 0, value.upper)
    return value


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """`dim` under `bindings`; see `Sym.evaluate`."""
    return dim.evaluate(bindings) if isinstance(dim, Sym) else dim


def equal(a: Dim, b: Dim) -> bool | None:
    """Whether `a == b`: True or False where provable, otherwise None."""
    if a == b:
        return True
    difference = a - b
    if at_least(difference, 1) or at_most(difference, -1):
        return False
    low_a, high_a, low_b, high_b = lower_bound(a), upper_bound(a), lower_bound(b), upper_bound(b)
    apart = (low_a is not None and high_b is not None and low_a > high_b) or (
        low_b is not None and high_a is not None and low_b > high_a
    )
    return False if apart else None


def less(a: Dim, b: Dim) -> bool | None:
    """Whether `a < b`: True or False where provable, otherwise None."""
    difference = b - a
    if at_least(difference, 1):
        return True
    return False if at_most(difference, 0) else None


def product(dims: Iterable[Dim]) -> Dim:
    """The product; 1 of nothing."""
    known = 1
    result: Dim = 1
    for dim in dims:
        if isinstance(dim, Sym):
            result = dim * result
        else:
            known *= dim
    return result * known


def bounded(dim: Dim, lower: int | None, upper: int | None) -> Dim:
    """`dim`, which is known to lie within these bounds."""
    if not isinstance(dim, Sym):
        return dim
    lower = dim.lower if lower is None else lower if dim.lower is None else max(lower, dim.lower)
    upper = dim.upper if upper is None else upper if dim.upper is None else min(upper, dim.upper)
    if lower is not None and lower == upper:
        return lower
    return Sym(dim.terms, lower, upper)
