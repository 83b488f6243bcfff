"""`[memory]`: what loading and running a model takes, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from gate_models import HEAD, only
from onnx import numpy_helper

from graphopt.runtime import footprint as measured
from graphopt.runtime.session import RuntimeFailure

MB = 1_000_000


def heavy(folder: Path, mb: int) -> str:
    """A model with so many megabytes of weights that it reads."""
    proto = onnx.parser.parse_model(
        f"{HEAD} g (float[1, 4] x) => (float[1, 4] y) {{ s = ReduceSum(w) y = Add(x, s) }}"
    )
    values = np.random.default_rng(0).standard_normal(mb * MB // 4).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(proto, folder / f"heavy{mb}.onnx")
    return f"heavy{mb}.onnx"


def test_weights_are_seen(folder: Path) -> None:
    x = {"x": np.ones((1, 4), np.float32)}
    light, large = (measured.footprint(folder / heavy(folder, mb), [x]) for mb in (10, 110))
    more = (large.peak - light.peak) / MB
    assert 95 < more < 350  # the weights, which onnxruntime may hold up to three times while it loads
    assert large.loaded <= large.peak
    assert large.peak > 100 * MB


def test_max_mb_and_max_ratio(run: Any, folder: Path) -> None:
    light, large = heavy(folder, 10), heavy(folder, 110)
    report = run("[memory]\nmax_mb = 1000\nmax_ratio = 1.5", light, reference=folder / light)
    assert [c.verdict for c in report.checks] == ["passed", "passed"]
    report = run("[memory]\nmax_mb = 90\nmax_ratio = 1.5", large, reference=folder / light)
    assert [c.verdict for c in report.checks] == ["failed", "failed"]
    assert only(report, "memory.max_mb").measured > 100
    assert only(report, "memory.max_ratio").measured > 2
    assert "in a new process" in only(report, "memory.max_mb").detail


def test_a_model_that_does_not_load(run: Any, folder: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(f"{HEAD} g (float[1, 4] x) => (float[1, 4] y) {{ y = Gelu(x) }}"),
        folder / "bad.onnx",
    )
    with pytest.raises(RuntimeFailure):
        measured.footprint(folder / "bad.onnx", [])
    report = run("[memory]\nmax_mb = 1000", "bad.onnx")
    assert (report.verdict, report.checks[0].verdict) == ("failed", "error")
    assert "does not load" in report.checks[0].detail


def test_a_process_that_crashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = folder / "python"
    code.write_text("#!/bin/sh\ncat > /dev/null\nkill -9 $$\n")
    os.chmod(code, 0o755)
    monkeypatch.setattr(measured.sys, "executable", str(code))
    with pytest.raises(measured.NotMeasurable, match="signal 9"):
        measured.footprint(folder / "model.onnx", [])


def test_where_the_system_does_not_tell(run: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(measured, "_STATUS", folder / "nothing")
    report = run("[memory]\nmax_mb = 1000")
    assert (report.verdict, report.checks[0].verdict) == ("failed", "error")
    assert "does not tell" in report.checks[0].detail
