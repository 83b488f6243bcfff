from __future__ import annotations

import onnx
import pytest

from graphopt.graph.dims import fresh_int, symbol
from graphopt.testing import assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.merge_reshapes import MergeReshapes, as_target, may_be_zero

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def two(first: str, second: str, shape: str = "N, 4, 6", rank: int = 2) -> str:
    n, m = len(first.split(",")), len(second.split(","))
    return f"""{HEAD} g (float[{shape}] x) => (float[{", ".join("ABCDE"[:rank])}] y)
    <int64[{n}] a = {{{first}}}, int64[{m}] b = {{{second}}}> {{
        p = Reshape(x, a)  y = Reshape(p, b)
    }}"""


def target(proto: onnx.ModelProto) -> list[int]:
    (constant,) = proto.graph.initializer
    values: list[int] = onnx.numpy_helper.to_array(constant).tolist()
    return values


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("-1, 24", "-1, 8", [-1, 8]),
        ("-1, 24", "0, -1", [0, -1]),  # the first dim of x is that of the middle
        ("24, -1", "0, -1", [24, -1]),
    ],
)
def test_zeros_and_minus_ones(first: str, second: str, expected: list[int]) -> None:
    done = assert_rewrites(MergeReshapes(), two(first, second), ops={"Reshape": 1})
    assert target(done.proto) == expected


def test_a_copied_dim_that_x_does_not_have_there() -> None:
    done = assert_rewrites(
        MergeReshapes(), two("-1, 3, 8", "0, 3, 4, 2", "N, 24", rank=4), ops={"Reshape": 1}
    )
    assert done.proto.graph.node[0].input[0] == "x"
    assert_refuses(
        MergeReshapes(),
        f"""{HEAD} g (float[N, M] x) => (float[1, N, M] y) <int64[1] o = {{0}}, int64[3] t = {{1, 0, -1}}> {{
            p = Unsqueeze(x, o)  y = Reshape(p, t)
        }}""",
        "not known",
    )


def test_a_zero_that_means_zero() -> None:
    assert_rewrites(
        MergeReshapes(),
        f"""{HEAD} g (float[N, 0, 4] x) => (float[0, 3] y) <int64[2] b = {{0, 3}}> {{
            p = Flatten(x)  y = Reshape<allowzero = 1>(p, b)
        }}""",
        ops={"Reshape": 1},
    )


@pytest.mark.parametrize(
    ("outer", "rank"), [("Flatten(p)", 2), ("Squeeze(p, one)", 3), ("Unsqueeze(p, one)", 5)]
)
def test_other_reshapes_become_a_reshape(outer: str, rank: int) -> None:
    assert_rewrites(
        MergeReshapes(),
        f"""{HEAD} g (float[N, 24] x) => (float[{", ".join("ABCDE"[:rank])}] y)
        <int64[4] a = {{-1, 1, 4, 6}}, int64[1] one = {{1}}> {{ p = Reshape(x, a)  y = {outer} }}""",
        ops={"Reshape": 1},
    )


@pytest.mark.parametrize("inner", ["Flatten(x)", "Squeeze(x, one)", "Unsqueeze(x, one)"])
def test_reshape_of_other_reshapes(inner: str) -> None:
    assert_rewrites(
        MergeReshapes(),
        f"""{HEAD} g (float[N, 1, 24] x) => (float[A, 8] y) <int64[2] a = {{-1, 8}}, int64[1] one = {{1}}> {{
            p = {inner}  y = Reshape(p, a)
        }}""",
        ops={"Reshape": 1},
    )


def test_two_unknown_dims() -> None:
    assert_refuses(
        MergeReshapes(),
        f"""{HEAD} g (float[N, M, 24] x) => (float[A, B, 24] y)
        <int64[4] a = {{0, 0, 1, 24}}, int64[1] two = {{2}}> {{ p = Reshape(x, a)  y = Squeeze(p, two) }}""",
        "not known",
    )


def test_a_computed_target() -> None:
    body = "p = Reshape(x, a)  s = Shape(z)  y = Reshape(p, s)"
    # Either dim may be 0 and would copy one of the middle's.
    assert_refuses(
        MergeReshapes(),
        f"{HEAD} g (float[N, 24] x, float[K, M] z) => (float[K, M] y) <int64[1] a = {{-1}}> {{ {body} }}",
        "not known",
    )
    assert_rewrites(
        MergeReshapes(),
        f"{HEAD} g (float[N, 24] x, float[N, 24] z) => (float[N, 24] y) <int64[3] a = {{0, 24, 1}}> {{ {body} }}",
        ops={"Shape": 1, "Reshape": 1},
    )


def test_an_overridable_target() -> None:
    model = parse(f"""{HEAD} g (float[N, 4, 6] x, int64[2] b) => (float[A, B] y) <int64[2] a = {{-1, 24}}> {{
        p = Reshape(x, a)  y = Reshape(p, b)
    }}""")
    model.graph.initializer.append(onnx.helper.make_tensor("b", 7, [2], [-1, 8]))
    assert_refuses(MergeReshapes(), model, "not known")


def test_another_reader_and_an_output() -> None:
    assert_refuses(
        MergeReshapes(),
        two("-1, 24", "-1, 8").replace("y = ", "z = Exp(p)  y = ").replace("B] y)", "B] y, float[C, D] z)"),
        "another reader",
    )
    assert_refuses(
        MergeReshapes(),
        two("-1, 24", "-1, 8").replace("B] y)", "B] y, float[C, D] p)"),
        "is a graph output",
    )


def test_pairs_of_squeezes_are_left_to_their_pass() -> None:
    assert_refuses(
        MergeReshapes(),
        f"""{HEAD} g (float[1, 4, 1] x) => (float[4] y) <int64[1] a = {{0}}, int64[1] b = {{1}}> {{
            p = Squeeze(x, a)  y = Squeeze(p, b)
        }}""",
    )


def test_in_a_branch_but_not_across() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 6] x, bool c) => (float[A, 8] y) <int64[2] a = {{-1, 24}}, int64[2] b = {{-1, 8}}> {{
            o = Reshape(x, a)
            y = If(c) <
                then_branch = t () => (float[A, 8] p) {{ {} }},
                else_branch = e () => (float[A, 8] q) {{ q = Reshape(o, b) }}
            >
        }}"""
    assert_rewrites(
        MergeReshapes(), text.format("d = Reshape(x, a)  p = Reshape(d, b)"), ops={"Reshape": 3, "If": 1}
    )
    assert_refuses(MergeReshapes(), text.format("p = Reshape(o, b)"))


def test_targets() -> None:
    n = symbol("N")
    assert as_target([n, 4]) == [-1, 4]
    assert as_target([2, 3]) == [2, 3]
    assert as_target([n, 0]) is None
    assert as_target([n, symbol("M")]) is None
    assert may_be_zero(n)
    assert may_be_zero(0)
    assert not may_be_zero(-1)
    assert not may_be_zero(n + 1)
    assert may_be_zero(fresh_int())
