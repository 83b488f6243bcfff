"""insert-qdq: close to float, and on integers where ONNX Runtime really runs it (read from its own graph)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.model import Model
from graphopt.passkit import Pass
from graphopt.runtime.kernels import executed
from graphopt.testing import Applied, apply, assert_same_interface
from graphopt_passes.fusion.fuse_matmul_add import FuseMatMulAdd
from graphopt_passes.fusion.normalize_gemm import NormalizeGemm
from graphopt_passes.quantization.insert_qdq import InsertQDQ

Arrays = np.ndarray[Any, Any]

# What remains of a quantized model besides integer kernels.
LAYOUT = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"}


def data_for(model: onnx.ModelProto, size: int = 24, seed: int = 3) -> dict[str, Arrays]:
    rng = np.random.default_rng(seed)
    data: dict[str, Arrays] = {}
    for info in model.graph.input:
        dims = [d.dim_value or size for d in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        values = rng.standard_normal(dims) if dtype.kind == "f" else rng.integers(0, 2, dims)
        data[info.name] = values.astype(dtype)
    return data


def quantized(
    model: onnx.ModelProto, item: Pass | list[Pass] | None = None, data: Mapping[str, Arrays] | None = None
) -> Applied:
    """The model after the pass; also after a second time, which changes nothing."""
    items: Any = InsertQDQ() if item is None else item
    given = data_for(model) if data is None else data
    done = apply(items, model, data=given)
    assert_same_interface(model, done.proto)
    again = apply(items, done.proto, data=given)
    assert not again.journal.changes, [str(c.key) for c in again.journal.changes]
    return done


def kernels(done: Applied) -> dict[str, int]:
    """What onnxruntime executes, apart from layout and the conversions at the borders."""
    ops = executed(Model.load(done.proto)).ops
    return {op: n for op, n in sorted(ops.items()) if op not in LAYOUT}


def check(
    body: str,
    expected: Mapping[str, int],
    budget: float,
    *,
    opset: int = 17,
    item: Pass | list[Pass] | None = None,
    **weights: Any,
) -> Applied:
    """The model keeps `budget` dB with and without onnxruntime's optimizer, which makes `expected` of it."""
    model = build(body, opset=opset, ir=8, **weights)
    data = data_for(model)
    done = quantized(model, item, data)
    assert kernels(done) == dict(expected), done.reasons
    for optimize in ("none", "all"):
        assert sqnr(model, done.proto, data, optimize) >= budget
    return done


# -- Conv ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attrs", "x", "w"),
    [
        ("", "N, 8, 9, 9", (6, 8, 3, 3)),
        ("<pads=[1,1,1,1], strides=[2,2]>", "N, 8, 9, 9", (6, 8, 3, 3)),
        ('<auto_pad="SAME_UPPER">', "N, 8, 9, 9", (6, 8, 3, 3)),
        ("<group=2>", "N, 8, 9, 9", (6, 4, 3, 3)),
        ("<group=8>", "N, 8, 9, 9", (8, 1, 3, 3)),
        ("<dilations=[2,2]>", "N, 8, 9, 9", (6, 8, 3, 3)),
        ("<group=8, dilations=[2]>", "N, 8, 17", (8, 1, 3)),
        ("", "N, 8, 17", (6, 8, 3)),
        ("", "N, 4, 5, 5, 5", (6, 4, 3, 3, 3)),
    ],
    ids=["2-D", "strided", "same", "grouped", "depthwise", "dilated", "depthwise 1-D", "1-D", "3-D"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv(attrs: str, x: str, w: tuple[int, ...], bias: bool) -> None:
    weights: dict[str, Any] = {"w": w, "b": (w[0],)} if bias else {"w": w}
    body = f"(float[{x}] x) => (float[N, c, ...] y) {{ y = Conv{attrs}(x, w{', b' if bias else ''}) }}"
    body = body.replace("c, ...", ", ".join(f"d{i}" for i in range(len(w) - 1)))
    done = check(body, {"QLinearConv": 1}, 30, **weights)
    # The pair stands in front of the output.
    assert done.ops == {"Conv": 1, "QuantizeLinear": 2, "DequantizeLinear": 3 + bias}
    kinds = {t.name: t.data_type for t in done.proto.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds.values()
    assert (onnx.TensorProto.INT32 in kinds.values()) == bias


@pytest.mark.parametrize(
    ("activation", "extra"),
    [
        ("Relu(c)", {}),
        ("Clip(c, lo, hi)", {"lo": np.float32(0), "hi": np.float32(6)}),
        ("Clip(c, lo, hi)", {"lo": np.float32(-0.5), "hi": np.float32(0.7)}),
        ("Clip(c, lo)", {"lo": np.float32(0)}),
    ],
)
def test_activations_that_the_range_implies(activation: str, extra: dict[str, Any]) -> None:
    body = f"(float[N, 4, 6, 6] x) => (float[N, 5, 4, 4] y) {{ c = Conv(x, w, b) y = {activation} }}"
    check(body, {"QLinearConv": 1}, 28, w=(5, 4, 3, 3), b=(5,), **extra)


@pytest.mark.parametrize(
    ("activation", "kernel"),
    [("LeakyRelu(c)", "LeakyRelu"), ("Sigmoid(c)", "Sigmoid"), ("Tanh(c)", "Tanh"), ("Clip(c, lo)", "Clip")],
)
def test_other_activations_read_a_quantized_tensor(activation: str, kernel: str) -> None:
    body = f"(float[N, 4, 6, 6] x) => (float[N, 5, 4, 4] y) {{ c = Conv(x, w, b) y = {activation} }}"
    check(body, {"QLinearConv": 1, kernel: 1}, 28, w=(5, 4, 3, 3), b=(5,), lo=np.float32(0.5))


def test_a_relu_that_is_not_the_only_reader() -> None:
    body = "(float[N, 4, 6, 6] x) => (float[N, 5, 4, 4] y, float[N, 5, 4, 4] z) "
    body += "{ c = Conv(x, w, b) y = Relu(c) z = Erf(c) }"
    check(body, {"QLinearConv": 1, "Relu": 1, "Erf": 1}, 28, w=(5, 4, 3, 3), b=(5,))


def test_conv_transpose_stays_float() -> None:
    model = build(
        "(float[N, 4, 6, 6] x) => (float[N, 5, 8, 8] y) { y = ConvTranspose(x, w) }", ir=8, w=(4, 5, 3, 3)
    )
    done = apply(InsertQDQ(), model, data=data_for(model))
    assert not done.journal.changes
    assert done.reasons == ["onnxruntime has no integer kernel for ConvTranspose"]


def test_a_bias_that_dwarfs_its_weights() -> None:
    w = np.full((2, 4, 1, 1), 1.0, np.float32)
    w[1] = 1e-12
    b = np.array([0.5, 3.0], np.float32)
    body = "(float[N, 4, 3, 3] x) => (float[N, 2, 3, 3] y) { y = Conv(x, w, b) }"
    model = build(body, opset=17, ir=8, w=w, b=b)
    data = data_for(model)
    done = quantized(model, None, data)
    assert kernels(done) == {"QLinearConv": 1}
    assert sqnr(model, done.proto, data, "all") > 35


# -- Gemm and MatMul -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["", "(6,)", "(1, 6)"])
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_gemm(trans_a: int, trans_b: int, bias: str, side: str) -> None:
    a, b = ("8, M" if trans_a else "M, 8"), ("6, 8" if trans_b else "8, 6")
    weights: dict[str, Any] = {"c": tuple(int(n) for n in bias.strip("(),").split(","))} if bias else {}
    inputs = f"float[{a}] a, float[{b}] b"
    if side == "right":
        inputs, weights["b"] = f"float[{a}] a", tuple(int(n) for n in b.split(","))
    elif side == "left":
        inputs, weights["a"] = f"float[{b}] b", tuple(int(n) for n in a.replace("M", "5").split(","))
    rows = "5" if side == "left" else "M"
    head = f"({inputs}) => (float[{rows}, 6] y) "
    gemm = f"Gemm<transA={trans_a}, transB={trans_b}>(a, b{', c' if bias else ''})"
    check(f"{head} {{ y = {gemm} }}", {"QGemm": 1}, 30, **weights)
    check(f"{head} {{ p = {gemm} y = Erf(p) }}", {"QGemm": 1, "Erf": 1}, 27, **weights)


def test_gemm_with_factors_is_normalized_first() -> None:
    body = "(float[M, 8] a) => (float[M, 6] y) { y = Gemm<alpha=0.5, beta=2.0>(a, b, c) }"
    weights: dict[str, Any] = {"b": (8, 6), "c": (6,)}
    check(body, {"QGemm": 1}, 30, item=[NormalizeGemm(), InsertQDQ()], **weights)
    model = build(body, ir=8, **weights)
    done = apply(InsertQDQ(), model, data=data_for(model))
    assert not done.journal.changes
    assert any("alpha is not 1" in r for r in done.reasons)


@pytest.mark.parametrize("c", [(1,), (5, 6), (5, 1), ()])
def test_gemm_with_another_kind_of_bias_adds_it_behind(c: tuple[int, ...]) -> None:
    body = "(float[5, 8] a) => (float[5, 6] y) { p = Gemm(a, b, c) y = Erf(p) }"
    check(body, {"QGemm": 1, "Add": 1, "Erf": 1}, 27, b=(8, 6), c=np.ones(c, np.float32))


def test_gemm_with_a_residual_adds_it_behind() -> None:
    body = "(float[M, 8] x) => (float[M, 8] y) { e = Erf(x) p = Gemm(x, w, e) y = Gemm(p, v, b) }"
    check(body, {"QGemm": 2, "Add": 1, "Erf": 1}, 27, w=(8, 8), v=(8, 8), b=(8,))


PRODUCT = "(float[{x}] x) => (float[{y}] y) {{ p = MatMul(x, w) y = {f} }}"


@pytest.mark.parametrize("x", ["M, 8", "2, M, 8", "N, 4, 8", "2, 4, 8"])
@pytest.mark.parametrize("f", ["Erf(p)", "MatMul(p, v)"])
def test_matmul(x: str, f: str) -> None:
    y = x.replace("8", "6")
    expected = {"MatMulIntegerToFloat": 1, "Erf": 1}
    if f != "Erf(p)":
        expected = {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1}
    check(PRODUCT.format(x=x, y=y, f=f), expected, 27, w=(8, 6), v=(6, 6))


@pytest.mark.parametrize(
    ("x", "tail", "expected"),
    [
        ("M, 8", "", {"QGemm": 1}),
        ("2, 4, 8", "", {"QGemm": 1}),
        ("N, 4, 8", "", {"MatMulIntegerToFloat": 1, "Add": 1}),
        ("M, 8", "r = Relu(s)", {"QGemm": 2}),
        ("2, 4, 8", "r = Relu(s)", {"QGemm": 1, "MatMulIntegerToFloat": 1}),
        ("N, 4, 8", "r = Relu(s)", {"MatMulIntegerToFloat": 2, "Add": 1}),
    ],
)
def test_matmul_with_a_bias_behind_it(x: str, tail: str, expected: dict[str, int]) -> None:
    end = "y = Erf(s)" if not tail else f"{tail} y = MatMul(r, v)"
    body = f"(float[{x}] x) => (float[{x}] y) {{ p = MatMul(x, w) s = Add(b, p) {end} }}"
    if not tail:
        expected = {**expected, "Erf": 1}
    elif x == "M, 8":
        expected = {"QGemm": 1, "MatMulIntegerToFloat": 1}
    check(body, expected, 27, w=(8, 8), v=(8, 8), b=(8,))


def test_matmul_with_a_stack_of_weights_or_weights_on_the_left() -> None:
    check(
        "(float[3, M, 8] x) => (float[3, M, 6] y) { p = MatMul(x, w) y = Erf(p) }",
        {"MatMulIntegerToFloat": 1, "Erf": 1},
        27,
        w=(3, 8, 6),
    )
    check(
        "(float[8, M] x) => (float[5, M] y) { p = MatMul(w, x) y = Erf(p) }",
        {"MatMulIntegerToFloat": 1, "Erf": 1},
        27,
        w=(5, 8),
    )


def test_attention_products_with_a_mask_and_a_softmax_in_float() -> None:
    body = """(float[N, 6, 8] x, float[N, 1, 6] m) => (float[N, 6, 8] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        t = Transpose<perm=[0, 2, 1]>(k) s = MatMul(q, t) f = Mul(m, big) a = Add(s, f)
        p = Softmax<axis=-1>(a) y = MatMul(p, v) }"""
    weights: dict[str, Any] = {
        f"w{n}": np.random.default_rng(i).standard_normal((8, 8)) / 4 for i, n in enumerate("qkv")
    }
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    done = check(
        body,
        {"QLinearMatMul": 3, "MatMulIntegerToFloat": 2, "Mul": 1, "Add": 1, "Softmax": 1},
        25,
        big=np.array(-10000, np.float32),
        **weights,
    )
    assert done.ops["QuantizeLinear"] == 6  # x, q, k before and behind the Transpose, v, p


def test_a_product_read_in_float_and_quantized() -> None:
    # It cannot be both: the reader in float gets what was quantized.
    body = """(float[M, 8] x) => (float[M, 6] y, float[M, 6] z) {
        p = Gemm(x, w, b) y = Erf(p) z = MatMul(p, v) }"""
    check(body, {"QGemm": 1, "MatMulIntegerToFloat": 1, "Erf": 1}, 27, w=(8, 6), b=(6,), v=(6, 6))


@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm(x, w, b)"])
@pytest.mark.parametrize("act", ["Relu(p)", "Clip(p, k)"])
def test_a_product_with_an_activation_and_one_reader_behind_it(op: str, act: str) -> None:
    kernel = "QGemm" if "Gemm" in op else "QLinearMatMul"
    body = f"(float[M, 8] x) => (float[M, 6] y) {{ p = {op} r = {act} y = Neg(r) }}"
    check(body, {kernel: 1, "Neg": 1}, 25, w=(8, 6), b=(6,), k=np.array(0, np.float32))
    # With two readers, or as an output, the activation's result is in full precision.
    for tail in ("y = Neg(r) z = Erf(r)", "y = Identity(r) z = Erf(r)"):
        done = quantized(
            build(
                f"(float[M, 8] x) => (float[M, 6] y, float[M, 6] z) {{ p = {op} r = {act} {tail} }}",
                opset=17,
                ir=8,
                w=(8, 6),
                b=(6,),
                k=np.array(0, np.float32),
            )
        )
        assert done.ops["QuantizeLinear"] == 1
        assert kernels(done).get("QGemm", 0) + kernels(done).get("MatMulIntegerToFloat", 0) == 1


def test_a_product_split_into_parts_keeps_a_range_for_each() -> None:
    w = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
    w[:, 6:] *= 1e-3
    body = """(float[M, 8] x) => (float[M, 6] y, float[M, 6] z) {
        p = Gemm(x, w, b) q, r = Split<axis=1>(p, s) y = MatMul(q, v) z = MatMul(r, v) }"""
    done = check(
        body,
        {"QGemm": 1, "Split": 1, "MatMulIntegerToFloat": 2},
        27,
        w=w,
        b=np.zeros(12, np.float32),
        v=(6, 6),
        s=np.array([6, 6]),
    )
    assert done.ops["QuantizeLinear"] == 3


# -- between them --------------------------------------------------------------------------------------

CONV = "Conv<pads=[1,1,1,1]>"
SQUARE: dict[str, Any] = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)}


def image(nodes: str, channels: int = 4, outputs: str = "float[N, 4, h, i] y") -> str:
    return f"(float[N, {channels}, 6, 6] x) => ({outputs}) {{ {nodes} }}"


def test_residual() -> None:
    nodes = f"""a = {CONV}(x, w) r = Relu(a) c = {CONV}(r, v) s = Add(c, r) t = Relu(s) y = {CONV}(t, w)"""
    done = check(image(nodes), {"QLinearConv": 3, "QLinearAdd": 1}, 25, **SQUARE)
    # w is shared: quantized once.
    assert (
        sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in done.proto.graph.initializer)
        == 2
    )


@pytest.mark.parametrize(
    ("nodes", "kernel"),
    [
        ("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)", "QLinearAveragePool"),
        ("m = GlobalAveragePool(a)", "QLinearGlobalAveragePool"),
        ("m = LeakyRelu<alpha=0.1>(a)", "QLinearLeakyRelu"),
        ("m = Sigmoid(a)", "QLinearSigmoid"),
        ("m = Mul(a, a)", "QLinearMul"),
        ("m = Mul(a, k)", "QLinearMul"),
        ("m = Add(k, a)", "QLinearAdd"),
        ("m = Mul(a, two)", "QLinearMul"),
    ],
)
def test_glue(nodes: str, kernel: str) -> None:
    body = image(f"a = {CONV}(x, w) {nodes} y = {CONV}(m, v)")
    check(body, {"QLinearConv": 2, kernel: 1}, 22, k=(4, 1, 1), two=np.float32(2), **SQUARE)


def test_glue_before_something_float_stays_float() -> None:
    body = image(f"a = {CONV}(x, w) c = {CONV}(x, v) s = Add(a, c) y = Erf(s)")
    done = check(body, {"QLinearConv": 2, "Add": 1, "Erf": 1}, 25, **SQUARE)
    assert "nothing that reads its result runs on integers" in done.reasons


def test_glue_behind_something_float_stays_float() -> None:
    body = image(f"a = {CONV}(x, w) e = Erf(x) s = Add(a, e) y = {CONV}(s, v)")
    done = check(body, {"QLinearConv": 2, "Add": 1, "Erf": 1}, 25, **SQUARE)
    assert "not all that it reads is computed on integers" in done.reasons


def test_an_average_pool_that_would_not_load_or_be_wrong_stays_float() -> None:
    for attrs in (
        "kernel_shape=[2,2], dilations=[2,2]",
        "kernel_shape=[3,3], ceil_mode=1, count_include_pad=1",
    ):
        body = image(f"a = {CONV}(x, w) m = AveragePool<{attrs}, strides=[2,2]>(a) y = {CONV}(m, v)")
        model = build(body, opset=19, w=SQUARE["w"], v=SQUARE["v"])
        done = quantized(model)
        assert kernels(done)["AveragePool"] == kernels(done)["QLinearConv"] == 1
        assert any("average pool in front of it is broken" in r for r in done.reasons)


def test_concat_of_different_ranges() -> None:
    w = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    nodes = f"a = {CONV}(x, w) c = {CONV}(x, v) s = Concat<axis=1>(a, c) y = {CONV}(s, u)"
    check(image(nodes), {"QLinearConv": 3, "QLinearConcat": 1}, 25, w=w, v=3 * w, u=(4, 8, 3, 3))


def test_where() -> None:
    body = f"""(float[N, 4, 6, 6] x, bool[N, 4, 6, 6] m) => (float[N, 4, 6, 6] y) {{
        a = {CONV}(x, w) s = Where(m, a, k) y = {CONV}(s, v) }}"""
    check(body, {"QLinearConv": 2, "QLinearWhere": 1}, 25, k=np.array(0, np.float32), **SQUARE)


PASSING = {
    "Reshape": "m = Reshape(a, s)",
    "Transpose": "m = Transpose<perm=[0,1,3,2]>(a)",
    "Flatten": "f = Flatten(a) m = Reshape(f, s)",
    "Slice": "m = Slice(a, one, five, two)",
    "MaxPool": "m = MaxPool<kernel_shape=[2,2]>(a)",
    "Resize": "m = Resize<mode='nearest'>(a, , scales)",
    "Squeeze": "u = Unsqueeze(a, one) m = Squeeze(u, one)",
    "Tile": "m = Tile(a, tiles)",
    "Expand": "m = Expand(a, tiles)",
    "Gather": "m = Gather<axis=2>(a, ones)",
    "Split": "p, n = Split<axis=2>(a, three) m = Concat<axis=2>(n, p)",
    "DepthToSpace": "d = DepthToSpace<blocksize=2>(a) m = Concat<axis=1>(d, d, d, d)",
    "Identity": "m = Identity(a)",
    "ReduceMax": "m = ReduceMax<axes=[3]>(a)",
    "chain": "t = Transpose<perm=[0,2,3,1]>(a) p = Slice(t, one, five, one) m = Transpose<perm=[0,3,1,2]>(p)",
}


@pytest.mark.parametrize("name", sorted(PASSING))
def test_what_only_moves_elements(name: str) -> None:
    body = image(f"a = {CONV}(x, w) {PASSING[name].replace(chr(39), chr(34))} y = {CONV}(m, v)")
    ints: dict[str, Any] = {
        "s": np.array([0, 4, 6, 6]),
        "one": np.array([1]),
        "five": np.array([5]),
        "two": np.array([2]),
        "ones": np.array([1, 0, 1]),
        "three": np.array([3, 3]),
        "tiles": np.array([1, 1, 1, 1]),
    }
    model = build(body, opset=17, ir=8, **ints, scales=np.array([1, 1, 2, 2], np.float32), **SQUARE)
    data = data_for(model)
    done = quantized(model, None, data)
    got = executed(Model.load(done.proto)).ops
    assert got["QLinearConv"] == 2
    # Nothing between the two convolutions is computed in float.
    assert got.get("QuantizeLinear", 0) == 1
    assert got.get("DequantizeLinear", 0) == 1
    assert sqnr(model, done.proto, data, "all") > 25


def test_a_chain_in_front_of_integers_moves_bytes() -> None:
    body = """(float[N, 6, 8] x) => (float[N, 8, 6] y) {
        e = Erf(x) t = Transpose<perm=[0,2,1]>(e) r = Identity(t) p = MatMul(r, w) y = Erf(p) }"""
    done = check(body, {"Erf": 2, "MatMulIntegerToFloat": 1}, 25, w=(6, 6))
    assert done.ops["QuantizeLinear"] == 3
    assert [n.op_type for n in done.proto.graph.node if n.input[0] == "e"] == ["QuantizeLinear"]


def test_matmul_with_a_residual_that_onnxruntime_would_merge() -> None:
    body = "(float[M, 8] x) => (float[M, 8] y) { e = Erf(x) p = MatMul(x, w) y = Add(p, e) }"
    model = build(body, ir=8, w=(8, 8))
    done = apply(InsertQDQ(), model, data=data_for(model))
    assert not done.journal.changes
    assert any("makes a Gemm in float" in r for r in done.reasons)
    check(body, {"QGemm": 1, "Add": 1, "Erf": 1}, 27, item=[FuseMatMulAdd(), InsertQDQ()], w=(8, 8))


def test_float_readers_of_float_tensors_read_the_original() -> None:
    body = "(float[N, M, 8] x) => (float[N, M, 8] y) { p = MatMul(x, w) e = Erf(x) y = Add(p, e) }"
    done = check(body, {"MatMulIntegerToFloat": 1, "Erf": 1, "Add": 1}, 25, w=(8, 8))
    (erf,) = (n for n in done.proto.graph.node if n.op_type == "Erf")
    assert erf.input[0] == "x"


def test_multiplying_with_a_number_rounds_nothing() -> None:
    body = """(float[N, 6, 8] x) => (float[N, 6, 6] y) {
        q = MatMul(x, w) s = Mul(q, k) t = Transpose<perm=[0,2,1]>(x) p = MatMul(s, t) y = Erf(p) }"""
    done = check(
        body,
        {"QLinearMatMul": 1, "QLinearMul": 1, "MatMulIntegerToFloat": 1, "Erf": 1},
        23,
        w=(8, 8),
        k=np.array(0.3, np.float32),
    )
    values = {t.name: onnx.numpy_helper.to_array(t) for t in done.proto.graph.initializer}
    assert float(values["s_scale"]) == pytest.approx(0.3 * float(values["q_scale"]))
    assert int(values["s_zero_point"]) == int(values["q_zero_point"])
