"""Searching for inputs that a model runs on."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from graphopt.errors import UserError
from graphopt.runtime.inputs import ProbeSet, Synthesizer
from graphopt.runtime.probe import Probes, find_probes, has_nan
from graphopt.runtime.session import open_session


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    m = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    m.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return m


def probes(m: onnx.ModelProto, **kwargs: object) -> Probes:
    return find_probes(open_session(m), Synthesizer(m), **kwargs)  # type: ignore[arg-type]


def shapes(found: Probes, name: str) -> list[tuple[int, ...]]:
    return [np.shape(s.feeds[name]) for s in found.sets]  # type: ignore[arg-type]


def test_dims_that_must_be_equal_are_found_equal() -> None:
    found = probes(model("g(float[a,b] x, float[c,d] z) => (float[e,f] y) { y = Concat<axis=0>(x, z) }"))
    assert len(found.sets) == 2
    for s in found.sets:
        assert np.shape(s.feeds["x"])[1] == np.shape(s.feeds["z"])[1]  # type: ignore[arg-type]
    assert shapes(found, "x")[0] != shapes(found, "x")[1]


def test_the_outputs_are_those_of_the_inputs() -> None:
    found = probes(model("g(float[n] x) => (float[n] y) { y = Neg(x) }"))
    for s, o in zip(found.sets, found.outputs, strict=True):
        assert np.array_equal(o["y"], -s.feeds["x"])  # type: ignore[arg-type, operator]


def test_a_size_that_is_baked_into_the_model_is_found_there() -> None:
    found = probes(
        model("g(float[n,t] x) => (float[a,b,c] y) { y = Reshape(x, s) }", s=np.array([23, -1, 2]))
    )
    assert found.sets
    assert all(np.size(s.feeds["x"]) % 46 == 0 for s in found.sets)  # type: ignore[arg-type]


def test_a_network_that_needs_a_certain_image_size() -> None:
    m = model(
        "g(float[n,3,h,w] x) => (float[n,5] y)"
        "{ c = Conv<strides=[16,16], kernel_shape=[16,16]>(x, k) f = Flatten(c) y = MatMul(f, m) }",
        k=np.ones((1, 3, 16, 16), np.float32),
        m=np.ones((14 * 14, 5), np.float32),
    )
    found = probes(m)
    assert shapes(found, "x") == [(1, 3, 224, 224), (2, 3, 224, 224)]


def test_inputs_without_nan_are_preferred() -> None:
    m = model(
        "g(float[n] x) => (float[n] y) { h = Sub(x, half) y = Sqrt(h) }", half=np.array([-0.2], np.float32)
    )
    found = probes(m)
    assert not any(has_nan(o) for o in found.outputs)
    nan = probes(model("g(float[n] x) => (float[n] y) { y = Mul(x, c) }", c=np.array([np.nan], np.float32)))
    assert len(nan.sets) == 2
    assert "NaN" in nan.notes[0]


def test_a_model_that_never_runs_says_why() -> None:
    m = model("g(float[3] x) => (float[a] y) { y = Reshape(x, s) }", s=np.array([2, 2]))
    found = probes(m)
    assert not found.sets
    assert "no inputs were found that the model runs on" in found.reason
    assert "eshape" in found.reason


def test_overrides_that_the_model_refuses_are_left_out() -> None:
    m = model(
        "g(float[6] x, int64 k) => (float[a,b] y) { u = Constant<value_ints=[0]>() v = Unsqueeze(k, u)"
        " w = Constant<value_ints=[-1]>() s = Concat<axis=0>(v, w) y = Reshape(x, s) }",
        k=np.array(3),
    )
    found = probes(m)
    assert len(found.sets) == 2
    assert "k" not in found.sets[1].feeds


X = np.arange(12, dtype=np.float32).reshape(3, 4)
PLAIN = "g(float[n,4] x, float[n] z) => (float[n,4] y) { y = Neg(x) }"


def test_what_the_data_lacks_is_synthesized_to_fit() -> None:
    found = probes(model(PLAIN), data=[ProbeSet({"x": X}, source="data")])
    assert shapes(found, "z") == [(3,)]
    assert found.sets[0].source == "data"
    assert np.array_equal(found.outputs[0]["y"], -X)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({"q": X}, "no input is called 'q'"),
        ({"x": X.astype(np.float64)}, "is float32, the data is float64"),
        ({"x": X[0]}, "has 2 dims, the data 1"),
    ],
)
def test_data_that_does_not_fit(feeds: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        probes(model(PLAIN), data=[ProbeSet(feeds)])
