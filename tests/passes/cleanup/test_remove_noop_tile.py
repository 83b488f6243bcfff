from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_tile import RemoveNoopTile

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_once() -> None:
    assert_rewrites(
        RemoveNoopTile(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <int64[2] r = {{1, 1}}> {{
            a = Relu(x)  y = Tile(a, r)
        }}""",
        ops={"Relu": 1},
    )


def test_in_a_function() -> None:
    assert_rewrites(
        RemoveNoopTile(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]>
        foo (a) => (b) { r = Constant<value = int64[2] {1, 1}>()  c = Tile(a, r)  b = Exp(c) }""",
        ops={"f::foo": 1, "Exp": 1},
    )


def test_twice_or_unknown() -> None:
    assert_refuses(
        RemoveNoopTile(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 8] y) <int64[2] r = {{1, 2}}> {{
            a = Tile(x, r)  y = Relu(a)
        }}""",
    )
    assert_refuses(
        RemoveNoopTile(),
        f"{HEAD} g (float[N, 4] x, int64[2] r) => (float[A, B] y) {{ a = Tile(x, r)  y = Relu(a) }}",
    )
