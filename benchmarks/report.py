"""The benchmark's Markdown: per model a table of tools, and over all models a summary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

OURS = "graphopt"
EXACT_ENOUGH = 1e-4
"""Relative error beyond which a result is counted as wrong."""


@dataclass(frozen=True)
class Costs:
    """What a tool's runs on one model cost.

    Attributes:
        cpu, wall: medians in seconds.
        peak_mb, anonymous_mb: largest of all runs.
    """

    cpu: float
    wall: float
    peak_mb: float
    anonymous_mb: float


@dataclass(frozen=True)
class Row:
    """One tool on one model.

    Attributes:
        tool: its name.
        costs: of its runs, failed ones too.
        failure: why there is no result; None when there is one.
        nodes: nodes other than Constant, in subgraphs too.
        nbytes: size of the result with external data.
        errors: per input set the relative error, or what went wrong when running the result.
        cpu_ratio: median over pairs of graphopt's CPU time by this tool's.
    """

    tool: str
    costs: Costs
    failure: str | None = None
    nodes: int = 0
    nbytes: int = 0
    errors: dict[str, float | str] = field(default_factory=dict)
    cpu_ratio: float | None = None

    @property
    def right(self) -> bool:
        """There is a result, and it computes what the original does."""
        fine = (isinstance(error, float) and error <= EXACT_ENOUGH for error in self.errors.values())
        return self.failure is None and all(fine)


@dataclass(frozen=True)
class ModelResult:
    """All tools on one model."""

    name: str
    nodes: int
    nbytes: int
    rows: tuple[Row, ...]

    def row(self, tool: str) -> Row | None:
        """The row of one tool."""
        return next((row for row in self.rows if row.tool == tool), None)


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _error(row: Row, which: str) -> str:
    error = row.errors.get(which)
    if error is None:
        return "-"
    return f"{error:.1e}" if isinstance(error, float) else "FAILS"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right aligned, padded to be readable as text too."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = "|".join("-" * (w + 2) if not i else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def model_table(result: ModelResult) -> str:
    """One model: a heading, the table, and the reasons of failures below it."""
    header = (
        "tool",
        "nodes",
        "bytes x",
        "CPU s",
        "wall s",
        "peak MB",
        "anon MB",
        "error A",
        "error B",
        "CPU ratio",
    )
    rows, notes = [], []
    for row in result.rows:
        seconds = [_number(row.costs.cpu), _number(row.costs.wall)]
        costs = [*seconds, _number(row.costs.peak_mb, 0), _number(row.costs.anonymous_mb, 0)]
        if row.failure is None:
            size = _number(row.nbytes / result.nbytes, 3)
            found = [str(row.nodes), size, *costs, _error(row, "A"), _error(row, "B"), _number(row.cpu_ratio)]
        else:
            found = ["fails", "-", *costs, "-", "-", "-"]
            notes.append(f"- {row.tool}: {row.failure}")
        wrong = (error for error in row.errors.values() if isinstance(error, str))
        notes.extend(f"- {row.tool}, running its result: {error}" for error in wrong)
        rows.append([row.tool, *found])
    size = f"{result.nodes} nodes, {result.nbytes / 1e6:.2f} MB"
    return "\n".join(
        [f"### {result.name} ({size})", "", table(header, rows), "", *notes, *([""] if notes else [])]
    )


def summary(results: Sequence[ModelResult]) -> str:
    """Per tool over all models: nodes left, costs, and how graphopt's CPU time compares."""
    tools = list(dict.fromkeys(row.tool for result in results for row in result.rows))
    rows = []
    for tool in tools:
        pairs = [(result, row) for result in results if (row := result.row(tool)) is not None]
        good = [(result, row) for result, row in pairs if row.right]
        ratios = [row.cpu_ratio for _, row in good if row.cpu_ratio is not None]
        peak = max((row.costs.peak_mb for _, row in good), default=math.nan)
        rows.append(
            [
                tool,
                f"{len(good)}/{len(pairs)}",
                _number(geometric_mean(row.nodes / result.nodes for result, row in good), 3),
                _number(geometric_mean(row.nbytes / result.nbytes for result, row in good), 3),
                _number(sum(row.costs.cpu for _, row in good)),
                _number(peak, 0),
                _number(statistics.median(ratios) if ratios else None),
                _number(geometric_mean(ratios) if ratios else None),
            ]
        )
    header = (
        "tool",
        "right",
        "nodes x",
        "bytes x",
        "CPU s",
        "peak MB",
        "CPU ratio median",
        "CPU ratio geomean",
    )
    return "\n".join(
        ["## All models", "", table(header, rows), *(["", text] if (text := best(results)) else []), ""]
    )


def best(results: Sequence[ModelResult]) -> str:
    """On how many models graphopt leaves no more nodes than the best other tool whose result is right."""
    lines, reached, compared = [], 0, 0
    for result in results:
        ours = result.row(OURS)
        others = [row for row in result.rows if row.tool != OURS and row.right]
        if ours is None or not others:
            continue
        compared += 1
        least = min(others, key=lambda row: row.nodes)
        if ours.right and ours.nodes <= least.nodes:
            reached += 1
        else:
            mine = str(ours.nodes) if ours.right else "no right result"
            lines.append(f"- {result.name}: {OURS} {mine}, {least.tool} {least.nodes}")
    if not compared:
        return ""
    first = f"{OURS} leaves no more nodes than the best other tool on {reached} of {compared} models."
    return "\n".join([first, *(["", "Where it does not:", "", *lines] if lines else [])])


def growth(results: Sequence[ModelResult]) -> str:
    """CPU time of the largest synthetic graph by that of the next smaller one, per tool."""
    if len(results) < 2:
        return ""
    small, large = results[-2:]
    rows = []
    for after in large.rows:
        before = small.row(after.tool)
        if before is not None and before.failure is None and after.failure is None:
            rows.append([after.tool, _number(after.costs.cpu / before.costs.cpu)])
    header = ("tool", f"CPU time, {large.name} / {small.name} (nodes: x{large.nodes / small.nodes:.2f})")
    return "\n".join(["## Growth", "", table(header, rows), ""])


def document(
    title: str,
    command: str,
    cpu: str,
    versions: dict[str, str],
    results: Sequence[ModelResult],
    *,
    scale: bool,
) -> str:
    """The whole page."""
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = [
        f"# {title}",
        "",
        f"{date.today().isoformat()}, {cpu}, one core pinned. {tools}.",
        "",
        f"    {command}",
        "",
        "- nodes: without Constant, subgraphs and functions included",
        "- bytes x: result by input, external data included",
        "- CPU s: user and system time of the whole process, interpreter start and imports included; median",
        "- peak MB: largest resident set, mapped files included; anon MB: without them, sampled",
        "- error A, B: largest difference to the original by the output's largest value, on two input shapes",
        f"  both with ONNX Runtime's optimizations off; a result is right up to {EXACT_ENOUGH:.0e}",
        f"- CPU ratio: {OURS}'s CPU time by the tool's, median of interleaved pairs (below 1: it is cheaper)",
        "",
    ]
    tail = [growth(results)] if scale else []
    parts = ["\n".join(head), summary(results), *tail, "## Each model", "", *map(model_table, results)]
    return "\n".join(parts).rstrip() + "\n"
