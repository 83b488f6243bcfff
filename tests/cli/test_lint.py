from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

MODELS = Path(__file__).resolve().parents[2] / "models"
TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, s, wz)
    [first] a = Conv <pads = [1, 1, 1, 1]> (xd, wd)
    [relu] r = Relu(a)
    rq = QuantizeLinear(r, s, z)
    rd = DequantizeLinear(rq, s, z)
    [second] b = Conv <pads = [1, 1, 1, 1]> (rd, wd)
    [tanh] y = Tanh(b)
}"""


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(TEXT)
    constants = {
        "s": np.float32(0.1),
        "z": np.uint8(0),
        "wz": np.int8(0),
        "w": np.ones((4, 4, 3, 3), np.int8),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    path = tmp_path / "quantized.onnx"
    onnx.save(proto, path)
    return path


def words(text: str) -> str:
    return " ".join(text.split())


def test_says_what_falls_back_and_what_to_do(cli: Any, quantized: Path) -> None:
    code, out, _ = cli("lint", quantized)
    assert code == 0
    assert "1 of 2 nodes with an integer kernel on ort-cpu run as such" in words(out)
    assert "QLinearConv 1" in out
    assert "second" in out
    assert "put a QuantizeLinear/DequantizeLinear pair after it" in words(out)
    assert "first" not in out
    assert "as predicted" in out
    assert "dequantized anew on every run" in out


def test_strict(cli: Any, quantized: Path) -> None:
    assert cli("lint", quantized, "--strict", "-q") == (1, "", "")


def test_verbose_lists_everything(cli: Any, quantized: Path) -> None:
    out = words(cli("lint", quantized, "-v")[1])
    assert "first Conv QLinearConv" in out
    assert "relu Relu part of QLinearConv" in out
    assert "tanh Tanh float not quantized" in out


def test_json(cli: Any, quantized: Path) -> None:
    found = json.loads(cli("lint", quantized, "--json")[1])
    assert found["schema"] == "graphopt.lint/1"
    assert found["target"] == "ort-cpu"
    assert found["runtime"] == "CPUExecutionProvider"
    rows = {row["node"]: row for row in found["rows"]}
    assert rows["first"]["kernel"] == rows["first"]["actual"] == "QLinearConv"
    assert rows["second"]["kernel"] is None
    assert rows["second"]["reason"] == "its output is not quantized"
    assert not rows["second"]["actual_integer"]


def test_only_predicting(cli: Any, quantized: Path) -> None:
    found = json.loads(cli("lint", quantized, "--json", "--predict-only")[1])
    assert found["runtime"] == ""
    assert all(row["actual"] is None for row in found["rows"])
    assert [row["kernel"] for row in found["rows"] if row["op"] == "Conv"] == ["QLinearConv", None]


def test_tensorrt_takes_no_zero_points(cli: Any, quantized: Path) -> None:
    out = words(cli("lint", quantized, "--target", "tensorrt")[1])
    assert "TensorRT takes int8 only" in out


def test_a_float_model(cli: Any) -> None:
    code, out, _ = cli("lint", MODELS / "digits_cnn.onnx", "--strict")
    assert code == 0
    assert "the model is not quantized" in out


def test_an_unknown_target(cli: Any, quantized: Path) -> None:
    code, _, err = cli("lint", quantized, "--target", "abacus")
    assert code == 2
    assert "abacus" in err
