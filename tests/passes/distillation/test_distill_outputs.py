"""distill-outputs: derivatives are right, outputs come closer on unseen data, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import Constant, Numerics, Pass, PassContext, Rewriter
from graphopt.testing import apply
from graphopt_passes.distillation._jacobian import Knob, Rig, Samples
from graphopt_passes.distillation.distill_outputs import DistillOutputs
from graphopt_passes.pruning.prune_weights import PruneWeights

HALF = PruneWeights(sparsity=0.5, importance="magnitude")
CNN = """(float[N, 2, 8, 8] x) => (float[N, 4] y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  b = Relu(a)  c = Conv(b, w2)  d = Relu(c)
    e = GlobalAveragePool(d)  f = Flatten(e)  y = Gemm<transB=1>(f, w3, b3)
}"""
WEIGHTS: dict[str, Any] = {
    "w1": (6, 2, 3, 3), "b1": (6,), "w2": (8, 6, 3, 3), "w3": (4, 8), "b3": (4,),
}  # fmt: skip


def images(count: int = 192, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 2, 8, 8)).astype(np.float32)}


def gained(
    model: onnx.ModelProto, data: Any, unseen: Any, *before: Pass, **options: Any
) -> tuple[float, Any]:
    plain = apply(list(before), model, data=data)
    done = apply([*before, DistillOutputs(**options)], model, data=data)
    return sqnr(model, done.proto, unseen) - sqnr(model, plain.proto, unseen), done


def test_outputs_come_closer_on_unseen_data() -> None:
    model = build(CNN, **WEIGHTS)
    gain, done = gained(model, images(), images(64, seed=5), HALF)
    assert gain > 2.0
    mine = [c for c in done.journal.changes if c.key.pass_name == "distill-outputs"]
    assert {c.op for c in mine} == {"Conv", "Gemm"}
    assert all("SQNR of the outputs" in c.why for c in mine)
    assert len(done.proto.graph.node) == len(model.graph.node)  # no knob is left


def test_normalizations_and_products() -> None:
    model = build(
        """(float[N, 5, 12] x) => (float[N, 5, 12] y) {
            n = LayerNormalization<axis=-1>(x, s, t)  a = MatMul(n, w1)  c = Add(a, b1)  d = Relu(c)
            e = MatMul(d, w2)  y = Add(e, b2)
        }""",
        s=(12,), t=(12,), w1=(12, 16), b1=(16,), w2=(16, 12), b2=(12,),
    )  # fmt: skip
    x = [
        np.random.default_rng(s).standard_normal((n, 5, 12)).astype(np.float32)
        for s, n in ((1, 128), (2, 64))
    ]
    gain, done = gained(model, {"x": x[0]}, {"x": x[1]}, HALF)
    assert gain > 1.0
    ops = {c.op for c in done.journal.changes if c.key.pass_name == "distill-outputs"}
    assert ops == {"MatMul", "LayerNormalization"}


def test_zeros_stay() -> None:
    model = build(CNN, **WEIGHTS)
    done = apply([HALF, DistillOutputs()], model, data=images())
    for tensor in done.proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim > 1:
            assert (array == 0).mean() == pytest.approx(0.5, abs=0.01)


class Derive(Pass):
    """Compare the derivatives with those of runs with changed weights."""

    name = "derive"
    numerics = Numerics.LOSSY

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        conv = graph.by_op("Conv")[1]
        x = images(4)["x"]
        knob = Knob(conv.outputs[0], 1, 8, np.ones(8))
        with graph.trial(conv):
            rig = Rig(graph, ctx, [knob], {graph.inputs[0]: x})
            jacobian = rig.jacobian(slice(None))
            base = rig.outputs(np.zeros(16), slice(None))
            for number in (0, 5, 8, 13):
                change = np.zeros(16)
                change[number] = 1e-3
                moved = (rig.outputs(change, slice(None)) - base).reshape(-1) / 1e-3
                np.testing.assert_allclose(jacobian[:, number], moved, atol=0.05 * np.abs(moved).max() + 1e-3)
        assert all(not isinstance(t, Constant) or t.name in WEIGHTS for n in graph.nodes() for t in n.inputs)


def test_derivatives() -> None:
    done = apply(Derive(), build(CNN, **WEIGHTS))
    assert not done.journal.changes


def test_the_cost_is_bounded() -> None:
    model = build(CNN, **WEIGHTS)
    done = apply([HALF, DistillOutputs(samples=64, runs=2 * 4 * 64)], model, data=images())
    changed = {c.op for c in done.journal.changes if c.key.pass_name == "distill-outputs"}
    assert changed <= {"Gemm"}
    assert sum("would take more than 512 runs" in r for r in done.reasons) == 2


def test_nothing_to_learn() -> None:
    done = apply(DistillOutputs(), build(CNN, **WEIGHTS), data=images())
    assert not done.journal.changes
    assert any("closer" in r for r in done.reasons), done.reasons


def test_samples_of_different_shapes() -> None:
    model = build("(float[N, T, 8] x) => (float y) { a = MatMul(x, w)  y = Add(a, b) }", w=(8, 8), b=(8,))
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2, t, 8)).astype(np.float32)} for t in (3, 4, 5)]
    done = apply([HALF, DistillOutputs()], model, data=data)
    assert any("differ in shape" in r for r in done.reasons)


def test_a_batch_that_is_fixed_in_the_graph() -> None:
    model = build(
        """(float[2, 8] x) => (float[2, 8] y) { s = Reshape(x, shape)  a = MatMul(s, w)  y = Add(a, b) }""",
        shape=np.array([2, 8]), w=(8, 8), b=(8,),
    )  # fmt: skip
    data = [{"x": np.random.default_rng(s).standard_normal((2, 8)).astype(np.float32)} for s in range(8)]
    done = apply([HALF, DistillOutputs()], model, data=data)
    assert any("does not run in batches" in r for r in done.reasons)
    assert not [c for c in done.journal.changes if c.key.pass_name == "distill-outputs"]


def test_kept_layers_and_chosen_ones() -> None:
    model = build(CNN, **WEIGHTS)
    done = apply([HALF, DistillOutputs(layers=("y",))], model, data=images(), keep=["a"])
    assert {c.op for c in done.journal.changes if c.key.pass_name == "distill-outputs"} == {"Gemm"}


def test_samples_merge_up_to_the_limit() -> None:
    one, two = Samples(5), Samples(5)
    one.update(np.arange(3), np.arange(3))
    two.update(np.arange(3, 9), np.arange(3, 9))
    one.merge(two)
    assert [v.tolist() for v in one.columns()] == [[0, 1, 2, 3, 4]] * 2
    assert one.nbytes > 0


def test_requests() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        DistillOutputs(samples=2)
    with pytest.raises(UserError, match="data"):
        graphopt.run(build(CNN, **WEIGHTS), [HALF, DistillOutputs()])
