"""What a student learned from a teacher: the figures, and a table of them for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from graphopt.budget import Score
from graphopt.report.console import show, table
from graphopt.report.text import clean

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ROWS: Final = 40
# What every row would say.
_FITTED: Final = " fitted to the teacher's outputs: SQNR "


@dataclass(frozen=True)
class Taught:
    """One layer of the student.

    Attributes:
        student: the tensor by which it is judged.
        teacher: the teacher's tensor that it is to become.
        how: by what the two were matched: map, name, output, correlation.
        similarity: linear CKA before, between 0 and 1.
        channels: how many of the teacher's channels the student has, by what it has; None: all, as they are.
        of: how many the teacher has.
        layer: output of the layer that learns it.
    """

    student: str
    teacher: str
    how: str
    similarity: float
    channels: int | None = None
    of: int | None = None
    layer: str = ""


@dataclass(frozen=True)
class DistillReport:
    """What was learned.

    Attributes:
        taught: tensors of the student that have one of the teacher's to learn from.
        fitted: what was refitted, by the tensor that it computes, with what that gained.
        left: what was not, with the reason.
        unmatched: tensors of the student without one of the teacher's.
        before, after: the student's outputs against the teacher's, on data that was held back.
        measured_on: that data in words.
        teacher_metrics: the teacher's task metrics.
        folded: BatchNormalizations that became part of a layer.
        epochs: of fine-tuning.
    """

    taught: tuple[Taught, ...]
    fitted: Mapping[str, str]
    left: Mapping[str, str]
    unmatched: tuple[str, ...]
    before: Score
    after: Score
    measured_on: str
    teacher_metrics: Mapping[str, float] = field(default_factory=dict)
    folded: int = 0
    epochs: int = 0

    def done(self, taught: Taught) -> str:
        """What was done to a layer."""
        return self.fitted.get(taught.layer) or self.left.get(taught.layer, "")

    @property
    def is_better(self) -> bool:
        """Whether the student is closer to the teacher than before."""
        return self.after.sqnr_db > self.before.sqnr_db


def render(found: DistillReport, console: Console, *, verbose: bool = False) -> None:
    """Print what was learned from what, and what that gained."""
    if found.taught:
        rows = table(
            "student", "learns from", "by", "similar", "", "fitted, SQNR before and after", numbers=(3,)
        )
        shown = found.taught if verbose else found.taught[:_MAX_ROWS]
        for taught in shown:
            of = "reordered" if taught.channels is not None else ""
            if taught.channels != taught.of:
                of = f"{taught.channels} of {taught.of} channels"
            rows.add_row(
                clean(taught.student),
                clean(taught.teacher),
                taught.how,
                f"{taught.similarity:.2f}",
                of,
                clean(found.done(taught).replace(_FITTED, ": ")),
            )
        show(console, rows)
        if len(shown) < len(found.taught):
            _say(console, f"{len(found.taught) - len(shown)} more (-v lists them)")
    if found.folded:
        _say(console, f"BatchNormalizations that became part of a layer first: {found.folded}")
    if found.unmatched:
        names = found.unmatched if verbose else found.unmatched[:6]
        more = f", and {len(found.unmatched) - len(names)} more" if len(names) < len(found.unmatched) else ""
        _say(console, f"nothing to learn from for: {', '.join(map(clean, names))}{more}")
    _scores(found, console)


def _scores(found: DistillReport, console: Console) -> None:
    rows = table("outputs", "teacher", "student before", "after", numbers=(1, 2, 3))
    rows.add_row("SQNR", "", f"{found.before.sqnr_db:.1f} dB", f"{found.after.sqnr_db:.1f} dB")
    rows.add_row("cosine", "", f"{found.before.cosine:.4f}", f"{found.after.cosine:.4f}")
    for name, value in found.after.metrics.items():
        before = found.before.metrics.get(name)
        rows.add_row(
            clean(name),
            f"{found.teacher_metrics.get(name, float('nan')):.4f}",
            "-" if before is None else f"{before:.4f}",
            f"{value:.4f}",
        )
    show(console, rows)
    words = f"measured against the teacher on {found.measured_on}"
    if found.epochs:
        words += f", after {found.epochs} epochs of fine-tuning"
    _say(console, words)
    if not found.is_better:
        _say(console, "the student is no closer to the teacher than it was")


def _say(console: Console, words: str) -> None:
    console.print("  " + words, style="dim", markup=False, highlight=False)
