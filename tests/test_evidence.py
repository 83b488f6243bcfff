"""What a run's page shows beyond its report, against values computed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt import evidence

MODELS = Path(__file__).parents[1] / "models"
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.fixture(scope="module")
def quantized() -> tuple[graphopt.Model, graphopt.Model]:
    """digits_cnn before and after int8."""
    data = str(MODELS / "digits.npz")
    before = graphopt.load(MODELS / "digits_cnn.onnx")
    passes = "default,insert-qdq{ops=[Conv]}"
    return before, graphopt.run(before, passes, data=data, verify="off").model


def test_values_at_quantizers_are_those_that_the_model_computes(
    quantized: tuple[graphopt.Model, graphopt.Model],
) -> None:
    before, after = quantized
    report, note = evidence.quantized_values(after, before, str(MODELS / "digits.npz"))
    assert report is not None
    assert note == ""
    proto = after.to_proto()
    consts = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    quantizers = {
        n.input[0]: (float(consts[n.input[1]].item()), int(consts[n.input[2]].item()))
        for n in proto.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in consts
    }
    assert {t.name for t in report.tensors} == set(quantizers)
    # Every 8th sample is held back.
    images = np.load(MODELS / "digits.npz")["image"].astype(np.float32)
    seen = np.stack([image for i, image in enumerate(images) if (i + 1) % 8])
    assert report.samples == len(seen)
    for name in quantizers:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(quantizers, session.run(list(quantizers), {"image": seen}), strict=True))
    for tensor in report.tensors:
        found = values[tensor.name].reshape(-1)
        scale, zero = quantizers[tensor.name]
        assert tensor.low == pytest.approx((0 - zero) * scale)
        assert tensor.high == pytest.approx((255 - zero) * scale)
        assert tensor.minimum == pytest.approx(found.min(), rel=1e-5, abs=1e-5)
        assert tensor.maximum == pytest.approx(found.max(), rel=1e-5)
        assert tensor.count == found.size
        assert tensor.zeros == pytest.approx((found == 0).sum(), abs=3)
        expected, _ = np.histogram(found[found != 0], np.asarray(tensor.edges))
        assert np.abs(expected - np.asarray(tensor.counts)).sum() <= 0.001 * found.size + 4


def test_a_float_model_has_no_quantizers() -> None:
    model = graphopt.load(MODELS / "digits_cnn.onnx")
    assert evidence.quantized_values(model, model, str(MODELS / "digits.npz")) == (None, "")


def test_data_that_is_not_there(quantized: tuple[graphopt.Model, graphopt.Model]) -> None:
    before, after = quantized
    report, note = evidence.quantized_values(after, before, "no-such-file.npz")
    assert report is None
    assert note.startswith("not measured: ")
    assert "no-such-file.npz" in note


def test_layers_are_as_far_apart_as_they_are(quantized: tuple[graphopt.Model, graphopt.Model]) -> None:
    before, after = quantized
    rows, note = evidence.layers(before, after, data=str(MODELS / "digits.npz"), lossy=True)
    assert note == ""
    by_name = {r.tensor: r for r in rows}
    assert by_name["logits"].sqnr_db is not None
    assert 15 < by_name["logits"].sqnr_db < 80
    same, note = evidence.layers(before, before)
    assert {r.sqnr_db for r in same} == {np.inf}
    assert note == ""
    assert [r.depth for r in rows] == sorted(r.depth for r in rows)


def test_it_is_said_why_there_are_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    small = graphopt.load(onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Neg(x) }}"))
    monkeypatch.setattr(evidence, "_MOST_NODES", 0)
    rows, note = evidence.layers(small, small)
    assert rows == ()
    assert "graphopt validate --layers" in note
    monkeypatch.undo()
    changed = graphopt.run(small, "convert-io{inputs=[x],dtype=float16}", verify="off").model
    assert evidence.layers(small, changed) == ((), "not compared, since the passes changed inputs or outputs")
    unknown = graphopt.load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "no.such" : 1]> g (float[2] x) => (float[2] y) { y = no.such.Op(x) }'
    ))  # fmt: skip
    rows, note = evidence.layers(unknown, unknown)
    assert rows == ()
    assert note.startswith("not compared")
