from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_pad import FoldPad

PASS = FoldPad()
CONV = """(float[N, 2, 6, 5] x) => (float y) {
    a = Pad(x, p, v)
    y = Conv <group=1> (a, w)
}"""
AVERAGE = """(float[N, 2, 6, 5] x) => (float y) {
    a = Pad(x, p, v)
    y = AveragePool <kernel_shape=[3, 3], strides=[2, 1], pads=[0, 0, 0, 0]> (a)
}"""
MAX = AVERAGE.replace("Average", "Max")
PADS = np.array([0, 0, 1, 2, 0, 0, 2, 0])
ZERO, LEAST = np.float32(0), np.float32(-np.inf)
W = (3, 2, 3, 3)


def old(pads: np.ndarray, value: float = 0.0) -> str:
    """The form of Pad before opset 11."""
    return f"Pad <pads={pads.tolist()}, value={value}> (x)"


@pytest.mark.parametrize("attrs", ["group=1", "pads=[1, 0, 2, 1]", 'auto_pad="NOTSET", strides=[2, 2]'])
def test_conv(build: Any, attrs: str) -> None:
    done = assert_rewrites(PASS, build(CONV.replace("group=1", attrs), p=PADS, v=ZERO, w=W), ops={"Conv": 1})
    own = [1, 0, 2, 1] if "pads" in attrs else [0, 0, 0, 0]
    assert done.model.graph.nodes[0].attrs["pads"] == [a + b for a, b in zip([1, 2, 2, 0], own, strict=True)]


def test_auto_pad_valid_becomes_explicit(build: Any) -> None:
    body = CONV.replace("group=1", 'auto_pad="VALID"')
    done = assert_rewrites(PASS, build(body, p=PADS, v=ZERO, w=W), ops={"Conv": 1})
    assert "auto_pad" not in done.model.graph.nodes[0].attrs


@pytest.mark.parametrize("attrs", ['auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"'])
def test_auto_pad_same_is_declined(build: Any, attrs: str) -> None:
    body = CONV.replace("group=1", attrs)
    assert_refuses(PASS, build(body, p=PADS, v=ZERO, w=W), "Conv pads automatically")


def test_value_and_mode(build: Any) -> None:
    assert_refuses(PASS, build(CONV, p=PADS, v=np.float32(1), w=W), "Pad pads with 1 and Conv with 0")
    assert_refuses(PASS, build(CONV, p=PADS, v=LEAST, w=W), "Pad pads with -inf and Conv with 0")
    assert_rewrites(PASS, build(CONV.replace(", v)", ")"), p=PADS, w=W), ops={"Conv": 1})
    for mode in ("reflect", "edge"):
        body = CONV.replace("Pad(x, p, v)", f'Pad <mode="{mode}"> (x, p)')
        assert_refuses(PASS, build(body, p=PADS, w=W), f"Pad has mode {mode}")


@pytest.mark.parametrize(
    ("pads", "reason"),
    [
        ([0, 0, 1, -1, 0, 0, 1, 1], "negative"),
        ([0, 1, 1, 1, 0, 0, 1, 1], "batch or channel"),
        ([0, 0, 1, 1, 1, 0, 1, 1], "batch or channel"),
    ],
)
def test_other_pads_are_declined(build: Any, pads: list[int], reason: str) -> None:
    shape = (3, 3, 3, 3) if pads[1] else W
    assert_refuses(PASS, build(CONV, p=np.array(pads), v=ZERO, w=shape), reason)


def test_what_is_not_constant_is_declined(build: Any) -> None:
    body = CONV.replace(" x)", " x, int64[8] p)")
    assert_refuses(PASS, build(body, v=ZERO, w=W), "the pads p of Pad are not constant")
    assert_refuses(PASS, build(body, p=PADS, v=ZERO, w=W), "the pads p of Pad are not constant")
    body = CONV.replace(" x)", " x, float v)")
    model = build(body, p=PADS, w=W)
    model.graph.input[1].type.tensor_type.shape.SetInParent()
    assert_refuses(PASS, model, "the value v of Pad is not constant")


def test_a_weight_that_is_not_constant_is_fine(build: Any) -> None:
    body = CONV.replace(" x)", " x, float[3, 2, 3, 3] w, float[3] b)").replace("(a, w)", "(a, w, b)")
    assert_rewrites(PASS, build(body, p=PADS, v=ZERO), ops={"Conv": 1})


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 17, 18, 19, 21, 22])
def test_opsets(build: Any, opset: int) -> None:
    if opset < 11:
        body = CONV.replace("Pad(x, p, v)", old(PADS))
        assert_rewrites(PASS, build(body, opset=opset, w=W), ops={"Conv": 1})
        body = CONV.replace("Pad(x, p, v)", old(PADS, 1.0))
        assert_refuses(PASS, build(body, opset=opset, w=W), "Pad pads with 1")
    else:
        model = build(CONV, opset=opset, p=PADS, v=ZERO, w=W)
        assert_rewrites(PASS, model, ops={"Conv": 1})


def test_opset_1_is_left_alone(build: Any) -> None:
    body = CONV.replace("Pad(x, p, v)", old(PADS).replace("pads", "paddings"))
    assert not apply(PASS, build(body, opset=1, w=W)).journal.changes


@pytest.mark.parametrize(("axes", "pads"), [([2, 3], [1, 2, 2, 0]), ([-1, 2], [2, 1, 0, 2]), ([3], [2, 1])])
def test_axes(build: Any, axes: list[int], pads: list[int]) -> None:
    body = CONV.replace("p, v)", "p, v, axes)")
    weights = {"p": np.array(pads), "v": ZERO, "w": W}
    model = build(body, opset=18, axes=np.array(axes), **weights)
    assert_rewrites(PASS, model, ops={"Conv": 1})
    on_input = body.replace(" x)", " x, int64[K] axes)")
    assert_refuses(PASS, build(on_input, opset=18, **weights), "the axes axes of Pad are not constant")
    model = build(body, opset=18, **(weights | {"p": np.array([1, 1])}), axes=np.array([1]))
    assert_refuses(PASS, model, "batch or channel")


def test_conv_1d_and_3d(build: Any) -> None:
    for dims, rank in (("7", 3), ("4, 5, 6", 5)):
        pads = np.array([0, 0, *[1] * (rank - 2)] * 2)
        model = build(CONV.replace("6, 5", dims), p=pads, v=ZERO, w=(3, 2) + (3,) * (rank - 2))
        assert_rewrites(PASS, model, ops={"Conv": 1})


@pytest.mark.parametrize("point", [None, 0, 7])
@pytest.mark.parametrize("value", [None, 0, 7])
def test_conv_integer_pads_with_its_zero_point(build: Any, point: int | None, value: int | None) -> None:
    """What lies outside of the input of ConvInteger counts as its zero point."""
    body = (
        CONV.replace("float[N", "uint8[N").replace("(float y", "(int32 y").replace("Conv <", "ConvInteger <")
    )
    weights: dict[str, Any] = {"p": PADS, "w": np.arange(54, dtype=np.uint8).reshape(W)}
    if value is None:
        body = body.replace(", v)", ")")
    else:
        weights["v"] = np.uint8(value)
    if point is not None:
        body = body.replace("(a, w)", "(a, w, z)")
        weights["z"] = np.uint8(point)
    model = build(body, **weights)
    if (point or 0) == (value or 0):
        assert_rewrites(PASS, model, ops={"ConvInteger": 1})
    else:
        assert_refuses(PASS, model, f"Pad pads with {value or 0} and ConvInteger with {point or 0}")


def test_conv_integer_with_an_unknown_zero_point(build: Any) -> None:
    body = CONV.replace("float[N, 2, 6, 5] x)", "uint8[N, 2, 6, 5] x, uint8[1] z)").replace(
        "(a, w)", "(a, w, z)"
    )
    body = body.replace("(float y", "(int32 y").replace("Conv <", "ConvInteger <").replace(", v)", ")")
    model = build(body, p=PADS, w=np.ones(W, np.uint8))
    assert_refuses(PASS, model, "the zero point of ConvInteger is not a constant")


def test_conv_transpose_is_no_candidate(build: Any) -> None:
    body = CONV.replace("Conv <", "ConvTranspose <")
    assert not apply(PASS, build(body, p=PADS, v=ZERO, w=(2, 3, 3, 3))).journal.changes


# -- pools -----------------------------------------------------------------------------------------


def test_average_pool_that_counts_its_padding(build: Any) -> None:
    body = AVERAGE.replace("pads=[0, 0, 0, 0]", "pads=[1, 0, 0, 1], count_include_pad=1")
    assert_rewrites(PASS, build(body, p=PADS, v=ZERO), ops={"AveragePool": 1})


def test_average_pool_without_padding_starts_to_count_it(build: Any) -> None:
    for body in (AVERAGE, AVERAGE.replace(", pads=[0, 0, 0, 0]", ""), AVERAGE.replace("3, 3]", "3, 4]")):
        done = assert_rewrites(PASS, build(body, p=PADS, v=ZERO), ops={"AveragePool": 1})
        assert done.model.graph.nodes[0].attrs["count_include_pad"] == 1


@pytest.mark.parametrize(
    ("attrs", "value", "reason"),
    [
        ("pads=[1, 0, 0, 1]", ZERO, "counts the padding of Pad and not its own"),
        ("pads=[1, 0, 0, 1]", LEAST, "Pad pads with -inf and AveragePool with 0"),
        ("ceil_mode=1", ZERO, "ceil_mode"),
        ("dilations=[2, 1]", ZERO, "dilated"),
        ('auto_pad="SAME_UPPER"', ZERO, "pads automatically"),
        ("pads=[2, 0, 0, 0], count_include_pad=1", ZERO, "as large as the window"),
    ],
)
def test_average_pool_declines(build: Any, attrs: str, value: Any, reason: str) -> None:
    body = AVERAGE.replace("pads=[0, 0, 0, 0]", attrs)
    assert_refuses(PASS, build(body, opset=19, p=PADS, v=value), reason)


def test_average_pool_opsets(build: Any) -> None:
    for opset in (7, 10):
        body = AVERAGE.replace("Pad(x, p, v)", old(PADS))
        assert_rewrites(PASS, build(body, opset=opset), ops={"AveragePool": 1})
    assert_refuses(PASS, build(AVERAGE.replace("Pad(x, p, v)", old(PADS)), opset=6), "before opset 7")


def test_zeros_never_go_into_a_max_pool(build: Any) -> None:
    """MaxPool pads with -inf: a zero would win over negative data."""
    model = build(MAX, p=PADS, v=ZERO)
    assert_refuses(PASS, model, "Pad pads with 0 and MaxPool with -inf")
    assert_refuses(PASS, build(MAX.replace(", v)", ")"), p=PADS), "Pad pads with 0 and MaxPool with -inf")
    body = MAX.replace("Pad(x, p, v)", old(PADS))
    assert_refuses(PASS, build(body, opset=10), "Pad pads with 0 and MaxPool with -inf")
    assert_refuses(PASS, build(MAX, p=PADS, v=np.float32(-3.4028235e38)), "MaxPool with -inf")


def test_least_numbers_go_into_a_max_pool(build: Any) -> None:
    body = MAX.replace("pads=[0, 0, 0, 0]", "pads=[1, 0, 0, 1]")
    feeds = {"x": -np.abs(np.random.default_rng(0).standard_normal((2, 2, 6, 5))).astype(np.float32)}
    for text in (MAX, body):
        assert_rewrites(PASS, build(text, p=PADS, v=LEAST), ops={"MaxPool": 1}, inputs=feeds)


@pytest.mark.parametrize(("dtype", "least"), [(np.uint8, 0), (np.int8, -128)])
def test_max_pool_of_integers(build: Any, dtype: Any, least: int) -> None:
    body = MAX.replace("float", np.dtype(dtype).name)
    assert_rewrites(PASS, build(body, p=PADS, v=dtype(least)), ops={"MaxPool": 1})
    assert_refuses(PASS, build(body, p=PADS, v=dtype(3)), "Pad pads with 3")


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ("ceil_mode=1", "ceil_mode"),
        ("dilations=[1, 2]", "dilated"),
        ('auto_pad="SAME_LOWER"', "pads automatically"),
        ("pads=[2, 0, 0, 0]", "as large as the window"),
    ],
)
def test_max_pool_declines(build: Any, attrs: str, reason: str) -> None:
    assert_refuses(PASS, build(MAX.replace("pads=[0, 0, 0, 0]", attrs), p=PADS, v=LEAST), reason)


def test_max_pool_with_indices_is_declined(build: Any) -> None:
    body = MAX.replace("y = M", "y, i = M").replace(" y) {", " y, int64 i) {")
    assert_refuses(PASS, build(body, p=PADS, v=LEAST), "indices")


# -- surroundings ----------------------------------------------------------------------------------


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = CONV.replace("}", " z = Relu(a) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, p=PADS, v=ZERO, w=W), "has another reader")
    body = CONV.replace(" y) {", " y, float a) {")
    assert_refuses(PASS, build(body, p=PADS, v=ZERO, w=W), "is a graph output")


def test_two_pads_fold_into_one_conv(build: Any) -> None:
    body = CONV.replace("a = Pad", "b = Pad(x, p, v)  a = Pad").replace("a = Pad(x", "a = Pad(b")
    assert_rewrites(PASS, build(body, p=PADS, v=ZERO, w=W), ops={"Conv": 1})


def test_if_body(build: Any) -> None:
    body = """(float[N, 2, 6, 5] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { a = Pad(x, p, v)  t = Conv(a, w) },
            else_branch = else_g () => (float e) { e = Conv(x, w) }>
    }"""
    assert_rewrites(PASS, build(body, p=PADS, v=ZERO, w=W), ops={"Conv": 2, "If": 1})


def test_function_with_parameters(build: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 10, "local" : 1]>
    g (float[N, 1, 4, 4] x) => (float[N, 1, H, W] y) { y = local.block <amount = [0, 0, 1, 1, 0, 0, 1, 1]> (x) }
    <domain: "local", opset_import: ["" : 10]>
    block <amount> (x) => (y) {
        w = Constant <value = float[1, 1, 1, 1] {2}> ()
        a = Pad <pads: ints = @amount> (x)
        y = Conv(a, w)
    }"""
    assert_refuses(PASS, text, "pads of Pad is a parameter of the function")
    text = text.replace("pads: ints = @amount", "pads = [0, 0, 1, 1, 0, 0, 1, 1]")
    assert_rewrites(PASS, text, ops={"Conv": 1, "local::block": 1})
