"""Prediction against truth: random quantized models, and what onnxruntime executes of them, node by node."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from qdq_cases import Case

from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.ir import Node
from graphopt.model import Model
from graphopt.quantization.kernels import Prediction, predict
from graphopt.runtime.kernels import Executed, Ran, executed
from graphopt.runtime.session import RuntimeFailure

# onnxruntime 1.32 merges two pairs in a row there although a third reader needs the second one; moves a
# Transpose across a QuantizeLinear; and drops a Relu with the 16-bit pair behind it.
KNOWN = {729, 2368, 2940}


def predictions(model: Model) -> list[Prediction]:
    state = GraphState(model, infer(model))
    return [p for body in model.bodies() for p in predict(GraphView(state, body))]


def disagreement(prediction: Prediction, ran: Ran | None) -> bool:
    if ran is None or ran.op == "constant":
        return False  # onnxruntime removed it, or computed it while loading
    kernel = ran.op.removeprefix("Nhwc") if ran.integer else None
    return kernel != prediction.kernel


def compare(seeds: Iterable[int]) -> tuple[int, list[str]]:
    compared, wrong = 0, []
    for seed in seeds:
        model = Model.load(Case(seed).model)
        try:
            truth = executed(model)
        except RuntimeFailure:
            continue  # onnxruntime cannot load everything that it optimizes
        for p in predictions(model):
            compared += p.node in truth.nodes
            ran = truth.nodes.get(p.node)
            if disagreement(p, ran):
                wrong.append(f"seed {seed}, {p.node.op} {p.node.name}: {p.kernel} ({p.reason}), ran as {ran}")
    return compared, wrong


def test_a_sample_agrees() -> None:
    compared, wrong = compare(range(250))
    assert not wrong, "\n".join(wrong)
    assert compared > 600


@pytest.mark.slow
def test_the_whole_sweep_agrees() -> None:
    compared, wrong = compare(set(range(3000)) - KNOWN)
    assert not wrong, "\n".join(wrong)
    assert compared > 10_000


def test_every_float_node_between_pairs_has_a_reason() -> None:
    for seed in range(100):
        for p in predictions(Model.load(Case(seed).model)):
            assert (p.kernel is None) == bool(p.reason), (seed, p)
            if p.kernel is None and p.quantized and not p.merged and "becomes part" not in p.reason:
                assert p.fix, (seed, p)


def test_the_sweep_knows_a_wrong_prediction() -> None:
    node = Node("Conv")
    assert disagreement(Prediction(node, None, "stays float"), Ran("QLinearConv", integer=True))
    assert disagreement(Prediction(node, "QLinearConv"), Ran("FusedConv", integer=False))
    assert not disagreement(Prediction(node, "QLinearConv"), Ran("QLinearConv", integer=True))
    assert not Executed().nodes
