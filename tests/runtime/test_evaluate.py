"""Evaluating nodes: one session for all, guards against what kills a process, reasons for the rest."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.ir import Constant, Node, Tensor
from graphopt.model import Model
from graphopt.runtime import evaluate as module
from graphopt.runtime.evaluate import evaluate

OPSETS = {"": 17}


def nodes_of(text: str, opset: int = 17, extra: str = "") -> tuple[list[Node], dict[str, Tensor], Model]:
    m = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}{extra}]> {text}')
    model = Model.load(m)
    tensors = {t.name: t for n in model.graph.nodes for t in (*n.inputs, *n.outputs)}
    tensors |= {t.name: t for t in model.graph.inputs}
    return list(model.graph.nodes), tensors, model


def run(
    text: str, feeds: dict[str, np.ndarray], **kwargs: object
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    nodes, tensors, model = nodes_of(text)
    values, reasons = evaluate(
        nodes, {tensors[k]: v for k, v in feeds.items()}, OPSETS, model.graph.functions, **kwargs
    )
    return {t.name: v for t, v in values.items()}, {n.outputs[0].name: r for n, r in reasons.items()}


def test_a_batch_is_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *a, **k: opened.append(1) or original(*a, **k))
    values, reasons = run(
        "g(float[2,3] x) => (int64[1] d) { s = Shape(x) i = Constant<value_ints=[0]>() d = Gather(s, i)"
        " c = Cast<to=1>(d) n = Neg(c) }",
        {"x": np.ones((2, 3), np.float32)},
    )
    assert reasons == {}
    assert len(opened) == 1
    assert values["d"].tolist() == [2]
    assert values["n"].tolist() == [-2.0]
    assert values["n"].dtype == np.float32


def test_one_bad_node_does_not_block_the_others() -> None:
    values, reasons = run(
        "g(float[2,3] x, float[4] y) => (float[2,3] z)"
        " { a = Neg(x) b = Add(x, y) c = Abs(b) d = Abs(a) e = Exp(y) z = Identity(c) }",
        {"x": np.ones((2, 3), np.float32), "y": np.ones(4, np.float32)},
    )
    assert set(values) == {"a", "d", "e"}
    assert set(reasons) == {"b", "c", "z"}
    assert "inputs could not be computed" in reasons["c"]
    assert "inputs could not be computed" not in reasons["b"]


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("a", "b", "why"), [(7, 0, "by zero"), ("min", -1, "overflow")])
def test_divisions_that_kill_the_process_are_declined(
    op: str, dtype: type, a: object, b: int, why: str
) -> None:
    name = {np.int32: "int32", np.int64: "int64"}[dtype]
    low = np.iinfo(dtype).min if a == "min" else a
    # The divisor is computed within the batch, so it must be known before the division is run.
    values, reasons = run(
        f"g({name}[2] x, {name}[2] y) => ({name}[2] z) {{ m = Neg(y) n = Neg(m) z = {op}(x, n) w = Neg(x) }}",
        {"x": np.array([8, low], dtype), "y": np.array([2, b], dtype)},
    )
    assert set(values) == {"m", "n", "w"}
    assert why in reasons["z"]


def test_ordinary_divisions_are_run() -> None:
    values, reasons = run(
        "g(int64[2] x, int64[2] y) => (int64[2] z) { a = Add(x, y) b = Div(a, y) z = Mod(b, y) }",
        {"x": np.array([7, -9]), "y": np.array([2, -1])},
    )
    assert reasons == {}
    assert values["b"].tolist() == [4, 10]
    floats, reasons = run(
        "g(float[2] x) => (float[2] z) { a = Neg(x) z = Div(x, a) }", {"x": np.zeros(2, np.float32)}
    )
    assert reasons == {}
    assert np.isnan(floats["z"]).all()


def test_domains_are_imported() -> None:
    text = "g(float[4] x) => (float[4] y) { y = com.microsoft.QuickGelu(x) }"
    nodes, tensors, _ = nodes_of(text, extra=', "com.microsoft": 1')
    values, reasons = evaluate(nodes, {tensors["x"]: np.ones(4, np.float32)}, OPSETS)
    assert reasons == {}
    assert values[tensors["y"]][0] == pytest.approx(1 / (1 + np.exp(-1.702)), abs=1e-6)


def test_an_unknown_op_has_a_reason_and_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    body = " ".join(f"y{i} = foo.Bar(x)" for i in range(40))
    nodes, tensors, _ = nodes_of(f"g(float[4] x) => (float[4] z) {{ {body} z = Neg(x) }}", extra=', "foo": 1')
    opened = []
    original = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *a, **k: opened.append(1) or original(*a, **k))
    values, reasons = evaluate(nodes, {tensors["x"]: np.ones(4, np.float32)}, OPSETS)
    assert [t.name for t in values] == ["z"]
    assert len(reasons) == 40
    assert len(opened) < 30


def test_sequences_pass_between_stages_but_are_not_returned() -> None:
    values, reasons = run(
        "g(int64[4] x, int64[2] y) => (int64[2] z) { s = SplitToSequence(x, y) k = Neg(y) d = Div(k, y)"
        " i = Constant<value_int=0>() a = SequenceAt(s, i) z = Div(a, d) }",
        {"x": np.arange(4), "y": np.array([2, 2])},
    )
    assert reasons == {}
    assert values["z"].tolist() == [0, -1]
    assert "s" not in values


def test_only_what_is_wanted_is_returned() -> None:
    nodes, tensors, _ = nodes_of("g(float[4] x) => (float[4] y) { a = Neg(x) b = Abs(a) y = Exp(b) }")
    values, _ = evaluate(nodes, {tensors["x"]: np.zeros(4, np.float32)}, OPSETS, wanted=[tensors["y"]])
    assert [t.name for t in values] == ["y"]


def test_dtypes_that_numpy_lacks_and_strings() -> None:
    nodes, tensors, _ = nodes_of("g(bfloat16[2] x) => (float[2] y) { i = Identity(x) y = Cast<to=1>(i) }")
    x = np.array([1.5, -2], np.float32).astype(ml_dtypes.bfloat16)
    values, reasons = evaluate(nodes, {tensors["x"]: x}, OPSETS)
    assert reasons == {}
    assert values[tensors["i"]].dtype == x.dtype
    assert values[tensors["y"]].tolist() == [1.5, -2.0]
    nodes, tensors, _ = nodes_of("g(string[2] x) => (bool[2] y) { y = Equal(x, x) }", opset=19)
    values, reasons = evaluate(nodes, {tensors["x"]: np.array(["a", "b"], object)}, {"": 19})
    assert reasons == {}
    assert values[tensors["y"]].all()


def test_constants_of_the_model_are_no_feeds_by_themselves() -> None:
    m = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g(float[2] x) => (float[2] y) { y = Add(w, w) }'
    )
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model = Model.load(m)
    w = model.graph.nodes[0].inputs[0]
    assert isinstance(w, Constant)
    values, reasons = evaluate(list(model.graph.nodes), {w: w.values}, OPSETS)
    assert reasons == {}
    assert values[model.graph.outputs[0]].tolist() == [2.0, 2.0]


def test_functions_and_bodies_with_captures() -> None:
    m = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "f": 1]>'
        "g(float[2] x, bool c) => (float[2] y) { h = f.twice(x) y = If (c) <"
        "then_branch = t() => (float[2] a) { a = Add(h, x) },"
        "else_branch = e() => (float[2] b) { b = Neg(h) }> }"
        '<domain: "f", opset_import: ["": 17]> twice(a) => (b) { b = Add(a, a) }'
    )
    model = Model.load(m)
    x, c = model.graph.inputs
    feeds = {x: np.array([1, 2], np.float32), c: np.array(True)}
    values, reasons = evaluate(model.graph.nodes, feeds, model.opset_imports, model.graph.functions)
    assert reasons == {}
    assert values[model.graph.outputs[0]].tolist() == [3.0, 6.0]
