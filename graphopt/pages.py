"""Reports as HTML pages: draws the models, gathers what a report refers to, and writes one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_BINS = 96


def html(
    report: RunReport | ValidationReport | BenchReport | GateReport,
    *,
    before: Model | None = None,
    after: Model | None = None,
    graph: GraphView | None = None,
    layers: Sequence[LayerRow] = (),
    calibration: CalibrationReport | None = None,
) -> str:
    """A report as one self-contained HTML page.

    Args:
        report: of a run, a validation, a measurement of latency, or a gate.
        before, after: the models that it is about, which the page then draws.
        graph: the same, drawn already.
        layers: for a run: intermediate tensors, compared.
        calibration: for a run: what was measured of the activations.

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
        graph = view(after, before)
    if isinstance(report, RunReport):
        return pages.run_page(report, graph=graph, layers=layers, calibration=calibration)
    if isinstance(report, ValidationReport):
        return pages.validation_page(report, graph=graph)
    if isinstance(report, GateReport):
        return pages.gate_page(report, graph=graph)
    if isinstance(report, BenchReport):
        return pages.bench_page(report)
    raise TypeError(f"there is no page for a {type(report).__name__}")


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
    from graphopt.report.html import pages

    return pages.calibration_page(calibrated(book), versions=summary.versions())


def calibrated(book: RangeBook) -> CalibrationReport:
    """A file of ranges as plain data; histograms of many bins get fewer."""
    from graphopt.report.calibrated import CalibratedTensor, CalibrationReport

    tensors = []
    for name, tensor in book.tensors.items():
        histogram = tensor.histogram
        edges, counts = _coarse(histogram)
        chosen = tuple(tensor.methods[book.choice.method])
        tensors.append(
            CalibratedTensor(
                name,
                tensor.dtype,
                float(tensor.low),
                float(tensor.high),
                (tensor.low, tensor.high) != chosen,
                float(histogram.low[0]),
                float(histogram.high[0]),
                int(histogram.count[0]),
                int(histogram.zeros[0]),
                histogram.nans,
                histogram.infinities,
                {m: (float(a), float(b)) for m, (a, b) in tensor.methods.items()},
                edges,
                counts,
            )
        )
    choice = book.choice
    return CalibrationReport(
        Path(book.path).name or "",
        book.passes,
        book.samples,
        choice.method,
        choice.type,
        choice.symmetric,
        tuple(tensors),
    )


def _coarse(histogram: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of at most _BINS bins, each of whole bins of the histogram."""
    import numpy as np

    used = histogram.used()
    edges, counts = histogram.edges(), histogram.counts[0, :used]
    each = -(-used // _BINS)
    starts = np.arange(0, used, each)
    ends = [*edges[starts].tolist(), float(edges[-1])]
    return tuple(map(float, ends)), tuple(map(int, np.add.reduceat(counts, starts)))


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
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(page)
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise UserError(f"the page cannot be written: {e.strerror or e}", where=str(path)) from e
