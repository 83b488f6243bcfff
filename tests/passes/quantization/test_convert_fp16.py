from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.budget import Budget
from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.runtime.session import open_session
from graphopt.testing import Applied, apply, assert_refuses, assert_rewrites, random_feeds
from graphopt_passes.cleanup.merge_casts import MergeCasts
from graphopt_passes.quantization.convert_bf16 import ConvertBf16
from graphopt_passes.quantization.convert_fp16 import ConvertFp16

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
RNG = np.random.default_rng(0)


def model(text: str, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f"{HEAD} g {text}")
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return parsed


def normal(*shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def runs(done: Applied, before: onnx.ModelProto, feeds: dict[str, Any], rtol: float = 0.02) -> None:
    """The result runs, optimized or not, and comes near what it was."""
    with open_session(before, optimize="none") as session:
        want = session.run(feeds)
    for optimize in ("none", "all"):
        with open_session(done.proto, optimize=optimize) as session:
            got = session.run(feeds)
        for name, value in want.items():
            a, b = np.asarray(value), np.asarray(got[name])
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert np.isfinite(b).all() or not np.isfinite(a).all(), name
            if a.dtype.kind == "f":
                rms = float(np.sqrt(np.mean(a[np.isfinite(a)] ** 2)))
                assert float(np.abs(a - b).max()) <= rtol * rms, (name, optimize)


def converted(before: onnx.ModelProto, ops: dict[str, int] | None = None, **more: Any) -> Applied:
    data = more.get("data")
    done = assert_rewrites(ConvertFp16(**more.pop("options", {})), before, ops=ops, **more)
    feeds = {k: v[:2] for k, v in data.items()} if data else random_feeds(before, 2)
    runs(done, before, feeds)
    return done


def half_ops(done: Applied, code: int = onnx.TensorProto.FLOAT16) -> Counter[str]:
    """Operators, by type, that compute a half-precision tensor. Casts are left out."""
    inferred = onnx.shape_inference.infer_shapes(done.proto, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    return Counter(
        n.op_type for n in inferred.graph.node if n.op_type != "Cast" and types.get(n.output[0]) == code
    )


MLP = "(float[N, 8] x) => (float[N, 4] y) { a = MatMul(x, w) b = Add(a, c) d = Relu(b) y = MatMul(d, v) }"


def mlp(scale: float = 1.0) -> onnx.ModelProto:
    return model(MLP, w=normal(8, 16), c=normal(16), v=normal(16, 4, scale=scale))


# -- regions and their borders -------------------------------------------------------------------------


def test_one_region_has_one_cast_at_each_border() -> None:
    before = mlp()
    done = converted(before, ops={"Cast": 2, "MatMul": 2, "Add": 1, "Relu": 1})
    assert [v.type.tensor_type.elem_type for v in (*done.proto.graph.input, *done.proto.graph.output)] == [
        1,
        1,
    ]
    assert {t.data_type for t in done.proto.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert len(done.journal.changes) == 4
    assert any("no data" in r for r in done.reasons)


def test_names_of_nodes_stay_with_what_computes() -> None:
    before = mlp()
    for place, node in enumerate(before.graph.node):
        node.name = f"node{place}"
    done = converted(before)
    kinds = {n.name: n.op_type for n in done.proto.graph.node}
    assert [kinds[f"node{i}"] for i in range(4)] == ["MatMul", "Add", "Relu", "MatMul"]


def test_a_node_in_the_middle_that_stays() -> None:
    done = converted(mlp(), ops={"Cast": 4, "MatMul": 2, "Add": 1, "Relu": 1}, options={"keep": ("Add",)})
    assert half_ops(done) == {"MatMul": 2, "Relu": 1}
    assert any("asked for" in r for r in done.reasons)


def test_a_weight_that_both_kinds_read() -> None:
    before = model(
        "(float[8, 8] x) => (float[8, 8] y, float[8, 8] z) { y = MatMul(x, w) z = Mul(w, w) }", w=normal(8, 8)
    )
    done = converted(before, options={"keep": ("z",)})
    assert Counter(t.data_type for t in done.proto.graph.initializer) == {1: 1, 10: 1}


def test_an_intermediate_that_is_an_output_and_read_twice() -> None:
    before = model(
        "(float[2, 8] x) => (float[2, 8] h, float[2, 8] y, float[2, 8] z)"
        "{ h = MatMul(x, w) y = Relu(h) z = MatMul(h, w) }",
        w=normal(8, 8),
    )
    done = converted(before)
    # One Cast in, and one for each of the three outputs.
    assert done.ops["Cast"] == 4


def test_what_gains_nothing_stays() -> None:
    assert_refuses(ConvertFp16(), model("(float[4] x) => (float[4] y) { a = Relu(x) y = Add(a, a) }"))


def test_casts_between_regions_cancel() -> None:
    before = model(
        "(float[2, 8] x) => (float[2, 8] y) { a = MatMul(x, w) b = Cast<to = 10>(a) c = Cast<to = 1>(b) y = MatMul(c, w) }",
        w=normal(8, 8),
    )
    done = converted(before)
    assert apply([ConvertFp16(), MergeCasts()], before).ops["Cast"] == done.ops["Cast"] == 2


def test_integer_results_and_omitted_ones() -> None:
    before = model(
        """(float[2, 8] x) => (float[2, 3] v, int64[2, 3] i, float[1, 2, 4] h)
        <int64[1] k = {3}, int64[3] s = {2, 1, 8}> {
            a = MatMul(x, w) v, i = TopK(a, k) r = Reshape(a, s) , h = LSTM<hidden_size = 4>(r, u, q)
        }""".replace(") , h", ") y, h"),
        w=normal(8, 8),
        u=normal(1, 16, 8),
        q=normal(1, 16, 4),
    )
    before.graph.node[-1].output[0] = ""
    before = onnx.load_model_from_string(before.SerializeToString())
    before.graph.output[2].type.tensor_type.shape.dim[1].dim_value = 1
    done = converted(before, options={"keep": ("TopK",)})
    assert half_ops(done)["MatMul"] == 1
    both = converted(before)
    node = next(n for n in both.proto.graph.node if n.op_type == "LSTM")
    assert [bool(name) for name in node.output] == [False, True]


def test_outputs_that_nobody_reads() -> None:
    before = model(
        "(float[2, 3, 8] x) => (float[A, B, C, D] y) { y, h, c = LSTM<hidden_size = 4>(x, w, r) }",
        w=normal(1, 16, 8),
        r=normal(1, 16, 4),
    )
    before.graph.node[0].name = "lstm"
    done = converted(before, ops={"LSTM": 1, "Cast": 2})
    node = next(n for n in done.proto.graph.node if n.op_type == "LSTM")
    assert node.name == "lstm"
    assert list(node.output) == ["y_float16"]


def test_inputs_that_must_be_float_stay() -> None:
    before = model(
        """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) <float[4] s = {1, 1, 2, 2}>
        { a = Conv(x, w) y = Resize<mode = "nearest">(a, , s) }""",
        w=normal(2, 2, 1, 1),
    )
    done = converted(before)
    assert half_ops(done) == {"Conv": 1, "Resize": 1}
    assert sorted(t.data_type for t in done.proto.graph.initializer) == [1, 10]


def test_if_branches_have_casts_of_their_own() -> None:
    before = model(
        """(float[2, 8] x, bool c) => (float[2, 8] y) {
            h = MatMul(x, w)
            y = If(c) <
                then_branch = t () => (float[2, 8] a) { a = MatMul(h, w) },
                else_branch = e () => (float[2, 8] b) { r = Relu(h) b = MatMul(r, w) }
            >
        }""",
        w=normal(8, 8),
    )
    done = converted(before)
    # What the branches read of the outside, they read in float16.
    assert done.ops["Cast"] == 1 + 2


def test_loop_carried_values_keep_their_type() -> None:
    before = model(
        """(float[2, 8] x) => (float[2, 8] y) <int64 n = {3}, bool c = {1}> {
            y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2, 8] s) => (bool co, float[2, 8] t)
                { co = Identity(ci) m = MatMul(s, w) t = Tanh(m) }>
        }""",
        w=normal(8, 8, scale=0.3),
    )
    converted(before)


def test_values_in_bodies_are_measured() -> None:
    before = model(
        """(float[2, 8] x) => (float[2, 8] y) <int64 n = {3}, bool c = {1}, float big = {50}, float less = {0.02}> {
            y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2, 8] s) => (bool co, float[2, 8] t) {
                co = Identity(ci) m = MatMul(s, w) p = Mul(m, big) q = Mul(p, big) u = Mul(q, big)
                v = Mul(u, less) z = Mul(v, less) o = Mul(z, less) k = MatMul(o, w) t = Tanh(k)
            }>
        }""",
        w=normal(8, 8, scale=0.5),
    )
    x = normal(2, 8)
    done = assert_rewrites(ConvertFp16(), before, data=[{"x": x}] * 3)
    assert any("u: values" in r for r in done.reasons)
    assert done.ops["Cast"] == 4  # into and out of two regions
    runs(done, before, {"x": x})


@pytest.mark.parametrize("limit", range(1, 6))
def test_any_number_of_its_rewrites_is_a_model_that_runs(limit: int) -> None:
    before = model(
        """(float[2, 8] x, bool c) => (float[2, 8] y) {
            h = MatMul(x, w) r = Relu(h)
            z = If(c) <
                then_branch = t () => (float[2, 8] a) { q = Neg(r) a = MatMul(q, w) },
                else_branch = e () => (float[2, 8] b) { b = MatMul(h, w) }
            >
            y = MatMul(z, w)
        }""",
        w=normal(8, 8),
    )
    done = execute(Model.load(before), [ConvertFp16()], Settings(get_target("portable")), limit=limit)
    assert len(done.journal.changes) == limit
    proto = done.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    runs(Applied(done.model, done.journal, proto), before, random_feeds(before, 2))


def test_local_functions_are_left_alone() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[2, 2] x) => (float[2, 2] y) { a = MatMul(x, x) y = local.f(a) }
    <opset_import: ["" : 21], domain: "local"> f (a) => (b) { b = MatMul(a, a) }"""
    done = assert_rewrites(ConvertFp16(), text)
    assert done.ops == {"Cast": 2, "MatMul": 2, "local::f": 1}


def test_kept_nodes() -> None:
    done = apply(ConvertFp16(), mlp(), keep=["b"])
    assert half_ops(done) == {"MatMul": 2, "Relu": 1}


# -- what stays because of its constants ---------------------------------------------------------------


def test_a_weight_that_overflows() -> None:
    before = mlp()
    w = normal(8, 16)
    w[0, 0] = 1e5
    before.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w, "w"))
    done = converted(before, data={"x": normal(16, 8, scale=0.01)})
    assert half_ops(done) == {"Add": 1, "Relu": 1, "MatMul": 1}
    assert any("w: values up to 1e+05 overflow" in r for r in done.reasons)
    # How large the results become is not known without data.
    assert_refuses(ConvertFp16(), before, "no data to tell")


def test_an_epsilon_that_vanishes() -> None:
    before = model(
        """(float[2, 8] x) => (float[2, 8] y) <float e = {1e-12}, float two = {2}, int64[1] axes = {-1}> {
            a = MatMul(x, w) m = ReduceMean(a, axes) d = Sub(a, m) p = Pow(d, two) v = ReduceMean(p, axes)
            s = Add(v, e) r = Sqrt(s) n = Div(d, r) y = MatMul(n, w)
        }""",
        w=normal(8, 8),
    )
    done = converted(before)
    assert "Add" not in half_ops(done)
    assert any("so small" in r for r in done.reasons)


def test_an_epsilon_attribute() -> None:
    text = "(float[2, 3, 8] x) => (float[2, 3, 8] y) { a = MatMul(x, w) y = InstanceNormalization<epsilon = %s>(a, s, b) }"
    weights = {"w": normal(8, 8), "s": normal(3), "b": normal(3)}
    assert half_ops(converted(model(text % "1e-5", **weights)))["InstanceNormalization"] == 1
    done = converted(model(text % "1e-12", **weights))
    assert half_ops(done) == {"MatMul": 1}


def test_layer_normalization_adds_epsilon_in_float32() -> None:
    before = model(
        "(float[2, 8] x) => (float[2, 8] y) { a = MatMul(x, w) y = LayerNormalization<epsilon = 1e-12>(a, s) }",
        w=normal(8, 8),
        s=normal(8),
    )
    assert half_ops(converted(before)) == {"MatMul": 1, "LayerNormalization": 1}


@pytest.mark.parametrize("fill", ["-1e9", "-3.4028235e38"])
def test_a_constant_mask_fill_is_raised_to_what_fits(fill: str) -> None:
    before = model(
        f"""(float[2, 8] x, bool[2, 2] m) => (float[2, 8] y) <float f = {{{fill}}}> {{
            q = MatMul(x, w) t = Transpose<perm = [1, 0]>(q) s = MatMul(q, t) f2 = Where(m, s, f)
            p = Softmax(f2) y = MatMul(p, q)
        }}""",
        w=normal(8, 8),
    )
    feeds = {"x": normal(2, 8), "m": np.array([[True, False], [True, True]])}
    done = assert_rewrites(ConvertFp16(), before)
    assert half_ops(done) == {"MatMul": 3, "Transpose": 1, "Where": 1, "Softmax": 1}
    assert any(onnx.numpy_helper.to_array(t).min() == -32752 for t in done.proto.graph.initializer)
    runs(done, before, feeds)


def test_a_mask_fill_that_reaches_more_than_a_softmax() -> None:
    before = model(
        """(float[2, 8] x, bool[2, 2] m) => (float[2, 2] p, float[2, 2] r) <float f = {-1e9}> {
            t = Transpose<perm = [1, 0]>(x) s = MatMul(x, t) f2 = Where(m, s, f) p = Softmax(f2) r = Relu(f2)
        }"""
    )
    done = assert_rewrites(ConvertFp16(), before)
    assert half_ops(done) == {"MatMul": 1, "Transpose": 1}


MASKED = """(float[2, 8] x, float[2, 2] m) => (float[2, 8] y) <float one = {1}, float low = {-3.4028235e38}> {
    q = MatMul(x, w) t = Transpose<perm = [1, 0]>(q) s = MatMul(q, t) i = Sub(one, m) b = Mul(i, low)
    f = Add(s, b) p = Softmax(f) y = MatMul(p, q)
}"""


def test_a_computed_mask_without_data_stays_in_float32() -> None:
    done = assert_rewrites(ConvertFp16(), model(MASKED, w=normal(8, 8)))
    assert half_ops(done) == {"MatMul": 3, "Transpose": 1}


def test_a_computed_mask_with_data_is_raised_to_what_fits() -> None:
    before = model(MASKED, w=normal(8, 8))
    x, m = normal(2, 8), np.array([[1, 0], [1, 1]], np.float32)
    done = apply(ConvertFp16(), before, data=[{"x": x, "m": m}] * 4)
    assert half_ops(done)["Add"] == half_ops(done)["Softmax"] == 1
    assert done.ops["Max"] == 1
    runs(done, before, {"x": x, "m": m})


def test_positions_are_counted_in_float32() -> None:
    before = model(
        """(float[2, 8] x, int64[2, 1] i) => (float[2, 8] y) <float[8] f = {1, 2, 3, 4, 5, 6, 7, 8}> {
            p = Cast<to = 1>(i) a = Mul(p, f) c = Cos(a) h = MatMul(x, w) y = Mul(h, c)
        }""",
        w=normal(8, 8),
    )
    done = converted(before)
    assert half_ops(done) == {"MatMul": 1, "Mul": 1}
    assert sum("it counts" in r for r in done.reasons) == 2


def test_rotary_frequencies_are_multiplied_in_float32() -> None:
    before = model(
        """(float[1, 4, 8] x, int64[1, 1, 4] i) => (float[1, 4, 8] y) {
            p = Cast<to = 1>(i) t = MatMul(f, p) a = Transpose<perm = [0, 2, 1]>(t) c = Cos(a)
            h = MatMul(x, w) y = Mul(h, c)
        }""",
        f=normal(1, 8, 1),
        w=normal(8, 8),
    )
    assert half_ops(converted(before)) == {"MatMul": 1, "Mul": 1}


@pytest.mark.parametrize("pixel", ["uint8", "int32"])
def test_pixels_are_no_counts_behind_the_first_layer(pixel: str) -> None:
    before = model(
        f"""({pixel}[1, 3, 8, 8] i) => (float[1, 64, 8, 8] y) <float mean = {{127}}, float scale = {{58}}> {{
            f = Cast<to = 1>(i) c = Sub(f, mean) x = Div(c, scale) a = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(a)
        }}""",
        w=normal(64, 3, 3, 3),
    )
    expected = {"Conv": 1, "Relu": 1}
    assert half_ops(converted(before)) == (expected | {"Sub": 1, "Div": 1} if pixel == "uint8" else expected)


# -- what stays because of what was measured -----------------------------------------------------------


def test_a_layer_that_overflows_is_found() -> None:
    before = model(
        """(float[N, 8] x) => (float[N, 4] y) <float big = {1000}, float small = {0.0001}> {
            a = MatMul(x, w) b = Mul(a, big) c = Mul(b, big) d = Mul(c, small) e = Mul(d, small)
            r = Relu(e) y = MatMul(r, v)
        }""",
        w=normal(8, 16),
        v=normal(16, 4),
    )
    data = {"x": normal(32, 8)}
    naive = apply(ConvertFp16(), before)
    assert half_ops(naive)["Mul"] >= 3  # nothing shows it without data
    done = converted(before, data=data)
    # b may reach thousands, c millions.
    assert any("c: values" in r and "overflow" in r for r in done.reasons)
    assert half_ops(done)["MatMul"] == 2
    assert 0 < half_ops(done)["Mul"] < 4


def test_headroom() -> None:
    before = model(
        "(float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = Relu(a) }",
        w=np.full((8, 8), 1000, np.float32),
    )
    data = {"x": np.full((4, 8), 5, np.float32)}  # 40,000
    assert "MatMul" in half_ops(apply(ConvertFp16(headroom=1.0), before, data=data))
    assert not half_ops(apply(ConvertFp16(), before, data=data))


def test_values_that_vanish_are_found() -> None:
    before = model(
        "(float[N, 8] x) => (float[N, 8] y) <float big = {1e7}> { a = MatMul(x, w) b = Mul(a, big) y = MatMul(b, v) }",
        w=normal(8, 8),
        v=normal(8, 8),
    )
    done = apply(ConvertFp16(), before, data={"x": normal(32, 8, scale=1e-7)})
    assert half_ops(done) == {"MatMul": 1}
    assert any("so small" in r for r in done.reasons)


def test_the_node_that_moves_the_outputs_is_found() -> None:
    """The difference of two large numbers that are close to each other."""
    before = model(
        """(float[N, 8] x) => (float[N, 8] y) <float far = {3000}> {
            a = MatMul(x, w) b = Add(a, far) c = Sub(b, far) d = MatMul(c, v) e = Relu(d) y = MatMul(e, v)
        }""",
        w=normal(8, 8),
        v=normal(8, 8),
    )
    data = {"x": normal(32, 8)}
    done = apply(ConvertFp16(), before, data=data)
    assert half_ops(done) == {"MatMul": 3, "Relu": 1}
    assert sum("too far" in r for r in done.reasons) == 2
    runs(done, before, data)
    loose = ConvertFp16(max_error=0.9)
    assert half_ops(apply(loose, before, data=data))["Sub"] == 1
    assert "Sub" not in half_ops(apply(loose, before, data=data, budget=Budget(min_sqnr_db=40)))


# -- storage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ConvertFp16, ConvertBf16])
def test_weights_only(cls: type[ConvertFp16] | type[ConvertBf16]) -> None:
    before = model(
        "(float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) b = Add(a, c) y = MatMul(b, w) }",
        w=normal(64, 64, scale=0.1),
        c=normal(64),
    )
    done = assert_rewrites(cls(storage="weights"), before, ops={"Cast": 1, "MatMul": 2, "Add": 1})
    assert done.proto.ByteSize() < 0.6 * before.ByteSize()
    runs(done, before, random_feeds(before, 2))
    with_data = apply(cls(storage="weights"), before, data={"x": normal(16, 64)})
    assert with_data.ops == done.ops
    strict = apply(cls(storage="weights", max_error=1e-6), before, data={"x": normal(16, 64)})
    assert not strict.journal.changes
    assert any("too far" in r for r in strict.reasons)


def test_weights_that_stay() -> None:
    before = model(
        "(float[64, 64] x) => (float[64, 64] y) { a = MatMul(x, w) y = Add(a, v) }",
        w=normal(64, 64, scale=1e5),
        v=normal(64, 64, scale=1e-8),
    )
    done = assert_refuses(ConvertFp16(storage="weights"), before, "overflow")
    assert any("so small" in r for r in done.reasons)
    assert_refuses(ConvertFp16(storage="weights", keep=("MatMul", "y")), mlp())


def test_scales_of_quantization_stay_initializers() -> None:
    before = model(
        "(float[2, 1024] x) => (float[2, 1024] y) { q = DequantizeLinear<axis = 0>(w, s) y = MatMul(x, q) }",
        w=RNG.integers(-9, 9, (1024, 1024)).astype(np.int8),
        s=np.full(1024, 0.01, np.float32),
    )
    assert_refuses(ConvertFp16(storage="weights"), before)


# -- bfloat16 ------------------------------------------------------------------------------------------


def test_bfloat16_has_no_arithmetic_on_the_cpu() -> None:
    done = assert_refuses(ConvertBf16(), mlp(), "no kernel of MatMul")
    assert done.ops["Cast"] == 0


def test_bfloat16_tables_are_read_on_the_cpu() -> None:
    before = model(
        "(int64[N] i) => (float[N, 16] y) { e = Gather(table, i) y = MatMul(e, w) }",
        table=normal(100, 16),
        w=normal(16, 16),
    )
    done = assert_rewrites(ConvertBf16(), before, ops={"Gather": 1, "Cast": 1, "MatMul": 1})
    runs(done, before, {"i": np.arange(5)})


def test_bfloat16_before_opset_13() -> None:
    before = mlp()
    before.opset_import[0].version, before.ir_version = 12, 7
    for storage in ("compute", "weights"):
        assert_refuses(ConvertBf16(storage=storage), before, target="ort-cuda")
    assert ConvertBf16().least_opset() == 13
    assert apply(ConvertFp16(), before).journal.changes


def test_bfloat16_where_there_are_kernels() -> None:
    done = apply(ConvertBf16(), mlp(), target="ort-cuda")
    assert half_ops(done, onnx.TensorProto.BFLOAT16) == {"MatMul": 2, "Add": 1, "Relu": 1}
    big = mlp(scale=1e6)  # no overflow
    assert half_ops(apply(ConvertBf16(), big, target="tensorrt"), onnx.TensorProto.BFLOAT16)["MatMul"] == 2


def test_bfloat16_error_is_measured_where_it_would_be_rounded() -> None:
    done = apply(ConvertBf16(max_error=1e-5), mlp(), target="ort-cuda", data={"x": normal(16, 8)})
    assert not done.journal.changes
    assert any("too far" in r for r in done.reasons)
