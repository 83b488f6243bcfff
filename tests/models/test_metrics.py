"""models/metrics.py computes what models/evaluate.py does, batch by batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

MODELS = Path(__file__).parents[2] / "models"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"models_{name}", MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "given", "output", "metric"),
    [
        ("digits_cnn.onnx", "image", "logits", "accuracy"),
        ("messy.onnx", "noisy", "restored", "psnr"),
    ],
)
def test_same_figure_as_evaluate(file: str, given: str, output: str, metric: str) -> None:
    session = onnxruntime.InferenceSession(MODELS / file, providers=["CPUExecutionProvider"])
    with np.load(MODELS / "digits.npz") as arrays:
        data = {name: arrays[name] for name in arrays.files}

    def results() -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(data[given]), 64):
            sample = {name: values[start : start + 64] for name, values in data.items()}
            (value,) = session.run([output], {given: sample[given]})
            yield sample, {output: value}

    name, expected = load("evaluate").evaluate(MODELS / file, optimize=True)
    assert name == metric
    assert getattr(load("metrics"), metric)(results()) == pytest.approx(expected, abs=1e-3)
