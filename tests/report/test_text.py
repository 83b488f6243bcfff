from __future__ import annotations

import math

import pytest

from graphopt.report.text import change, clean, count, figure, plural, seconds, size


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
    ]
    + [(999_500, "1.0 MB"), (2 << 30, "2.1 GB"), (5 * 10**12, "5.0 TB")],
)
def test_size(n: int, text: str) -> None:
    assert size(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (7, "7"),
        (12345, "12,345"),
        (999_999, "999,999"),
        (1_234_567, "1.23 M"),
        (28_000_000, "28.0 M"),
        (99_960_000, "100 M"),
        (2.5e9, "2.50 G"),
        (3e12, "3.00 T"),
    ]
    + [(3e15, "3,000 T")],
)
def test_count(n: float, text: str) -> None:
    assert count(n) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (10, 10, ""),
        (0, 3, "new"),
        (100, 53, "-47%"),
        (100, 97, "-3.0%"),
        (10_000, 9_999, "-0.1%"),
        (10, 20, "+100%"),
    ]
    + [(10_000, 10_001, "+0.1%"), (3, 0, "-100%")],
)
def test_change(before: int, after: int, text: str) -> None:
    assert change(before, after) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (3.14159e-7, "3.1e-07"),
        (0.0123, "0.0123"),
        (0.00501, "5.0e-03"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_figure(value: float | None, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "0 ms"), (0.25, "250 ms"), (3.44, "3.4 s"), (99.96, "1 min 40 s"), (130, "2 min 10 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_plural() -> None:
    assert plural(1, "node") == "1 node"
    assert plural(2000, "node") == "2,000 nodes"
    assert plural(2, "pass", "passes") == "2 passes"


def test_names_cannot_drive_a_terminal() -> None:
    assert clean("plain/ä[0]") == "plain/ä[0]"
    assert clean("a\x1b[31m\nb\x07") == r"a\x1b[31m\nb\x07"
