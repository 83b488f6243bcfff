"""What a report says about results that move the numbers."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from graphopt.report.accuracy import accuracy
from graphopt.report.console import render
from graphopt.report.document import (
    AccuracyReport,
    FileInfo,
    FloatNode,
    LatencyReport,
    MetricRow,
    ModelStats,
    PassReport,
    RunReport,
)

MEASURED = AccuracyReport(
    "56 held-back samples",
    38.25,
    0.9999123,
    (MetricRow("psnr", 24.2, 24.15),),
    ("psnr falls by at most 0.1",),
)
TIMED = LatencyReport("CPUExecutionProvider", 0.78, 0.77, 0.83, 0.0896, 0.0725, (), "faster")


def report(**changes: Any) -> RunReport:
    fields: dict[str, Any] = {
        "passes": (PassReport("insert-qdq", {}, "LOSSY", 17),),
        "before": ModelStats(40, 34, 47, 24_896, 99_584),
        "after": ModelStats(71, 71, 89, 580, 26_000),
        "accuracy": MEASURED,
        "latency": TIMED,
    }
    return RunReport(FileInfo(), None, "portable", "int8", "proven", **fields | changes)


def printed(what: RunReport, *, verbose: bool = False, everything: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=100, markup=False, highlight=False)
    if everything:
        render(what, console)
    else:
        accuracy(what, console, verbose=verbose)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_accuracy_before_and_after() -> None:
    lines = printed(report())
    assert "psnr 24.20 24.15 -0.05" in lines
    assert "SQNR (worst output) 38.2 dB" in lines
    assert "cosine (worst output) 0.999912" in lines
    assert "measured on 56 held-back samples; asked for: psnr falls by at most 0.1" in lines


def test_identical_outputs_have_no_figure() -> None:
    lines = printed(report(accuracy=AccuracyReport("synthesized inputs", math.inf, 1.0)))
    assert "SQNR (worst output) identical" in lines
    assert "measured on synthesized inputs" in lines


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0187, "18.7 µs"), (0.02, "20.0 µs"), (1.5, "1.50 ms"), (250.4, "250 ms"), (12_345.0, "12.3 s")],
)
def test_times_have_three_digits(milliseconds: float, text: str) -> None:
    timed = LatencyReport("CPUExecutionProvider", 1.0, 0.9, 1.1, milliseconds, milliseconds)
    assert f"CPU {text} {text} 1.00 no difference (99%: 0.90 to 1.10; paired runs, one thread)" in printed(
        report(latency=timed)
    )


def test_before_and_after_have_one_unit() -> None:
    timed = LatencyReport("CPUExecutionProvider", 0.38, 0.38, 0.39, 2.33, 0.915, (), "faster")
    (line,) = (line for line in printed(report(latency=timed)) if line.startswith("CPU"))
    assert line.startswith("CPU 2.33 ms 0.92 ms 0.38 faster")


def test_nodes_that_stayed_float_are_grouped_by_reason() -> None:
    nodes = tuple(FloatNode(f"/layer{i}/Conv", "Conv", "too small") for i in range(5))
    lines = printed(report(left_float=(*nodes, FloatNode("/up", "Resize", "no integer kernel"))))
    assert "1 Resize /up no integer kernel" in lines
    assert "5 Conv /layer0/Conv, /layer1/Conv, /layer2/Conv and 2 more too small" in " ".join(lines)


def test_many_reasons_are_cut_off_unless_asked_for() -> None:
    nodes = tuple(FloatNode(f"n{i}", "Conv" if i % 2 else "Add", f"reason {i}") for i in range(11))
    short, long = printed(report(left_float=nodes)), printed(report(left_float=nodes), verbose=True)
    assert "3 more reasons (2 Add, 1 Conv); -v lists them" in short
    assert not any("reason 10" in line for line in short)
    assert any("reason 10" in line for line in long)


def test_a_result_that_computes_the_same_has_no_such_section() -> None:
    assert printed(report(accuracy=None, latency=None)) == []


def test_the_headline_says_what_was_held_against_the_result() -> None:
    assert printed(report(), everything=True)[0] == "PROVEN: the result is as accurate as asked for"
    free = report(accuracy=AccuracyReport("synthesized inputs", 30.0, 0.99))
    assert printed(free, everything=True)[0].endswith("as measured below; nothing was asked for")
    same = report(accuracy=None, passes=())
    assert printed(same, everything=True)[0] == "PROVEN: the result computes the same as the input"


def test_weights_that_became_integers_are_not_shown_as_lost() -> None:
    assert "float parameters 24,896 580 -98%" in printed(report(), everything=True)
    assert "parameters 24,896 580 -98%" in printed(report(accuracy=None, passes=()), everything=True)


def test_models_names_are_not_markup() -> None:
    lines = printed(report(left_float=(FloatNode("[bold]x[/bold]", "Conv", "[red]"),)))
    assert "1 Conv [bold]x[/bold] [red]" in lines
