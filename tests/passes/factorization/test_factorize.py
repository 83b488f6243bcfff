from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import Array
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.factorization.factorize import Factorize


def low(shape: tuple[int, int], rank: int, noise: float = 0.0, seed: int = 0) -> Array:
    """A matrix of the rank, about."""
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) / rank**0.5
    return (product + noise * rng.standard_normal(shape)).astype(np.float32)


def numbers(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


MATMUL = "(float[M, 96] x) => (float[M, 80] y) { y = MatMul(x, w) }"
PRODUCTS = [
    (MATMUL, (96, 80), {"MatMul": 2}),
    ("(float[2, M, 96] x) => (float[2, M, 80] y) { y = MatMul(x, w) }", (96, 80), {"MatMul": 2}),
    ("(float[96] x) => (float[80] y) { y = MatMul(x, w) }", (96, 80), {"MatMul": 2}),
    ("(float[80, M] x) => (float[96, M] y) { y = MatMul(w, x) }", (96, 80), {"MatMul": 2}),
    ("(float[M, 96] x) => (float[M, 80] y) { y = Gemm(x, w, b) }", (96, 80), {"Gemm": 2}),
    ("(float[M, 96] x) => (float[M, 80] y) { y = Gemm<transB=1>(x, w, b) }", (80, 96), {"Gemm": 2}),
    (
        "(float[96, M] x) => (float[M, 80] y) { y = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(x, w, b) }",
        (80, 96),
        {"Gemm": 2},
    ),
    ("(float[96, M] x) => (float[80, M] y) { y = Gemm(w, x) }", (80, 96), {"Gemm": 2}),
    (
        "(float[M, 96] x) => (float[80, M] y) { y = Gemm<transA=1, transB=1, alpha=2.0>(w, x) }",
        (96, 80),
        {"Gemm": 2},
    ),
]


@pytest.mark.parametrize(("body", "shape", "ops"), PRODUCTS)
def test_products_of_low_rank_are_exact(body: str, shape: tuple[int, int], ops: dict[str, int]) -> None:
    model = build(body, w=low(shape, 12), b=(80,))
    if "b)" not in body:
        del model.graph.initializer[1]
    done = assert_rewrites(Factorize(rank=12), model, ops=ops)
    assert sqnr(model, done.proto) > 100
    assert numbers(done.proto) - numbers(model) == 12 * (96 + 80) - 96 * 80
    assert "rank 12 of 80: 28% of the work" in done.journal.changes[0].why


CONVS = [
    ("(float[1, 64, 9, 9] x) => (float y) { y = Conv(x, w, b) }", (72, 64, 1, 1)),
    (
        "(float[1, 64, 9, 9] x) => (float y) { y = Conv<strides=[2, 2], kernel_shape=[1, 1]>(x, w, b) }",
        (72, 64, 1, 1),
    ),
    ("(float[2, 16, 9, 8] x) => (float y) { y = Conv<pads=[1, 1, 1, 1]>(x, w, b) }", (72, 16, 3, 3)),
    (
        '(float[2, 16, 9, 8] x) => (float y) { y = Conv<auto_pad="SAME_UPPER", strides=[2, 1], dilations=[1, 1]>(x, w, b) }',
        (72, 16, 3, 3),
    ),
    (
        "(float[2, 16, 9, 8] x) => (float y) { y = Conv<dilations=[2, 2], kernel_shape=[3, 3]>(x, w) }",
        (72, 16, 3, 3),
    ),
    ("(float[2, 64, 20] x) => (float y) { y = Conv<pads=[2, 1]>(x, w, b) }", (72, 64, 3)),
    ("(float[2, 64, 9, 9] x) => (float y) { y = Conv<group=2, pads=[1, 1, 1, 1]>(x, w, b) }", (72, 32, 3, 3)),
]


@pytest.mark.parametrize(("body", "shape"), CONVS)
def test_convolutions_of_low_rank_are_exact(body: str, shape: tuple[int, ...]) -> None:
    groups = 2 if "group=2" in body else 1
    parts = [low((72 // groups, int(np.prod(shape[1:]))), 8, seed=g) for g in range(groups)]
    weights: Any = {"w": np.concatenate(parts).reshape(shape)}
    if "b)" in body:
        weights["b"] = (72,)
    model = build(body, **weights)
    done = assert_rewrites(Factorize(rank=8), model, ops={"Conv": 2})
    assert sqnr(model, done.proto) > 100


def correlated(rows: int, columns: int, rank: int, seed: int = 5) -> Array:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return (mixed + 0.1 * rng.standard_normal((rows, columns))).astype(np.float32)


def test_data_finds_the_best_product() -> None:
    x = correlated(256, 96, 20)
    w = np.random.default_rng(1).standard_normal((96, 80)).astype(np.float32)
    model = build(MATMUL, w=w)
    plain, aware = (apply(Factorize(rank=16), model, data=d).proto for d in (None, {"x": x}))
    assert sqnr(model, aware, {"x": x}) > sqnr(model, plain, {"x": x}) + 5
    # Eckart and Young on the outputs themselves: what no matrix of the rank can beat.
    singular = np.linalg.svd(x.astype(np.float64) @ w, compute_uv=False)
    bound = 10 * np.log10((singular**2).sum() / (singular[16:] ** 2).sum())
    assert bound - 1 < sqnr(model, aware, {"x": x}) <= bound + 1e-3


def test_plain_svd_without_data() -> None:
    w = low((96, 80), 80, seed=3)
    made = apply(Factorize(rank=16), build(MATMUL, w=w)).proto
    left, right = (onnx.numpy_helper.to_array(t) for t in made.graph.initializer)
    product = right @ left if right.shape[0] == 96 else left @ right
    u, s, v = np.linalg.svd(w.astype(np.float64))
    np.testing.assert_allclose(product, (u[:, :16] * s[:16]) @ v[:16], atol=1e-4)


def test_the_bias_keeps_the_mean() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 96)) + 4).astype(np.float32)
    for body, shape in (
        ("(float[M, 96] x) => (float[M, 80] y) { y = Gemm<transB=1>(x, w, b) }", (80, 96)),
        ("(float[M, 96, 1] x) => (float y) { y = Conv(x, w, b) }", (80, 96, 1)),
        ("(float[M, 96, 1] x) => (float y) { y = Conv(x, w) }", (80, 96, 1)),
    ):
        given: Any = {"w": rng.standard_normal(shape).astype(np.float32)}
        if "b)" in body:
            given["b"] = (80,)
        model = build(body, **given)
        data = {"x": x if "Gemm" in body else x[:, :, None]}
        done = apply(Factorize(rank=16), model, data=data)
        from graphopt.runtime.session import open_session

        with open_session(model) as one, open_session(done.proto) as other:
            y, z = one.run(data)["y"], other.run(data)["y"]
        error = (z - y).reshape(200, 80).astype(np.float64)
        # Over all samples; some of them were held back.
        assert np.square(error.mean(axis=0)).sum() < 0.02 * np.square(error).mean(axis=0).sum()


def test_fewer_samples_than_inputs() -> None:
    x = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    model = build(MATMUL, w=low((96, 80), 20, 0.05))
    made = apply(Factorize(rank=24), model, data={"x": x}).proto
    # What the data does not show is kept as plain SVD would.
    assert sqnr(model, made) > 12


def test_energy() -> None:
    x = correlated(256, 96, 20)
    w = np.random.default_rng(1).standard_normal((96, 80)).astype(np.float32)
    model = build(MATMUL, w=w)
    done = apply(Factorize(energy=0.9, multiple=1), model, data={"x": x})
    rank = int(done.journal.changes[0].why.split()[1])
    energies = np.linalg.svd(x.astype(np.float64) @ w, compute_uv=False) ** 2
    shares = np.cumsum(energies) / energies.sum()
    assert abs(rank - 1 - int((shares >= 0.9).argmax())) <= 1
    eight = apply(Factorize(energy=0.9), model, data={"x": x})
    assert int(eight.journal.changes[0].why.split()[1]) == -(-rank // 8) * 8
    assert_refuses(Factorize(energy=0.99999), model, "would save less than 10%")


THREE = """(float[M, 128] x) => (float[M, 128] y) {
    a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = Relu(b) y = MatMul(s, w3)
}"""


def test_ratio_takes_from_where_it_costs_least() -> None:
    weights = {
        "w1": low((128, 128), 16, 0.01),
        "w2": low((128, 128), 128, 0.01),
        "w3": low((128, 128), 32, 0.01),
    }
    model = build(THREE, **weights)
    done = assert_rewrites(Factorize(ratio=0.6), model, ops={"MatMul": 5, "Relu": 2})
    assert numbers(done.proto) <= 0.6 * numbers(model)
    assert sqnr(model, done.proto) > 25
    shapes = {tuple(t.dims) for t in done.proto.graph.initializer}
    assert (128, 128) in shapes  # the one of full rank
    with pytest.raises(UserError, match=r"cannot be met.* 0\.125"):
        apply(Factorize(ratio=0.05), model)


def test_ratio_counts_positions() -> None:
    body = """(float[1, 64, 16, 16] x) => (float y) {
        a = Conv(x, w1) r = Relu(a) p = MaxPool<kernel_shape=[8, 8], strides=[8, 8]>(r) y = Conv(p, w2)
    }"""
    rng = np.random.default_rng(0)
    model = build(
        body,
        w1=rng.standard_normal((64, 64, 1, 1)).astype(np.float32),
        w2=low((64, 64), 8, 0.05).reshape(64, 64, 1, 1),
    )
    (change,) = apply(Factorize(ratio=0.8, budget="parameters"), model).journal.changes
    assert "of the weight" in change.why
    few = apply(Factorize(ratio=0.8, budget="parameters"), model).proto
    many = apply(Factorize(ratio=0.8), model).proto
    assert "w1" in {t.name for t in few.graph.initializer}
    assert "w1" not in {
        t.name for t in many.graph.initializer
    }  # 256 positions to 4: only it can save so much


def test_identity_is_kept() -> None:
    from graphopt.model import Model
    from graphopt.pipeline.manager import Settings, execute
    from graphopt.pipeline.targets import get_target

    loaded = Model.load(build(PRODUCTS[4][0], w=low((96, 80), 12), b=(80,)))
    node, output = loaded.graph.nodes[0], loaded.graph.outputs[0]
    done = execute(loaded, [Factorize(rank=12)], Settings(get_target("portable")))
    last = done.model.graph.nodes[-1]
    assert last.name == node.name
    assert last.outputs[0].name == output.name


def test_refusals() -> None:
    model = build(MATMUL, w=(96, 80))
    go = Factorize(rank=16)
    assert_refuses(go, model, "is kept", keep=["y"])
    assert_refuses(Factorize(rank=16, min_elements=10000), model, "too few")
    assert_refuses(Factorize(rank=40), model, "would save less than 10%")
    assert_refuses(go, build(MATMUL, w=np.full((96, 80), np.nan, np.float32)), "not finite")
    output = "(float[M, 96] x) => (float y, float[96, 80] w) { y = MatMul(x, w) }"
    assert_refuses(go, build(output, w=(96, 80)), "graph output")
    shared = "(float[M, 96] x, float[M, 96] v) => (float y, float z) { y = MatMul(x, w) z = MatMul(v, w) }"
    assert_refuses(go, build(shared, w=(96, 80)), "has other readers")
    over = "(float[M, 96] x, float[96, 80] w) => (float y) { y = MatMul(x, w) }"
    assert_refuses(go, build(over, w=(96, 80)))
    both = "(float[M, 80] x) => (float y) { a = MatMul(v, w) y = Add(x, a) }"
    assert_refuses(go, build(both, w=(96, 80), v=(1, 96)), "both of its operands are constant")
    depth = "(float[1, 512, 9, 9] x) => (float y) { y = Conv<group=512>(x, w) }"
    assert_refuses(Factorize(rank=1), build(depth, w=(512, 1, 3, 3)), "depthwise")
    assert_refuses(Factorize(rank=16, ops=("Conv",)), model)
    assert_refuses(Factorize(rank=16, exclude=("y",)), model)
    with pytest.raises(UserError, match="'q'"):
        graphopt.run(model, [Factorize(rank=16, layers=("q",))])


def test_two_factors_stay_as_they_are() -> None:
    body = "(float[M, 96] x) => (float[M, 80] y) { a = MatMul(x, v) y = MatMul(a, w) }"
    assert_refuses(Factorize(rank=4), build(body, v=(96, 64), w=(64, 80)), "two factors")
    # With a bias, or something else to read it, what is between them is no inner product.
    other = "(float[M, 96] x) => (float[M, 80] y, float[M, 64] a) { a = MatMul(x, v) y = MatMul(a, w) }"
    assert_rewrites(Factorize(rank=4), build(other, v=(96, 64), w=(64, 80)), ops={"MatMul": 4})
    biased = "(float[M, 96] x) => (float[M, 80] y) { a = Gemm(x, v, b) y = Gemm(a, w) }"
    assert_rewrites(Factorize(rank=4), build(biased, v=(96, 64), w=(64, 80), b=(64,)), ops={"Gemm": 4})


def test_old_gemm_needs_its_c() -> None:
    model = build(PRODUCTS[5][0], opset=9, ir=4, w=low((80, 96), 12), b=(80,))
    done = assert_rewrites(Factorize(rank=12), model, ops={"Gemm": 2})
    assert sqnr(model, done.proto) > 100


def test_half_precision() -> None:
    w = low((96, 80), 12).astype(np.float16)
    model = build(MATMUL.replace("float[", "float16["), w=w)
    done = assert_rewrites(Factorize(rank=12), model)
    assert sqnr(model, done.proto) > 45
    huge = build(MATMUL.replace("float[", "float16["), w=np.full((96, 80), 6e4, np.float16))
    assert_refuses(Factorize(rank=8), huge, "too large for float16")


def test_if_bodies() -> None:
    body = """(float[M, 96] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[M, 80] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[M, 80] b) { b = MatMul(x, v) }>
    }"""
    model = build(body, w=low((96, 80), 12), v=low((96, 80), 12, seed=1))
    assert_rewrites(Factorize(rank=12), model, ops={"If": 1, "MatMul": 4})
    rng = np.random.default_rng(0)
    samples = [
        {"x": rng.standard_normal((4, 96)).astype(np.float32), "c": np.array(i % 2 == 0)} for i in range(40)
    ]
    done = apply(Factorize(rank=12), model, data=samples)
    assert [c.why.split()[-1] for c in done.journal.changes] == ["output", "output"]


def test_intermediate_that_is_an_output() -> None:
    body = "(float[M, 96] x) => (float y, float[M, 80] a) { a = MatMul(x, w) y = Relu(a) }"
    done = assert_rewrites(Factorize(rank=12), build(body, w=low((96, 80), 12)), ops={"MatMul": 2, "Relu": 1})
    assert sqnr(build(body, w=low((96, 80), 12)), done.proto) > 100


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "say how far to go"),
        ({"rank": 8, "ratio": 0.5}, "not by ratio and rank"),
        ({"ratio": 1.5}, "ratio is a share"),
        ({"energy": 0.0}, "energy is a share"),
        ({"rank": 0}, "rank is at least 1"),
        ({"rank": 8, "multiple": 0}, "multiple"),
        ({"rank": 8, "saving": 1.0}, "saving"),
        ({"rank": 8, "damping": -1.0}, "damping"),
        ({"rank": 8, "ops": ("LSTM",)}, "LSTM cannot be factorized"),
    ],
)
def test_options_that_make_no_sense(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Factorize(**given)


def test_the_report_sums_up() -> None:
    model = build(THREE, w1=low((128, 128), 16), w2=low((128, 128), 128), w3=low((128, 128), 16))
    (said,) = graphopt.run(model, [Factorize(energy=0.999)]).report.passes
    assert said.remark == "2 layers: 32,768 -> 8,192 weights, 25% of their multiplications"
    assert [c.node for c in said.changes] == ["a", "y"]
    assert "rank 16 of 128: 25% of the work" in said.changes[0].why


def test_many_more_outputs_than_inputs() -> None:
    body = "(float[M, 48] x) => (float[M, 160] y) { y = MatMul(x, w) }"
    exact = build(body, w=low((48, 160), 8))
    assert sqnr(exact, assert_rewrites(Factorize(rank=8), exact).proto) > 100
    x = correlated(512, 48, 12)
    w = np.random.default_rng(1).standard_normal((48, 160)).astype(np.float32)
    model = build(body, w=w)
    singular = np.linalg.svd(x.astype(np.float64) @ w, compute_uv=False)
    bound = 10 * np.log10((singular**2).sum() / (singular[8:] ** 2).sum())
    got = sqnr(model, apply(Factorize(rank=8), model, data={"x": x}).proto, {"x": x})
    assert bound - 1 < got <= bound + 1e-3
