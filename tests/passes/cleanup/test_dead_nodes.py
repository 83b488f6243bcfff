from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.dead_nodes import DeadNodes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_a_dead_chain_goes_with_what_only_it_reads() -> None:
    done = assert_rewrites(
        DeadNodes(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {{1, 2, 3, 4}}> {{
            a = Mul(x, w)  b = Exp(a)  y = Relu(x)
        }}""",
        ops={"Relu": 1},
    )
    assert not done.proto.graph.initializer


def test_one_read_output_keeps_the_node() -> None:
    assert_refuses(
        DeadNodes(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 2] y) {{ y, z = Split<axis = 1>(x) }}",
    )


def test_a_captured_tensor_is_read() -> None:
    assert_refuses(
        DeadNodes(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) {{
            a = Relu(x)
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ p = Neg(a) }},
                else_branch = e () => (float[N, 4] q) {{ q = Neg(x) }}
            >
        }}""",
    )


def test_a_dead_if_frees_what_it_captured() -> None:
    assert_rewrites(
        DeadNodes(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) {{
            a = Relu(x)
            dead = If(c) <
                then_branch = t () => (float[N, 4] p) {{ p = Neg(a) }},
                else_branch = e () => (float[N, 4] q) {{ q = Neg(x) }}
            >
            y = Abs(x)
        }}""",
        ops={"Abs": 1},
    )


def test_inside_a_branch() -> None:
    assert_rewrites(
        DeadNodes(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ d = Exp(x)  p = Neg(x) }},
                else_branch = e () => (float[N, 4] q) {{ q = Abs(x) }}
            >
        }}""",
        ops={"If": 1, "Neg": 1, "Abs": 1},
    )


def test_inside_a_function() -> None:
    assert_rewrites(
        DeadNodes(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { d = Exp(a)  b = Relu(a) }""",
        ops={"f::foo": 1, "Relu": 1},
    )


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(
        DeadNodes(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ probe = Exp(x)  y = Relu(x) }}",
        "is kept",
        keep=["probe"],
    )
