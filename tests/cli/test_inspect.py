from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

MODELS = Path(__file__).resolve().parents[2] / "models"


def test_shows_what_a_model_consists_of(cli: Any) -> None:
    code, out, _ = cli("inspect", MODELS / "digits_cnn.onnx")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "input image float[batch,1,8,8]" in lines
    assert "output logits float[batch,10]" in lines
    assert "BatchNormalization 9" in lines
    assert "residual.1.second.0.weight float[32,32,3,3] 36.9 kB" in lines
    assert any(line.startswith("operator sets ai.onnx 17") for line in lines)
    assert any("with batch=1" in line for line in lines)
    assert any("(-v shows all)" in line for line in lines)
    assert "(-v shows all)" not in cli("inspect", MODELS / "digits_cnn.onnx", "-v")[1]


def test_json(cli: Any, model: Path) -> None:
    found = json.loads(cli("inspect", model, "--json", "--input-shape", "x:3,4")[1])
    assert found["schema"] == "graphopt.inspect/1"
    assert found["file"] == {"path": str(model), "bytes": model.stat().st_size, "data_files": []}
    assert found["stats"]["ops"] == {"Add": 1, "Identity": 1, "MatMul": 1}
    assert found["inputs"] == [{"name": "x", "type": "float[batch,4]", "bytes": 0, "overridable": False}]
    assert [v["name"] for v in found["initializers"]] == ["w", "b", "unused"]
    assert found["dtypes"] == {"float": 4 * (8 + 2 + 1)}
    assert found["assumed"] == []
    # MatMul multiplies [3,4] by [4,2], Add adds 6 elements, Identity computes nothing.
    assert found["cost"]["flops"] == 2 * 3 * 4 * 2 + 6


def test_text(cli: Any, model: Path) -> None:
    out = cli("inspect", model, "--text")[1]
    assert "graph g(x: float[batch,4]) -> (y: float[batch,2])" in out
    assert "  m = MatMul(a, w)" in out


def test_external_data_counts(cli: Any, tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # as raw data
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    found = json.loads(cli("inspect", tmp_path / "big.onnx", "--json")[1])
    assert [Path(file).name for file in found["file"]["data_files"]] == ["big.data"]
    sizes = [(tmp_path / name).stat().st_size for name in ("big.onnx", "big.data")]
    assert found["file"]["bytes"] == sum(sizes)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("z:1", "no input 'z'"),
        ("x:1", "has 2 dims, --input-shape gives 1"),
        ("x:3,5", "is 4, --input-shape says 5"),
        ("x", "is not NAME:DIMS"),
    ],
)
def test_wrong_shapes(cli: Any, model: Path, shape: str, says: str) -> None:
    code, _, err = cli("inspect", model, "--input-shape", shape)
    assert code == 2
    assert says in err
