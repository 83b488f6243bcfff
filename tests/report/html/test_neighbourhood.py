"""The picture of the nodes around a place: boxes, lines between the right ones, marks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from graphopt.report.charts import inline
from graphopt.report.html.layout import HEIGHT, WIDTH
from graphopt.report.html.neighbourhood import neighbourhood
from graphopt.report.validated import NearbyNode

NODES = (
    NearbyNode("/a", "Conv", ("x", "w"), ("a",), "", "agrees"),
    NearbyNode("/b", "Mul<&>", ("a", "a"), ("b",), "fuse-gelu", "diverges", True),
    NearbyNode("/c", "Relu", ("b",), ("c",), "", "diverges"),
    NearbyNode("/far", "Neg", ("q",), ("r",)),
)


def test_boxes_and_lines() -> None:
    root = ET.fromstring(inline(neighbourhood(NODES), "around"))
    boxes = {}
    for group in root.iter("g"):
        rect = group.find("rect")
        assert rect is not None
        boxes[(group.findtext("title") or "").partition(":")[0]] = rect
    assert set(boxes) == {"Conv /a", "Mul<&> /b", "Relu /c", "Neg /far"}
    assert boxes["Mul<&> /b"].get("class") == "node diverges guilty"
    assert boxes["Conv /a"].get("class") == "node agrees"
    y = {name: int(rect.get("y", "0")) for name, rect in boxes.items()}
    assert y["Conv /a"] < y["Mul<&> /b"] < y["Relu /c"]
    ends = set()
    for path in root.iter("path"):
        numbers = [float(v) for v in re.findall(r"-?[\d.]+", path.get("d", ""))]
        ends.add((*numbers[:2], *numbers[-2:]))

    def middle(name: str, bottom: bool) -> tuple[float, float]:
        rect = boxes[name]
        return float(rect.get("x", "0")) + WIDTH / 2, float(rect.get("y", "0")) + (HEIGHT if bottom else 0)

    assert ends == {
        (*middle("Conv /a", True), *middle("Mul<&> /b", False)),
        (*middle("Mul<&> /b", True), *middle("Relu /c", False)),
    }
    marks = [(t.text or "")[0] for t in root.iter("text") if t.get("class") == "small strong"]
    assert sorted(marks) == sorted("✓✗✗?")


def test_nothing_and_too_much() -> None:
    assert neighbourhood(()).svg == ""
    assert neighbourhood(NODES * 20).svg == ""
