from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx


def test_part(cli: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.onnx"
    code, text, _ = cli("extract", model, "--outputs", "a", "-o", out)
    assert code == 0
    assert "PROVEN" in text
    assert f"written: {out}" in text.replace("\n", "")
    assert [v.name for v in onnx.load(out).graph.output] == ["a"]


def test_json(cli: Any, model: Path, tmp_path: Path) -> None:
    code, text, _ = cli("extract", model, "--outputs", "a", "-o", tmp_path / "p.onnx", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["schema"] == "graphopt.extract/1"
    assert found["proof"]["verdict"] == "proven"
    assert found["output"]["path"].endswith("p.onnx")


def test_mistakes(cli: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    for words in (
        ("--outputs", "zz", "-o", out),
        ("--outputs", "a"),
        ("--outputs", "a", "-o", model),
        ("--nodes", "zz", "-o", out),
    ):
        code, text, errors = cli("extract", model, *words)
        assert (code, text) == (2, "")
        assert "error: " in errors
        assert "Traceback" not in errors
    assert not out.exists()


def test_strict_and_not_verified(cli: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    assert cli("extract", model, "--outputs", "a", "-o", out, "--no-verify", "--strict", "-q")[0] == 1
    assert not out.exists()
    code, text, _ = cli("extract", model, "--outputs", "a", "-o", out, "--no-verify")
    assert code == 0
    assert "NOT VERIFIED" in text
