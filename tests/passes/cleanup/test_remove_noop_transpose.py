from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_transpose import RemoveNoopTranspose

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_identity_permutation() -> None:
    assert_rewrites(
        RemoveNoopTranspose(),
        f"""{HEAD} g (float[N, 4] x, float[N] v) => (float[N, 4] y, float[N] w) {{
            a = Transpose<perm = [0, 1]>(x)  y = Relu(a)  b = Exp(v)  w = Transpose(b)
        }}""",
        ops={"Relu": 1, "Exp": 1},
    )


def test_in_a_function_where_no_shape_is_known() -> None:
    assert_rewrites(
        RemoveNoopTranspose(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { c = Transpose<perm = [0, 1]>(a)  b = Exp(c) }""",
        ops={"f::foo": 1, "Exp": 1},
    )


def test_a_permutation_that_is_an_argument() -> None:
    assert_refuses(
        RemoveNoopTranspose(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[4, N] y) { y = f.foo<p = [1, 0]>(x) }
        <domain: "f", opset_import: ["" : 17]>
        foo <p> (a) => (b) { c = Transpose<perm: ints = @p>(a)  b = Exp(c) }""",
    )


def test_moving_axes_of_length_one() -> None:
    assert_refuses(
        RemoveNoopTranspose(),
        f"{HEAD} g (float[1, 4] x) => (float[4, 1] y) {{ a = Transpose(x)  y = Relu(a) }}",
    )


def test_a_default_permutation_of_unknown_rank() -> None:
    assert_refuses(
        RemoveNoopTranspose(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[4, N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { c = Transpose(a)  b = Exp(c) }""",
    )


def test_a_branch_and_an_input_that_is_returned() -> None:
    assert_refuses(
        RemoveNoopTranspose(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ p = Transpose<perm = [0, 1]>(x) }},
                else_branch = e () => (float[N, 4] q) {{ q = Neg(x) }}
            >
        }}""",
        "an input",
    )
