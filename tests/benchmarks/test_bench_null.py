"""The experiment on `graphopt bench`: its models differ by what it says, and its table counts what was found."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_null", ROOT / "benchmarks" / "bench_null.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_null"] = module
    spec.loader.exec_module(module)
    return module


def work(model: onnx.ModelProto) -> int:
    """Multiplications of a chain of convolutions."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    weights = {w.name: w for w in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        assert node.op_type == "Conv"
        out, per_group, height, width = weights[node.input[1]].dims
        total += out * per_group * height * width * shape[2] * shape[3]
    return total


@pytest.mark.parametrize("size", ["0.1ms", "1ms", "10ms"])
def test_a_twentieth_more_is_a_twentieth_more(script: ModuleType, size: str) -> None:
    a, b = script.contestants(f"more:{size}")
    onnx.checker.check_model(b.source, full_check=True)
    assert work(b.source) * 20 == work(a.source) * 21
    assert a.feeds[0]["x"] is b.feeds[0]["x"]
    same = script.contestants(f"equal:{size}")
    assert same[0] is same[1]


def test_models_with_shapes(script: ModuleType) -> None:
    a, b = script.contestants(f"equal:{ROOT / 'models' / 'digits_cnn.onnx'}@image:3,1,8,8")
    assert a is b
    assert a.feeds[0]["image"].shape == (3, 1, 8, 8)


def test_the_table_counts(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"

    def line(case: str, verdict: str, ratio: float, **more: Any) -> str:
        common = {"seconds": 1.0, "seed": 0, "low": 0.9, "high": 1.1, "wall": 2.0, "load": 3.0}
        stamp = {"when": "2026-01-01T00:00:00+00:00"}
        return json.dumps({"case": case, "verdict": verdict, "ratio": ratio, **common, **stamp, **more})

    timed = {"ms": 0.5, "resolution": 0.01}
    lines = [line("equal:a/m.onnx", "no difference", 1.0, **timed)] * 3
    lines += [line("equal:a/m.onnx", "slower", 1.2, **timed), line("once:a/m.onnx", "faster", 0.98)]
    lines += [line("more:1ms", "slower", 1.05, **timed)] * 2
    results.write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["bench_null.py", "--out", str(results), "--report", str(page)])
    script.main()
    text = page.read_text()
    assert "| m.onnx | 0.5 ms | 1 | **3** | 4 | 1.0000 | 1.2000 | 1.0% | 2.0 s |" in text
    assert "| chain, 1ms | 0.5 ms | 1 | **2** | 2 |" in text
    assert "| m.onnx |  | 1 | **0** | 1 |" in text


def test_a_trial_is_appended(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    words = ["--out", str(results), "--case", "equal:0.1ms", "--case", "once:0.1ms", "--seconds", "0.1"]
    for trials in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["bench_null.py", *words, "--trials", trials])
        script.main()
    found = [json.loads(x) for x in results.read_text().splitlines()]
    assert [(r["case"], r["seed"]) for r in found] == [
        ("equal:0.1ms", 0), ("once:0.1ms", 0), ("equal:0.1ms", 1), ("once:0.1ms", 1),
    ]  # fmt: skip
    assert all(r["low"] <= r["ratio"] <= r["high"] for r in found)
