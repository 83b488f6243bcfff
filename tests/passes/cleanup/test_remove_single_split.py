from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_single_split import RemoveSingleSplit


def test_one_part() -> None:
    assert_rewrites(
        RemoveSingleSplit(),
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4, N] x) => (float[4, N] y) <int64[1] s = {4}> {
            a = Split(x)  b = Split<axis = 0>(a, s)  y = Relu(b)
        }""",
        ops={"Relu": 1},
    )


def test_opset_12_and_18() -> None:
    assert_rewrites(
        RemoveSingleSplit(),
        """<ir_version: 7, opset_import: ["" : 12]>
        g (float[4, N] x) => (float[4, N] y) { a = Relu(x)  y = Split<split = [4]>(a) }""",
        ops={"Relu": 1},
    )
    assert_rewrites(
        RemoveSingleSplit(),
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[4, N] x) => (float[4, N] y) { a = Relu(x)  y = Split<num_outputs = 1>(a) }""",
        ops={"Relu": 1},
    )


def test_two_parts() -> None:
    assert_refuses(
        RemoveSingleSplit(),
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4, N] x) => (float[2, N] y) { y, z = Split(x) }""",
    )


def test_sizes_that_are_computed() -> None:
    assert_refuses(
        RemoveSingleSplit(),
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4, N] x, int64[1] s) => (float[4, N] y) { a = Split(x, s)  y = Relu(a) }""",
        "is not constant",
    )
