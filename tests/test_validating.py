"""graphopt.validate: verdicts, whose fault, several shapes, maps, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import UserError
from graphopt.validation import oracles
from graphopt.validation.oracles import NoRun, Runtime
from graphopt.validation.reference import Reference
from graphopt.validation.standard import Bound

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(2)
W = RNG.standard_normal((16, 8)).astype(np.float32)
LINEAR = "g (float[N, 16] x) => (float[N, 8] y) { h = MatMul(x, w) y = Tanh(h) }"


def model(text: str = LINEAR, **weights: Any) -> onnx.ModelProto:
    proto = parser.parse_model(f"{HEAD} {text}")
    weights = weights or {"w": W}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return proto


def reordered_sum() -> onnx.ModelProto:
    """The same sums in another order."""
    order = RNG.permutation(16)
    text = "g (float[N, 16] x) => (float[N, 8] y) { p = Gather<axis=1>(x, i) h = MatMul(p, w) y = Tanh(h) }"
    return model(text, w=W[order], i=order)


def test_rows_and_shares() -> None:
    report = graphopt.validate(model(), reordered_sum())
    assert (report.verdict, report.fault, report.explanation) == ("proven", "", "")
    assert [r.runtime for r in report.runtimes] == ["CPU, optimizations off", "CPU, optimizations on"]
    assert report.runtimes[0].reference_used == 0
    used = report.runtimes[0].candidate_used
    assert used is not None
    assert 0 < used <= 1
    row = report.outputs[0]
    assert row.max_abs is not None
    assert row.allowed is not None
    assert used <= row.max_abs / row.allowed * 50  # probes differ in scale
    assert json.loads(report.to_json())["schema"] == "graphopt.validate/2"


@pytest.mark.parametrize(
    "options", [{"numerics": "EXACT"}, {"atol": 1e-12}, {"tolerances": {"y": Bound(1e-12)}}]
)
def test_beyond_what_was_asked_for_and_within_the_noise(options: Mapping[str, Any]) -> None:
    report = graphopt.validate(model(), reordered_sum(), **options)
    assert report.verdict == "failed"
    assert report.fault == "float reordering"
    assert "noise" in report.explanation
    assert graphopt.validate(model(), model(w=W * np.float32(1.1)), **options).fault == "candidate"


def test_tolerances_that_hold() -> None:
    other = model(w=W + np.float32(1e-4))
    assert graphopt.validate(model(), other).verdict == "failed"
    report = graphopt.validate(model(), other, atol=1e-2)
    assert report.verdict == "proven"
    assert report.numerics == "TOLERANCE"
    assert report.outputs[0].numerics == "TOLERANCE"
    assert report.outputs[0].allowed == 1e-2
    assert graphopt.validate(model(), other, tolerances={"*": (1e-2, 0)}).numerics == "CLOSE"


def test_several_shapes() -> None:
    text = "g (float[N, M] x) => (float[N, M] y) { y = Neg(x) }"
    shapes = [{"x": (2, 3)}, {"x": (5, 7)}, {"x": (1, 1)}]
    report = graphopt.validate(model(text, w=W), model(text, w=W), input_shapes=shapes, probes=1)
    assert report.probes == ("synthesized, N=2, M=3", "synthesized, N=5, M=7", "synthesized, N=1, M=1")


def test_a_fault_at_one_shape_only_names_the_shape() -> None:
    fixed = (
        "g (float[N, M] x) => (float[N, M] y) { s = Size(x) t = Cast<to=1>(s) u = Div(t, c) y = Mul(x, u) }"
    )
    clip = fixed.replace("u = Div", "k = Min(t, m) u = Div").replace("Div(t, c)", "Div(k, c)")
    weights = {"c": np.float32(10), "m": np.float32(30)}
    report = graphopt.validate(
        model(fixed, **weights),
        model(clip, **weights),
        input_shapes=[{"x": (2, 3)}, {"x": (5, 7)}],
        probes=1,
    )
    assert report.verdict == "failed"
    assert "only on inputs #2 (synthesized, N=5, M=7), of 2 sets" in report.reason


def test_a_shape_that_the_reference_does_not_take_is_unproven() -> None:
    text = "g (float[N, M] x) => (float[N, M] y) { r = Reshape(x, s) y = Reshape(r, s) }"
    both = model(text, s=np.array([2, 3], np.int64))
    report = graphopt.validate(both, both, input_shapes=[{"x": (2, 3)}, {"x": (4, 4)}])
    assert report.verdict == "unproven"
    assert report.exit_code() == 0
    assert report.exit_code(strict=True) == 1


def test_renamed_inputs_and_outputs() -> None:
    text = (
        LINEAR.replace(" x)", " inp)")
        .replace("(x,", "(inp,")
        .replace(" y)", " out)")
        .replace(" y =", " out =")
    )
    other = model(text)
    report = graphopt.validate(model(), other)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert "input removed: x" in report.reason
    assert "If only names changed: --map inp=x --map out=y" in report.explanation
    assert report.outputs == ()
    report = graphopt.validate(model(), other, mapping={"inp": "x", "out": "y"})
    assert report.verdict == "proven"
    assert report.mapping == {"inp": "x", "out": "y"}
    assert report.outputs[0].name == "y"


def test_a_model_alone_on_several_runtimes() -> None:
    report = graphopt.validate(model())
    assert report.verdict == "proven"
    assert report.reference == report.candidate
    assert len(report.runtimes) == 2
    assert graphopt.validate(model(), atol=0, rtol=0).verdict in ("proven", "failed")


def test_the_candidate_does_not_run() -> None:
    text = LINEAR.replace("y = Tanh(h)", "r = Reshape(h, s) y = Tanh(r)")
    report = graphopt.validate(model(), model(text, w=W, s=np.array([3, 8], np.int64)))
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert "does not run" in report.reason
    assert "where the reference does" in report.explanation
    assert [r.fault for r in report.runtimes] == ["candidate", "candidate"]


def test_random_models_are_unproven() -> None:
    text = "g (float[4] x) => (float[4] y) { r = RandomNormalLike(x) y = Add(x, r) }"
    assert graphopt.validate(model(text, w=W), model(text, w=W)).verdict == "unproven"


def test_before_and_after_passes_that_change_inputs() -> None:
    source = Path(__file__).resolve().parents[1] / "models" / "digits_cnn.onnx"
    result = graphopt.run(source, "convert-io{dtype=float16 inputs=[image]}")
    report = graphopt.validate(source, result.model, localize=True)
    assert report.verdict == "proven"
    assert report.localization is not None
    assert "cannot be compared" in report.localization.reason
    saved = result.model.to_proto()
    report = graphopt.validate(source, saved)
    assert report.verdict == "failed"
    assert "changed from" in report.reason
    assert "convert-io" in report.explanation


# -- other providers, played by wrong sessions ---------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there is a CUDA provider, which adds errors to what the CPU computes."""
    real_run = oracles.run_all

    def play(reference: float | str = 0.0, candidate: float | str = 0.0) -> None:
        monkeypatch.setattr(
            "graphopt.validation.reference.resolve_provider",
            lambda name: {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[name],
        )

        def on(self: Reference, provider: str) -> Any:
            if isinstance(reference, str):
                return reference
            outputs = [{k: v + np.float32(reference) for k, v in o.items()} for o in self.outputs]
            return outputs, self.floors

        def run(source: Any, runtime: Runtime, ref: Reference, *, prepack: bool) -> Any:
            if runtime.provider == "CPUExecutionProvider":
                return real_run(source, runtime, ref, prepack=prepack)
            if isinstance(candidate, str):
                return NoRun(candidate)
            found = real_run(source, oracles.DEFAULT, ref, prepack=prepack)
            return [{k: v + np.float32(candidate) for k, v in o.items()} for o in found]

        monkeypatch.setattr(Reference, "on", on)
        monkeypatch.setattr(oracles, "run_all", run)

    return play


def on_cuda(**options: Any) -> graphopt.ValidationReport:
    return graphopt.validate(model(), model(), providers=["cpu", "cuda"], **options)


def test_a_kernel_that_breaks_the_candidate_only(cuda: Any) -> None:
    cuda(0.0, 0.1)
    report = on_cuda()
    assert (report.verdict, report.fault) == ("failed", "provider kernel")
    assert "only the reference still does" in report.explanation
    assert [r.candidate_ok for r in report.runtimes] == [True, True, False]
    assert "TF32" in report.runtimes[2].note


def test_a_kernel_that_breaks_both(cuda: Any) -> None:
    cuda(0.1, 0.1)
    report = on_cuda()
    assert (report.verdict, report.fault) == ("proven", "")
    assert report.runtimes[2].fault == "provider kernel"
    assert "in the same way" in report.runtimes[2].note
    assert any("CUDA changes 'y' of both models" in w for w in report.warnings)


def test_a_provider_on_which_neither_can_be_trusted(cuda: Any) -> None:
    cuda(0.1, -0.1)
    report = on_cuda()
    assert report.verdict == "unproven"
    assert "no yardstick" in report.reason
    assert report.outputs[0].verdict == "unproven"
    # A limit that the user sets holds all the same.
    assert on_cuda(atol=0.05).verdict == "failed"


@pytest.mark.parametrize(
    ("reference", "candidate", "verdict", "says"),
    [
        (0.0, "no kernel", "failed", "no kernel"),
        ("no such device", "no such device", "unproven", "no such device"),
        ("no such device", 0.0, "proven", ""),
        ("no such device", 0.1, "unproven", "no yardstick"),
    ],
)
def test_one_that_does_not_run_there(
    cuda: Any, reference: Any, candidate: Any, verdict: str, says: str
) -> None:
    cuda(reference, candidate)
    report = on_cuda()
    assert report.verdict == verdict
    assert says in report.reason


def test_one_model_on_a_provider_that_changes_it(cuda: Any) -> None:
    cuda(0.1)
    report = graphopt.validate(model(), providers=["cpu", "cuda"])
    assert (report.verdict, report.fault) == ("failed", "provider kernel")
    cuda("no such device")
    report = graphopt.validate(model(), providers=["cpu", "cuda"])
    assert (report.verdict, report.fault) == ("failed", "provider kernel")


# -- task metrics --------------------------------------------------------------------------------------


SEEN: list[int] = []


def agreement(pairs: Any) -> float:
    """The share of samples whose largest output is the label's."""
    right = total = 0
    for sample, outputs in pairs:
        SEEN.append(len(sample["label"]))
        right += int((outputs["y"].argmax(-1) == sample["label"]).sum())
        total += len(sample["label"])
    return right / total


def test_a_task_metric_decides() -> None:
    x = RNG.standard_normal((200, 16)).astype(np.float32) / 8  # Tanh does not saturate
    label = np.tanh(x @ W).argmax(-1)
    data = {"x": x, "label": label}
    noisy = W + RNG.standard_normal(W.shape).astype(np.float32)
    options = {"data": data, "metric": agreement, "numerics": "LOSSY"}
    expected = float((np.tanh(x @ noisy).argmax(-1) == label).mean())
    SEEN.clear()
    report = graphopt.validate(model(), model(w=noisy), **options)
    assert sum(SEEN) == 2 * 200  # all samples, not only those that a calibration would hold back
    assert report.verdict == "proven"
    assert [(m.name, m.before) for m in report.metrics] == [("agreement", 1.0)]
    assert report.metrics[0].after == pytest.approx(expected)
    report = graphopt.validate(model(), model(w=noisy), max_drop={"agreement": 0.05}, **options)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert "agreement falls by" in report.reason
    assert graphopt.validate(model(), model(), max_drop={"agreement": 0.0}, **options).verdict == "proven"


# -- wrong use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"numerics": "ROUGHLY"}, "EXACT, CLOSE, LOSSY"),
        ({"numerics": "EXACT", "atol": 1.0}, "exclude each other"),
        ({"atol": -1.0}, "at least 0"),
        ({"tolerances": {"y": Bound(float("nan"))}}, "at least 0"),
        ({"tolerances": {"nothing": Bound(1)}}, "the outputs are: y"),
        ({"max_drop": {"a": 1.0}}, "--metric"),
        ({"metric": agreement}, "--data"),
        ({"mapping": {"z": "x"}}, "no input or output 'z'"),
        ({"probes": 0}, "at least 1"),
        ({"providers": []}, "no execution provider"),
        ({"input_shapes": {"q": (1,)}}, "no input is called 'q'"),
    ],
)
def test_wrong_use(options: Mapping[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        graphopt.validate(model(), model(), **options)


def test_nothing_to_map_without_a_candidate() -> None:
    with pytest.raises(UserError, match="no second model"):
        graphopt.validate(model(), mapping={"a": "x"})


def test_an_optimizer_that_breaks_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bugs the onnxruntime at hand has."""
    real = oracles.run_all

    def run(source: Any, runtime: Runtime, ref: Reference, *, prepack: bool) -> Any:
        found = real(source, runtime, ref, prepack=prepack)
        shift = np.float32(0.1 if runtime is oracles.DEFAULT else 0)
        return [{k: v + shift for k, v in outputs.items()} for outputs in found]

    monkeypatch.setattr(oracles, "run_all", run)
    report = graphopt.validate(model(), model())
    assert (report.verdict, report.fault) == ("failed", "onnxruntime's optimizer")
    assert "the reference still does and the candidate does not" in report.explanation
    assert [r.fault for r in report.runtimes] == ["", "onnxruntime's optimizer"]
    # Where the reference does the same, it is a warning; alone, it is a failure.
    shifted = [{k: v + np.float32(0.1) for k, v in o.items()} for o in Reference(model()).outputs]
    monkeypatch.setattr(Reference, "optimized", lambda self: shifted)
    report = graphopt.validate(model(), model())
    assert (report.verdict, report.fault) == ("proven", "")
    assert any("both models in the same way" in w for w in report.warnings)
    report = graphopt.validate(model())
    assert (report.verdict, report.fault) == ("failed", "onnxruntime's optimizer")


def test_a_quantized_candidate_is_told_what_to_ask_for() -> None:
    plain = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Tanh(x) }"""
    )
    coarse = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.02}, uint8 z = {128}>
        { t = Tanh(x) q = QuantizeLinear(t, s, z) y = DequantizeLinear(q, s, z) }"""
    )
    report = graphopt.validate(plain, coarse)
    assert report.fault == "candidate"
    assert "--numerics lossy" in report.explanation
    assert graphopt.validate(plain, coarse, numerics="LOSSY").verdict == "proven"
    moved = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Sin(x) }"""
    )
    assert "--numerics lossy" not in graphopt.validate(plain, moved).explanation
