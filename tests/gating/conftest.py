"""A folder with a small model, changed versions of it, data, and a metric; and a gate over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate_models import fill

from graphopt.gating.reading import parse_policy
from graphopt.gating.running import gate
from graphopt.report.gated import GateReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files."""
    fill(tmp_path)
    return tmp_path


Gate = Callable[..., GateReport]


@pytest.fixture
def run(folder: Path) -> Gate:
    """Holds a model of the folder against the text of a policy."""

    def gated(policy: str, model: str = "model.onnx", **given: Any) -> GateReport:
        return gate(folder / model, parse_policy(policy, folder / "gate.toml"), **given)

    return gated
