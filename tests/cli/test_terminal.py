from __future__ import annotations

import io

import pytest
from rich.console import Console

from graphopt.cli.terminal import Progress, Silence, console, progress


def test_in_a_pipe_one_line_per_kind_of_stage() -> None:
    out = io.StringIO()
    with Progress(Console(file=out)) as tell:
        tell("load", "model.onnx")
        tell("reference", "running the original")
        for name in ("cse", "dead-nodes"):
            tell("pass", name)
            tell("changed", f"{name}: 3 rewrites")
        tell("prove", "comparing")
    assert out.getvalue().splitlines() == [
        "loading the model",
        "running the original",
        "running the passes",
        "comparing with the original",
    ]


def test_verbose_in_a_pipe_says_everything() -> None:
    out = io.StringIO()
    with Progress(Console(file=out), verbose=True) as tell:
        tell("pass", "cse")
        tell("changed", "cse: 3 rewrites")
        tell("pass", "bad\x1b[2Jname")
    assert out.getvalue().splitlines() == ["pass: cse", "changed: cse: 3 rewrites", r"pass: bad\x1b[2Jname"]


def test_on_a_terminal_one_line_that_goes_away() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=80)) as tell:
        tell("pass", "cse")
    shown = out.getvalue()
    assert "pass: cse" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased in the end


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    tell = progress(quiet=True)
    assert isinstance(tell, Silence)
    with tell:
        tell("pass", "cse")
    assert capsys.readouterr() == ("", "")


def test_consoles_show_names_as_they_are() -> None:
    out = io.StringIO()
    console(out).print("[red]x[/red] :smile: 12")
    assert out.getvalue() == "[red]x[/red] :smile: 12\n"


def test_a_pipe_is_wide_enough_for_names_whatever_the_terminal() -> None:
    assert console(io.StringIO()).width == 100
