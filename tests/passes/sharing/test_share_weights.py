from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, sqnr, types_of, weights_of

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import Array
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.sharing.kmeans import kmeans
from graphopt_passes.sharing.share_weights import ShareWeights

MATMUL = "(float[M, 96] x) => (float[M, 40] y) { y = MatMul(x, w) }"
WIDE = MATMUL.replace("40", "400")
CONV = "(float[1, 32, 8, 8] x) => (float[1, 24, 6, 6] y) { y = Conv(x, w, b) }"


def effective(model: onnx.ModelProto, shape: tuple[int, int]) -> Array:
    """The weight that a MatMul by a shared one amounts to."""
    from graphopt.runtime.session import open_session

    with open_session(model, optimize="none") as session:
        found: Array = session.run({"x": np.eye(shape[0], dtype=np.float32)})["y"]
    return found


@pytest.mark.parametrize(
    ("bits", "least"), [(8, 41), (7, 36), (6, 30), (5, 24), (4, 19), (3, 14), (2, 8.5), (1, 3.5)]
)
@pytest.mark.parametrize("packed", [True, False])
def test_gather(bits: int, least: float, packed: bool, tmp_path: Path) -> None:
    model = build(WIDE, opset=11, ir=6, w=(96, 400))
    pass_ = ShareWeights(bits=bits, packed=packed)
    made = assert_rewrites(pass_, model).proto
    assert sqnr(model, made) > least
    assert ort_ops(made, tmp_path) == ["MatMul"]  # computed while loading, as the docstring says
    w = effective(made, (96, 400))
    assert len(np.unique(w)) == 1 << bits
    stored = sum(len(t.raw_data) for t in made.graph.initializer if t.data_type == onnx.TensorProto.UINT8)
    assert stored <= 96 * 400 * (bits if packed else 8) / 8 + 40


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("granularity", "group"), [("channel", 0), ("channel", 7), ("column", 32)])
def test_granularity(granularity: Any, group: int, packed: bool) -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32)
    model = build(MATMUL, w=w)
    options: Any = {"bits": 3, "granularity": granularity, "group_size": group, "packed": packed}
    got = effective(assert_rewrites(ShareWeights(**options), model).proto, w.shape)
    # MatMul's channels lie along axis 1, its inputs along axis 0.
    axis = 1 if granularity == "channel" else 0
    for start in range(0, w.shape[axis], group or 1):
        at = np.arange(start, min(start + (group or 1), w.shape[axis]))
        mine, theirs = w.take(at, axis), got.take(at, axis)
        centers = kmeans(mine, 8).astype(np.float32)
        nearest = centers[np.abs(mine[..., None] - centers).argmin(axis=-1)]
        np.testing.assert_allclose(theirs, nearest, atol=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "column"])
def test_conv(granularity: Any, tmp_path: Path) -> None:
    model = build(CONV, w=(24, 32, 3, 3), b=(24,))
    pass_ = ShareWeights(bits=4, granularity=granularity, group_size=8 if granularity == "column" else 0)
    made = assert_rewrites(pass_, model).proto
    assert sqnr(model, made) > 18
    assert "Gather" not in ort_ops(made, tmp_path)


def test_transposed_gemm_has_its_channels_first() -> None:
    rng = np.random.default_rng(0)
    w = np.exp2(np.arange(40))[:, None] * rng.choice(np.array([-1, 0.5, 2]), (40, 96))
    body = "(float[3, 96] x) => (float[3, 40] y) { y = Gemm<transB=1>(x, w) }"
    model = build(body, w=w.astype(np.float32))
    assert sqnr(model, apply(ShareWeights(bits=2, granularity="channel"), model).proto) == 200


def test_dense_then_stored_without_loss() -> None:
    model = build(MATMUL, w=(96, 40))
    done = assert_rewrites(ShareWeights(bits=4, form="dense"), model, ops={"MatMul": 1})
    dense = effective(done.proto, (96, 40))
    assert len(np.unique(dense)) == 16
    (change,) = done.journal.changes
    assert f"{96 * 40 * 4} bytes in the file as before" in change.why
    before, after = (int(n) for n in change.why.rpartition("deflated ")[2].split(" -> "))
    assert after < before / 4
    assert after == len(zlib.compress(weights_of(done.proto)["w_1"].raw_data, 6))
    stored = apply([ShareWeights(bits=4, form="dense"), ShareWeights(bits=4)], model).proto
    np.testing.assert_array_equal(effective(stored, (96, 40)), dense)
    assert_refuses(ShareWeights(bits=4, form="dense"), done.proto, "no more values than that already")


def test_pruned_weights_stay_pruned() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((96, 40)).astype(np.float32) + 3  # no palette has a 0 by itself
    w[rng.random(w.shape) < 0.6] = 0
    model = build(MATMUL, w=w)
    for options in ({}, {"granularity": "channel"}, {"form": "dense"}, {"form": "dequantize"}):
        got = effective(apply(ShareWeights(bits=3, **options), model).proto, w.shape)
        assert (got[w == 0] == 0).all(), options
    w[w == 0] = 1
    w[0, 0] = 0
    got = effective(apply(ShareWeights(bits=3), build(MATMUL, w=w)).proto, w.shape)
    assert got[0, 0] != 0  # one weight that happens to be 0 is like any other


def test_even_steps(tmp_path: Path) -> None:
    model = build(MATMUL, w=(96, 40))
    for options, kind, least in (
        ({"form": "dequantize"}, "INT8", 27),
        ({"form": "dequantize", "granularity": "channel"}, "INT8", 28),
        ({"form": "dequantize", "bits": 4}, "INT4", 16),
        ({"form": "block", "bits": 4, "group_size": 32}, "INT4", 17),
        ({"form": "block", "bits": 5}, "INT8", 22),
    ):
        done = assert_rewrites(ShareWeights(**options), model, ops={"DequantizeLinear": 1, "MatMul": 1})
        assert types_of(done.proto)[kind] == 1
        assert sqnr(model, done.proto) > least, options
        assert ort_ops(done.proto, tmp_path) == ["MatMulNBits"] or "granularity" not in options
        assert len(np.unique(effective(done.proto, (96, 40)))) <= (1 << options.get("bits", 6)) or (
            "granularity" in options or options["form"] == "block"
        )


def test_the_report_says_what_runs() -> None:
    def why(body: str, **options: Any) -> str:
        weights: Any = {"w": (24, 32, 3, 3), "b": (24,)} if body is CONV else {"w": (96, 40)}
        (change,) = apply(ShareWeights(**options), build(body, **weights)).journal.changes
        return change.why

    assert "floats in memory as before: expanded at load" in why(MATMUL)
    assert "(MatMulNBits)" in why(MATMUL, form="dequantize")
    assert "dequantized on every call" in why(CONV, form="dequantize")


def test_the_size_it_says_is_the_size_it_has() -> None:
    for name in ("w", "encoder_layer_3_attention_weight"):
        model = build(WIDE.replace("w)", f"{name})"), **{name: (96, 400)})
        for options in ({}, {"bits": 4}, {"packed": False}, {"bits": 5, "granularity": "column"}):
            done = apply(ShareWeights(**options), model)
            rest = len(model.SerializeToString()) - 96 * 400 * 4
            said = int(done.journal.changes[0].why.split(" bytes in the file")[0].split()[-1])
            assert said == pytest.approx(len(done.proto.SerializeToString()) - rest, rel=0.03), options


def test_inputs_tell_what_matters() -> None:
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(96) < 8, 30.0, 0.1)
    data = {"x": (rng.standard_normal((512, 96)) * scale).astype(np.float32)}
    w = (rng.standard_normal((96, 40)) * np.where(np.arange(96) < 8, 0.2, 1)[:, None]).astype(np.float32)
    model = build(MATMUL, w=w)
    found = {}
    for importance in ("none", "auto", "inputs", "outputs"):
        made = apply(ShareWeights(bits=4, importance=importance), model, data=data).proto
        found[importance] = sqnr(model, made, data)
    assert found["auto"] == found["outputs"]
    assert found["outputs"] >= found["inputs"] > found["none"] + 3
    for importance in ("inputs", "outputs"):
        with pytest.raises(UserError, match="needs data"):
            graphopt.run(model, [ShareWeights(importance=importance)])
        assert_refuses(ShareWeights(importance=importance), model, "there is no data")


def mixed(rows: int, columns: int) -> Array:
    """Inputs that go together."""
    rng = np.random.default_rng(4)
    mixing = rng.standard_normal((columns // 4, columns))
    both = rng.standard_normal((rows, columns // 4)) @ mixing
    return (both + 0.3 * rng.standard_normal((rows, columns))).astype(np.float32)


@pytest.mark.parametrize("form", ["gather", "dense"])
@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "channel"}, {"granularity": "channel", "group_size": 9}, {"granularity": "column"}],
)
def test_outputs_come_closer_than_any_nearest_entry(options: Any, form: Any) -> None:
    model, data = build(MATMUL, w=(96, 40)), {"x": mixed(1024, 96)}
    one, other = (
        apply(ShareWeights(bits=3, form=form, importance=i, **options), model, data=data)
        for i in ("inputs", "outputs")
    )
    assert sqnr(model, other.proto, data) > sqnr(model, one.proto, data) + 6
    w = effective(other.proto, (96, 40))
    axis = {"channel": 1, "column": 0}.get(options.get("granularity", ""))
    size = options.get("group_size", 64 if axis == 0 else 1)
    for start in range(0, 1 if axis is None else w.shape[axis], size):
        part = w if axis is None else w.take(range(start, min(start + size, w.shape[axis])), axis)
        assert len(np.unique(part)) <= 8
    held_out = {"x": mixed(2048, 96)[1024:]}
    assert sqnr(model, other.proto, held_out) > sqnr(model, one.proto, held_out) + 6


def test_outputs_of_convolutions() -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.standard_normal((64, 32, 10, 10)), axis=1).astype(np.float32)
    body = "(float[N, 32, 10, 10] x) => (float[N, 24, 8, 8] y) { y = Conv<group=GG>(x, w, b) }"
    for groups in (1, 4):
        model = build(body.replace("GG", str(groups)), w=(24, 32 // groups, 3, 3), b=(24,))
        one, other = (
            apply(ShareWeights(bits=3, importance=i), model, data={"x": smooth}).proto
            for i in ("inputs", "outputs")
        )
        assert sqnr(model, other, {"x": smooth}) > sqnr(model, one, {"x": smooth}) + 6


def test_zeros_stay_where_outputs_count() -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32) + 1
    w[np.random.default_rng(1).random(w.shape) < 0.6] = 0
    done = apply(ShareWeights(bits=3), build(MATMUL, w=w), data={"x": mixed(1024, 96)})
    got = effective(done.proto, w.shape)
    assert (got[w == 0] == 0).all()
    assert len(np.unique(got)) <= 8
    assert "SQNR of the output" in done.journal.changes[0].why


def test_second_layer_makes_up_for_the_first() -> None:
    body = "(float[M, 96] x) => (float[M, 40] y) { a = MatMul(x, v) r = Relu(a) y = MatMul(r, w) }"
    model, data = build(body, v=(96, 96), w=(96, 40)), {"x": mixed(2048, 96)}
    found = [
        sqnr(model, apply(ShareWeights(bits=3, sequential=s), model, data=data).proto, data)
        for s in ("yes", "no")
    ]
    assert found[0] > found[1]


def test_importance_is_the_mean_square_of_the_input() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 96)) * rng.uniform(0.01, 5, 96)).astype(np.float32)
    w = rng.standard_normal((96, 40)).astype(np.float32)
    got = effective(
        apply(ShareWeights(bits=3, importance="inputs"), build(MATMUL, w=w), data={"x": x}).proto, w.shape
    )
    assert got.shape == w.shape
    # graphopt holds some samples back.
    seen = [np.square(x[:n].astype(np.float64)).mean(axis=0) for n in (56, 64)]
    errors = []
    for power in seen:
        power = power + 0.01 * power.mean()
        centers = kmeans(w, 8, np.broadcast_to(power[:, None], w.shape))
        errors.append(np.abs(np.unique(got) - centers).max())
    assert min(errors) < 0.1


def test_even_steps_with_importance() -> None:
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(96) < 8, 30.0, 0.1)
    data = {"x": (rng.standard_normal((64, 96)) * scale).astype(np.float32)}
    w = (rng.standard_normal((96, 40)) * np.where(np.arange(96) < 8, 0.2, 1)[:, None]).astype(np.float32)
    model = build(MATMUL, w=w)
    for options in ({}, {"granularity": "channel"}, {"form": "block", "group_size": 48}):
        given: Any = {"form": "dequantize", "bits": 4, **options}
        one, other = (
            sqnr(model, apply(ShareWeights(importance=i, **given), model, data=data).proto, data)
            for i in ("none", "inputs")
        )
        assert other > one + 1, options


def test_half_precision() -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float16)
    model = build(MATMUL.replace("float[", "float16["), w=w)
    for options in ({}, {"form": "dense"}, {"form": "dequantize"}, {"granularity": "channel", "bits": 3}):
        made = assert_rewrites(ShareWeights(**options), model).proto
        assert "FLOAT" not in types_of(made)
        assert sqnr(model, made) > 13
    old = build(MATMUL.replace("float[", "float16["), opset=17, ir=8, w=w)
    assert_refuses(ShareWeights(form="dequantize"), old, "need opset 19")


def test_one_weight_of_two_layers() -> None:
    body = "(float[M, 96] x, float[M, 96] v) => (float y, float z) { y = MatMul(x, w) z = MatMul(v, w) }"
    model = build(body, w=(96, 40))
    made = assert_rewrites(ShareWeights(), model).proto
    assert sum(n.op_type == "Gather" for n in made.graph.node) == 1
    rng = np.random.default_rng(0)
    data = {k: rng.standard_normal((64, 96)).astype(np.float32) for k in "xv"}
    assert sqnr(model, apply(ShareWeights(), model, data=data).proto) > 28
    assert_refuses(ShareWeights(layers=("y",)), model, "which is not selected")
    assert_refuses(ShareWeights(), build(body.replace("MatMul(v, w)", "Relu(w)"), w=(96, 40)), "read by Relu")


def test_refusals() -> None:
    model = build(MATMUL, w=(96, 40))
    assert_refuses(ShareWeights(), model, "is kept", keep=["y"])
    assert_refuses(ShareWeights(min_elements=9999), model, "too few")
    assert_refuses(ShareWeights(), build(MATMUL, w=np.full((96, 40), np.inf, np.float32)), "not finite")
    wide = "(float[M, 40] x) => (float[M, 96] y) { y = MatMul(x, w) }"
    assert_refuses(ShareWeights(bits=8, granularity="channel"), build(wide, w=(40, 96)), "would not shrink")
    output = "(float[M, 96] x) => (float y, float[96, 40] w) { y = MatMul(x, w) }"
    assert_refuses(ShareWeights(), build(output, w=(96, 40)), "graph output")
    assert_refuses(ShareWeights(exclude=("y",)), model)
    assert_refuses(ShareWeights(form="block"), build(MATMUL, opset=13, ir=7, w=(96, 40)), "needs opset 21")
    with pytest.raises(UserError, match="'q'"):
        graphopt.run(model, [ShareWeights(layers=("q",))])


@pytest.mark.parametrize(
    "given",
    [
        {"bits": 9},
        {"bits": 0},
        {"bits": 1, "form": "dequantize"},
        {"form": "dequantize", "granularity": "column"},
        {"form": "block", "granularity": "channel"},
        {"form": "block", "importance": "outputs"},
        {"group_size": -1},
        {"min_elements": 0},
        {"ops": ("Add",)},
    ],
)
def test_options_that_make_no_sense(given: Any) -> None:
    with pytest.raises(ValueError, match=r"bits|form|group_size|ops|min_elements"):
        ShareWeights(**given)


def test_if_bodies() -> None:
    body = """(float[M, 96] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[M, 40] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[M, 40] b) { b = MatMul(x, v) }>
    }"""
    model = build(body, w=(96, 40), v=(96, 40))
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((64, 96)).astype(np.float32), "c": np.tile([True, False], 32)}
    done = assert_rewrites(ShareWeights(), model)
    assert done.ops["Gather"] == 2
    samples = [{"x": data["x"][i : i + 1], "c": np.array(i % 2 == 0)} for i in range(64)]
    assert apply(ShareWeights(), model, data=samples).ops["Gather"] == 2
    both = build(body.replace("v)", "w)"), w=(96, 40))
    assert_refuses(ShareWeights(), both, "also read in another body")


def test_overridable_weight() -> None:
    body = "(float[M, 96] x, float[96, 40] w) => (float y) { y = MatMul(x, w) }"
    assert_refuses(ShareWeights(), build(body, w=(96, 40)))


def test_recurrent_weights_if_asked_for() -> None:
    body = "(float[7, 2, 24] x) => (float y) { y = GRU<hidden_size=16>(x, w, r) }"
    model = build(body, w=(1, 48, 24), r=(1, 48, 16))
    made = assert_rewrites(ShareWeights(ops=("GRU",), min_elements=512, bits=8, packed=False), model)
    assert sqnr(model, made.proto) > 30


def test_the_report_sums_up() -> None:
    body = "(float[M, 96] x) => (float[M, 40] y) { a = MatMul(x, v) r = Relu(a) y = MatMul(r, w) }"
    model = build(body, v=(96, 96), w=(96, 40))
    (said,) = graphopt.run(model, [ShareWeights(bits=4)]).report.passes
    file = sum(int(c.why.split(" bytes in the file")[0].split()[-1]) for c in said.changes)
    assert f"bytes of 2 weights: in the file {4 * 96 * 136:,} -> {file:,}, deflated " in said.remark
    assert said.remark.endswith(f"in memory {4 * 96 * 136:,} as before")
    (even,) = graphopt.run(model, [ShareWeights(bits=4, form="dequantize")]).report.passes
    assert f"in memory {4 * 96 * 136:,} -> " in even.remark
