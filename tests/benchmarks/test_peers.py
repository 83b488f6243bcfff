"""The benchmark measures what it says: processes, errors, synthetic models, and the page."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("check", "measure", "report", "synthetic")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which are scripts beside one another and no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in MODULES:
            sys.modules.pop(name, None)


def test_a_process_is_accounted_for(bench: SimpleNamespace) -> None:
    work = "import time; b = bytearray(60_000_000)\nwhile time.process_time() < 0.3: pass"
    usage = bench.measure.run([sys.executable, "-c", work], timeout=20)
    assert usage.status == 0
    assert 0.3 <= usage.cpu <= usage.wall + 0.1
    assert usage.anonymous_mb > 57
    assert usage.peak_mb > 57


def test_a_process_is_stopped_at_the_limit(bench: SimpleNamespace) -> None:
    usage = bench.measure.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert usage.status is None
    assert usage.failed
    assert usage.wall < 10


def test_errors_are_found(bench: SimpleNamespace) -> None:
    expected = np.array([1.0, -4.0, np.inf, np.nan], np.float32)
    assert bench.check._error(expected.copy(), expected) == 0.0
    assert bench.check._error(expected + np.float32([1, 0, 0, 0]), expected) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="NaN or Inf"):
        bench.check._error(np.float32([1, -4, 0, np.nan]), expected)
    with pytest.raises(ValueError, match="shape"):
        bench.check._error(expected[:2], expected)


def test_a_wrong_result_is_noticed(bench: SimpleNamespace, tmp_path: Path) -> None:
    original, wrong = tmp_path / "original.onnx", tmp_path / "wrong.onnx"
    bench.synthetic.with_nodes(150, original)
    assert bench.check.reference(original, tmp_path) == {"sets": ["A", "B"]}
    assert bench.check.compare(original, tmp_path) == {"A": 0.0, "B": 0.0}

    model = onnx.load(original)
    weight = model.graph.initializer[0]
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.5)).tobytes()
    onnx.save(model, wrong)
    assert all(error > bench.report.EXACT_ENOUGH for error in bench.check.compare(wrong, tmp_path).values())


def test_synthetic_models_are_valid_and_of_the_size_asked_for(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    bench.synthetic.with_nodes(1500, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert 1500 <= len(model.graph.node) < 1700
    assert "If" in {node.op_type for node in model.graph.node}
    again = tmp_path / "again.onnx"
    bench.synthetic.with_nodes(1500, again)
    assert again.read_bytes() == path.read_bytes()


def test_external_weights_lie_where_the_model_says(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    weights = bench.synthetic.ExternalWeights(tmp_path / "weights.onnx.data")
    tensors = [weights(name, shape) for name, shape in (("a", (30, 50)), ("b", (2100, 1000)))]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), path)
    assert bench.check.count(path)["bytes"] > 4 * (1500 + 2_100_000)
    a, b = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    assert (a.shape, b.shape) == ((30, 50), (2100, 1000))
    assert np.all(np.isfinite(b))
    assert not np.array_equal(a.ravel(), b.ravel()[: a.size])


def test_the_page_tells_who_is_better(bench: SimpleNamespace) -> None:
    report = bench.report
    costs = report.Costs(cpu=1.0, wall=1.0, peak_mb=100.0, anonymous_mb=50.0)
    fine = {"A": 1e-7, "B": 0.0}
    rows = (
        report.Row("graphopt", costs, None, 60, 900, fine),
        report.Row("onnxsim", costs, None, 50, 900, fine, 0.5),
        report.Row("onnxslim", costs, None, 10, 900, {"A": 0.3, "B": 0.0}, 0.5),
        report.Row("onnxscript", costs, "exit 1: boom"),
    )
    result = report.ModelResult("net", 100, 1000, rows)
    page = report.document("Title", "command", "CPU", {"graphopt": "1"}, [result], scale=False)
    assert "0 of 1 models" in page
    assert "net: graphopt 60, onnxsim 50" in page  # onnxslim's ten nodes are wrong, and so no rival
    assert "onnxscript: exit 1: boom" in page
