"""The user's data as probes of a proof."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

from graphopt.calibration.data import probe_sets
from graphopt.errors import UserError
from graphopt.runtime.inputs import ProbeSet
from graphopt.runtime.structure import Structure
from graphopt.validation.proof import prove

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def structure(dims: str = "n,4", more: str = "") -> Structure:
    return Structure(
        parser.parse_model(f"{HEAD} g (float[{dims}] x{more}) => (float[{dims}] y) {{ y = Neg(x) }}")
    )


def numbers(found: list[ProbeSet]) -> list[list[int]]:
    return [np.asarray(s.feeds["x"])[:, 0].astype(int).tolist() for s in found]


def rows(count: int) -> dict[str, Any]:
    return {"x": np.repeat(np.arange(count, dtype=np.float32), 4).reshape(count, 4)}


def test_few_samples_are_taken_as_they_are() -> None:
    (found,) = probe_sets(rows(16), structure())
    assert found.source == "data"
    assert numbers([found]) == [list(range(16))]
    assert numbers(probe_sets(rows(2), structure("1,4"))) == [[0], [1]]


def test_of_many_samples_the_held_back_ones() -> None:
    found = probe_sets(rows(80), structure())
    assert numbers(found) == [list(range(7, 64, 8)), [71, 79]]
    assert [s.source for s in found] == ["data #0", "data #1"]


def test_a_batch_that_is_fixed_at_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **rows(128), label=np.arange(128))
    found = probe_sets(tmp_path / "a.npz", structure("1,4"))
    assert numbers(found) == [[i] for i in range(7, 128, 8)]
    assert all(list(s.feeds) == ["x"] for s in found)
    model = parser.parse_model(f"{HEAD} g (float[1,4] x) => (float[1,4] y) {{ y = Neg(x) }}")
    proof = prove(model, model, data=tmp_path / "a.npz")
    assert proof.verdict == "proven"
    assert len(proof.probes) == 16


def test_no_more_is_read_than_needed() -> None:
    read = []

    def samples() -> Any:
        for i in range(10_000):
            read.append(i)
            yield {"x": np.zeros(4, np.float32)}

    found = probe_sets(samples, structure())
    assert [len(np.asarray(s.feeds["x"])) for s in found] == [8] * 8
    assert len(read) <= 64 * 8 + 8  # a batch ends where the next sample would not fit


def test_what_is_missing_is_left_to_the_caller() -> None:
    (found,) = probe_sets(rows(3), structure(more=", float[n] z"))
    assert list(found.feeds) == ["x"]
    with pytest.raises(UserError, match="lacks input 'z'"):
        probe_sets({**rows(3), "q": np.zeros(3)}, structure(more=", float[n] z"))


def test_infinite_values_are_let_through() -> None:
    """Additive masks have them."""
    (found,) = probe_sets({"x": np.full((2, 4), -np.inf, np.float32)}, structure())
    assert np.isneginf(np.asarray(found.feeds["x"])).all()


def test_no_data() -> None:
    with pytest.raises(UserError, match="no samples"):
        probe_sets([], structure())
