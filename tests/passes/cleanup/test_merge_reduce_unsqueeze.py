from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_reduce_unsqueeze import MergeReduceUnsqueeze

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'
OPS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
       "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_keepdims_does_it(op: str) -> None:
    assert_rewrites(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3, 4] x) => (float[N, 1, 4] y) <int64[1] a = {{1}}, int64[1] b = {{-2}}> {{
            e = Abs(x)  r = {op}<keepdims = 0>(e, a)  y = Unsqueeze(r, b)
        }}""",
        ops={"Abs": 1, op: 1},
    )


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_one_axis(op: str) -> None:
    assert_rewrites(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x) => (int64[N, 1] y) <int64[1] a = {{1}}> {{
            r = {op}<axis = -1, keepdims = 0, select_last_index = 1>(x)  y = Unsqueeze(r, a)
        }}""",
        ops={op: 1},
    )


def test_squeeze_is_the_other_way_round() -> None:
    assert_rewrites(
        MergeReduceUnsqueeze(),
        """<ir_version: 7, opset_import: ["" : 12]>
        g (float[N, 3, 4] x) => (float[N] y) {
            r = ReduceMean<axes = [1, 2]>(x)  y = Squeeze<axes = [2, 1]>(r)
        }""",
        ops={"ReduceMean": 1},
    )


def test_all_axes() -> None:
    assert_rewrites(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x) => (float[1, 1] y) <int64[2] a = {{0, 1}}> {{
            r = ReduceSum<keepdims = 0>(x)  y = Unsqueeze(r, a)
        }}""",
        ops={"ReduceSum": 1},
    )


def test_other_axes() -> None:
    assert_refuses(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x) => (float[1, N] y) <int64[1] a = {{1}}, int64[1] b = {{0}}> {{
            r = ReduceSum<keepdims = 0>(x, a)  y = Unsqueeze(r, b)
        }}""",
        "is not along the axes",
    )


def test_no_axes_may_mean_no_reduction() -> None:
    assert_refuses(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[1, 1] x) => (float[1, 1, 1, 1] y) <int64[2] a = {{0, 1}}> {{
            r = ReduceSum<keepdims = 0, noop_with_empty_axes = 1>(x)  y = Unsqueeze(r, a)
        }}""",
        "are not known",
    )


def test_axes_that_are_computed() -> None:
    assert_refuses(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x, int64[1] a) => (float[A, B] y) {{
            r = ReduceSum<keepdims = 0>(x, a)  y = Unsqueeze(r, a)
        }}""",
        "is not constant",
    )


def test_another_reader_and_an_output() -> None:
    assert_refuses(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x) => (float[N, 1] y, float[N] z) <int64[1] a = {{1}}> {{
            r = ReduceSum<keepdims = 0>(x, a)  y = Unsqueeze(r, a)  z = Exp(r)
        }}""",
        "another reader",
    )
    assert_refuses(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x) => (float[N, 1] y, float[N] r) <int64[1] a = {{1}}> {{
            r = ReduceSum<keepdims = 0>(x, a)  y = Unsqueeze(r, a)
        }}""",
        "is a graph output",
    )


def test_in_a_branch() -> None:
    assert_rewrites(
        MergeReduceUnsqueeze(),
        f"""{HEAD} g (float[N, 3] x, bool c) => (float[N, 1] y) <int64[1] a = {{1}}> {{
            y = If(c) <
                then_branch = t () => (float[N, 1] p) {{ d = ReduceMax<keepdims = 0>(x, a)  p = Unsqueeze(d, a) }},
                else_branch = e () => (float[N, 1] q) {{ q = ReduceMin(x, a) }}
            >
        }}""",
        ops={"If": 1, "ReduceMax": 1, "ReduceMin": 1},
    )
