from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.pipeline.base import Limits, Numerics
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_conv_bn import FoldConvBatchNorm

PASS = FoldConvBatchNorm()
BODY = """(float[N, 4, 6, 6] x) => (float[N, M, H, W] y) {
    c = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x, w)
    y = BatchNormalization <epsilon=0.01> (c, gamma, beta, mean, var)
}"""


def stats(channels: int, dtype: Any = np.float32, **given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    gamma, beta, mean = rng.standard_normal((3, channels)).astype(dtype)
    return {
        "gamma": gamma,
        "beta": beta,
        "mean": mean,
        "var": rng.random(channels).astype(dtype) + 0.5,
    } | given


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_folds(build: Any, groups: int, bias: bool, op: str) -> None:
    shape = (8, 4 // groups, 3, 3) if op == "Conv" else (4, 8 // groups, 3, 3)
    weights = {"w": shape, **stats(8)} | ({"b": (8,)} if bias else {})
    body = BODY.replace("Conv <", f"{op} <group={groups}, strides=[2, 1], ")
    model = build(body.replace("(x, w)", "(x, w, b)" if bias else "(x, w)"), **weights)
    done = assert_rewrites(PASS, model, ops={op: 1})
    assert {len(t.dims) for t in done.proto.graph.initializer} == {4, 1}
    assert len(done.proto.graph.initializer) == 2


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks(build: Any, rank: int) -> None:
    dims = ", ".join(["5"] * (rank - 2))
    body = f"""(float[N, 2, {dims}] x) => (float y) {{
        c = Conv (x, w)
        y = BatchNormalization (c, gamma, beta, mean, var)
    }}"""
    assert_rewrites(PASS, build(body, w=(3, 2) + (3,) * (rank - 2), **stats(3)), ops={"Conv": 1})


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 22])
def test_opsets(build: Any, opset: int) -> None:
    assert_rewrites(PASS, build(BODY, opset=opset, w=(3, 4, 3, 3), **stats(3)), ops={"Conv": 1})


def test_opset_6_is_folded_only_under_is_test(build: Any) -> None:
    weights = {"w": (3, 4, 3, 3), **stats(3)}
    assert_refuses(PASS, build(BODY, opset=6, **weights), "training mode")
    frozen = BODY.replace("epsilon=0.01", "epsilon=0.01, is_test=1")
    assert apply(PASS, build(frozen, opset=6, **weights)).ops == {"Conv": 1}
    per_element = BODY.replace("epsilon=0.01", "is_test=1, spatial=0")
    assert_refuses(PASS, build(per_element, opset=6, **weights), "spatial=0")


def test_spatial_0_is_declined(build: Any) -> None:
    body = BODY.replace("epsilon=0.01", "spatial=0")
    assert_refuses(PASS, build(body, opset=8, w=(3, 4, 3, 3), **stats(3)), "spatial=0")


def test_training_is_declined(build: Any) -> None:
    body = BODY.replace("epsilon=0.01", "training_mode=1").replace("y = B", "y, m, v = B")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), **stats(3)), "training mode")
    body = BODY.replace("y = B", "y, m, v, sm, sv = B")
    assert_refuses(PASS, build(body, opset=9, w=(3, 4, 3, 3), **stats(3)), "training mode")


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (np.float64, "double")])
def test_element_types(build: Any, dtype: Any, name: str) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(dtype)
    model = build(BODY.replace("float[", name + "["), w=w, **stats(3, dtype))
    # ONNX Runtime has no Conv for double to run it with.
    done = assert_rewrites(PASS, model, ops={"Conv": 1}, numerics=Numerics.LOSSY)
    assert {onnx.numpy_helper.to_array(t).dtype for t in done.proto.graph.initializer} == {np.dtype(dtype)}


def test_bfloat16(build: Any) -> None:
    import ml_dtypes

    bf16 = ml_dtypes.bfloat16
    w = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(bf16)
    model = build(BODY.replace("float[", "bfloat16["), opset=22, ir=10, w=w, **stats(3, bf16))
    done = apply(PASS, model)
    assert done.ops == {"Conv": 1}
    folded = onnx.numpy_helper.to_array(done.proto.graph.initializer[0])
    given = {k: np.asarray(v, np.float64) for k, v in stats(3, bf16).items()}
    scale = given["gamma"] / np.sqrt(given["var"] + 0.01)
    want = (w.astype(np.float64) * scale[:, None, None, None]).astype(bf16)
    assert (folded.astype(np.float32) == want.astype(np.float32)).mean() > 0.98


def test_mixed_parameter_types(build: Any) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float16)
    model = build(BODY.replace("float[", "float16["), w=w, **stats(3, np.float32))
    assert apply(PASS, model).ops == {"Conv": 1}


@pytest.mark.parametrize(
    "given",
    [{"var": np.full(3, -1, np.float32)}, {"var": np.full(3, np.nan, np.float32)},
     {"gamma": np.full(3, np.inf, np.float32)}, {"gamma": np.full(3, 1e38, np.float32)}],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_declined(build: Any, given: dict[str, Any]) -> None:
    model = build(BODY, w=np.full((3, 4, 3, 3), 100, np.float32), **stats(3, **given))
    assert_refuses(PASS, model, "not finite")


def test_float16_overflow_and_underflow_are_declined(build: Any) -> None:
    w = np.full((3, 4, 3, 3), 3, np.float16)
    body = BODY.replace("float[", "float16[")
    big = stats(3, np.float16, gamma=np.full(3, 60000, np.float16))
    assert_refuses(PASS, build(body, w=w, **big), "not finite in float16")
    tiny = stats(3, np.float16, gamma=np.full(3, 1e-7, np.float16))
    assert_refuses(PASS, build(body, w=w, **tiny), "too small for float16")


def test_zero_gamma_is_fine(build: Any) -> None:
    model = build(BODY, w=(3, 4, 3, 3), **stats(3, gamma=np.array([0, 1, 0], np.float32)))
    assert_rewrites(PASS, model, ops={"Conv": 1})


def test_other_reader_is_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(c) }").replace(" y) {", " y, float[N, M, H, W] z) {")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), **stats(3)), "has another reader")


def test_graph_output_is_declined(build: Any) -> None:
    body = BODY.replace(" y) {", " y, float[N, M, H, W] c) {")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), **stats(3)), "is a graph output")


def test_kept_node_is_declined(build: Any) -> None:
    model = build(BODY, w=(3, 4, 3, 3), **stats(3))
    assert_refuses(PASS, model, "kept", keep=["c"])
    assert_refuses(PASS, model, "kept", keep=["y"])


@pytest.mark.parametrize("name", ["w", "gamma", "var"])
def test_parameters_that_are_inputs_are_declined(build: Any, name: str) -> None:
    weights = {"w": (3, 4, 3, 3), **stats(3)}
    del weights[name]
    dims = "3, 4, 3, 3" if name == "w" else "3"
    body = BODY.replace(" x)", f" x, float[{dims}] {name})")
    assert_refuses(PASS, build(body, **weights), f"{name} of")


@pytest.mark.parametrize("name", ["w", "mean"])
def test_overridable_initializers_are_not_constants(build: Any, name: str) -> None:
    dims = "3, 4, 3, 3" if name == "w" else "3"
    body = BODY.replace(" x)", f" x, float[{dims}] {name})")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), **stats(3)), "is not constant")


def test_dequantized_weight_is_declined(build: Any) -> None:
    body = BODY.replace("c = C", "w = DequantizeLinear(q, s, z)\n c = C")
    model = build(body, q=np.ones((3, 4, 3, 3), np.int8), s=np.float32(0.1), z=np.int8(0), **stats(3))
    assert_refuses(PASS, model, "the weight w of Conv is not constant")


TWICE = """(float[N, 4, 6, 6] x) => (float[N, M, H, W] y) {
    c = Conv(x, w)
    d = Conv <strides=[2, 2]> (x, w)
    e = BatchNormalization(c, gamma, beta, mean, var)
    f = GlobalAveragePool(d)
    y = Add(e, f)
}"""


def test_shared_weight_is_copied_only_while_small(build: Any) -> None:
    model = build(TWICE, w=(3, 4, 3, 3), **stats(3))
    done = assert_rewrites(PASS, model, ops={"Conv": 2, "GlobalAveragePool": 1, "Add": 1})
    assert len(done.proto.graph.initializer) == 3
    reason = assert_refuses(PASS, model, "w has other readers", limits=Limits(growth_bytes=64)).reasons
    # The bias comes as well (12 bytes), and the four parameters go (48).
    assert "would add 396 bytes" in reason[0]


def test_weight_alone_may_be_of_any_size(build: Any) -> None:
    model = build(BODY, w=(3, 4, 3, 3), **stats(3))
    assert_rewrites(PASS, model, ops={"Conv": 1}, limits=Limits(growth_bytes=12))


def test_weights_in_constant_nodes(build: Any) -> None:
    body = BODY.replace("c = C", "w = Constant <value = float[1, 4, 1, 1] {1, 2, 3, 4}> ()\n c = C")
    model = build(body.replace("kernel_shape=[3, 3], pads=[1, 1, 1, 1]", "group=1"), **stats(1))
    assert_rewrites(PASS, model, ops={"Conv": 1})


def test_if_and_outer_weights(build: Any) -> None:
    body = """(float[N, 4, 6, 6] x, bool flag) => (float[N, M, H, W] y) {
        y = If (flag) <
            then_branch = then_g () => (float[N, M, H, W] t) {
                c = Conv(x, w)
                t = BatchNormalization(c, gamma, beta, mean, var)
            },
            else_branch = else_g () => (float[N, M, H, W] e) {
                d = Conv(x, w)
                e = BatchNormalization <epsilon=0.5> (d, gamma, beta, mean, var)
            }>
    }"""
    model = build(body, w=(3, 4, 3, 3), **stats(3))
    done = assert_rewrites(PASS, model, ops={"Conv": 2, "If": 1})
    assert len(done.proto.graph.initializer) == 0, "the originals have no readers left"


def test_a_conv_outside_is_not_folded_into_a_branch(build: Any) -> None:
    body = """(float[N, 4, 6, 6] x, bool flag) => (float[N, M, H, W] y) {
        c = Conv(x, w)
        y = If (flag) <
            then_branch = then_g () => (float[N, M, H, W] t) {
                t = BatchNormalization(c, gamma, beta, mean, var)
            },
            else_branch = else_g () => (float[N, M, H, W] e) { e = Relu(c) }>
    }"""
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), **stats(3)))


def test_function_body(build: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 2, 4, 4] x) => (float[N, 1, 4, 4] y) { y = local.block <eps = 0.5> (x) }
    <domain: "local", opset_import: ["" : 17]>
    block <eps> (x) => (y) {
        w = Constant <value = float[1, 2, 1, 1] {1, 2}> ()
        s = Constant <value = float[1] {2}> ()
        c = Conv(x, w)
        y = BatchNormalization <epsilon: float = @eps> (c, s, s, s, s)
    }"""
    assert_refuses(PASS, text, "epsilon of BatchNormalization is a parameter")
    text = text.replace("epsilon: float = @eps", "epsilon = 0.5")
    assert_rewrites(PASS, text, ops={"local::block": 1, "Conv": 1})


def test_custom_domain_is_something_else(build: Any) -> None:
    body = BODY.replace("Conv <", "other.domain.Conv <")
    assert not apply(PASS, build(body, w=(3, 4, 3, 3), **stats(3))).journal.changes


def test_new_node_says_who_made_it(build: Any) -> None:
    model = build(BODY, w=(3, 4, 3, 3), **stats(3))
    done = assert_rewrites(PASS, model, ops={"Conv": 1})
    (node,) = done.model.graph.nodes
    assert node.made_by == "fold-conv-bn"
    assert [c.why for c in done.journal.changes] == ["BatchNormalization folded into Conv"]
