"""rebuild-shapes: fewer nodes for the same dims."""

from __future__ import annotations

import numpy as np

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.folding.rebuild_shapes import RebuildShapes


def graph(body: str, out: str = "float[A, B, C] y", opset: int = 17) -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, S, P] x, float[1, 1, 1] one) => ({out})
        <int64 i = {{0}}, int64 j = {{1}}, int64[1] axis = {{0}}, int64[1] eight = {{8}}> {{ {body} }}
    """


TWO = """
    s = Shape(x)
    n = Gather(s, i)
    m = Gather(s, j)
    u = Unsqueeze(n, axis)
    v = Unsqueeze(m, axis)
    t = Concat<axis=0>(u, v, eight)
    y = Expand(one, t)
"""


def test_neighbouring_dims_are_one_slice_of_shape() -> None:
    done = assert_rewrites(RebuildShapes(), graph(TWO), ops={"Shape": 1, "Concat": 1, "Expand": 1})
    (shape,) = [n for n in done.proto.graph.node if n.op_type == "Shape"]
    assert {a.name: a.i for a in shape.attribute} == {"end": 2}


def test_one_dim() -> None:
    body = "s = Shape(x) m = Gather(s, j) v = Unsqueeze(m, axis) y = Expand(one, v)"
    assert_rewrites(RebuildShapes(), graph(body), ops={"Shape": 1, "Expand": 1})


def test_all_dims_in_order_are_the_shape() -> None:
    body = """
        s = Shape(x)
        a, b, c = Split(s)
        t = Concat<axis=0>(a, b, c)
        y = Expand(one, t)
    """
    assert_rewrites(RebuildShapes(), graph(body), ops={"Shape": 1, "Expand": 1})


def test_pieces_that_exist_are_used_again() -> None:
    body = (
        TWO.replace("y = ", "h = ")
        + """
        w = Concat<axis=0>(eight, u, v)
        k = Expand(one, w)
        y = Concat<axis=0>(h, k)
    """
    )
    ops = {"Shape": 2, "Concat": 3, "Expand": 2}
    feeds = {"x": np.zeros((8, 8, 8), np.float32), "one": np.ones((1, 1, 1), np.float32)}
    assert_rewrites(RebuildShapes(), graph(body), ops=ops, inputs=feeds)


def test_a_multiple_of_a_dim_is_taken_from_the_tensor_that_holds_it() -> None:
    body = """
        s = Shape(x)
        n = Gather(s, i)
        m = Gather(s, j)
        k = Add(m, m)
        u = Unsqueeze(n, axis)
        v = Unsqueeze(k, axis)
        t = Concat<axis=0>(u, v, eight)
        y = Expand(one, t)
    """
    ops = {"Shape": 2, "Gather": 1, "Add": 1, "Unsqueeze": 1, "Concat": 1, "Expand": 1}
    assert_rewrites(RebuildShapes(), graph(body), ops=ops)


def test_before_opset_15_nothing_is_gained() -> None:
    assert_refuses(RebuildShapes(), graph(TWO, opset=14))


def test_an_output_stays() -> None:
    body = "s = Shape(x) m = Gather(s, j) y = Unsqueeze(m, axis)"
    assert_refuses(RebuildShapes(), graph(body, "int64[1] y"))


def test_inside_a_branch() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[N, S] x) => (float[A] y) <int64 j = {1}, int64[1] axis = {0}, float[1] one = {1}> {
          y = If (b) <
            then_branch = t () => (float[A] p) {
              s = Shape(x) m = Gather(s, j) v = Unsqueeze(m, axis) p = Expand(one, v)
            },
            else_branch = e () => (float[A] q) { w = Shape<start=1>(x) q = ConstantOfShape(w) }
          >
        }
    """
    for b in (True, False):
        feeds = {"b": np.array(b), "x": np.zeros((2, 3), np.float32)}
        ops = {"If": 1, "Shape": 2, "Expand": 1, "ConstantOfShape": 1}
        assert_rewrites(RebuildShapes(), before, inputs=feeds, ops=ops)


def test_what_is_kept_stays() -> None:
    body = "s = Shape(x) m = Gather(s, j) v = Unsqueeze(m, axis) y = Expand(one, v)"
    assert_refuses(RebuildShapes(), graph(body), keep=["v"])
