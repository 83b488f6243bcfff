"""Every conformance model of an older opset that plain ONNX Runtime runs still computes the same when raised.

Opset 24 is the newest for which ONNX Runtime 1.32 has all the kernels that it has for older ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from node_suite import baseline, cases
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.runtime.session import open_session
from graphopt.testing import assert_same_interface
from graphopt_passes.conversion.raise_opset import RaiseOpset

NEWEST = 24
# Scan over a batch, and models of ai.onnx.ml alone, which import no standard operators.
MOST_REFUSED = 9
# onnxruntime 1.32 gives them other running means now and then, whatever the opset.
UNSTABLE = {"test_batchnorm_epsilon_training_mode", "test_batchnorm_example_training_mode"}


@pytest.mark.parametrize("least", [pytest.param(21, marks=pytest.mark.slow), NEWEST])
def test_every_conformance_model(least: int) -> None:
    wrong, refused, raised = [], [], 0
    for name in sorted(cases()):
        case = cases()[name]
        versions = {o.domain: o.version for o in case.model.opset_import}
        if versions.get("", least) >= least or name in UNSTABLE or baseline(name):
            continue
        done = execute(Model.load(case.model), [RaiseOpset(least=least)], Settings(get_target("portable")))
        if not done.journal.changes:
            refused.append(name)
            continue
        raised += 1
        proto = done.model.to_proto()
        try:
            assert_same_interface(case.model, proto)
            reason = case.agrees(case.run(proto))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            wrong.append(f"{name}: {reason}")
    assert not wrong, "\n".join(wrong)
    assert len(refused) <= MOST_REFUSED, refused
    assert raised > 600


DATA = Path(onnx.backend.test.__file__).parent / "data"
OLD = [
    f.parent for kind in ("pytorch-converted", "pytorch-operator") for f in DATA.glob(f"{kind}/*/model.onnx")
]


def recorded(folder: Path, kind: str) -> list[Any]:
    """The arrays of the first data set, in order."""
    arrays = []
    for place in range(len(list(folder.glob(f"test_data_set_0/{kind}_*.pb")))):
        tensor = onnx.TensorProto()
        tensor.ParseFromString((folder / f"test_data_set_0/{kind}_{place}.pb").read_bytes())
        arrays.append(numpy_helper.to_array(tensor))
    return arrays


def test_models_of_opset_6_give_what_was_recorded() -> None:
    """ONNX Runtime does not run them as they are: the outputs were recorded when they were exported."""
    assert len(OLD) > 100
    wrong = []
    for folder in OLD:
        model = Model.load(folder / "model.onnx")
        done = execute(model, [RaiseOpset(least=NEWEST)], Settings(get_target("portable")))
        if not done.journal.changes:
            wrong.append(f"{folder.name}: {[r.reason for r in done.journal.refusals]}")
            continue
        with open_session(done.model.to_proto(), optimize="none") as session:
            names = [p.name for p in session.inputs]
            results = session.run(dict(zip(names, recorded(folder, "input"), strict=False)))
        for (name, got), want in zip(results.items(), recorded(folder, "output"), strict=False):
            if not np.allclose(np.asarray(got), want, rtol=1e-3, atol=1e-5, equal_nan=True):
                wrong.append(f"{folder.name}: {name}")
    assert not wrong, "\n".join(wrong)
