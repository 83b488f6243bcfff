"""inline-if: known conditions, captures, outputs that are passed on, names."""

from __future__ import annotations

import numpy as np

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.inline_if import InlineIf
from graphopt_passes.folding.fold_shapes import FoldShapes

X = np.arange(1, 5, dtype=np.float32)


def with_condition(condition: str, branch: str = "p = Relu(x)") -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y)
        <bool true_ = {{1}}, bool false_ = {{0}}, bool[1] one = {{1}}> {{
          y = If ({condition}) <
            then_branch = t () => (float[4] p) {{ {branch} }},
            else_branch = e () => (float[4] q) {{ q = Neg(x) }}
          >
        }}
    """


def test_the_taken_branch_stays() -> None:
    assert_rewrites(InlineIf(), with_condition("true_"), ops={"Relu": 1})
    assert_rewrites(InlineIf(), with_condition("false_"), ops={"Neg": 1})
    assert_rewrites(InlineIf(), with_condition("one"), ops={"Relu": 1})


def test_a_condition_that_follows_from_shapes() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 1] x) => (float[M] y) <int64[1] one = {1}, int64 i = {1}, int64 k = {1}> {
          s = Shape(x)
          d = Gather(s, i)
          b = Equal(d, k)
          y = If (b) <
            then_branch = t () => (float[M] p) { p = Squeeze(x, one) },
            else_branch = e () => (float[M] q) { f = Constant<value = int64[1] {-1}>() q = Reshape(x, f) }
          >
        }
    """
    assert_rewrites(InlineIf(), before, ops={"Squeeze": 1})


def test_a_branch_that_passes_on_an_outer_tensor_or_a_constant_keeps_the_output_name() -> None:
    done = assert_rewrites(InlineIf(), with_condition("true_", "p = Identity(x)"))
    assert done.proto.graph.output[0].name == "y"
    direct = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y, float[4] z) <bool c = {1}> {
          r = Relu(x)
          y, z = If (c) <
            then_branch = t () => (float[4] p, float[4] p2)
              <float[4] w = {1, 2, 3, 4}> { p = Mul(r, w) p2 = Identity(p) },
            else_branch = e () => (float[4] q, float[4] q2) { q = Neg(x) q2 = Neg(r) }
          >
        }
    """
    assert_rewrites(InlineIf(), direct, ops={"Relu": 1, "Mul": 1, "Identity": 1})


def test_names_of_two_branches_that_clash_are_told_apart() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y) <bool c = {1}> {
          a = If (c) < then_branch = t () => (float[4] p) { h = Relu(x) p = Exp(h) },
                       else_branch = e () => (float[4] q) { q = Neg(x) } >
          b = If (c) < then_branch = t2 () => (float[4] p) { h = Neg(x) p = Exp(h) },
                       else_branch = e2 () => (float[4] q) { q = Neg(x) } >
          y = Add(a, b)
        }
    """
    assert_rewrites(InlineIf(), before, ops={"Relu": 1, "Exp": 2, "Neg": 1, "Add": 1})


def test_nested_ifs_are_inlined_and_unknown_inner_ones_survive() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x, bool b) => (float[4] y) <bool c = {1}> {
          y = If (c) <
            then_branch = t () => (float[4] p) {
              h = Relu(x)
              p = If (b) < then_branch = t2 () => (float[4] p2) { p2 = Exp(h) },
                           else_branch = e2 () => (float[4] q2) { q2 = Neg(h) } >
            },
            else_branch = e () => (float[4] q) { q = Neg(x) }
          >
        }
    """
    for b in (True, False):
        feeds = {"x": X, "b": np.array(b)}
        assert_rewrites(InlineIf(), before, ops={"Relu": 1, "If": 1, "Exp": 1, "Neg": 1}, inputs=feeds)


def test_inside_a_loop_body() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y) <int64 n = {3}, bool go = {1}> {
          y = Loop (n, go, x) <
            body = l (int64 i, bool k, float[4] v) => (bool k2, float[4] v2) {
              k2 = Identity(k)
              c = Constant<value = bool {1}>()
              v2 = If (c) < then_branch = t () => (float[4] p) { p = Add(v, x) },
                            else_branch = e () => (float[4] q) { q = Neg(v) } >
            }
          >
        }
    """
    assert_rewrites(InlineIf(), before, ops={"Loop": 1, "Identity": 1, "Add": 1})


def test_unknown_and_overridable_conditions_stay() -> None:
    unknown = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x, bool b) => (float[4] y) {
          y = If (b) < then_branch = t () => (float[4] p) { p = Relu(x) },
                       else_branch = e () => (float[4] q) { q = Neg(x) } >
        }
    """
    assert_refuses(InlineIf(), unknown)
    overridable = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x, bool b = {1}) => (float[4] y) {
          y = If (b) < then_branch = t () => (float[4] p) { p = Relu(x) },
                       else_branch = e () => (float[4] q) { q = Neg(x) } >
        }
    """
    assert_refuses(InlineIf(), overridable)


def test_a_kept_if_stays() -> None:
    assert_refuses(InlineIf(), with_condition("true_"), keep=["y"])


def test_what_is_behind_learns_the_shape_of_the_branch() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] x, float[N] v) => (int64[2] y) <bool true_ = {1}> {
          a = If (true_) <
            then_branch = t () => (float[N, 4] p) { p = Relu(x) },
            else_branch = e () => (float[N] q) { q = Neg(v) }
          >
          b = Exp(a)
          c = Transpose<perm = [1, 0]>(b)
          d = Shape<start = 0, end = 1>(c)
          y = Concat<axis = 0>(d, d)
        }
    """
    assert_rewrites([InlineIf(), FoldShapes()], before, ops={})
