from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def moved(model: Path, by: float) -> Path:
    proto = onnx.load(model)
    bias = proto.graph.initializer[1]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(by), bias.name))
    other = model.with_name("other.onnx")
    onnx.save(proto, other)
    return other


def test_the_same_model(cli: Any, model: Path) -> None:
    code, out, _ = cli("validate", model, model)
    assert code == 0
    assert out.startswith("PROVEN")
    assert "float[batch,2]" in out
    assert cli("validate", model, model, "--numerics", "exact")[0] == 0
    assert cli("validate", model, model, "-q") == (0, "", "")


def test_a_model_that_computes_something_else(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    code, out, _ = cli("validate", model, other)
    assert code == 1
    assert out.startswith("FAILED")
    assert "0.25" in out
    found = json.loads(cli("validate", model, other, "--json")[1])
    assert found["schema"] == "graphopt.validate/2"
    assert found["verdict"] == "failed"
    assert found["outputs"][0]["name"] == "y"
    assert cli("validate", model, other, "-q") == (1, "", "")


def test_exact_is_stricter_than_close(cli: Any, model: Path) -> None:
    other = moved(model, 1e-7)
    assert cli("validate", model, other)[0] == 0
    assert cli("validate", model, other, "--numerics", "exact")[0] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--numerics", "roughly"], "exact, close, lossy"),
        (["--providers", "warp"], "warp"),
        (["--data", "none.npz"], "none.npz"),
    ],
)
def test_wrong_use(cli: Any, model: Path, words: list[str], says: str) -> None:
    code, out, err = cli("validate", model, model, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_lossy_is_held_to_a_budget(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    lossy = ("validate", model, other, "--numerics", "lossy")
    assert cli(*lossy, "--min-cosine", "0.1", "--min-sqnr", "-20")[0] == 0
    code, out, _ = cli(*lossy, "--min-cosine", "0.999999")
    assert code == 1
    assert "cosine" in out
    code, _, err = cli("validate", model, other, "--min-cosine", "0.9")
    assert code == 2
    assert "--numerics lossy" in err


def test_the_reason_and_the_table_tell_the_same_difference(cli: Any, model: Path) -> None:
    other = moved(model, 0.5)
    code, out, _ = cli("validate", model, other)
    assert code == 1
    first = " ".join(out.partition("\n\n")[0].split())
    assert "(the worst of 2 comparisons that failed)" in first
    shown = json.loads(cli("validate", model, other, "--json")[1])["outputs"][0]["max_abs"]
    assert f"max difference {shown:.3g}" in first
