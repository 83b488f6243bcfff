from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import Numerics
from graphopt.testing import Applied, apply, assert_rewrites
from graphopt_passes.quantization._noise import Reader
from graphopt_passes.quantization._observed import ChannelRanges
from graphopt_passes.quantization.smooth_activations import SmoothActivations

PASS = SmoothActivations(insert_mul="never")
WITH_MUL = SmoothActivations()
Array = np.ndarray[Any, Any]
C = 16


def build(body: str, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """A model from `inputs => outputs { nodes }` and weights: arrays, or shapes of normal numbers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}')
    rng = np.random.default_rng(1)
    for name, given in weights.items():
        array = rng.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else given
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def outliers(shape: tuple[int, ...] = (C,), size: float = 80.0) -> Array:
    """About ones, two of them large."""
    values = np.random.default_rng(3).uniform(0.5, 1.5, shape).astype(np.float32)
    values.reshape(-1)[[2, 9]] *= size
    return values


def data(*shape: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def array(done: Applied, op: str, slot: int, nth: int = 0) -> Array:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in done.proto.graph.initializer}
    node = [n for n in done.proto.graph.node if n.op_type == op][nth]
    return arrays[node.input[slot]]


NORM = """(float[N, 5, 16] x) => (float q, float k, float v) {
    n = LayerNormalization(x, gamma, beta) q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv)
}"""
QKV = {"wq": (C, 8), "wk": (C, 8), "wv": (C, 12)}


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"alpha": 0.8}, {"exact_scales": False}])
def test_layer_norm_and_all_its_readers(options: dict[str, Any]) -> None:
    model = build(NORM, gamma=outliers(), beta=(C,), **QKV)
    done = assert_rewrites(SmoothActivations(**options), model, data=data(8, 5, C))
    old = outliers() / outliers().min()
    gamma, wq, wv = (array(done, *at) for at in (("LayerNormalization", 1), ("MatMul", 1), ("MatMul", 1, 2)))
    assert np.ptp(np.log2(gamma)) < np.ptp(np.log2(old)) - 2
    scale = outliers() / gamma
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_allclose(wq, before["wq"] * scale[:, None], rtol=1e-5)
    np.testing.assert_allclose(wv, before["wv"] * scale[:, None], rtol=1e-5)
    assert len(done.journal.changes) == 1


def test_powers_of_two_change_no_bit() -> None:
    model = build(NORM, gamma=outliers(), beta=(C,), **QKV)
    assert_rewrites(PASS, model, data=data(8, 5, C), numerics=Numerics.EXACT)


@pytest.mark.parametrize(
    ("middle", "op", "slot"),
    [
        ("n = RMSNormalization(x, gamma)", "RMSNormalization", 1),
        ("r = Softsign(x) m = Mul(gamma, r) n = Add(m, beta)", "Mul", 0),
        ("r = Softsign(x) m = Div(r, inverse) n = Sub(m, beta)", "Div", 1),
        (
            "t = Transpose <perm = [0, 2, 1]> (x) b = InstanceNormalization(t, gamma, beta)"
            " n = Transpose <perm = [0, 2, 1]> (b)",
            "InstanceNormalization",
            1,
        ),
        (
            "t = Transpose <perm = [0, 2, 1]> (x) s = Softsign(t) b = BatchNormalization(s, gamma, beta, mean, var)"
            " n = Transpose <perm = [0, 2, 1]> (b)",
            "BatchNormalization",
            1,
        ),
        ("r = Softsign(x) n = MatMul(r, diagonal)", "MatMul", 1),
    ],
)
def test_what_takes_the_division(middle: str, op: str, slot: int) -> None:
    model = build(
        f"(float[N, 5, 16] x) => (float y) {{ {middle} y = MatMul(n, w) }}",
        opset=23 if "RMS" in middle else 17,
        gamma=outliers(),
        beta=(C,),
        inverse=1 / outliers(),
        mean=(C,),
        var=np.ones(C, np.float32),
        diagonal=np.diag(outliers()) + 0.01,
        w=np.random.default_rng(4).standard_normal((C, 8)).astype(np.float32) / outliers()[:, None],
    )
    model.ir_version = 11 if "RMS" in middle else 8
    done = assert_rewrites(PASS, model, data=data(8, 5, C))
    new = np.abs(array(done, op, slot))
    new = new.max(axis=0) if new.ndim == 2 else new
    old = 1 / outliers() if op == "Div" else outliers()
    assert np.ptp(np.log2(new)) < np.ptp(np.log2(old)) - 1


def test_batch_norm_reads_one_scale_and_writes_another() -> None:
    model = build(
        """(float[N, 3, 6, 6] x) => (float y) {
            a = Conv(x, w) n = BatchNormalization(a, gamma, beta, mean, var) y = Conv(n, v)
        }""",
        w=(C, 3, 3, 3),
        gamma=outliers(),
        beta=(C,),
        mean=(C,),
        var=np.abs(outliers()),
        v=(4, C, 1, 1),
    )
    done = assert_rewrites(PASS, model, data=data(8, 3, 6, 6))
    assert len(done.journal.changes) == 1


def test_convolutions() -> None:
    w = np.random.default_rng(0).standard_normal((C, 3, 3, 3)).astype(np.float32)
    model = build(
        "(float[N, 3, 8, 8] x) => (float y) { a = Conv(x, w, b) c = Relu(a) y = Conv <group = 2> (c, v) }",
        w=w * outliers().reshape(-1, 1, 1, 1),
        b=(C,),
        v=(4, C // 2, 3, 3),
    )
    done = assert_rewrites(PASS, model, data=data(8, 3, 8, 8))
    largest = np.abs(array(done, "Conv", 1)).max(axis=(1, 2, 3))
    assert largest.max() / largest.min() < 50  # it was several hundred


GELU = """(float[N, 5, 16] x) => (float y, float z) {
    m = Mul(x, gamma) g = Softplus(m) y = MatMul(g, w) h = MatMul(g, v) z = Add(h, g)
}"""


def test_a_mul_is_inserted_unless_forbidden() -> None:
    model = build(GELU, gamma=outliers(), w=(C, 8), v=(C, C))
    done = apply(PASS, model, data=data(8, 5, C))
    assert not done.journal.changes
    assert any("g is computed by Softplus" in r or "g is read by" in r for r in done.reasons), done.reasons
    done = assert_rewrites(
        WITH_MUL,
        model,
        ops={"Mul": 2, "Softplus": 1, "MatMul": 2, "Add": 1},
        data=data(8, 5, C),
    )
    assert done.reasons == []
    add = next(n for n in done.proto.graph.node if n.op_type == "Add")
    assert add.input[1] == "g"  # other readers keep what they read


def test_a_mul_in_front_of_a_convolution_and_at_an_input() -> None:
    model = build(
        "(float[N, 16, 6, 6] x) => (float y) { y = Conv(x, w) }",
        w=(4, C, 3, 3),
    )
    feeds = data(8, C, 6, 6)
    feeds["x"] *= outliers().reshape(-1, 1, 1)
    assert not apply(WITH_MUL, model, data=feeds).journal.changes
    done = assert_rewrites(
        SmoothActivations(insert_mul="always"), model, ops={"Mul": 1, "Conv": 1}, data=feeds
    )
    assert array(done, "Mul", 1).shape == (C, 1, 1)


def test_graph_output() -> None:
    model = build(NORM.replace("=> (", "=> (float n, "), gamma=outliers(), beta=(C,), **QKV)
    done = apply(PASS, model, data=data(8, 5, C))
    assert not done.journal.changes
    assert "n is a graph output" in done.reasons


def test_another_reader() -> None:
    text = NORM.replace("=> (", "=> (float t, ").replace("q = MatMul", "t = Tanh(n) q = MatMul")
    done = apply(PASS, build(text, gamma=outliers(), beta=(C,), **QKV), data=data(8, 5, C))
    assert not done.journal.changes
    assert any("Tanh, which does not pass scales on" in r for r in done.reasons)


def test_parameter_that_is_not_constant() -> None:
    text = NORM.replace("16] x)", "16] x, float[16] gamma)")
    done = apply(PASS, build(text, gamma=outliers(), beta=(C,), **QKV), data=data(8, 5, C))
    assert not done.journal.changes
    assert "gamma of LayerNormalization is not constant" in done.reasons


def test_what_gains_nothing_is_left_alone() -> None:
    model = build(NORM, gamma=np.ones(C, np.float32), beta=(C,), **QKV)
    for alpha in ("auto", 0.5):
        done = apply(SmoothActivations(alpha=alpha), model, data=data(8, 5, C))
        assert not done.journal.changes


def test_activations_that_make_little_noise_are_left_alone() -> None:
    """Channels that differ by no more than those of any layer do."""
    model = build(NORM, gamma=np.linspace(1, 3, C).astype(np.float32), beta=(C,), **QKV)
    assert not apply(PASS, model, data=data(8, 5, C)).journal.changes


def test_needs_data_only_if_there_is_something_to_smooth() -> None:
    model = build(NORM, gamma=outliers(), beta=(C,), **QKV)
    with pytest.raises(UserError, match="smooth-activations needs calibration data"):
        apply(PASS, model)
    apply(PASS, build("(float[N] x) => (float[N] y) { y = Relu(x) }"))


def test_a_run_without_quantization_has_the_data() -> None:
    model = build(NORM, gamma=outliers(), beta=(C,), **QKV)
    done = graphopt.run(model, "smooth-activations", data=data(8, 5, C))
    assert done.report.verdict == "proven"
    assert [p.rewrites for p in done.report.passes] == [1]


def test_inside_an_if() -> None:
    model = build(
        """(float[N, 5, 16] x, bool t) => (float y) {
            y = If (t) <
                then_branch = a () => (float[N, 5, 8] p) {
                    n = LayerNormalization(x, gamma, beta) p = MatMul(n, w)
                },
                else_branch = b () => (float[N, 5, 8] q) { q = MatMul(x, w) }
            >
        }""",
        gamma=outliers(),
        beta=(C,),
        w=(C, 8),
    )
    feeds: dict[str, Any] = data(8, 5, C)
    done = apply(PASS, model, data={"x": feeds["x"], "t": np.array(True)})
    assert len(done.journal.changes) == 1, done.reasons


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_is_checked(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        SmoothActivations(alpha=alpha)


def test_bits_are_checked() -> None:
    with pytest.raises(ValueError, match="bits must be from 2 to 16"):
        SmoothActivations(bits=1)


def test_expected_noise_is_what_rounding_makes() -> None:
    """The estimate from ranges and mean squares against rounding of real numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, C)) * np.abs(outliers())
    w = rng.standard_normal((C, 8))
    signal = (x**2).mean(axis=0) @ w**2
    reader = Reader(
        ChannelRanges(x.min(axis=0), x.max(axis=0), (x**2).mean(axis=0)),
        np.arange(C),
        (np.abs(w) / np.sqrt(signal))[None],
        (w**2 / signal).sum(axis=1),
        1,
    )
    for logs in (np.zeros(C), np.log2(np.abs(outliers())) / 2):
        xs, ws = x / 2**logs, w * 2 ** logs[:, None]
        step = (xs.max() - xs.min()) / 255
        steps = np.abs(ws).max(axis=0) / 127
        noisy = (np.round(xs / step) * step) @ (np.round(ws / steps) * steps)
        measured = (((noisy - x @ w) ** 2).mean(axis=0) / signal).mean()
        assert 0.6 < sum(reader.relative_noise(logs, 8)) / measured < 1.7
