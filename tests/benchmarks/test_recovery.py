"""Outliers keep the function and hurt quantization, recovery undoes that, and the page says so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which are scripts beside one another and no package."""
    names = ("outliers", "recovery")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(ROOT / "models" / "digits.npz") as data:
        return {key: data[key] for key in data.files}


@pytest.mark.parametrize(
    ("name", "kind", "passes"),
    [
        ("digits_transformer", "few", "smooth-activations"),
        ("digits_cnn", "uneven", "equalize-layers{criterion=activations}"),
        ("digits_cnn", "uneven", "smooth-activations"),
    ],
)
def test_outliers_and_their_recovery(
    bench: SimpleNamespace, images: dict[str, np.ndarray], name: str, kind: str, passes: str
) -> None:
    """Plain min-max loses accuracy on the same function with outliers; the pass brings nine tenths back."""
    model = onnx.load(ROOT / "models" / f"{name}.onnx")
    hard = bench.outliers.with_outliers(model, kind)
    test, calib = {"image": images["image"][:300]}, {"image": images["image"][300:]}
    want = bench.recovery.outputs(model, test, 100)
    assert bench.recovery.signal_to_noise(bench.recovery.outputs(hard, test, 100), want) > 100
    case = bench.recovery.Case(name, hard, calib, test, images["label"][:300], "accuracy", 100)
    plain, recovered = (
        bench.recovery.quantize(case, pipeline, want, case.target)
        for pipeline in ("insert-qdq", f"{passes},insert-qdq")
    )
    assert recovered.sqnr > plain.sqnr + 10, (plain, recovered)
    assert recovered.sqnr > 25


def test_the_page(
    bench: SimpleNamespace, images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (("min-max, per channel", "insert-qdq"), ("+ wrong", "no-such-pass"), ("+ same", "insert-qdq"))
    monkeypatch.setattr(bench.recovery, "ROWS", rows)
    model = onnx.load(ROOT / "models" / "digits_cnn.onnx")
    test = {"image": images["image"][:40]}
    case = bench.recovery.Case("digits", model, test, test, None, "cosine", 40)
    lines = bench.recovery.table(case)
    assert lines[0] == "## digits"
    assert any(line.startswith("| + wrong | failed: UserError") for line in lines)
    same = next(line for line in lines if line.startswith("| + same"))
    assert "| +0.0 |" in same


def test_cases_are_read(bench: SimpleNamespace, images: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", image=images["image"])
    np.savez(tmp_path / "t.npz", image=images["image"], target=images["label"])
    model = ROOT / "models" / "digits_cnn.onnx"
    text = f"name=d,model={model},calib={tmp_path / 'c.npz'},test={tmp_path / 't.npz'},metric=accuracy"
    case = bench.recovery.read_case(f"{text},samples=20,outliers=uneven")
    assert len(case.calib["image"]) == len(case.test["image"]) == len(case.target) == 20
    assert "target" not in case.test


def test_metrics(bench: SimpleNamespace) -> None:
    output = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert bench.recovery.accuracy(output, np.array([1, 1])) == 50
    assert bench.recovery.cosine(output, output) == pytest.approx(1)
    assert bench.recovery.psnr(output, output + 0.1) == pytest.approx(20, abs=3)
    assert bench.recovery.signal_to_noise(output * 1.1, output) == pytest.approx(20)
