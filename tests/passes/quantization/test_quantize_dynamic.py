from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, sqnr, types_of, weights_of

from graphopt.errors import UserError
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization.quantize_dynamic import QuantizeDynamic

MATMUL = "(float[M, 96] x) => (float[M, 40] y) { y = MatMul(x, w) }"
PIECES = {"DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2}
LSTM = "com.microsoft::DynamicQuantizeLSTM"


def quantized(model: onnx.ModelProto, least: float = 35, **given: Any) -> onnx.ModelProto:
    done = assert_rewrites(QuantizeDynamic(), model, **given)
    for optimize in ("none", "all"):
        measured = sqnr(model, done.proto, optimize=optimize)
        assert measured >= least, measured
    return done.proto


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 23])
def test_matmul(opset: int, tmp_path: Path) -> None:
    made = quantized(build(MATMUL, opset=opset, ir=8, w=(96, 40)), ops=PIECES)
    assert weights_of(made)["w_scale"].dims == [40]
    assert ort_ops(made, tmp_path) == ["DynamicQuantizeMatMul"]


def test_more_dims_of_the_activation() -> None:
    for x in ("2, 3, 96", "96"):
        body = MATMUL.replace("M, 96", x).replace("float[M, 40]", "float")
        quantized(build(body, w=(96, 40)), ops=PIECES)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("attrs", ["", ", alpha=0.5", ", beta=2.0", ", alpha=0.5, beta=0.0"])
def test_gemm(transposed: int, attrs: str, tmp_path: Path) -> None:
    body = f"(float[M, 96] x) => (float[M, 40] y) {{ y = Gemm<transB={transposed}{attrs}>(x, w, b) }}"
    w = (40, 96) if transposed else (96, 40)
    added = {} if "beta=0.0" in attrs else {"Add": 1}
    made = quantized(build(body, w=w, b=(40,)), ops={**PIECES, **added})
    assert weights_of(made)["w_quantized"].dims == [96, 40]
    assert ort_ops(made, tmp_path) == ["DynamicQuantizeMatMul"]


def test_products_of_one_activation_share_its_quantization(tmp_path: Path) -> None:
    body = """(float[M, 96] x) => (float[M, 40] p, float[M, 40] q, float[M, 40] r)
    { p = MatMul(x, a) q = Gemm(x, b, c) r = MatMul(x, d) }"""
    made = quantized(build(body, a=(96, 40), b=(96, 40), c=(40,), d=(96, 40)))
    assert ort_ops(made, tmp_path).count("DynamicQuantizeLinear") == 1
    assert ort_ops(made, tmp_path).count("MatMulIntegerToFloat") == 3


def test_weight_read_twice_is_stored_once() -> None:
    body = "(float[M, 96] x, float[M, 96] v) => (float y, float z) { y = MatMul(x, w) z = Gemm<alpha=0.5>(v, w) }"
    made = quantized(build(body, w=(96, 40)))
    assert types_of(made)["INT8"] == 1


def test_seven_bits() -> None:
    done = apply(QuantizeDynamic(reduce_range=True), build(MATMUL, w=(96, 40)))
    q = onnx.numpy_helper.to_array(weights_of(done.proto)["w_quantized"])
    assert q.min() >= -64
    assert q.max() <= 63
    assert q.max() > 50


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        ("(float[96, 96] x, float[96, 96] w) => (float y) { y = MatMul(x, w) }", None, "both operands"),
        ("(float[96, 5] x) => (float y) { y = MatMul(w, x) }", (40, 96), "left operand"),
        ("(float[3, 5, 96] x) => (float y) { y = MatMul(x, w) }", (3, 96, 40), "stack of matrices"),
        ("(float[96, 5] x) => (float y) { y = Gemm<transA=1>(x, w) }", (96, 40), "transposes its left"),
        ("(float[5, 96] x) => (float y) { y = Gemm<alpha=-1.0>(x, w) }", (96, 40), "alpha"),
        ("(float[5, 96] x, float[40] b) => (float y) { y = Gemm<beta=2.0>(x, w, b) }", (96, 40), "beta"),
        ("(float[5, 96] x) => (float y, float z) { y = MatMul(x, w) z = Relu(w) }", (96, 40), "read by Relu"),
        ("(float[5, 96] x) => (float y, float[96, 40] w) { y = MatMul(x, w) }", (96, 40), "graph output"),
        ("(float[5, 96] x) => (float y) { y = MatMul(x, w) }", (96, 2), "too few"),
        ("(float[1, 9, 9, 9] x) => (float y) { y = Conv(x, w) }", (9, 9, 3, 3), "ConvInteger"),
        (
            "(float[5, 1, 9] x) => (float y) { y = GRU<hidden_size=9>(x, w, w) }",
            (1, 27, 9),
            "no integer kernel",
        ),
        (
            "(float[5, 1, 16] x) => (float y) { y = LSTM<hidden_size=16>(x, w, w) }",
            (1, 64, 16),
            "target portable",
        ),
    ],
)
def test_refusals(body: str, shape: tuple[int, ...] | None, reason: str) -> None:
    assert_refuses(QuantizeDynamic(), build(body, **({} if shape is None else {"w": shape})), reason)


def test_other_types_old_opsets_and_kept_nodes() -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float16)
    assert_refuses(QuantizeDynamic(), build(MATMUL.replace("float[", "float16["), w=w), "float32 only")
    assert_refuses(QuantizeDynamic(), build(MATMUL, opset=10, ir=8, w=(96, 40)), "needs opset 11")
    assert QuantizeDynamic().least_opset() == 11
    assert_refuses(QuantizeDynamic(), build(MATMUL, w=(96, 40)), "is kept", keep=["y"])
    w32 = np.full((96, 40), np.nan, np.float32)
    assert_refuses(QuantizeDynamic(), build(MATMUL, w=w32), "not finite")
    with pytest.raises(ValueError, match="MatMul, Gemm, LSTM"):
        QuantizeDynamic(ops=("Conv",))


def test_globs() -> None:
    model = build(MATMUL, w=(96, 40))
    assert_refuses(QuantizeDynamic(exclude=("y",)), model)
    with pytest.raises(UserError, match="'q' matches no node"):
        apply(QuantizeDynamic(nodes=("q",)), model)


def test_if_body() -> None:
    body = """(float[M, 96] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[M, 40] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[M, 40] b) { b = MatMul(x, v) }>
    }"""
    model = build(body, w=(96, 40), v=(96, 40))
    doubled = {k: 2 * n for k, n in PIECES.items()}
    done = assert_rewrites(QuantizeDynamic(), model, ops={"If": 1, **doubled})
    assert sqnr(model, done.proto, {"x": np.ones((2, 96), np.float32), "c": np.array(True)}) > 30
    shared = build(body.replace("v)", "w)"), w=(96, 40))
    assert_refuses(QuantizeDynamic(), shared, "in another body")


# -- LSTM ------------------------------------------------------------------------------------------------


def lstm(attrs: str = "", inputs: str = "x, w, r, b", directions: int = 1, outputs: str = "y, h, c") -> Any:
    way = "bidirectional" if directions == 2 else "forward"
    body = f"""(float[7, 2, 24] x) => ({", ".join("float " + o for o in outputs.replace(" ", "").split(",") if o)}) {{
        {outputs} = LSTM<hidden_size=16, direction="{way}"{attrs}>({inputs})
    }}"""
    rng = np.random.default_rng(3)
    given: dict[str, Any] = {
        "w": rng.standard_normal((directions, 64, 24)).astype(np.float32) / 5,
        "r": rng.standard_normal((directions, 64, 16)).astype(np.float32) / 5,
        "b": rng.standard_normal((directions, 128)).astype(np.float32),
        "lens": np.array([7, 4], np.int32),
        "h0": rng.standard_normal((directions, 2, 16)).astype(np.float32),
        "c0": rng.standard_normal((directions, 2, 16)).astype(np.float32),
        "p": rng.standard_normal((directions, 48)).astype(np.float32),
    }
    return build(body, **{k: v for k, v in given.items() if k in inputs.replace(" ", "").split(",")})


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("inputs", ["x, w, r", "x, w, r, b", "x, w, r, b, lens, h0, c0", "x, w, r, , , h0"])
def test_lstm(directions: int, inputs: str) -> None:
    made = quantized(lstm(inputs=inputs, directions=directions), 28, target="ort-cpu", ops={LSTM: 1})
    assert weights_of(made)["w_quantized"].dims == [directions, 24, 64]
    assert weights_of(made)["r_scale"].dims == [directions, 64]


@pytest.mark.parametrize("outputs", ["y", ", h", "y, , c"])
def test_lstm_outputs(outputs: str) -> None:
    quantized(lstm(outputs=outputs), 28, target="ort-cpu", ops={LSTM: 1})


@pytest.mark.parametrize(
    "attrs",
    [
        ', activations=["Sigmoid", "Tanh", "Softsign"]',
        ', activations=["HardSigmoid", "Relu", "ScaledTanh"], activation_alpha=[0.2, 0.9], activation_beta=[0.5, 0.7]',
        ", clip=0.8",
        ", input_forget=1",
    ],
)
def test_lstm_attributes(attrs: str) -> None:
    quantized(lstm(attrs), 25, target="ort-cpu", ops={LSTM: 1})


def test_lstm_that_stays() -> None:
    refused = {
        "peepholes": lstm(inputs="x, w, r, b, , , , p"),
        "layout=1": lstm(", layout=1"),
    }
    for reason, model in refused.items():
        assert_refuses(QuantizeDynamic(), model, reason, target="ort-cpu")
    assert_refuses(QuantizeDynamic(), lstm(), "is not known to the target ort-cuda", target="ort-cuda")
    assert_refuses(QuantizeDynamic(), lstm(), "is kept", keep=["y"], target="ort-cpu")
    shared = lstm()
    shared.graph.node.append(onnx.helper.make_node("Relu", ["w"], ["z"]))
    shared.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [1, 64, 24]))
    assert_refuses(QuantizeDynamic(), shared, "another reader", target="ort-cpu")
