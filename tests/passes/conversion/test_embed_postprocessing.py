from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.conversion.embed_postprocessing import EmbedPostprocessing

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = f"""{HEAD} g (float[N, 5, 3] x) => (float[N, 5, 3] y, int64[N, 5, 3] k) <float two = {{2}}> {{
    y = Mul(x, two)  a = Neg(y)  k = Cast<to = 7>(a)
}}"""


def run(proto: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with open_session(proto) as session:
        found = session.run({"x": x})["y"]
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax(axis: int) -> None:
    item = EmbedPostprocessing("softmax", output="y", axis=axis)
    done = assert_rewrites(item, MODEL, ops={"Mul": 1, "Softmax": 1, "Neg": 1, "Cast": 1}, once=True)
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    e = np.exp(2.0 * x)
    np.testing.assert_allclose(run(done.proto, x), e / e.sum(axis, keepdims=True), rtol=1e-5)


def test_sigmoid() -> None:
    done = assert_rewrites(EmbedPostprocessing("sigmoid", output="y"), MODEL, once=True)
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(run(done.proto, x), 1 / (1 + np.exp(-2.0 * x)), rtol=1e-5)


@pytest.mark.parametrize("keepdims", [False, True])
def test_argmax(keepdims: bool) -> None:
    item = EmbedPostprocessing("argmax", output="y", axis=1, keepdims=keepdims)
    done = assert_rewrites(item, MODEL, once=True)
    output = done.proto.graph.output[0].type.tensor_type
    assert output.elem_type == onnx.TensorProto.INT64
    assert [d.dim_param or d.dim_value for d in output.shape.dim] == ["N", *([1] if keepdims else []), 3]
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(done.proto, x), x.argmax(1, keepdims=keepdims))


def test_the_whole_run_with_the_default_pipeline() -> None:
    for text in (
        "embed-postprocessing{op=argmax output=y axis=1},default",
        "default,embed-postprocessing{op=softmax output=y}",
    ):
        assert graphopt.run(parse(MODEL), text).report.verdict == "proven"


def test_a_wrong_one_would_be_seen() -> None:
    from graphopt.judging import ProverJudge
    from graphopt.pipeline.base import Numerics

    for op in ("argmax", "softmax", "sigmoid"):
        item = EmbedPostprocessing(op, output="y", axis=1)  # type: ignore[arg-type]
        result = graphopt.run(parse(MODEL), [item], verify="off")
        judge = ProverJudge(graphopt.load(parse(MODEL)))
        assert judge.judge(result.model, Numerics.CLOSE).verdict == "proven"
        node = next(n for n in result.model.graph.nodes if n.op == "Mul")
        list.__setitem__(node.inputs, 1, node.inputs[0])  # x * x
        assert judge.judge(result.model, Numerics.CLOSE).verdict == "failed"


def test_before_opset_13_only_the_last_axis() -> None:
    text = MODEL.replace('"" : 17', '"" : 12')
    assert_rewrites(EmbedPostprocessing("softmax", output="y"), text, once=True)
    with pytest.raises(UserError, match="not along one axis"):
        apply(EmbedPostprocessing("softmax", output="y", axis=1), text)


def test_an_output_that_no_node_computes() -> None:
    text = f"{HEAD} g (float[4] x) => (float[4] x) {{ a = Relu(x) }}"
    assert_refuses(EmbedPostprocessing("sigmoid"), text, "not computed by a node")


def test_kept() -> None:
    assert_refuses(EmbedPostprocessing("sigmoid", output="y"), MODEL, "y is kept", keep=["y"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"op": "sigmoid"}, "2 outputs, and none was named"),
        ({"op": "softmax", "output": "k"}, "no float"),
        ({"op": "softmax", "output": "y", "axis": 3}, "no axis 3"),
        ({"op": "argmax", "output": "z"}, "no output is called"),
    ],
)
def test_refused_before_any_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.run(parse(MODEL), [EmbedPostprocessing(**options)])
