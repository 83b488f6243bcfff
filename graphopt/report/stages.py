"""The part of a report on the stages of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.report.console import show, table
from graphopt.report.document import RunReport, StageReport
from graphopt.report.text import clean

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "bold yellow", "warned": "bold yellow"}


def stages(report: RunReport, console: Console) -> None:
    """Print what every stage came to; nothing where no recipe was run."""
    from rich.text import Text

    if not report.stages:
        return
    names = list(dict.fromkeys(row.name for stage in report.stages for row in stage.metrics))
    rows = table(
        "stage", "passes", "gate", "SQNR dB", "cosine", *map(clean, names), "size", "latency",
        numbers=range(3, 7 + len(names)), title=f"recipe {clean(report.recipe)}",
    )  # fmt: skip
    for stage in report.stages:
        after = {row.name: row.after for row in stage.metrics}
        rows.add_row(
            clean(stage.name),
            clean(stage.passes).replace(",", ", "),  # where a line may break
            Text(stage.verdict, style=_STYLES.get(stage.verdict, "")),
            _sqnr(stage),
            "-" if stage.cosine is None else f"{stage.cosine:.5f}",
            *(f"{after[name]:#.4g}" if name in after else "-" for name in names),
            _ratio(stage.size_ratio),
            _ratio(stage.latency_ratio),
        )
    show(console, rows)
    for stage in report.stages:
        if stage.gate:
            _said(f"{stage.name} asked for: {', '.join(stage.gate)}", console)
    words = "size and latency are ratios to the original"
    where = report.accuracy.measured_on if report.accuracy is not None else ""
    _said(f"{words}; measured on {where}" if where else words, console)


def _said(text: str, console: Console) -> None:
    console.print(f"  {clean(text)}", style="dim", markup=False, highlight=False)


def _sqnr(stage: StageReport) -> str:
    if stage.sqnr_db is None:
        return "-"
    return "identical" if math.isinf(stage.sqnr_db) and stage.sqnr_db > 0 else f"{stage.sqnr_db:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
