"""fold-dim-operands: operands become constant only where that is right for every size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.graph.dims import symbol
from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.folding.fold_dim_operands import (
    FoldDimOperands,
    expand_operand,
    reshape_operand,
)

N, S, P = symbol("N"), symbol("S"), symbol("P")


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        ((N, 64, 8), (N, 512), [0, 64, 8]),
        ((N, S, 8, 64), (N, S, 512), [0, 0, 8, 64]),
        ((N * S, 8), (N, S, 8), [-1, 8]),
        ((N, -1, 8), (N, S, 16), [0, -1, 8]),
        ((N, 4, 8), (N * 4, 8), [-1, 4, 8]),
        # two that are neither copies nor one another's rest
        ((N, 8, S), (N * 8, S), None),
        ((S, N), (N, S), None),
        # a -1 beside a dim that may be 0
        ((N, S * 8), (N, S, 8), None),
        ((N + 1, S * 8), (N + 1, S, 8), [0, -1]),
        # a second -1
        ((N * S, -1, 2), (N, S, 8), None),
        # the rank is unknown: nothing to copy
        ((N, 8), None, [-1, 8]),
        # literal zeros copy
        ((0, N * S), (4, N, S), [0, -1]),
        ((0, N * S), (P, N, S), None),
    ],
)
def test_reshape_operand(target: tuple, source: tuple | None, expected: list[int] | None) -> None:
    assert reshape_operand(target, source, allowzero=False) == expected


def test_reshape_operand_with_allowzero() -> None:
    assert reshape_operand((N, 8, 8), (N, 64), allowzero=True) == [0, 8, 8]
    assert reshape_operand((0, N), (N, 0), allowzero=True) is None


def test_expand_operand() -> None:
    assert expand_operand((N, 4, S), (N, 1, S)) == [1, 4, 1]
    assert expand_operand((2, N, S), (N, S)) == [2, 1, 1]
    assert expand_operand((N, S), (S,)) is None
    assert expand_operand((N, S), (1, S)) is None


HEADS = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, S, 32] x) => (float[A, B, C, D] y) <int64[2] heads = {4, 8}> {
      r = Relu(x)
      s = Shape<end=2>(r)
      t = Concat<axis=0>(s, heads)
      y = Reshape(r, t)
    }
"""


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_session(model, optimize="none", prepack=False) as session:
        return {k: np.asarray(v) for k, v in session.run(feeds).items()}


def assert_same_when_empty(before: str, after: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    parsed = onnx.parser.parse_model(before)
    for shape in shapes:
        feeds = {"x": np.zeros(shape, np.float32)}
        want, got = outputs(parsed, feeds), outputs(after, feeds)
        assert {k: v.shape for k, v in want.items()} == {k: v.shape for k, v in got.items()}


def test_two_symbolic_dims_are_copied_also_when_empty() -> None:
    done = assert_rewrites(FoldDimOperands(), HEADS, ops={"Relu": 1, "Reshape": 1})
    assert_same_when_empty(HEADS, done.proto, (0, 5, 32), (3, 0, 32), (0, 0, 32))


def test_a_product_is_inferred() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S, 32] x) => (float[A, B] y) <int64[1] c = {32}, int64 i = {0}, int64 j = {1}, int64[1] z = {0}> {
          s = Shape(x)
          n = Gather(s, i)
          m = Gather(s, j)
          p = Mul(n, m)
          u = Unsqueeze(p, z)
          t = Concat<axis=0>(u, c)
          y = Reshape(x, t)
        }
    """
    done = assert_rewrites(FoldDimOperands(), before, ops={"Reshape": 1})
    # With S = 0 the original fails: a target of 0 copies N.
    assert_same_when_empty(before, done.proto, (0, 5, 32))


def test_a_product_beside_a_dim_that_may_be_empty_stays() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S, 32] x) => (float[A, B] y) <int64 c = {32}, int64 i = {0}, int64 j = {1}, int64[1] z = {0}> {
          s = Shape(x)
          m = Gather(s, j)
          p = Mul(m, c)
          u = Unsqueeze(p, z)
          n = Shape<end=1>(x)
          t = Concat<axis=0>(n, u)
          y = Reshape(x, t)
        }
    """
    assert_refuses(FoldDimOperands(), before, "target")


def test_allowzero_goes_where_nothing_is_zero() -> None:
    before = HEADS.replace("Reshape(r, t)", "Reshape<allowzero=1>(r, t)")
    done = assert_rewrites(FoldDimOperands(), before, ops={"Relu": 1, "Reshape": 1})
    (node,) = [n for n in done.proto.graph.node if n.op_type == "Reshape"]
    assert not node.attribute
    assert_same_when_empty(before, done.proto, (0, 5, 32), (3, 0, 32))


def test_a_target_that_is_an_input_with_one_element_is_inferred() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[6] x, int64[1] t) => (float[A, B] y) <int64[1] two = {2}> {
          u = Concat<axis=0>(two, t)
          y = Reshape(x, u)
        }
    """
    feeds = [{"x": np.ones(6, np.float32), "t": np.array([k])} for k in (3, -1)]
    assert_rewrites(FoldDimOperands(), before, ops={"Reshape": 1}, inputs=feeds)


def test_expand_asks_only_for_what_is_new() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2, 1, S, 8] x) => (float[A, B, C, D, E] y) <int64[1] group = {4}> {
          a = Shape<end=2>(x)
          b = Shape<start=3>(x)
          t = Concat<axis=0>(a, group, b)
          y = Expand(x, t)
        }
    """
    done = assert_rewrites(FoldDimOperands(), before, ops={"Expand": 1})
    assert_same_when_empty(before, done.proto, (0, 2, 1, 3, 8), (2, 2, 1, 0, 8))


SLICE = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, S] x) => (float[A, B] y)
    <int64[1] one = {1}, int64[1] two = {2}, int64[1] zero = {0}, int64[1] back = {-1}> {
      s = Shape<start=1>(x)
      BODY
    }
"""


@pytest.mark.parametrize(
    "body",
    [
        "y = Slice(x, one, s, one)",
        "m = Sub(s, one) y = Slice(x, zero, m, one)",
        "m = Sub(s, one) y = Slice(x, m, s, one)",
        "m = Sub(s, one) y = Slice(x, m, zero, one, back)",
        "m = Add(s, two) y = Slice(x, zero, m, one)",
    ],
)
def test_slices_to_and_from_the_end(body: str) -> None:
    before = SLICE.replace("BODY", body)
    done = assert_rewrites(FoldDimOperands(), before, ops={"Slice": 1})
    assert_same_when_empty(before, done.proto, (2, 0), (2, 1), (0, 3))


def test_two_from_the_end_is_not_the_same_for_an_axis_of_one() -> None:
    before = SLICE.replace("BODY", "k = Sub(s, two) y = Slice(x, k, s, one)")
    done = apply(FoldDimOperands(), before)
    assert_same_when_empty(before, done.proto, (2, 0), (2, 1), (2, 2), (2, 5))


def test_bounds_that_nothing_is_known_about_stay() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S] x, int64[1] s, int64[1] e) => (float[A, B] y) <int64[1] one = {1}> {
          t = Add(e, one)
          y = Slice(x, s, t, one)
        }
    """
    assert_refuses(FoldDimOperands(), before)


def test_the_last_row() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S] x) => (float[A] y) <int64 one = {1}, int64 i = {1}> {
          s = Shape(x)
          d = Gather(s, i)
          m = Sub(d, one)
          y = Gather<axis=1>(x, m)
        }
    """
    assert_rewrites(FoldDimOperands(), before, ops={"Gather": 1})


def test_unequal_dims_are_not_taken_for_equal() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S, 8] x, float[P, Q] z) => (float[A, B, C] y) <int64[1] c = {8}> {
          s = Shape(z)
          t = Concat<axis=0>(s, c)
          y = Reshape(x, t)
        }
    """
    assert_refuses(FoldDimOperands(), before, "target")


def test_inside_a_branch() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[N, 8] x) => (float[A, B, C] y) <int64[2] two = {2, 4}> {
          s = Shape<end=1>(x)
          t = Concat<axis=0>(s, two)
          y = If (b) < then_branch = u () => (float[A, B, C] p) { p = Reshape(x, t) },
                       else_branch = e () => (float[A, B, C] q) { n = Neg(x) q = Reshape(n, t) } >
        }
    """
    for b in (True, False):
        feeds = {"b": np.array(b), "x": np.ones((3, 8), np.float32)}
        assert_rewrites(FoldDimOperands(), before, ops={"If": 1, "Reshape": 2, "Neg": 1}, inputs=feeds)


def test_what_is_kept_stays() -> None:
    assert_refuses(FoldDimOperands(), HEADS, keep=["y"])
