from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.bypass_shape import BypassShape

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_all_the_way_up_and_the_producers_die() -> None:
    assert_rewrites(
        BypassShape(),
        f"""{HEAD} g (float[N, 4] x) => (int64[1] y, int64 z) {{
            a = Exp(x)  b = Cast<to = 7>(a)  c = Add(b, b)  y = Shape<start = 1>(c)  z = Size(c)
        }}""",
        f"{HEAD} g (float[N, 4] x) => (int64[1] y, int64 z) {{ y = Shape<start = 1>(x)  z = Size(x) }}",
    )


def test_only_through_operands_of_the_same_shape() -> None:
    assert_rewrites(
        BypassShape(),
        f"""{HEAD} g (float[1, 4] v, float[N, 4] x) => (int64[2] y) {{ a = Add(v, x)  y = Shape(a) }}""",
        ops={"Shape": 1},
    )
    assert_refuses(
        BypassShape(), f"{HEAD} g (float[N, M] x) => (int64[2] y) {{ a = Transpose(x)  y = Shape(a) }}"
    )
    assert_refuses(
        BypassShape(),
        f"{HEAD} g (float[N, 4] v, float[M, 4] x) => (int64[2] y) {{ a = Add(v, x)  y = Shape(a) }}",
    )


def test_a_shared_producer_stays() -> None:
    assert_rewrites(
        BypassShape(),
        f"{HEAD} g (float[N, 4] x) => (int64[2] y, float[N, 4] a) {{ a = Exp(x)  y = Shape(a) }}",
        ops={"Shape": 1, "Exp": 1},
    )


def test_out_of_a_branch() -> None:
    assert_rewrites(
        BypassShape(),
        f"""{HEAD} g (float[N] x, bool c) => (int64[1] y) {{
            a = Exp(x)
            y = If(c) <
                then_branch = t () => (int64[1] p) {{ p = Shape(a) }},
                else_branch = e () => (int64[1] q) {{ r = Neg(a)  q = Shape(r) }}
            >
        }}""",
        ops={"If": 1, "Shape": 2},
    )


def test_a_declared_shape_that_lies_is_not_believed() -> None:
    assert_refuses(
        BypassShape(),
        f"""{HEAD} g (float[N, 4] x) => (int64[2] y) <float[N, 4] t> {{
            t = Concat<axis = 0>(x, x)  y = Shape(t)
        }}""",
    )


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(
        BypassShape(),
        f"{HEAD} g (float[N, 4] x) => (int64[2] y) {{ a = Exp(x)  y = Shape(a) }}",
        keep=["y"],
    )


CONV = """
g (float[N, 1, 8, 8] x) => (float[N, 2, 8, 8] y, int64[4] s)
<float[2, 1, 1, 1] w = {1, 2}, float[2] c = {1, 1}> {
    a = Conv(x, w)
    b = BatchNormalization(a, c, c, c, c)
"""


def test_not_between_two_that_could_be_fused() -> None:
    """The furthest tensor upstream is the Conv's output, which only BatchNormalization reads."""
    assert_refuses(BypassShape(), f"{HEAD} {CONV} y = Relu(b)  z = Exp(y)  s = Shape(y) }}")
    done = assert_rewrites(BypassShape(), f"{HEAD} {CONV} y = Relu(b)  s = Shape(a) }}")
    (shape,) = (n for n in done.model.graph.nodes if n.op == "Shape")
    assert shape.inputs[0].name == "y"


def test_never_behind_what_needs_the_shape() -> None:
    text = f"""{HEAD} g (float[N, 1, 8, 8] x) => (float[N, 2, 8, 8] y)
        <float[2, 1, 1, 1] w = {{1, 2}}> {{
            a = Conv(x, w)  s = Shape(a)  e = Expand(a, s)  y = Relu(e)
        }}"""
    assert_refuses(BypassShape(), text)
