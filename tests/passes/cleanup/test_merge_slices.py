from __future__ import annotations

import itertools

import numpy as np

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_slices import MergeSlices, Range, compose

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
END = 2**63 - 1


def slices(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int], tail: str = "y = Relu(q)"
) -> str:
    def constants(letter: str, values: tuple[int, int, int, int]) -> str:
        return ", ".join(f"int64[1] {letter}{i} = {{{v}}}" for i, v in enumerate(values))

    return f"""{HEAD} g (float[N, 8] x) => (float[A, B] y) <{constants("a", first)}, {constants("b", second)}> {{
        p = Slice(x, a0, a1, a2, a3)  q = Slice(p, b0, b1, b2, b3)  {tail}
    }}"""


def test_different_axes_with_any_step() -> None:
    assert_rewrites(MergeSlices(), slices((1, END, 0, 1), (-1, -(2**63), 1, -2)), ops={"Slice": 1, "Relu": 1})
    assert_rewrites(MergeSlices(), slices((-1, 9, 0, 1), (0, -2, -1, 3)), ops={"Slice": 1, "Relu": 1})


def test_the_same_axis() -> None:
    assert_rewrites(MergeSlices(), slices((1, END, 0, 1), (0, -1, 0, 1)), ops={"Slice": 1, "Relu": 1})
    assert_rewrites(MergeSlices(), slices((-6, -1, 1, 2), (-2, 99, -1, 1)), ops={"Slice": 1, "Relu": 1})


def test_ends_that_depend_on_the_length() -> None:
    assert_refuses(MergeSlices(), slices((0, -1, 0, 1), (0, 1, 0, 1)), "cannot be composed")
    assert_refuses(MergeSlices(), slices((1, END, 0, 1), (-1, END, 0, 1)), "cannot be composed")
    assert_refuses(MergeSlices(), slices((-1, -(2**63), 0, -1), (0, 1, 0, 1)), "cannot be composed")


def test_attributes_of_opset_9_in_a_branch() -> None:
    assert_rewrites(
        MergeSlices(),
        """<ir_version: 7, opset_import: ["" : 9]>
        g (float[4, 6] x, bool c) => (float[A, B] y) {
            y = If(c) <
                then_branch = t () => (float[A, B] p) {
                    d = Slice<starts = [1], ends = [3]>(x)
                    p = Slice<starts = [0, 2], ends = [1, 2147483647]>(d)
                },
                else_branch = e () => (float[A, B] q) { q = Slice<starts = [1, 2], ends = [2, 9]>(x) }
            >
        }""",
        ops={"If": 1, "Slice": 2},
    )


def test_several_slices_of_one() -> None:
    """Patch merging: every second row and column, from each of the four corners."""
    corners = "".join(
        f"r{i} = Slice<axes = [0], starts = [{i}], ends = [9]>(x)"
        f" c{i}{j} = Slice<axes = [1], starts = [{j}], ends = [9]>(r{i})"
        if j == 0
        else f" c{i}{j} = Slice<axes = [1], starts = [{j}], ends = [9]>(r{i})\n"
        for i in (0, 1)
        for j in (0, 1)
    )
    text = f"""<ir_version: 8, opset_import: ["" : 9]>
        g (float[4, 4] x) => (float[A, 4] c00, float[A, 3] c01, float[B, 4] c10, float[B, 3] c11) {{ {corners} }}"""
    assert_rewrites(MergeSlices(), text, ops={"Slice": 4})


def test_another_reader_and_bounds_that_are_computed() -> None:
    assert_refuses(
        MergeSlices(),
        slices((0, 1, 0, 1), (0, 4, 1, 1), "r = Exp(p)  s = ReduceMax(r)  y = Add(q, s)"),
        "another reader",
    )
    assert_refuses(
        MergeSlices(),
        f"""{HEAD} g (float[N, 8] x, int64[1] s) => (float[A, B] y)
        <int64[1] a = {{0}}, int64[1] e = {{1}}, int64[1] k = {{1}}> {{
            p = Slice(x, s, e, a)  y = Slice(p, a, e, k)
        }}""",
        "is not constant",
    )


def test_composition_agrees_with_numpy_for_every_length() -> None:
    bounds = [0, 1, 3, 7, END]
    ends = [*bounds, -1, -4]
    composed = 0
    for s1, e1, k1, s2, e2, k2 in itertools.product(bounds, ends, (1, 2), bounds, ends, (1, 3)):
        both = compose(Range(s1, e1, k1), Range(s2, e2, k2), None)
        if both is None:
            continue
        composed += 1
        for dim in range(9):
            x = np.arange(dim)
            assert list(x[both.start : both.end : both.step]) == list(x[s1:e1:k1][s2:e2:k2])
    assert composed > 1000


def test_composition_with_a_known_length_does_every_bound() -> None:
    bounds = [-9, -3, -1, 0, 2, 5, END]
    for dim in (0, 1, 5, 8):
        x = np.arange(dim)
        for s1, e1, k1, s2, e2, k2 in itertools.product(bounds, bounds, (1, 2), bounds, bounds, (1, 3)):
            both = compose(Range(s1, e1, k1), Range(s2, e2, k2), dim)
            assert both is not None
            assert list(x[both.start : both.end : both.step]) == list(x[s1:e1:k1][s2:e2:k2])
