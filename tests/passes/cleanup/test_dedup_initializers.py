"""dedup-initializers: bitwise equality, bodies, what stays apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.dedup_initializers import DedupInitializers


def adds(
    arrays: dict[str, np.ndarray], inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """y = x + each of `arrays`; those named in `inputs` and `outputs` are in the interface as well."""
    nodes, last = [], "x"
    for i, name in enumerate(arrays):
        nodes.append(helper.make_node("Add", [last, name], [f"t{i}"]))
        last = f"t{i}"
    nodes[-1].output[0] = "y"
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(arrays.values())).dtype)
    rank = max(1, *(a.ndim for a in arrays.values()))
    read = [helper.make_tensor_value_info("x", dtype, ["N"])]
    read += [helper.make_tensor_value_info(name, dtype, arrays[name].shape) for name in inputs]
    returned = [helper.make_tensor_value_info("y", dtype, [f"d{i}" for i in range(rank)])]
    returned += [helper.make_tensor_value_info(name, dtype, arrays[name].shape) for name in outputs]
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()]
    made = helper.make_graph(nodes, "g", read, returned, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_equal_tensors_become_the_first() -> None:
    one = np.array([1.0], np.float32)
    done = assert_rewrites(DedupInitializers(), adds({"a": one, "b": one, "c": one * 2}))
    assert [t.name for t in done.proto.graph.initializer] == ["a", "c"]


def test_large_tensors_that_differ_in_the_middle_stay() -> None:
    a = np.zeros(50_000, np.float32)
    b = a.copy()
    b[25_000] = 1
    assert_refuses(DedupInitializers(), adds({"a": a[None], "b": b[None]}))
    model = adds({"a": a[:1], "b": a[:1], "c": a[None], "d": a[None]})
    assert_rewrites(DedupInitializers(), model, inputs={"x": np.ones(1, np.float32)})


def test_minus_zero_and_nan_payloads_differ() -> None:
    zero = np.zeros(1, np.float32)
    assert_refuses(DedupInitializers(), adds({"a": zero, "b": -zero}))
    nans = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert_refuses(DedupInitializers(), adds({"a": nans[:1], "b": nans[1:]}))
    assert_rewrites(DedupInitializers(), adds({"a": nans[:1], "b": nans[:1].copy()}))


def test_shape_and_dtype_must_agree() -> None:
    a = np.ones(4, np.float32)
    assert_refuses(DedupInitializers(), adds({"a": a[:1], "b": a[0].reshape(())}))
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[1] x, int32[1] z) => (int64[1] y, int32[1] w) <int64[1] a = {0}, int32[1] b = {0}> {
          y = Add(x, a)
          w = Add(z, b)
        }
    """
    assert_refuses(DedupInitializers(), before)


def test_overridable_initializers_stay() -> None:
    one = np.array([1.0], np.float32)
    assert_refuses(DedupInitializers(), adds({"a": one, "b": one}, inputs=["b"]))


def test_an_initializer_that_is_an_output_stays_under_its_name() -> None:
    one = np.array([1.0], np.float32)
    assert_refuses(DedupInitializers(), adds({"a": one, "b": one}, outputs=["b"]))
    assert_rewrites(DedupInitializers(), adds({"a": one, "b": one}, outputs=["a"]))


def test_kept_names_stay() -> None:
    one = np.array([1.0], np.float32)
    assert_refuses(DedupInitializers(), adds({"a": one, "b": one}), keep=["b"])


def test_strings_and_four_bit_integers() -> None:
    words = np.array(["a", "b"], object)
    nodes = [
        helper.make_node("Equal", ["x", "s"], ["p"]),
        helper.make_node("Equal", ["x", "t"], ["q"]),
        helper.make_node("And", ["p", "q"], ["y"]),
    ]
    tensors = [onnx.numpy_helper.from_array(words, "s"), onnx.numpy_helper.from_array(words, "t")]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, [2])],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    done = assert_rewrites(DedupInitializers(), model)
    assert [t.name for t in done.proto.graph.initializer] == ["s"]
    packed = [
        helper.make_tensor(name, onnx.TensorProto.INT4, [3], [1, -2, last])
        for name, last in (("a", 3), ("b", 3), ("c", 4))
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [name, "scale"], [f"f{name}"]) for name in ("a", "b", "c")
    ] + [helper.make_node("Sum", ["x", "fa", "fb", "fc"], ["y"])]
    scale = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])],
        [*packed, scale],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    done = assert_rewrites(DedupInitializers(), model)
    assert [t.name for t in done.proto.graph.initializer] == ["a", "c", "scale"]


def test_a_branch_reads_the_outer_one() -> None:
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[1] x) => (float[1] y) <float[1] w = {2.0}> {
          m = Mul(x, w)
          y = If (b) <
            then_branch = t () => (float[1] p) <float[1] v = {2.0}> { p = Mul(m, v) },
            else_branch = e () => (float[1] q) <float[1] u = {2.0}> { q = Add(m, u) }
          >
        }
    """
    for b in (True, False):
        feeds = {"b": np.array(b), "x": np.ones(1, np.float32)}
        done = assert_rewrites(DedupInitializers(), before, inputs=feeds)
        (branching,) = [n for n in done.proto.graph.node if n.op_type == "If"]
        assert not any(a.g.initializer for a in branching.attribute)


def test_a_name_that_the_branch_uses_itself_is_not_captured() -> None:
    before = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["x", "w"], ["m"]),
                helper.make_node(
                    "If",
                    ["b"],
                    ["y"],
                    then_branch=helper.make_graph(
                        [
                            helper.make_node("Relu", ["m"], ["w2"]),
                            helper.make_node("Mul", ["w2", "v"], ["p"]),
                        ],
                        "t",
                        [],
                        [helper.make_tensor_value_info("p", 1, [1])],
                        [onnx.numpy_helper.from_array(np.array([2.0], np.float32), "v")],
                    ),
                    else_branch=helper.make_graph(
                        [helper.make_node("Neg", ["m"], ["q"])],
                        "e",
                        [],
                        [helper.make_tensor_value_info("q", 1, [1])],
                    ),
                ),
            ],
            "g",
            [helper.make_tensor_value_info("b", 9, []), helper.make_tensor_value_info("x", 1, [1])],
            [helper.make_tensor_value_info("y", 1, [1])],
            [onnx.numpy_helper.from_array(np.array([2.0], np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    feeds = {"b": np.array(True), "x": np.ones(1, np.float32)}
    done = assert_rewrites(DedupInitializers(), before, inputs=feeds)
    branch = next(a.g for n in done.proto.graph.node for a in n.attribute if a.name == "then_branch")
    assert list(branch.node[1].input) == ["w2", "w"]


def nested(main: dict[str, np.ndarray], inner: np.ndarray) -> onnx.ModelProto:
    """y = If(b, If(b, x * v, |x|), -x) * each of `main`, with v = `inner` a tensor of the inner branch."""

    def branch(name: str, node: onnx.NodeProto, *tensors: onnx.TensorProto) -> onnx.GraphProto:
        returned = helper.make_tensor_value_info(node.output[0], 1, ["N"])
        return helper.make_graph([node], name, [], [returned], tensors)

    deep = branch("tt", helper.make_node("Mul", ["x", "v"], ["pp"]), onnx.numpy_helper.from_array(inner, "v"))
    flat = branch("te", helper.make_node("Abs", ["x"], ["pq"]))
    middle = branch("t", helper.make_node("If", ["b"], ["p"], then_branch=deep, else_branch=flat))
    other = branch("e", helper.make_node("Neg", ["x"], ["q"]))
    nodes, last = [helper.make_node("If", ["b"], ["r"], then_branch=middle, else_branch=other)], "r"
    for name in main:
        nodes.append(helper.make_node("Mul", [last, name], [f"{name}_out"]))
        last = f"{name}_out"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("b", 9, []), helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info(last, 1, ["N"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in main.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inner_reads(model: onnx.ModelProto) -> str:
    """What the Mul of the inner branch reads besides x."""
    body = model.graph
    while body.node[0].op_type == "If":
        body = next(a.g for a in body.node[0].attribute if a.name == "then_branch")
    return body.node[0].input[1]


def test_two_bodies_down_the_outermost_one_is_read() -> None:
    two = np.array([2.0], np.float32)
    feeds = {"b": np.array(True), "x": np.ones(1, np.float32)}
    done = assert_rewrites(DedupInitializers(), nested({"u": two + 1, "w": two}, two), inputs=feeds)
    assert inner_reads(done.proto) == "w"


def test_of_large_outer_ones_that_look_alike_the_equal_one_is_read() -> None:
    w = np.ones(5000, np.float32)
    u = w.copy()
    u[2500] = 2
    feeds = {"b": np.array(True), "x": np.ones(1, np.float32)}
    done = assert_rewrites(DedupInitializers(), nested({"u": u, "w": w}, w), inputs=feeds)
    assert inner_reads(done.proto) == "w"
