"""restore-float: the nodes that spoil the outputs go back to float, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

import graphopt
from graphopt.budget import Budget, Exploration
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model
from graphopt.passkit import GraphView
from graphopt.runtime.kernels import executed
from graphopt.testing import Applied, apply, assert_same_interface
from graphopt_passes.quantization import _restore
from graphopt_passes.quantization.insert_qdq import InsertQDQ
from graphopt_passes.quantization.restore_float import RestoreFloat

RNG = np.random.default_rng(0)
DATA = {"x": RNG.standard_normal((32, 16)).astype(np.float32)}


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32) / 4


# One outlier per row makes a per-tensor grid useless for the rest; the next product hardly looks at it.
SPIKE = np.where(np.arange(16) == 3, 2000.0, 1.0).astype(np.float32)
CALM = np.where(np.arange(16) == 3, 1e-6, 1.0).astype(np.float32)[:, None] * normal(16, 16)


def spiky() -> onnx.ModelProto:
    """Three products; the input of the second has a channel 2,000 times as large as the others."""
    return build(
        "(float[N,16] x) => (float[N,16] y) "
        "{ a = MatMul(x, w1)  t = Tanh(a)  s = Mul(t, spike)  b = MatMul(s, w2)  u = Tanh(b)  y = MatMul(u, w3) }",
        w1=normal(16, 16),
        spike=SPIKE,
        w2=CALM,
        w3=normal(16, 16) * 2,
    )


IMAGES = {"x": RNG.standard_normal((16, 8, 12, 12)).astype(np.float32)}


def residual(behind: str = "Identity") -> onnx.ModelProto:
    """Three convolutions, the second in a residual branch, with an operator behind the Add."""
    return build(
        "(float[N,8,12,12] x) => (float[N,8,12,12] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w0)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, w1)  "
        f"s = Add(r, b)  t = {behind}(s)  y = Conv<pads=[1,1,1,1]>(t, w2) }}",
        **{f"w{i}": normal(8, 8, 3, 3) for i in range(3)},
    )


def float_products(model: onnx.ModelProto) -> list[str]:
    """Outputs of the products with an operand that comes out of no DequantizeLinear."""
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    return [
        n.output[0]
        for n in model.graph.node
        if n.op_type in ("MatMul", "Gemm", "Conv")
        and not all(made.get(t) == "DequantizeLinear" for t in n.input[:2])
    ]


def restored(model: onnx.ModelProto, data: Any = None, **options: Any) -> Applied:
    done = apply([InsertQDQ(), RestoreFloat(**options)], model, data=DATA if data is None else data)
    assert_same_interface(model, done.proto)
    return done


def test_the_one_product_that_spoils_everything_is_put_back() -> None:
    model = spiky()
    plain = apply(InsertQDQ(), model, data=DATA)
    assert float_products(plain.proto) == []
    assert sqnr(model, plain.proto, DATA) < 10
    done = restored(model, min_sqnr=20.0)
    assert float_products(done.proto) == ["b"]
    assert sqnr(model, done.proto, DATA) > 20
    (change,) = [c for c in done.journal.changes if c.key.pass_name == "restore-float"]
    assert "SQNR goes from" in change.why
    # Its weight is the very array that it was, and nothing integer of it is left.
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in done.proto.graph.initializer}
    assert any(np.array_equal(w, CALM) for w in weights.values() if w.shape == CALM.shape)


def test_a_budget_that_is_kept_changes_nothing() -> None:
    done = restored(spiky(), min_sqnr=0.0)
    assert not [c for c in done.journal.changes if c.key.pass_name == "restore-float"]


def test_a_second_run_changes_nothing() -> None:
    done = restored(spiky(), min_sqnr=20.0)
    again = apply([InsertQDQ(exclude=("b",)), RestoreFloat(min_sqnr=20.0)], done.proto, data=DATA)
    assert not [c for c in again.journal.changes if c.key.pass_name == "restore-float"]


def test_the_runs_budget_counts_where_the_pass_has_none() -> None:
    model = spiky()
    done = apply([InsertQDQ(), RestoreFloat()], model, data=DATA, budget=Budget(None, 20.0))
    assert float_products(done.proto) == ["b"]


def test_without_a_budget_or_data_it_declines() -> None:
    done = apply([InsertQDQ(), RestoreFloat()], spiky(), data=DATA)
    assert any("no budget" in r for r in done.reasons)
    quantized = apply(InsertQDQ(), spiky(), data=DATA).proto
    assert any("no data" in r for r in apply(RestoreFloat(), quantized, budget=Budget()).reasons)


def test_a_budget_beyond_reach_fails_and_says_how_close_it_came(tmp_path: Any) -> None:
    impossible = Budget(min_cosine=1.5, min_sqnr_db=None)
    result = graphopt.run(spiky(), [InsertQDQ(), RestoreFloat()], data=DATA, budget=impossible)
    assert result.report.verdict == "over budget"
    assert result.report.exit_code() == 1
    assert "is below 1.5" in result.report.verdict_reason
    with pytest.raises(graphopt.UserError, match="budget"):
        result.save(tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_pairs_that_serve_no_kernel_go_with_it() -> None:
    model, data = residual(), IMAGES
    done = apply([InsertQDQ(), RestoreFloat(min_sqnr=1000.0)], model, data=data)
    # Nothing keeps such a budget but float everywhere.
    assert done.ops["QuantizeLinear"] == 0
    assert done.ops["DequantizeLinear"] == 0
    assert done.ops["Conv"] == 3
    assert sqnr(model, done.proto, data) == 200


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_left_still_runs_on_integers(which: int) -> None:
    model, data = residual(), IMAGES
    quantized = apply(InsertQDQ(), model, data=data)
    state = GraphState(quantized.model, infer(quantized.model))
    from graphopt.passkit import PassContext, Rewriter
    from graphopt.pipeline.targets import get_target
    from graphopt.pipeline.teacher import Teacher

    rewriter = Rewriter(state, quantized.model.graph)
    ctx = PassContext(get_target("portable"))
    ctx.snapshot = Teacher(state)
    node = _restore.quantized_nodes(rewriter)[which]
    with rewriter.site(node, "test"):
        _restore.restore(rewriter, node, ctx)
        _restore.tidy(rewriter)
    proto = state.finish().to_proto()
    onnx.checker.check_model(proto)
    assert len(float_products(proto)) == 1
    kernels = executed(Model.load(proto)).ops
    assert kernels.get("QLinearConv") == 2
    assert sqnr(model, proto, data) > 25


def test_a_trial_leaves_no_trace() -> None:
    quantized = apply(InsertQDQ(), spiky(), data=DATA)
    before = quantized.proto.SerializeToString(deterministic=True)
    state = GraphState(quantized.model, infer(quantized.model))
    from graphopt.passkit import PassContext, Rewriter
    from graphopt.pipeline.targets import get_target
    from graphopt.pipeline.teacher import Teacher

    rewriter = Rewriter(state, quantized.model.graph)
    ctx = PassContext(get_target("portable"))
    ctx.snapshot = Teacher(state)
    nodes = _restore.quantized_nodes(rewriter)
    for node in nodes:
        with rewriter.trial(node):
            _restore.restore(rewriter, node, ctx)
            _restore.tidy(rewriter)
            assert node in GraphView(state, quantized.model.graph).nodes()
    assert not state.journal.changes
    assert state.finish().to_proto().SerializeToString(deterministic=True) == before


def test_exploring_measures_both_ways_and_what_lies_between() -> None:
    found = graphopt.explore(spiky(), "insert-qdq,restore-float", data=DATA)
    assert isinstance(found, Exploration)
    assert {u.op for u in found.units} == {"MatMul"}
    assert len(found.units) == 3
    worst = found.units[0]
    assert worst.alone is not None
    assert worst.alone.sqnr_db == min(u.alone.sqnr_db for u in found.units if u.alone is not None)
    counts = [len(t.spared) for t in found.tradeoffs]
    assert counts == [0, 1, 2, 3]
    assert found.tradeoffs[-1].score.sqnr_db == np.inf
    assert found.tradeoffs[0].bytes < found.tradeoffs[-1].bytes
    assert all(t.latency is not None and t.latency > 0 for t in found.tradeoffs)


def test_a_pipeline_without_a_search_cannot_be_explored() -> None:
    with pytest.raises(graphopt.UserError, match="no pass of this pipeline searches"):
        graphopt.explore(spiky(), "insert-qdq", data=DATA)


def test_glue_with_an_activation_behind_it_comes_to_an_end() -> None:
    """A residual Add whose Relu is part of its kernel, with a float node on either side."""
    model, data = residual(behind="Relu"), IMAGES
    found = graphopt.explore(model, "insert-qdq,restore-float", data=data)
    assert [len(t.spared) for t in found.tradeoffs] == [0, 1, 2, 3]
    assert found.tradeoffs[-1].score.sqnr_db > 120  # float, summed in another order
