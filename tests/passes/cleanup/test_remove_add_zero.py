from __future__ import annotations

import numpy as np

from graphopt.passkit import Numerics
from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_add_zero import RemoveAddZero

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_either_side() -> None:
    assert_rewrites(
        RemoveAddZero(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <float[4] z = {{0, 0, 0, 0}}, float m = {{-0.0}}> {{
            a = Add(x, z)  b = Add(z, a)  c = Sub(b, m)  y = Relu(c)
        }}""",
        ops={"Relu": 1},
    )


def test_it_is_not_exact() -> None:
    assert RemoveAddZero.numerics is Numerics.CLOSE
    done = assert_rewrites(
        RemoveAddZero(),
        f"{HEAD} g (float[N] x) => (float[N] y) <float z = {{0}}> {{ a = Neg(x)  y = Add(a, z) }}",
        ops={"Neg": 1},
        inputs={"x": np.zeros(2, np.float32)},
    )
    assert done.journal.changes[0].op == "Add"


def test_a_difference_from_zero_and_integers() -> None:
    assert_refuses(
        RemoveAddZero(),
        f"{HEAD} g (float[N] x) => (float[N] y) <float z = {{0}}> {{ a = Sub(z, x)  y = Relu(a) }}",
    )
    assert_refuses(
        RemoveAddZero(),
        f"{HEAD} g (int64[N] x) => (int64[N] y) <int64 z = {{0}}> {{ a = Add(z, x)  y = Neg(a) }}",
    )


def test_broadcasting_is_no_noop() -> None:
    assert_refuses(
        RemoveAddZero(),
        f"""{HEAD} g (float[N, 1] x) => (float[N, 2] y) <float[2] z = {{0, 0}}> {{
            a = Add(x, z)  y = Relu(a)
        }}""",
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        RemoveAddZero(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) <float z = {{0}}> {{
            y = If(c) <
                then_branch = t () => (float[N] p) {{ d = Add(x, z)  p = Exp(d) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )
