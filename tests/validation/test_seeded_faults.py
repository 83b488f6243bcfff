"""One seeded fault per class: the verdict names the culprit, and localisation lands on the node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import ValidationReport
from graphopt.report.validated import Localization
from graphopt.validation.reference import Reference
from tests.support import fault_models as fm

RNG = np.random.default_rng(11)


def where(report: ValidationReport) -> Localization:
    """The localization, which has to have found something."""
    assert report.localization is not None
    assert report.localization.found, report.localization.reason
    return report.localization


def check(reference: onnx.ModelProto, candidate: onnx.ModelProto | None, **options: Any) -> ValidationReport:
    return graphopt.validate(reference, candidate, localize=True, **options)


# -- a: a wrong epsilon in one BatchNormalization of thirty --------------------------------------------


@pytest.mark.parametrize("layer", [0, 17, 29])
def test_a_wrong_epsilon(layer: int) -> None:
    report = check(fm.thirty(), fm.thirty(**{f"bn{layer}": 1e-2}))
    assert report.verdict == "failed"
    assert report.fault == "candidate"
    found = where(report)
    assert (found.node, found.op) == (f"bn{layer}", "BatchNormalization")
    assert found.agreed == (f"c{layer}",)
    assert [n.name for n in found.neighbourhood if n.guilty] == [f"bn{layer}"]
    states = {n.name: n.state for n in found.neighbourhood}
    assert states[f"conv{layer}"] == "agrees"
    assert states[f"relu{layer}"] == "diverges"


def test_a_wrong_epsilon_where_every_tensor_is_renamed() -> None:
    candidate = fm.renamed(fm.thirty(bn17=1e-2))
    found = where(check(fm.thirty(), candidate))
    assert found.node == candidate.graph.node[17 * 3 + 1].name
    assert found.op == "BatchNormalization"
    assert found.first is not None
    assert (found.first.tensor, found.first.node) == ("b17", "bn17")


def test_names_that_mean_something_else_are_not_believed() -> None:
    # Both are numbered, but from another number on: "1003" is a Conv here and a Relu there.
    reference, candidate = fm.renamed(fm.thirty()), fm.renamed(fm.thirty(bn17=1e-2), start=1001)
    found = where(check(reference, candidate))
    assert found.node == candidate.graph.node[17 * 3 + 1].name
    assert found.first is not None
    assert found.first.tensor == reference.graph.node[17 * 3 + 1].output[0]


# -- b: a broken fusion in the body of an If -----------------------------------------------------------


@pytest.mark.parametrize("rename", [False, True])
def test_a_broken_fusion_in_an_if(rename: bool) -> None:
    candidate = fm.with_if(0.5, fused=True)
    if rename:
        candidate = fm.renamed(candidate, nodes=False)
    data = [{"x": RNG.standard_normal((2, 8)).astype(np.float32), "c": np.array(True)}]
    report = check(fm.with_if(), candidate, data=data)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    found = where(report)
    assert found.op == "Gemm"
    assert found.body.endswith("then_branch")
    assert check(fm.with_if(), fm.with_if(fused=True), data=data).verdict == "proven"


# -- c: a difference that only onnxruntime's optimizer makes -------------------------------------------


BUG = pytest.mark.skipif(
    not Reference(fm.look_alike(plain=True)).floors.own, reason="this onnxruntime has no such bug"
)


@BUG
def test_the_optimizer_breaks_only_the_candidate() -> None:
    report = check(fm.look_alike(plain=False), fm.look_alike(plain=True))
    assert report.verdict == "failed"
    assert report.fault == "onnxruntime's optimizer"
    assert "only" in report.explanation or "the reference still does" in report.explanation
    judge, default = report.runtimes
    assert (judge.candidate_ok, judge.fault) == (True, "")
    assert (default.reference_ok, default.candidate_ok) == (True, False)
    found = where(report)
    assert found.node == "Add_n"  # the last node of what is fused
    assert found.runtime == "CPU, optimizations on"


@BUG
def test_the_optimizer_breaks_both() -> None:
    report = check(fm.look_alike(plain=True), fm.look_alike(plain=True))
    assert (report.verdict, report.fault) == ("proven", "")
    assert report.runtimes[1].fault == "onnxruntime's optimizer"
    assert not report.runtimes[1].reference_ok
    assert "in the same way" in report.runtimes[1].note
    assert any("both models" in w for w in report.warnings)
    assert where(report).node == "Add_n"


@BUG
def test_the_optimizer_breaks_the_model_itself() -> None:
    report = check(fm.look_alike(plain=True), None)
    assert report.verdict == "failed"
    assert report.fault == "onnxruntime's optimizer"
    assert where(report).node == "Add_n"
    assert graphopt.validate(fm.look_alike(plain=False)).verdict == "proven"


# -- d: float16 overflows in one layer -----------------------------------------------------------------


def test_float16_overflows_in_one_layer() -> None:
    data = [{"x": RNG.uniform(5, 9, (2, 16)).astype(np.float32)}]
    reference = fm.chain()
    assert check(reference, fm.chain(half_at=0), data=data, rtol=1e-2).verdict == "proven"
    report = check(reference, fm.chain(half_at=5), data=data, rtol=1e-2)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    found = where(report)
    assert found.first is not None
    assert found.first.tensor == "m5"
    assert found.node == "Cast_h5"  # 65504 is the most that it can give
    assert "infinity, first in 'h5'" in found.reason
    assert {n.op for n in found.neighbourhood} >= {"Mul", "Reshape"}


# -- e: a reordered output -----------------------------------------------------------------------------

TWO = "g (float[N, 4] x) => (float[N, 4] a, float[N, 4] b) { a = Sin(x) b = Exp(x) }"


def test_outputs_in_another_order() -> None:
    other = fm.model(TWO.replace("(float[N, 4] a, float[N, 4] b)", "(float[N, 4] b, float[N, 4] a)"))
    report = check(fm.model(TWO), other)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert report.reason == "outputs reordered: a, b -> b, a"
    assert [row.verdict for row in report.outputs] == ["ok", "ok"]
    assert check(fm.model(TWO), other, any_order=True).verdict == "proven"


def test_outputs_that_have_changed_places() -> None:
    other = fm.model(TWO.replace("a = Sin(x) b = Exp(x)", "b = Sin(x) a = Exp(x)"))
    fm.node_names(other)
    report = check(fm.model(TWO), other)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert "changed places" in report.explanation
    assert "'a' holds what the reference gives as 'b'" in report.explanation
    assert where(report).node in ("Sin_b", "Exp_a")


# -- f: NaN on one input only --------------------------------------------------------------------------


def test_nan_on_one_input_only() -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) {{ a = Add(x, one) {} c = Mul(b, one) y = Tanh(c) }}"
    one = np.array(1, np.float32)
    reference = fm.model(text.format("p = Max(a, tiny) b = Log(p)"), one=one, tiny=np.array(1e-3, np.float32))
    candidate = fm.model(text.format("b = Log(a)"), one=one)
    fm.node_names(candidate)
    samples = RNG.uniform(0, 2, (5, 1, 4)).astype(np.float32)
    samples[3, 0, 2] = -3
    report = check(reference, candidate, data=[{"x": s} for s in samples])
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert "only on inputs #4" in report.reason
    found = where(report)
    assert found.node == "Log_b"
    assert "#3" in found.probe
    assert "NaN" in found.reason


# -- and more ------------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    report = check(fm.thirty(), fm.renamed(fm.thirty()))
    assert report.verdict == "proven"
    assert report.localization is not None
    assert not report.localization.found


@pytest.mark.parametrize("rename", [False, True])
def test_fused_regions(rename: bool) -> None:
    """Conv and BatchNormalization are one node in the candidate: the Conv's output has no counterpart."""
    candidate = graphopt.run(fm.thirty(), "fold-conv-bn").model.to_proto()
    assert {n.op_type for n in candidate.graph.node} == {"Conv", "Relu", "Identity"}
    guilty = [n for n in candidate.graph.node if n.op_type == "Conv"][12]
    fm.weight(candidate, guilty.input[2], lambda b: b * 1.05)
    output = guilty.output[0]
    if rename:
        at = list(candidate.graph.node).index(guilty)
        candidate = fm.renamed(candidate)
        guilty = candidate.graph.node[at]
    report = check(fm.thirty(), candidate)
    assert (report.verdict, report.fault) == ("failed", "candidate")
    found = where(report)
    assert found.node == guilty.name
    if not rename:
        assert output == "b12"
        assert found.made_by == "fold-conv-bn"
        assert found.agreed == ("r11",)
        assert found.first is not None
        assert found.first.node == "bn12"


def test_two_faults_the_first_in_order_of_depth_is_named() -> None:
    found = where(check(fm.thirty(), fm.thirty(bn9=1e-2, bn21=1e-2)))
    assert found.node == "bn9"


@pytest.mark.parametrize("rename", [False, True])
def test_a_fault_in_a_loop(rename: bool) -> None:
    candidate = fm.looped(0.6)
    if rename:
        candidate = fm.renamed(candidate, nodes=False)
    found = where(check(fm.looped(), candidate))
    assert found.op == "Mul"
    assert found.body.endswith("body")


def test_a_fault_in_a_scan() -> None:
    found = where(check(fm.scanned(), fm.scanned(0.6)))
    assert found.node == "Mul_e"
    assert found.body.endswith("body")


def test_a_fault_in_a_loop_whose_shapes_change() -> None:
    found = where(check(fm.growing(), fm.growing(0.6)))
    assert found.body.endswith("body")
    assert found.node in ("Mul_e", "Concat_next")  # iterations are not told apart there


@pytest.mark.parametrize("rename", [False, True])
def test_one_of_two_parallel_branches_is_wrong(rename: bool) -> None:
    candidate = fm.parallel(0.1)
    if rename:
        candidate = fm.renamed(candidate, nodes=False)
    found = where(check(fm.parallel(), candidate))
    assert found.node == "Add_q1"
    assert len(found.agreed) == 1


def test_a_layer_that_quantization_ruins(tmp_path: Any) -> None:
    data = [{"x": RNG.standard_normal((6, 8, 8)).astype(np.float32)} for _ in range(16)]
    reference = fm.thirty(layers=6)
    result = graphopt.run(reference, "fold-conv-bn,insert-qdq{ops=[Conv]}", data=data)
    candidate = result.model.to_proto()
    good = check(reference, candidate, data=data, numerics="LOSSY", budget=graphopt.Budget(0.9, 8))
    assert good.verdict == "proven"
    conv = [n for n in candidate.graph.node if n.op_type == "Conv"][3]
    dequantize = next(n for n in candidate.graph.node if n.output[0] == conv.input[1])
    fm.weight(candidate, dequantize.input[1], lambda s: s * 1.8)
    report = check(reference, candidate, data=data, numerics="LOSSY", budget=graphopt.Budget(0.9, 8))
    assert (report.verdict, report.fault) == ("failed", "candidate")
    assert where(report).node == conv.name
