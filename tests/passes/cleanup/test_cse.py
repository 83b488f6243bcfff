"""cse: what is the same, and what only looks it."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.cse import Cse


def graph(body: str, inits: str = "", outputs: str = "float[N, 4] y", opset: int = 17) -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 4] x) => ({outputs}) <{inits}> {{ {body} }}
    """


def test_chains_of_duplicates_collapse_in_one_sweep() -> None:
    body = "a = Relu(x) b = Relu(x) c = Exp(a) d = Exp(b) y = Add(c, d)"
    assert_rewrites(Cse(), graph(body), ops={"Relu": 1, "Exp": 1, "Add": 1})


def test_attributes_tell_nodes_apart() -> None:
    different = "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) y = Add(a, b)"
    assert_refuses(Cse(), graph(different))
    same = "a = Softmax<axis=1>(x) b = Softmax<axis=1>(x) y = Add(a, b)"
    assert_rewrites(Cse(), graph(same), ops={"Softmax": 1, "Add": 1})


def test_float_attributes_count_bit_by_bit() -> None:
    body = "a = LeakyRelu<alpha=0.0>(x) b = LeakyRelu<alpha=-0.0>(x) y = Sub(a, b)"
    assert_refuses(Cse(), graph(body))


def test_an_omitted_input_keeps_its_place() -> None:
    body = "a = Clip(x, c) b = Clip(x, , c) y = Sub(a, b)"
    assert_refuses(Cse(), graph(body, "float c = {0.5}"))
    assert_rewrites(
        Cse(),
        graph("a = Clip(x, , c) b = Clip(x, , c) y = Sub(a, b)", "float c = {0.5}"),
        ops={"Clip": 1, "Sub": 1},
    )


def test_the_order_of_operands_matters() -> None:
    assert_refuses(Cse(), graph("e = Exp(x) a = Sub(x, e) b = Sub(e, x) y = Mul(a, b)"))
    # Floats: a + b and b + a differ in the payload of NaNs.
    assert_refuses(Cse(), graph("e = Exp(x) a = Add(x, e) b = Add(e, x) y = Mul(a, b)"))


def test_integer_operands_commute() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[N] x, int64[N] w) => (int64[N] y) { a = Add(x, w) b = Add(w, x) y = Mul(a, b) }
    """
    assert_rewrites(Cse(), before, ops={"Add": 1, "Mul": 1})


@pytest.mark.parametrize(
    "op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial<sample_size=4>"]
)
def test_random_operators_stay_apart(op: str) -> None:
    kind = "int32[N, 4]" if op.startswith("Multi") else "float[N, 4]"
    body = f"h = HardSigmoid(x) a = {op}(h) b = {op}(h) y = Sub(a, b)"
    assert_refuses(Cse(), graph(body, outputs=f"{kind} y"))


def test_random_values_without_inputs_stay_apart() -> None:
    body = "a = RandomNormal<shape=[4]>() b = RandomNormal<shape=[4]>() d = Sub(a, b) y = Add(x, d)"
    assert_refuses(Cse(), graph(body))


def test_training_dropout_stays_apart_and_inference_dropout_does_not() -> None:
    inits = "float r = {0.5}, bool train = {1}, bool infer = {0}"
    training = "a = Dropout(x, r, train) b = Dropout(x, r, train) y = Sub(a, b)"
    assert_refuses(Cse(), graph(training, inits))
    inference = "a = Dropout(x, r, infer) b = Dropout(x, r, infer) y = Sub(a, b)"
    assert_rewrites(Cse(), graph(inference, inits), ops={"Dropout": 1, "Sub": 1})


def test_an_output_keeps_its_name_whichever_comes_first() -> None:
    early = graph("y = Relu(x) b = Relu(x) z = Exp(b)", outputs="float[N, 4] y, float[N, 4] z")
    assert_rewrites(Cse(), early, ops={"Relu": 1, "Exp": 1})
    late = graph("b = Relu(x) z = Exp(b) y = Relu(x)", outputs="float[N, 4] y, float[N, 4] z")
    assert_rewrites(Cse(), late, ops={"Relu": 1, "Exp": 1})


def test_two_outputs_of_one_value() -> None:
    both = graph("y = Relu(x) z = Relu(x) w = Exp(z)", outputs="float[N, 4] y, float[N, 4] z, float[N, 4] w")
    done = assert_rewrites(Cse(), both, ops={"Relu": 1, "Identity": 1, "Exp": 1})
    (reader,) = [n for n in done.proto.graph.node if n.op_type == "Exp"]
    assert reader.input[0] == "y"


def test_constants_that_are_outputs_stay_constants() -> None:
    """An Identity in place of one would be folded to the Constant again, and so on for ever."""
    both = graph(
        "y = Constant<value = int64[1] {0}>() z = Constant<value = int64[1] {0}>()",
        outputs="int64[1] y, int64[1] z",
    )
    assert_refuses(Cse(), both)


def test_several_outputs_merge_together_or_not_at_all() -> None:
    body = "a, b = Split<axis=1>(x, s) c, d = Split<axis=1>(x, s) e = Add(a, d) f = Add(b, c) y = Mul(e, f)"
    before = graph(body, "int64[2] s = {2, 2}", outputs="float[N, 2] y")
    assert_rewrites(Cse(), before, ops={"Split": 1, "Add": 2, "Mul": 1})
    outputs = "float[N, 2] a, float[N, 2] b, float[N, 2] c, float[N, 2] d"
    apart = graph(
        "a, b = Split<axis=1>(x, s) c, d = Split<axis=1>(x, s)", "int64[2] s = {2, 2}", outputs=outputs
    )
    assert_refuses(Cse(), apart, "both outputs")


def test_the_number_of_outputs_matters() -> None:
    body = "a = Dropout(x) b, m = Dropout(x) c = Cast<to=1>(m) d = Mul(b, c) y = Add(a, d)"
    assert_refuses(Cse(), graph(body))


def test_tensor_attributes_by_content() -> None:
    body = """
        s = Shape(x)
        a = ConstantOfShape<value = float[1] {1.0}>(s)
        b = ConstantOfShape<value = float[1] {1.0}>(s)
        c = ConstantOfShape<value = float[1] {-1.0}>(s)
        d = Sub(a, b)
        y = Add(d, c)
    """
    assert_rewrites(Cse(), graph(body), ops={"Shape": 1, "ConstantOfShape": 2, "Sub": 1, "Add": 1})


def test_functions_and_custom_operators_stay() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N] x) => (float[N] y) { a = d.f(x) b = d.f(x) y = Sub(a, b) }
        <domain: "d", opset_import: ["" : 17]>
        f (x) => (y) { r = RandomNormalLike(x) y = Add(x, r) }
    """
    assert_refuses(Cse(), before)


def test_nodes_that_hold_bodies_stay_and_the_bodies_are_cleaned() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[4] x) => (float[4] y) {
          y = If (b) <
            then_branch = t () => (float[4] p) { a = Exp(x) c = Exp(x) p = Mul(a, c) },
            else_branch = e () => (float[4] q) { q = Neg(x) }
          >
        }
    """
    feeds = {"b": np.array(True), "x": np.ones(4, np.float32)}
    assert_rewrites(Cse(), before, ops={"If": 1, "Exp": 1, "Mul": 1, "Neg": 1}, inputs=feeds)


def test_a_merged_reader_that_leaves_the_first_of_a_pair_unread() -> None:
    # a is read by nothing once d is merged with c; e must not be merged with the erased a.
    body = "c = Exp(x) a = Relu(c) d = Exp(x) f = Relu(d) e = Relu(c) g = Add(f, e) y = Add(g, a)"
    assert_rewrites(Cse(), graph(body), ops={"Exp": 1, "Relu": 1, "Add": 2})


def test_what_is_kept_stays() -> None:
    assert_refuses(Cse(), graph("a = Relu(x) b = Relu(x) y = Add(a, b)"), keep=["b"])
