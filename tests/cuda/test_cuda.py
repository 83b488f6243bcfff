"""CUDA for real: the same numbers, latency with bound inputs, who computes what, TF32, the memory limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.runtime.assignment import assignment
from graphopt.runtime.cuda import DeviceMemoryError
from graphopt.runtime.latency import compare_latency
from graphopt.runtime.providers import AS_DEPLOYED, CUDA, EXACT_MATH, ProviderSettings
from graphopt.runtime.session import open_session

MODELS = sorted((Path(__file__).resolve().parents[2] / "models").glob("*.onnx"))
CNN = next(m for m in MODELS if m.name == "digits_cnn.onnx")


def matmul(n: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A product of two n x n matrices, and its input."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[{n},{n}] x) => (float[{n},{n}] y)'
        f" <float[{n},{n}] w> {{ y = MatMul(x, w) }}"
    )
    del model.graph.initializer[:]
    w = rng.standard_normal((n, n)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return model, {"x": rng.standard_normal((n, n)).astype(np.float32)}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_cuda_computes_what_the_cpu_does(model: Path) -> None:
    found = graphopt.validate(model, model, providers=("cpu", "cuda"))
    assert found.verdict == "proven", found.reason


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_optimized_models_hold_on_cuda(model: Path, tmp_path: Path) -> None:
    result = graphopt.run(model, target="ort-cuda", providers=("cpu", "cuda"))
    assert result.report.verdict == "proven", result.report.verdict_reason


def test_latency_with_bound_inputs() -> None:
    model, feeds = matmul(1024)
    report = graphopt.bench([CNN, CNN], provider="cuda", seconds=2, memory=False)
    assert report.settings["IO binding"] == "on"
    assert report.settings["TF32"] == "on"
    assert "driver" in report.machine
    assert {o.provider for o in report.timings[0].ops} <= {CUDA, "CPUExecutionProvider"}
    large, larger = matmul(4096)
    found = compare_latency(model, large, [feeds], b_feeds=[larger], provider="cuda", seconds=2)
    assert found.is_slower  # 64 times the work: were runs not waited for, both would take the same


def test_a_bound_run_gives_what_a_plain_one_does() -> None:
    model, feeds = matmul(256)
    with open_session(model, provider="cuda") as session:
        bound = session.bind(feeds)
        bound.run()
        bound.run()
        assert np.array_equal(bound.outputs()["y"], session.run(feeds)["y"])  # type: ignore[arg-type]


def test_who_computes_what() -> None:
    found = assignment(Model.load(CNN).session_source(), provider="cuda")
    assert found.counts[CUDA] > 0
    assert found.coverage == pytest.approx(found.counts[CUDA] / sum(found.counts.values()))
    assert all(node.reason for node in found.fallbacks)
    integer = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (uint8[2,2] a, uint8[2,2] b) => (int32[2,2] y) {
            y = MatMulInteger(a, b) }"""
    )
    lone = assignment(integer, provider="cuda")
    if lone.fallbacks:  # newer versions may have a kernel for it
        assert lone.fallbacks[0].cause == "no kernel"


def test_tf32_changes_numbers_and_is_noted() -> None:
    model, feeds = matmul(1024)
    outputs = {}
    for name, settings in (("exact", EXACT_MATH), ("coarse", ProviderSettings(tf32=True))):
        with open_session(model, provider="cuda", settings=settings) as session:
            outputs[name] = np.asarray(session.run(feeds)["y"], np.float64)
    w = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    truth = feeds["x"].astype(np.float64) @ w
    rms = np.sqrt(np.mean(truth**2))
    exact, coarse = (float(np.abs(outputs[n] - truth).max() / rms) for n in ("exact", "coarse"))
    assert exact < 1e-5
    assert coarse < 1e-2
    assert coarse >= exact
    assert AS_DEPLOYED.describe(CUDA)["TF32"] == "on"


def test_the_memory_limit_is_obeyed() -> None:
    model, feeds = matmul(4096)  # 64 MiB each of x, w and y
    with (
        pytest.raises(DeviceMemoryError, match="50,000,000 bytes"),
        open_session(model, provider="cuda", settings=ProviderSettings(memory_limit=50_000_000)) as session,
    ):
        session.run(feeds)


def test_a_gpu_that_is_not_there() -> None:
    model, _ = matmul(8)
    with pytest.raises(UserError):
        open_session(model, provider="cuda", settings=ProviderSettings(device_id=99))
