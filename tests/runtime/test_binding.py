"""Runs whose inputs and outputs stay on the device: on the CPU for real, for a GPU with onnxruntime's calls."""

from typing import Any

import fake_cuda
import ml_dtypes
import numpy as np
import pytest
from fake_cuda import FakeCuda
from onnx import TensorProto, helper, parser

from graphopt.runtime import binding, providers
from graphopt.runtime.measure import Contestant, Plan, measure
from graphopt.runtime.providers import AS_DEPLOYED, CUDA, ProviderSettings, current, using
from graphopt.runtime.session import RuntimeFailure, Session, open_session

MODEL = parser.parse_model(
    """<ir_version: 8, opset_import: ["": 17]> g (float[2, N] x, int64[1] axis) => (float[2, N] y, float[2, 1] m) {
        y = Neg(x) m = ReduceSum(x, axis) }"""
)
FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "axis": np.array([1])}


def test_a_bound_run_computes_the_same_again_and_again() -> None:
    with open_session(MODEL) as opened:
        bound = opened.bind(FEEDS)
        for _ in range(3):
            bound.run()
        expected, found = opened.run(FEEDS), bound.outputs()
    assert list(found) == ["y", "m"]
    for name, value in expected.items():
        assert np.array_equal(found[name], value)  # type: ignore[arg-type]


def test_several_inputs_are_bound_at_once() -> None:
    other = {"x": np.ones((2, 5), np.float32), "axis": np.array([0 + 1])}
    with open_session(MODEL) as opened:
        first, second = opened.bind(FEEDS), opened.bind(other)
        for bound in (first, second, first):
            bound.run()
        assert np.array_equal(first.outputs()["y"], -FEEDS["x"])  # type: ignore[arg-type]
        assert np.array_equal(second.outputs()["y"], -other["x"])  # type: ignore[arg-type]


def test_dtypes_that_numpy_lacks() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [3])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.array([1.5, -0.0, 0.25]).astype(ml_dtypes.bfloat16)
    with open_session(model) as opened:
        bound = opened.bind({"x": x})
        bound.run()
        assert bound.outputs()["y"].tobytes() == x.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }", [np.ones(2, np.float32)]),
        ("(float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x) }", np.ones(2, np.float32)),
        ("(string[2] x) => (string[2] y) { y = Identity(x) }", np.array(["a", "b"], object)),
    ],
)
def test_what_cannot_be_bound(text: str, value: Any) -> None:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> g {text}')
    with open_session(model) as opened:
        assert opened.run({"x": value})
        with pytest.raises(RuntimeFailure) as e:
            opened.bind({"x": value})
    assert e.value.kind == "unsupported"


def test_values_that_do_not_fit_fail_when_run() -> None:
    with open_session(MODEL) as opened:
        bound = opened.bind({"x": np.ones((3, 3), np.float32), "axis": np.array([1])})
        with pytest.raises(RuntimeFailure):
            bound.run()


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[FakeCuda]:
    return fake_cuda.install(monkeypatch)


def test_inputs_go_to_the_device_once_and_each_run_waits_for_it(on_cuda: list[FakeCuda]) -> None:
    with open_session(MODEL, provider="cuda", settings=ProviderSettings(device_id=1)) as opened:
        bound = opened.bind(FEEDS)
        bound.run()
        bound.run()
        assert np.array_equal(bound.outputs()["y"], -FEEDS["x"])  # type: ignore[arg-type]
    log = on_cuda[0].log
    assert log == [
        ("providers", [(CUDA, {"device_id": "1"}), "CPUExecutionProvider"]),
        ("to", "cuda", 1),
        ("bind_ortvalue_input", "x"),
        ("to", "cuda", 1),
        ("bind_ortvalue_input", "axis"),
        ("bind_output", "y", "cuda", 1),
        ("bind_output", "m", "cuda", 1),
        ("synchronize_inputs",),
        ("run",),
        ("synchronize_outputs",),
        ("run",),
        ("synchronize_outputs",),
        ("get_outputs",),
    ]


def test_latency_on_cuda_is_measured_bound(on_cuda: list[FakeCuda]) -> None:
    plan = Plan(provider=CUDA, seconds=0.1, rounds=3)
    found = measure([Contestant(MODEL, [FEEDS])] * 2, plan)
    assert found.bound
    assert len(on_cuda) == 6
    for fake in on_cuda:
        runs = [e[0] for e in fake.log].count("run")
        assert runs == [e[0] for e in fake.log].count("synchronize_outputs") > 2
        assert [e[0] for e in fake.log].count("synchronize_inputs") == 1
        assert fake.log[0] == ("providers", [CUDA, "CPUExecutionProvider"])  # TF32 as it is deployed


def test_tf32_is_off_unless_something_else_is_said(on_cuda: list[FakeCuda]) -> None:
    open_session(MODEL, provider="cuda")
    open_session(MODEL, provider="cuda", settings=AS_DEPLOYED)
    with using(ProviderSettings(tf32=True)):
        assert current().tf32
        open_session(MODEL, provider="cuda")
    assert current() == providers.EXACT_MATH
    given = [fake.log[0][1][0] for fake in on_cuda]
    assert given == [(CUDA, {"use_tf32": "0"}), CUDA, (CUDA, {"use_tf32": "1"})]


def test_nvidias_override_turns_tf32_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AS_DEPLOYED.uses_tf32(providers.TENSORRT)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not AS_DEPLOYED.uses_tf32(CUDA)
    assert not AS_DEPLOYED.uses_tf32(providers.TENSORRT)


def test_a_failing_bound_run_on_cuda_is_explained(on_cuda: list[FakeCuda]) -> None:
    with open_session(MODEL, provider="cuda") as opened:
        bound = opened.bind(FEEDS)

        def fail(given: Any) -> None:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

        on_cuda[0].run_with_iobinding = fail  # type: ignore[method-assign]
        with pytest.raises(MemoryError, match="ran out of the GPU's memory"):
            bound.run()
        assert isinstance(opened, Session)
    assert binding.Bound.__doc__
