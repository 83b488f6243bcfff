from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.conversion.convert_io import ConvertIo

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = (
    f"""{HEAD} g (float[N, 4] x, int64[N] i) => (float[N, 4] y, int64[N] j) {{ y = Exp(x)  j = Abs(i) }}"""
)


def test_all_floats() -> None:
    done = assert_rewrites(ConvertIo(), MODEL, ops={"Cast": 2, "Exp": 1, "Abs": 1})
    graph = done.proto.graph
    types = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    half, integer = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64
    assert types == [half, integer, half, integer]
    x = np.linspace(-1, 1, 8).astype(np.float16).reshape(2, 4)
    with open_session(done.proto) as session:
        got = session.run({"x": x, "i": np.array([1, 2])})["y"]
    np.testing.assert_array_equal(got, np.exp(x.astype(np.float32)).astype(np.float16))


def test_named_and_the_whole_run() -> None:
    done = assert_rewrites(ConvertIo(inputs=("x",)), MODEL, ops={"Cast": 1, "Exp": 1, "Abs": 1})
    assert done.proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    for dtype in ("float16", "bfloat16", "float64"):
        assert graphopt.run(parse(MODEL), f"convert-io{{dtype={dtype}}}").report.verdict == "proven"


def test_an_input_that_is_an_output() -> None:
    text = f"{HEAD} g (float[4] x) => (float[4] x, float[4] y) {{ y = Relu(x) }}"
    assert_refuses(ConvertIo(inputs=("x",)), text, "is an output as well")


def test_kept() -> None:
    assert_refuses(ConvertIo(inputs=("x",)), MODEL, "x is kept", keep=["x"])


def test_nothing_to_do() -> None:
    assert not apply(ConvertIo(dtype="float32"), MODEL).journal.changes


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (ConvertIo(inputs=("z",)), "no input is called 'z'"),
        (ConvertIo(outputs=("j",)), "which is no float"),
    ],
)
def test_refused_before_any_work(item: ConvertIo, words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.run(parse(MODEL), [item])
