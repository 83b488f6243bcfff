from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_squeezes import MergeSqueezes, squeezed_axes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def squeezes(a: int, b: int, tail: str = "y = Relu(q)") -> str:
    return f"""{HEAD} g (float[1, N, 1, 4] x) => (float[N, 4] y)
    <int64[1] a = {{{a}}}, int64[1] b = {{{b}}}> {{ p = Squeeze(x, a)  q = Squeeze(p, b)  {tail} }}"""


@pytest.mark.parametrize(("a", "b"), [(0, 1), (2, 0), (-2, 0), (0, -2)])
def test_two_become_one(a: int, b: int) -> None:
    done = assert_rewrites(MergeSqueezes(), squeezes(a, b), ops={"Squeeze": 1, "Relu": 1})
    (axes,) = done.proto.graph.initializer
    assert list(np.frombuffer(axes.raw_data, np.int64)) == [0, 2]


def test_attributes_of_opset_11() -> None:
    done = assert_rewrites(
        MergeSqueezes(),
        """<ir_version: 7, opset_import: ["" : 11]>
        g (float[1, N, 1] x) => (float[N] y) { p = Squeeze<axes = [0]>(x)  y = Squeeze<axes = [1]>(p) }""",
        ops={"Squeeze": 1},
    )
    assert list(done.proto.graph.node[0].attribute[0].ints) == [0, 2]


def test_all_axes_include_those_before() -> None:
    assert_rewrites(
        MergeSqueezes(),
        f"""{HEAD} g (float[1, 3, 1] x) => (float[3] y) <int64[1] a = {{0}}> {{
            p = Squeeze(x, a)  y = Squeeze(p)
        }}""",
        f"{HEAD} g (float[1, 3, 1] x) => (float[3] y) {{ y = Squeeze(x) }}",
    )


def test_another_reader_and_an_output() -> None:
    assert_refuses(
        MergeSqueezes(), squeezes(0, 1, "r = Exp(p)  s = ReduceMax(r)  y = Add(q, s)"), "another reader"
    )
    assert_refuses(
        MergeSqueezes(),
        f"""{HEAD} g (float[1, 3, 1] x) => (float[3, 1] p, float[3] y)
        <int64[1] a = {{0}}, int64[1] b = {{1}}> {{ p = Squeeze(x, a)  y = Squeeze(p, b) }}""",
        "is a graph output",
    )


def test_unknown_rank_in_a_function() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[1, N, 1] x) => (float[N] y) {{ y = f.foo(x) }}
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) {{
            i = Constant<value = int64[1] {{0}}>()  j = Constant<value = int64[1] {{{}}}>()
            c = Squeeze(a, i)  d = Squeeze(c, j)  b = Exp(d)
        }}"""
    assert_refuses(MergeSqueezes(), text.format("-1"), "from the back")


def test_axes_agree_with_numpy() -> None:
    x = np.zeros((1, 2, 1, 1, 3, 1))
    ones = [0, 2, 3, 5]
    for first in itertools.chain.from_iterable(itertools.combinations(ones, n) for n in (1, 2)):
        left = np.squeeze(x, first)
        for second in [i for i, d in enumerate(left.shape) if d == 1]:
            merged = squeezed_axes(list(first), [second])
            assert np.squeeze(x, tuple(merged)).shape == np.squeeze(left, second).shape
            assert all(x.shape[i] == 1 for i in merged)
