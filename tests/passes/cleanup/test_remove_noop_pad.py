from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_pad import RemoveNoopPad

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_zeros(mode: str) -> None:
    assert_rewrites(
        RemoveNoopPad(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <int64[4] p = {{0, 0, 0, 0}}> {{
            a = Pad<mode = "{mode}">(x, p)  y = Relu(a)
        }}""",
        ops={"Relu": 1},
    )


def test_pads_of_chosen_axes() -> None:
    assert_rewrites(
        RemoveNoopPad(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        <int64[2] p = {{0, 0}}, float v = {{3}}, int64[1] a = {{1}}> {{
            r = Relu(x)  y = Pad(r, p, v, a)
        }}""",
        ops={"Relu": 1},
    )


def test_attributes_of_opset_10() -> None:
    assert_rewrites(
        RemoveNoopPad(),
        """<ir_version: 7, opset_import: ["" : 10]>
        g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x)  y = Pad<pads = [0, 0, 0, 0]>(r) }""",
        ops={"Relu": 1},
    )


def test_cutting_as_much_as_adding_keeps_the_shape_only() -> None:
    assert_refuses(
        RemoveNoopPad(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <int64[4] p = {{0, 1, 0, -1}}> {{
            a = Pad(x, p)  y = Relu(a)
        }}""",
    )


def test_pads_that_are_computed() -> None:
    assert_refuses(
        RemoveNoopPad(),
        f"{HEAD} g (float[N, 4] x, int64[4] p) => (float[A, B] y) {{ a = Pad(x, p)  y = Relu(a) }}",
    )


def test_in_a_branch_that_returns_it() -> None:
    assert_refuses(
        RemoveNoopPad(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) <int64[4] z = {{0, 0, 0, 0}}> {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ p = Pad(x, z) }},
                else_branch = e () => (float[N, 4] q) {{ q = Neg(x) }}
            >
        }}""",
        "an input",
    )
