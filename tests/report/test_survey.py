"""The table and the chart of what a pass does to each layer."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from rich.console import Console

from graphopt.budget import Effect, Score, Survey, Swept
from graphopt.report.plot import curves, document
from graphopt.report.survey import survey, svg


def effect(node: str, sqnr: float, saved: int, **more: Any) -> Effect:
    fields: dict[str, Any] = {"bytes": saved, "packed_bytes": saved, "parameters": 0, "flops": 0}
    return Effect(node, "Conv" if node else "", more.pop("body", ""), Score(sqnr, 0.99), **(fields | more))


def found(*layers: Effect, **more: Any) -> Survey:
    together = more.pop("together", effect("", 12.0, 9_000))
    return Survey(
        "shrink", "default", "", "8 held-back samples", 40_000, 10_000, 1000, {}, layers, together, **more
    )


def printed(what: Survey, *, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False)
    survey(what, console, verbose=verbose)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_costs_per_byte_are_bars_on_a_logarithmic_scale() -> None:
    text = printed(found(effect("/a", 40, 1000), effect("/b", 30, 1000), effect("/c", 20, 1000)))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("  /")}
    # 40 dB are 100 ppm, and 1 kB is saved.
    assert rows["/a"][-2:] == ["100", "#"]
    assert len(rows["/b"][-1]) in (5, 6)
    assert rows["/c"][-2:] == ["1e+04", "#" * 10]
    assert "whole pass" in text
    assert "before: 10,000 parameters, 40.0 kB of weights" in text
    assert "measured: shrink, on 8 held-back samples" in text
    for absent in ("without zeros", "less work", "latency", "left out"):
        assert absent not in text


def test_columns_that_say_something_are_there() -> None:
    layers = (
        effect("/a", 40, 0, packed_bytes=500),
        effect("/b", math.inf, 0, flops=-4, latency=1.5, body="t"),
    )
    text = printed(found(*layers))
    for there in ("without zeros", "less work", "latency", "1.50", "t: /b", "identical", "-0.4%", "500 B"):
        assert there in text
    line = next(line for line in text.splitlines() if "t: /b" in line)
    assert line.split()[-1] == "-"  # nothing saved: no cost per byte


def test_long_lists_are_cut() -> None:
    layers = [effect(f"/n{i}", 40 - i / 10, 1000) for i in range(40)]
    assert "10 more layers (-v lists them)" in printed(found(*layers))
    assert "/n39" in printed(found(*layers), verbose=True)


def test_names_from_models_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in printed(found(effect("/a\x1b[2J", 40, 1000)))


@pytest.fixture
def swept() -> Survey:
    a, b = effect("/a", 40, 1000), effect("/b<&>", 20, 1000)
    low = Swept("0.3", (a,), effect("", 35, 500))
    high = Swept("0.7", (b, effect("/a", 15, 1000)), effect("", 10, 1500))
    return found(a, b, option="share", sweep=(low, high))


def test_a_sweep_is_a_column_per_value(swept: Survey) -> None:
    rows = [line.split() for line in printed(swept).splitlines()]
    assert ["/a", "40.0", "15.0"] in rows
    assert ["/b<&>", "-", "20.0"] in rows  # it did not change with the first value
    assert ["whole", "pass", "35.0", "10.0"] in rows


def test_the_chart_is_well_formed(swept: Survey) -> None:
    root = ET.fromstring(svg(swept, "a <model>"))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "/b<&>" in texts
    assert "The layers that cost most, and the whole pass" in texts
    lines = [p.get("points", "").split() for p in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert sorted(map(len, lines)) == [1, 2, 2]


def test_curves_rise_where_values_do_and_names_do_not_overlap() -> None:
    series = [("up", [1.0, 2.0, 3.0]), ("same", [1.0, math.nan, 3.0]), ("none", [math.nan] * 3)]
    root = ET.fromstring(document([curves("t", ["1", "2", "3"], series, "x", "y")], "t"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [
        [tuple(map(float, point.split(","))) for point in p.get("points", "").split()]
        for p in root.iter(f"{space}polyline")
    ]
    assert [len(line) for line in lines] == [3, 2]
    assert [y for _, y in lines[0]] == sorted((y for _, y in lines[0]), reverse=True)
    assert lines[0][0] == lines[1][0]
    heights = {t.text: float(t.get("y", "0")) for t in root.iter(f"{space}text")}
    assert abs(heights["up"] - heights["same"]) >= 13
    assert "none" not in heights
