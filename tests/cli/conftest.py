from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from graphopt.cli.main import main

MODELS = Path(__file__).resolve().parents[2] / "models"

TEXT = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "tests">
g (float[batch, 4] x) => (float[batch, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.5}, float[1] unused = {7}>
{
    a = Identity(x)
    m = MatMul(a, w)
    y = Add(m, b)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model on disk, in an otherwise empty folder."""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
