"""Every conformance model of an older opset that plain ONNX Runtime runs still computes the same when raised.

Opset 24 is the newest for which ONNX Runtime 1.32 has all the kernels that it has for older ones.
"""

from __future__ import annotations

import pytest
from node_suite import baseline, cases

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
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
