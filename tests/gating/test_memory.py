"""`[memory]`: what loading and running a model takes, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from gate_models import HEAD, only
from onnx import numpy_helper

from graphopt.gating import memory

MB = 1_000_000


def heavy(folder: Path, mb: int, *, external: bool = False) -> str:
    """A model with so many megabytes of weights that it reads."""
    proto = onnx.parser.parse_model(
        f"{HEAD} g (float[1, 4] x) => (float[1, 4] y) {{ s = ReduceSum(w) y = Add(x, s) }}"
    )
    values = np.random.default_rng(0).standard_normal(mb * MB // 4).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    name = f"heavy{mb}{'e' if external else ''}"
    onnx.save(proto, folder / f"{name}.onnx", save_as_external_data=external, location=f"{name}.data")
    return f"{name}.onnx"


@pytest.mark.parametrize("external", [False, True])
def test_max_mb_and_max_ratio(run: Any, folder: Path, external: bool) -> None:
    light, large = heavy(folder, 10, external=external), heavy(folder, 110, external=external)
    policy = "[memory]\nmax_mb = 90\nmax_ratio = 1.5"
    report = run(policy, light, reference=folder / light)
    assert [c.verdict for c in report.checks] == ["passed", "passed"]
    low = only(report, "memory.max_mb").measured
    report = run(policy, large, reference=folder / light)
    assert [c.verdict for c in report.checks] == ["failed", "failed"]
    high = only(report, "memory.max_mb").measured
    # The weights, which onnxruntime may hold up to three times while it loads.
    assert low is not None
    assert high is not None
    assert 95 < high - low < 350
    ratio = only(report, "memory.max_ratio").measured
    assert ratio == pytest.approx(high / low, rel=0.3)
    assert "one process" in only(report, "memory.max_mb").detail


def test_a_model_that_does_not_load(run: Any, folder: Path) -> None:
    bad = onnx.parser.parse_model(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu(x) }}")
    onnx.save(bad, folder / "bad.onnx")
    for given in ({}, {"reference": folder / "reference.onnx"}):
        report = run("[memory]\nmax_mb = 1000", "bad.onnx", **given)
        assert (report.verdict, report.checks[0].verdict) == ("failed", "error")
        assert "the model does not load" in report.checks[0].detail


def test_where_it_cannot_be_told(run: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(memory, "footprint", lambda *given: None)
    report = run("[memory]\nmax_mb = 1000\nmax_ratio = 2", reference=folder / "reference.onnx")
    assert report.verdict == "failed"
    assert [c.verdict for c in report.checks] == ["error", "error"]
    assert "does not tell" in report.checks[0].detail


def test_data_beside_a_link_or_beside_its_target(folder: Path) -> None:
    (folder / "cache").mkdir()
    link = folder / "cache/model.onnx"
    link.symlink_to(folder / "external.onnx")
    assert memory.AsFile.of(link).folder == folder.resolve()
    (folder / "cache/external.data").write_bytes((folder / "external.data").read_bytes())
    assert memory.AsFile.of(link).folder == (folder / "cache").resolve()
