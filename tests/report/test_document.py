from __future__ import annotations

import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.report.document import (
    Culprit,
    FileInfo,
    ModelStats,
    OutputRow,
    PassReport,
    Refusal,
    RunReport,
    plain,
    to_json,
)


def report(**changes: Any) -> RunReport:
    full = RunReport(
        input=FileInfo("in.onnx", 1000, ("in.data",)),
        output=FileInfo("out.onnx", 900),
        target="portable",
        pipeline="a,b{n=1}",
        verdict="proven",
        passes=(PassReport("a", {"n": "1"}, "CLOSE", 2, (Refusal("/x", "it is read twice", 3),)),),
        before=ModelStats(nodes=10, ops={"Conv": 2}, opsets={"": 17}, ir_version=8),
        after=ModelStats(nodes=8, ops={"Conv": 2}, opsets={"": 17}, ir_version=8),
        outputs=(OutputRow("y", "float", ("batch", "10"), "CLOSE", 1e-7, 1e-8, 1.0, math.inf, 1e-6),),
        probes=("x[1,3]",),
        culprits=(Culprit("b", "/c", "y moved by 0.5", "dir", "graphopt run"),),
        warnings=("beware",),
        seconds={"load": 0.1},
        versions={"graphopt": "0.1"},
    )
    return dataclasses.replace(full, **changes)


def test_json_is_strict_has_its_schema_first_and_every_field() -> None:
    text = report().to_json()
    read = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert next(iter(read)) == "schema"
    assert read["schema"] == "graphopt.run/1"
    assert set(read) == {"schema", *(f.name for f in dataclasses.fields(RunReport))}
    assert read["outputs"][0]["sqnr_db"] == "Infinity"
    assert read["outputs"][0]["shape"] == ["batch", "10"]
    assert read["passes"][0]["refusals"] == [{"node": "/x", "reason": "it is read twice", "count": 3}]
    assert read["output"]["path"] == "out.onnx"
    assert json.loads(report(output=None).to_json())["output"] is None


def test_json_keeps_names_readable() -> None:
    assert "größe" in report(warnings=("größe",)).to_json()
    assert "\n" not in report().to_json(indent=None)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        ((1, [2]), [1, [2]]),
        ({1: "x"}, {"1": "x"}),
        (Colour.RED, "RED"),
        (Path("a"), "a"),
    ],
)
def test_plain(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_what_is_not_plain_is_refused() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        plain(np.zeros(1))
    with pytest.raises(TypeError):
        plain(RunReport)
    assert json.loads(to_json(Refusal("a", "b"), "x/1")) == {
        "schema": "x/1",
        "node": "a",
        "reason": "b",
        "count": 1,
    }


@pytest.mark.parametrize(
    ("verdict", "code", "strict"),
    [("proven", 0, 0), ("unproven", 0, 1), ("not verified", 0, 1), ("rolled back", 3, 3), ("failed", 1, 1)],
)
def test_exit_codes(verdict: Any, code: int, strict: int) -> None:
    clean = report(verdict=verdict, culprits=())
    assert clean.exit_code() == code
    assert clean.exit_code(strict=True) == strict
    assert report(verdict=verdict).writable is (verdict != "failed")


def test_what_was_rolled_back_is_exit_code_3_also_where_the_rest_is_not_proven() -> None:
    for verdict in ("unproven", "not verified"):
        assert report(verdict=verdict).exit_code() == 3
        assert report(verdict=verdict).exit_code(strict=True) == 1
