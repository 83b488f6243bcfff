"""Every conformance model that plain ONNX Runtime runs computes the same when lowered, or is refused."""

from __future__ import annotations

import pytest
from node_suite import baseline, cases

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.testing import assert_same_interface
from graphopt_passes.conversion.lower_opset import LowerOpset

# onnxruntime 1.32 gives them other running means now and then, whatever the opset.
UNSTABLE = {"test_batchnorm_epsilon_training_mode", "test_batchnorm_example_training_mode"}


@pytest.mark.parametrize(("to", "least"), [(13, 550), pytest.param(17, 600, marks=pytest.mark.slow)])
def test_every_conformance_model(to: int, least: int) -> None:
    wrong, lowered = [], 0
    for name in sorted(cases()):
        case = cases()[name]
        versions = {o.domain: o.version for o in case.model.opset_import}
        if versions.get("", 0) <= to or name in UNSTABLE or baseline(name):
            continue
        done = execute(Model.load(case.model), [LowerOpset(to=to)], Settings(get_target("portable")))
        if not done.journal.changes:
            assert done.journal.refusals or versions.get("", 0) > 28, name
            continue
        lowered += 1
        proto = done.model.to_proto()
        try:
            assert_same_interface(case.model, proto)
            reason = case.agrees(case.run(proto))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            wrong.append(f"{name}: {reason}")
    assert not wrong, "\n".join(wrong)
    assert lowered > least
