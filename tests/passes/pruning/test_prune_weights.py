"""prune-weights: how many go, which, and what becomes of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.testing import apply, assert_refuses
from graphopt_passes.pruning.prune_weights import PruneWeights

RNG = np.random.default_rng(4)
CNN = """(float[N, 4, 10, 10] x) => (float y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  b = Relu(a)
    c = Conv<group=8, pads=[1, 1, 1, 1]>(b, wd)  d = Relu(c)
    e = Conv(d, w2)  f = GlobalAveragePool(e)  g = Flatten(f)  y = Gemm<transB=1>(g, w3, b3)
}"""
CNN_WEIGHTS: dict[str, Any] = {
    "w1": (8, 4, 3, 3), "b1": (8,), "wd": (8, 1, 3, 3), "w2": (16, 8, 1, 1), "w3": (5, 16), "b3": (5,),
}  # fmt: skip


def images(count: int = 64, channels: int = 4) -> dict[str, Any]:
    mix = RNG.standard_normal((channels, channels)) * np.linspace(0.1, 1, channels)
    x = RNG.standard_normal((count, 10, 10, channels)) @ mix
    return {"x": np.moveaxis(x, -1, 1).astype(np.float32)}


def arrays(model: onnx.ModelProto) -> dict[str, Any]:
    """Weights of all bodies by name, less the numbers that make a name unique."""
    found = {}
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        found |= {t.name.split("_")[0]: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        graphs += [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return found


def share(array: Any) -> float:
    return float((array == 0).mean())


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize("structure", ["none", "2x1", "1x2"])
def test_the_share_that_was_asked_for(importance: str, structure: str) -> None:
    model = build(CNN, **CNN_WEIGHTS)
    item = PruneWeights(sparsity=0.5, importance=importance, structure=structure)  # type: ignore[arg-type]
    done = apply(item, model, data=images())
    found = arrays(done.proto)
    for name in ("w1", "w2", "w3"):
        assert share(found[name]) == pytest.approx(0.5, abs=0.06)
    assert share(found["wd"]) == 0.0
    assert "depthwise filters have few weights" in " ".join(done.reasons)
    assert all("weights are zero" in c.why for c in done.journal.changes)


def test_magnitude_is_what_it_says() -> None:
    model = build(CNN, **CNN_WEIGHTS)
    done = apply(PruneWeights(sparsity=0.3, importance="magnitude"), model)
    for name in ("w1", "w2", "w3"):
        before, after = arrays(model)[name], arrays(done.proto)[name]
        gone = after == 0
        assert gone.sum() == round(0.3 * before.size)
        assert np.abs(before[gone]).max() < np.abs(before[~gone]).min()
        np.testing.assert_array_equal(before[~gone], after[~gone])


def test_threshold() -> None:
    model = build(CNN, **CNN_WEIGHTS)
    done = apply(PruneWeights(threshold=0.5), model, data=images())
    before, after = arrays(model)["w2"], arrays(done.proto)["w2"]
    np.testing.assert_array_equal(after, np.where(np.abs(before) > 0.5, before, 0))


def test_wanda_looks_at_the_inputs() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 6))
    power = np.array([1e-3, 1, 1, 1e-3, 1, 1, 1e-3, 1])
    data = {"x": (RNG.standard_normal((64, 8)) * power).astype(np.float32)}
    done = apply(PruneWeights(sparsity=3 / 8, importance="wanda"), model, data=data)
    after = arrays(done.proto)["w"]
    np.testing.assert_array_equal((after == 0).all(axis=1), power < 0.1)


@pytest.mark.parametrize(("structure", "gain"), [("none", 2.0), ("2:4", 2.0)])
def test_second_order_is_better_on_the_data(structure: str, gain: float) -> None:
    model = build(CNN, **CNN_WEIGHTS)
    data = images(128)
    much: dict[str, Any] = {} if structure != "none" else {"sparsity": 0.5}
    plain = apply(PruneWeights(structure=structure, importance="magnitude", **much), model, data=data)
    done = apply(PruneWeights(structure=structure, importance="obs", **much), model, data=data)
    assert sqnr(model, done.proto, data) > sqnr(model, plain.proto, data) + gain


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "obs"])
def test_two_of_four_channels(importance: str) -> None:
    model = build(CNN, **CNN_WEIGHTS)
    item = PruneWeights(structure="2:4", importance=importance)  # type: ignore[arg-type]
    found = arrays(apply(item, model, data=images()).proto)
    # Four neighbors along the input channels, at each position of the kernel.
    w1 = np.moveaxis(found["w1"], 1, -1).reshape(-1, 4)
    assert ((w1 == 0).sum(axis=1) == 2).all()
    assert ((found["w2"].reshape(-1, 4) == 0).sum(axis=1) == 2).all()
    assert ((found["w3"].reshape(-1, 4) == 0).sum(axis=1) == 2).all()


def test_channels_that_do_not_come_in_fours() -> None:
    assert_refuses(
        PruneWeights(structure="2:4"),
        build("(float[N, 6, 8, 8] x) => (float y) { y = Conv(x, w) }", w=(4, 6, 1, 1)),
        "needs inputs in groups of 4, it has 6",
    )


@pytest.mark.parametrize("scope", ["global", "erk"])
@pytest.mark.parametrize("importance", ["magnitude", "wanda", "obs"])
def test_one_share_of_everything(scope: str, importance: str) -> None:
    model = build(CNN, **CNN_WEIGHTS)
    item = PruneWeights(sparsity=0.6, scope=scope, importance=importance)  # type: ignore[arg-type]
    found = arrays(apply(item, model, data=images()).proto)
    weights = [found[n] for n in ("w1", "w2", "w3")]
    total = sum(w.size for w in weights)
    assert sum((w == 0).sum() for w in weights) == pytest.approx(0.6 * total, abs=3)
    assert len({round(share(w), 2) for w in weights}) > 1


def test_rows() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 6))
    after = arrays(apply(PruneWeights(sparsity=0.25, scope="row"), model).proto)["w"]
    assert ((after == 0).sum(axis=0) == 2).all()


def test_single_layers() -> None:
    model = build(CNN, **CNN_WEIGHTS)
    item = PruneWeights(sparsity=0.5, layers=("y",), sparsities=("a=0.25",), importance="magnitude")
    found = arrays(apply(item, model).proto)
    assert [round(share(found[n]), 2) for n in ("w1", "w2", "w3")] == [0.25, 0.0, 0.5]
    only = arrays(apply(PruneWeights(sparsities=("e=0.25",)), model).proto)
    assert [round(share(only[n]), 2) for n in ("w1", "w2", "w3")] == [0.0, 0.25, 0.0]


def test_in_steps() -> None:
    model = build(CNN, **CNN_WEIGHTS)
    found = arrays(apply(PruneWeights(sparsity=0.75, steps=3), model, data=images()).proto)
    assert all(share(found[n]) == pytest.approx(0.75, abs=0.02) for n in ("w1", "w2", "w3"))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN", "ConvTranspose"])
def test_other_operators_if_named(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}.get(op, 0)
    if gates:
        model = build(
            f"(float[T, N, 6] x) => (float y) {{ y = {op}<hidden_size=5>(x, w, r) }}",
            w=(1, gates * 5, 6), r=(1, gates * 5, 5),
        )  # fmt: skip
    else:
        model = build("(float[N, 6, 4, 4] x) => (float y) { y = ConvTranspose(x, w) }", w=(6, 5, 3, 3))
    assert not apply(PruneWeights(sparsity=0.5), model).journal.changes
    found = arrays(apply(PruneWeights(sparsity=0.5, ops=(op,)), model).proto)
    assert all(share(w) == pytest.approx(0.5, abs=0.03) for w in found.values())


def test_batched_products_by_magnitude() -> None:
    model = build("(float[3, N, 8] x) => (float y) { y = MatMul(x, w) }", w=(3, 8, 4))
    after = arrays(apply(PruneWeights(structure="2:4"), model).proto)["w"]
    assert ((after.reshape(3, 2, 4, 4) == 0).sum(axis=2) == 2).all()


def test_a_weight_with_two_readers_stays_one() -> None:
    model = build(
        "(float[N, 8] x) => (float y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }", w=(8, 8)
    )
    done = apply(
        PruneWeights(sparsity=0.5), model, data={"x": RNG.standard_normal((32, 8)).astype(np.float32)}
    )
    assert len(done.proto.graph.initializer) == 1
    before, after = arrays(model)["w"], arrays(done.proto)["w"]
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(int64[N] i, float[N, 8] x) => (float y, float e) { y = MatMul(x, w)  e = Gather(w, i) }", "Gather"),
        ("(float[N, 8] x, bool c) => (float y, float z) { y = MatMul(x, w)  z = If(c)<then_branch = t () => "
         "(float[N, 4] a) { a = MatMul(x, w) }, else_branch = e () => (float[N, 4] b) { b = MatMul(x, w) }> }",
         "another body"),
    ],
)  # fmt: skip
def test_other_readers(body: str, reason: str) -> None:
    done = apply(PruneWeights(sparsity=0.5), build(body, w=(8, 4)))
    assert not done.journal.changes
    assert any(reason in r for r in done.reasons)


def test_an_output_is_left_alone() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 4))
    model.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, [8, 4]))
    assert_refuses(PruneWeights(sparsity=0.5), model, "is an output")


def test_kept() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 4))
    assert_refuses(PruneWeights(sparsity=0.5), model, "is kept", keep=["y"])


def test_an_overridable_weight_is_no_constant() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 4))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [8, 4]))
    assert not apply(PruneWeights(sparsity=0.5), model).journal.changes


def test_inside_an_if() -> None:
    model = build(
        """(float[N, 8] x, bool c) => (float y) { y = If(c)<
            then_branch = t () => (float[N, 4] a) { a = MatMul(x, w) },
            else_branch = e () => (float[N, 4] b) { b = MatMul(x, v) }> }""",
        w=(8, 4),
        v=(8, 4),
    )
    found = arrays(apply(PruneWeights(sparsity=0.5), model).proto)
    assert [share(found[n]) for n in ("w", "v")] == [0.5, 0.5]


def test_a_second_run_changes_nothing() -> None:
    model, data = build(CNN, **CNN_WEIGHTS), images()
    for item in (PruneWeights(sparsity=0.5), PruneWeights(structure="2:4"), PruneWeights(threshold=0.3)):
        once = apply(item, model, data=data)
        assert once.journal.changes
        assert not apply(item, once.proto, data=data).journal.changes


def test_a_higher_share_keeps_the_zeros() -> None:
    model, data = build(CNN, **CNN_WEIGHTS), images()
    done = apply([PruneWeights(sparsity=0.5), PruneWeights(sparsity=0.75)], model, data=data)
    half = arrays(apply(PruneWeights(sparsity=0.5), model, data=data).proto)
    more = arrays(done.proto)
    for name in ("w1", "w2", "w3"):
        assert share(more[name]) == pytest.approx(0.75, abs=0.02)
        assert not more[name][half[name] == 0].any()


def test_half_precision_stays_so() -> None:
    w = RNG.standard_normal((8, 4)).astype(np.float16)
    model = build("(float16[N, 8] x) => (float16 y) { y = MatMul(x, w) }", w=w)
    after = arrays(apply(PruneWeights(sparsity=0.5), model).proto)["w"]
    assert after.dtype == np.float16
    assert share(after) == 0.5


def test_no_data() -> None:
    model = build("(float[N, 8] x) => (float y) { y = MatMul(x, w) }", w=(8, 4))
    assert_refuses(PruneWeights(sparsity=0.5, importance="obs"), model, "there is no data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say how much goes"),
        ({"sparsity": 1.5}, "from 0 to less than 1, not 1.5"),
        ({"sparsity": -0.1}, "from 0 to less than 1"),
        ({"sparsity": 0.5, "structure": "2:4"}, "leave out the rest"),
        ({"sparsity": 0.5, "threshold": 0.1}, "leave out the rest"),
        ({"threshold": -1.0}, "must not be negative"),
        ({"structure": "4x1"}, "say how much goes"),
        ({"structure": "2:4", "scope": "global"}, "leaves a choice"),
        ({"sparsity": 0.5, "structure": "4x1", "scope": "row"}, "row by row"),
        ({"sparsity": 0.5, "ops": ("Relu",)}, "Relu cannot be pruned"),
        ({"sparsity": 0.5, "steps": 0}, "at least 1"),
        ({"sparsities": ("half",)}, "GLOB=SHARE"),
        ({"sparsities": ("a=2",)}, "from 0 to less than 1, not 2"),
    ],
)
def test_requests_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneWeights(**options)
