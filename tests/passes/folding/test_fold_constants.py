"""fold-constants: what is computed ahead of time, what never is, and what it may cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.passkit import Limits
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.folding.fold_constants import FoldConstants
from graphopt_passes.folding.fold_half_constants import FoldHalfConstants


def graph(body: str, inits: str = "", outputs: str = "float[M] y", opset: int = 17) -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N] x) => ({outputs}) <{inits}> {{ {body} }}
    """


W = "float[4] w = {1, 2, 3, 4}"
X4 = {"x": np.arange(4, dtype=np.float32)}
X1 = {"x": np.ones(1, np.float32)}


def test_a_chain_becomes_one_constant() -> None:
    body = "a = Exp(w) b = Sqrt(a) c = Add(b, w) y = Mul(x, c)"
    done = assert_rewrites(FoldConstants(), graph(body, W), ops={"Mul": 1}, inputs=X4)
    assert len(done.proto.graph.initializer) == 1


def test_only_the_frontier_is_stored() -> None:
    body = "a = Exp(w) b = Sqrt(a) c = Neg(a) d = Mul(x, b) y = Add(d, c)"
    done = assert_rewrites(FoldConstants(), graph(body, W), ops={"Mul": 1, "Add": 1}, inputs=X4)
    assert len(done.proto.graph.initializer) == 2


def test_an_output_keeps_its_name() -> None:
    done = assert_rewrites(FoldConstants(), graph("y = Exp(w)", W), ops={})
    (node,) = done.proto.graph.node
    assert (node.op_type, node.output[0]) == ("Constant", "y")


def test_an_overridable_initializer_is_not_constant() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x, float[1] w = {2.0}) => (float[1] y) { a = Exp(w) y = Mul(x, a) }
    """
    assert_refuses(FoldConstants(), before)


@pytest.mark.parametrize(
    "op",
    [
        "RandomNormal<shape=[4]>()",
        "RandomUniform<shape=[4]>()",
        "RandomNormalLike(w)",
        "RandomUniformLike(w)",
        "Bernoulli(w)",
        "Dropout(w, half, train)",
    ],
)
def test_random_values_are_not_baked(op: str) -> None:
    inits = "float[4] w = {0.1, 0.2, 0.3, 0.4}, float half = {0.5}, bool train = {1}"
    assert_refuses(FoldConstants(), graph(f"a = {op} y = Mul(x, a)", inits))


def test_multinomial_is_not_baked() -> None:
    body = "a = Multinomial<sample_size=4>(w) b = Cast<to=1>(a) y = Mul(x, b)"
    assert_refuses(FoldConstants(), graph(body, "float[1, 2] w = {0.5, 0.5}", "float[M, K] y"))


def test_inference_dropout_is_folded() -> None:
    inits = f"{W}, float half = {{0.5}}, bool train = {{0}}"
    assert_rewrites(FoldConstants(), graph("a = Dropout(w, half, train) y = Mul(x, a)", inits), inputs=X4)


BOMBS = {
    "ConstantOfShape": "a = ConstantOfShape(big) y = Mul(x, a)",
    "Expand": "a = Expand(one, big) y = Mul(x, a)",
    "Tile": "a = Tile(one, big) y = Mul(x, a)",
    "Range": "b = Range(zero, many, step) y = Mul(x, b)",
    "Pad": "a = Pad(one, pads) y = Mul(x, a)",
}
BIG = (
    "int64[1] big = {100000}, float[1] one = {1.5}, int64[2] pads = {0, 99999}, "
    "float zero = {0}, float many = {100000}, float step = {1}"
)


@pytest.mark.parametrize("op", BOMBS)
def test_bombs_stay(op: str) -> None:
    done = assert_refuses(FoldConstants(), graph(BOMBS[op], BIG))
    assert any("would take" in r or "not known" in r for r in done.reasons), done.reasons


def test_what_leads_up_to_a_bomb_is_folded() -> None:
    body = "d = Mul(k, k) a = ConstantOfShape(d) y = Mul(x, a)"
    ops = {"ConstantOfShape": 1, "Mul": 1}
    assert_rewrites(FoldConstants(), graph(body, "int64[1] k = {1000}"), ops=ops, inputs=X1)


def test_a_bomb_that_shrinks_again_is_folded() -> None:
    body = "a = Expand(one, big) b = ReduceSum(a) y = Mul(x, b)"
    assert_rewrites(FoldConstants(), graph(body, BIG), ops={"Mul": 1}, inputs=X4)


def test_a_bomb_too_large_to_compute_stays_whatever_follows() -> None:
    body = "a = Expand(one, big) b = ReduceSum(a) y = Mul(x, b)"
    assert_refuses(FoldConstants(), graph(body, BIG), "would take", limits=Limits(folded_bytes=1000))


def test_a_result_may_replace_as_much_as_it_weighs() -> None:
    size = 40_000
    weight = onnx.numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")
    shape = onnx.numpy_helper.from_array(np.array([200, 200]), "s")

    def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        made = helper.make_graph(
            [*nodes, helper.make_node("Mul", ["x", "b"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", "K"])],
            [weight, shape],
        )
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    moved = model(
        helper.make_node("Reshape", ["w", "s"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0]),
    )
    assert_rewrites(FoldConstants(), moved, ops={"Mul": 1})
    halves = model(
        helper.make_node("Reshape", ["w", "s"], ["a"]),
        helper.make_node("Split", ["a"], ["c", "d"], axis=0),
        helper.make_node("Concat", ["d", "c"], ["b"], axis=0),
    )
    assert_rewrites(FoldConstants(), halves, ops={"Mul": 1})
    doubled = model(
        helper.make_node("Reshape", ["w", "s"], ["a"]), helper.make_node("Concat", ["a", "a"], ["b"], axis=0)
    )
    done = assert_rewrites(FoldConstants(), doubled, ops={"Concat": 1, "Mul": 1})
    assert any("more than what it replaces" in r for r in done.reasons)


def test_halves_of_a_weight_share_what_they_replace() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((200, 200), np.float32), "w")
    nodes = [
        helper.make_node("Split", ["w"], ["c", "d"], axis=0),
        helper.make_node("Mul", ["x", "c"], ["e"]),
        helper.make_node("Mul", ["e", "d"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", "K"])],
        [weight],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_rewrites(FoldConstants(), model, ops={"Mul": 2})


def test_a_weight_with_another_reader_is_not_replaced_by_its_transpose() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((200, 200), np.float32), "w")
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["x", "t"], ["e"]),
        helper.make_node("Mul", ["e", "w"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", "K"])],
        [weight],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_refuses(FoldConstants(), model, "more than what it replaces")


def test_many_small_folds_do_not_add_up_without_end() -> None:
    limits = Limits(growth_bytes=8192)
    lines = "".join(
        f"a{i} = ConstantOfShape(k) b{i} = Mul(x{i}, a{i}) x{i + 1} = Relu(b{i}) " for i in range(64)
    )
    body = f"x0 = Relu(x) {lines} y = Relu(x64)"
    done = apply(FoldConstants(), graph(body, "int64[1] k = {2000}"), limits=limits)
    assert done.ops["ConstantOfShape"] == 64 - 16
    assert sum(len(t.raw_data) for t in done.proto.graph.initializer if t.dims[0] == 2000) <= 16 * 8192


def test_quantization_is_not_undone() -> None:
    inits = "int8[4] w = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}, float[4] f = {1, 2, 3, 4}"
    assert_refuses(FoldConstants(), graph("a = DequantizeLinear(w, s, z) y = Mul(x, a)", inits))
    chain = "q = QuantizeLinear(f, s, z) a = DequantizeLinear(q, s, z) b = Neg(a) y = Mul(x, b)"
    assert_refuses(FoldConstants(), graph(chain, inits))


@pytest.mark.parametrize(
    ("op", "a", "b"), [("Div", 5, 0), ("Mod", 5, 0), ("Div", -(2**31), -1), ("Mod", -(2**31), -1)]
)
def test_integer_division_does_not_end_the_process(op: str, a: int, b: int) -> None:
    inits = f"int32[1] a = {{{a}}}, int32[1] b = {{{b}}}, float[1] w = {{4.0}}"
    body = f"d = {op}(a, b) e = Cast<to=1>(d) f = Sqrt(w) h = Mul(x, f) y = Add(h, e)"
    done = apply(FoldConstants(), graph(body, inits))
    assert done.ops == {op: 1, "Cast": 1, "Mul": 1, "Add": 1}
    assert any("integer" in r for r in done.reasons)


def test_a_node_that_cannot_run_does_not_keep_the_others_from_it() -> None:
    inits = f"{W}, int64[1] far = {{9}}"
    body = "a = Exp(w) g = Gather(a, far) b = Sqrt(w) c = Mul(x, b) y = Mul(c, g)"
    done = apply(FoldConstants(), graph(body, inits))
    assert done.ops == {"Gather": 1, "Mul": 2}
    assert len(done.reasons) == 1


def test_sequences_and_optionals_stay() -> None:
    body = """
        q = SequenceConstruct(w, w)
        a = SequenceAt(q, i)
        b = Exp(w)
        c = Mul(x, b)
        y = Mul(c, a)
    """
    ops = {"SequenceConstruct": 1, "SequenceAt": 1, "Mul": 2}
    assert_rewrites(FoldConstants(), graph(body, f"{W}, int64 i = {{0}}"), ops=ops, inputs=X4)


def test_custom_operators_and_functions_stay() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { a = d.Exp(w) y = Mul(x, a) }
        <domain: "d", opset_import: ["" : 17]>
        Exp (x) => (y) { y = Neg(x) }
    """
    assert_refuses(FoldConstants(), before)


def test_inside_functions_constants_become_nodes() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N] x) => (float[N] y) { y = d.f(x) }
        <domain: "d", opset_import: ["" : 17]>
        f (x) => (y) { c = Constant<value = float {4.0}>() s = Sqrt(c) y = Mul(x, s) }
    """
    done = assert_rewrites(FoldConstants(), before, ops={"d::f": 1, "Mul": 1})
    assert [n.op_type for n in done.proto.functions[0].node] == ["Constant", "Mul"]


def test_a_reference_to_a_function_attribute_is_not_known() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N] x) => (float[N] y) { y = d.f<k = 0.5>(x) }
        <domain: "d", opset_import: ["" : 17]>
        f <k> (x) => (y) {
          c = Constant<value = float {4.0}>()
          s = LeakyRelu<alpha : float = @k>(c)
          y = Mul(x, s)
        }
    """
    assert_refuses(FoldConstants(), before)


def test_branches_are_folded_also_with_constants_from_outside() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
          y = If (b) <
            then_branch = t () => (float[4] p) { a = Exp(w) p = Mul(x, a) },
            else_branch = e () => (float[4] q) <float[4] v = {1, 2, 3, 4}> { q = Exp(v) }
          >
        }
    """
    for b in (True, False):
        feeds = {"b": np.array(b), "x": np.ones(4, np.float32)}
        assert_rewrites(FoldConstants(), before, ops={"If": 1, "Mul": 1}, inputs=feeds)


def test_a_folded_value_read_in_two_bodies_belongs_to_the_outer_one() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
          a = Exp(w)
          h = If (b) <
            then_branch = t () => (float[4] p) { p = Mul(x, a) },
            else_branch = e () => (float[4] q) { q = Add(x, a) }
          >
          y = Sub(h, a)
        }
    """
    feeds = {"b": np.array(True), "x": np.ones(4, np.float32)}
    assert_rewrites(FoldConstants(), before, ops={"If": 1, "Mul": 1, "Add": 1, "Sub": 1}, inputs=feeds)


def test_loop_state_is_not_constant() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y) <int64 n = {3}, bool go = {1}, float[4] w = {1, 2, 3, 4}> {
          y = Loop (n, go, w) <
            body = l (int64 i, bool k, float[4] v) => (bool k2, float[4] v2) {
              k2 = Identity(k)
              e = Exp(w)
              a = Mul(v, e)
              v2 = Add(a, x)
            }
          >
        }
    """
    ops = {"Loop": 1, "Identity": 1, "Mul": 1, "Add": 1}
    assert_rewrites(FoldConstants(), before, ops=ops, inputs=X4)


def test_results_of_unknown_size_are_declined_and_those_with_a_bound_are_not() -> None:
    bounded = "a = NonZero(w) b = Cast<to=1>(a) y = Mul(x, b)"
    before = graph(bounded, "float[4] w = {0, 2, 3, 4}", "float[M, K] y")
    assert_rewrites(FoldConstants(), before, ops={"Mul": 1}, inputs=X1)


def test_half_precision_and_bfloat16() -> None:
    half = f"h = Cast<to=10>(x) a = Cast<to={TensorProto.FLOAT16}>(w) b = Neg(a) y = Mul(h, b)"
    before = graph(half, W, "float16[M] y")
    assert_refuses(FoldConstants(), before)
    assert_rewrites(FoldHalfConstants(), before, ops={"Cast": 1, "Mul": 1}, inputs=X4)
    brain = f"a = Cast<to={TensorProto.BFLOAT16}>(w) c = Cast<to=1>(a) y = Mul(x, c)"
    assert_rewrites(FoldHalfConstants(), graph(brain, W), ops={"Mul": 1}, inputs=X4)
    widened = "a = Transpose(v) c = Cast<to=1>(a) y = Mul(x, c)"
    assert_rewrites(FoldConstants(), graph(widened, "float16[4] v = {1, 2, 3, 4}"), ops={"Mul": 1}, inputs=X4)
    stored = f"a = Cast<to={TensorProto.BFLOAT16}>(w) y = Identity(a)"
    done = assert_rewrites(FoldHalfConstants(), graph(stored, W, "bfloat16[4] y"), ops={})
    assert done.proto.graph.node[0].attribute[0].t.data_type == TensorProto.BFLOAT16


def test_what_is_kept_stays() -> None:
    assert_refuses(FoldConstants(), graph("a = Exp(w) y = Mul(x, a)", W), keep=["a"])


def test_arithmetic_in_half_precision_is_left_to_a_pass_that_may_round() -> None:
    body = f"h = Cast<to=10>(x) a = Cast<to={TensorProto.FLOAT16}>(w) b = Sqrt(a) c = Mul(b, b) y = Mul(h, c)"
    before = graph(body, W, "float16[M] y")
    assert_refuses(FoldConstants(), before)
    assert_rewrites(FoldHalfConstants(), before, ops={"Cast": 1, "Mul": 1}, inputs=X4)


def test_range_gets_scalars() -> None:
    # onnxruntime runs a Range on vectors of one element, but does not load one on constants of that shape.
    body = """
        a, b = Split(k, ones)
        r = Range(zero, a, one)
        f = Cast<to=1>(r)
        g = Mul(f, x)
        h = Cast<to=1>(a)
        y = Mul(g, h)
    """
    inits = "int64[2] k = {70000, 4}, int64[2] ones = {1, 1}, int64 zero = {0}, int64 one = {1}"
    done = assert_rewrites(FoldConstants(), graph(body, inits), inputs=X1)
    (node,) = [n for n in done.proto.graph.node if n.op_type == "Range"]
    limit = next(t for t in done.proto.graph.initializer if t.name == node.input[1])
    assert list(limit.dims) == []


def test_weights_stored_in_bytes_stay_stored_in_bytes() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])
    stored = np.arange(512, dtype=np.int8).reshape(16, 32)
    nodes = [
        helper.make_node("Cast", ["stored"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    tensors = [
        onnx.numpy_helper.from_array(stored, "stored"),
        onnx.numpy_helper.from_array(np.full(32, 0.25, np.float32), "scale"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = [helper.make_opsetid("", 17)]
    assert_refuses(FoldConstants(), helper.make_model(graph, opset_imports=opset, ir_version=8))
