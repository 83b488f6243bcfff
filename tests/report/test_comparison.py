"""What people read of a comparison."""

from __future__ import annotations

import io
import math
from dataclasses import replace

from rich.console import Console

from graphopt.report.comparison import render
from graphopt.report.document import FileInfo, OutputRow
from graphopt.report.measured import MetricRow
from graphopt.report.validated import LayerRow, Localization, NearbyNode, RuntimeRow, ValidationReport

A, B = FileInfo("a.onnx", 10), FileInfo("b.onnx", 10)
ROW = OutputRow("y", "float", ("N", "4"), "CLOSE", 0.5, 0.5, 0.9, 12.0, 1e-6, "failed", "it moved")
JUDGE = RuntimeRow(
    "CPU, optimizations off", "CPUExecutionProvider", "off", 0.0, 7.5, True, False, "candidate"
)


def shown(report: ValidationReport, *, verbose: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, markup=False, highlight=False, emoji=False)
    render(report, console, verbose=verbose)
    return out.getvalue()


def layer(i: int, *, ok: bool = True) -> LayerRow:
    return LayerRow(f"t{i}", f"u{i}", "name", f"n{i}", "Relu", i, 30.0, 0.1, 0.5 if ok else 2.0, ok)


def test_the_verdict_comes_first_and_whose_fault_next() -> None:
    report = ValidationReport(
        A, B, "failed", "output 'y' moved", fault="candidate", explanation="It is wrong.", outputs=(ROW,)
    )
    lines = shown(report).splitlines()
    assert lines[0] == "FAILED: output 'y' moved"
    assert lines[1] == "fault: candidate"
    assert lines[2].strip() == "It is wrong."
    text = shown(replace(report, runtimes=(JUDGE,), mapping={"new": "old"}, warnings=("beware",)))
    assert "mapped: new = old" in text
    assert "CPU, optimizations off" in text
    assert "warning: beware" in text
    assert "load 1.0 s" not in text
    assert "load 1.0 s" in shown(replace(report, seconds={"load": 1.0}), verbose=True)


def test_what_is_said_where_nothing_is_wrong() -> None:
    assert shown(ValidationReport(A, B, "proven")).startswith("PROVEN: they compute the same")
    assert "on every runtime that was tried" in shown(ValidationReport(A, A, "proven"))
    assert "as close as asked for" in shown(ValidationReport(A, B, "proven", numerics="LOSSY"))
    quiet = RuntimeRow("CPU, optimizations off", "CPUExecutionProvider", "off", 0.0, 0.1)
    assert "optimizations off" not in shown(ValidationReport(A, B, "proven", runtimes=(quiet, quiet)))
    noted = replace(quiet, note="TF32 is on")
    assert "TF32 is on" in shown(ValidationReport(A, B, "proven", runtimes=(quiet, noted)))


def test_the_place_and_the_nodes_around_it() -> None:
    nodes = (
        NearbyNode("conv", "Conv", ("x", "w"), ("c",), "fold-conv-bn", "agrees"),
        NearbyNode("relu\x1b[31m", "Relu", ("c",), ("r",), "", "diverges", True),
        NearbyNode("", "Cast", ("r",), ("q",)),
    )
    found = Localization(
        True, "'r' is the first", layer(1, ok=False), "relu", "Relu", agreed=("c",), neighbourhood=nodes
    )
    text = shown(ValidationReport(A, B, "failed", "bad", localization=found))
    assert "where: Relu relu" in text
    assert "'r' is the first" in text
    assert "      ok  Conv conv  [fold-conv-bn]" in text
    assert "  >>> off Relu relu" in text
    assert "\x1b" not in text  # a name from a model cannot drive a terminal
    assert "      ?   Cast\n" in text
    assert "from c\n" in text
    nothing = Localization(False, "all tensors are equal")
    assert "where: all tensors are equal" in shown(ValidationReport(A, B, "failed", localization=nothing))


def test_layers_and_metrics() -> None:
    rows = tuple(layer(i, ok=i < 57) for i in range(100))
    report = ValidationReport(
        A, B, "failed", "bad", layers=rows, metrics=(MetricRow("accuracy", 99.0, 98.5),)
    )
    text = shown(report)
    assert "accuracy" in text
    assert "-0.5" in text
    assert "t57 = u57" in text  # the first that is off is always there
    assert "more layers (-v lists them)" in text
    assert len([line for line in text.splitlines() if " = u" in line]) <= 42
    assert len([line for line in shown(report, verbose=True).splitlines() if " = u" in line]) == 100
    infinite = replace(layer(0), sqnr_db=math.inf, max_abs=0.0, used=None)
    assert "inf" in shown(replace(report, layers=(infinite,)))
