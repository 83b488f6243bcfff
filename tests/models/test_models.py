"""The committed models are what the manifest says: same bytes, same scores, still raw, no local paths."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).parents[2] / "models"
MANIFEST = tomllib.loads((MODELS / "manifest.toml").read_text(encoding="utf-8"))
ENTRIES = {entry["file"]: entry for entry in MANIFEST["model"]}
LOCAL_PATH = re.compile(rb"/(work|tmp|root|home|usr|opt|Users|private|mnt)/|site-packages|[A-Z]:\\\\|\.py\b")


def _evaluate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_evaluate", MODELS / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _op_types(file: str) -> set[str]:
    return {node.op_type for node in onnx.load(MODELS / file).graph.node}


def test_manifest_lists_every_model() -> None:
    results_of_runs = {path.name for path in MODELS.glob("*.opt.onnx")}
    assert set(ENTRIES) == {path.name for path in MODELS.glob("*.onnx")} - results_of_runs
    assert len(ENTRIES) >= 4


@pytest.mark.parametrize("entry", [*ENTRIES.values(), MANIFEST["data"]], ids=lambda entry: entry["file"])
def test_bytes_are_the_manifests(entry: dict[str, Any]) -> None:
    content = (MODELS / entry["file"]).read_bytes()
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def test_the_folder_is_small() -> None:
    listed = sum(entry["bytes"] for entry in [*ENTRIES.values(), MANIFEST["data"]])
    written = sum(p.stat().st_size for p in MODELS.rglob("*") if p.suffix in {".py", ".md", ".toml", ".txt"})
    assert listed + written <= 3_000_000


@pytest.mark.parametrize("file", ENTRIES)
def test_score_is_the_manifests(file: str) -> None:
    evaluate = _evaluate().evaluate
    for optimize in (False, True):
        metric, value = evaluate(MODELS / file, optimize=optimize)
        assert metric == ENTRIES[file]["metric"]
        assert value == pytest.approx(ENTRIES[file]["value"], abs=0.1)


@pytest.mark.parametrize("file", ENTRIES)
def test_no_local_path_inside(file: str) -> None:
    assert LOCAL_PATH.search((MODELS / file).read_bytes()) is None


@pytest.mark.parametrize("file", ENTRIES)
def test_symbolic_dims_are_free(file: str) -> None:
    """Every symbolic input dim may change from run to run, and the outputs' declared dims follow it."""
    graph = onnx.load(MODELS / file).graph
    session = onnxruntime.InferenceSession(MODELS / file, providers=["CPUExecutionProvider"])
    for size in (1, 5):
        dims = [d.dim_value or size for d in graph.input[0].type.tensor_type.shape.dim]
        (output,) = session.run(None, {graph.input[0].name: np.full(dims, 0.5, np.float32)})
        declared = [d.dim_value or d.dim_param for d in graph.output[0].type.tensor_type.shape.dim]
        known = {d.dim_param for d in graph.input[0].type.tensor_type.shape.dim if d.dim_param}
        assert len(output.shape) == len(declared)
        for actual, dim in zip(output.shape, declared, strict=True):
            assert actual == (size if dim in known else dim) or (isinstance(dim, str) and dim not in known)


def test_work_is_left_for_an_optimizer() -> None:
    assert {"BatchNormalization", "Constant"} <= _op_types("digits_cnn.onnx")
    assert {"BatchNormalization", "Shape", "If", "Resize", "Pad", "Expand"} <= _op_types("messy.onnx")
    assert {"Erf", "ReduceMean", "Softmax", "Shape"} <= _op_types("digits_transformer.onnx")
    assert not {"LayerNormalization", "Gelu"} & _op_types("digits_transformer.onnx")
    assert "LSTM" in _op_types("digits_lstm.onnx")


def test_data_fits_the_models() -> None:
    """One file feeds every model: float32 arrays named after the inputs, one row per held-out image."""
    with np.load(MODELS / MANIFEST["data"]["file"], allow_pickle=False) as arrays:
        rows = len(arrays["label"])
        for file in ENTRIES:
            given = onnx.load(MODELS / file).graph.input[0]
            array = arrays[given.name]
            dims = [d.dim_value for d in given.type.tensor_type.shape.dim]
            assert array.dtype == np.float32
            assert len(array) == rows
            assert all(dim in (0, size) for dim, size in zip(dims, array.shape, strict=True))
