from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_single_concat import RemoveSingleConcat

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize("op", ["Concat<axis = 0>", "Sum", "Max", "Min", "Mean"])
def test_one_operand(op: str) -> None:
    assert_rewrites(
        RemoveSingleConcat(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ a = Relu(x)  y = {op}(a) }}",
        ops={"Relu": 1},
    )


def test_two_operands_or_one_twice() -> None:
    assert_refuses(
        RemoveSingleConcat(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ a = Max(x, x)  y = Relu(a) }}",
    )


def test_an_operator_of_another_domain() -> None:
    assert_refuses(
        RemoveSingleConcat(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) { a = f.Sum(x)  y = Relu(a) }
        <domain: "f", opset_import: ["" : 17]> Sum (a) => (b) { b = Neg(a) }""",
    )


def test_an_input_that_is_returned() -> None:
    assert_refuses(
        RemoveSingleConcat(), f"{HEAD} g (float[N] x) => (float[N] y) {{ y = Sum(x) }}", "an input"
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        RemoveSingleConcat(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
            y = If(c) <
                then_branch = t () => (float[N] p) {{ d = Max(x)  p = Exp(d) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )
