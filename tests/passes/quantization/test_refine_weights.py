"""refine-weights: layers of every kind come closer to the float model, and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.testing import Applied, apply
from graphopt_passes.quantization._quantized import find_quantized, set_weight
from graphopt_passes.quantization.insert_qdq import InsertQDQ
from graphopt_passes.quantization.quantize_weights import QuantizeWeights
from graphopt_passes.quantization.refine_weights import RefineWeights

W3 = QuantizeWeights(bits=3, min_elements=1, ops=("MatMul", "Gemm", "Conv", "ConvTranspose"))
CONVS = """(float[N, 3, 12, 12] x) => (float y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    c = Conv<group=32, pads=[2, 2, 2, 2], strides=[2, 2]>(r, w2, b2)
    s = Relu(c)
    d = Conv<group=2, dilations=[2, 2]>(s, w3)
    y = Flatten(d)
}"""
CONV_WEIGHTS = {"w1": (32, 3, 3, 3), "b1": (32,), "w2": (32, 1, 5, 5), "b2": (32,), "w3": (8, 16, 2, 2)}


def images(*shape: int) -> dict[str, Any]:
    """Inputs whose neighbors are alike, as those of real images are."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(shape)
    for axis in range(1, len(shape)):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return {"x": (noise / noise.std() + 0.5).astype(np.float32)}


def refined(
    model: onnx.ModelProto, data: Any, gain: float, before: Any = W3, **options: Any
) -> tuple[Applied, Applied]:
    """What quantization alone and refinement make of a model; the outputs gain at least that many dB."""
    plain = apply(before, model, data=data)
    done = apply([before, RefineWeights(**options)], model, data=data)
    assert any(c.key.pass_name == "refine-weights" for c in done.journal.changes), done.reasons
    rows = slice(0, 24)
    feeds = {name: values[rows] for name, values in data.items()}
    worst, best = sqnr(model, plain.proto, feeds), sqnr(model, done.proto, feeds)
    assert best >= worst + gain, (worst, best)
    assert plain.ops == done.ops
    return plain, done


def stored(done: Applied) -> dict[tuple[int, ...], Any]:
    """Integer matrices and filters by shape."""
    return {
        tuple(t.dims): onnx.numpy_helper.to_array(t).astype(int)
        for t in done.proto.graph.initializer
        if len(t.dims) > 1 and t.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    }


@pytest.mark.parametrize(
    ("options", "gain"),
    [
        ({}, 4),
        ({"method": "obq"}, 4),
        ({"method": "adaround"}, 4),
        ({"method": "nearest"}, 4),
        ({"scales": False}, 3),
        ({"sweeps": 0}, 4),
        ({"bias": False}, 3),
        ({"match": "weights"}, 1),
        ({"sequential": "no"}, 1),
        ({"damping": 0.01}, 4),
    ],
)
def test_convolutions(options: dict[str, Any], gain: float) -> None:
    model = build(CONVS, **CONV_WEIGHTS)
    _, done = refined(model, images(24, 3, 12, 12), gain, **options)
    changed = [c for c in done.journal.changes if c.key.pass_name == "refine-weights"]
    assert len(changed) == 3
    assert all("SQNR of the output" in c.why for c in changed)
    for q in stored(done).values():  # 3 bits stay 3 bits
        assert q.min() >= -4
        assert q.max() <= 3


def test_static_quantization() -> None:
    model = build(CONVS, **CONV_WEIGHTS)
    refined(model, images(64, 3, 12, 12), 0.4, before=InsertQDQ(weight_method="minmax"))


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products(block: int, symmetric: bool) -> None:
    model = build(
        """(float[N, 5, 40] x) => (float y) {
            a = MatMul(x, w1)
            b = Add(a, b1)
            c = Relu(b)
            y = MatMul(c, w2)
        }""",
        w1=(40, 32),
        b1=(32,),
        w2=(32, 8),
    )
    rng = np.random.default_rng(6)
    mix = rng.standard_normal((40, 40)) * np.linspace(0.05, 1, 40)
    data = {"x": (rng.standard_normal((128, 5, 40)) @ mix).astype(np.float32)}
    before = QuantizeWeights(bits=4, block_size=block, symmetric=symmetric, min_elements=1)
    refined(model, data, 3.5, before=before)


@pytest.mark.parametrize("flags", ["", "transB=1", "alpha=0.5, beta=2.0", "transA=1"])
def test_gemm(flags: str) -> None:
    turned, across = "transA" in flags, "transB" in flags
    body = f"(float[{'40, 6' if turned else '6, 40'}] x) => (float y) {{ y = Gemm<{flags}>(x, w, b) }}"
    model = build(body.replace("<>", ""), w=(8, 40) if across else (40, 8), b=(8,))
    rng = np.random.default_rng(7)
    mix = rng.standard_normal((40, 40)) * np.linspace(0.05, 1, 40)
    x = [(rng.standard_normal((6, 40)) @ mix).astype(np.float32) for _ in range(30)]
    data = {"x": np.stack([v.T if turned else v for v in x])}
    plain = apply(W3, model, data=[{"x": v} for v in data["x"]])
    done = apply([W3, RefineWeights()], model, data=[{"x": v} for v in data["x"]])
    feeds = {"x": data["x"][0]}
    assert sqnr(model, done.proto, feeds) > sqnr(model, plain.proto, feeds) + 3


def test_other_readers_keep_the_old_weights() -> None:
    body = """(float[N, 40] x) => (float y, float z) {
        y = MatMul(x, w)
        n = Neg(x)
        z = MatMul(n, w)
    }"""
    model = build(body, w=(40, 16))
    rng = np.random.default_rng(8)
    data = {"x": (rng.standard_normal((400, 40)) * np.linspace(0.1, 1, 40)).astype(np.float32)}
    data["x"] += data["x"][:, ::-1]
    done = apply([W3, RefineWeights()], model, data=data)
    plain = apply(W3, model, data=data)
    assert done.ops["DequantizeLinear"] == 2
    assert sqnr(model, done.proto, data) > sqnr(model, plain.proto, data) + 2


def test_intermediate_outputs_and_bodies() -> None:
    body = """(float[N, 40] x, bool flag) => (float y, float h) {
        h = MatMul(x, v)
        y = If (flag) <
            then_branch = then_g () => (float[N, 40] t) { t = MatMul(h, w) },
            else_branch = else_g () => (float[N, 40] e) { e = Identity(h) }>
    }"""
    model = build(body, v=(40, 40), w=(40, 40))
    rng = np.random.default_rng(9)
    mix = rng.standard_normal((40, 40)) * np.linspace(0.05, 1, 40)
    x = [(rng.standard_normal((8, 40)) @ mix).astype(np.float32) for _ in range(8)]
    data = [{"x": v, "flag": np.array(True)} for v in x]
    plain, done = (apply(passes, model, data=data) for passes in ([W3], [W3, RefineWeights()]))
    assert len([c for c in done.journal.changes if c.key.pass_name == "refine-weights"]) == 2
    assert sqnr(model, done.proto, data[0]) > sqnr(model, plain.proto, data[0]) + 2


def test_a_second_run_changes_nothing() -> None:
    model = build(CONVS, **CONV_WEIGHTS)
    data = images(24, 3, 12, 12)
    once = apply([W3, RefineWeights(scales=False)], model, data=data)
    again = apply([W3, RefineWeights(scales=False), RefineWeights(scales=False)], model, data=data)
    assert sqnr(once.proto, again.proto, {"x": data["x"]}) > 25
    first = {k: v for k, v in stored(once).items() if k == (32, 3, 3, 3)}
    assert (first[32, 3, 3, 3] == stored(again)[32, 3, 3, 3]).all()


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("(float[N, 3, 12] x) => (float y) { y = MatMul(x, w) }", {"w": (3, 12, 16)}, "3 axes, not 2"),
        (
            "(float[N, 8, 4, 4] x) => (float y) { y = ConvTranspose(x, w) }",
            {"w": (8, 8, 3, 3)},
            "ConvTranspose is no convolution",
        ),
        ("(float[N, 9000] x) => (float y) { y = MatMul(x, w) }", {"w": (9000, 2)}, "9000 inputs per output"),
    ],
)
def test_refusals(body: str, weights: Any, reason: str) -> None:
    model = build(body, **weights)
    dims = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
    data = {"x": np.random.default_rng(10).standard_normal(dims).astype(np.float32)}
    done = apply([W3, RefineWeights()], model, data=data)
    assert any(reason in r for r in done.reasons), done.reasons
    assert not [c for c in done.journal.changes if c.key.pass_name == "refine-weights"]


def test_without_data_or_inputs_that_say_anything() -> None:
    model = build("(float[N, 40] x) => (float y) { y = MatMul(x, w) }", w=(40, 16))
    assert any("no data" in r for r in apply([W3, RefineWeights()], model).reasons)
    zeros = {"x": np.zeros((4, 40), np.float32)}
    assert any("does not lower" in r for r in apply([W3, RefineWeights()], model, data=zeros).reasons)
    root = build("(float[N, 40] x) => (float y) { r = Log(x)  y = MatMul(r, w) }", w=(40, 16))
    broken = {"x": np.full((4, 40), -1, np.float32)}
    assert any("no finite inputs" in r for r in apply([W3, RefineWeights()], root, data=broken).reasons)


def test_models_without_quantized_weights_are_left_alone() -> None:
    model = build("(float[N, 40] x) => (float y) { y = MatMul(x, w) }", w=(40, 16))
    data = {"x": np.ones((4, 40), np.float32)}
    assert not apply(RefineWeights(), model, data=data).journal.changes


def test_kept_nodes() -> None:
    model = build("(float[N, 40] x) => (float y) { y = MatMul(x, w) }", w=(40, 16))
    data = {"x": np.ones((4, 40), np.float32)}
    done = apply([W3, RefineWeights()], model, data=data, keep=["y"])
    assert not [c for c in done.journal.changes if c.key.pass_name == "refine-weights"]


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"sweeps": -1}])
def test_options_out_of_range(options: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        RefineWeights(**options)


@dataclass(frozen=True)
class Rescale(Pass):
    """Scale the inputs of the second layer down, and its weights up, after the teacher was noted."""

    name: ClassVar[str] = "rescale"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        first, second = find_quantized(graph)
        for quantized, factor in ((first, 0.25), (second, 4.0)):
            q = graph.array(quantized.q)
            assert q is not None
            grid = replace(quantized.grid, scale=quantized.grid.scale * np.float32(factor))
            set_weight(graph, quantized, q, "scaled", grid=grid)


def test_layers_scaled_since_the_teacher_are_left_alone() -> None:
    model = build(
        "(float[N, 40] x) => (float y) { h = MatMul(x, v)  y = MatMul(h, w) }", v=(40, 40), w=(40, 40)
    )
    data = {"x": np.random.default_rng(11).standard_normal((64, 40)).astype(np.float32)}
    done = apply([QuantizeWeights(bits=4), Rescale(), RefineWeights()], model, data=data)
    assert sum("scaled against those of the float model" in r for r in done.reasons) == 2
