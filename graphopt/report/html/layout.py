"""Where the nodes of a body stand in a drawing: in ranks from top to bottom, in columns like a newspaper's.

The steps are those of Sugiyama's layered drawing, each close to linear in nodes and edges:

1. Ranks by longest path; nodes that only depend on constants move down to their first reader.
2. An edge that passes several ranks has a waypoint in each. Edges that pass very many have none: they are
   reported as cut, since a line across half the model shows nothing.
3. Order within ranks by barycentre sweeps.
4. Places within ranks: as close to the neighbours' as the distances allow, which pool-adjacent-violators
   solves exactly for one rank at a time.
5. A deep body is broken into columns where few edges cross, so that the whole is as wide as a screen.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 136, 40
_GAP_X, _GAP_Y = 22, 30
_LANE = 14
_GUTTER = 90
_ASPECT = 1.0
#: Most ranks that an edge passes with a line of its own.
_LONGEST = 40
_LEAST_RANKS = 24
# How strongly neighbours pull: along a line that is to be straight; along the first input, which carries the
# data; along others; towards a constant. Without the difference every constant would push a chain aside.
_STRAIGHT, _MAIN, _SIDE, _CONSTANT = 6.0, 1.0, 0.08, 0.02


@dataclass(frozen=True)
class Edge:
    """From the node `source` to input number `slot` of the node `target`."""

    source: int
    target: int
    slot: int


@dataclass(frozen=True)
class Layout:
    """Places in pixels, y downwards.

    Attributes:
        x, y: upper left corner of each node, all WIDTH by HEIGHT.
        width, height: of the whole.
        bends: edge number -> the points that its line passes, where it is not straight.
        cut: numbers of the edges without a line.
    """

    x: list[int]
    y: list[int]
    width: int
    height: int
    bends: dict[int, list[tuple[int, int]]]
    cut: set[int]


def layout(count: int, edges: Sequence[Edge], constant: Sequence[bool]) -> Layout:
    """Place `count` nodes.

    Args:
        count: nodes are numbers below it, preferably in topological order; what contradicts other edges in a
            cycle is not respected.
        edges: between them.
        constant: of each node, whether it depends on no input of the body.
    """
    if not count:
        return Layout([], [], 0, 0, {}, set())
    rank = _ranks(count, edges, constant)
    return _Drawing(count, edges, rank, constant).result()


def _ranks(count: int, edges: Sequence[Edge], constant: Sequence[bool]) -> list[int]:
    """Length of the longest path to each node; constants stand right above their first reader."""
    readers: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for edge in edges:
        readers[edge.source].append(edge.target)
        waiting[edge.target] += 1
    rank = [0] * count
    order: list[int] = []
    ready = [v for v in range(count - 1, -1, -1) if not waiting[v]]
    while ready:
        v = ready.pop()
        order.append(v)
        below = rank[v] + 1
        for w in readers[v]:
            rank[w] = max(rank[w], below)
            waiting[w] -= 1
            if not waiting[w]:
                ready.append(w)
    # Chains of constants do not make anything deeper: ranks once more without them, then they move down.
    if any(constant):
        rank = [0] * count
        for v in order:
            if not constant[v]:
                for w in readers[v]:
                    rank[w] = max(rank[w], rank[v] + 1)
        for v in reversed(order):
            if constant[v] and readers[v]:
                rank[v] = min(rank[w] for w in readers[v]) - 1
    lowest = min(rank)
    return [r - lowest for r in rank]


class _Drawing:
    """The work on one body. Vertices are nodes, and then waypoints of long edges."""

    def __init__(self, count: int, edges: Sequence[Edge], rank: list[int], constant: Sequence[bool]) -> None:
        self.count, self.edges, self.rank = count, edges, rank
        #: Neighbours above and below, each with how strongly it pulls.
        self.up: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        self.down: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        self.cut: set[int] = set()
        self.waypoints: dict[int, range] = {}
        longest = self._longest()
        inputs = [0] * count
        for edge in edges:
            inputs[edge.target] += not constant[edge.source]
        around = {e.target for e in edges if rank[e.target] > rank[e.source] + 1 and not constant[e.source]}
        for number, edge in enumerate(edges):
            span = rank[edge.target] - rank[edge.source]
            if not 1 <= span <= longest:
                self.cut.add(number)
                continue
            first = len(self.rank)
            for step in range(1, span):
                self.rank.append(rank[edge.source] + step)
                self.up.append([])
                self.down.append([])
            self.waypoints[number] = range(first, len(self.rank))
            # Of two inputs one must be straight: the one from right above, or else the first.
            main = span == 1 if edge.target in around else edge.slot == 0
            pull = _MAIN if main or inputs[edge.target] != 2 else _SIDE
            if constant[edge.source] and not constant[edge.target]:
                pull = _CONSTANT
            path = [edge.source, *self.waypoints[number], edge.target]
            for a, b in itertools.pairwise(path):
                strength = _STRAIGHT if a >= count and b >= count else pull
                self.down[a].append((b, strength))
                self.up[b].append((a, strength))
        #: Lines between rank r - 1 and rank r.
        self.crossing = [0] * (max(self.rank) + 2)
        for v, lower in enumerate(self.down):
            self.crossing[self.rank[v] + 1] += len(lower)
        self.layers: list[list[int]] = [[] for _ in range(max(self.rank) + 1)]
        for v in self._start():
            self.layers[self.rank[v]].append(v)

    def _longest(self) -> int:
        """Most ranks that an edge may pass, so that there are not many more waypoints than nodes."""
        spans = sorted(self.rank[e.target] - self.rank[e.source] for e in self.edges)
        room, total = 6 * self.count + 400, 0
        for span in spans:
            total += max(span - 1, 0)
            if total > room or span > _LONGEST:
                return max(min(span - 1, _LONGEST), 1)
        return _LONGEST

    def _start(self) -> list[int]:
        """Vertices in the order of the nodes; a waypoint stands after the node that its edge comes from."""
        key = [float(v) for v in range(self.count)] + [0.0] * (len(self.rank) - self.count)
        for number, way in self.waypoints.items():
            for v in way:
                key[v] = self.edges[number].source + 0.5
        return sorted(range(len(key)), key=key.__getitem__)

    # -- order and places ------------------------------------------------------------------------------

    def _sweeps(self) -> int:
        """Fewer for large graphs: the time is bounded."""
        return 8 if len(self.rank) < 20_000 else 4 if len(self.rank) < 200_000 else 2

    def _order(self) -> None:
        position = [0.0] * len(self.rank)
        for layer in self.layers:
            for i, v in enumerate(layer):
                position[v] = float(i)
        for sweep in range(self._sweeps()):
            downwards = sweep % 2 == 0
            near = self.up if downwards else self.down
            for layer in self.layers if downwards else reversed(self.layers):
                if len(layer) < 2:
                    continue
                wanted = {}
                for v in layer:
                    neighbours = near[v]
                    wanted[v] = (
                        sum(position[u] for u, _ in neighbours) / len(neighbours)
                        if neighbours
                        else position[v]
                    )
                layer.sort(key=wanted.__getitem__)
                for i, v in enumerate(layer):
                    position[v] = float(i)

    def _places(self) -> list[float]:
        """The middle of each vertex."""
        half = self._half()
        x = [0.0] * len(self.rank)
        for layer in self.layers:
            at = 0.0
            for v in layer:
                x[v] = at + half[v]
                at += 2 * half[v] + _GAP_X
        for sweep in range(2 * self._sweeps()):
            downwards = sweep % 2 == 0
            near = self.up if downwards else self.down
            for layer in self.layers if downwards else reversed(self.layers):
                self._settle(layer, near, x, half)
        return x

    def _settle(
        self, layer: list[int], near: list[list[tuple[int, float]]], x: list[float], half: list[float]
    ) -> None:
        """Move one rank's vertices to where their neighbours want them, in order and without overlap."""
        offset = 0.0
        offsets: list[float] = []
        # Blocks of vertices that touch: [sum of weight * wanted place, weight, how many].
        blocks: list[tuple[float, float, int]] = []
        previous = -1
        for v in layer:
            if previous >= 0:
                offset += half[previous] + half[v] + _GAP_X
            previous = v
            offsets.append(offset)
            neighbours = near[v]
            if not neighbours:
                total, weight = 0.05 * (x[v] - offset), 0.05
            else:
                total = weight = 0.0
                for u, pull in neighbours:
                    total += pull * (x[u] - offset)
                    weight += pull
            size = 1
            while blocks and blocks[-1][0] * weight >= total * blocks[-1][1]:
                other = blocks.pop()
                total, weight, size = total + other[0], weight + other[1], size + other[2]
            blocks.append((total, weight, size))
        at = 0
        for total, weight, size in blocks:
            place = total / weight
            for i in range(at, at + size):
                x[layer[i]] = place + offsets[i]
            at += size

    # -- columns ---------------------------------------------------------------------------------------

    def _breaks(self, columns: int) -> list[int]:
        """The first rank of each column."""
        ranks = len(self.layers)
        starts = [0]
        for column in range(1, columns):
            ideal = starts[-1] + (ranks - starts[-1]) / (columns - column + 1)
            slack = max(1, int(0.15 * ranks / columns))
            window = range(max(starts[-1] + 2, int(ideal) - slack), min(ranks - 1, int(ideal) + slack + 1))
            if window:
                starts.append(min(window, key=lambda r: (self.crossing[r], abs(r - ideal))))
        return starts

    def _columns(self, middle: list[float]) -> tuple[list[int], list[tuple[float, float]]]:
        """The first rank of each column and its extent from left to right, all about as wide as a screen."""
        half = self._half()
        sides = [
            (min(middle[v] - half[v] for v in layer), max(middle[v] + half[v] for v in layer))
            for layer in self.layers
        ]
        ranks, pitch = len(self.layers), HEIGHT + _GAP_Y
        most = max(1, ranks // _LEAST_RANKS)
        typical = sorted(b - a for a, b in sides)[int(0.9 * (ranks - 1))]
        columns = min(most, max(1, round((_ASPECT * ranks * pitch / (typical + _GUTTER)) ** 0.5)))
        while True:
            starts = self._breaks(columns)
            ends = [*starts[1:], ranks]
            extents = [
                (min(a for a, _ in sides[s:e]), max(b for _, b in sides[s:e]))
                for s, e in zip(starts, ends, strict=True)
            ]
            width = sum(b - a + _GUTTER for a, b in extents)
            height = max(e - s for s, e in zip(starts, ends, strict=True)) * pitch
            # What drifts sideways makes columns wider than any of their ranks: take fewer then.
            if columns == 1 or width <= 1.25 * _ASPECT * height:
                return starts, extents
            columns = max(1, min(columns - 1, round(columns * (_ASPECT * height / width) ** 0.5)))

    def _half(self) -> list[float]:
        """Half of each vertex's width."""
        return [WIDTH / 2] * self.count + [_LANE / 2] * (len(self.rank) - self.count)

    def result(self) -> Layout:
        """All steps."""
        self._order()
        middle = self._places()
        starts, extents = self._columns(middle)
        column = [bisect_right(starts, r) - 1 for r in range(len(self.layers))]
        at, shift = 0.0, []
        for a, b in extents:
            shift.append(at - a)
            at += b - a + _GUTTER
        pitch = HEIGHT + _GAP_Y
        xs = [m + shift[column[r]] for m, r in zip(middle, self.rank, strict=True)]
        ys = [(r - starts[column[r]]) * pitch for r in self.rank]
        bends: dict[int, list[tuple[int, int]]] = {}
        for number, way in self.waypoints.items():
            edge = self.edges[number]
            if column[self.rank[edge.source]] != column[self.rank[edge.target]]:
                self.cut.add(number)
            elif way:
                bends[number] = _corners([(round(xs[v]), ys[v] + HEIGHT // 2) for v in way])
        return Layout(
            [round(m - WIDTH / 2) for m in xs[: self.count]],
            ys[: self.count],
            round(at - _GUTTER),
            max(ys) + HEIGHT,
            bends,
            self.cut,
        )


def _corners(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same line with fewer points: those in the middle of a straight piece are left out."""
    kept = [points[0]]
    for i in range(1, len(points) - 1):
        if not points[i - 1][0] == points[i][0] == points[i + 1][0]:
            kept.append(points[i])
    if len(points) > 1:
        kept.append(points[-1])
    return kept
