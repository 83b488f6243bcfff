"""Every conformance model that plain ONNX Runtime runs correctly still does after our passes.

Once after the default pipeline, and once after every single pass alone.
"""

from __future__ import annotations

import functools

import pytest
from node_suite import Case, baseline, cases

from graphopt.model import Model
from graphopt.pipeline.base import NodePass, Numerics, Pass, PatternPass
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.registry import Step, installed
from graphopt.pipeline.targets import get_target
from graphopt.runtime.evaluate import evaluate
from graphopt.testing import assert_same_interface

NAMES = sorted(cases())
CHUNK = 100
# Plain ONNX Runtime 1.23 to 1.32 pass more than this; fewer means that the harness itself is broken.
AT_LEAST = 1500


def check(case: Case, steps: tuple[Step, ...], target: str = "portable") -> str:
    """What is wrong with `case` after `steps`, "" if nothing is."""
    model = Model.load(case.model)
    try:
        done = execute(model, steps, Settings(get_target(target), evaluator=evaluate))
        if not done.journal.changes:
            return ""
        proto = done.model.to_proto()
        assert_same_interface(case.model, proto)
        reason = case.agrees(case.run(proto))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return f"{case.name}: {reason}" if reason else ""


def runnable(names: list[str]) -> list[Case]:
    return [cases()[name] for name in names if not baseline(name)]


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("start", range(0, len(NAMES), CHUNK))
def test_default_pipeline(start: int, target: str) -> None:
    steps = installed().resolve(None, default=installed().preset(f"default-{target}"))
    wrong = [r for case in runnable(NAMES[start : start + CHUNK]) if (r := check(case, steps, target))]
    assert not wrong, "\n".join(wrong)


@functools.cache
def op_types(name: str) -> frozenset[str]:
    """Operator types of all bodies of a case's model."""
    return frozenset(n.op for body in Model.load(cases()[name].model).bodies() for n in body.nodes)


def roots(item: Pass) -> set[str]:
    """The operator types that a pass looks at; empty: all of them."""
    if isinstance(item, PatternPass):
        return {op for pattern in item.alternatives() for op in pattern.ops}
    return set(item.ops) if isinstance(item, NodePass) else set()


#: Passes that change the interface on request, or have a conformance test of their own.
ELSEWHERE = {
    "convert-io",
    "embed-postprocessing",
    "embed-preprocessing",
    "freeze-dims",
    "lower-opset",
    "rename-dims",
    "transpose-io",
}


def exact_or_close() -> list[str]:
    """The passes that must not move the numbers; the suite allows no LOSSY pass what it may do."""
    registry = installed()
    lossy = {n for n in registry.pass_names() if registry.pass_class(n).numerics is Numerics.LOSSY}
    assert set(registry.pass_names()) >= ELSEWHERE
    return [n for n in registry.pass_names() if n not in lossy | ELSEWHERE]


@pytest.mark.parametrize("name", exact_or_close())
def test_single_pass(name: str) -> None:
    (item,) = installed().resolve(name, default="")
    assert isinstance(item, Pass)
    ops = roots(item)
    names = [n for n in NAMES if not ops or ops & op_types(n)]
    wrong = [r for case in runnable(names) if (r := check(case, (item,)))]
    assert not wrong, "\n".join(wrong)


def test_the_suite_is_there() -> None:
    passing = sum(1 for name in NAMES if not baseline(name))
    assert passing > AT_LEAST, f"plain ONNX Runtime passes only {passing} of {len(NAMES)}"
