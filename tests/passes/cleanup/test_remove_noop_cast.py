from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_cast import RemoveNoopCast

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_cast_and_cast_like_to_the_same_type() -> None:
    assert_rewrites(
        RemoveNoopCast(),
        f"""{HEAD} g (float[N] x, float[N] z) => (float[N] y) {{
            s = Shape(x)  t = Cast<to = 7>(s)  a = Cast<to = 1>(x)  b = CastLike(a, z)  c = Expand(b, t)
            y = Cast<to = 1>(c)
        }}""",
        ops={"Shape": 1, "Expand": 1},
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        RemoveNoopCast(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
            y = If(c) <
                then_branch = t () => (float[N] p) {{ d = Cast<to = 1>(x)  p = Exp(d) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )


def test_another_type() -> None:
    assert_refuses(RemoveNoopCast(), f"{HEAD} g (float[N] x) => (double[N] y) {{ y = Cast<to = 11>(x) }}")


def test_the_type_of_a_function_argument_is_unknown() -> None:
    assert_refuses(
        RemoveNoopCast(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (double[N] x) => (float[N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { c = Cast<to = 1>(a)  b = Relu(c) }""",
    )


def test_a_type_that_is_an_argument() -> None:
    assert_refuses(
        RemoveNoopCast(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (double[N] y) { y = f.foo<to = 11>(x) }
        <domain: "f", opset_import: ["" : 17]>
        foo <to> (a) => (b) { c = Cast<to = 1>(a)  b = Cast<to: int = @to>(c) }""",
    )


def test_a_declared_type_that_lies_is_not_believed() -> None:
    assert_refuses(
        RemoveNoopCast(),
        f"""{HEAD} g (float[N] x) => (double[N] y) <double[N] a> {{
            a = com.foo(x)  y = Cast<to = 11>(a)
        }}""".replace("com.foo(x)", "Sqrt(x)"),
    )


def test_an_input_that_is_returned() -> None:
    assert_refuses(
        RemoveNoopCast(), f"{HEAD} g (float[N] x) => (float[N] y) {{ y = Cast<to = 1>(x) }}", "an input"
    )
