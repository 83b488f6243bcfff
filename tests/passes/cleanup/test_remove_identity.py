from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_identity import RemoveIdentity

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_chains_and_a_name_that_must_survive() -> None:
    assert_rewrites(
        RemoveIdentity(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{
            a = Identity(x)  b = Identity(a)  c = Relu(b)  d = Identity(c)  y = Identity(d)
        }}""",
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Relu(x) }}",
    )


def test_other_readers_of_the_input_follow_the_output_name() -> None:
    assert_rewrites(
        RemoveIdentity(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {{
            a = Relu(x)  y = Identity(a)  z = Neg(a)
        }}""",
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {{ y = Relu(x)  z = Neg(y) }}",
    )


def test_an_input_that_is_returned() -> None:
    assert_refuses(
        RemoveIdentity(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Identity(x) }}",
        "passes an input on",
    )


def test_a_constant_that_is_returned() -> None:
    assert_refuses(
        RemoveIdentity(),
        f"{HEAD} g (float[N] x) => (float[1] y) <float[1] w = {{1}}> {{ y = Identity(w) }}",
        "passes a constant on",
    )


def test_one_tensor_under_two_output_names() -> None:
    assert_rewrites(
        RemoveIdentity(),
        f"""{HEAD} g (float[N] x) => (float[N] y, float[N] z) {{
            a = Relu(x)  y = Identity(a)  z = Identity(a)
        }}""",
        f"{HEAD} g (float[N] x) => (float[N] y, float[N] z) {{ y = Relu(x)  z = Identity(y) }}",
    )
    assert_refuses(
        RemoveIdentity(),
        f"{HEAD} g (float[N] x) => (float[N] y, float[N] z) {{ y = Relu(x)  z = Identity(y) }}",
        "y is an output itself",
    )


def test_a_branch_that_returns_an_outer_tensor() -> None:
    assert_refuses(
        RemoveIdentity(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
            a = Relu(x)
            y = If(c) <
                then_branch = t () => (float[N] p) {{ p = Identity(a) }},
                else_branch = e () => (float[N] q) {{ q = Neg(a) }}
            >
        }}""",
        "outside its body",
    )


def test_a_capture_reads_past_it() -> None:
    assert_rewrites(
        RemoveIdentity(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
            a = Relu(x)  i = Identity(a)
            y = If(c) <
                then_branch = t () => (float[N] p) {{ j = Identity(i)  p = Exp(j) }},
                else_branch = e () => (float[N] q) {{ q = Neg(i) }}
            >
        }}""",
        ops={"Relu": 1, "If": 1, "Exp": 1, "Neg": 1},
    )


def test_loop_carried_values_keep_their_identity() -> None:
    assert_refuses(
        RemoveIdentity(),
        f"""{HEAD} g (float[3] x, int64 n) => (float[3] y) {{
            y = Loop(n, , x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t) {{
                d = Identity(c)  t = Neg(s)
            }}>
        }}""",
        "passes an input on",
    )


def test_inside_a_function() -> None:
    assert_rewrites(
        RemoveIdentity(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { c = Relu(a)  b = Identity(c) }""",
        ops={"f::foo": 1, "Relu": 1},
    )


def test_a_function_called_identity_is_something_else() -> None:
    assert_refuses(
        RemoveIdentity(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) { a = f.Identity(x)  y = Relu(a) }
        <domain: "f", opset_import: ["" : 17]> Identity (a) => (b) { b = Neg(a) }""",
    )


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(
        RemoveIdentity(),
        f"{HEAD} g (float[N] x) => (float[N] y) {{ a = Identity(x)  y = Relu(a) }}",
        "is kept",
        keep=["a"],
    )
