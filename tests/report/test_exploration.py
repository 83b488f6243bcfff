"""Sensitivities and trade-offs as tables and charts."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET

from rich.console import Console

from graphopt.budget import Exploration, Score, Sensitivity, Tradeoff
from graphopt.report import exploration as render

FOUND = Exploration(
    Score(12.0, 0.97),
    (
        Sensitivity("ffn", "MatMul", 1000, Score(30.0, 0.999), Score(12.5, 0.97)),
        Sensitivity("q", "MatMul", 500, Score(12.1, 0.97), Score(41.0, 0.9999)),
    ),
    (
        Tradeoff((), 2, Score(12.0, 0.97, {"accuracy": 80.0}), 1000, 0.4),
        Tradeoff(("ffn",), 2, Score(30.0, 0.999, {"accuracy": 90.0}), 2000, 0.6),
        Tradeoff(("q",), 2, Score(11.0, 0.96, {"accuracy": 79.0}), 2500, 0.7),
        Tradeoff(("ffn", "q"), 2, Score(math.inf, 1.0, {"accuracy": 90.5}), 4000, 1.0),
    ),
)


def text(found: Exploration) -> str:
    out = Console(file=io.StringIO(), width=110, markup=False, highlight=False, color_system=None)
    render.exploration(found, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_the_table_shows_what_each_node_costs() -> None:
    shown = text(FOUND)
    (row,) = [line for line in shown.splitlines() if "ffn" in line]
    assert "+18.0 dB" in row
    assert "12.5 dB" in row
    assert "all changed: 12.0 dB" in shown
    assert "80.00" in shown
    assert "identical" in shown
    assert [line for line in shown.splitlines() if "dominated" in line and "11.0" in line]


def test_the_front_has_no_point_that_another_beats() -> None:
    front = render.pareto(FOUND.tradeoffs)
    assert [len(t.spared) for t in front] == [0, 1, 2]
    assert ("q",) not in [t.spared for t in front]


def test_the_chart_is_well_formed() -> None:
    root = ET.fromstring(render.svg(FOUND, "model.onnx"))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Accuracy against latency" in titles
    assert "Accuracy against size" in titles


def test_what_a_chart_joins_is_beaten_by_nothing_in_its_two_figures() -> None:
    """("q",) is slower, larger and less accurate than ("ffn",): a dot beside the line."""
    root = ET.fromstring(render.svg(FOUND, "model.onnx"))
    svg = "{http://www.w3.org/2000/svg}"
    for color, count in (("a", 4), ("b", 2)):  # per chart: two on the line and one beside it
        assert len([c for c in root.iter(f"{svg}circle") if c.get("class") == color]) == count
    assert len(list(root.iter(f"{svg}polygon"))) == 2  # all float: identical
    labels = {t.text for t in root.iter(f"{svg}text")}
    assert {"0 of 2 in float", "2 of 2 in float", "weights, kB", "as in float"} <= labels


def test_nothing_measured_is_nothing_shown() -> None:
    assert text(Exploration(Score(50.0, 1.0))) == ""
