from __future__ import annotations

import onnx

from graphopt.testing import assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.remove_noop_reshape import RemoveNoopReshape

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_copied_and_inferred_dims() -> None:
    assert_rewrites(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y)
        <int64[2] a = {{-1, 4}}, int64[2] b = {{0, -1}}, int64[2] c = {{0, 4}}> {{
            p = Reshape(x, a)  q = Reshape(p, b)  r = Reshape(q, c)  s = Flatten(r)  y = Relu(s)
        }}""",
        ops={"Relu": 1},
    )


def test_the_shape_of_another_tensor_of_that_shape() -> None:
    assert_rewrites(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, M] x) => (float[N, M] y) {{
            e = Exp(x)  s = Shape(e)  r = Reshape(x, s)  y = Relu(r)
        }}""",
        ops={"Relu": 1},
    )


def test_a_chain_that_ends_where_it_began() -> None:
    assert_rewrites(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 2, 2] z)
        <int64[3] a = {{-1, 2, 2}}, int64[1] one = {{1}}, int64[2] b = {{-1, 4}}> {{
            p = Reshape(x, a)  q = Unsqueeze(p, one)  r = Reshape(q, b)  y = Relu(r)  z = Exp(p)
        }}""",
        ops={"Reshape": 1, "Relu": 1, "Exp": 1},
    )


def test_no_axes() -> None:
    assert_rewrites(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <int64[0] none = {{}}> {{
            r = Relu(x)  y = Unsqueeze(r, none)
        }}""",
        ops={"Relu": 1},
    )


def test_squeeze_of_an_empty_list_may_mean_all() -> None:
    assert_refuses(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 1] x) => (float[N] y) <int64[0] none = {{}}> {{
            r = Squeeze(x, none)  y = Relu(r)
        }}""",
    )


def test_another_shape_of_the_same_size() -> None:
    assert_refuses(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 4] x) => (float[M, 2] y) <int64[2] a = {{-1, 2}}> {{
            r = Reshape(x, a)  y = Relu(r)
        }}""",
    )


def test_a_target_with_zeros_that_mean_zero() -> None:
    assert_refuses(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 0] x) => (float[0, N] y) <int64[2] a = {{0, 3}}> {{
            r = Reshape<allowzero = 1>(x, a)  y = Relu(r)
        }}""",
    )


def test_two_dims_of_different_names() -> None:
    assert_refuses(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, M] x, float[M, N] z) => (float[M, N] y) {{
            s = Shape(z)  r = Reshape(x, s)  y = Relu(r)
        }}""",
    )


def test_a_declared_shape_that_lies_is_not_believed() -> None:
    assert_refuses(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[2, 4] x) => (float[A, B] y) <float[8, 1] t, int64[2] a = {{8, 1}}> {{
            t = Exp(x)  r = Reshape(t, a)  y = Relu(r)
        }}""",
    )


def test_an_overridable_target() -> None:
    model = parse(f"""{HEAD} g (float[2, 4] x, int64[2] a) => (float[A, B] y) {{
        r = Reshape(x, a)  y = Relu(r)
    }}""")
    model.graph.initializer.append(onnx.helper.make_tensor("a", 7, [2], [2, 4]))
    assert_refuses(RemoveNoopReshape(), model)


def test_in_a_branch_over_a_capture() -> None:
    assert_rewrites(
        RemoveNoopReshape(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) <int64[2] a = {{-1, 4}}> {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ d = Reshape(x, a)  p = Exp(d) }},
                else_branch = e () => (float[N, 4] q) {{ q = Neg(x) }}
            >
        }}""",
        ops={"If": 1, "Exp": 1, "Neg": 1},
    )
