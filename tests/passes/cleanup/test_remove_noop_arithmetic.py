from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt.testing import assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.remove_noop_arithmetic import RemoveNoopArithmetic, is_neutral

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'
# Signed zeros, infinities, NaN, a denormal.
HARD = {"x": np.array([[0.0, -0.0, np.inf, -np.inf], [np.nan, 1e-45, -1.5, 3e38]], np.float32)}


@pytest.mark.parametrize("expression", ["Mul(x, one)", "Mul(one, x)", "Div(x, one)", "Pow(x, one)",
                                        "Sub(x, zero)", "Add(x, minus)", "Add(minus, x)"])  # fmt: skip
def test_floats_bit_for_bit(expression: str) -> None:
    assert_rewrites(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        <float one = {{1}}, float zero = {{0}}, float[1] minus = {{-0.0}}> {{ a = {expression}  y = Neg(a) }}""",
        ops={"Neg": 1},
        inputs=HARD,
    )


@pytest.mark.parametrize("expression", ["Add(x, zero)", "Add(zero, x)", "Sub(x, minus)", "Sub(zero, x)",
                                        "Div(one, x)", "Pow(one, x)", "Mul(x, zero)"])  # fmt: skip
def test_floats_that_change(expression: str) -> None:
    assert_refuses(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        <float one = {{1}}, float zero = {{0}}, float minus = {{-0.0}}> {{ a = {expression}  y = Neg(a) }}""",
    )


@pytest.mark.parametrize("expression", ["Add(x, zero)", "Add(zero, x)", "Sub(x, zero)", "Mul(x, one)",
                                        "Div(x, one)", "BitwiseAnd(x, ones)", "BitwiseOr(zero, x)",
                                        "BitwiseXor(x, zero)"])  # fmt: skip
def test_integers(expression: str) -> None:
    assert_rewrites(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (int64[N, 4] x) => (int64[N, 4] y)
        <int64 one = {{1}}, int64 zero = {{0}}, int64 ones = {{-1}}> {{ a = {expression}  y = Neg(a) }}""",
        ops={"Neg": 1},
    )


def test_a_power_of_an_integer_goes_through_a_float() -> None:
    assert_refuses(
        RemoveNoopArithmetic(),
        f"{HEAD} g (int64[N] x) => (int64[N] y) <int64 one = {{1}}> {{ a = Pow(x, one)  y = Neg(a) }}",
    )


@pytest.mark.parametrize("expression", ["And(x, yes)", "And(yes, x)", "Or(x, no)", "Xor(no, x)"])
def test_booleans(expression: str) -> None:
    assert_rewrites(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (bool[N] x) => (bool[N] y) <bool yes = {{1}}, bool no = {{0}}> {{
            a = {expression}  y = Not(a)
        }}""",
        ops={"Not": 1},
    )


def test_booleans_that_change() -> None:
    for expression in ("And(x, no)", "Or(x, yes)", "Xor(x, yes)"):
        assert_refuses(
            RemoveNoopArithmetic(),
            f"""{HEAD} g (bool[N] x) => (bool[N] y) <bool yes = {{1}}, bool no = {{0}}> {{
                a = {expression}  y = Not(a)
            }}""",
        )


def test_broadcasting_is_no_noop() -> None:
    for shape, dims in (("4", "1, 4"), ("N, 1", "1, 3"), ("N", "4")):
        ones = "1, 1, 1, 1, 1"[: 3 * int(dims[-1]) - 2]
        assert_refuses(
            RemoveNoopArithmetic(),
            f"""{HEAD} g (float[{shape}] x) => (float[A, B] y) <float[{dims}] one = {{{ones}}}> {{
                a = Mul(x, one)  y = Relu(a)
            }}""".replace("float[A, B]", "float[A]" if dims == "4" else "float[A, B]"),
        )


def test_a_vector_of_ones() -> None:
    assert_rewrites(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <float[4] one = {{1, 1, 1, 1}}> {{
            a = Relu(x)  y = Mul(one, a)
        }}""",
        ops={"Relu": 1},
    )
    assert_refuses(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (float[N, 2] x) => (float[N, 2] y) <float[2] one = {{1, 2}}> {{
            a = Relu(x)  y = Mul(one, a)
        }}""",
    )


def test_an_unknown_rank_needs_a_scalar() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) {{ y = f.foo(x) }}
        <domain: "f", opset_import: ["" : 17]>
        foo (a) => (b) {{ one = Constant<value = float{} {{1}}>()  c = Mul(a, one)  b = Exp(c) }}"""
    assert_rewrites(RemoveNoopArithmetic(), text.format(""), ops={"f::foo": 1, "Exp": 1})
    assert_refuses(RemoveNoopArithmetic(), text.format("[1]"))


def test_an_overridable_one() -> None:
    model = parse(f"{HEAD} g (float[N] x, float one) => (float[N] y) {{ a = Mul(x, one)  y = Relu(a) }}")
    model.graph.initializer.append(onnx.helper.make_tensor("one", 1, [], [1.0]))
    assert_refuses(RemoveNoopArithmetic(), model)


def test_in_a_branch_that_returns_it() -> None:
    assert_refuses(
        RemoveNoopArithmetic(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) <float one = {{1}}> {{
            y = If(c) <
                then_branch = t () => (float[N] p) {{ p = Mul(x, one) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
        "an input",
    )


def test_a_function_called_mul() -> None:
    assert_refuses(
        RemoveNoopArithmetic(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) <float one = {1}> { a = f.Mul(x, one)  y = Relu(a) }
        <domain: "f", opset_import: ["" : 17]> Mul (a, b) => (c) { d = Add(a, b)  c = Neg(d) }""",
    )


@pytest.mark.parametrize(
    ("op", "value", "dtype", "neutral"),
    [
        ("Mul", np.float16(1), 10, True),
        ("Mul", ml_dtypes.bfloat16(1), 16, True),
        ("Add", ml_dtypes.bfloat16(-0.0), 16, True),
        ("Add", ml_dtypes.bfloat16(0.0), 16, False),
        ("Mul", np.float32(1.0000001), 1, False),
        ("BitwiseAnd", np.uint8(255), 2, True),
        ("BitwiseAnd", np.int8(127), 3, False),
        ("BitShift", np.uint8(0), 2, True),
        ("Add", np.complex64(0), 14, False),
    ],
)
def test_neutral_elements(op: str, value: np.generic, dtype: int, neutral: bool) -> None:
    assert is_neutral(op, value, dtype) is neutral
