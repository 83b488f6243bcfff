from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.errors import UserError
from graphopt.passkit import Numerics, RefusedRewrite
from graphopt.pipeline.base import Limits
from graphopt.testing import Applied, apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization import _scaling
from graphopt_passes.quantization.equalize_layers import EqualizeLayers

PASS = EqualizeLayers()
Array = np.ndarray[Any, Any]


def uneven(shape: tuple[int, ...], axis: int, seed: int = 0, bits: float = 6.0) -> Array:
    """Normal numbers whose channels along `axis` differ by up to 2**bits in size."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.permutation(np.linspace(-bits / 2, bits / 2, shape[axis])))
    values = rng.standard_normal(shape) * scale.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return values.astype(np.float32)


def build(body: str, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """A model from `inputs => outputs { nodes }` and weights: arrays, or shapes of normal numbers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}')
    rng = np.random.default_rng(1)
    for name, given in weights.items():
        array = rng.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else given
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def weights_of(done: Applied, op: str = "Conv", slot: int = 1) -> list[Array]:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in done.proto.graph.initializer}
    return [
        arrays[n.input[slot]] for n in done.proto.graph.node if n.op_type == op and n.input[slot] in arrays
    ]


def assert_even(written: Array, out_axis: int, read: Array, in_axis: int, factor: float = 4.05) -> None:
    """Channels use the same share of their layer's range on both sides, up to the rounding of scales."""

    def share(w: Array, axis: int) -> Array:
        largest = np.abs(w).max(axis=tuple(a for a in range(w.ndim) if a != axis))
        return largest / largest.max()

    ratio = share(written, out_axis) / share(read, in_axis)
    assert ratio.max() / ratio.min() <= factor, ratio


PAIR = "(float[N, 3, 8, 8] x) => (float y) {{ a = Conv(x, w, b) c = {} y = Conv(c, v) }}"
HOMOGENEOUS = [
    "Identity(a)",
    "Relu(a)",
    "LeakyRelu <alpha = 0.2> (a)",
    "PRelu(a, slope)",
    "Clip(a, zero)",
    "Abs(a)",
    "MaxPool <kernel_shape = [2, 2]> (a)",
    "AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (a)",
    "GlobalAveragePool(a)",
    "GlobalMaxPool(a)",
    "ReduceMean <axes = [2, 3]> (a)",
    "Mul(a, half)",
    "Pad(a, pads)",
    "Resize(a, , factors)",
    "Slice(a, two, five, two)",
    "Add(a, shift)",
    "Max(a, shift)",
]


@pytest.mark.parametrize("middle", HOMOGENEOUS)
def test_scales_pass(middle: str) -> None:
    model = build(
        PAIR.format(middle),
        w=uneven((12, 3, 3, 3), 0, 1),
        b=(12,),
        v=uneven((4, 12, 1, 1), 1, 2),
        slope=(12, 1, 1),
        zero=np.float32(0),
        half=np.float32(0.5),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        factors=np.array([1, 1, 2, 2], np.float32),
        two=np.array([2]),
        five=np.array([5]),
        shift=(12, 1, 1),
    )
    done = assert_rewrites(PASS, model)
    w, v = weights_of(done)
    assert_even(w, 0, v, 1)
    assert len(done.journal.changes) == 1


def test_scales_are_powers_of_two_unless_free() -> None:
    model = build(PAIR.format("Relu(a)"), w=uneven((12, 3, 3, 3), 0), b=(12,), v=(4, 12, 1, 1))
    before = onnx.numpy_helper.to_array(model.graph.initializer[0])
    ratio = weights_of(assert_rewrites(PASS, model))[0] / before
    assert (np.abs(np.frexp(ratio)[0]) == 0.5).all()
    assert len(np.unique(ratio)) > 2
    free = assert_rewrites(EqualizeLayers(exact_scales=False), model)
    assert_even(weights_of(free)[0], 0, weights_of(free)[1], 1, 1.01)


def test_exact_scales_change_no_bit_of_the_output() -> None:
    model = build(PAIR.format("Relu(a)"), w=uneven((12, 3, 3, 3), 0), b=(12,), v=(4, 12, 1, 1))
    assert_rewrites(PASS, model, numerics=Numerics.EXACT)


def test_depthwise_in_the_middle() -> None:
    model = build(
        """(float[N, 3, 8, 8] x) => (float y) {
            a = Conv(x, w, b) c = Relu(a) d = Conv <group = 12, pads = [1, 1, 1, 1]> (c, k, e) f = Relu(d)
            y = Conv(f, v)
        }""",
        w=uneven((12, 3, 1, 1), 0, 1),
        b=(12,),
        k=uneven((12, 1, 3, 3), 0, 2),
        e=(12,),
        v=uneven((4, 12, 1, 1), 1, 3),
    )
    done = assert_rewrites(PASS, model)
    assert len(done.journal.changes) == 2
    w, k, v = weights_of(done)
    assert_even(w, 0, k, 0, 8.1)  # two scales are rounded, one of which counts twice
    assert_even(k, 0, v, 1, 8.1)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped(groups: int) -> None:
    model = build(
        f"""(float[N, 4, 8, 8] x) => (float y) {{
            a = Conv <group = {groups}> (x, w) c = Relu(a) y = Conv <group = {groups}> (c, v)
        }}""",
        w=uneven((8, 4 // groups, 3, 3), 0, 1),
        v=uneven((12, 8 // groups, 3, 3), 1, 2),
    )
    assert_rewrites(PASS, model)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(groups: int) -> None:
    model = build(
        f"""(float[N, 4, 5, 5] x) => (float y) {{
            a = ConvTranspose <group = {groups}, strides = [2, 2]> (x, w, b) c = Relu(a)
            y = ConvTranspose <group = {groups}> (c, v)
        }}""",
        w=uneven((4, 8 // groups, 3, 3), 1, 1),
        b=(8,),
        v=uneven((8, 3, 3, 3), 0, 2),
    )
    done = assert_rewrites(PASS, model)
    if groups == 1:
        w, v = weights_of(done, "ConvTranspose")
        assert_even(w, 1, v, 0)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b", ", s"])
def test_gemm(trans_b: int, bias: str) -> None:
    shape = (12, 6) if trans_b else (6, 12)
    model = build(
        f"""(float[N, 6] x) => (float y) {{
            a = Gemm <transB = {trans_b}, alpha = 0.5, beta = 2.0> (x, w{bias}) c = Relu(a)
            y = Gemm <transB = 1> (c, v)
        }}""",
        w=uneven(shape, 1 - trans_b, 1),
        b=(12,),
        s=np.float32(0.7),
        v=uneven((4, 12), 1, 2),
    )
    done = assert_rewrites(PASS, model)
    w, v = weights_of(done, "Gemm")
    assert_even(w, 1 - trans_b, v, 1)


@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm_with_the_weight_on_the_left(trans_a: int) -> None:
    """y = v (w x): rows of w are channels."""
    model = build(
        f"""(float[6, 5] x) => (float y) {{
            a = Gemm <transA = {trans_a}> (w, x, b) c = Relu(a) y = MatMul(v, c)
        }}""",
        w=uneven((6, 12) if trans_a else (12, 6), trans_a, 1),
        b=(12, 1),
        v=uneven((4, 12), 1, 2),
    )
    done = assert_rewrites(PASS, model)
    assert_even(weights_of(done, "Gemm", 0)[0], trans_a, weights_of(done, "MatMul", 0)[0], 1)


def test_gemm_reads_a_transposed_input() -> None:
    model = build(
        """(float[5, 6] x) => (float y) {
            a = MatMul(x, w) c = Transpose(a) d = Relu(c) y = Gemm <transA = 1> (d, v)
        }""",
        w=uneven((6, 12), 1, 1),
        v=uneven((12, 4), 0, 2),
    )
    assert_rewrites(PASS, model)


def test_matmul_bias_and_stacked_weights() -> None:
    model = build(
        """(float[N, 5, 6] x) => (float y) { a = MatMul(x, w) c = Add(b, a) d = Relu(c) y = MatMul(d, v) }""",
        w=uneven((6, 12), 1, 1),
        b=(12,),
        v=uneven((1, 12, 4), 1, 2),
    )
    done = assert_rewrites(PASS, model)
    assert_even(weights_of(done, "MatMul")[0], 1, weights_of(done, "MatMul")[1], 1)


def test_flatten_repeats_channels() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y) {
            a = Conv(x, w, b) c = Relu(a) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
            f = Flatten(p) y = Gemm(f, v)
        }""",
        w=uneven((12, 3, 3, 3), 0, 1),
        b=(12,),
        v=(48, 5),
    )
    done = assert_rewrites(PASS, model)
    assert_even(weights_of(done)[0], 0, weights_of(done, "Gemm")[0].reshape(12, 4, 5), 0)


def test_values_of_attention_heads() -> None:
    """The scale of v passes the product with attention weights, and the heads' Reshape and Transpose."""
    model = build(
        """(float[N, 5, 12] x, float[N, 3, 5, 5] p) => (float y) {
            v = MatMul(x, w) b1 = Add(v, b) r = Reshape(b1, to) t = Transpose <perm = [0, 2, 1, 3]> (r)
            m = MatMul(p, t) u = Transpose <perm = [0, 2, 1, 3]> (m) s = Reshape(u, back) y = MatMul(s, o)
        }""",
        w=uneven((12, 12), 1, 1),
        b=(12,),
        o=uneven((12, 12), 0, 2),
        to=np.array([0, 0, 3, 4]),
        back=np.array([0, 0, 12]),
    )
    done = assert_rewrites(PASS, model)
    w, o = weights_of(done, "MatMul")
    assert_even(w, 1, o, 0)


def test_gated_product() -> None:
    """The scale of `up` passes the product with the gate, whose own operand cannot be scaled."""
    model = build(
        """(float[N, 6] x) => (float y) {
            g = MatMul(x, a) s = Sigmoid(g) h = Mul(g, s) up = MatMul(x, w) p = Mul(h, up) y = MatMul(p, v)
        }""",
        a=(6, 12),
        w=uneven((6, 12), 1, 1),
        v=uneven((12, 4), 0, 2),
    )
    done = assert_rewrites(PASS, model)
    _, w, v = weights_of(done, "MatMul")
    assert_even(w, 1, v, 0)


def test_squeeze_and_excite() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y) {
            a = Conv(x, w) c = Relu(a) p = GlobalAveragePool(c) f = Conv(p, k) s = Sigmoid(f)
            m = Mul(c, s) y = Conv(m, v)
        }""",
        w=uneven((12, 3, 3, 3), 0, 1),
        k=(12, 12, 1, 1),
        v=uneven((4, 12, 1, 1), 1, 2),
    )
    assert_rewrites(PASS, model)


def test_concat_and_split() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y, float z) {
            a = Conv(x, w1) b = Conv(x, w2) c = Concat <axis = 1> (a, b) r = Relu(c)
            p, q = Split <axis = 1> (r, parts) y = Conv(p, v1) z = Conv(q, v2)
        }""",
        w1=uneven((8, 3, 3, 3), 0, 1),
        w2=uneven((4, 3, 3, 3), 0, 2),
        parts=np.array([6, 6]),
        v1=uneven((4, 6, 1, 1), 1, 3),
        v2=uneven((4, 6, 1, 1), 1, 4),
    )
    done = assert_rewrites(PASS, model)
    assert len(done.journal.changes) == 2  # the pieces are scaled apart from each other


def test_pieces_that_are_shuffled_and_joined_again() -> None:
    """Both pieces of a Split meet again in an Add and a Concat: their scales are no longer free."""
    model = build(
        """(float[N, 3, 6, 6] x) => (float y, float z) {
            a = Conv(x, w) r = Relu(a) p, q = Split <axis = 1> (r, parts) s = Add(p, q)
            c = Concat <axis = 1> (p, s, q) y = Conv(c, v) z = Conv(p, u)
        }""",
        w=uneven((12, 3, 3, 3), 0, 1),
        parts=np.array([6, 6]),
        v=uneven((4, 18, 1, 1), 1, 3),
        u=uneven((4, 6, 1, 1), 1, 4),
    )
    done = assert_rewrites(PASS, model)
    before = onnx.numpy_helper.to_array(model.graph.initializer[0])
    scale = (before / weights_of(done)[0])[:, 0, 0, 0]
    assert (scale[:6] == scale[6:]).all()
    assert len(np.unique(scale)) > 2


def test_one_piece_cannot_be_scaled() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y, float z) {
            a = Conv(x, w) p, q = Split <axis = 1> (a, parts) r = Relu(p) y = Conv(r, v) z = Tanh(q)
        }""",
        w=uneven((12, 3, 3, 3), 0, 1),
        parts=np.array([6, 6]),
        v=uneven((4, 6, 1, 1), 1, 3),
    )
    done = assert_rewrites(PASS, model)
    before = onnx.numpy_helper.to_array(model.graph.initializer[0])
    w = weights_of(done)[0]
    assert (w[6:] == before[6:]).all()
    assert (w[:6] != before[:6]).any()


def test_channel_shuffle() -> None:
    model = build(
        """(float[N, 3, 8, 8] x) => (float y) {
            a = Conv(x, w) r = Reshape(a, five) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) u = Reshape(t, four)
            y = Conv(u, v)
        }""",
        w=uneven((12, 3, 3, 3), 0, 1),
        five=np.array([0, 3, 4, 6, 6]),
        four=np.array([0, 12, 6, 6]),
        v=uneven((4, 12, 1, 1), 1, 2),
    )
    done = assert_rewrites(PASS, model)
    w, v = weights_of(done)
    assert_even(w.reshape(3, 4, 3, 3, 3).transpose(1, 0, 2, 3, 4).reshape(12, 3, 3, 3), 0, v, 1)


def test_residual_branches_are_scaled_together() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y, float z) {
            a = Conv(x, w0) c = Conv <pads = [1, 1, 1, 1]> (a, w1) r = Relu(c) d = Conv(r, w2) s = Add(a, d)
            e = Relu(s) y = Conv(e, v1) z = Conv(e, v2)
        }""",
        w0=uneven((12, 3, 1, 1), 0, 1),
        w1=(8, 12, 3, 3),
        w2=uneven((12, 8, 1, 1), 0, 1),
        v1=uneven((4, 12, 1, 1), 1, 2),
        v2=uneven((5, 12, 1, 1), 1, 2),
    )
    done = assert_rewrites(PASS, model)
    w0, _, w2, v1, v2 = weights_of(done)
    before = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    scale = (before[0] / w0)[:, 0, 0, 0]
    assert len(np.unique(scale)) > 2
    assert ((before[2] / w2) == scale[:, None, None, None]).all()
    for old, new in ((before[3], v1), (before[4], v2)):
        assert ((new / old) == scale[:, None, None]).all()


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("Clip(a, zero, six)", "Clip bounds all channels at 6"),
        ("Clip(a, minus)", "Clip bounds all channels at -1"),
        ("Clip(a, zero, given)", "the max of Clip is not one constant number"),
        ("Sigmoid(a)", "Sigmoid, which does not pass scales on"),
        ("Softmax <axis = 1> (a)", "Softmax, which does not pass scales on"),
        ("Pad(a, pads, six)", "Pad does not pad with zeros"),
        ("Mul(a, a)", "Mul multiplies channels by each other"),
        ("Div(six, a)", "is a divisor"),
    ],
)
def test_what_does_not_pass_scales(middle: str, reason: str) -> None:
    body = PAIR.format(middle).replace("8, 8] x)", "8, 8] x, float given)")
    model = build(
        body,
        w=uneven((12, 3, 3, 3), 0, 1),
        b=(12,),
        v=(4, 12, 1, 1),
        zero=np.float32(0),
        six=np.float32(6),
        minus=np.float32(-1),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        shift=(12,),
    )
    assert_refuses(PASS, model, reason)


@pytest.mark.parametrize("opset", [6, 7, 11, 13, 18, 20])
def test_clip_and_reduce_of_every_opset(opset: int) -> None:
    """Bounds and axes are attributes first, then inputs; Clip at 0 alone passes."""
    clip = "Clip <min = 0.0> (a)" if opset < 11 else "Clip(a, zero)"
    mean = "ReduceMean <axes = [2, 3]> (c)" if opset < 18 else "ReduceMean(c, axes)"
    model = build(
        f"(float[N, 3, 8, 8] x) => (float y) {{ a = Conv(x, w) c = {clip} m = {mean} y = Conv(m, v) }}",
        opset,
        w=uneven((12, 3, 3, 3), 0, 1),
        v=uneven((4, 12, 1, 1), 1, 2),
        zero=np.float32(0),
        axes=np.array([2, 3]),
    )
    assert_rewrites(PASS, model)


def test_another_reader_that_cannot_be_scaled() -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (float y, float t) { a = Conv(x, w) c = Relu(a) y = Conv(c, v) t = Tanh(c) }",
        w=uneven((12, 3, 3, 3), 0),
        v=(4, 12, 1, 1),
    )
    assert_refuses(PASS, model, "c is read by Tanh, which does not pass scales on")


def test_intermediate_that_is_a_graph_output() -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (float y, float a) { a = Conv(x, w) c = Relu(a) y = Conv(c, v) }",
        w=uneven((12, 3, 3, 3), 0),
        v=(4, 12, 1, 1),
    )
    assert_refuses(PASS, model, "a is a graph output")


def test_kept() -> None:
    model = build(PAIR.format("Relu(a)"), w=uneven((12, 3, 3, 3), 0), b=(12,), v=(4, 12, 1, 1))
    assert_refuses(PASS, model, "a is kept", keep=["a"])


def test_weight_that_is_not_constant() -> None:
    """Of the layer before: then there is nothing to divide; an overridable initializer is none either."""
    model = build(
        "(float[N, 3, 8, 8] x, float[12, 3, 3, 3] w) => (float y) { a = Conv(x, w) y = Conv(a, v) }",
        w=uneven((12, 3, 3, 3), 0),
        v=(4, 12, 1, 1),
    )
    assert_refuses(PASS, model, "the weight w of Conv is not constant")


def test_shared_weights_get_a_copy_if_it_is_small() -> None:
    model = build(
        """(float[N, 12, 8, 8] x) => (float y, float z) {
            a = Conv(x, w) c = Relu(a) y = Conv(c, v) z = Conv(x, w)
        }""",
        w=uneven((12, 12, 3, 3), 0),
        v=(4, 12, 1, 1),
    )
    assert_rewrites(PASS, model)
    done = apply(PASS, model, limits=Limits(growth_bytes=100))
    assert not done.journal.changes
    assert "weights with other readers would be copied, 5184 bytes more" in done.reasons


def test_float16_that_would_overflow_is_left_alone() -> None:
    model = build(
        "(float16[N, 3, 8, 8] x) => (float16 y) { a = Conv(x, w) c = Relu(a) y = Conv(c, v) }",
        w=np.full((12, 3, 1, 1), 3e4, np.float16),
        v=uneven((4, 12, 1, 1), 1, 5, bits=20).astype(np.float16),
    )
    assert_refuses(PASS, model, "the folded weight is not finite in float16")


def test_float16() -> None:
    model = build(
        "(float16[N, 3, 8, 8] x) => (float16 y) { a = Conv(x, w) c = Relu(a) y = Conv(c, v) }",
        w=uneven((12, 3, 3, 3), 0).astype(np.float16),
        v=uneven((4, 12, 1, 1), 1, 2).astype(np.float16),
    )
    assert_rewrites(PASS, model)


def test_dead_channels_are_left_alone() -> None:
    w, v = uneven((12, 3, 3, 3), 0, 1), uneven((4, 12, 1, 1), 1, 2)
    w[3], v[:, 5] = 0, 0
    model = build(PAIR.format("Relu(a)"), w=w, b=(12,), v=v)
    done = assert_rewrites(PASS, model)
    new_w, new_v = weights_of(done)
    assert (new_v[:, 3] == v[:, 3]).all()
    assert (new_w[5] == w[5]).all()
    assert np.isfinite(new_w).all()


def test_even_layers_are_left_alone() -> None:
    model = build(PAIR.format("Relu(a)"), w=np.ones((12, 3, 3, 3), np.float32), b=(12,), v=(9, 12, 3, 3))
    assert_refuses(PASS, model)


BRANCH = """(float[N, 3, 8, 8] x, bool t) => (float y) {
    y = If (t) <
        then_branch = a () => (float[N, 4, 6, 6] p) { a1 = Conv(x, w) a2 = Relu(a1) p = Conv(a2, v) },
        else_branch = b () => (float[N, 4, 6, 6] q) { b1 = Conv(x, w) q = Conv(b1, v) }
    >
}"""


def test_inside_an_if() -> None:
    model = build(BRANCH, w=uneven((12, 3, 3, 3), 0), v=(4, 12, 1, 1))
    done = assert_rewrites(PASS, model)
    assert len(done.journal.changes) == 2


def test_across_the_border_of_an_if() -> None:
    model = build(
        """(float[N, 3, 8, 8] x, bool t) => (float y, float z) {
            a = Conv(x, w) z = Conv(a, v)
            y = If (t) <
                then_branch = f () => (float[N, 4, 6, 6] p) { p = Conv(a, v) },
                else_branch = g () => (float[N, 12, 6, 6] q) { q = Relu(a) }
            >
        }""",
        w=uneven((12, 3, 3, 3), 0),
        v=(4, 12, 1, 1),
    )
    done = apply(PASS, model)
    assert not done.journal.changes
    assert "a is read in the body of a control-flow operator" in done.reasons
    assert "a is computed outside this body" in done.reasons


def test_inside_a_function() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 3, 8, 8] x) => (float y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]>
        f (x) => (y) {
            w = Constant <value = float[4, 3, 1, 1] {1, 1, 1, 16, 16, 16, 0.1, 0.1, 0.1, 64, 64, 64}> ()
            v = Constant <value = float[1, 4, 1, 1] {1, 2, 3, 4}> ()
            a = Conv(x, w) c = Relu(a) y = Conv(c, v)
        }"""
    done = apply(PASS, text)
    # Types inside a function are those of its callers; where they are not known nothing is done.
    assert len(done.journal.changes) <= 1


def test_data_decides_for_activations() -> None:
    """Weights are even, but one input channel is large, and with it one channel of the hidden layer."""
    model = build(
        "(float[N, 12] x) => (float y) { a = MatMul(x, w) c = Relu(a) y = MatMul(c, v) }",
        w=np.eye(12, dtype=np.float32),
        v=np.ones((12, 4), np.float32),
    )
    x = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    x[:, 5] *= 1000
    assert_refuses(PASS, model)
    chosen = EqualizeLayers(criterion="activations")
    with pytest.raises(UserError, match="needs calibration data"):
        apply(chosen, model)
    done = assert_rewrites(chosen, model, data={"x": x})
    (w, v) = weights_of(done, "MatMul")
    assert w[5, 5] < w[0, 0] / 16
    assert (w @ v == 1).all()


def test_rounds_are_checked() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        EqualizeLayers(rounds=0)


def test_a_failing_rescale_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RefusedRewrite("no")

    monkeypatch.setattr(_scaling, "_rescaled", fail)
    model = build(PAIR.format("Relu(a)"), w=uneven((12, 3, 3, 3), 0), b=(12,), v=(4, 12, 1, 1))
    assert_refuses(PASS, model, "no")
