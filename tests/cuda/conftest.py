"""These tests need a GPU that onnxruntime's CUDA provider can use; elsewhere they are skipped, saying why."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from graphopt.errors import UserError
from graphopt.runtime.session import RuntimeFailure, open_session

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"


def why_not() -> str:
    """Why there is no CUDA here; "" if there is."""
    tiny = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g(float[1] x) => (float[1] y) { y = Neg(x) }'
    )
    try:
        with open_session(tiny, provider="cuda"):
            return ""
    except (UserError, RuntimeFailure) as error:
        return " ".join(str(error).split())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    reason = why_not()
    for item in mine:
        item.add_marker(pytest.mark.cuda)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
