"""The policy in models/ passes the quantized classifier, and no broken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from gate_models import only
from junitparser import JUnitXml
from onnx import numpy_helper

import graphopt
from graphopt.cli.main import main

MODELS = Path(__file__).parents[2] / "models"
POLICY = MODELS / "gate.toml"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier in int8, as graphopt makes it."""
    path = tmp_path_factory.mktemp("digits") / "digits_int8.onnx"
    graphopt.run(MODELS / "digits_cnn.onnx", "int8", data=MODELS / "digits.npz", verify="off").save(path)
    return path


def broken(good: Path, how: str) -> Path:
    """The model with one thing wrong."""
    model = onnx.load(good)
    (name,) = (
        n.input[1]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and "stem.0.weight" in n.input[0]
    )
    by_name = {t.name: t for t in model.graph.initializer}
    if how == "wrong scale":
        scale = by_name[name]
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(3), name))
    elif how == "NaN":
        scale = by_name[name]
        values = numpy_helper.to_array(scale).copy()
        values.reshape(-1)[0] = np.nan
        scale.CopyFrom(numpy_helper.from_array(values, name))
    elif how == "renamed output":
        for node in model.graph.node:
            node.output[:] = ["scores" if o == "logits" else o for o in node.output]
        model.graph.output[0].name = "scores"
    path = good.with_name(f"{how.replace(' ', '_')}.onnx")
    onnx.save(model, path)
    return path


def test_the_good_model_passes(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = tmp_path / "gate.xml"
    assert main(["gate", str(good), "--policy", str(POLICY), "--junit", str(xml)]) == 0
    assert capsys.readouterr().out.startswith("PASSED: all ")
    suites = list(JUnitXml.fromfile(str(xml)))
    assert len(suites) == 15
    assert sum(s.tests for s in suites) == 26
    assert sum(s.failures + s.errors for s in suites) == 0


@pytest.mark.parametrize(
    ("how", "failed"),
    [
        (
            "wrong scale",
            {"numerics.min_sqnr_db.logits", "numerics.min_cosine.logits", "metrics.accuracy.max_drop"},
        ),
        ("NaN", {"weights.finite", "numerics.min_sqnr_db.logits"}),
        ("renamed output", {"interface.outputs", "interface.outputs.logits"}),
    ],
)
def test_a_bad_model_fails(good: Path, tmp_path: Path, how: str, failed: set[str]) -> None:
    xml = tmp_path / "gate.xml"
    assert main(["gate", str(broken(good, how)), "--policy", str(POLICY), "--junit", str(xml), "-q"]) == 1
    cases = [case for suite in JUnitXml.fromfile(str(xml)) for case in suite]
    assert failed <= {case.name for case in cases if case.result}
    assert {case.name for case in cases if not case.result} >= {
        "opset.exact",
        "file.max_ratio",
        "model.runs",
    }


def test_the_float_model_is_not_what_ships(good: Path) -> None:
    report = graphopt.gate(MODELS / "digits_cnn.onnx", POLICY)
    assert report.exit_code() == 1
    for name in ("file.max_ratio", "ops.banned", "int8.min_share"):
        assert only(report, name).verdict == "failed"
    assert only(report, "numerics.min_sqnr_db.logits").verdict == "passed"
