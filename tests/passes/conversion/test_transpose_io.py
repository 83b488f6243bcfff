from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.conversion.transpose_io import TransposeIo

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = f"""{HEAD} g (float[N, 3, 8, 6] x, float[N, 2] s) => (float[N, 3, 8, 6] y, float[N, 2] t) {{
    y = Relu(x)  t = Neg(s)
}}"""


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_all_images() -> None:
    done = assert_rewrites(TransposeIo(), MODEL, ops={"Transpose": 2, "Relu": 1, "Neg": 1})
    graph = done.proto.graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["x", "s", "y", "t"]
    assert dims(graph.input[0]) == dims(graph.output[0]) == ["N", 8, 6, 3]
    assert graph.input[0].type.tensor_type.shape.dim[3].denotation == "DATA_CHANNEL"


def test_numbers_against_numpy() -> None:
    proto = parse(MODEL)
    result = graphopt.run(proto, "transpose-io{outputs=[y]},transpose-io{inputs=[x]},default")
    assert result.report.verdict == "proven"
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 3)).astype(np.float32)
    with open_session(result.model.to_proto()) as session:
        got = session.run({"x": x, "s": np.ones((2, 2), np.float32)})
    np.testing.assert_array_equal(got["y"], np.maximum(x, 0))


def test_there_and_back() -> None:
    passes = [TransposeIo(), TransposeIo(layout="nchw")]
    done = apply(passes, MODEL)
    assert dims(done.proto.graph.input[0]) == ["N", 3, 8, 6]
    assert done.ops["Transpose"] == 4


def test_transposes_merge_with_those_in_the_model() -> None:
    text = f"""{HEAD} g (float[N, 8, 6, 3] x) => (float[N, 8, 6, 3] y) {{
        a = Transpose<perm = [0, 3, 1, 2]>(x)  b = Relu(a)  y = Transpose<perm = [0, 2, 3, 1]>(b) }}"""
    result = graphopt.run(
        parse(text), "transpose-io{layout=nchw},fixpoint(merge-transposes,remove-noop-transpose)"
    )
    assert result.report.verdict == "proven"
    assert [n.op for n in result.model.graph.nodes] == ["Relu"]


def test_named_inputs_of_rank_3_and_integers() -> None:
    text = f"{HEAD} g (uint8[4, 5, 6] x) => (uint8[4, 5, 6] y) {{ y = Identity(x) }}"
    assert_refuses(TransposeIo(), text)
    done = assert_rewrites(TransposeIo(inputs=("x",)), text, ops={"Transpose": 1, "Identity": 1})
    assert dims(done.proto.graph.input[0]) == [4, 6, 5]


def test_read_in_a_body_and_by_others() -> None:
    text = f"""{HEAD} g (float[N, 3, 4, 5] x, bool c) => (float[N, 3, 4, 5] y, float[N, 3, 4, 5] z) {{
        z = Neg(x)
        y = If (c) <
            then_branch = t () => (float[N, 3, 4, 5] p) {{ p = Relu(x) }},
            else_branch = e () => (float[N, 3, 4, 5] q) {{ q = Add(x, z) }}
        >
    }}"""
    assert_rewrites(TransposeIo(), text, ops={"Transpose": 3, "Neg": 1, "If": 1, "Relu": 1, "Add": 1})


def test_an_output_that_is_read_inside() -> None:
    text = f"{HEAD} g (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y, float[1, 3, 4, 5] z) {{ y = Relu(x) z = Neg(y) }}"
    assert_rewrites(TransposeIo(outputs=("y",)), text, ops={"Transpose": 1, "Relu": 1, "Neg": 1})


def test_denoted_already() -> None:
    done = apply(TransposeIo(), MODEL)
    assert_refuses(TransposeIo(), done.proto, "nhwc already")


def test_an_input_that_is_an_output() -> None:
    text = f"{HEAD} g (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] x, float[1, 3, 4, 5] y) {{ y = Relu(x) }}"
    assert_refuses(TransposeIo(inputs=("x",)), text, "is an output as well")
    assert_refuses(TransposeIo(outputs=("x",)), text, "not computed by a node")


def test_a_default_value() -> None:
    text = f"""{HEAD} g (float[1, 3, 1, 1] x, float[1, 3, 1, 1] w = {{1, 2, 3}}) => (float[1, 3, 1, 1] y)
    {{ y = Add(x, w) }}"""
    done = assert_rewrites(TransposeIo(inputs=("x",)), text, ops={"Transpose": 1, "Add": 1})
    assert [t.name for t in done.proto.graph.initializer] == ["w"]
    with pytest.raises(UserError, match="no input is called 'w'"):
        apply(TransposeIo(inputs=("w",)), text)


def test_kept() -> None:
    assert_refuses(TransposeIo(inputs=("x",)), MODEL, "x is kept", keep=["x"])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (TransposeIo(inputs=("z",)), "no input is called 'z'"),
        (TransposeIo(outputs=("yy",)), "did you mean 'y'"),
        (TransposeIo(inputs=("s",)), "of rank 2"),
    ],
)
def test_refused_before_any_work(item: TransposeIo, words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.run(parse(MODEL), [item])
