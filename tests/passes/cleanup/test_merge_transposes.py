from __future__ import annotations

import numpy as np
import pytest

from graphopt.passkit import RefusedRewrite
from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_transposes import MergeTransposes, compose

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_three_become_one() -> None:
    done = assert_rewrites(
        MergeTransposes(),
        f"""{HEAD} g (float[N, 2, 3, 4] x) => (float[A, B, C, D] y) {{
            a = Transpose<perm = [1, 2, 3, 0]>(x)  b = Transpose(a)  y = Transpose<perm = [0, 2, 1, 3]>(b)
        }}""",
        ops={"Transpose": 1},
    )
    assert list(done.proto.graph.node[0].attribute[0].ints) == [0, 2, 3, 1]


def test_there_and_back_is_nothing() -> None:
    assert_rewrites(
        MergeTransposes(),
        f"""{HEAD} g (float[N, 2, 3] x) => (float[N, 2, 3] y) {{
            r = Relu(x)  a = Transpose<perm = [2, 0, 1]>(r)  y = Transpose<perm = [1, 2, 0]>(a)
        }}""",
        ops={"Relu": 1},
    )


def test_a_shared_or_returned_middle_stays() -> None:
    assert_rewrites(
        MergeTransposes(),
        f"""{HEAD} g (float[N, 2, 3] x) => (float[A, B, C] a, float[D, E, F] y) {{
            a = Transpose<perm = [2, 0, 1]>(x)  y = Transpose<perm = [2, 0, 1]>(a)
        }}""",
        ops={"Transpose": 2},
    )


def test_defaults_of_unknown_rank() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[A, B] y) {{ y = f.foo(x) }}
        <domain: "f", opset_import: ["" : 17]>
        foo (a) => (b) {{ c = Transpose(a)  d = Transpose{}(c)  b = Exp(d) }}"""
    assert_refuses(MergeTransposes(), text.format(""), "rank is unknown")
    assert_rewrites(MergeTransposes(), text.format("<perm = [1, 0]>"), ops={"f::foo": 1, "Exp": 1})


def test_in_a_branch_but_not_across() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x, bool c) => (float[2, 3] y) {{
            a = Transpose(x)
            y = If(c) <
                then_branch = t () => (float[2, 3] p) {{ {} }},
                else_branch = e () => (float[2, 3] q) {{ q = Transpose(a) }}
            >
        }}"""
    assert_rewrites(
        MergeTransposes(),
        text.format("u = Transpose(x)  v = Transpose(u)  p = Exp(v)"),
        ops={"Transpose": 2, "If": 1, "Exp": 1},
    )
    assert_refuses(MergeTransposes(), text.format("p = Transpose(a)"))


def test_composition_agrees_with_numpy() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    first, second = [2, 0, 1], [1, 0, 2]
    assert (x.transpose(compose(first, second)) == x.transpose(first).transpose(second)).all()
    with pytest.raises(RefusedRewrite):
        compose([0], [0, 1])
