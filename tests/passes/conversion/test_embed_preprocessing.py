from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.conversion.embed_preprocessing import EmbedPreprocessing

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = f"{HEAD} g (float[N, 3, 4, 5] x, int64[N] i) => (float[N, 3, 4, 5] y, int64[N] j) {{ y = Relu(x) j = Abs(i) }}"
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": "1/255"}


def raw_image(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def normalized(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of a batch with channels last, by the formula, in double precision; channels first."""
    value = (raw / 255.0 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    return value.transpose(0, 3, 1, 2)


def test_channels_last() -> None:
    item = EmbedPreprocessing(input="x", layout="nhwc", **IMAGENET)
    done = assert_rewrites(
        item, MODEL, ops={"Transpose": 1, "Cast": 1, "Mul": 1, "Sub": 1, "Relu": 1, "Abs": 1}, once=True
    )
    raw = raw_image(2, 4, 5, 3)
    with open_session(done.proto) as session:
        got = session.run({"x": raw, "i": np.array([1, 2])})["y"]
    np.testing.assert_allclose(got, np.maximum(normalized(raw), 0), rtol=1e-5, atol=1e-6)


def test_only_what_does_something() -> None:
    text = f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Relu(x) }}"
    assert_rewrites(EmbedPreprocessing(), text, ops={"Cast": 1, "Relu": 1}, once=True)
    assert_rewrites(EmbedPreprocessing(mean=(2.0,)), text, ops={"Cast": 1, "Sub": 1, "Relu": 1}, once=True)
    assert_rewrites(
        EmbedPreprocessing(dtype="float32", scale="1/2"), text, ops={"Mul": 1, "Relu": 1}, once=True
    )
    assert_refuses(EmbedPreprocessing(dtype="float32"), text, "nothing to do")


@pytest.mark.parametrize("type_", ["float16", "double"])
def test_other_float_types(type_: str) -> None:
    text = f"{HEAD} g ({type_}[N, 4] x) => ({type_}[N, 4] y) {{ y = Relu(x) }}"
    assert_rewrites(EmbedPreprocessing(scale="1/256"), text, ops={"Cast": 1, "Mul": 1, "Relu": 1}, once=True)


def test_the_whole_run_is_proven_on_raw_values_and_on_data() -> None:
    data = {"x": normalized(raw_image(3, 4, 5, 3)).astype(np.float32), "i": np.array([1, 2, 3])}
    text = "embed-preprocessing{input=x mean=[0.485,0.456,0.406] std=[0.229,0.224,0.225] scale=1/255 layout=nhwc}"
    for given in (None, data):
        result = graphopt.run(parse(MODEL), text, data=given)
        assert result.report.verdict == "proven"
        (port,) = result.report.interface
        assert (port.before, port.after) == ("float[N,3,4,5]", "uint8[N,4,5,3]")


def test_a_wrong_normalization_would_be_seen() -> None:
    """The comparison is on what the formula makes of raw values, not on what the nodes make of them."""
    result = graphopt.run(parse(MODEL), [EmbedPreprocessing(input="x", **IMAGENET)], verify="off")
    from graphopt.judging import ProverJudge
    from graphopt.pipeline.base import Numerics

    judge = ProverJudge(graphopt.load(parse(MODEL)))
    assert judge.judge(result.model, Numerics.CLOSE).verdict == "proven"
    mul = next(n for n in result.model.graph.nodes if n.op == "Mul")
    mul.inputs[1].values = mul.inputs[1].values * np.float32(1.001)
    assert judge.judge(result.model, Numerics.CLOSE).verdict == "failed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": "z"}, "no input is called 'z'"),
        ({}, "2 inputs, and none was named"),
        ({"input": "i"}, "only floats"),
        ({"input": "x", "mean": (1.0, 2.0)}, "is 3, but 2 values"),
        ({"input": "x", "mean": (1.0, 2.0, 3.0), "channel_axis": 7}, "no axis 7"),
    ],
)
def test_refused_before_any_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.run(parse(MODEL), [EmbedPreprocessing(**options)])
    with pytest.raises(UserError, match=words):
        apply(EmbedPreprocessing(**options), MODEL)


@pytest.mark.parametrize(
    "options",
    [
        {"std": (0.0,)},
        {"scale": "0"},
        {"scale": "x"},
        {"mean": (1.0, 2.0), "std": (1.0, 2.0, 3.0)},
        {"mean": ()},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mean|std|scale"):
        EmbedPreprocessing(**options)
