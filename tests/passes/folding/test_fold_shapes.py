"""fold-shapes: integers that follow from dims, and those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.folding.fold_shapes import FoldShapes


def graph(body: str, out: str, inits: str = "", dims: str = "N, 3, 8", opset: int = 17) -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{dims}] x) => ({out}) <{inits}> {{ {body} }}
    """


@pytest.mark.parametrize(
    ("bounds", "value"),
    [
        ("start=1", [3, 8]),
        ("start=-1", [8]),
        ("start=1, end=2", [3]),
        ("start=-2, end=-1", [3]),
        ("start=5", []),
        ("start=2, end=1", []),
        ("start=-9, end=-3", []),
    ],
)
def test_slices_of_shape(bounds: str, value: list[int]) -> None:
    done = assert_rewrites(FoldShapes(), graph(f"y = Shape<{bounds}>(x)", "int64[K] y"), ops={})
    assert done.proto.graph.node[0].output[0] == "y"
    tensor = done.proto.graph.node[0].attribute[0].t
    assert np.frombuffer(tensor.raw_data, np.int64).tolist() == value


def test_the_unknown_dim_is_not_folded() -> None:
    assert_refuses(FoldShapes(), graph("y = Shape<end=1>(x)", "int64[1] y"))
    assert_refuses(FoldShapes(), graph("y = Shape(x)", "int64[3] y"))
    assert_refuses(FoldShapes(), graph("y = Size(x)", "int64 y"))


def test_size_has_rank_zero() -> None:
    done = assert_rewrites(FoldShapes(), graph("y = Size(x)", "int64 y", dims="2, 3"), ops={})
    assert list(done.proto.graph.node[0].attribute[0].t.dims) == []
    scalar = graph("y = Size(x)", "int64 y").replace("float[N, 3, 8] x", "float x")
    assert_rewrites(FoldShapes(), scalar, ops={})


def test_a_known_dim_among_unknown_ones() -> None:
    body = "s = Shape(x) c = Gather(s, one) n = Gather(s, zero) y = Mul(c, n)"
    inits = "int64 one = {1}, int64 zero = {0}"
    done = assert_rewrites(
        FoldShapes(), graph(body, "int64 y", inits), ops={"Shape": 1, "Gather": 1, "Mul": 1}
    )
    assert len(done.proto.graph.initializer) == 2


def test_only_the_end_of_a_chain_is_stored() -> None:
    body = """
        s = Shape(x)
        c = Gather(s, one)
        d = Mul(c, c)
        e = Add(d, c)
        u = Unsqueeze(e, axis)
        y = Expand(x, u)
    """
    inits = "int64 one = {1}, int64[1] axis = {0}"
    done = assert_rewrites(
        FoldShapes(), graph(body, "float[M, A, B] y", inits, dims="N, 1, 1"), ops={"Expand": 1}
    )
    assert [list(t.dims) for t in done.proto.graph.initializer] == [[1]]


def test_booleans_and_int32() -> None:
    body = """
        s = Shape(x)
        c = Gather(s, one)
        b = Equal(c, three)
        k = Cast<to=6>(c)
        w = Where(b, k, minus)
        y = Cast<to=1>(w)
    """
    inits = "int64 one = {1}, int64 three = {3}, int32 minus = {-1}"
    done = assert_rewrites(FoldShapes(), graph(body, "float y", inits), ops={"Cast": 1})
    (tensor,) = done.proto.graph.initializer
    assert tensor.data_type == 6


def test_dims_before_opset_13() -> None:
    body = "s = Shape(x) c = Gather(s, one) u = Unsqueeze<axes=[0]>(c) y = Concat<axis=0>(m, u)"
    inits = "int64 one = {1}, int64[1] m = {-1}"
    assert_rewrites(FoldShapes(), graph(body, "int64[2] y", inits, opset=11), ops={})


def test_several_outputs_are_replaced_one_by_one() -> None:
    body = "s = Shape(x) a, b, c = Split(s, ones) d = Mul(b, c) y = Add(d, a)"
    inits = "int64[3] ones = {1, 1, 1}"
    ops = {"Shape": 1, "Split": 1, "Add": 1}
    assert_rewrites(FoldShapes(), graph(body, "int64[1] y", inits), ops=ops)


def test_declared_shapes_of_intermediates_are_not_believed() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x) => (int64[2] y) <float[7, 3] r> { r = Relu(x) y = Shape(r) }
    """
    assert_refuses(FoldShapes(), before)


def test_an_overridable_operand_is_not_known() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x, int64[1] k = {4}) => (int64[1] y) { s = Shape<end=1>(x) y = Mul(s, k) }
    """
    done = assert_rewrites(
        FoldShapes(), before, ops={"Mul": 1}, inputs={"x": np.zeros((2, 3), np.float32), "k": np.array([9])}
    )
    assert len(done.proto.graph.initializer) == 2


def test_branches_and_captures() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[N, 3] x) => (float[M, K] y) {
          s = Shape<start=1>(x)
          y = If (b) <
            then_branch = t () => (float[M, K] p) { p = Expand(x, s) },
            else_branch = e () => (float[M, K] q) { r = Shape<start=1>(x) z = Add(r, s) w = Sub(z, s) q = Expand(x, w) }
          >
        }
    """
    for b in (True, False):
        feeds = {"b": np.array(b), "x": np.ones((2, 3), np.float32)}
        assert_rewrites(FoldShapes(), before, ops={"If": 1, "Expand": 2}, inputs=feeds)


def test_loop_state_is_left_alone() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, int64 n) => (int64[1] y) <int64[1] one = {1}, bool go = {1}> {
          s = Shape(x)
          y = Loop (n, go, s) <
            body = l (int64 i, bool k, int64[1] v) => (bool k2, int64[1] v2) {
              k2 = Identity(k)
              v2 = Add(v, one)
            }
          >
        }
    """
    ops = {"Loop": 1, "Identity": 1, "Add": 1}
    feeds = {"x": np.zeros(2, np.float32), "n": np.array(3)}
    done = assert_rewrites(FoldShapes(), before, ops=ops, inputs=feeds)
    assert len(done.proto.graph.initializer) == 3


def test_what_is_kept_stays() -> None:
    assert_refuses(FoldShapes(), graph("y = Shape<start=1>(x)", "int64[2] y"), keep=["y"])
