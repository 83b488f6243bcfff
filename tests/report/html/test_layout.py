"""Layered layout: ranks, no overlaps, short chains straight, columns, large graphs."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.report.html.layout import HEIGHT, WIDTH, Edge, layout


def chain(n: int) -> list[Edge]:
    return [Edge(i, i + 1, 0) for i in range(n - 1)]


def overlaps(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    """Pairs of nodes that touch; nodes of a rank share their y."""
    found = []
    by_row: dict[int, list[int]] = {}
    for v, row in enumerate(y):
        by_row.setdefault(row, []).append(v)
    for row in by_row.values():
        row.sort(key=x.__getitem__)
        found += [(a, b) for a, b in itertools.pairwise(row) if x[b] < x[a] + WIDTH]
    return found


def test_nothing() -> None:
    found = layout(0, [], [])
    assert (found.x, found.width, found.height) == ([], 0, 0)


def test_a_chain_is_a_straight_line() -> None:
    found = layout(6, chain(6), [False] * 6)
    assert len(set(found.x)) == 1
    assert found.y == sorted(found.y)
    assert len(set(found.y)) == 6
    assert not found.cut
    assert not found.bends


def test_readers_stand_below_their_producers_and_branches_side_by_side() -> None:
    # 0 -> 1 -> 3, 0 -> 2 -> 3
    found = layout(4, [Edge(0, 1, 0), Edge(0, 2, 0), Edge(1, 3, 0), Edge(2, 3, 1)], [False] * 4)
    assert found.y[0] < found.y[1] == found.y[2] < found.y[3]
    assert abs(found.x[1] - found.x[2]) >= WIDTH


def test_constants_stand_right_above_their_reader_and_do_not_bend_the_chain() -> None:
    # 0 -> 1 -> 2 -> 3 -> 4, and a constant 5 for node 3, which would otherwise stand on top.
    edges = [*chain(5), Edge(5, 3, 1)]
    found = layout(6, edges, [False] * 5 + [True])
    assert found.y[5] == found.y[2]
    assert max(found.x[:5]) - min(found.x[:5]) <= 4


def test_a_line_around_a_chain_passes_beside_it() -> None:
    found = layout(6, [*chain(6), Edge(0, 5, 1)], [False] * 6)
    (number,) = found.bends
    assert number == 5
    for px, py in found.bends[number]:
        inside = [
            v
            for v in range(6)
            if found.x[v] < px < found.x[v] + WIDTH and found.y[v] < py < found.y[v] + HEIGHT
        ]
        assert not inside


def test_a_line_across_everything_is_cut() -> None:
    found = layout(200, [*chain(200), Edge(0, 199, 1)], [False] * 200)
    assert 199 in found.cut


def test_a_deep_graph_is_broken_into_columns() -> None:
    n = 2000
    found = layout(n, chain(n), [False] * n)
    assert len(set(found.x)) > 5
    assert 0.3 < found.width / found.height < 3
    # Lines between columns have no place, all others have one.
    assert len(found.cut) == len(set(found.x)) - 1
    assert not overlaps(found.x, found.y)


def test_a_cycle_ends() -> None:
    found = layout(3, [Edge(0, 1, 0), Edge(1, 2, 0), Edge(2, 1, 1)], [False] * 3)
    assert len(found.x) == 3
    assert not overlaps(found.x, found.y)


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_any_graph(n: int, data: st.DataObject) -> None:
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.integers(0, 3))
    edges = [Edge(a, b, s) for a, b, s in data.draw(st.lists(pairs, max_size=80)) if a < b]
    constant = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    found = layout(n, edges, constant)
    assert not overlaps(found.x, found.y)
    assert min(found.x) >= 0
    assert min(found.y) >= 0
    assert max(found.x) + WIDTH <= found.width + 1
    assert max(found.y) + HEIGHT == found.height
    for i, edge in enumerate(edges):
        if i not in found.cut:
            assert found.y[edge.source] < found.y[edge.target]


def test_crossings_are_few() -> None:
    """Two chains whose nodes come in mixed order: nothing needs to cross."""
    left = [Edge(2 * i, 2 * i + 2, 0) for i in range(9)]
    right = [Edge(2 * i + 1, 2 * i + 3, 0) for i in range(9)]
    found = layout(20, [*left, *right], [False] * 20)
    order = [found.x[2 * i] < found.x[2 * i + 1] for i in range(10)]
    assert len(set(order)) == 1


@pytest.mark.slow
def test_grows_about_linearly() -> None:
    """Four times the nodes take less than eight times as long."""

    def seconds(n: int) -> float:
        random.seed(1)
        edges = chain(n) + [Edge(max(0, i - random.randint(2, 30)), i, 1) for i in range(2, n, 2)]
        start = time.process_time()
        layout(n, edges, [False] * n)
        return time.process_time() - start

    small = min(seconds(5000) for _ in range(3))
    assert seconds(20_000) < 8 * small + 0.5
