"""Symbolic integers: canonical, and right for every value of their symbols."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph import dims
from graphopt.graph.dims import Dim, Sym, evaluate, symbol

N, S, H = symbol("N"), symbol("S"), symbol("H")
NAMES = ("N", "S", "H")
BINDINGS = st.fixed_dictionaries({name: st.integers(0, 12) for name in NAMES})


class Skip(Exception):
    """An operation that is not defined on these operands."""


def _apply(op: str, a: Dim, b: Dim) -> Dim:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "max":
            return dims.maximum(a, b)
        case "min":
            return dims.minimum(a, b)
        case "clamp":
            if not dims.at_least(b, 0):
                raise Skip
            return dims.clamp_index(a, b)
        case _:
            # Divisors: what is provably not 0.
            if not (dims.at_least(b, 1) or dims.at_most(b, -1)):
                raise Skip
            return dims.mod(a, b) if op == "%" else dims.ceildiv(a, b) if op == "ceil" else a // b


def _apply_ints(op: str, a: int, b: int) -> int:
    match op:
        case "max":
            return max(a, b)
        case "min":
            return min(a, b)
        case "clamp":
            return min(max(a + b if a < 0 else a, 0), b)
        case "ceil":
            return -(-a // b)
    return int(eval(f"a {op} b"))


OPS = st.sampled_from(["+", "-", "*", "//", "%", "ceil", "max", "min", "clamp"])
LEAVES = st.one_of(st.sampled_from(NAMES), st.integers(-3, 16))
EXPRESSIONS = st.recursive(LEAVES, lambda inner: st.tuples(OPS, inner, inner), max_leaves=7)


def build(expression: object) -> Dim:
    if isinstance(expression, tuple):
        op, left, right = expression
        return _apply(op, build(left), build(right))
    return symbol(expression) if isinstance(expression, str) else int(expression)  # type: ignore[call-overload]


def compute(expression: object, bindings: dict[str, int]) -> int:
    if isinstance(expression, tuple):
        op, left, right = expression
        return _apply_ints(op, compute(left, bindings), compute(right, bindings))
    return bindings[expression] if isinstance(expression, str) else int(expression)  # type: ignore[call-overload]


@settings(max_examples=600, deadline=None)
@given(EXPRESSIONS, BINDINGS)
def test_evaluates_like_the_integers(expression: object, bindings: dict[str, int]) -> None:
    try:
        dim = build(expression)
    except Skip:
        return
    if isinstance(dim, Sym) and dim.is_anonymous:
        return
    actual = compute(expression, bindings)
    assert evaluate(dim, bindings) == actual
    if isinstance(dim, Sym):
        assert dim.lower is None or dim.lower <= actual
        assert dim.upper is None or actual <= dim.upper


@settings(max_examples=400, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, BINDINGS)
def test_decisions_hold_for_all_values(left: object, right: object, bindings: dict[str, int]) -> None:
    try:
        a, b = build(left), build(right)
    except Skip:
        return
    x, y = compute(left, bindings), compute(right, bindings)
    if a == b:
        assert x == y
        assert hash(a) == hash(b)
    same, below = dims.equal(a, b), dims.less(a, b)
    assert same is None or same == (x == y)
    assert below is None or below == (x < y)
    quotient = dims.truncdiv(a, b)
    if quotient is not None and y != 0 and not (isinstance(quotient, Sym) and quotient.is_anonymous):
        assert evaluate(quotient, bindings) == int(x / y)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, BINDINGS)
def test_exact_quotients(left: object, right: object, bindings: dict[str, int]) -> None:
    try:
        a, b = build(left), build(right)
    except Skip:
        return
    x, y = compute(left, bindings), compute(right, bindings)
    quotient = dims.exact_quotient(a * b, b)
    if y != 0 and quotient is not None and not (isinstance(quotient, Sym) and quotient.is_anonymous):
        assert evaluate(quotient, bindings) == x


@given(st.permutations([N, S, H, N, 3, -2, N * S, S * N]))
def test_sums_and_products_are_canonical(parts: list[Dim]) -> None:
    total: Dim = 0
    for part in parts:
        total = total + part
    assert total == N * 2 + S + H + N * S * 2 + 1
    assert hash(total) == hash(N * 2 + S + H + N * S * 2 + 1)
    assert dims.product(parts[:3]) == dims.product(reversed(parts[:3]))


def test_sizes_that_exporters_compute() -> None:
    assert dims.exact_quotient(N * S * 768, N * S * 12) == 64
    assert (N * S * 768) // 64 == N * S * 12
    assert (H * 2) // 2 == H
    assert ((H - 1) // 2 + 1 - 1) // 2 + 1 == (H + 3) // 4  # two convolutions of stride 2
    padding = (7 - H % 7) % 7  # Swin pads to whole windows
    assert (padding + H) % 7 == 0
    assert dims.at_least(padding, 0)
    assert dims.at_most(padding, 6)
    assert ((padding + H) // 7) * 7 == padding + H


def test_zero_is_a_size() -> None:
    assert (N * S) // S != N
    assert dims.equal(N, 0) is None
    assert dims.equal(N, -1) is False
    assert dims.maximum(N, 1) != N
    assert (N * (S + 1)) // (S + 1) == N


def test_minimum_and_maximum_decide_where_they_can() -> None:
    assert dims.minimum(N, N + 3) == N
    assert dims.maximum(N, 0, N - 1) == N
    assert dims.minimum(N, S) == dims.minimum(S, N)
    assert dims.minimum(dims.minimum(N, S), H) == dims.minimum(N, dims.minimum(H, S))


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [(N, 1, N), (1, N, N), (N, N, N), (N, 5, 5), (5, N, 5), (N, S + 2, S + 2), (3, 3, 3), (0, 1, 0)],
)
def test_broadcast(a: Dim, b: Dim, result: Dim) -> None:
    assert dims.broadcast(a, b) == result


def test_broadcast_of_undecided_dims() -> None:
    both = dims.broadcast(N, S)
    assert both == dims.broadcast(S, N)
    assert dims.broadcast(both, S) == both
    assert evaluate(both, {"N": 1, "S": 4}) == 4
    assert dims.broadcast(dims.minimum(512, N), N) == N
    assert isinstance(dims.broadcast(2, 3), Sym)  # contradictory: unknown


def test_symbols_never_equal_ints() -> None:
    assert N != 1
    assert N - N == 0
    assert not isinstance(N * 0, Sym)
    assert isinstance(dims.fresh_dim(), Sym)
    assert dims.fresh_dim() != dims.fresh_dim()


def test_names_that_look_like_expressions_are_opaque() -> None:
    assert symbol("max(0, N)") != dims.maximum(0, N - 5)
    assert symbol("N + S") != N + S
    assert symbol("floor(N, 2)") != N // 2
    assert symbol("N*S").name == "N*S"
    assert (N * S).name is None


def test_expressions_do_not_grow_without_end() -> None:
    dim: Dim = N
    for i in range(60):
        dim = (dim * dim + i) // 3 + dim
    assert len(str(dim)) < 2000
    wide: Dim = 1
    for i in range(40):
        wide = wide * (symbol(f"a{i}") + symbol(f"b{i}"))
    assert isinstance(wide, Sym)
    assert wide.lower == 0


def test_binding_what_is_missing_raises() -> None:
    with pytest.raises(KeyError):
        (N + S).evaluate({"N": 1})
