from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, sqnr, types_of, weights_of

from graphopt.errors import UserError
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization.quantize_weights import QuantizeWeights

MATMUL = "(float[M, 96] x) => (float[M, 40] y) { y = MatMul(x, w) }"
GEMM = "(float[M, 96] x) => (float[M, 40] y) { y = Gemm(x, w, b) }"
CONV = "(float[1, 32, 8, 8] x) => (float[1, 24, 8, 8] y) { y = Conv<pads=[1, 1, 1, 1]>(x, w, b) }"
NBITS = "com.microsoft::MatMulNBits"


def quantized(pass_: QuantizeWeights, model: onnx.ModelProto, least: float, **given: Any) -> onnx.ModelProto:
    """The rewritten model, which agrees with the old one to at least that many dB."""
    done = assert_rewrites(pass_, model, **given)
    measured = sqnr(model, done.proto)
    assert measured >= least, measured
    return done.proto


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 40),
        ({"symmetric": False}, 40),
        ({"method": "minmax"}, 38),
        ({"block_size": 32}, 43),
        ({"bits": 4}, 17),
        ({"bits": 4, "symmetric": False}, 17),
        ({"bits": 4, "block_size": 32}, 19),
        ({"bits": 4, "block_size": 32, "symmetric": False}, 20),
        ({"bits": 4, "block_size": 64}, 17),  # the second block is not full
        ({"bits": 3, "block_size": 16}, 13),
        ({"bits": 2, "block_size": 16}, 6),
        ({"bits": 2, "block_size": 16, "symmetric": False}, 7),
    ],
)
def test_product(options: dict[str, Any], least: float) -> None:
    model = quantized(
        QuantizeWeights(**options), build(MATMUL, w=(96, 40)), least, ops={"DequantizeLinear": 1, "MatMul": 1}
    )
    bits = options.get("bits", 8)
    kind = ("INT" if options.get("symmetric", True) else "UINT") + str(max(bits, 4))
    assert types_of(model)[kind] == (1 if options.get("symmetric", True) else 2)


@pytest.mark.parametrize(("bits", "levels"), [(8, 256), (4, 16), (3, 8), (2, 4)])
def test_no_more_levels_than_bits(bits: Any, levels: int) -> None:
    done = apply(QuantizeWeights(bits=bits), build(MATMUL, w=(96, 40)))
    q = onnx.numpy_helper.to_array(weights_of(done.proto)["w_quantized"]).astype(int)
    assert len(np.unique(q)) <= levels
    assert q.min() >= -levels // 2
    assert q.max() < levels // 2


def test_searched_scales_are_better() -> None:
    model = build(MATMUL, w=(96, 40))
    found = [sqnr(model, apply(QuantizeWeights(bits=4, method=m), model).proto) for m in ("minmax", "mse")]
    assert found[1] > found[0] + 0.5


def test_two_bits_as_they_are() -> None:
    model = build(MATMUL, opset=25, ir=13, w=(96, 40))
    done = assert_rewrites(QuantizeWeights(bits=2, block_size=16, native=True), model)
    assert types_of(done.proto)["INT2"] == 1
    same = apply(QuantizeWeights(bits=2, block_size=16), model)
    assert sqnr(done.proto, same.proto) > 100


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("block", [0, 32])
def test_gemm(transposed: int, block: int) -> None:
    body = GEMM.replace("Gemm", f"Gemm<transB={transposed}, alpha=0.5, beta=2.0>")
    model = build(body, w=(40, 96) if transposed else (96, 40), b=(40,))
    made = quantized(QuantizeWeights(block_size=block), model, 38)
    assert weights_of(made)["w_scale"].dims == ([40] if not block else [40, 3] if transposed else [3, 40])


def test_gemm_and_matmul_with_the_weight_on_the_left() -> None:
    model = build("(float[96, 5] x) => (float[40, 5] y) { y = MatMul(w, x) }", w=(40, 96))
    assert weights_of(quantized(QuantizeWeights(), model, 38))["w_scale"].dims == [40]
    body = "(float[96, 5] x) => (float[40, 5] y) { y = Gemm<transA=1>(w, x) }"
    quantized(QuantizeWeights(block_size=32), build(body, w=(96, 40)), 38)


def test_stack_of_matrices() -> None:
    model = build("(float[3, 5, 96] x) => (float[3, 5, 40] y) { y = MatMul(x, w) }", w=(3, 96, 40))
    quantized(QuantizeWeights(), model, 38)
    made = quantized(QuantizeWeights(bits=4, block_size=32), model, 18)
    assert weights_of(made)["w_scale"].dims == [3, 3, 40]


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"bits": 4, "block_size": 16}, {"block_size": 64}])
def test_conv(options: dict[str, Any]) -> None:
    made = quantized(QuantizeWeights(**options), build(CONV, w=(24, 32, 3, 3), b=(24,)), 17)
    blocked = options.get("block_size") == 16
    assert weights_of(made)["w_scale"].dims == ([24, 2, 3, 3] if blocked else [24])


@pytest.mark.parametrize(
    ("op", "x", "w"),
    [
        ("Conv<group=8>", [1, 8, 9, 9], (8, 1, 7, 7)),
        ("Conv<group=2, dilations=[2, 2]>", [1, 16, 9, 9], (8, 8, 3, 3)),
        ("Conv", [1, 16, 30], (12, 16, 5)),
        ("Conv", [1, 4, 6, 6, 6], (6, 4, 3, 3, 3)),
    ],
)
def test_kinds_of_conv(op: str, x: list[int], w: tuple[int, ...]) -> None:
    model = build(f"(float{x} x) => (float y) {{ y = {op}(x, w) }}", w=w)
    quantized(QuantizeWeights(), model, 38)


def test_conv_transpose_if_asked_for() -> None:
    body = "(float[1, 16, 6, 6] x) => (float y) { y = ConvTranspose<group=2>(x, w) }"
    model = build(body, w=(16, 8, 3, 3))
    assert not apply(QuantizeWeights(), model).journal.changes
    quantized(QuantizeWeights(ops=("ConvTranspose",)), model, 38)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_weights_if_asked_for(op: str, gates: int) -> None:
    body = (
        f'(float[7, 2, 24] x) => (float y) {{ y = {op}<hidden_size=16, direction="bidirectional">(x, w, r) }}'
    )
    model = build(body, w=(2, gates * 16, 24), r=(2, gates * 16, 16))
    quantized(QuantizeWeights(ops=("LSTM", "GRU", "RNN")), model, 25, ops={op: 1, "DequantizeLinear": 2})


def test_opsets() -> None:
    for opset in (13, 17, 19, 21, 23):
        assert_rewrites(QuantizeWeights(), build(MATMUL, opset=opset, w=(96, 40)))
    assert_refuses(QuantizeWeights(), build(MATMUL, opset=12, w=(96, 40)), "needs opset 13, this is 12")
    for options in ({"bits": 4}, {"block_size": 32}):
        assert QuantizeWeights(**options).least_opset() == 21
        assert_refuses(QuantizeWeights(**options), build(MATMUL, opset=20, w=(96, 40)), "needs opset 21")
    assert QuantizeWeights().least_opset() == 13
    assert QuantizeWeights(bits=2, native=True).least_opset() == 25
    assert QuantizeWeights(bits=4, block_size=32, form="matmulnbits").least_opset() == 0


def test_half_precision() -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float16)
    model = build(MATMUL.replace("float[", "float16["), w=w)
    made = quantized(QuantizeWeights(bits=4, block_size=32), model, 18)
    assert weights_of(made)["w_scale"].data_type == onnx.TensorProto.FLOAT16
    assert_refuses(
        QuantizeWeights(), build(MATMUL.replace("float[", "float16["), opset=17, w=w), "needs opset 19"
    )


def test_shared_by_products_that_agree() -> None:
    body = """(float[M, 96] x, float[M, 96] v) => (float[M, 40] y, float[M, 40] z)
    { y = MatMul(x, w) z = Gemm(v, w) }"""
    quantized(
        QuantizeWeights(), build(body, w=(96, 40)), 38, ops={"DequantizeLinear": 1, "MatMul": 1, "Gemm": 1}
    )


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("z = Relu(w)", "also read by Relu"),
        ("z = MatMul(w, v)", "disagree about which axis"),
        ("z = Gemm<transB=1>(v, w)", "disagree about which axis"),
    ],
)
def test_shared_with_others(other: str, reason: str) -> None:
    model = build(
        f"(float[64, 64] x, float[64, 64] v) => (float y, float z) {{ y = MatMul(x, w) {other} }}", w=(64, 64)
    )
    assert_refuses(QuantizeWeights(), model, reason)


def test_one_reader_is_not_selected() -> None:
    body = "(float[M, 96] x) => (float y, float z) { a: y = MatMul(x, w) b: z = MatMul(x, w) }"
    model = build(body.replace("a: ", "").replace("b: ", ""), w=(96, 40))
    model.graph.node[0].name, model.graph.node[1].name = "first", "second"
    assert_refuses(QuantizeWeights(nodes=("first",)), model, "second, which is not selected")
    assert_refuses(QuantizeWeights(), model, "is kept", keep=["second"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: np.where(w > 2, np.inf, w).astype(np.float32), "not finite"),
        (lambda w: w.astype(np.float64), "neither float32 nor float16"),
        (lambda w: w[:, :1], "too few"),
    ],
)
def test_weights_that_stay(change: Any, reason: str) -> None:
    w = change(np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32))
    kind = "double" if w.dtype == np.float64 else "float"
    body = MATMUL.replace("float", kind).replace("[M, 40]", f"[M, {w.shape[1]}]")
    assert_refuses(QuantizeWeights(), build(body, w=w), reason)


def test_graph_output_kept_and_overridable() -> None:
    body = "(float[M, 96] x) => (float[M, 40] y, float[96, 40] w) { y = MatMul(x, w) }"
    assert_refuses(QuantizeWeights(), build(body, w=(96, 40)), "graph output")
    assert_refuses(QuantizeWeights(), build(MATMUL, w=(96, 40)), keep=["w"])
    assert_refuses(QuantizeWeights(), build(MATMUL, w=(96, 40)), "is kept", keep=["y"])
    default = build(MATMUL.replace("x)", "x, float[96, 40] w)", 1), w=(96, 40))
    assert_refuses(QuantizeWeights(), default, "can be overridden")


def test_would_not_shrink() -> None:
    body = MATMUL.replace("96", "4").replace("40", "20")
    assert_refuses(QuantizeWeights(block_size=16, min_elements=0), build(body, w=(4, 20)), "would not shrink")


def test_products_of_activations_are_no_candidates() -> None:
    model = build("(float[4, 4] x, float[4, 4] v) => (float y) { y = MatMul(x, v) }")
    assert not assert_refuses(QuantizeWeights(), model).reasons


IF = """(float[M, 96] x, bool c) => (float y) {
    y = If (c) <then_branch = t () => (float[M, 40] a) { a = MatMul(x, w) },
                else_branch = e () => (float[M, 40] b) { OTHER }>
}"""


def test_weight_of_one_branch_moves_into_it() -> None:
    model = build(IF.replace("OTHER", "b = MatMul(x, v)"), w=(96, 40), v=(96, 40))
    made = assert_rewrites(QuantizeWeights(bits=4), model, ops={"If": 1, "MatMul": 2, "DequantizeLinear": 2})
    assert sqnr(model, made.proto, {"x": np.ones((2, 96), np.float32), "c": np.array(True)}) > 17
    assert "DequantizeLinear" not in [n.op_type for n in made.proto.graph.node]


def test_weight_of_two_branches_stays_outside() -> None:
    model = build(IF.replace("OTHER", "n = Neg(x) b = MatMul(n, w)"), w=(96, 40))
    made = assert_rewrites(
        QuantizeWeights(bits=4), model, ops={"If": 1, "MatMul": 2, "Neg": 1, "DequantizeLinear": 1}
    )
    assert "DequantizeLinear" in [n.op_type for n in made.proto.graph.node]
    for flag in (True, False):
        assert sqnr(model, made.proto, {"x": np.ones((2, 96), np.float32), "c": np.array(flag)}) > 17


def test_loop_body() -> None:
    body = """(float[5, 64] x, int64 n) => (float y) {
        y = Loop (n, , x) <body = b (int64 i, bool k, float[5, 64] s) => (bool k2, float[5, 64] t)
            { k2 = Identity(k) m = MatMul(s, w) t = Tanh(m) }>
    }"""
    model = build(body, w=(64, 64))
    quantized_ = assert_rewrites(QuantizeWeights(), model)
    feeds = {"x": np.full((5, 64), 0.1, np.float32), "n": np.array(2)}
    assert sqnr(model, quantized_.proto, feeds) > 25


def test_globs() -> None:
    model = build(MATMUL, w=(96, 40))
    assert_rewrites(QuantizeWeights(nodes=("y",)), model)
    assert_refuses(QuantizeWeights(exclude=("y*",)), model)
    for given in ({"nodes": ("q*",)}, {"exclude": ("q*",)}):
        with pytest.raises(UserError, match="'q\\*' matches no node"):
            apply(QuantizeWeights(**given), model)
    inner = build(IF.replace("OTHER", "b = MatMul(x, v)"), w=(96, 40), v=(96, 40))
    assert_rewrites(QuantizeWeights(nodes=("a",)), inner, ops={"If": 1, "MatMul": 2, "DequantizeLinear": 1})


@pytest.mark.parametrize(
    "given",
    [{"block_size": 5}, {"ops": ("Relu",)}, {"form": "matmulnbits"}, {"native": True}],
)
def test_options_that_make_no_sense(given: Any) -> None:
    with pytest.raises(ValueError, match=r"block_size|ops|native"):
        QuantizeWeights(**given)


# -- MatMulNBits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_matmulnbits_is_the_same_product(bits: Any, block: int, symmetric: bool) -> None:
    model = build(MATMUL.replace("96", "100"), w=(100, 40))  # the last block is not full
    options: dict[str, Any] = {"bits": bits, "block_size": block, "symmetric": symmetric}
    plain = apply(QuantizeWeights(**options), model)
    packed = assert_rewrites(
        QuantizeWeights(**options, form="matmulnbits", accuracy_level=0),
        model,
        target="ort-cpu",
        ops={NBITS: 1},
    )
    assert sqnr(plain.proto, packed.proto) > 100
    rounded = apply(QuantizeWeights(**options, form="matmulnbits"), model, target="ort-cpu")
    assert 100 > sqnr(plain.proto, rounded.proto) > 35


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (40,), (1, 40), (5, 40), (1,)])
def test_matmulnbits_of_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    body = GEMM.replace("M", "5").replace("Gemm", f"Gemm<transB={transposed}, alpha=0.5>")
    given: dict[str, Any] = {"w": (40, 96) if transposed else (96, 40)}
    if bias is None:
        body = body.replace(", b)", ")")
    else:
        given["b"] = bias
    model = build(body, opset=17, ir=8, **given)
    vector = bias is None or bias == (40,)
    options: dict[str, Any] = {"bits": 4, "block_size": 32, "symmetric": False}
    done = assert_rewrites(
        QuantizeWeights(**options, form="matmulnbits", accuracy_level=0),
        model,
        target="ort-cpu",
        ops={NBITS: 1} if vector else {NBITS: 1, "Add": 1},
    )
    newer = build(body, **given)
    assert sqnr(apply(QuantizeWeights(**options), newer).proto, done.proto) > 100


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        (MATMUL, (96, 40), "target"),
        ("(float[96, 5] x) => (float y) { y = MatMul(w, x) }", (40, 96), "left operand"),
        ("(float[3, 5, 96] x) => (float y) { y = MatMul(x, w) }", (3, 96, 40), "stack"),
        ("(float[96, 5] x) => (float y) { y = Gemm<transA=1>(x, w) }", (96, 40), "transposes its left"),
        ("(float[5, 96] x) => (float y) { y = Gemm<alpha=-1.0>(x, w) }", (96, 40), "alpha"),
        ("(float[5, 96] x, float[40] b) => (float y) { y = Gemm<beta=2.0>(x, w, b) }", (96, 40), "beta"),
        ("(float[1, 96, 4, 4] x) => (float y) { y = Conv(x, w) }", (40, 96, 1, 1), "does not compute a Conv"),
    ],
)
def test_matmulnbits_refuses(body: str, shape: tuple[int, ...], reason: str) -> None:
    target = "portable" if reason == "target" else "ort-cpu"
    pass_ = QuantizeWeights(bits=4, block_size=32, form="matmulnbits")
    assert_refuses(pass_, build(body, w=shape), reason, target=target)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [0, 32])
def test_runtime_fuses_the_standard_form(tmp_path: Path, bits: Any, block: int) -> None:
    for body, more in ((MATMUL, {}), (GEMM, {"b": (40,)})):
        done = apply(QuantizeWeights(bits=bits, block_size=block), build(body, w=(96, 40), **more))
        assert ort_ops(done.proto, tmp_path) == ["MatMulNBits"]
        assert sqnr(done.proto, done.proto, optimize="all") > 35


def test_dtype_of_stored_weights_is_packed() -> None:
    done = apply(QuantizeWeights(bits=4), build(MATMUL, w=(96, 40)))
    stored = weights_of(done.proto)["w_quantized"]
    assert len(stored.raw_data) == 96 * 40 // 2
    assert onnx.numpy_helper.to_array(stored).dtype == ml_dtypes.int4


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
def test_local_function(form: Any) -> None:
    helper = onnx.helper
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(w, "w")),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    function = helper.make_function("local", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 21)])
    calls = [helper.make_node("F", [a], [b], domain="local") for a, b in (("x", "a"), ("a", "z"))]
    ends = [helper.make_tensor_value_info(n, 1, [3, 64]) for n in ("x", "z")]
    graph = helper.make_graph(calls, "g", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    pass_ = QuantizeWeights(bits=4, block_size=32, form=form)
    quantized(pass_, model, 15, target="ort-cpu")
