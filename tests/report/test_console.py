from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from graphopt.report.console import render
from graphopt.report.document import (
    Culprit,
    FileInfo,
    ModelStats,
    OutputRow,
    PassReport,
    Refusal,
    RunReport,
)

PASSES = (
    PassReport("fold-conv-bn", {}, "CLOSE", 9, (), 9, 0, 0.0123),
    PassReport(
        "fuse-gelu", {"exact": "true"}, "CLOSE", 0, (Refusal("/l3/Mul", "the Erf output is read twice", 2),)
    ),
    PassReport("cse", {}, "EXACT"),
)


def report(**changes: Any) -> RunReport:
    fields: dict[str, Any] = {
        "input": FileInfo("digits.onnx", 110_000),
        "output": FileInfo("digits.opt.onnx", 101_000),
        "target": "portable",
        "pipeline": "fold-conv-bn,fuse-gelu,cse",
        "verdict": "proven",
        "passes": PASSES,
        "before": ModelStats(40, 34, 47, 24_896, 99_584, {"Conv": 8, "BatchNormalization": 9}, {"": 17}, 8),
        "after": ModelStats(25, 25, 21, 24_400, 97_600, {"Conv": 8}, {"": 17}, 8),
        "outputs": (
            OutputRow("logits", "float", ("batch", "10"), "CLOSE", 1.9e-6, 1e-7, 1.0, 131.0, 2.5e-5),
        ),
        "probes": ("image[1,1,8,8]", "image[3,1,8,8]"),
    }
    return RunReport(**fields | changes)


def shown(what: RunReport, width: int = 80, **options: bool) -> str:
    out = io.StringIO()
    render(what, Console(file=out, width=width, markup=False, highlight=False), **options)
    return out.getvalue()


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_verdict_comes_first_and_the_file_last() -> None:
    text = lines(shown(report(verdict_reason="within the model's own noise")))
    assert text[0] == "PROVEN: within the model's own noise"
    assert text[-1] == "written: digits.opt.onnx (101 kB)"
    assert "nodes 40 25 -38%" in text
    assert "file 110 kB 101 kB -8.2%" in text
    assert any("BatchNormalization 9 -> 0" in line for line in text)
    assert "logits float[batch,10] 1.9e-06 2.5e-05 131 ok" in text
    assert any("image[1,1,8,8]; image[3,1,8,8]" in line for line in text)


def test_only_passes_that_did_something_are_listed() -> None:
    text = lines(shown(report()))
    assert "fold-conv-bn CLOSE 9 -9 +0 12 ms" in text
    assert not any(line.startswith(("cse", "fuse-gelu")) for line in text)
    assert "2 other passes found nothing to do; 2 near misses (--explain lists them)" in text
    everything = lines(shown(report(), verbose=True))
    assert any(line.startswith("cse EXACT 0") for line in everything)
    assert "pipeline: fold-conv-bn,fuse-gelu,cse" in everything


def test_explain_lists_near_misses() -> None:
    text = lines(shown(report(), explain=True))
    assert "fuse-gelu /l3/Mul the Erf output is read twice x2" in text
    assert "no near misses" in lines(shown(report(passes=PASSES[:1]), explain=True))


def test_culprits_come_right_after_the_verdict() -> None:
    culprit = Culprit(
        "bad-bn",
        "/conv1/BatchNormalization",
        "logits moved by 0.3, 2.5e-05 was allowed",
        "repro",
        "graphopt run m",
        ("cse",),
    )
    text = lines(shown(report(verdict="rolled back", culprits=(culprit,))))
    assert text[0].startswith("ROLLED BACK: 1 rewrite made the result wrong")
    assert text[1] == "culprit bad-bn: at /conv1/BatchNormalization (together with cse)"
    assert text[2] == "logits moved by 0.3, 2.5e-05 was allowed"
    assert text[3] == "reproducer: repro"
    assert text[4] == "see it again: cd repro && graphopt run m"


@pytest.mark.parametrize("verdict", ["proven", "unproven", "rolled back", "failed", "not verified"])
def test_every_verdict_says_something(verdict: Any) -> None:
    head, _, reason = shown(report(verdict=verdict)).splitlines()[0].partition(": ")
    assert head == verdict.upper()
    assert len(reason) > 10


def test_nothing_written_is_said() -> None:
    assert lines(shown(report(verdict="failed", output=None)))[-1] == "nothing was written"


def test_opset_and_ir_changes_are_shown() -> None:
    after = ModelStats(25, 25, 21, 24_400, 97_600, {"Conv": 8}, {"": 20, "com.microsoft": 1}, 9)
    text = lines(shown(report(after=after)))
    assert "opset ai.onnx 17 20" in text
    assert "opset com.microsoft - 1" in text
    assert "IR version 8 9" in text


def test_long_names_fold_and_nothing_is_lost_at_80_columns() -> None:
    name = "/model/encoder/layers.11/" + "attention/" * 10 + "output"
    row = OutputRow(name, "float", ("batch", "sequence"), "CLOSE", 1e-6, None, None, None, 1e-5)
    refused = PassReport("p", {}, "EXACT", 1, (Refusal(name, "because"),))
    text = shown(report(outputs=(row,), passes=(refused,)), explain=True)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "".join(text.split()).count("attention/") >= 15  # folded, not cut off


def test_names_are_shown_as_they_are() -> None:
    row = OutputRow("[bold]x[/bold]\x1b[31m", "float", ("batch",), "EXACT", 0.0)
    text = shown(report(outputs=(row,)))
    assert "[bold]x[/bold]\\x1b[31m" in text
    assert "\x1b" not in text


def test_many_outputs_are_shortened_but_failures_are_not() -> None:
    rows = tuple(OutputRow(f"y{i}", "float", ("1",), "EXACT", 0.0) for i in range(40))
    text = shown(report(outputs=rows))
    assert "28 more outputs (-v lists them)" in text
    bad = OutputRow("wrong", "float", ("1",), "EXACT", 1.0, verdict="failed", note="NaN where there was none")
    text = shown(report(outputs=(*rows, bad), verdict="failed", output=None))
    assert "NaN where there was none" in text
    assert len(shown(report(outputs=rows), verbose=True).splitlines()) > 40


def test_no_colour_without_a_terminal_and_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in shown(report())
    out = io.StringIO()
    render(report(), Console(file=out, width=80, markup=False, force_terminal=True))
    assert "\x1b[1;32mPROVEN" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    render(report(), Console(file=out, width=80, markup=False, force_terminal=True))
    assert "32m" not in out.getvalue()


def test_what_is_to_be_copied_is_not_broken() -> None:
    pipeline = ",".join(f"remove-noop-{i}" for i in range(30))
    assert f"pipeline: {pipeline}" in lines(shown(report(pipeline=pipeline), verbose=True))


def test_without_a_file_weights_are_compared_with_weights() -> None:
    text = lines(shown(report(verdict="unproven", output=None)))
    assert "weights 99.6 kB 97.6 kB -2.0%" in text
    assert not any(line.startswith("file ") for line in text)


def test_a_crash_is_called_a_crash() -> None:
    trace = "Traceback (most recent call last):\nZeroDivisionError: division by zero\n"
    crash = Culprit("halve", "", "pass 'halve': ZeroDivisionError", trace=trace)
    text = shown(report(verdict="rolled back", culprits=(crash,)))
    assert text.startswith("ROLLED BACK: 1 pass crashed and is not in it")
    assert "ZeroDivisionError: division by zero" in text
    wrong = Culprit("cse", "/l3/Mul", "it moved")
    text = shown(report(verdict="rolled back", culprits=(wrong, wrong, crash)), width=100)
    assert text.startswith(
        "ROLLED BACK: 2 rewrites made the result wrong, 1 pass crashed: they are not in it"
    )
    dropped = Culprit("cse", "", "it moved still")
    text = shown(report(verdict="rolled back", culprits=(wrong, wrong, dropped)))
    assert text.startswith("ROLLED BACK: 1 pass made the result wrong and is not in it")


def test_types_break_between_dims() -> None:
    row = OutputRow(
        "y", "float", ("LayerNormalization_dim_0", "LayerNormalization_dim_1", "768"), "CLOSE", 0.0
    )
    text = shown(report(outputs=(row,)))
    assert "y float[LayerNormalization_dim_0, 0 CLOSE - ok" in lines(text)
    assert "LayerNormalization_dim_1,768]" in lines(text)


def test_a_note_stands_under_the_table_and_is_not_said_twice() -> None:
    row = OutputRow("y", "float", ("2",), "CLOSE", 1.0, allowed=0.5, verdict="failed", note="twice too far")
    assert "y: twice too far" in lines(shown(report(outputs=(row,), verdict="failed")))
    said = shown(report(outputs=(row,), verdict="failed", verdict_reason="output 'y': twice too far"))
    assert said.count("twice too far") == 1
