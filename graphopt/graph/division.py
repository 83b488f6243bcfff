"""Division of symbolic integers."""

from __future__ import annotations

import math

from graphopt.graph.sym import (
    MAX_TERMS,
    Dim,
    Monomial,
    Sym,
    at_least,
    at_most,
    bounded,
    build,
    less,
    operation,
    upper_bound,
)


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
        return bounded(-floordiv(-a + (b - 1), b), low, high)
    # Multiples of b leave the fraction; what stays has coefficients in (-b/2, b/2] and a constant in [0, b).
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for mono, coef in a.terms:
        quotient, remainder = divmod(coef, b)
        if mono and 2 * remainder > b:
            quotient, remainder = quotient + 1, remainder - b
        whole[mono], rest[mono] = quotient, remainder
    part = _fraction(build(rest, None, None), b)
    result = build(whole, None, None) + part
    return bounded(result, low, high)


def _fraction(a: Dim, b: int) -> Dim:
    """`a // b` for `b > 1` as one atom, in lowest terms."""
    if not isinstance(a, Sym):
        return a // b
    if a.terms[0][1] < 0:
        return -floordiv(-a + (b - 1), b)
    shared = math.gcd(b, *(coef for mono, coef in a.terms if mono))
    if shared > 1:  # (g*p + k) // (g*c) == (p + k//g) // c
        a = build({mono: coef // shared for mono, coef in a.terms}, None, None)
        return floordiv(a, b // shared)
    inner = a.terms[0][0][0] if len(a.terms[0][0]) == 1 and a.terms[0][1] == 1 else None
    alone = len(a.terms) == 1 or (len(a.terms) == 2 and not a.terms[1][0])
    if inner is not None and alone and inner.op == "floor" and isinstance(inner.args[1], int):
        offset = a.terms[1][1] if len(a.terms) == 2 else 0  # (x//c + k) // b == (x + k*c) // (b*c)
        return floordiv(inner.args[0] + offset * inner.args[1], inner.args[1] * b)
    low = None if a.lower is None else a.lower // b
    high = None if a.upper is None else a.upper // b
    return operation("floor", (a, b), low, high)


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
                quotient = _divide(build({mono: coef}, None, None), b)
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
    return operation("floor", (a, b), 0 if nonnegative else None, upper_bound(a) if nonnegative else None)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """`a / b`, rounded up."""
    return -floordiv(-a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """`a % b` with the sign of `b`, as in Python. `b` must not be the int 0."""
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return a % b
    result = a - floordiv(a, b) * b
    if isinstance(b, int):
        return bounded(result, 0, b - 1) if b > 0 else bounded(result, b + 1, 0)
    if at_least(b, 1):
        return bounded(result, 0, None if b.upper is None else b.upper - 1)
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
        return build({mono: coef // b for mono, coef in a.terms}, None, None)
    if a == 0:
        return 0
    lead_mono, lead_coef = b.terms[0]
    quotient: dict[Monomial, int] = {}
    for _ in range(MAX_TERMS):
        if a == 0:
            return build(quotient, None, None)
        if not isinstance(a, Sym):
            return None
        mono, coef = a.terms[0]
        left = _without(mono, lead_mono)
        if left is None or coef % lead_coef:
            return None
        quotient[left] = quotient.get(left, 0) + coef // lead_coef
        a = a - build({left: coef // lead_coef}, None, None) * b
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
    return build({tuple(shared): math.gcd(*(coef for _, coef in terms))}, None, None)
