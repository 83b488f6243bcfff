from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_slice import RemoveNoopSlice

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def sliced(start: int, end: int, step: int = 1, axis: int = 1, shape: str = "N, 4") -> str:
    return f"""{HEAD} g (float[{shape}] x) => (float[A, B] y)
    <int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{{axis}}}, int64[1] k = {{{step}}}> {{
        r = Slice(x, s, e, a, k)  y = Relu(r)
    }}"""


@pytest.mark.parametrize(
    ("start", "end", "axis"),
    [
        (0, 4, 1),
        (0, 9, 1),
        (-4, 4, -1),
        (-99, 4, 1),
        (0, 2**63 - 1, 0),
        (0, 2**31 - 1, 0),
        (-(2**63), 2**63 - 1, 0),
    ],
)
def test_full_range(start: int, end: int, axis: int) -> None:
    assert_rewrites(RemoveNoopSlice(), sliced(start, end, axis=axis), ops={"Relu": 1})


@pytest.mark.parametrize(
    ("start", "end", "step", "axis"),
    [
        (0, 3, 1, 1),
        (1, 4, 1, 1),
        (0, 4, 2, 1),
        (-1, -(2**63), -1, 1),
        (0, -1, 1, 0),
        (0, 5, 1, 0),
        (-3, 9, 1, 0),
    ],
)
def test_a_part(start: int, end: int, step: int, axis: int) -> None:
    assert_refuses(RemoveNoopSlice(), sliced(start, end, step, axis))


def test_until_the_length_of_the_axis() -> None:
    assert_rewrites(
        RemoveNoopSlice(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        <int64[1] s = {{0}}, int64[1] one = {{1}}, int64[1] a = {{0}}> {{
            t = Exp(x)  d = Shape(t)  e = Slice(d, a, one)  r = Slice(x, s, e, a)  y = Relu(r)
        }}""",
        ops={"Relu": 1},
    )


def test_until_the_length_of_another_tensor() -> None:
    assert_refuses(
        RemoveNoopSlice(),
        f"""{HEAD} g (float[N, 4] x, float[M] v) => (float[A, 4] y) <int64[1] s = {{0}}> {{
            e = Shape(v)  r = Slice(x, s, e)  y = Relu(r)
        }}""",
    )


def test_a_declared_shape_that_lies_is_not_believed() -> None:
    lying = sliced(0, 3).replace("<int64[1] s", "<float[N, 3] t, int64[1] s")
    lying = lying.replace("r = Slice(x,", "t = Exp(x)  r = Slice(t,")
    assert_refuses(RemoveNoopSlice(), lying)


def test_attributes_of_opset_9() -> None:
    head = '<ir_version: 7, opset_import: ["" : 9]>'
    assert_rewrites(
        RemoveNoopSlice(),
        f"""{head} g (float[N, 4] x) => (float[N, 4] y) {{
            a = Slice<starts = [0, 0], ends = [2147483647, 4]>(x)
            b = Slice<starts = [0], ends = [4], axes = [1]>(a)  y = Relu(b)
        }}""",
        ops={"Relu": 1},
    )
    assert_refuses(
        RemoveNoopSlice(),
        f"""{head} g (float[N, 4] x) => (float[A, B] y) {{
            a = Slice<starts = [0, 1], ends = [2147483647, 4]>(x)  y = Relu(a)
        }}""",
    )


def test_unknown_shapes_in_a_function() -> None:
    assert_rewrites(
        RemoveNoopSlice(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) {
            s = Constant<value_ints = [0]>()  e = Constant<value = int64[1] {9223372036854775807}>()
            z = Constant<value = int64[1] {0}>()
            c = Slice(a, z, e)  b = Exp(c)
        }""",
        ops={"f::foo": 1, "Exp": 1},
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        RemoveNoopSlice(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) <int64[1] s = {{0}}, int64[1] e = {{9999999999}}> {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ d = Slice(x, s, e)  p = Exp(d) }},
                else_branch = e1 () => (float[N, 4] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )
