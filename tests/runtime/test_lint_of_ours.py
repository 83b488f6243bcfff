"""What graphopt quantizes for onnxruntime really runs on integers, and the linter knows."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphopt
from graphopt.runtime.lint import lint

MODELS = Path(__file__).parents[2] / "models"
#: The input of each model in the file of samples.
INPUTS = {
    "digits_cnn": "image",
    "digits_lstm": "image",
    "digits_transformer": "image",
    "digits_transformer_dynamo": "image",
    "messy": "noisy",
}


@pytest.mark.parametrize("name", INPUTS)
def test_products_run_on_integers_as_predicted(name: str) -> None:
    result = graphopt.run(
        MODELS / f"{name}.onnx",
        "default,insert-qdq",
        target="ort-cpu",
        data=MODELS / "digits.npz",
        verify="off",
    )
    found = lint(result.model, "ort-cpu")
    assert found.runtime, found.note
    assert not [row.node for row in found.rows if row.disagrees]
    products = [row for row in found.rows if row.op in ("Conv", "Gemm", "MatMul")]
    refused = {f.node for f in result.report.left_float}
    assert products
    assert not [row.node for row in products if not row.is_integer and row.node not in refused]
