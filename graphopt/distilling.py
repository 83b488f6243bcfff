"""Distillation into a model of the user's own: layer by layer, without labels and without a framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from graphopt import api, lossy
from graphopt.budget import Score
from graphopt.distillation.lesson import Lesson, MatchBy
from graphopt.distillation.ports import aligned
from graphopt.distillation.torch_run import Interpreter, check_same, needs_torch
from graphopt.distillation.torch_run import fine_tune as descend
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.pipeline.instruments import Progress
from graphopt.pipeline.manager import Execution, Settings, execute
from graphopt.pipeline.registry import installed
from graphopt.pipeline.requests import check_keep
from graphopt.pipeline.targets import get_target
from graphopt.report.distillation import DistillReport, Taught

if TYPE_CHECKING:
    from graphopt.calibration.service import CalibrationService
    from graphopt.io.save import SavedFiles

#: What is done to the student. A BatchNormalization that a layer can take in is no layer of its own.
PASSES: Final = "fixpoint(lift-constants,remove-identity,fold-conv-bn,fold-gemm-bn),distill-layers"
# And to the teacher, so that constants can be told from what is computed.
_TEACHER_PASSES: Final = "fixpoint(lift-constants,remove-identity)"
_LEARNS: Final = "distill-layers"
_FOLDS: Final = ("fold-conv-bn", "fold-gemm-bn")


@dataclass
class Distilled:
    """What `distill` returns.

    Attributes:
        model: the student that learned.
        report: what it learned.
    """

    model: Model
    report: DistillReport

    def save(self, path: str | Path, *, external_data: bool | None = None) -> SavedFiles:
        """Write the model atomically; see `Model.save`.

        Raises:
            UserError: it is no closer to the teacher than it was, or the file cannot be written.
        """
        if not self.report.is_better:
            raise UserError("the student is no closer to the teacher than it was, so it is not written")
        return self.model.save(path, external_data=external_data)


def distill(
    teacher: api.Source,
    student: api.Source,
    *,
    data: Any,
    map: Mapping[str, str] | None = None,
    match: MatchBy = "auto",
    keep: str | Sequence[str] = (),
    metric: lossy.Metric = None,
    fine_tune: int = 0,
    learning_rate: float = 1e-3,
    trust_external_paths: bool = False,
    progress: api.Tell | None = None,
) -> Distilled:
    """Teach a model of another architecture what a teacher computes, layer by layer.

    Args:
        teacher: the model to learn from.
        student: the model that learns; with the same inputs and outputs. It is not changed.
        data: typical inputs; no labels. Every 8th sample is held back to measure on.
        map: names of tensors or nodes of the student and the teacher's that they are to become.
        match: how the others are found: "name", "correlation", or "auto": by name where the two models look
            alike, else by shape and correlation along the depth.
        keep: globs over the student's nodes and tensors that stay as they are.
        metric: task metric, as for `run`.
        fine_tune: epochs of gradient descent towards the teacher's outputs; needs torch.
        learning_rate: of that.
        trust_external_paths, progress: as for `run`.

    Raises:
        UserError: the two models do not fit, a name is not there, there is no data, or torch is missing.
    """
    if data is None:
        raise UserError(
            "distillation needs data to learn from", fix="hand in typical inputs: --data calib.npz"
        )
    if fine_tune < 0 or learning_rate <= 0:
        raise UserError("--fine-tune takes a number of epochs, and --learning-rate is above 0")
    if fine_tune:
        needs_torch()
    tell = progress or (lambda stage, detail: None)
    tell("load", "teacher and student")
    original = api.load(teacher, trust_external_paths=trust_external_paths)
    pupil = api.load(student, trust_external_paths=trust_external_paths).copy()
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    check_keep(keep, pupil)
    reference = aligned(original, pupil)
    registry = installed()
    execute(reference, registry.resolve(_TEACHER_PASSES), Settings(get_target("portable")))
    services = lossy.open_services(data, pupil, metric=metric, tell=tell)
    assert services is not None
    tell("reference", "the student as it is")
    before = services.held_back_score(pupil, reference)
    lesson = Lesson(reference, services, dict(map or {}), match)
    settings = Settings(
        get_target("portable"),
        keep=keep,
        evaluator=api.evaluator(),
        services=services,
        teacher=lesson,
    )
    run = execute(pupil, registry.resolve(PASSES), settings, instruments=[Progress(tell)])
    after = services.held_back_score(run.model, reference)
    if fine_tune:
        after = _fine_tuned(run.model, reference, services, fine_tune, learning_rate, tell)
    return Distilled(run.model, _report(run, lesson, before, after, services, fine_tune))


def _fine_tuned(
    model: Model,
    reference: Model,
    services: CalibrationService,
    epochs: int,
    learning_rate: float,
    tell: api.Tell,
) -> Score:
    """The score after gradient descent; `model` is changed in place if that helps."""
    for feeds, expected in services.pairs(model, model):
        check_same(Interpreter(model), feeds, expected)
        break
    descend(
        model,
        lambda: services.pairs(model, reference),
        epochs=epochs,
        learning_rate=learning_rate,
        tell=lambda detail: tell("fine-tune", detail),
    )
    return services.held_back_score(model, reference)


def _report(
    run: Execution, lesson: Lesson, before: Score, after: Score, services: CalibrationService, epochs: int
) -> DistillReport:
    changes = run.journal.changes
    return DistillReport(
        tuple(
            Taught(
                m.student.name,
                m.teacher.name,
                m.how,
                m.similarity,
                None if m.channels is None else len(m.channels),
            )
            for m in lesson.matches
        ),
        {c.key.anchor: c.why for c in changes if c.key.pass_name == _LEARNS},
        {r.node: r.reason for r in run.journal.refusals if r.pass_name == _LEARNS},
        tuple(lesson.unmatched),
        before,
        after,
        services.held_back_words(),
        {name: value + after.drops.get(name, 0.0) for name, value in after.metrics.items()},
        sum(c.key.pass_name in _FOLDS for c in changes),
        epochs,
    )
