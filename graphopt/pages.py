"""Reports as HTML pages: draws the models, gathers what a report refers to, and writes one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.budget import Exploration, Survey
    from graphopt.calibration.ranges import RangeBook
    from graphopt.graph.diff import ModelDiff
    from graphopt.model import Model
    from graphopt.report.calibrated import CalibrationReport
    from graphopt.report.document import RunReport
    from graphopt.report.drawn import GraphView
    from graphopt.report.gated import GateReport
    from graphopt.report.timed import BenchReport
    from graphopt.report.validated import LayerRow, ValidationReport

_SUFFIXES = (".html", ".htm")


def html(
    report: RunReport | ValidationReport | BenchReport | GateReport,
    *,
    before: Model | None = None,
    after: Model | None = None,
    graph: GraphView | None = None,
    removed_by: Mapping[str, str] | None = None,
    layers: Sequence[LayerRow] = (),
    layers_note: str = "",
    calibration: CalibrationReport | None = None,
    calibration_note: str = "",
) -> str:
    """A report as one self-contained HTML page.

    Args:
        report: of a run, a validation, a measurement of latency, or a gate.
        before, after: the models that it is about, which the page then draws.
        graph: the same, drawn already.
        removed_by: who removed nodes, as in the result of a run.
        layers, layers_note: for a run: intermediate tensors, compared; or why they are not.
        calibration, calibration_note: for a run: what was measured of the activations; or why nothing was.

    Raises:
        TypeError: there is no page for such a report.
    """
    from graphopt.report.document import RunReport
    from graphopt.report.gated import GateReport
    from graphopt.report.html import pages
    from graphopt.report.timed import BenchReport
    from graphopt.report.validated import ValidationReport
    from graphopt.viewing import view

    if graph is None and after is not None:
        graph = view(after, before, removed_by)
    if isinstance(report, RunReport):
        return pages.run_page(
            report,
            graph=graph,
            layers=layers,
            layers_note=layers_note,
            calibration=calibration,
            calibration_note=calibration_note,
        )
    if isinstance(report, ValidationReport):
        return pages.validation_page(report, graph=graph)
    if isinstance(report, GateReport):
        return pages.gate_page(report, graph=graph)
    if isinstance(report, BenchReport):
        return pages.bench_page(report)
    raise TypeError(f"there is no page for a {type(report).__name__}")


def with_graph(
    report: ValidationReport | GateReport, *paths: str | Path, trust_external_paths: bool = False
) -> str:
    """A report as a page that draws the models which it is about.

    Args:
        report: the report.
        paths: the model; or two, of which the second came from the first.
        trust_external_paths: follow external data out of the models' folders.
    """
    from graphopt.model import Model

    models = [Model.load(path, trust_external_paths=trust_external_paths) for path in paths]
    return html(report, before=models[0] if len(models) > 1 else None, after=models[-1])


def diff_html(found: ModelDiff, before: Model, after: Model) -> str:
    """The differences between two models as a page that draws both."""
    from graphopt import summary
    from graphopt.report.html import pages
    from graphopt.viewing import view

    names = {"before": str(before.path or ""), "after": str(after.path or "")}
    return pages.diff_page(found, view(after, before), versions=summary.versions(), **names)


def sensitivity_html(found: Exploration | Survey, title: str) -> str:
    """What `explore` or `survey` measured, as a page."""
    from graphopt import summary
    from graphopt.report.html import pages

    return pages.sensitivity_page(found, title, versions=summary.versions())


def calibration_html(book: RangeBook) -> str:
    """A file of ranges as a page, with the histograms that they were chosen from."""
    from graphopt import summary
    from graphopt.evidence import calibrated
    from graphopt.report.html import pages

    return pages.calibration_page(calibrated(book), versions=summary.versions())


def check_path(path: str | Path, option: str = "--html") -> Path:
    """A file that a page can be written to, looked at before any work is done.

    Raises:
        UserError: it is none.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{option} names a folder", where=str(path), fix="give a file name, as in: report.html"
        )
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"{option} writes a page", where=str(path), fix=f"call it {path.with_suffix('.html').name}"
        )
    if not path.resolve().parent.is_dir():
        raise UserError(
            "the page's folder does not exist", where=str(path), fix=f"create it: mkdir -p {path.parent}"
        )
    return path


def write(path: str | Path, page: str) -> None:
    """Write a page, or leave what is there as it was.

    Raises:
        UserError: it cannot be written.
    """
    from graphopt.io.text_file import write_text

    write_text(path, page)
