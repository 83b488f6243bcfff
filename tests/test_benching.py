"""The report of a measurement: what goes in, what is refused. How well it measures: test_measure.py."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.benching import SAMPLES, bench, disagreements
from graphopt.errors import ProviderError, UserError
from graphopt.report.document import FileInfo, to_json
from graphopt.report.timed import SCHEMA, BenchReport, Timing
from graphopt.runtime.plan import Ratio

MODEL = "models/digits_cnn.onnx"
QUICK = {"seconds": 0.2, "profile": False, "memory": False}


def chain(length: int, name: str = "x", type_: str = "float[N, 64]") -> onnx.ModelProto:
    w = "float[64, 64] w"
    steps = f"a0 = MatMul({name}, w) " + " ".join(f"a{i + 1} = MatMul(a{i}, w)" for i in range(length))
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g({type_} {name}) => ({type_} y) <{w}>'
        f"{{ {steps} y = Identity(a{length}) }}"
    )
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    return model


def test_everything_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "long.onnx"
    onnx.save(chain(40), path)
    report = graphopt.bench([chain(2), path], seconds=0.4, sessions=4, affinity=(0,), threads=1)
    assert isinstance(report, BenchReport)
    a, b = report.timings
    assert (a.label, b.label) == ("A", "B")
    assert b.file.path == str(path)
    assert b.file.bytes == path.stat().st_size
    assert b.min_ms <= b.p50_ms <= b.p90_ms <= b.p95_ms <= b.p99_ms
    assert len(b.quantiles_ms) == 101
    assert (b.quantiles_ms[0], b.quantiles_ms[50]) == (b.min_ms, b.p50_ms)
    assert list(b.quantiles_ms) == sorted(b.quantiles_ms)
    assert b.sessions == 4
    assert b.runs >= 8
    assert b.warm_up >= 8
    assert b.create_ms is not None
    assert {o.op: o.nodes for o in b.ops} == {"MatMul": 41}
    assert sum(o.share for o in b.ops) == pytest.approx(1)
    (ratio,) = report.ratios
    assert (ratio.a, ratio.b, ratio.verdict, ratio.sessions) == ("A", "B", "slower", 4)
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.confidence == 0.99
    assert report.affinity == (0,)
    assert report.provider == "CPUExecutionProvider"
    assert report.inputs[0].startswith("synthesized")
    assert "processors" in report.machine
    assert report.versions["onnxruntime"]
    found = json.loads(to_json(report, SCHEMA))
    assert found["schema"] == "graphopt.bench/1"
    assert found["ratios"][0]["verdict"] == "slower"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells how much memory is used")
def test_memory() -> None:
    report = bench([MODEL], seconds=0.1, profile=False)
    assert 0 < (report.timings[0].peak_bytes or 0) < 100e6
    assert report.ratios == ()


def test_data_is_run_sample_by_sample() -> None:
    data = {"image": np.random.default_rng(0).random((30, 1, 8, 8)).astype(np.float32)}
    report = bench([MODEL], data=data, **QUICK)
    assert 1 < len(report.inputs) <= SAMPLES
    assert "1x1x8x8" in report.inputs[0]


def test_shapes_are_as_asked_for() -> None:
    report = bench([MODEL], input_shapes={"image": (7, 1, 8, 8)}, **QUICK)
    assert "image 7x1x8x8" in report.inputs[0]


def test_inputs_of_other_names_are_taken_in_order() -> None:
    report = bench([chain(2), chain(2, "other")], **QUICK)
    assert len(report.ratios) == 1


def test_models_with_other_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="takes other inputs"):
        bench([chain(2), chain(2, "other", "double[N, 64]")], **QUICK)


def test_a_model_that_does_not_take_the_inputs_is_named() -> None:
    with pytest.raises(UserError) as e:
        bench(["models/messy.onnx", MODEL], **QUICK)
    assert MODEL in str(e.value) or "takes other inputs" in str(e.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 0}, "seconds cannot be 0"),
        ({"runs": 0}, "runs cannot be 0"),
        ({"sessions": -1}, "sessions cannot be -1"),
        ({"threads": 0}, "threads cannot be 0"),
        ({"confidence": 1.0}, "confidence cannot be 1"),
        ({"min_effect": -0.1}, "least effect"),
        ({"affinity": (9999,)}, "no processor 9999"),
        ({"input_shapes": {"nope": (1,)}}, "no input is called 'nope'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench([MODEL], **options)  # type: ignore[arg-type]


def test_too_many_models_and_none() -> None:
    for models in ([], [MODEL] * 27):
        with pytest.raises(UserError, match="between 1 and 26"):
            bench(models)


def test_a_provider_that_is_not_there() -> None:
    with pytest.raises(ProviderError):
        bench([MODEL], provider="nope")


def test_a_model_that_does_not_load() -> None:
    with pytest.raises(UserError, match="does not load"):
        bench(
            [
                parser.parse_model(
                    '<ir_version: 8, opset_import: ["":17, "foo":1]> g(float[2] a) => (float[2] y)'
                    "{ y = foo.Bar(a) }"
                )
            ]
        )


def test_a_median_that_says_otherwise_than_the_ratio_is_explained() -> None:
    def timing(label: str, median: float) -> Timing:
        return Timing(label, FileInfo(), 100, 10, True, median, median, median, median, median, median)

    faster = Ratio(0.95, 0.94, 0.96, 0.99, 100, 20, 0.94, 0.96, 0.01, 0.01)
    same = Ratio(0.999, 0.98, 1.02, 0.99, 100, 20, 0.98, 1.02, 0.02, 0.01)
    assert disagreements([faster], [timing("A", 2.0), timing("B", 1.9)]) == []
    assert disagreements([same], [timing("A", 2.0), timing("B", 2.1)]) == []
    (note,) = disagreements([faster], [timing("A", 2.0), timing("B", 2.1)])
    assert note.startswith("the median of B says otherwise")
