from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_concats import MergeConcats

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_nested_along_one_axis_in_either_spelling() -> None:
    assert_rewrites(
        MergeConcats(),
        f"""{HEAD} g (float[N, 2] x, float[N, 3] z) => (float[N, M] y) {{
            a = Concat<axis = 1>(x, z)  b = Concat<axis = -1>(z, a, x)  y = Concat<axis = 1>(b, x)
        }}""",
        f"""{HEAD} g (float[N, 2] x, float[N, 3] z) => (float[N, M] y) {{
            y = Concat<axis = 1>(z, x, z, x, x)
        }}""",
    )


def test_another_axis() -> None:
    assert_refuses(
        MergeConcats(),
        f"""{HEAD} g (float[2, 2] x) => (float[4, 4] y) {{
            a = Concat<axis = 0>(x, x)  y = Concat<axis = 1>(a, a)
        }}""",
    )


def test_another_reader_and_an_output() -> None:
    assert_refuses(
        MergeConcats(),
        f"""{HEAD} g (float[N] x) => (float[M] y, float[K] z) {{
            a = Concat<axis = 0>(x, x)  y = Concat<axis = 0>(a, x)  z = Relu(a)
        }}""",
        "another reader",
    )
    assert_refuses(
        MergeConcats(),
        f"""{HEAD} g (float[N] x) => (float[M] y, float[K] a) {{
            a = Concat<axis = 0>(x, x)  y = Concat<axis = 0>(a, x)
        }}""",
        "is a graph output",
    )


def test_axes_that_cannot_be_compared() -> None:
    assert_refuses(
        MergeConcats(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[A, B] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]>
        foo (a) => (b) { c = Concat<axis = 1>(a, a)  b = Concat<axis = -1>(c, a) }""",
        "rank is unknown",
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        MergeConcats(),
        f"""{HEAD} g (float[N] x, bool c) => (float[M] y) {{
            y = If(c) <
                then_branch = t () => (float[M] p) {{ d = Concat<axis = 0>(x, x)  p = Concat<axis = 0>(d, x) }},
                else_branch = e () => (float[M] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Concat": 1, "Neg": 1},
    )


def test_a_long_chain_is_one_rewrite() -> None:
    nodes = "".join(f"c{i + 1} = Concat<axis = 0>(c{i}, x) " for i in range(300)).replace("c0", "x")
    done = assert_rewrites(
        MergeConcats(),
        f"{HEAD} g (float[N] x) => (float[M] y) {{ {nodes} y = Relu(c300) }}",
        ops={"Concat": 1, "Relu": 1},
    )
    assert len(done.journal.changes) == 1
