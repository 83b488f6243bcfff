"""Models made to catch quantization out: each once went wrong, or would go wrong without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import wrong_passes
from weight_models import build, sqnr

import graphopt
from graphopt import Budget, UserError
from graphopt.cli.main import main
from graphopt.passkit import Numerics, Pass
from graphopt.runtime.session import open_session
from graphopt.testing import Applied, apply, assert_same_interface
from graphopt_passes.quantization.convert_fp16 import ConvertFp16
from graphopt_passes.quantization.equalize_layers import EqualizeLayers
from graphopt_passes.quantization.insert_qdq import InsertQDQ
from graphopt_passes.quantization.quantize_dynamic import QuantizeDynamic
from graphopt_passes.quantization.quantize_weights import QuantizeWeights
from graphopt_passes.quantization.refine_weights import RefineWeights
from graphopt_passes.quantization.smooth_activations import SmoothActivations

Arrays = np.ndarray[Any, Any]
FLOAT = np.float32
CONV = "(float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
IMAGES = {"x": np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(FLOAT)}


def rows(n: int, seed: int = 1, samples: int = 16) -> Arrays:
    return np.random.default_rng(seed).standard_normal((samples, n)).astype(FLOAT)


def quantized(model: onnx.ModelProto, passes: Pass | list[Pass], data: Any) -> Applied:
    """The model after the passes; whatever they do, it still is what it was to its users."""
    done = apply(passes, model, data=data)
    assert_same_interface(model, done.proto)
    return done


# -- weights -------------------------------------------------------------------------------------------


def weights(change: str) -> Arrays:
    w = np.random.default_rng(2).standard_normal((8, 3, 3, 3)).astype(FLOAT)
    if change == "all zeros":
        w[:] = 0
    elif change == "a channel of zeros":
        w[2] = 0
    elif change == "huge":
        w *= FLOAT(1e30)
    elif change == "a huge channel":
        w[3] *= FLOAT(1e6)
    elif change == "a denormal channel":
        w[3] = FLOAT(1e-40)
    return w


@pytest.mark.parametrize(
    "change", ["all zeros", "a channel of zeros", "huge", "a huge channel", "a denormal channel"]
)
@pytest.mark.parametrize("bias", [0.0, 1.0, 1e9])
def test_ranges_of_weights(change: str, bias: float) -> None:
    model = build(CONV, opset=17, ir=8, w=weights(change), b=np.full(8, bias, FLOAT))
    done = quantized(model, [InsertQDQ(), RefineWeights()], IMAGES)
    assert done.ops["QuantizeLinear"] == 2
    assert sqnr(model, done.proto, IMAGES) > 30
    assert sqnr(model, done.proto, IMAGES, "all") > 30


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-40])
@pytest.mark.parametrize("item", [InsertQDQ(), QuantizeWeights(bits=8)])
def test_weights_that_no_scale_holds(item: Pass, value: float) -> None:
    x = "(float[N, 32] x) => (float[N, 16] y) { y = MatMul(x, w) }"
    model = build(x, opset=17, ir=8, w=np.full((32, 16), value, FLOAT))
    done = quantized(model, item, {"x": rows(32)})
    assert not done.journal.changes
    assert any("not finite" in r or "too small" in r for r in done.reasons)


def test_weights_without_elements() -> None:
    model = build("(float[N, 0] x) => (float[N, 16] y) { y = MatMul(x, w) }", w=np.zeros((0, 16), FLOAT))
    done = quantized(model, InsertQDQ(), {"x": np.zeros((8, 0), FLOAT)})
    assert not done.journal.changes


# -- activations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "shift"), [(0.0, 5.0), (0.0, 0.0), (1e30, 0.0), (1.0, -1e6)])
def test_ranges_of_activations(factor: float, shift: float) -> None:
    text = "(float[N, 32] x) => (float[N, 16] y) { s = Mul(x, f) t = Add(s, h) y = MatMul(t, w) }"
    model = build(text, opset=17, ir=8, w=(32, 16), f=FLOAT(factor), h=FLOAT(shift))
    data = {"x": rows(32)}
    done = quantized(model, [InsertQDQ(), RefineWeights()], data)
    assert done.ops["QuantizeLinear"] == 1
    assert sqnr(model, done.proto, data) > 25


def test_activations_too_small_for_a_scale() -> None:
    text = "(float[N, 32] x) => (float[N, 16] y) { s = Mul(x, f) y = MatMul(s, w) }"
    model = build(text, opset=17, ir=8, w=(32, 16), f=FLOAT(1e-38))
    done = quantized(model, InsertQDQ(), {"x": rows(32)})
    assert not done.journal.changes
    assert any("too small for a float32 scale" in r for r in done.reasons)


def test_activations_too_large_to_square() -> None:
    """Their second moments are infinite: that layer is left as it is, and the pass does not fail."""
    text = "(float[N, 32] x) => (float[N, 16] y) { s = Mul(x, f) y = MatMul(s, w) }"
    model = build(text, opset=17, ir=8, w=(32, 16), f=FLOAT(1e30))
    done = quantized(model, [InsertQDQ(), RefineWeights()], {"x": rows(32)})
    assert any("too large to be squared" in r for r in done.reasons)
    assert sqnr(model, done.proto, {"x": rows(32)}) > 30


def test_one_sample() -> None:
    """What one row leaves of the second moments, its mean taken out, is noise, which has no Cholesky factor."""
    text = """(float[N, 1, 8, 8] x) => (float[N, 10] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, k, kb) r = Relu(c) f = Flatten(r) y = Gemm(f, w, b)
    }"""
    model = build(text, opset=17, ir=8, k=(4, 1, 3, 3), kb=(4,), w=(256, 10), b=(10,))
    for seed in range(4):
        data = {"x": 100 + np.random.default_rng(seed).random((1, 1, 8, 8)).astype(FLOAT)}
        done = quantized(model, [InsertQDQ(), RefineWeights(), RefineWeights(damping=0.0)], data)
        assert sqnr(model, done.proto, data) > 20


BRANCHES = """(float[4, 16] x, bool c) => (float[4, 8] y) {
    y = If (c) <
        then_branch = t () => (float[4, 8] p) { p = MatMul(x, w) },
        else_branch = e () => (float[4, 8] q) { u = MatMul(x, v) r = Relu(u) q = MatMul(r, w) }
    >
}"""


@pytest.mark.parametrize("observer", ["minmax", "moving", "mse"])
def test_a_branch_that_the_data_never_takes(observer: Any) -> None:
    """Nobody knows the ranges there, which a guess would ruin without anything showing it."""
    model = build(BRANCHES, opset=17, ir=8, w=(16, 8), v=(16, 16))
    x = rows(16, samples=4)
    data = [{"x": x * FLOAT(1 - i / 100), "c": np.array(True)} for i in range(8)]
    done = quantized(model, [SmoothActivations(), InsertQDQ(observer=observer), RefineWeights()], data)
    assert done.ops["QuantizeLinear"]
    assert any("no values of r were seen" in r for r in done.reasons)
    assert sqnr(model, done.proto, {"x": x, "c": np.array(True)}) > 25
    assert sqnr(model, done.proto, {"x": x, "c": np.array(False)}) > 100


@pytest.mark.parametrize("item", [SmoothActivations(), EqualizeLayers(criterion="both"), InsertQDQ()])
def test_nothing_is_seen_at_all(item: Pass) -> None:
    text = """(float[N, 16] x) => (float[M, 8] y) {
        m = ReduceMax <axes = [1], keepdims = 0> (x)
        g = Greater(m, limit)
        s = Compress <axis = 0> (x, g)
        a = Mul(s, f)
        p = MatMul(a, v)
        y = MatMul(p, w)
    }"""
    given = {"v": (16, 16), "w": (16, 8), "f": np.ones(16, FLOAT), "limit": FLOAT(100)}
    done = quantized(build(text, opset=17, ir=8, **given), item, {"x": rows(16)})
    assert not done.journal.changes


# -- data ----------------------------------------------------------------------------------------------


def test_a_model_that_takes_one_sample_at_a_time_though_it_says_any_number() -> None:
    """Exporters leave the leading dim open and write the example's size into a Reshape."""
    text = """(float[N, 32] x) => (float[N, 16] y) {
        a = MatMul(x, w) r = Reshape(a, s) k = Relu(r) m = MatMul(k, v) y = Reshape(m, t)
    }"""
    shapes = {"s": np.array([1, 4, 8]), "t": np.array([1, 16])}
    model = build(text, opset=17, ir=8, w=(32, 32), v=(8, 4), **shapes)
    data = {"x": rows(32, samples=32)}
    result = graphopt.run(model, "int8", data=data)
    assert result.report.verdict == "proven"
    assert result.report.accuracy is not None
    assert result.report.accuracy.sqnr_db > 25
    assert "4 held-back samples" in result.report.accuracy.measured_on


# -- metrics -------------------------------------------------------------------------------------------

SMALL = "(float[N, 32] x) => (float[N, 16] y) { y = MatMul(x, w) }"
Pairs = Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]


def raises(pairs: Pairs) -> float:
    for sample, _ in pairs:
        return float(sample["label"])
    return 0.0


def in_place(pairs: Pairs) -> float:
    for _, outputs in pairs:
        outputs["y"][...] = 0
    return 1.0


def test_a_metric_that_raises() -> None:
    with pytest.raises(UserError, match=r"test_traps\.py:\d+: the metric 'raises' failed: KeyError: 'label'"):
        raise _wrapped(raises)


def _wrapped(metric: Any) -> UserError:
    """The error of a run, as people read it."""
    with pytest.raises(UserError) as error:
        graphopt.run(build(SMALL, w=(32, 16)), "insert-qdq", data={"x": rows(32)}, metric=metric)
    return UserError(str(error.value))


def test_a_metric_that_works_in_place() -> None:
    model = build(SMALL, w=(32, 16))
    plain = graphopt.run(model, "int8", data={"x": rows(32)}).report.accuracy
    found = graphopt.run(model, "int8", data={"x": rows(32)}, metric=in_place).report.accuracy
    assert plain is not None
    assert found is not None
    assert (found.sqnr_db, found.cosine) == (plain.sqnr_db, plain.cosine)


def test_a_budget_for_a_metric_that_there_is_not() -> None:
    budget = Budget(max_drop={"accuracy": 0.1})
    model, data = build(SMALL, w=(32, 16)), {"x": rows(32)}
    with pytest.raises(UserError, match="there is no metric 'accuracy'"):
        graphopt.run(model, "int8", data=data, metric=in_place, budget=budget)
    with pytest.raises(UserError, match="is not measured"):
        graphopt.run(model, "int8", data=data, budget=budget)


# -- runtimes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["Add(p, b)", "Add(b, p)"])
@pytest.mark.parametrize(
    ("target", "item"), [("tensorrt", InsertQDQ()), ("ort-cpu", InsertQDQ(activations="int8"))]
)
def test_int8_product_and_bias_in_opset_21(target: str, item: Pass, bias: str) -> None:
    """onnxruntime (1.32) does not load what it makes of int8 activations, a MatMul and an Add to be merged."""
    text = f"(float[2, 4, 64] x) => (float[2, 4, 64] y) {{ p = MatMul(x, w) a = {bias} y = Relu(a) }}"
    data = {"x": np.random.default_rng(0).standard_normal((4, 2, 4, 64)).astype(FLOAT)}
    for opset in (17, 21):
        model = build(text, opset=opset, ir=8 if opset < 21 else 10, w=(64, 64), b=(64,))
        done = apply(item, model, target=target, data=data)
        assert done.ops["QuantizeLinear"]
        assert sqnr(model, done.proto, {"x": data["x"][0]}, "all") > 30
        assert not apply(item, done.proto, target=target, data=data).journal.changes


# -- what quantization leaves behind -------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["int8-weights", "int4-weights"])
def test_optimizing_again_leaves_small_weights_small(preset: str) -> None:
    text = "(float[N, 3, 8, 8] x) => (float[N, 32, 6, 6] y) { a = Conv(x, w, b) y = Conv(a, v) }"
    model = build(text, opset=17, ir=8, w=(64, 3, 3, 3), b=(64,), v=(32, 64, 1, 1))
    small = graphopt.run(model, preset, data=IMAGES).model.to_proto(weights="inline")
    again = graphopt.run(small, "default", data=IMAGES).model.to_proto(weights="inline")
    assert again.ByteSize() < small.ByteSize() * 1.1


def test_halving_a_split_one_part_of_which_nobody_reads() -> None:
    text = """(float[1, 8, 8, 8] x) => (float[1, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s, t = Split <axis = 1> (a) y = Conv(s, v)
    }"""
    model = build(text, opset=17, ir=8, w=(8, 8, 3, 3), b=(8,), v=(4, 4, 1, 1))
    done = quantized(model, ConvertFp16(), {"x": np.ones((8, 8, 8, 8), FLOAT)})
    assert done.ops["Split"] == 1
    assert sqnr(model, done.proto) > 50


# -- wrong passes beside quantization ------------------------------------------------------------------


@dataclass(frozen=True)
class LossyDangles(wrong_passes.Dangles):
    """As its base, from a pass that may move the numbers."""

    name: ClassVar[str] = "lossy-dangles"
    numerics: ClassVar[Numerics] = Numerics.LOSSY


@dataclass(frozen=True)
class LossyCrashes(wrong_passes.Crashes):
    """As its base, from a pass that may move the numbers."""

    name: ClassVar[str] = "lossy-crashes"
    numerics: ClassVar[Numerics] = Numerics.LOSSY


@pytest.mark.parametrize("verify", ["final", "each"])
@pytest.mark.parametrize(
    ("passes", "culprit", "site"),
    [
        ([InsertQDQ(), wrong_passes.SwapsSub()], "swaps-sub", "s"),
        ([InsertQDQ(), RefineWeights(), wrong_passes.SwapsSub()], "swaps-sub", "s"),
        ([wrong_passes.SwapsSub(), InsertQDQ()], "swaps-sub", "s"),
        ([InsertQDQ(), LossyDangles()], "lossy-dangles", ""),
        ([InsertQDQ(), LossyCrashes(), RefineWeights()], "lossy-crashes", ""),
    ],
)
def test_wrong_passes_are_named_and_the_rest_is_kept(
    passes: list[Pass], culprit: str, site: str, verify: Any
) -> None:
    text = """(float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = Sub(a, c) r = Relu(s) y = Conv <pads = [1, 1, 1, 1]> (r, v)
    }"""
    model = build(text, opset=17, ir=8, w=(8, 3, 3, 3), b=(8,), v=(8, 8, 3, 3), c=FLOAT(0.7))
    report = graphopt.run(model, passes, data=IMAGES, verify=verify, budget=Budget(0.99, 15.0)).report
    assert [(c.pass_name, c.site) for c in report.culprits] == [(culprit, site)]
    assert report.verdict == "rolled back"
    assert {p.name: p.rewrites for p in report.passes}["insert-qdq"] == 2
    assert report.accuracy is not None
    assert report.accuracy.sqnr_db > 30


# -- forms of models -----------------------------------------------------------------------------------

ROW = np.linspace(-1, 1, 32, dtype=FLOAT)
SQUARE = {"w": (32, 32)}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "weight read along two axes": (
        "(float[4, 32] x) => (float[4, 32] y) { a = MatMul(x, w) y = Gemm <transB = 1> (a, w) }",
        SQUARE,
    ),
    "weight on both sides": (
        "(float[32, 32] x) => (float[32, 32] y) { a = MatMul(x, w) y = MatMul(w, a) }",
        SQUARE,
    ),
    "weight and addend": (
        "(float[32, 32] x) => (float[32, 32] y) { a = MatMul(x, w) y = Add(a, w) }",
        SQUARE,
    ),
    "weight is an output": (
        "(float[4, 32] x) => (float[4, 32] y, float[32, 32] w) { y = MatMul(x, w) }",
        SQUARE,
    ),
    "weight can be overridden": (
        "(float[4, 32] x, float[32, 32] w) => (float[4, 32] y) { y = MatMul(x, w) }",
        SQUARE,
    ),
    "weight through Identity": (
        "(float[4, 32] x) => (float[4, 32] y, float[4, 32] z) { v = Identity(w) y = MatMul(x, v) z = MatMul(x, w) }",
        SQUARE,
    ),
    "weight through Transpose": (
        "(float[4, 32] x) => (float[4, 32] y) { v = Transpose <perm = [1, 0]> (w) y = MatMul(x, v) }",
        SQUARE,
    ),
    "weight at run time": (
        "(float[1, 3, 8, 8] x, float[4, 3, 3, 3] k) => (float[1, 4, 6, 6] y) { y = Conv(x, k) }",
        {},
    ),
    "bias at run time": (
        "(float[1, 3, 8, 8] x, float[4] b) => (float[1, 4, 6, 6] y) { y = Conv(x, k, b) }",
        {"k": (4, 3, 3, 3)},
    ),
    "vectors": (
        "(float[32] x) => (float y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": (32, 32), "v": (32,)},
    ),
    "stacks broadcast": (
        "(float[4, 32] x) => (float[3, 2, 4, 8] y) { y = MatMul(x, w) }",
        {"w": (3, 2, 32, 8)},
    ),
    "squares itself": ("(float[32, 32] x) => (float[32, 32] y) { y = MatMul(x, x) }", {}),
    "addend of all rows": (
        "(float[4, 32] x) => (float[5, 4, 32] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": (32, 32), "b": (5, 4, 32)},
    ),
    "names of its own making": (
        """(float[4, 32] x) => (float[4, 32] x_quantized) {
            x_scale = MatMul(x, w_quantized) x_dequantized = Relu(x_scale) x_quantized = MatMul(x_dequantized, w)
        }""",
        {"w": (32, 32), "w_quantized": (32, 32)},
    ),
    "intermediates are outputs": (
        """(float[4, 32] x) => (float[4, 32] y, float[4, 32] a, float[4, 32] r) {
            a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)
        }""",
        SQUARE,
    ),
    "indices are outputs": (
        "(float[4, 32] x) => (float[4, 32] z, int64[4, 1] y) { z = MatMul(x, w) y = ArgMax <axis = 1> (z) }",
        SQUARE,
    ),
    "a sequence is an output": (
        "(float[4, 32] x) => (seq(float[4, 32]) y) { a = MatMul(x, w) y = SequenceConstruct(a, a) }",
        SQUARE,
    ),
    "double": ("(double[4, 32] x) => (double[4, 32] y) { y = MatMul(x, w) }", {"w": np.eye(32)}),
    "half": (
        "(float16[4, 32] x) => (float16[4, 32] y) { y = MatMul(x, w) }",
        {"w": np.eye(32, dtype=np.float16)},
    ),
    "quantized in part": (
        """(float[4, 32] x) => (float[4, 32] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = MatMul(d, w) r = Relu(a) y = MatMul(r, w)
        }""",
        {**SQUARE, "s": FLOAT(0.05), "z": np.uint8(128)},
    ),
    "quantized at run time in part": (
        """(float[4, 32] x) => (float[4, 32] y) {
            q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, v, z) c = Cast <to = 1> (m) d = Mul(c, s)
            y = MatMul(d, w)
        }""",
        {**SQUARE, "v": np.eye(32, dtype=np.int8)},
    ),
    "weight quantized at run time": (
        """(float[4, 32] x) => (float[4, 32] y) {
            q = QuantizeLinear <axis = 1> (w, s, z) d = DequantizeLinear <axis = 1> (q, s, z) y = MatMul(x, d)
        }""",
        {**SQUARE, "s": np.full(32, 0.02, FLOAT), "z": np.zeros(32, np.int8)},
    ),
    "constants of glue": (
        """(float[4, 32] x) => (float[4, 32] y) {
            a = MatMul(x, w) c = Add(a, row) m = Mul(c, f) n = Mul(m, g) y = MatMul(n, w)
        }""",
        {**SQUARE, "row": ROW, "f": FLOAT(-3), "g": FLOAT(1e-20)},
    ),
    "infinite constants of glue": (
        """(float[4, 32] x) => (float[4, 32] y) {
            a = MatMul(x, w) l = Less(a, zero) c = Where(l, low, a) s = Softmax <axis = 1> (c) y = MatMul(s, w)
        }""",
        {**SQUARE, "zero": FLOAT(0), "low": FLOAT(-np.inf)},
    ),
    "a body reads an integer result": (
        """(float[4, 32] x, bool c) => (float[4, 32] y) {
            r = MatMul(x, w) k = MatMul(r, w)
            y = If (c) <
                then_branch = t () => (float[4, 32] p) { p = Relu(k) },
                else_branch = e () => (float[4, 32] q) { q = MatMul(k, w) }
            >
        }""",
        SQUARE,
    ),
}
ITEMS: list[Pass] = [
    InsertQDQ(),
    InsertQDQ(activations="int8", symmetric=True, weight_method="mse", observer="mse"),
    InsertQDQ(power_of_two=True, per_channel=False, bias="float"),
    QuantizeDynamic(),
    QuantizeWeights(bits=8),
]


def feeds_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """A few samples; all bool inputs alternate."""
    rng = np.random.default_rng(11)
    defaults = {t.name for t in model.graph.initializer}
    samples = []
    for i in range(8):
        sample: dict[str, Any] = {}
        for info in model.graph.input:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            values = rng.standard_normal(shape) if dtype.kind == "f" else np.array(i % 2)
            if info.name not in defaults:
                sample[info.name] = values.astype(dtype)
        samples.append(sample)
    return samples


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: f"{i.name}-{ITEMS.index(i)}")
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_models(form: str, item: Pass) -> None:
    """The result loads, runs, keeps its interface and is close; a second run changes nothing."""
    text, given = FORMS[form]
    model = build(text, opset=18, ir=8, **given)
    data = feeds_of(model)
    done = quantized(model, item, data)
    again = apply(item, done.proto, data=data)
    assert not again.journal.changes, [str(c.key) for c in again.journal.changes]
    if "sequence" in form:
        return  # tests of the engine compare those
    for optimize in ("none", "all"):
        for feeds in data[:2]:
            with (
                open_session(model, optimize="none") as one,
                open_session(done.proto, optimize=optimize) as two,
            ):
                for name, value in one.run(feeds).items():
                    got = two.run(feeds)[name]
                    assert value.dtype == got.dtype
                    if value.dtype.kind == "f":
                        noise = np.square(value.astype(float) - got).sum()
                        assert noise <= 10**-2.0 * np.square(value.astype(float)).sum()


def test_ranges_of_what_was_infinite(tmp_path: Path) -> None:
    """Inputs made up later need not show it, and a finite range would turn infinities into numbers."""
    text = "(float[N, 32] x, bool[N, 32] m) => (float[N, 16] y) { a = Where(m, x, low) y = MatMul(a, w) }"
    model = build(text, opset=17, ir=8, w=(32, 16), low=FLOAT(-np.inf))
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rows(32), m=rows(32, 2) > 0)
    path = str(tmp_path / "r.json")
    words = ["calibrate", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "-o", path]
    assert main([*words, "--quiet"]) == 0
    report = graphopt.run(model, "insert-qdq", ranges=path).report
    assert [f.reason for f in report.left_float] == ["the values of a are not finite"]
    written = json.loads(Path(path).read_text())
    written["tensors"]["a"].update(low=-3.0, high=3.0)
    Path(path).write_text(json.dumps(written))
    assert not graphopt.run(model, "insert-qdq", ranges=path).report.left_float
