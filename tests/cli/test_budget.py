"""`graphopt run` with passes that move the numbers: budgets, their options, and what is written when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
DATA, METRICS = MODELS / "digits.npz", MODELS / "metrics.py"
TRANSFORMER, CNN = MODELS / "digits_transformer.onnx", MODELS / "digits_cnn.onnx"
Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "text", ["accuracy", "=1", "accuracy=much", "accuracy=-1", "accuracy=nan", "accuracy="]
)
def test_a_drop_that_is_no_name_and_number(cli: Cli, tmp_path: Path, text: str) -> None:
    metric = f"{METRICS}:accuracy"
    code, _, err = cli("run", CNN, "--max-drop", text, "--metric", metric, "-o", tmp_path / "out.onnx")
    assert code == 2
    assert f"--max-drop {text!r} is not NAME=X" in err
    assert "accuracy=0.2" in err


def test_a_drop_needs_a_metric(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("run", CNN, "--max-drop", "accuracy=1", "-o", tmp_path / "out.onnx")
    assert code == 2
    assert "--metric" in err


@pytest.mark.parametrize(
    ("option", "value"), [("--min-cosine", "1.5"), ("--max-latency-ratio", "-1"), ("--min-sqnr", "nan")]
)
def test_limits_that_make_no_sense(cli: Cli, tmp_path: Path, option: str, value: str) -> None:
    code, _, err = cli("run", CNN, option, value, "-o", tmp_path / "out.onnx")
    assert code == 2
    assert option in err


def test_static_quantization_needs_data(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, _, err = cli("run", CNN, "--passes", "int8", "-o", out)
    assert code == 2
    assert "needs calibration data, typical inputs" in err
    assert "--data" in err
    assert "int8-dynamic" in err
    assert not out.exists()


def test_a_metric_needs_data(cli: Cli, tmp_path: Path) -> None:
    words = ("run", TRANSFORMER, "--passes", "int8-dynamic", "--metric", f"{METRICS}:accuracy")
    code, _, err = cli(*words, "-o", tmp_path / "out.onnx")
    assert code == 2
    assert "--data" in err


def test_a_missed_budget_writes_nothing_unless_asked(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ("run", TRANSFORMER, "--passes", "int8-dynamic", "--data", DATA, "--min-sqnr", "60", "-o", out)
    code, shown, _ = cli(*words)
    assert code == 1
    assert shown.startswith("OVER BUDGET: SQNR ")
    assert "is below 60 dB" in shown
    assert shown.rstrip().endswith("nothing was written")
    assert not out.exists()

    code, quiet, err = cli(*words, "--quiet")
    assert (code, quiet) == (1, "")
    assert "OVER BUDGET" in err

    code, text, _ = cli(*words, "--write-anyway", "--json")
    report = json.loads(text)
    assert code == 1
    assert report["verdict"] == "over budget"
    assert report["accuracy"]["misses"] == [report["verdict_reason"]]
    assert report["output"]["path"] == str(out)
    assert out.exists()


def test_a_kept_budget_writes_and_reports(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ("run", TRANSFORMER, "--passes", "int8-dynamic", "--data", DATA, "-o", out)
    code, text, _ = cli(*words, "--metric", f"{METRICS}:accuracy", "--max-drop", "accuracy=2", "--json")
    report = json.loads(text)
    assert (code, report["verdict"]) == (0, "proven")
    (row,) = report["accuracy"]["metrics"]
    assert row["name"] == "accuracy"
    assert row["before"] >= 98
    assert row["before"] - row["after"] <= 2
    assert report["accuracy"]["budget"] == ["accuracy falls by at most 2"]
    assert report["accuracy"]["measured_on"] == "56 held-back samples"
    assert report["latency"]["ratio"] > 0
    assert out.exists()


def test_a_preset_that_finds_nothing_to_do_says_so(cli: Cli, tmp_path: Path) -> None:
    """The target portable has no dynamically quantized LSTM."""
    words = ("run", MODELS / "digits_lstm.onnx", "--passes", "int8-dynamic", "-o", tmp_path / "out.onnx")
    code, shown, _ = cli(*words)
    assert code == 0
    assert shown.startswith("PROVEN: the result computes the same as the input")
    assert "2 LSTM" in shown
    assert "the numbers are as they were" in shown
