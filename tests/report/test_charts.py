"""Charts of measurements: well-formed SVG with the right things in the right places."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from graphopt.report import charts
from graphopt.report.charts import Band, DepthPoint, Interval

HOSTILE = "<script>&\"'"


def parse(panel: charts.Panel) -> ET.Element:
    return ET.fromstring(charts.inline(panel, f"a chart {HOSTILE}"))


def of(root: ET.Element, tag: str, style: str) -> list[ET.Element]:
    return [e for e in root.iter(tag) if e.get("class") == style]


def number(element: ET.Element, key: str) -> float:
    return float(element.get(key, "nan"))


def says(element: ET.Element) -> str:
    return element.findtext("title") or ""


def test_depth_places_points_by_depth_and_value() -> None:
    points = [
        DepthPoint(0, math.inf, "same"),
        DepthPoint(5, 80.0, "middle"),
        DepthPoint(10, 20.0, HOSTILE, ok=False),
        DepthPoint(10, 40.0, "beside"),
        DepthPoint(3, math.nan, "none"),
    ]
    root = parse(charts.depth("d", points, limit=30.0))
    dots = {says(c).partition(":")[0]: c for c in of(root, "circle", "a")}
    assert set(dots) == {"same", "middle", "beside"}  # what is not a number is left out
    (bad,) = of(root, "polygon", "failed")
    assert says(bad).startswith(HOSTILE)
    assert "diverges" in says(bad)
    xs = [number(dots[name], "cx") for name in ("same", "middle", "beside")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    (frame,) = of(root, "rect", "frame")
    assert number(dots["same"], "cy") < number(frame, "y")  # in the band above
    assert "identical" in says(dots["same"])
    # Two values fix the scale: 80 and 40 dB; the limit of 30 and the worst of 20 must lie on it.
    y80, y40 = (number(dots[name], "cy") for name in ("middle", "beside"))
    per_db = (y40 - y80) / 40
    (limit,) = of(root, "line", "limit")
    assert number(limit, "y1") == pytest.approx(y40 + 10 * per_db, abs=0.3)
    (line,) = of(root, "polyline", "line")
    last = float((line.get("points") or "").split()[-1].split(",")[1])
    assert last == pytest.approx(y40 + 20 * per_db, abs=0.3)  # the worst at depth 10


def test_shares_are_logarithmic_and_the_limit_is_one() -> None:
    root = parse(
        charts.shares("s", [("a", 0.1, True), ("b", 1.0, True), ("c", 10.0, False), ("d", 0.0, True)])
    )
    a, b = of(root, "rect", "a")
    (c,) = of(root, "rect", "failed")
    widths = [number(e, "width") for e in (a, b, c)]
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1], abs=0.2)
    (limit,) = of(root, "line", "limit")
    assert number(limit, "x1") == pytest.approx(number(b, "x") + widths[1], abs=0.2)


def test_a_share_without_bounds_reaches_the_edge() -> None:
    root = parse(charts.shares("s", [("a", math.inf, False)]))
    (bar,) = of(root, "rect", "failed")
    assert number(bar, "width") > 300


def test_histogram_marks_the_range_in_use_and_what_it_cuts_off() -> None:
    bands = [Band("minmax", -2.0, 2.0), Band("percentile", -1.0, 1.0, used=False)]
    root = parse(charts.histogram(HOSTILE, [-2, -1, 0, 1, 2], [1, 9, 99, 0], bands, zeros=999))
    bars = of(root, "rect", "a")
    assert [says(b) for b in bars] == ["-2 to -1: 1", "-1 to 0: 9", "0 to 1: 99"]
    heights = [number(b, "height") for b in bars]
    assert heights[1] / heights[0] == pytest.approx(math.log10(10) / math.log10(2), rel=0.02)
    used = sorted(number(e, "x1") for e in of(root, "line", "range"))
    other = sorted(number(e, "x1") for e in of(root, "line", "range other"))
    assert used[0] == pytest.approx(number(bars[0], "x"), abs=0.2)
    assert other[0] == pytest.approx(number(bars[1], "x"), abs=0.2)
    assert sum(number(e, "width") for e in of(root, "rect", "outside")) < 20  # nothing but the margin
    tight = parse(charts.histogram("h", [-2, -1, 0, 1, 2], [1, 9, 99, 0], [Band("edited", -1.0, 1.0)]))
    assert sum(number(e, "width") for e in of(tight, "rect", "outside")) > 100
    (zeros,) = of(root, "line", "l2 whisker")
    assert says(zeros) == "zeros: 999"


def test_a_histogram_of_one_value_is_drawn() -> None:
    root = parse(charts.histogram("h", [3.0, 3.0], [7], [Band("minmax", 3.0, 3.0)]))
    assert len(of(root, "rect", "a")) == 1


def test_distributions_show_medians_and_do_not_let_one_slow_run_squeeze_the_rest() -> None:
    fast = [1 + 0.01 * i for i in range(100)] + [500.0]
    slow = [2 + 0.01 * i for i in range(101)]
    root = parse(charts.distributions("d", [("A", fast), (HOSTILE, slow), ("none", [])], "ms"))
    curves = list(root.iter("polyline"))
    assert len(curves) == 2
    (a,), (b,) = of(root, "circle", "s1"), of(root, "circle", "s2")
    assert "median 1.5 ms" in says(a)
    assert says(b) == f"{HOSTILE}: median 2.5 ms"
    # One unit apart, and that is a good part of the chart.
    assert number(b, "cx") - number(a, "cx") > 150
    assert charts.distributions("d", [], "ms").svg == ""


def test_ratios_lie_on_their_side_of_one() -> None:
    rows = [Interval("B", 0.8, 0.79, 0.81, "faster"), Interval("C", 1.1, 1.05, 1.2, "slower")]
    root = parse(charts.ratios("r", [*rows, Interval("D", math.nan, 0.0, 0.0, "")]))
    (one,) = of(root, "line", "guide")
    b, c = of(root, "circle", "a")
    assert number(b, "cx") < number(one, "x1") < number(c, "cx")
    unit = (number(c, "cx") - number(b, "cx")) / 0.3
    whiskers = [e for e in of(root, "line", "l1 whisker") if says(e)]
    assert number(whiskers[1], "x2") - number(whiskers[1], "x1") == pytest.approx(0.15 * unit, abs=0.5)
    assert charts.ratios("r", []).svg == ""


def test_nothing_is_drawn_of_nothing() -> None:
    assert charts.inline(charts.Panel("", 0, 0), "x") == ""
    assert re.search("<svg", charts.inline(charts.depth("d", []), "x"))
