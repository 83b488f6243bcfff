from __future__ import annotations

import pytest

from graphopt.cli.arguments import byte_size, choice, comma_list, duration, input_shapes
from graphopt.errors import UserError


@pytest.mark.parametrize(
    ("values", "shapes"),
    [
        ([], {}),
        (["x:1,3,224,224"], {"x": (1, 3, 224, 224)}),
        (["x:1x3x224x224", "y:5"], {"x": (1, 3, 224, 224), "y": (5,)}),
        (["serving_default_x:0:1,2"], {"serving_default_x:0": (1, 2)}),
        (["scalar:"], {"scalar": ()}),
    ],
)
def test_input_shapes(values: list[str], shapes: object) -> None:
    assert input_shapes(values) == shapes


@pytest.mark.parametrize("values", [["1,3"], ["x"], [":1"], ["x:1,-1"], ["x:0,3"], ["x:a"], ["x:1", "x:2"]])
def test_wrong_input_shapes(values: list[str]) -> None:
    with pytest.raises(UserError, match="--input-shape"):
        input_shapes(values)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("4096", 4096),
        ("8GB", 8 * 10**9),
        ("8g", 8 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("2KiB", 2048),
        ("1t", 10**12),
    ],
)
def test_byte_size(text: str, n: int) -> None:
    assert byte_size(text) == n


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5min", 90), ("2m", 120), ("1h", 3600), ("250ms", 0.25)]
)
def test_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1 parsec", "GB"])
def test_wrong_sizes_and_durations(text: str) -> None:
    with pytest.raises(UserError, match="not a size"):
        byte_size(text)
    with pytest.raises(UserError, match="not a duration"):
        duration(text)


def test_lists_and_choices() -> None:
    assert comma_list("cpu, cuda") == ("cpu", "cuda")
    assert choice("a", ["a", "b"], "--x") == "a"
    with pytest.raises(UserError, match="--x cannot be 'c'"):
        choice("c", ["a", "b"], "--x")
