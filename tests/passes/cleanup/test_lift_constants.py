"""lift-constants: dtypes of every spelling, names, outputs, bodies, functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.cleanup.lift_constants import LiftConstants


def model_with(constant: onnx.NodeProto, elem_type: int, rank: int = 1) -> onnx.ModelProto:
    """y = Identity(c), where `constant` computes c."""
    nodes = [constant, helper.make_node("Identity", ["c"], ["y"])]
    output = helper.make_tensor_value_info("y", elem_type, [f"d{i}" for i in range(rank)])
    graph = helper.make_graph(nodes, "g", [], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SPELLINGS = [
    ({"value_float": 0.1}, np.array(0.1, np.float32)),
    ({"value_floats": [0.1, -0.0]}, np.array([0.1, -0.0], np.float32)),
    ({"value_int": 2**40}, np.array(2**40, np.int64)),
    ({"value_ints": [3, -1]}, np.array([3, -1], np.int64)),
]


@pytest.mark.parametrize(("attrs", "expected"), SPELLINGS)
def test_numbers_get_the_dtype_they_stand_for(attrs: dict[str, object], expected: np.ndarray) -> None:
    constant = helper.make_node("Constant", [], ["c"], **attrs)
    elem_type = helper.np_dtype_to_tensor_dtype(expected.dtype)
    before = model_with(constant, elem_type, expected.ndim)
    done = assert_rewrites(LiftConstants(), before, ops={"Identity": 1})
    (lifted,) = done.model.graph.initializers
    assert lifted.name == "c"
    assert lifted.values.dtype == expected.dtype
    assert lifted.values.shape == expected.shape
    assert lifted.values.tobytes() == expected.tobytes()


def test_strings_are_lifted() -> None:
    constant = helper.make_node("Constant", [], ["c"], value_strings=["a", "ß"])
    done = assert_rewrites(LiftConstants(), model_with(constant, TensorProto.STRING), ops={"Identity": 1})
    (lifted,) = done.model.graph.initializers
    assert lifted.values.tolist() == ["a", "ß"]


def test_a_tensor_is_lifted_under_the_name_of_the_output_and_with_its_doc_string() -> None:
    tensor = onnx.numpy_helper.from_array(np.arange(600, dtype=np.float32), "inner")
    tensor.doc_string = "weights"
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    done = assert_rewrites(LiftConstants(), model_with(constant, TensorProto.FLOAT), ops={"Identity": 1})
    (lifted,) = done.proto.graph.initializer
    assert (lifted.name, lifted.doc_string) == ("c", "weights")


def test_no_constant_node_is_left_and_all_readers_follow() -> None:
    done = assert_rewrites(
        LiftConstants(),
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y) {
          c = Constant<value = float {2.0}>()
          a = Mul(x, c)
          y = Add(a, c)
        }
        """,
        ops={"Mul": 1, "Add": 1},
    )
    assert not [n for n in done.proto.graph.node if n.op_type == "Constant"]


def test_a_graph_output_keeps_its_node() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float[1] y, float[1] c) {
          c = Constant<value = float[1] {2.0}>()
          y = Mul(x, c)
        }
    """
    assert_refuses(LiftConstants(), before)


def test_a_number_that_is_an_output_becomes_a_tensor_attribute() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float[1] y, float c) {
          c = Constant<value_float = 2.5>()
          y = Mul(x, c)
        }
    """
    done = assert_rewrites(LiftConstants(), before, ops={"Mul": 1})
    (node,) = [n for n in done.proto.graph.node if n.op_type == "Constant"]
    assert node.output[0] == "c"
    assert node.attribute[0].t.data_type == TensorProto.FLOAT


BRANCHES = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool b, float[1] x) => (float[1] y) {
      k = Constant<value = float[1] {7.0}>()
      y = If (b) <
        then_branch = t () => (float[1] p) { c = Constant<value = float[1] {2.0}>() s = Add(x, k)
                                             p = Mul(s, c) },
        else_branch = e () => (float[1] q) { q = Constant<value = float[1] {3.0}>() }
      >
    }
"""


def test_branches_get_their_own_initializers_and_captured_ones_stay_outside() -> None:
    for condition in (True, False):
        feeds = {"b": np.array(condition), "x": np.ones(1, np.float32)}
        done = assert_rewrites(LiftConstants(), BRANCHES, ops={"If": 1, "Add": 1, "Mul": 1}, inputs=feeds)
        assert [t.name for t in done.proto.graph.initializer] == ["k"]
        branches = {a.name: a.g for a in done.proto.graph.node[0].attribute}
        assert [t.name for t in branches["then_branch"].initializer] == ["c"]
        assert [n.op_type for n in branches["else_branch"].node] == ["Constant"]


def test_a_constant_read_only_inside_branches_of_two_ifs_belongs_to_the_outer_body() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[1] x) => (float[1] y, float[1] z) {
          k = Constant<value = float[1] {7.0}>()
          y = If (b) < then_branch = t () => (float[1] p) { p = Add(x, k) },
                       else_branch = e () => (float[1] q) { q = Mul(x, k) } >
          z = Sub(y, k)
        }
    """
    feeds = {"b": np.array(True), "x": np.ones(1, np.float32)}
    done = assert_rewrites(LiftConstants(), before, inputs=feeds)
    assert [t.name for t in done.proto.graph.initializer] == ["k"]


def test_functions_keep_constant_nodes_as_tensors() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N] x) => (float[N] y) { y = d.f(x) }
        <domain: "d", opset_import: ["" : 17]>
        f (x) => (y) { c = Constant<value_float = 0.1>() y = Mul(x, c) }
    """
    done = assert_rewrites(LiftConstants(), before, ops={"d::f": 1, "Mul": 1})
    (node, _) = done.proto.functions[0].node
    assert node.op_type == "Constant"
    assert onnx.numpy_helper.to_array(node.attribute[0].t).dtype == np.float32


def test_references_to_function_attributes_and_sparse_values_stay() -> None:
    referring = """
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N] x) => (float[N] y) { y = d.f<k = 2.0>(x) }
        <domain: "d", opset_import: ["" : 17]>
        f <k> (x) => (y) { c = Constant<value_float : float = @k>() y = Mul(x, c) }
    """
    assert_refuses(LiftConstants(), referring)
    values = onnx.numpy_helper.from_array(np.array([1.5], np.float32), "v")
    indices = onnx.numpy_helper.from_array(np.array([2], np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, [4])
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    assert_refuses(LiftConstants(), model_with(constant, TensorProto.FLOAT))


def test_what_is_kept_stays() -> None:
    constant = helper.make_node("Constant", [], ["c"], value_float=1.0)
    assert_refuses(LiftConstants(), model_with(constant, TensorProto.FLOAT, 0), keep=["c"])


def test_a_dead_constant_is_not_lifted() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float[1] y) { c = Constant<value_float = 1.0>() y = Neg(x) }
    """
    assert apply(LiftConstants(), before).journal.changes == []
