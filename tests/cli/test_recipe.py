"""`graphopt run --recipe`: exit codes, what is printed, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt import lossy
from graphopt.calibration.service import CalibrationService

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL, DATA = MODELS / "digits_cnn.onnx", MODELS / "digits.npz"
Cli = Callable[..., tuple[int, str, str]]

RECIPE = """
target = "ort-cpu"
[data]
path = "{data}"
metric = "{metrics}:accuracy"
[[stage]]
name = "clean"
passes = "default"
gate = {{ max_drop = {{ accuracy = 0 }} }}
[[stage]]
name = "weights"
passes = "quantize-weights{{bits=8}}"
gate = {{ min_sqnr_db = {least}, max_size_ratio = 0.9 }}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossy, "_LATENCY_SECONDS", 0.02)
    monkeypatch.setattr(CalibrationService, "latency", lambda *_: 0.9)


def recipe(folder: Path, least: float) -> Path:
    file = folder / "small.toml"
    file.write_text(RECIPE.format(data=DATA, metrics=MODELS / "metrics.py", least=least))
    return file


def test_stages_are_shown_and_the_result_written(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, text, err = cli("run", MODEL, "--recipe", recipe(tmp_path, 20), "-o", out)
    assert code == 0, err
    assert out.exists()
    assert "recipe small" in text
    assert text.count("passed") == 2
    assert "weights asked for: SQNR >= 20 dB, size ratio <= 0.9" in text
    assert "measured on 56 held-back samples" in text


def test_a_failed_gate_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ("run", MODEL, "--recipe", recipe(tmp_path, 90), "-o", out)
    code, text, _ = cli(*words)
    assert code == 1
    assert not out.exists()
    assert text.startswith("OVER BUDGET: stage 'weights' does not pass its gate: SQNR")
    assert "nothing was written" in text
    code, text, _ = cli(*words, "--write-anyway", "--json")
    found = json.loads(text)
    assert code == 1
    assert out.exists()
    assert found["recipe"] == "small"
    assert found["target"] == "ort-cpu"
    assert [s["verdict"] for s in found["stages"]] == ["passed", "failed"]
    assert found["stages"][1]["misses"][0].startswith("SQNR")
    assert {"sqnr_db", "cosine", "metrics", "size_ratio", "latency_ratio", "gate", "passes"} <= set(
        found["stages"][1]
    )


def test_the_command_line_goes_first(cli: Cli, tmp_path: Path) -> None:
    words = ("run", MODEL, "--recipe", recipe(tmp_path, 20), "--target", "portable", "--json")
    code, text, _ = cli(*words, "-o", tmp_path / "out.onnx")
    assert code == 0
    assert json.loads(text)["target"] == "portable"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recipe", "prune-distil"), "there is no recipe 'prune-distil'"),
        (
            ("--recipe", "prune-distill-int8", "--passes", "default"),
            "--recipe and --passes exclude each other",
        ),
        (("--recipe", "prune-distill-int8"), "prune-distill-int8.toml:10: distill-layers needs data"),
    ],
)
def test_refusals(cli: Cli, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    out = tmp_path / "out.onnx"
    code, _, err = cli("run", MODEL, *words, "-o", out)
    assert code == 2
    assert says in err
    assert not out.exists()


def test_the_metric_of_the_recipe_serves_budgets_of_the_command_line(cli: Cli, tmp_path: Path) -> None:
    words = ("run", MODEL, "--recipe", recipe(tmp_path, 20), "--max-drop", "accuracy=0.5", "--json")
    code, text, err = cli(*words, "-o", tmp_path / "out.onnx")
    assert code == 0, err
    assert json.loads(text)["accuracy"]["budget"] == ["accuracy falls by at most 0.5"]
    words = ("run", MODEL, "--recipe", "prune-distill-int8", "--max-drop", "accuracy=0.5", "--data", DATA)
    code, _, err = cli(*words, "-o", tmp_path / "other.onnx")
    assert code == 2
    assert "--metric" in err


def test_a_pipeline_file_may_stand_beside_a_recipe_without_passes(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('verify = "off"\n')
    words = ("run", MODEL, "--recipe", recipe(tmp_path, 20), "--config", config, "-o", tmp_path / "out.onnx")
    code, text, _ = cli(*words, "--json")
    assert code == 0
    assert json.loads(text)["verdict"] == "not verified"
    config.write_text('pipeline = "default"\n')
    code, _, err = cli(*words)
    assert code == 2
    assert f"--recipe and the passes in {config} exclude each other" in err


def test_a_line_is_named(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[[stage]]\npasses = "fold-conv-bm"\n')
    code, _, err = cli("run", MODEL, "--recipe", file)
    assert code == 2
    assert err.splitlines()[-3].startswith(f"error: {file}:2: there is no pass 'fold-conv-bm'")
    assert "did you mean 'fold-conv-bn'" in err


def test_recipes_are_listed(cli: Cli) -> None:
    code, text, _ = cli("passes")
    assert code == 0
    assert "prune-distill-int8 " in text
    code, text, _ = cli("passes", "prune-distill-int8")
    assert code == 0
    assert '[[stage]]\nname = "prune"' in text
    code, text, _ = cli("passes", "--json")
    names = {r["name"]: r["stages"] for r in json.loads(text)["recipes"]}
    assert names["prune-distill-int8"] == ["prune", "distill", "int8"]
    assert json.loads(cli("passes", "prune-distill-int8", "--json")[1])["stages"] == [
        "prune",
        "distill",
        "int8",
    ]
