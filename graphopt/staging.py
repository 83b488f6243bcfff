"""Running recipes: what is measured after each stage, and what happens where a gate fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphopt.budget import Score
from graphopt.errors import GraphOptError, UserError
from graphopt.graph.state import GraphState
from graphopt.lossy import Measured, budget_words
from graphopt.model import Model
from graphopt.pipeline.instruments import Instrument
from graphopt.pipeline.registry import Stage, Step
from graphopt.pipeline.transaction import Outcome, Transaction
from graphopt.report.document import MetricRow, StageReport

if TYPE_CHECKING:
    from graphopt.calibration.service import CalibrationService


class StageUndone(GraphOptError):
    """A stage failed its gate and is to be left out; the run starts again without it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(f"stage {stage.name!r} failed its gate")
        self.stage = stage


class Gates(Instrument):
    """Measures the model after every stage, and holds it against the stage's gate.

    Where that fails, either the run ends there (nothing more is applied), or the stage is undone by running
    again without it: what comes later then works on, and learns from, a model that never saw it.

    Args:
        stages: all stages of the recipe.
        original: the model before anything.
        services: measures on the data; None where there is none.
        tell: told what is going on.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        original: Model,
        services: CalibrationService | None,
        tell: Callable[[str, str], None],
    ) -> None:
        self.stages, self.original, self.services, self.tell = tuple(stages), original, services, tell
        self._bytes = original.file_bytes()
        self._rows: dict[str, StageReport] = {}
        self._since = time.perf_counter()

    def after_stage(self, stage: Stage, state: GraphState, changes: int) -> None:
        """Measure, and stop the run or undo the stage where its gate fails."""
        seconds = time.perf_counter() - self._since
        self.tell("gate", f"stage {stage.name}")
        model = state.finish()
        score = latency = None
        if self.services is not None:
            score = self.services.held_back_score(model, self.original)
            latency = self.services.latency(model, self.original)
        size = model.file_bytes() / max(self._bytes, 1)
        misses = stage.gate.misses(score, size, latency) if stage.gate is not None else []
        row = StageReport(
            name=stage.name,
            passes=stage.passes,
            gate=gate_words(stage),
            misses=tuple(misses),
            rewrites=changes,
            sqnr_db=score.sqnr_db if score is not None else None,
            cosine=score.cosine if score is not None else None,
            metrics=_metrics(score),
            size_ratio=size,
            latency_ratio=latency,
            seconds=seconds,
        )
        verdict = "measured" if stage.gate is None else "passed"
        if misses:
            verdict = {"stop": "failed", "skip": "skipped", "warn": "warned"}[stage.on_fail]
        self._rows[stage.name] = replace(row, verdict=verdict)  # type: ignore[arg-type]
        self._since = time.perf_counter()
        if verdict == "skipped":
            raise StageUndone(stage)
        if verdict == "failed":
            state.journal.limit = len(state.journal.changes)
            names = [s.name for s in self.stages]
            for later in names[names.index(stage.name) + 1 :]:
                self._rows.pop(later, None)  # of an earlier attempt

    @property
    def why(self) -> str:
        """Why the run ended before its last stage; "" if it did not."""
        for row in self.rows():
            if row.verdict == "failed":
                return f"stage {row.name!r} does not pass its gate: {'; '.join(row.misses)}"
        return ""

    def rows(self) -> tuple[StageReport, ...]:
        """What became of each stage, in order."""
        return tuple(
            self._rows.get(s.name) or StageReport(s.name, s.passes, "not reached", gate_words(s))
            for s in self.stages
        )

    def warnings(self) -> tuple[str, ...]:
        """What people should know of stages that failed without ending the run."""
        said = {"skipped": "was undone", "warned": "stays all the same"}
        return tuple(
            f"stage {row.name!r} does not pass its gate and {said[row.verdict]}: {'; '.join(row.misses)}"
            for row in self.rows()
            if row.verdict in said
        )

    def applied_to(self, measured: Measured, outcome: Outcome) -> Measured:
        """What was measured at the end of the run, with what the stages add to it."""
        warnings = (*measured.warnings, *self.warnings())
        accuracy = measured.accuracy
        last = next((row for row in reversed(self.rows()) if row.verdict != "skipped"), None)
        if accuracy is not None and last is not None and last.verdict == "passed" and not accuracy.budget:
            accuracy = replace(accuracy, budget=last.gate)  # the result is what this stage left
        verdict, why = measured.verdict, measured.why
        if self.why and outcome.verdict != "failed":
            verdict, why = "over budget", self.why
        return replace(measured, verdict=verdict, why=why, accuracy=accuracy, warnings=warnings)


def run_stages(
    steps: Sequence[Step], make: Callable[[Sequence[Step]], Transaction]
) -> tuple[Outcome, tuple[Step, ...]]:
    """Run a pipeline, again without every stage that is to be left out.

    Returns:
        What came of it, and the steps that were run in the end.
    """
    left = tuple(steps)
    while True:
        try:
            return make(left).run(), left
        except StageUndone as undone:
            left = tuple(s for s in left if not (isinstance(s, Stage) and s.name == undone.stage.name))


def check_metric(stages: Sequence[Stage], metric: Any) -> tuple[str, ...]:
    """Names of the task metrics that gates ask for.

    Raises:
        UserError: there are some, and nothing that computes them.
    """
    wanted: dict[str, None] = {}
    for stage in stages:
        drops = stage.gate.budget.max_drop if stage.gate is not None else {}
        if drops and metric is None:
            raise UserError(
                f"{', '.join(drops)} may fall by so much only, but is not measured",
                where=stage.gate_where,
                fix="name the function that computes it: --metric, or metric in [data]",
            )
        wanted.update(dict.fromkeys(drops))
    return tuple(wanted)


def gate_words(stage: Stage) -> tuple[str, ...]:
    """A gate in words."""
    if stage.gate is None:
        return ()
    words = budget_words(stage.gate.budget)
    if stage.gate.max_size_ratio is not None:
        words += (f"size ratio <= {stage.gate.max_size_ratio:g}",)
    return words


def _metrics(score: Score | None) -> tuple[MetricRow, ...]:
    if score is None:
        return ()
    return tuple(
        MetricRow(name, after + score.drops.get(name, 0.0), after) for name, after in score.metrics.items()
    )
