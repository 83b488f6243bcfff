"""`graphopt sensitivity`: a table, a chart, JSON, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.calibration.service import CalibrationService

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL, DATA = MODELS / "digits_cnn.onnx", MODELS / "digits.npz"
PIPELINE = "default,insert-qdq,restore-float"
Cli = Callable[..., tuple[int, str, str]]


def test_table_and_chart(cli: Cli, tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    metric = f"{MODELS / 'metrics.py'}:accuracy"
    code, out, _ = cli(
        "sensitivity", MODEL, "--passes", PIPELINE, "--data", DATA, "--metric", metric, "--plot", chart
    )
    assert code == 0
    assert "/classify/Gemm" in out
    assert "all changed: " in out
    assert "left float" in out
    assert "accuracy" in out
    texts = [t.text for t in ET.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert "/classify/Gemm" in texts
    assert "Accuracy against latency" in texts


def test_json(cli: Cli) -> None:
    code, out, _ = cli("sensitivity", MODEL, "--passes", PIPELINE, "--data", DATA, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "graphopt.sensitivity/1"
    assert {u["op"] for u in found["units"]} == {"Conv", "Gemm"}
    first, last = found["tradeoffs"][0], found["tradeoffs"][-1]
    assert first["spared"] == []
    assert len(last["spared"]) == last["of"] == len(found["units"])
    assert first["bytes"] < last["bytes"]
    assert first["score"]["sqnr_db"] == found["base"]["sqnr_db"] < last["score"]["sqnr_db"]
    # All float again is the original again: it takes as long, give or take the machine's mood.
    assert 0.5 < last["latency"] < 1.6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--plot", "chart.png"), "SVG"),
        (("--passes", "default"), "no pass of this pipeline moves the numbers"),
        ((), "--data"),
    ],
)
def test_refusals(cli: Cli, words: tuple[str, ...], says: str) -> None:
    code, _, err = cli("sensitivity", MODEL, *words)
    assert code == 2
    assert says in err


def test_a_chart_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    chart = tmp_path / "no-such-folder" / "chart.svg"
    code, _, err = cli("sensitivity", MODEL, "--passes", PIPELINE, "--data", DATA, "--plot", chart)
    assert code == 2
    assert "cannot be written" in err


WEIGHTS = "default,quantize-weights{bits=4}"


def test_any_pass_that_moves_the_numbers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationService, "latency", lambda *_: 0.9)
    chart = tmp_path / "chart.svg"
    words = ("sensitivity", MODEL, "--passes", WEIGHTS, "--data", DATA, "--sweep", "bits=4,8")
    code, out, err = cli(*words, "--plot", chart, "-v")
    assert code == 0, err
    assert "/classify/Gemm" in out
    assert "whole pass" in out
    assert "SQNR dB by bits" in out
    assert "measured: quantize-weights{bits=4}, on 56 held-back samples" in out
    assert "layer: 1 of 9: " in err
    texts = [t.text for t in ET.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert "/classify/Gemm" in texts
    assert "The layers that cost most, and the whole pass" in texts


def test_json_of_layers(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationService, "latency", lambda *_: 0.9)
    metric = f"{MODELS / 'metrics.py'}:accuracy"
    code, out, _ = cli(
        "sensitivity", MODEL, "--passes", WEIGHTS, "--data", DATA, "--metric", metric, "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "graphopt.sensitivity.layers/1"
    assert len(found["layers"]) == 9
    noise = [10 ** (-e["score"]["sqnr_db"] / 10) / e["packed_bytes"] for e in found["layers"]]
    assert noise == sorted(noise)
    assert found["together"]["bytes"] == sum(e["bytes"] for e in found["layers"]) > 60_000
    assert found["metrics"]["accuracy"] > 95
    assert "accuracy" in found["layers"][0]["score"]["metrics"]


def test_a_sweep_goes_before_a_search(cli: Cli) -> None:
    code, _, err = cli("sensitivity", MODEL, "--passes", PIPELINE, "--data", DATA, "--sweep", "nope=1")
    assert code == 2
    assert "pass 'insert-qdq' has no option 'nope'" in err
