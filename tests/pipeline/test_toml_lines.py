from __future__ import annotations

import tomllib
from typing import Any

import pytest

from graphopt.pipeline.toml_lines import key_lines

DOCUMENT = '''# a comment with x = 1
name = "a # b = 2"  # after
"quoted key" = 1
a.b.c = """
name = "inside"
[table]
"""
[table]  # trailing
x = { y = 1, z = { w = [1,
  2, { deep = true }] } }
t = \'\'\'
k = 1\'\'\'
[[stage]]
when = 2020-01-01T00:00:00Z
[stage.gate]
min = -1.5e3
[[ stage ]]
list = [
  "one", # first
  "t\\"wo",
]
[stage.gate.inner]
max = +inf
'''


def paths(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {at} if at else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(paths(inner, (*at, key)) for key, inner in items))


def test_every_key_has_the_line_it_stands_in() -> None:
    lines = key_lines(DOCUMENT)
    assert set(lines) == paths(tomllib.loads(DOCUMENT))
    wanted = {
        ("name",): 2,
        ("quoted key",): 3,
        ("a", "b", "c"): 4,
        ("table",): 8,
        ("table", "x", "y"): 9,
        ("table", "x", "z", "w", 1): 10,
        ("table", "x", "z", "w", 2, "deep"): 10,
        ("table", "t"): 11,
        ("stage", 0): 13,
        ("stage", 0, "when"): 14,
        ("stage", 0, "gate", "min"): 16,
        ("stage", 1): 17,
        ("stage", 1, "list", 0): 19,
        ("stage", 1, "list", 1): 20,
        ("stage", 1, "gate", "inner", "max"): 23,
    }
    assert {path: lines[path] for path in wanted} == wanted


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n", "a = 1"])
def test_little(text: str) -> None:
    assert set(key_lines(text)) == paths(tomllib.loads(text))
