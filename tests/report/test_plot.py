"""Charts: well-formed SVG that shows the right numbers in the right places."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest

from graphopt.report import plot

SVG = "{http://www.w3.org/2000/svg}"


def parse(*panels: plot.Panel) -> ET.Element:
    return ET.fromstring(plot.document(panels, "a <title>"))


def test_bars_are_as_long_as_their_values() -> None:
    root = parse(plot.bars("gain", [("a", 2.0), ("b & c", 1.0), ("none", math.nan)], "dB"))
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "a"]
    assert len(bars) == 2  # what is not a number gets no bar
    first, second = (float(b.get("width", "0")) for b in bars)
    assert first == pytest.approx(2 * second, rel=1e-3)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert "b & c" in texts
    assert "-" in texts


def test_negative_bars_go_to_the_left() -> None:
    root = parse(plot.bars("gain", [("up", 1.0), ("down", -1.0)], "dB"))
    up, down = (r for r in root.iter(f"{SVG}rect") if r.get("class") == "a")
    assert float(down.get("x", "0")) + float(down.get("width", "0")) == pytest.approx(float(up.get("x", "0")))


def test_scatter_places_points_and_joins_the_marked_ones() -> None:
    points = [
        (1.0, 10.0, "p", True),
        (2.0, 20.0, "q", True),
        (1.5, 5.0, "r", False),
        (math.inf, 1.0, "s", True),
        (1.2, -math.inf, "t", True),
    ]
    root = parse(plot.scatter("t", points, "x", "y"))
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 3
    p, q, r = ((float(c.get("cx", "0")), float(c.get("cy", "0"))) for c in circles)
    assert p[0] < r[0] < q[0]
    assert q[1] < p[1] < r[1]  # upwards is less
    (line,) = root.iter(f"{SVG}polyline")
    assert len(line.get("points", "").split()) == 2


def test_what_is_infinitely_good_is_an_arrow_on_the_upper_edge() -> None:
    root = parse(plot.scatter("t", [(1.0, 10.0, "p", True), (2.0, math.inf, "q", True)], "x", "y"))
    (arrow,), (frame,) = root.iter(f"{SVG}polygon"), [r for r in root.iter(f"{SVG}rect") if r.get("x")]
    assert f",{float(frame.get('y', '0')) - 6:.1f} " in arrow.get("points", "")
    (line,) = root.iter(f"{SVG}polyline")
    assert len(line.get("points", "").split()) == 2


def test_a_guide_is_drawn_where_it_is_in_sight() -> None:
    points = [(0.5, 10.0, "p", True), (1.5, 20.0, "q", True)]
    for at, times in ((1.0, 1), (9.0, 0)):
        root = parse(plot.scatter("t", points, "x", "y", guide=(at, "the original")))
        assert len([e for e in root.iter(f"{SVG}line") if e.get("class") == "guide"]) == times
        assert [t.text for t in root.iter(f"{SVG}text")].count("the original") == times


def test_labels_of_a_scatter_stay_inside_and_apart() -> None:
    points = [(1.0 + i / 1000, 10.0, f"point number {i}", False) for i in range(4)] + [
        (2.0, 20.0, "far", True)
    ]
    root = parse(plot.scatter("t", points, "x", "y"))
    labels = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("point")]
    lines = sorted(float(t.get("y", "0")) for t in labels)
    assert all(b - a >= 12 for a, b in itertools.pairwise(lines))
    (far,) = (t for t in root.iter(f"{SVG}text") if t.text == "far")
    assert far.get("text-anchor") == "end"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.0), (1e-9, 3e-9), (0.98, 1.01)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = plot.ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-12 <= t <= high + 1e-12 for t in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps == {1.0}


def test_nothing_to_show_is_a_chart_all_the_same() -> None:
    root = parse(plot.bars("empty", [], "dB"), plot.scatter("empty", [], "x", "y"))
    assert root.tag == f"{SVG}svg"
