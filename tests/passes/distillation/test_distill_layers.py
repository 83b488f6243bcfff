"""distill-layers: what is lost comes back, on data that was not learned from, and nothing gets worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.testing import apply
from graphopt_passes.distillation.distill_layers import DistillLayers
from graphopt_passes.pruning.prune_weights import PruneWeights
from graphopt_passes.quantization.insert_qdq import InsertQDQ
from graphopt_passes.quantization.quantize_weights import QuantizeWeights
from graphopt_passes.quantization.smooth_activations import SmoothActivations

RNG = np.random.default_rng(12)
HALF = PruneWeights(sparsity=0.6, importance="magnitude")


def images(count: int = 96, channels: int = 4, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(1).standard_normal((channels, channels)) * np.linspace(0.1, 1, channels)
    x = rng.standard_normal((count, 10, 10, channels)) @ mix + 0.3
    return {"x": np.moveaxis(x, -1, 1).astype(np.float32)}


def rows(count: int = 512, columns: int = 24, seed: int = 0, steps: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(1).standard_normal((columns, columns)) * np.linspace(0.05, 1, columns)
    shape = (count, steps, columns) if steps else (count, columns)
    return {"x": (rng.standard_normal(shape) @ mix).astype(np.float32)}


def gained(
    model: onnx.ModelProto, data: Any, unseen: Any, *before: Pass, **options: Any
) -> tuple[float, Any]:
    """By how many dB distillation brings the outputs on unseen data closer, and what it did."""
    plain = apply(list(before), model, data=data)
    done = apply([*before, DistillLayers(**options)], model, data=data)
    return sqnr(model, done.proto, unseen) - sqnr(model, plain.proto, unseen), done


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (
        """(float[N, 4, 10, 10] x) => (float y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  b = Relu(a)  c = Conv<strides=[2, 2]>(b, w2)  y = Relu(c)
        }""",
        {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (6, 8, 3, 3)},
    ),
    "grouped": (
        """(float[N, 4, 10, 10] x) => (float y) {
            a = Conv<group=2, pads=[1, 1, 1, 1]>(x, w1, b1)  b = Relu(a)
            c = Conv<group=8>(b, w2, b2)  y = Conv(c, w3)
        }""",
        {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (5, 8, 1, 1)},
    ),
    "residual": (
        """(float[N, 4, 10, 10] x) => (float y) {
            p = Conv(x, w0)  a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  b = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(b, w2, b2)  s = Add(c, p)  r = Relu(s)
            d = Conv<auto_pad="SAME_UPPER">(r, w3)  y = Add(d, s)
        }""",
        {"w0": (8, 4, 1, 1), "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 3, 3)},
    ),
    "classifier": (
        """(float[N, 4, 10, 10] x) => (float y) {
            a = Conv(x, w1, b1)  b = Clip(a, lo, hi)  c = GlobalAveragePool(b)  d = Flatten(c)
            y = Gemm<transB=1, beta=0.5>(d, w2, b2)
        }""",
        {"w1": (16, 4, 3, 3), "b1": (16,), "lo": np.float32(0), "hi": np.float32(6), "w2": (5, 16), "b2": (5,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_convolutions(case: str) -> None:
    body, weights = CASES[case]
    model = build(body, **weights)
    gain, done = gained(model, images(), images(32, seed=5), HALF)
    assert gain > 1.5
    fitted = [c for c in done.journal.changes if c.key.pass_name == "distill-layers"]
    assert fitted
    assert all("fitted to the teacher's outputs: SQNR" in c.why for c in fitted)


@pytest.mark.parametrize("steps", [0, 5])
def test_products(steps: int) -> None:
    shape = "N, 5, 24" if steps else "N, 24"
    model = build(
        f"""(float[{shape}] x) => (float y) {{
            a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  d = MatMul(c, w2)  e = Add(d, b2)  y = Add(e, x)
        }}""",
        w1=(24, 32), b1=(32,), w2=(32, 24), b2=(24,),
    )  # fmt: skip
    gain, _ = gained(model, rows(steps=steps), rows(64, seed=4, steps=steps), HALF)
    assert gain > 1.5


def test_normalizations() -> None:
    model = build(
        """(float[N, 5, 24] x) => (float y) {
            n = LayerNormalization<axis=-1>(x, s, t)  a = MatMul(n, w1)  b = Relu(a)  c = MatMul(b, w2)
            r = Add(x, c)  y = LayerNormalization<axis=-1>(r, s, t)
        }""",
        s=(24,), t=(24,), w1=(24, 32), w2=(32, 24),
    )  # fmt: skip
    gain, done = gained(model, rows(steps=5), rows(64, seed=4, steps=5), HALF)
    assert gain > 1.0
    assert any("scale and bias fitted" in c.why for c in done.journal.changes)
    assert not any(
        "scale and bias" in c.why
        for c in gained(model, rows(steps=5), rows(8, steps=5), HALF, norms=False)[1].journal.changes
    )


def test_batch_normalization_takes_what_a_convolution_cannot() -> None:
    model = build(
        """(float[N, 4, 10, 10] x) => (float y) {
            a = Conv(x, w)  b = BatchNormalization(a, s, t, m, v)  y = Relu(b)
        }""",
        w=(8, 4, 3, 3), s=(8,), t=(8,), m=(8,), v=np.full(8, 2.0, np.float32),
    )  # fmt: skip
    gain, _ = gained(model, images(), images(32, seed=5), HALF, bias=False)
    assert gain > 1.0


def test_zeros_stay() -> None:
    body, weights = CASES["residual"]
    model = build(body, **weights)
    for item in (HALF, PruneWeights(structure="2:4")):
        plain = apply(item, model, data=images())
        done = apply([item, DistillLayers()], model, data=images())
        for before, after in zip(plain.proto.graph.initializer, done.proto.graph.initializer, strict=False):
            if len(before.dims) == 4:
                zeros = onnx.numpy_helper.to_array(before) == 0
                name = before.name.split("_")[0]
                twin = next(t for t in done.proto.graph.initializer if t.name.split("_")[0] == name)
                assert not onnx.numpy_helper.to_array(twin)[zeros].any()
                assert after is not None


@dataclass(frozen=True)
class Halve(Pass):
    """Take every second channel between two layers away, as channel pruning does."""

    name: ClassVar[str] = "halve"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        one, two = graph.by_op("Conv")
        kept = np.arange(0, 8, 2)
        with graph.site(one, "halved"):
            for node, axis, slots in ((one, 0, (1, 2)), (two, 1, (1,))):
                for slot in slots:
                    old = graph.array(node.inputs[slot])
                    assert old is not None
                    fresh = graph.new_constant(
                        node.inputs[slot].name, np.take(old, kept, axis if old.ndim > 1 else 0)
                    )
                    graph.set_input(node, slot, fresh)
        for tensor in (one.outputs[0], graph.consumers(one.outputs[0])[0].outputs[0]):
            ctx.notes["kept", tensor] = (1, kept)


def test_channels_that_are_gone_are_left_out() -> None:
    body, weights = CASES["plain"]
    model = build(body, **weights)
    done = apply([Halve(), DistillLayers()], model, data=images())
    plain = apply([Halve()], model, data=images())
    unseen = images(32, seed=5)
    assert sqnr(model, done.proto, unseen) > sqnr(model, plain.proto, unseen) + 3
    # The outputs of the first layer are the teacher's, as far as they are left: only the second is fitted.
    assert [c.op for c in done.journal.changes if c.key.pass_name == "distill-layers"] == ["Conv"]


def test_nothing_to_learn() -> None:
    body, weights = CASES["residual"]
    done = apply(DistillLayers(), build(body, **weights), data=images())
    assert not done.journal.changes
    assert set(done.reasons) == {
        "nothing comes closer to the teacher's outputs on data that it was not fitted to"
    }


def test_little_data_does_not_make_it_worse() -> None:
    """Twelve rows say nothing about 24 inputs per output: what suits one half does not suit the other."""
    model = build("(float[N, 24] x) => (float y) { y = MatMul(x, w) }", w=(24, 12))
    few = {"x": RNG.standard_normal((12, 24)).astype(np.float32)}
    gain, _ = gained(model, few, rows(256, seed=7), HALF)
    assert gain > -0.3


def test_a_shared_weight_stays() -> None:
    model = build(
        """(float[N, 24] x) => (float y) {
            a = Gemm(x, w, b1)  b = Relu(a)  y = Gemm(b, w, b2)
        }""",
        w=(24, 24), b1=(24,), b2=(24,),
    )  # fmt: skip
    _, done = gained(model, rows(), rows(64, seed=2), HALF)
    assert sum(len(t.dims) == 2 for t in done.proto.graph.initializer) == 1
    assert all("bias" in c.why for c in done.journal.changes if c.key.pass_name == "distill-layers")


def test_inside_an_if() -> None:
    model = build(
        """(float[N, 24] x, bool[1] c) => (float y) { k = Squeeze(c)  y = If(k)<
            then_branch = t () => (float[N, 12] a) { a = MatMul(x, w) },
            else_branch = e () => (float[N, 12] b) { b = MatMul(x, v) }> }""",
        w=(24, 12),
        v=(24, 12),
    )
    data = [{"x": rows(16, seed=s)["x"], "c": np.array([s % 2 == 0])} for s in range(40)]
    plain = apply(HALF, model, data=data)
    done = apply([HALF, DistillLayers()], model, data=data)
    for choice in (True, False):
        feeds = {"x": rows(64, seed=99)["x"], "c": np.array([choice])}
        assert sqnr(model, done.proto, feeds) > sqnr(model, plain.proto, feeds) + 1


def test_only_some() -> None:
    body, weights = CASES["plain"]
    model = build(body, **weights)
    _, done = gained(model, images(), images(8), HALF, layers=("c",))
    names = {c.key.anchor for c in done.journal.changes if c.key.pass_name == "distill-layers"}
    assert len(names) == 1


def test_kept() -> None:
    body, weights = CASES["plain"]
    done = apply([HALF, DistillLayers()], build(body, **weights), data=images(), keep=["a"])
    assert any("is kept" in r for r in done.reasons)


def test_the_loss_of_no_layer_rises() -> None:
    body, weights = CASES["residual"]
    _, done = gained(build(body, **weights), images(), images(8), HALF)
    for change in done.journal.changes:
        if change.key.pass_name == "distill-layers":
            before, after = (float(part.split()[-1]) for part in change.why.replace(" dB", "").split("->"))
            assert after >= before


def test_data_is_needed_before_any_work() -> None:
    body, weights = CASES["plain"]
    with pytest.raises(UserError, match="data"):
        graphopt.run(build(body, **weights), [HALF, DistillLayers()])


def test_memory_does_not_grow_with_the_data() -> None:
    """What is kept of the data has the size of the layers, whatever the number of samples."""
    from graphopt_passes.linear.moments import LayerMoments
    from graphopt_passes.linear.rows import MatrixRows

    sizes = []
    for count in (8, 800):
        moments = LayerMoments(MatrixRows())
        for _ in range(count):
            x = RNG.standard_normal((4, 6)).astype(np.float32)
            moments.update(x, x[:, :3], x[:, 3:])
        sizes.append(moments.nbytes)
    assert sizes[0] == sizes[1]


def test_damping_is_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        DistillLayers(damping=-1.0)


def codes_of(model: onnx.ModelProto) -> list[Any]:
    """The integer weights of a quantized model."""
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    return [a.astype(np.int32) for a in arrays if a.dtype.kind in "iV" or a.dtype.name in ("int4", "int8")]


@pytest.mark.parametrize("before", [(), (HALF,)], ids=["dense", "pruned"])
def test_quantized_layers(before: tuple[Pass, ...]) -> None:
    body, weights = CASES["residual"]
    model = build(body, **weights)
    steps = (*before, QuantizeWeights(bits=4, min_elements=1))
    gain, done = gained(model, images(), images(32, seed=5), *steps)
    assert gain > 1.5
    assert any("weights rounded by" in c.why for c in done.journal.changes)
    if before:
        plain = apply([*steps], model, data=images())
        assert sum((c == 0).sum() for c in codes_of(plain.proto)) >= 0.6 * sum(
            c.size for c in codes_of(plain.proto)
        )
        floats = apply([*before], model, data=images()).proto
        pruned = [onnx.numpy_helper.to_array(t) for t in floats.graph.initializer if len(t.dims) > 1]
        for codes in codes_of(done.proto):
            (twin,) = [w for w in pruned if w.shape == codes.shape and not codes[w == 0].any()]
            assert (twin == 0).any()


def test_static_quantization() -> None:
    body, weights = CASES["plain"]
    gain, _ = gained(build(body, **weights), images(), images(32, seed=5), HALF, InsertQDQ())
    assert gain > 1.0


def test_tensors_on_another_scale_are_no_target() -> None:
    model = build(
        """(float[N, 5, 24] x) => (float y) {
            n = LayerNormalization<axis=-1>(x, s, t)  a = MatMul(n, w1)  b = Relu(a)  y = MatMul(b, w2)
        }""",
        s=np.geomspace(0.01, 100, 24).astype(np.float32), t=np.zeros(24, np.float32), w1=(24, 32), w2=(32, 24),
    )  # fmt: skip
    gain, done = gained(
        model, rows(steps=5), rows(64, seed=4, steps=5), HALF, SmoothActivations(alpha=0.5, exact_scales=True)
    )
    assert gain > 1.0
    norms = [
        c for c in done.journal.changes if c.key.pass_name == "distill-layers" and "scale and bias" in c.why
    ]
    assert not norms
    assert any("on another scale" in r for r in done.reasons)
