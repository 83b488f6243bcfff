"""Recipes at work: gates after each stage, what happens where one fails, and what is remembered between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import graphopt
from graphopt import lossy
from graphopt.calibration.service import CalibrationService
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.testing import parse

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] z) <float[4, 4] w = {2,0,0,0, 0,2,0,0, 0,0,2,0, 0,0,0,2}> {
    i = Identity(x)
    [layer] m = MatMul(i, w)
    z = Relu(m)
}"""
SEEN: list[tuple[str, float, Any]] = []


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the weight; says what it finds in the teacher, and in the notes."""

    name: ClassVar[str] = "scale"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    by: float = 1.0
    data: bool = False

    def needs_data(self) -> bool:
        return self.data

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for node in graph.by_op("MatMul"):
            w = graph.array(node.inputs[1])
            was = ctx.teacher.array(node, 1)
            assert w is not None
            assert was is not None
            SEEN.append((f"{self.by:g}", float(was[0, 0]), ctx.notes.get("scaled")))
            ctx.notes["scaled"] = self.by
            ctx.notes["budgets"] = (*ctx.notes.get("budgets", ()), ctx.budget)
            with graph.site(node, "scaled"):
                graph.set_input(node, 1, graph.new_constant("w", (w * np.float32(self.by)).astype(w.dtype)))


@dataclass(frozen=True)
class Wrong(Pass):
    """Breaks the model although it says that it does not."""

    name: ClassVar[str] = "wrong"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for node in graph.by_op("Relu"):
            with graph.site(node, "wrong on purpose"):
                graph.replace(node.outputs[0], "Neg", list(node.inputs))


def level(by: Sequence[tuple[Any, Any]]) -> float:
    """A metric: 100 where the outputs are those of the original, and as much off as they are larger."""
    total, count = 0.0, 0
    for _, outputs in by:
        total += float(np.abs(outputs["z"]).sum())
        count += outputs["z"].size
    return 100 - total / count


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setattr(lossy, "_LATENCY_SECONDS", 0.02)
    monkeypatch.setattr(CalibrationService, "latency", lambda *_: 1.25)


def data() -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)}


Run = Callable[..., graphopt.Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def execute(text: str, **options: Any) -> graphopt.Result:
        file = tmp_path / "r.toml"
        file.write_text(text.replace("scale{", f"{__name__}:Scale{{").replace("wrong", f"{__name__}:Wrong"))
        options.setdefault("data", data())
        return graphopt.run(parse(MODEL), recipe=file, **options)

    return execute


def stage(name: str, passes: str, gate: str = "", on_fail: str = "") -> str:
    lines = ["[[stage]]", f'name = "{name}"', f"passes = '{passes}'"]
    lines += [f"gate = {gate}"] if gate else []
    lines += [f'on_fail = "{on_fail}"'] if on_fail else []
    return "\n".join(lines) + "\n"


def weight(model: Model) -> float:
    return float(next(c.values[0, 0] for c in model.graph.initializers if c.shape == (4, 4)))


def test_stages_share_one_teacher_and_their_notes(run: Run) -> None:
    text = stage("a", "remove-identity,scale{by=1.5}", "{ min_sqnr_db = 5 }") + stage("b", "scale{by=1.1}")
    result = run(text)
    assert SEEN == [("1.5", 2.0, None), ("1.1", 2.0, 1.5)]
    report = result.report
    assert report.verdict == "proven", report.verdict_reason
    assert report.recipe == "r"
    a, b = report.stages
    assert (a.name, a.verdict, a.gate, a.misses) == ("a", "passed", ("SQNR >= 5 dB",), ())
    # Independently: y' = 1.5 y, so the SQNR is 1 / 0.5^2; then 1.65 y.
    assert a.sqnr_db == pytest.approx(20 * np.log10(1 / 0.5), abs=1e-3)
    assert b.sqnr_db == pytest.approx(20 * np.log10(1 / 0.65), abs=1e-3)
    assert (b.verdict, b.gate) == ("measured", ())
    assert a.cosine == pytest.approx(1)
    assert a.latency_ratio == 1.25
    assert (a.rewrites, b.rewrites) == (2, 1)
    assert weight(result.model) == pytest.approx(3.3)
    assert report.to_json()


def test_the_pipeline_of_the_report_is_that_of_all_stages(run: Run) -> None:
    report = run(stage("a", "remove-identity") + stage("b", "dead-nodes,cse")).report
    assert report.pipeline == "remove-identity,dead-nodes,cse"
    assert report.verdict == "proven"
    assert [s.sqnr_db for s in report.stages] == [float("inf")] * 2


def test_a_failed_gate_ends_the_run(run: Run, tmp_path: Path) -> None:
    text = (
        stage("a", "remove-identity")
        + stage("b", "scale{by=3}", "{ min_sqnr_db = 5, max_size_ratio = 0.01, max_latency_ratio = 1 }")
        + stage("c", "scale{by=7}", "{ min_cosine = 0.5 }")
    )
    result = run(text)
    report = result.report
    assert [by for by, *_ in SEEN] == ["3"]
    assert report.verdict == "over budget"
    assert report.exit_code() == 1
    assert report.verdict_reason.startswith(
        "stage 'b' does not pass its gate: SQNR -6.021 dB is below 5 dB; "
    )
    assert "latency ratio 1.250 is above 1" in report.verdict_reason
    assert "is above 0.01" in report.verdict_reason
    assert [s.verdict for s in report.stages] == ["measured", "failed", "not reached"]
    assert report.stages[2].gate == ("cosine >= 0.5",)
    with pytest.raises(UserError, match="stage 'b'"):
        result.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_stage_can_be_undone(run: Run) -> None:
    text = (
        stage("a", "scale{by=1.5}", "{ min_sqnr_db = 5 }")
        + stage("b", "scale{by=3}", "{ min_sqnr_db = 5 }", "skip")
        + stage("c", "remove-identity")
    )
    result = run(text)
    report = result.report
    assert report.verdict == "proven"
    assert weight(result.model) == pytest.approx(3.0)
    assert [s.verdict for s in report.stages] == ["passed", "skipped", "measured"]
    assert report.stages[2].sqnr_db == report.stages[0].sqnr_db
    assert "scale{by=3" not in report.pipeline
    assert any("stage 'b' does not pass its gate and was undone: SQNR" in w for w in report.warnings)


def test_where_the_last_stage_is_undone_the_one_before_says_what_was_asked_for(run: Run) -> None:
    text = stage("a", "scale{by=1.5}", "{ min_sqnr_db = 5 }")
    report = run(text + stage("b", "scale{by=3}", "{ min_sqnr_db = 5 }", "skip")).report
    assert report.accuracy is not None
    assert report.accuracy.budget == ("SQNR >= 5 dB",)


def test_a_stage_can_stay_all_the_same(run: Run) -> None:
    result = run(stage("b", "scale{by=3}", "{ min_sqnr_db = 5 }", "warn"))
    assert result.report.verdict == "proven"
    assert result.report.stages[0].verdict == "warned"
    assert weight(result.model) == pytest.approx(6.0)
    assert any("stays all the same" in w for w in result.report.warnings)


def test_the_metric_may_fall_by_so_much(run: Run) -> None:
    gate = "{ max_drop = { score = 0.5 } }"
    metric = lambda pairs: {"score": level(pairs)}  # noqa: E731
    report = run(stage("a", "scale{by=1.1}", gate) + stage("b", "scale{by=3}", gate), metric=metric).report
    assert [s.verdict for s in report.stages] == ["passed", "failed"]
    assert "score falls by" in report.verdict_reason
    row = report.stages[0].metrics[0]
    assert row.before > row.after > row.before - 0.5


def test_searching_passes_are_told_the_gate_of_their_stage(run: Run) -> None:
    budgets: list[Any] = []

    class Spy(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == "budgets":
                budgets.append(value[-1])
            super().__setitem__(key, value)

    given = graphopt.Budget(min_cosine=0.1, min_sqnr_db=None)
    text = stage("a", "scale{by=1.1}", "{ min_sqnr_db = 7 }") + stage(
        "b", "scale{by=1}", "{ max_size_ratio = 9 }"
    )
    from graphopt.pipeline import manager

    real = manager.Settings.context
    with pytest.MonkeyPatch.context() as patch:

        def context(self: manager.Settings) -> PassContext:
            found = real(self)
            found.notes = Spy()
            return found

        patch.setattr(manager.Settings, "context", context)
        run(text, budget=given)
    assert budgets == [graphopt.Budget(None, 7.0), given]


def test_wrong_rewrites_are_rolled_back_between_lossy_stages(run: Run) -> None:
    report = run(stage("a", "scale{by=1.5}") + stage("b", "wrong") + stage("c", "remove-identity")).report
    assert report.verdict == "rolled back"
    assert [c.pass_name for c in report.culprits] == ["wrong"]
    # What the stages left is measured again, on the model without the rewrite.
    assert report.stages[2].sqnr_db == pytest.approx(20 * np.log10(1 / 0.5), abs=1e-3)


@pytest.mark.parametrize("verify", ["off", "each"])
def test_gates_count_however_it_is_verified(run: Run, verify: Any) -> None:
    report = run(stage("b", "scale{by=3}", "{ min_sqnr_db = 5 }"), verify=verify).report
    assert report.verdict == "over budget"
    assert report.exit_code() == 1


def test_without_data_sizes_can_be_held_back(run: Run) -> None:
    report = run(stage("a", "scale{by=3}", "{ max_size_ratio = 1.5 }"), data=None).report
    assert report.stages[0].verdict == "passed"
    assert report.stages[0].sqnr_db is None
    assert report.stages[0].size_ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("text", "options", "line", "says"),
    [
        (stage("a", "scale{by=1}", "{ min_cosine = 0.9 }"), {}, 4, "the gate of stage 'a' needs data"),
        (stage("a", "scale{by=1}", "{ max_latency_ratio = 1 }"), {}, 4, "the gate of stage 'a' needs data"),
        (stage("a", "none") + stage("b", "scale{data=true}"), {}, 6, "scale needs data to measure on"),
        (stage("a", "prune-weights{sparsity=0.5 layers=[leyer]}"), {}, 3, "'leyer' matches no node"),
        (stage("a", "none", "{ max_drop = { top1 = 1 } }"), {"data": data()}, 4, "top1 may fall by so much"),
    ],
)
def test_what_is_missing_is_said_before_any_work(
    run: Run, tmp_path: Path, text: str, options: dict[str, Any], line: int, says: str
) -> None:
    with pytest.raises(UserError) as raised:
        run(text, **{"data": None, **options})
    assert says in raised.value.what
    assert raised.value.where == f"{tmp_path / 'r.toml'}:{line}"
    assert SEEN == []


def test_passes_and_a_recipe_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        graphopt.run(parse(MODEL), "default", recipe="prune-distill-int8")


def test_the_size_of_the_file_is_known_without_writing_it(tmp_path: Path) -> None:
    models = Path(__file__).resolve().parents[1] / "models"
    for path in [*models.glob("*.onnx")]:
        model = graphopt.load(path)
        assert model.file_bytes() == pytest.approx(path.stat().st_size, rel=0.02), path.name
