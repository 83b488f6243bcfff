from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper

from graphopt.graph.text import body_lines, model_text, proto_type_text
from graphopt.model import Model

TEXT = """
<ir_version: 9, opset_import: ["" : 17, "local" : 1, "com.microsoft" : 1]>
main (float[batch, 4] x, bool c) => (float[batch, 4] y, float z)
<float[4] w = {1, 2, 3, 4}>
{
    [branch] b = If(c) <
        then_branch = t () => (float[batch, 4] p) { p = Add(x, w) },
        else_branch = e () => (float[batch, 4] q) <float one = {1}> { q = Mul(x, one) }
    >
    y = local.Twice<n: int = 2>(b)
    k = Constant<value = float {0.5}>()
    h = com.microsoft.Odd(k, , x)
    z = ReduceMax<keepdims = 0>(h)
}
<domain: "local", opset_import: ["" : 17]>
Twice<n>(a) => (r) { r = Add<axis: int = @n>(a, a) }
"""


def test_a_whole_model() -> None:
    proto = onnx.parser.parse_model(TEXT)
    text = model_text(Model.load(proto))
    assert text.splitlines() == [
        "opset 17, local 1, com.microsoft 1, IR 9",
        "function local::Twice(a) -> (r)",
        "  r = Add(a, a) {axis=@n}",
        "graph main(x: float[batch,4], c: bool[]) -> (y: float[batch,4], z: float[])",
        "  w = initializer float[4], 16 B",
        "  b = If(c)  # branch",
        "    then_branch: graph t() -> (p: float[batch,4])",
        "      p = Add(x, w)",
        "    else_branch: graph e() -> (q: float[batch,4])",
        "      one = initializer float[], 4 B",
        "      q = Mul(x, one)",
        "  y = local::Twice(b) {n=2}",
        "  k = Constant() {value=float[](0.5)}",
        "  h = com.microsoft::Odd(k, _, x)",
        "  z = ReduceMax(h) {keepdims=0}",
    ]


def test_long_attributes_are_shortened_and_large_tensors_not_printed() -> None:
    node = helper.make_node("Op", ["x"], ["y"], ints=list(range(40)), text="a" * 200, f=0.1)
    big = helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.zeros(100, np.int64)))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in "xy"]
    graph = helper.make_graph([node, big], "g", info[:1], info[1:])
    lines = list(body_lines(Model.load(helper.make_model(graph)).graph))
    assert lines[0] == "graph g(x: float[?]) -> (y: float[?])"
    assert "ints=[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,...]" in lines[1]
    assert "f=0.1" in lines[1].replace("0.100000001", "0.1")
    assert len(lines[1]) < 250
    assert lines[2] == "  k = Constant() {value=int64[100]}"


def test_types_of_every_kind() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT16, ["n", 3])
    assert proto_type_text(tensor) == "float16[n,3]"
    assert proto_type_text(helper.make_sequence_type_proto(tensor)) == "sequence(float16[n,3])"
    assert proto_type_text(helper.make_optional_type_proto(tensor)) == "optional(float16[n,3])"
    assert (
        proto_type_text(helper.make_map_type_proto(TensorProto.INT64, tensor)) == "map(int64, float16[n,3])"
    )
    sparse = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2])
    assert proto_type_text(sparse) == "sparse float[2]"
    assert proto_type_text(onnx.TypeProto()) == ""
