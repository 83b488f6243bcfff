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

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

_MAX_TERMS: Final = 48
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
    """An integer expression that is not a known int. Immutable and hashable; see the module.

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
        low, high = _lower(other), _upper(other)
        return _build(
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
                return _build({mono: coef * other for mono, coef in self.terms}, low, high)
            return Sym(tuple((mono, -coef) for mono, coef in self.terms), low, high)
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                mono = tuple(sorted(left + right, key=_atom_key)) if left and right else left + right
                terms[mono] = terms.get(mono, 0) + a * b
        return _build(terms, *_product_bounds(self.lower, self.upper, other.lower, other.upper))

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
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


def _operation(op: str, args: tuple[Dim, ...], lower: int | None, upper: int | None) -> Sym:
    """The opaque atom `op(args)`."""
    key = f"{op}({', '.join(map(str, args))})"
    if len(key) > _MAX_TEXT:
        return fresh_int(lower, upper)
    return Sym((((Atom(key, op=op, args=args, lower=lower, upper=upper),), 1),), lower, upper)


def _build(terms: dict[Monomial, int], lower: int | None, upper: int | None) -> Dim:
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
    if (
        len(kept) > _MAX_TERMS
        or len(kept[0][0]) > _MAX_TERMS
        or any(abs(coef) > _MAX_INT for _, coef in kept)
    ):
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


def _lower(dim: Dim) -> int | None:
    return dim.lower if isinstance(dim, Sym) else dim


def _upper(dim: Dim) -> int | None:
    return dim.upper if isinstance(dim, Sym) else dim


def at_least(dim: Dim, bound: int) -> bool:
    """Whether `dim >= bound` is provable."""
    low = _lower(dim)
    return low is not None and low >= bound


def at_most(dim: Dim, bound: int) -> bool:
    """Whether `dim <= bound` is provable."""
    high = _upper(dim)
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
    low_a, high_a, low_b, high_b = _lower(a), _upper(a), _lower(b), _upper(b)
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


# -- division ------------------------------------------------------------------------------------------


def floordiv(a: Dim, b: Dim) -> Dim:
    """`a // b`, rounded down. `b` must not be the int 0."""
    if isinstance(b, Sym):
        return _floordiv_by_sym(a, b)
    if not isinstance(a, Sym):
        return a // b
    if b < 0:
        a, b = -a, -b
    if b == 1 or not isinstance(a, Sym):
        return a // b if not isinstance(a, Sym) else a
    low = None if a.lower is None else a.lower // b
    high = None if a.upper is None else a.upper // b
    if low is not None and low == high:
        return low
    if a.terms[0][1] < 0:  # -x // b == -((x + b - 1) // b)
        return _bounded(-floordiv(-a + (b - 1), b), low, high)
    # Multiples of b leave the fraction; what stays has coefficients in (-b/2, b/2] and a constant in [0, b).
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for mono, coef in a.terms:
        quotient, remainder = divmod(coef, b)
        if mono and 2 * remainder > b:
            quotient, remainder = quotient + 1, remainder - b
        whole[mono], rest[mono] = quotient, remainder
    part = _fraction(_build(rest, None, None), b)
    result = _build(whole, None, None) + part
    return _bounded(result, low, high)


def _fraction(a: Dim, b: int) -> Dim:
    """`a // b` for `b > 1` as one atom, in lowest terms."""
    if not isinstance(a, Sym):
        return a // b
    if a.terms[0][1] < 0:
        return -floordiv(-a + (b - 1), b)
    shared = math.gcd(b, *(coef for mono, coef in a.terms if mono))
    if shared > 1:  # (g*p + k) // (g*c) == (p + k//g) // c
        a = _build({mono: coef // shared for mono, coef in a.terms}, None, None)
        return floordiv(a, b // shared)
    inner = a.terms[0][0][0] if len(a.terms[0][0]) == 1 and a.terms[0][1] == 1 else None
    alone = len(a.terms) == 1 or (len(a.terms) == 2 and not a.terms[1][0])
    if inner is not None and alone and inner.op == "floor" and isinstance(inner.args[1], int):
        offset = a.terms[1][1] if len(a.terms) == 2 else 0  # (x//c + k) // b == (x + k*c) // (b*c)
        return floordiv(inner.args[0] + offset * inner.args[1], inner.args[1] * b)
    low = None if a.lower is None else a.lower // b
    high = None if a.upper is None else a.upper // b
    return _operation("floor", (a, b), low, high)


def _floordiv_by_sym(a: Dim, b: Sym) -> Dim:
    if a == 0:
        return 0
    if at_most(b, -1):
        negated = -b
        assert isinstance(negated, Sym)
        return _floordiv_by_sym(-a, negated)
    if at_least(b, 1):
        exact = _divide(a, b)
        if exact is not None:
            return exact
        if at_least(a, 0) and less(a, b):
            return 0
        if len(b.terms) == 1 and isinstance(a, Sym):  # what the monomial b divides leaves the fraction
            whole: Dim = 0
            for mono, coef in a.terms:
                quotient = _divide(_build({mono: coef}, None, None), b)
                if quotient is not None:
                    whole = whole + quotient
            if whole != 0:
                return whole + _floordiv_by_sym(a - whole * b, b)
        common = _common_factor(a, b)
        if common != 1 and at_least(common, 1):
            reduced_a, reduced_b = _divide(a, common), _divide(b, common)
            if reduced_a is not None and reduced_b is not None:
                return floordiv(reduced_a, reduced_b)
    nonnegative = at_least(a, 0) and at_least(b, 0)
    return _operation("floor", (a, b), 0 if nonnegative else None, _upper(a) if nonnegative else None)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """`a / b`, rounded up."""
    return -floordiv(-a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """`a % b` with the sign of `b`, as in Python. `b` must not be the int 0."""
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return a % b
    result = a - floordiv(a, b) * b
    if isinstance(b, int):
        return _bounded(result, 0, b - 1) if b > 0 else _bounded(result, b + 1, 0)
    if at_least(b, 1):
        return _bounded(result, 0, None if b.upper is None else b.upper - 1)
    return result


def truncdiv(a: Dim, b: Dim) -> Dim | None:
    """`a / b` rounded towards 0 as ONNX does for integers; None where the signs are not known."""
    if b == 0:
        return None
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return -(-a // b) if (a < 0) != (b < 0) else a // b
    if at_most(b, -1):
        a, b = -a, -b
    if at_least(b, 1):
        if at_least(a, 0):
            return floordiv(a, b)
        if at_most(a, 0):
            return -floordiv(-a, b)
        return _divide(a, b)
    if at_least(a, 0) and at_least(b, 0):  # the divisor is not 0 in a run that does not fail
        return floordiv(a, b)
    return None


def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """`a / b` given that `b` is not 0 and divides `a`; None when it is the int 0 or cannot divide.

    More than `floordiv` can say: the premises allow cancelling factors that might be 0 in general.
    """
    if b == 0:
        return None
    quotient = _divide(a, b)
    if quotient is not None:
        return quotient
    common = _common_factor(a, b)
    reduced_a, reduced_b = _divide(a, common), _divide(b, common)
    if reduced_a is not None and reduced_b is not None:
        a, b = reduced_a, reduced_b
    if not isinstance(a, Sym) and not isinstance(b, Sym) and a % b:
        return None
    return floordiv(a, b)


def _divide(a: Dim, b: Dim) -> Dim | None:
    """The polynomial `q` with `q * b == a`, if there is one."""
    if not isinstance(b, Sym):
        if not isinstance(a, Sym):
            return a // b if b and a % b == 0 else None
        if b == 0 or any(coef % b for _, coef in a.terms):
            return None
        return _build({mono: coef // b for mono, coef in a.terms}, None, None)
    if a == 0:
        return 0
    lead_mono, lead_coef = b.terms[0]
    quotient: dict[Monomial, int] = {}
    for _ in range(_MAX_TERMS):
        if a == 0:
            return _build(quotient, None, None)
        if not isinstance(a, Sym):
            return None
        mono, coef = a.terms[0]
        left = _without(mono, lead_mono)
        if left is None or coef % lead_coef:
            return None
        quotient[left] = quotient.get(left, 0) + coef // lead_coef
        a = a - _build({left: coef // lead_coef}, None, None) * b
    return None


def _without(mono: Monomial, factors: Monomial) -> Monomial | None:
    """`mono / factors`, if `factors` divide it."""
    left = list(mono)
    for atom in factors:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _common_factor(a: Dim, b: Dim) -> Dim:
    """The largest monomial (with coefficient) that divides every term of both."""
    terms = [
        *(a.terms if isinstance(a, Sym) else (((), a),)),
        *(b.terms if isinstance(b, Sym) else (((), b),)),
    ]
    shared = list(terms[0][0])
    for mono, _ in terms[1:]:
        left = list(mono)
        kept = []
        for atom in shared:
            if atom in left:
                left.remove(atom)
                kept.append(atom)
        shared = kept
    return _build({tuple(shared): math.gcd(*(coef for _, coef in terms))}, None, None)


def _bounded(dim: Dim, lower: int | None, upper: int | None) -> Dim:
    """`dim`, which is known to lie within these bounds."""
    if not isinstance(dim, Sym):
        return dim
    lower = dim.lower if lower is None else lower if dim.lower is None else max(lower, dim.lower)
    upper = dim.upper if upper is None else upper if dim.upper is None else min(upper, dim.upper)
    if lower is not None and lower == upper:
        return lower
    return Sym(dim.terms, lower, upper)


# -- the other operations ------------------------------------------------------------------------------


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
    lows, highs = [_lower(d) for d in kept], [_upper(d) for d in kept]
    known_lows, known_highs = [x for x in lows if x is not None], [x for x in highs if x is not None]
    if op == "max":
        low = max(known_lows, default=None)
        high = max(known_highs) if len(known_highs) == len(kept) else None
    else:
        low = min(known_lows) if len(known_lows) == len(kept) else None
        high = min(known_highs, default=None)
    return _operation(op, tuple(kept), low, high)


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
    return _operation("broadcast", tuple(sorted(parts, key=str)), 0, None)


def clamp_index(index: Dim, dim: Dim) -> Dim:
    """Where a slice bound falls on an axis of length `dim`: in [0, dim], negative ones from the end."""
    if at_least(index, 0):
        return minimum(index, dim)
    if at_most(index, -1):
        return maximum(dim + index, 0)
    if isinstance(index, Sym) and index == -dim:  # 0 as -0, and 0 as dim - dim
        return 0
    return _operation("clamp", (index, dim), 0, _upper(dim))
