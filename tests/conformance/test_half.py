"""Conformance models in half precision: valid, runnable, and close.

Once as the passes decide, and once with everything converted that has a type for it, worth it or not.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from node_suite import Case, baseline, cases

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.testing import assert_same_interface
from graphopt_passes.quantization import _half_plan
from graphopt_passes.quantization.convert_bf16 import ConvertBf16
from graphopt_passes.quantization.convert_fp16 import ConvertFp16

pytestmark = pytest.mark.slow

# Of the RMS. A few models add up rounded values over many steps.
TOLERANCE = {"convert-fp16": 0.03, "convert-bf16": 0.08}


def check(case: Case, item: ConvertFp16 | ConvertBf16) -> str | None:
    """What is wrong with `case` after `item`, "" if nothing is; None: nothing was converted."""
    try:
        done = execute(Model.load(case.model), [item], Settings(get_target("portable")))
        if not done.journal.changes:
            return None
        proto = done.model.to_proto()
        onnx.checker.check_model(proto)
        assert_same_interface(case.model, proto)
        before, after = case.run(case.model), case.run(proto)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for name, value in before.items():
        if isinstance(value, list):
            continue
        a, b = np.asarray(value), np.asarray(after[name])
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{name}: {b.dtype}{b.shape}, not {a.dtype}{a.shape}"
        if a.dtype.kind != "f":
            continue
        finite = np.isfinite(a)
        if not (np.isfinite(b) == finite).all():
            return f"{name}: other values are finite"
        if finite.any():
            rms = float(np.sqrt(np.mean(a[finite].astype(np.float64) ** 2)))
            off = float(np.abs(a[finite].astype(np.float64) - b[finite]).max()) / max(rms, 1e-9)
            if off > TOLERANCE[item.name]:
                return f"{name}: off by {off:.2g} of the RMS"
    return ""


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("item", [ConvertFp16(), ConvertBf16()], ids=lambda item: item.name)
def test_conformance_models(
    item: ConvertFp16 | ConvertBf16, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if everything:
        monkeypatch.setattr(_half_plan, "is_busy", lambda graph, node: True)
    found = {name: check(cases()[name], item) for name in sorted(cases()) if not baseline(name)}
    wrong = [f"{name}: {reason}" for name, reason in found.items() if reason]
    assert not wrong, "\n".join(wrong)
    if everything:
        assert sum(reason == "" for reason in found.values()) > 250
