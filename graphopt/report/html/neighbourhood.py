"""The nodes around a place as a small picture, which needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphopt.report.html.layout import HEIGHT, WIDTH, Edge, layout
from graphopt.report.plot import Panel
from graphopt.report.text import clean
from graphopt.report.validated import NearbyNode

_MARKS = {"agrees": "✓", "diverges": "✗", "unknown": "?"}
_MOST = 60


def neighbourhood(nodes: Sequence[NearbyNode]) -> Panel:
    """Boxes with lines, in the layers of the graph; empty for no nodes, or for too many to be seen."""
    if not 0 < len(nodes) <= _MOST:
        return Panel("", 0, 0)
    producer = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    edges = [
        Edge(producer[name], i, slot)
        for i, node in enumerate(nodes)
        for slot, name in enumerate(node.inputs)
        if name in producer and producer[name] != i
    ]
    found = layout(len(nodes), edges, [False] * len(nodes))
    parts = []
    for number, edge in enumerate(edges):
        points = [
            (found.x[edge.source] + WIDTH / 2, found.y[edge.source] + HEIGHT),
            *found.bends.get(number, ()),
            (found.x[edge.target] + WIDTH / 2, found.y[edge.target]),
        ]
        parts.append(f'<path class="wire" d="{_curve(points)}"/>')
    parts += [_box(node, found.x[i], found.y[i]) for i, node in enumerate(nodes)]
    return Panel("".join(parts), found.width, found.height)


def _curve(points: Sequence[tuple[float, float]]) -> str:
    x, y = points[0]
    path = f"M{x:g},{y:g}"
    for to_x, to_y in points[1:]:
        middle = (y + to_y) / 2
        path += f"C{x:g},{middle:g} {to_x:g},{middle:g} {to_x:g},{to_y:g}"
        x, y = to_x, to_y
    return path


def _box(node: NearbyNode, x: int, y: int) -> str:
    name, op = clean(node.name), clean(node.op)
    style = f"node {node.state}{' guilty' if node.guilty else ''}"
    made = f", made by {clean(node.made_by)}" if node.made_by else ""
    says = f"{op} {name}: {'first to diverge' if node.guilty else node.state}{made}"
    box = f'<rect class="{style}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
    head = f"{_MARKS[node.state]} {escape(_short(op, 16))}"
    return (
        f"<g><title>{escape(says)}</title>{box}"
        f'<text class="small strong" x="{x + 8}" y="{y + 16}">{head}</text>'
        f'<text class="dim" x="{x + 8}" y="{y + 31}">{escape(_short(name, 22))}</text></g>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"
