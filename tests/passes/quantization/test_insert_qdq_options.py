"""insert-qdq: options, selectors, ranges, bodies, refusals."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.runtime.kernels import executed
from graphopt.testing import Applied, apply, assert_same_interface
from graphopt_passes.quantization import insert_qdq
from graphopt_passes.quantization.insert_qdq import InsertQDQ

Arrays = np.ndarray[Any, Any]
TWO: dict[str, Any] = {"w": (6, 4, 3, 3), "b": (6,), "v": (5, 6, 3, 3)}
BODY = """(float[N, 4, 9, 9] x) => (float[N, 5, 5, 5] y) { c = Conv(x, w, b) r = Relu(c) y = Conv(r, v) }"""


def model(opset: int = 17) -> onnx.ModelProto:
    made: onnx.ModelProto = build(BODY, opset=opset, ir=8 if opset < 19 else 10, **TWO)
    return made


def data(n: int = 24) -> dict[str, Arrays]:
    return {"x": np.random.default_rng(0).standard_normal((n, 4, 9, 9)).astype(np.float32)}


def run(item: InsertQDQ, opset: int = 17, **options: Any) -> Applied:
    return apply(item, model(opset), data=data(), **options)


def initializers(done: Applied) -> dict[str, Arrays]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in done.proto.graph.initializer}


def scales(done: Applied) -> dict[str, Arrays]:
    return {k: v for k, v in initializers(done).items() if k.endswith("_scale")}


@pytest.mark.parametrize("observer", ["minmax", "moving", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_observers(observer: Any, method: Any) -> None:
    done = run(InsertQDQ(observer=observer, weight_method=method))
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2
    assert sqnr(model(), done.proto, data(), "all") > 18


def test_a_percentile_cuts_the_range() -> None:
    full, cut = (
        scales(run(i))["x_scale"] for i in (InsertQDQ(), InsertQDQ(observer="percentile", percentile=95))
    )
    assert cut < 0.8 * full


def test_per_tensor() -> None:
    done = run(InsertQDQ(per_channel=False))
    assert initializers(done)["w_scale"].shape == ()
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2
    assert initializers(run(InsertQDQ()))["w_scale"].shape == (6,)


def test_powers_of_two() -> None:
    done = run(InsertQDQ(power_of_two=True))
    for name, scale in scales(done).items():
        assert (np.frexp(scale)[0] == 0.5).all(), name
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2
    assert sqnr(model(), done.proto, data(), "all") > 25


def test_signed_activations() -> None:
    done = run(InsertQDQ(activations="int8"))
    assert int(initializers(done)["r_zero_point"]) == -128
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2
    done = run(InsertQDQ(activations="int8", symmetric=True))
    zeros = [v for k, v in initializers(done).items() if k.endswith("_zero_point")]
    assert not any(z.any() for z in zeros)
    # Without a zero point the range cannot imply the Relu, which stays, behind a pair of its own.
    assert "c_scale" in scales(done)
    assert sqnr(model(), done.proto, data(), "all") > 25


def test_symmetric_unsigned_activations_keep_relu_implied() -> None:
    done = run(InsertQDQ(symmetric=True))
    found = initializers(done)
    assert int(found["x_zero_point"]) == 128
    assert int(found["r_zero_point"]) == 0
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2


@pytest.mark.parametrize(("kind", "budget"), [("uint16", 40), ("int16", 40)])
def test_sixteen_bits(kind: Any, budget: float) -> None:
    item = InsertQDQ(activations=kind)
    assert item.least_opset() == 21
    done = run(item, opset=21)
    assert {v.dtype.name for k, v in initializers(done).items() if k == "x_zero_point"} == {kind}
    assert sqnr(model(21), done.proto, data()) > budget


def test_four_bit_and_unsigned_weights() -> None:
    assert InsertQDQ(weights="int4").least_opset() == 21
    assert InsertQDQ(weights="uint8").least_opset() == 13
    done = run(InsertQDQ(weights="int4"), opset=21)
    assert initializers(done)["w_quantized"].dtype.name == "int4"
    done = run(InsertQDQ(weights="uint8"))
    assert initializers(done)["w_quantized"].dtype == np.uint8
    assert sqnr(model(), done.proto, data()) > 25


def test_float_bias() -> None:
    done = run(InsertQDQ(bias="float"))
    assert initializers(done)["b"].dtype == np.float32
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 2


def test_reduced_range_where_sums_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(item: InsertQDQ) -> int:
        return int(np.abs(initializers(run(item))["w_quantized"].astype(int)).max())

    for saturating in (False, True):
        monkeypatch.setattr(insert_qdq, "saturates", lambda value=saturating: value)
        assert (largest(InsertQDQ()) <= 64) is saturating
    assert largest(InsertQDQ(reduce_range=False)) > 64
    assert largest(InsertQDQ(reduce_range=True)) <= 64


# -- selectors -----------------------------------------------------------------------------------------


def test_selectors() -> None:
    done = run(InsertQDQ(exclude=("y",)))
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 1
    assert "it is not among the nodes that were asked for" in done.reasons
    done = run(InsertQDQ(nodes=("c*",), ops=("Conv",)))
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": ("yy",)}, "no node has a name like 'yy'"),
        ({"exclude": ("conv*",)}, "no node has a name like"),
        ({"ops": ("Gemm",)}, "the model has no Gemm"),
        ({"ops": ("Softmax",)}, "no integer kernel for the operator 'Softmax'"),
    ],
)
def test_selectors_that_match_nothing(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(InsertQDQ(**options))


# -- ranges --------------------------------------------------------------------------------------------


def test_no_data() -> None:
    with pytest.raises(UserError, match="needs typical inputs"):
        apply(InsertQDQ(), model())


def test_without_anything_to_quantize_no_data_is_needed() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"
    assert not apply(InsertQDQ(), build(text, ir=8, opset=17)).journal.changes


class Book:
    """Ranges that the user handed in."""

    def __init__(self, ranges: dict[str, tuple[float, float]]) -> None:
        self.ranges = ranges
        self.checked: list[Model] = []

    def check(self, model: Model) -> None:
        self.checked.append(model)

    def get(self, name: str) -> tuple[float, float] | None:
        return self.ranges.get(name)


def test_ranges_of_the_user_need_no_data_and_win() -> None:
    book = Book({"x": (-2.0, 2.0), "r": (0.0, 5.1), "y": (-20.0, 31.0)})
    done = execute(Model.load(model()), [InsertQDQ()], Settings(get_target("portable"), ranges=book))
    values = {t.name: t.values for body in done.model.bodies() for t in body.initializers}
    assert len(book.checked) == 1
    assert float(values["x_scale"]) == pytest.approx(4 / 255)
    assert float(values["r_scale"]) == pytest.approx(0.02)
    assert int(values["y_zero_point"]) == 100
    del book.ranges["y"]  # as of what was never seen to be finite
    done = execute(Model.load(model()), [InsertQDQ()], Settings(get_target("portable"), ranges=book))
    assert [r.reason for r in done.journal.refusals if "no values of y were seen" in r.reason]
    assert done.journal.changes
    book.ranges.clear()
    with pytest.raises(UserError, match="needs typical inputs"):
        execute(Model.load(model()), [InsertQDQ()], Settings(get_target("portable"), ranges=book))


def test_values_that_are_not_finite() -> None:
    text = (
        "(float[M, 4] x) => (float[M, 4] y) { i = Reciprocal(z) e = Add(x, i) p = MatMul(e, w) y = Erf(p) }"
    )
    net = build(text, ir=8, opset=17, z=np.zeros(4, np.float32), w=(4, 4))
    done = apply(InsertQDQ(), net, data={"x": np.ones((8, 4), np.float32)})
    assert not done.journal.changes
    assert any("not finite" in r for r in done.reasons)


def test_weights_that_are_not_finite() -> None:
    net = build(
        "(float[M, 4] x) => (float[M, 4] y) { p = MatMul(x, w) y = Erf(p) }",
        ir=8,
        opset=17,
        w=np.full((4, 4), np.nan, np.float32),
    )
    done = apply(InsertQDQ(), net, data={"x": np.ones((8, 4), np.float32)})
    assert not done.journal.changes
    assert "its weight w is not finite" in done.reasons


# -- where ---------------------------------------------------------------------------------------------

IF = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, bool c) => (float[N, 3] y)
    <float[4, 3] w = {1,2,3,4,-5,6,7,-8,9,10,11,-12}> {
    e = Erf(x)
    y = If (c) <
        then_branch = t () => (float[N, 3] p) { q = MatMul(e, w) p = Relu(q) },
        else_branch = f () => (float[N, 3] n) { m = MatMul(x, w) r = Relu(m) n = Neg(r) }
    > }"""


def test_in_the_branches_of_an_if() -> None:
    net = onnx.parser.parse_model(IF)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 4)).astype(np.float32)
    given = [{"x": x[i : i + 4], "c": np.array(i % 8 == 0)} for i in range(0, 16, 4)]
    done = apply(InsertQDQ(), net, data=given)
    assert_same_interface(net, done.proto)
    assert len(done.journal.changes) == 2
    for branch in (True, False):
        feeds = {"x": x, "c": np.array(branch)}
        assert sqnr(net, done.proto, feeds) > 25
        assert sqnr(net, done.proto, feeds, "all") > 25
    ops = executed(Model.load(done.proto)).ops
    assert ops["MatMulIntegerToFloat"] == ops["QLinearMatMul"] == 1
    assert not apply(InsertQDQ(), done.proto, data=given).journal.changes


def test_in_the_body_of_a_loop() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)
        <float[3, 3] w = {0.5,0.2,-0.3,0.4,-0.5,0.1,0.3,-0.2,0.4}, int64 n = {3}, bool t = {1}> {
        y = Loop (n, t, x) <body = b (int64 i, bool go, float[N, 3] s) => (bool on, float[N, 3] r)
            { on = Identity(go) p = MatMul(s, w) r = Tanh(p) }> }"""
    net = onnx.parser.parse_model(text)
    given = {"x": np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)}
    done = apply(InsertQDQ(), net, data=given)
    assert len(done.journal.changes) == 1
    assert sqnr(net, done.proto, given) > 22
    assert executed(Model.load(done.proto)).ops["MatMulIntegerToFloat"] == 1


def test_local_functions_are_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N, 3] x) => (float[N, 3] y)
        <float[3, 3] w = {1,2,3,4,5,6,7,8,9}> { y = f.mine(x, w) }
        <domain: "f", opset_import: ["" : 17]> mine (a, b) => (c) { c = MatMul(a, b) }"""
    given = {"x": np.ones((8, 3), np.float32)}
    done = apply(InsertQDQ(), onnx.parser.parse_model(text), data=given)
    assert not done.journal.changes
    assert any("local functions" in r for r in done.reasons)


def test_cuda_has_no_kernels_and_tensorrt_wants_symmetric_integers() -> None:
    done = run(InsertQDQ(), target="ort-cuda")
    assert not done.journal.changes
    assert any("quantize-weights" in r for r in done.reasons)
    done = run(InsertQDQ(), target="tensorrt")
    found = initializers(done)
    assert found["b"].dtype == np.float32
    assert {v.dtype.name for k, v in found.items() if k.endswith("_zero_point")} == {"int8"}
    assert not any(v.any() for k, v in found.items() if k.endswith("_zero_point"))
    assert done.ops == {"QuantizeLinear": 2, "DequantizeLinear": 4, "Conv": 2, "Relu": 1}
    assert sqnr(model(), done.proto, data()) > 25
    with pytest.raises(UserError, match="tensorrt does not take uint8 activations"):
        run(InsertQDQ(activations="uint8"), target="tensorrt")


def test_kept_nodes_stay_float() -> None:
    done = run(InsertQDQ(), keep=["r"])
    # Its range cannot stand for a Relu that has to stay.
    assert "c_scale" in scales(done)
    assert any(n.op_type == "Relu" for n in done.proto.graph.node)
    done = run(InsertQDQ(), keep=["y"])
    assert executed(Model.load(done.proto)).ops["QLinearConv"] == 1


def test_one_site_per_node_and_any_of_them_can_be_left_out() -> None:
    full = run(InsertQDQ())
    assert [c.key.anchor for c in full.journal.changes] == ["c", "y"]
    for change in full.journal.changes:
        skipped = run(Skipping(change.key.anchor))
        assert executed(Model.load(skipped.proto)).ops["QLinearConv"] == 1
        assert sqnr(model(), skipped.proto, data(), "all") > 25


class Skipping(InsertQDQ):
    """The pass when bisection withholds one of its sites."""

    name: ClassVar[str] = "insert-qdq"

    def __init__(self, anchor: str) -> None:
        super().__init__()
        object.__setattr__(self, "anchor", anchor)

    def run(self, graph: Any, ctx: Any) -> None:
        journal = graph._state.journal
        allows = journal.allows
        anchor = self.__dict__["anchor"]
        journal.allows = lambda key: key.anchor != anchor and allows(key)
        super().run(graph, ctx)
