from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.cancel_squeeze_unsqueeze import CancelSqueezeUnsqueeze

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def pair(first: str, second: str, a: str, b: str, shape: str = "N, 4") -> str:
    return f"""{HEAD} g (float[{shape}] x) => (float[...] y)
    <int64[{len(a.split(","))}] a = {{{a}}}, int64[{len(b.split(","))}] b = {{{b}}}> {{
        p = {first}(x, a)  q = {second}(p, b)  y = Relu(q)
    }}""".replace("float[...] y", f"float[{', '.join('ABCDE'[: 2 + shape.count(',') - 1])}] y")


def test_both_orders_and_both_ways_of_counting() -> None:
    assert_rewrites(CancelSqueezeUnsqueeze(), pair("Unsqueeze", "Squeeze", "1", "1"), ops={"Relu": 1})
    assert_rewrites(CancelSqueezeUnsqueeze(), pair("Unsqueeze", "Squeeze", "0, 2", "-2, 0"), ops={"Relu": 1})
    assert_rewrites(
        CancelSqueezeUnsqueeze(), pair("Squeeze", "Unsqueeze", "1", "-2", "N, 1, 4"), ops={"Relu": 1}
    )


def test_other_axes() -> None:
    assert_refuses(
        CancelSqueezeUnsqueeze(),
        pair("Squeeze", "Unsqueeze", "1", "0", "N, 1, 4"),
    )


def test_unknown_rank_in_a_function() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) {{ y = f.foo(x) }}
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) {{
            i = Constant<value = int64[1] {{1}}>()  j = Constant<value = int64[1] {{{}}}>()
            c = Unsqueeze(a, i)  d = Squeeze(c, j)  b = Exp(d)
        }}"""
    assert_rewrites(CancelSqueezeUnsqueeze(), text.format("1"), ops={"f::foo": 1, "Exp": 1})
    assert_refuses(CancelSqueezeUnsqueeze(), text.format("-2"), "may differ")


def test_axes_that_are_computed() -> None:
    assert_refuses(
        CancelSqueezeUnsqueeze(),
        f"""{HEAD} g (float[N, 4] x, int64[1] a) => (float[N, 4] y) {{
            p = Unsqueeze(x, a)  q = Squeeze(p, a)  y = Relu(q)
        }}""",
        "is not constant",
    )


def test_squeeze_of_all_axes() -> None:
    assert_refuses(
        CancelSqueezeUnsqueeze(),
        f"""{HEAD} g (float[N, 1] x) => (float[A, B] y) <int64[1] a = {{1}}> {{
            p = Squeeze(x)  q = Unsqueeze(p, a)  y = Relu(q)
        }}""",
    )


def test_a_shared_middle_that_is_an_output_and_attributes() -> None:
    assert_rewrites(
        CancelSqueezeUnsqueeze(),
        """<ir_version: 7, opset_import: ["" : 11]>
        g (float[N, 4] x) => (float[N, 1, 4] p, float[N, 4] y) {
            p = Unsqueeze<axes = [1]>(x)  q = Squeeze<axes = [1]>(p)  y = Relu(q)
        }""",
        ops={"Unsqueeze": 1, "Relu": 1},
    )


def test_across_a_branch() -> None:
    assert_rewrites(
        CancelSqueezeUnsqueeze(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) <int64[1] a = {{0}}> {{
            u = Unsqueeze(x, a)
            y = If(c) <
                then_branch = t () => (float[N] p) {{ d = Squeeze(u, a)  p = Exp(d) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )


def test_an_input_under_an_output_name() -> None:
    assert_refuses(
        CancelSqueezeUnsqueeze(),
        f"""{HEAD} g (float[N] x) => (float[N] y) <int64[1] a = {{0}}> {{
            u = Unsqueeze(x, a)  y = Squeeze(u, a)
        }}""",
        "an input",
    )
