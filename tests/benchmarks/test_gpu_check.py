"""The check of a GPU: what it says without one, and that all of it runs, on CUDA's path as far as that goes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import fake_cuda
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
CNN = ROOT / "models" / "digits_cnn.onnx"
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, words)])
    code: int = script.main()
    return code


@pytest.mark.skipif(HAS_CUDA, reason="this build has CUDA")
def test_without_a_gpu_it_says_so_and_runs_the_cpus_part(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    assert run(script, monkeypatch, CNN, "--seconds", "0.3", "--output", page) == 0
    text = page.read_text()
    assert "**Not run on a GPU**: CUDA could not be used: execution provider 'cuda' is not available" in text
    assert "Not run: parity of CUDA and CPU" in text
    (row,) = [x for x in text.splitlines() if x.startswith("| digits_cnn.onnx")]
    assert row.count("proven") == 2
    assert "100% of 25" in row
    assert "onnxruntime 1." in text or "onnxruntime-gpu 1." in text
    assert capsys.readouterr().out == text
    assert list(tmp_path.iterdir()) == [page]


def test_the_cpu_was_asked_for(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    code = run(script, monkeypatch, tmp_path, "--provider", "cpu", "--seconds", "0.1", "--output", page)
    assert code == 0
    assert "**Not run on a GPU**: the CPU was asked for." in page.read_text()


def test_a_check_that_fails_is_in_the_page_and_the_others_are_run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken, page = tmp_path / "broken.onnx", tmp_path / "page.md"
    broken.write_bytes(b"nothing")
    words = (broken, CNN, "--provider", "cpu", "--seconds", "0.1", "--output", page)
    assert run(script, monkeypatch, *words) == 1
    text = page.read_text()
    assert "| broken.onnx | **failed** |" in text
    assert "- broken.onnx: parity: ModelError" in text
    assert "| digits_cnn.onnx | proven" in text


def test_the_path_on_cuda(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With an onnxruntime that only says it has CUDA: all checks run, and what it cannot do is found."""
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr(script, "SMALL", 64)
    monkeypatch.setattr(script, "LARGE", 512)
    page = tmp_path / "page.md"
    assert run(script, monkeypatch, CNN, "--seconds", "0.3", "--output", page) == 1
    text = page.read_text()
    assert "Not run" not in text
    assert "- provider: CUDAExecutionProvider" in text
    assert (
        "| model | parity, TF32 off | parity, TF32 on | optimized | open | latency | TF32 on over off |"
        in text
    )
    (row,) = [x for x in text.splitlines() if x.startswith("| digits_cnn.onnx")]
    assert row.count("proven") == 3
    assert "failed" not in row
    assert "0% of 25" in row  # it computes on the CPU, and does not hide it
    assert "| memory limit of 50 MB, three matrices of 1 MB | **failed**: it was not obeyed |" in text
    assert "inputs bound" in text
    assert "| bound runs against plain ones | bit for bit |" in text


def test_passes_are_known_where_graphopt_is_not_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" in p])
    real = importlib.metadata.entry_points
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **kwargs: ())
    script.register_passes()
    monkeypatch.setattr(importlib.metadata, "entry_points", real)
    (folder,) = [p for p in sys.path if "site-packages" not in p]
    (found,) = importlib.metadata.distributions(path=[folder])
    assert found.metadata["Name"] == "graphopt"
    names = {e.name for e in found.entry_points if e.group == "graphopt.passes"}
    assert {"fold-constants", "fold-conv-bn", "insert-qdq"} <= names
