from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest


@pytest.fixture
def second(tmp_path: Path) -> Path:
    path = tmp_path / "second.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_one_behind_the_other(cli: Any, model: Path, second: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.onnx"
    code, text, _ = cli("merge", model, second, "--map", "y=x", "-o", out)
    assert code == 0, text
    assert "PROVEN" in text
    assert "'y' of B is called 'b_y'" in text
    graph = onnx.load(out).graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["x", "b_y"]
    code, text, _ = cli("merge", model, second, "--map", "y=x", "-o", out, "--json")
    found = json.loads(text)
    assert found["schema"] == "graphopt.merge/1"
    assert found["proof"]["verdict"] == "proven"


def test_mistakes(cli: Any, model: Path, second: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.onnx"
    for words in (
        ("-o", out),
        ("--map", "x", "-o", out),
        ("--map", "y=x,y=x", "-o", out),
        ("--map", "zz=x", "-o", out),
        ("--map", "y=x", "-o", model),
        ("--map", "y=x"),
        ("--map", "y=x", "-o", out, "--prefix", ""),
    ):
        code, text, errors = cli("merge", model, second, *words)
        assert (code, text) == (2, "")
        assert "error: " in errors
        assert "Traceback" not in errors
    assert not out.exists()
