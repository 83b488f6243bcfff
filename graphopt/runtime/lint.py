"""The linter: predicts which nodes run as integer kernels, and asks onnxruntime whether that is so."""

from __future__ import annotations

from dataclasses import replace

from graphopt.errors import ProviderError
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.ir import Function
from graphopt.model import Model
from graphopt.quantization.kernels import predict
from graphopt.quantization.lint import LeftConversion, LintReport, LintRow, row_of
from graphopt.runtime.kernels import Executed, executed
from graphopt.runtime.session import RuntimeFailure, resolve_provider


def lint(model: Model, target: str = "ort-cpu", *, provider: str | None = "cpu") -> LintReport:
    """Say what every node of a quantized model runs as.

    Local functions are not looked into: runtimes inline them.

    Args:
        model: the model, which is not changed.
        target: "ort-cpu", "portable" (the same rules), "ort-cuda" or "tensorrt".
        provider: the execution provider to read the truth from; None: only predict. Where it is missing, or
            cannot load the model, the report says so.
    """
    truth, note = Executed(), ""
    runtime = ""
    if provider is not None:
        try:
            runtime = resolve_provider(provider)
            truth = executed(model, provider=provider)
        except (ProviderError, RuntimeFailure) as failure:
            which = runtime or provider
            problem = str(failure).partition("\n")[0]
            note = f"not compared with what {which} executes: {problem}"
            runtime = ""
    state = GraphState(model, infer(model))
    rows: list[LintRow] = []
    for body in model.bodies():
        if isinstance(body, Function):
            continue
        label = state.label(body)
        for prediction in predict(GraphView(state, body), target):
            row = row_of(prediction, label)
            ran = truth.nodes.get(prediction.node)
            if ran is not None and ran.op != "constant":
                row = replace(row, actual=ran.op, actual_integer=ran.integer, merged=row.merged or ran.merged)
            rows.append(row)
    left = tuple(
        LeftConversion(
            c.op, c.tensor, (c.node.name or c.node.outputs[0].name) if c.node else "", c.place == "weight"
        )
        for c in truth.conversions
        if c.place in ("inside", "weight")
    )
    if model.graph.functions and not note:
        note = "local functions were not looked into"
    return LintReport(str(model.path or ""), target, tuple(rows), left, runtime, note)
