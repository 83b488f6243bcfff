from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_unsqueezes import MergeUnsqueezes, unsqueezed_axes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize(
    ("a", "b", "shape", "axes"),
    [("0", "1", "A, 1, N, 4", [0, 1]), ("1", "1", "N, 1, A, 4", [1, 2]), ("-1", "0", "1, N, 4, A", [0, 3])],
)
def test_two_become_one(a: str, b: str, shape: str, axes: list[int]) -> None:
    done = assert_rewrites(
        MergeUnsqueezes(),
        f"""{HEAD} g (float[N, 4] x) => (float[{shape}] y) <int64[1] a = {{{a}}}, int64[1] b = {{{b}}}> {{
            p = Unsqueeze(x, a)  y = Unsqueeze(p, b)
        }}""",
        ops={"Unsqueeze": 1},
    )
    assert list(np.frombuffer(done.proto.graph.initializer[0].raw_data, np.int64)) == axes


def test_attributes_in_a_branch() -> None:
    assert_rewrites(
        MergeUnsqueezes(),
        """<ir_version: 7, opset_import: ["" : 11]>
        g (float[N] x, bool c) => (float[1, 1, N] y) {
            y = If(c) <
                then_branch = t () => (float[1, 1, N] p) { d = Unsqueeze<axes = [0]>(x)  p = Unsqueeze<axes = [0]>(d) },
                else_branch = e () => (float[1, 1, N] q) { q = Unsqueeze<axes = [0, 1]>(x) }
            >
        }""",
        ops={"If": 1, "Unsqueeze": 2},
    )


def test_another_reader() -> None:
    assert_refuses(
        MergeUnsqueezes(),
        f"""{HEAD} g (float[N] x) => (float[1, 1, N] y, float[1, N] z) <int64[1] a = {{0}}> {{
            p = Unsqueeze(x, a)  y = Unsqueeze(p, a)  z = Exp(p)
        }}""",
        "another reader",
    )


def test_several_unsqueezes_of_one() -> None:
    assert_rewrites(
        MergeUnsqueezes(),
        f"""{HEAD} g (float[N] x) => (float[1, 1, N] y, float[1, N, 1] z)
            <int64[1] a = {{0}}, int64[1] b = {{2}}> {{
            p = Unsqueeze(x, a)  y = Unsqueeze(p, a)  z = Unsqueeze(p, b)
        }}""",
        ops={"Unsqueeze": 2},
    )


def test_axes_that_are_computed() -> None:
    assert_refuses(
        MergeUnsqueezes(),
        f"""{HEAD} g (float[N] x, int64[1] b) => (float[A, B, C] y) <int64[1] a = {{0}}> {{
            p = Unsqueeze(x, a)  y = Unsqueeze(p, b)
        }}""",
        "is not constant",
    )


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(
        MergeUnsqueezes(),
        f"""{HEAD} g (float[N] x) => (float[1, 1, N] y) <int64[1] a = {{0}}> {{
            p = Unsqueeze(x, a)  y = Unsqueeze(p, a)
        }}""",
        "is kept",
        keep=["p"],
    )


def test_axes_agree_with_numpy() -> None:
    x = np.zeros((2, 3))
    for first in itertools.combinations(range(4), 2):
        middle = np.expand_dims(x, first)
        for second in range(5):
            merged = unsqueezed_axes(list(first), [second])
            assert np.expand_dims(x, tuple(merged)).shape == np.expand_dims(middle, second).shape
