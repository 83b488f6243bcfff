"""What a gate does when something cannot be measured, is not named, or is not there; and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from gate_models import HEAD, TEXT, only, weights

import graphopt
from graphopt.errors import ModelError, ProviderError, UserError
from graphopt.gating import numerics, speed
from graphopt.gating.starter import starter
from graphopt.report.document import FileInfo, to_json
from graphopt.report.gated import SCHEMA
from graphopt.report.timed import BenchReport, PairedRatio, Timing

MEASURE = '[measure]\nreference = "reference.onnx"\n'
DATA = MEASURE + 'data = "data.npz"\nmetric = "metric.py:figures"\n'


# -- numbers ---------------------------------------------------------------------------------------


def test_figures_are_over_all_samples(run: Any, folder: Path) -> None:
    policy = (
        DATA
        + "[numerics]\nmin_sqnr_db = 0\nmin_cosine = 0\nmax_abs = 10\nmax_rel = 10\nmin_equal = 0\n[metrics.samples]\nmin = 40"
    )
    report = run(policy, "near.onnx")
    data = np.load(folder / "data.npz")
    w = np.array([[1, 2], [3, 4], [5, 6], [7, -8]])
    noise = (data["x"].astype(np.float64) @ (w * 0.001)).reshape(-1)
    signal = (data["x"].astype(np.float64) @ w + [0.5, -0.5]).reshape(-1)
    near = signal + noise
    expected = {
        "numerics.min_sqnr_db.y": 10 * np.log10((signal @ signal) / (noise @ noise)),
        "numerics.min_cosine.y": (signal @ near) / np.sqrt((signal @ signal) * (near @ near)),
        "numerics.max_abs.y": np.max(np.abs(noise)),
        "numerics.max_rel.y": np.max(np.abs(noise) / np.abs(signal)),
        "numerics.min_equal.best": 1.0,
        "metrics.samples.min": 40,
    }
    for name, value in expected.items():
        assert only(report, name).measured == pytest.approx(value, rel=1e-3), name
    assert "40 samples" in only(report, "numerics.min_sqnr_db.y").detail
    far = run(DATA + "[numerics.outputs.best]\nmin_equal = 0.5\nmax_abs = 1", "far.onnx")
    x, b = data["x"].astype(np.float64), np.array([0.5, -0.5])
    same = np.argmax(x @ w + b, axis=1) == np.argmax(x @ -w + b, axis=1)
    assert 0 < same.mean() < 1
    assert only(far, "numerics.outputs.best.min_equal").measured == pytest.approx(same.mean())
    assert only(far, "numerics.outputs.best.max_abs").measured == 1
    # Ratios make no sense of integers: the limit for all outputs is not about them.
    assert not [
        c for c in report.checks if c.name in ("numerics.min_sqnr_db.best", "numerics.min_cosine.best")
    ]
    assert only(report, "numerics.max_abs.best").measured == 0


def test_max_samples(run: Any) -> None:
    policy = DATA + "max_samples = 10\n[metrics.samples]\nmin = 0"
    assert run(policy, "near.onnx").checks[0].measured == 10


def test_limits_of_one_output_go_first(run: Any) -> None:
    policy = MEASURE + "[numerics]\nmax_abs = 1e-9\n[numerics.outputs.y]\nmax_abs = 0.5\n"
    report = run(policy, "near.onnx")
    (y,) = (c for c in report.checks if c.name == "numerics.outputs.y.max_abs")
    (best,) = (c for c in report.checks if c.name == "numerics.max_abs.best")
    assert (y.allowed, y.line, best.allowed, best.line) == (0.5, 6, 1e-9, 4)


def test_limits_by_glob_and_of_sequences(run: Any, folder: Path) -> None:
    report = run(MEASURE + '[numerics.outputs."[by]*"]\nmax_abs = 0.5\n', "near.onnx")
    assert [(c.name, c.line, c.verdict) for c in report.checks] == [
        ("numerics.outputs.[by]*.max_abs.y", 4, "passed"),
        ("numerics.outputs.[by]*.max_abs.best", 4, "passed"),
    ]
    for name, op in (("one.onnx", "Identity"), ("two.onnx", "Neg")):
        text = f"""{HEAD} g (float[2] x) => (seq(float[2]) s) {{ a = {op}(x) s = SequenceConstruct(x, a) }}"""
        onnx.save(onnx.parser.parse_model(text), folder / name)
    report = run("[numerics.outputs.s]\nmax_abs = 0", "two.onnx", reference=folder / "one.onnx")
    assert {c.name: c.verdict for c in report.checks} == {
        "numerics.outputs.s.max_abs.s[0]": "passed",
        "numerics.outputs.s.max_abs.s[1]": "failed",
    }


def test_nan_is_never_close(run: Any) -> None:
    report = run(
        MEASURE + "[numerics]\nmin_sqnr_db = -1000\nmin_cosine = -1\nmax_abs = 1e30\nmax_rel = 1e30\n",
        "nan.onnx",
    )
    found = {c.name: c.verdict for c in report.checks}
    assert (
        found["numerics.min_sqnr_db.y"]
        == found["numerics.max_abs.y"]
        == found["numerics.max_rel.y"]
        == "failed"
    )
    assert "NaN or infinity at other places" in only(report, "numerics.max_abs.y").detail


def test_an_output_that_there_is_not(run: Any) -> None:
    report = run(MEASURE + "[numerics.outputs.z]\nmax_abs = 1")
    check = report.checks[0]
    assert (report.verdict, check.verdict, check.name) == ("failed", "error", "numerics.outputs.z.max_abs")
    assert "there are: y, best" in check.detail
    assert len(report.checks) == 1


def test_ratios_of_integers(run: Any) -> None:
    report = run(MEASURE + "[numerics.outputs.best]\nmin_sqnr_db = 10")
    assert report.checks[0].verdict == "error"
    assert report.checks[0].detail == "it is no float output"


def test_a_limit_that_no_output_is_about(run: Any, folder: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(f"{HEAD} g (int64[4] x) => (int64[4] y) {{ y = Abs(x) }}"),
        folder / "int.onnx",
    )
    report = run("[numerics]\nmin_sqnr_db = 10", "int.onnx", reference=folder / "int.onnx")
    assert (report.verdict, report.checks[0].verdict) == ("failed", "error")


def test_random_models_cannot_be_compared(run: Any, folder: Path) -> None:
    text = f"{HEAD} g (float[4] x) => (float[4] y) {{ r = RandomNormalLike(x) y = Add(x, r) }}"
    onnx.save(onnx.parser.parse_model(text), folder / "random.onnx")
    policy = '[numerics]\nstandard = "close"\nmax_abs = 100\n[model]\nruns = true'
    report = run(policy, "random.onnx", reference=folder / "random.onnx")
    found = {c.name: c.verdict for c in report.checks}
    assert found == {"numerics.standard": "error", "numerics.max_abs": "error", "model.runs": "passed"}
    assert "its outputs are random" in only(report, "numerics.max_abs").detail
    assert report.exit_code() == 1


def test_a_model_that_does_not_load(run: Any, folder: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu(x) }}"),
        folder / "bad.onnx",
    )
    policy = (
        DATA
        + '[model]\nruns = true\n[numerics]\nmin_cosine = 0.9\nstandard = "close"\n[metrics.accuracy]\nmin = 1\n'
        "[latency]\nmax_ms = 1\nmax_ratio = 2\n[session]\nmax_ms = 1\nmax_ratio = 2\n[int8]\nmin_share = 0.1\n"
        "[providers.cpu]\nmin_share = 1\nallow_memcpy = false\n[file]\nmax_mb = 1\n"
    )
    report = run(policy, "bad.onnx")
    found = {c.name: c.verdict for c in report.checks}
    assert found.pop("file.max_mb") == "passed"
    assert found.pop("model.runs") == "failed"
    assert found.pop("numerics.standard") == "failed"  # its outputs are others
    assert len(found) == 9
    assert set(found.values()) == {"error"}
    assert all(c.detail for c in report.checks if c.verdict == "error")


def test_a_model_with_other_inputs(run: Any, folder: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(TEXT.replace(" x)", " z)").replace("(x)", "(z)")), folder / "other.onnx"
    )
    report = run(DATA + "[numerics]\nmax_abs = 1\n[metrics.accuracy]\nmin = 1", "other.onnx")
    assert {c.verdict for c in report.checks} == {"error"}
    assert "'z'" in report.checks[0].detail


def test_a_model_that_takes_one_sample_at_a_time(run: Any, folder: Path) -> None:
    text = TEXT.replace("a = Identity(x)", "s = Constant <value = int64[2] {1, 4}> () a = Reshape(x, s)")
    for name, factor in (("one.onnx", 1.0), ("one_near.onnx", 1.001)):
        model = onnx.parser.parse_model(text)
        w = onnx.numpy_helper.to_array(model.graph.initializer[0])
        onnx.save(weights(model, "w", w * np.float32(factor)), folder / name)
    report = run(
        DATA + "[numerics]\nmin_sqnr_db = 30\n[metrics.samples]\nmin = 40",
        "one_near.onnx",
        reference=folder / "one.onnx",
    )
    assert report.verdict == "passed"


def test_synthesized_inputs(run: Any) -> None:
    report = run(MEASURE + "[numerics]\nmin_sqnr_db = 30", "near.onnx")
    assert report.verdict == "passed"
    assert "synthesized" in report.checks[0].detail
    shaped = run(MEASURE + "input_shapes = {x = [7, 4]}\n[numerics]\nmin_sqnr_db = 30", "near.onnx")
    assert "batch=7" in shaped.checks[0].detail


# -- what is undecided -----------------------------------------------------------------------------


def timed(low: float, ratio: float, high: float) -> BenchReport:
    timings = tuple(
        Timing(label, FileInfo(), 100, 10, True, t, t, t, t, t, t, (t,) * 101, sessions=7)
        for label, t in (("A", 1.0), ("B", ratio))
    )
    pair = PairedRatio("A", "B", ratio, low, high, 0.95, 100, 0.01, "no difference", sessions=7)
    return BenchReport("CPUExecutionProvider", "all", 1, timings=timings, ratios=(pair,))


@pytest.mark.parametrize(
    ("interval", "undecided", "verdict"),
    [
        ((0.8, 0.9, 0.95), "fail", "passed"),
        ((1.05, 1.1, 1.2), "pass", "failed"),
        ((0.95, 0.99, 1.05), "fail", "failed"),
        ((0.95, 1.01, 1.05), "fail", "failed"),
        ((0.95, 1.01, 1.05), "pass", "passed"),
        ((0.8, 0.9, 1.0), "fail", "passed"),
    ],
)
def test_intervals(
    run: Any, monkeypatch: pytest.MonkeyPatch, interval: Any, undecided: str, verdict: str
) -> None:
    tried: list[Any] = []

    def measured(models: Any, *, seconds: float, sessions: int | None, **how: Any) -> BenchReport:
        tried.append((seconds, sessions))
        return timed(*interval)

    monkeypatch.setattr(speed, "bench", measured)
    report = run(MEASURE + f'[latency]\nmax_ratio = 1.0\nseconds = 3\nundecided = "{undecided}"')
    check = report.checks[0]
    is_open = interval[0] <= 1.0 < interval[2]
    assert check.verdict == verdict
    assert tried == ([(3, None), (12, 14)] if is_open else [(3, None)])
    assert ("undecided" in check.detail) == is_open
    assert "95% interval" in check.detail
    assert report.bench is not None


def test_options_of_providers_reach_all_that_is_opened(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def benched(models: Any, **how: Any) -> BenchReport:
        seen["bench"] = how["settings"]
        return timed(0.5, 0.5, 0.5)

    def validated(*models: Any, **how: Any) -> Any:
        seen["validate"] = how["settings"]
        return validate(*models, **how)

    validate = numerics.validate
    monkeypatch.setattr(speed, "bench", benched)
    monkeypatch.setattr(numerics, "validate", validated)
    limits = "[latency]\nmax_ratio = 1\n[numerics]\nmax_abs = 1\n"
    for given, tf32, strict in (
        ("", None, False),
        ("tf32 = true", True, True),
        ("tf32 = false", False, False),
    ):
        run(f'{MEASURE}provider_options = {{device_id = "1"}}\n{given}\n{limits}')
        assert (seen["bench"].tf32, seen["validate"].tf32) == (tf32, strict)
        assert seen["bench"].other == seen["validate"].other == {"device_id": "1"}
    with pytest.raises(UserError, match="device_id is a whole number") as caught:
        run(MEASURE + 'provider_options = {device_id = "x"}\n' + limits)
    assert str(caught.value.where).endswith("gate.toml:3")


def test_percentiles(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quantiles = tuple(float(i) for i in range(101))
    timing = Timing("A", FileInfo(), 100, 10, True, 50, 0, 50, 90, 95, 99, quantiles, sessions=7)
    found = BenchReport("CPUExecutionProvider", "all", 1, timings=(timing,))
    monkeypatch.setattr(speed, "bench", lambda models, **how: found)
    for percentile, value in ((50, 50), (99.5, 99.5), (100, 100)):
        for limit, verdict in ((value, "passed"), (value - 0.1, "failed")):
            check = run(f"[latency]\nmax_ms = {limit}\npercentile = {percentile}").checks[0]
            assert (check.measured, check.verdict) == (value, verdict)


def test_loading_is_measured_longer_while_it_is_undecided(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repeats: list[int] = []

    def opened(ctx: Any, models: list[Any], n: int) -> Any:
        repeats.append(n)
        slower = np.resize([0.0, 0.1, 0.04, 0.06, 0.02, 0.08], n)  # symmetric around 0.05
        return np.exp(np.stack([np.zeros(n), slower], axis=1))

    monkeypatch.setattr(speed, "_openings", opened)
    for limit, verdict, tried in (
        (1.2, "passed", [9]),
        (0.9, "failed", [9]),
        (np.exp(0.05), "failed", [9, 36]),
    ):
        repeats.clear()
        check = run(MEASURE + f"[session]\nmax_ratio = {limit}").checks[0]
        assert (check.verdict, repeats) == (verdict, tried)
        assert ("undecided" in check.detail) == (len(tried) > 1)
    assert run(MEASURE + '[session]\nmax_ratio = 1.0513\nundecided = "pass"').verdict == "passed"


def test_ratios_of_loading_have_an_interval() -> None:
    """Of the logarithms of pairs: by Student's distribution for few pairs, checked against its table."""
    times = np.exp([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3]])
    found = speed.paired(times, 0.95)
    half = 4.302653 * 0.1 / np.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert np.log([found.low, found.ratio, found.high]) == pytest.approx(
        [0.2 - half, 0.2, 0.2 + half], rel=1e-5
    )
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        many = speed.paired(np.exp(rng.normal([0, 0.5], 0.01, (30, 2))), 0.95)
        hits.append(many.low < np.exp(0.5) < many.high)
        assert many.high / many.low < 1.03
    assert sum(hits) >= 180  # 95 of 100 are meant to


# -- what has to be named, and has to be there -----------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "line", "what"),
    [
        ("[numerics]\nmax_abs = 1", 1, "`numerics` compares with a reference"),
        ("[file]\nmax_ratio = 1", 2, "`file.max_ratio` compares with a reference"),
        ("[latency]\nmax_ratio = 1", 2, "`latency.max_ratio` compares with a reference"),
        ("[session]\nmax_ratio = 1", 2, "`session.max_ratio` compares with a reference"),
        ("[memory]\nmax_ratio = 1", 2, "`memory.max_ratio` compares with a reference"),
        (
            "[interface]\nsame_as_reference = true",
            2,
            "`interface.same_as_reference` compares with a reference",
        ),
        (
            '[measure]\ndata = "data.npz"\nmetric = "metric.py:figures"\n[metrics.accuracy]\nmax_drop = 1',
            4,
            "`metrics.accuracy`",
        ),
        ('[measure]\ndata = "data.npz"\n[metrics.accuracy]\nmin = 1', 3, "[metrics] needs a function"),
        ('[measure]\nmetric = "metric.py:figures"\n[metrics.accuracy]\nmin = 1', 3, "[metrics] needs data"),
        ("[against]\nsame_interface = true", 1, "[against] compares with an older version"),
        ('[measure]\nreference = "gone.onnx"\n[numerics]\nmax_abs = 1', 2, "there is no"),
        ('[measure]\ndata = "gone.npz"\n[model]\nruns = true', 2, "there is no"),
        ('[against]\nmodel = "gone.onnx"\nsame_interface = true', 2, "there is no"),
        (
            '[measure]\nproviders = ["cuda"]\n[model]\nruns = true',
            2,
            "execution provider 'cuda' is not available",
        ),
    ],
)
def test_what_is_not_named_or_not_there(run: Any, folder: Path, policy: str, line: int, what: str) -> None:
    with pytest.raises(UserError) as caught:
        run(policy)
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"{folder / 'gate.toml'}:{line}"
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_what_is_handed_in_goes_first(run: Any, folder: Path) -> None:
    policy = (
        '[measure]\nreference = "gone.onnx"\ndata = "gone.npz"\nmetric = "gone.py:f"\nproviders = ["gone"]\n'
    )
    report = run(
        policy + "[numerics]\nmax_abs = 0\n[metrics.figure]\nmin = 1\n",
        reference=folder / "model.onnx",
        data=folder / "data.npz",
        metric=lambda pairs: {"figure": float(sum(len(sample["x"]) for sample, _ in pairs))},
        providers="cpu",
    )
    assert report.verdict == "passed"
    assert only(report, "metrics.figure.min").measured == 40


def test_files_and_providers_that_are_not_there(run: Any, folder: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        run("[model]\nvalid = true", "gone.onnx")
    (folder / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not an ONNX model"):
        run("[external_data]\ninside_folder = true", "text.onnx")
    with pytest.raises(ModelError) as caught:
        run(MEASURE + "[numerics]\nmax_abs = 1", reference=folder / "text.onnx")
    assert "text.onnx" in str(caught.value)
    with pytest.raises(ProviderError):
        run("[model]\nruns = true", providers=["cuda"])


def test_a_figure_that_the_metric_does_not_return(run: Any) -> None:
    report = run(DATA + "[metrics.acuracy]\nmin = 1\nmax_drop = 1")
    assert {c.verdict for c in report.checks} == {"error"}
    assert report.checks[0].detail == "the metric returns no 'acuracy', only: accuracy, samples"


def test_a_metric_that_fails(run: Any, folder: Path) -> None:
    (folder / "metric.py").write_text("def figures(results):\n    return 1 / 0\n")
    with pytest.raises(UserError, match="the metric 'figures' failed: ZeroDivisionError") as caught:
        run(DATA + "[metrics.accuracy]\nmin = 1")
    assert str(caught.value.where).endswith("metric.py:2")


# -- the report ------------------------------------------------------------------------------------


def test_the_report(run: Any, folder: Path) -> None:
    policy = 'name = "mine"\n[file]\nmax_mb = 1\n[model]\nvalid = true\nmax_nodes = 1\n'
    report = run(policy, against=folder / "far.onnx", reference=folder / "reference.onnx")
    assert [c.name for c in report.checks] == [
        "file.max_mb",
        "model.valid",
        "model.max_nodes",
    ]  # as in the file
    assert (report.name, report.verdict, report.policy) == ("mine", "failed", str(folder / "gate.toml"))
    assert report.model.bytes == (folder / "model.onnx").stat().st_size
    assert report.reference is not None
    assert report.against is not None
    assert report.against.initializers == {"removed": 0, "added": 0, "changed": 1}
    assert report.changes == ("1 initializer changed: w",)
    assert report.after is not None
    assert report.after.nodes == 4
    assert {"graphopt", "onnx", "onnxruntime"} <= set(report.versions)
    found = json.loads(to_json(report, SCHEMA))
    assert found["schema"] == "graphopt.gate/1"
    assert found["checks"][2]["verdict"] == "failed"


def test_public_name(folder: Path) -> None:
    (folder / "gate.toml").write_text("[model]\nvalid = true")
    assert graphopt.gate(folder / "model.onnx", folder / "gate.toml").verdict == "passed"


def test_a_starter_from_a_model_is_one_that_it_passes(folder: Path) -> None:
    for model in ("model.onnx", "external.onnx", "quantized.onnx"):
        (folder / "gate.toml").write_text(starter("minimal", folder / model))
        report = graphopt.gate(folder / model, folder / "gate.toml")
        assert report.verdict == "passed", [c for c in report.checks if c.verdict != "passed"]
    (folder / "gate.toml").write_text(starter("minimal", folder / "model.onnx"))
    assert graphopt.gate(folder / "quantized.onnx", folder / "gate.toml").verdict == "failed"
