from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_expand import RemoveNoopExpand

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize("target", ["1, 4", "4", "1", "1, 1"])
def test_a_target_not_above_the_input(target: str) -> None:
    count = len(target.split(","))
    assert_rewrites(
        RemoveNoopExpand(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <int64[{count}] t = {{{target}}}> {{
            a = Expand(x, t)  y = Relu(a)
        }}""",
        ops={"Relu": 1},
    )


def test_its_own_shape() -> None:
    assert_rewrites(
        RemoveNoopExpand(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{
            e = Exp(x)  s = Shape(e)  a = Expand(x, s)  y = Relu(a)
        }}""",
        ops={"Relu": 1},
    )


def test_an_empty_target_in_a_function() -> None:
    assert_rewrites(
        RemoveNoopExpand(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]>
        foo (a) => (b) { t = Constant<value = int64[0] {}>()  c = Expand(a, t)  b = Exp(c) }""",
        ops={"f::foo": 1, "Exp": 1},
    )


def test_another_dim_a_higher_rank_and_a_dim_that_may_be_one() -> None:
    for inputs, target in (("float[1, 4] x", "3, 4"), ("float[4] x", "1, 4"), ("float[N, 4] x", "3, 1")):
        assert_refuses(
            RemoveNoopExpand(),
            f"""{HEAD} g ({inputs}) => (float[A, B] y) <int64[2] t = {{{target}}}> {{
                a = Expand(x, t)  y = Relu(a)
            }}""",
        )


def test_the_shape_of_another_tensor() -> None:
    assert_refuses(
        RemoveNoopExpand(),
        f"""{HEAD} g (float[N, 4] x, float[M, 4] z) => (float[A, B] y) {{
            s = Shape(z)  a = Expand(x, s)  y = Relu(a)
        }}""",
    )


def test_a_declared_shape_that_lies_is_not_believed() -> None:
    assert_refuses(
        RemoveNoopExpand(),
        f"""{HEAD} g (float[1, 4] x) => (float[A, B] y) <float[3, 4] t, int64[2] s = {{3, 4}}> {{
            t = Exp(x)  a = Expand(t, s)  y = Relu(a)
        }}""",
    )
