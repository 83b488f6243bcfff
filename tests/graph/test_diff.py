from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.graph.diff import diff_models
from graphopt.model import Model

TEXT = """
<ir_version: 10, opset_import: ["" : 17], producer_name: "a">
g (float[n, 4] x, bool c) => (float[n, 4] y)
<float[4] w = {1, 2, 3, 4}, float[4] v = {0, 0, 0, 0}>
{
    a = Add(x, w)
    [pick] i = If(c) <
        then_branch = t () => (float[n, 4] p) { p = Add(a, v) },
        else_branch = e () => (float[n, 4] q) { q = Identity(a) }
    >
    k = Constant<value = float[20] {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>()
    m = Softmax<axis = -1>(i)
    y = Relu(m)
}
"""


def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def changes(b: onnx.ModelProto) -> Any:
    return diff_models(Model.load(proto()), Model.load(b))


def test_a_model_does_not_differ_from_itself() -> None:
    found = changes(proto())
    assert not found
    assert found.ops == {}


def test_nodes_are_paired_by_what_they_compute_not_by_place_or_name() -> None:
    b = proto()
    nodes = list(b.graph.node)
    del b.graph.node[:]
    b.graph.node.extend([nodes[2], *nodes[:2], *nodes[3:]])
    assert not changes(b)


def test_a_removed_an_added_and_a_changed_node() -> None:
    b = proto()
    b.graph.node[-1].CopyFrom(onnx.helper.make_node("Tanh", ["t"], ["y"], name="last"))
    b.graph.node.insert(4, onnx.helper.make_node("Neg", ["m"], ["t"]))
    b.graph.node[4].metadata_props.add(key="graphopt.pass", value="negate")
    b.graph.node[3].attribute[0].i = 0
    found = changes(b)
    assert found.ops == {"Neg": (0, 1), "Relu": (1, 0), "Tanh": (0, 1)}
    assert [(n.kind, n.op, n.changes) for n in found.nodes] == [
        ("changed", "Softmax", ("axis: -1 -> 0",)),
        ("changed", "Tanh", ("Relu -> Tanh", "input 0: m -> t")),
        ("added", "Neg", ()),
    ]
    assert found.nodes[2].made_by == "negate"


def test_bodies_are_compared_by_their_place() -> None:
    b = proto()
    b.graph.node[1].attribute[0].g.node[0].input[1] = "w"
    found = changes(b)
    assert [(n.body, n.changes) for n in found.nodes] == [("pick/then_branch", ("input 1: v -> w",))]


def test_initializers_are_compared_by_value() -> None:
    b = proto()
    b.graph.initializer[0].float_data[2] += 0.25
    b.graph.initializer[1].name = "u"
    found = changes(b)
    assert [(v.kind, v.name, v.before, v.after) for v in found.initializers] == [
        ("changed", "w", "float[4]", "other values, by at most 0.25"),
        ("removed", "v", "float[4]", ""),
        ("added", "u", "", "float[4]"),
    ]


def test_the_sign_of_a_zero_is_a_difference_but_nan_is_itself() -> None:
    b = proto()
    b.graph.initializer[1].float_data[0] = -0.0
    assert [v.name for v in changes(b).initializers] == ["v"]
    a = proto()
    for model in (a, b):
        model.graph.initializer[1].float_data[0] = np.nan
    assert not diff_models(Model.load(a), Model.load(b))


def test_a_tensor_attribute_that_is_too_long_to_show_still_counts() -> None:
    b = proto()
    b.graph.node[2].attribute[0].t.float_data[7] = 2
    (node,) = changes(b).nodes
    assert node.changes == ("value: float[20] with other values",)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m.opset_import[0].__setattr__("version", 18), "opsets: opset 17 -> opset 18"),
        (lambda m: m.__setattr__("producer_name", "b"), "producer_name: 'a' -> 'b'"),
        (lambda m: m.metadata_props.add(key="k", value="v"), "metadata 'k': '(none)' -> 'v'"),
        (lambda m: m.__setattr__("ir_version", 9), "IR version: 10 -> 9"),
    ],
)
def test_properties(edit: Any, says: str) -> None:
    b = proto()
    edit(b)
    assert changes(b).properties == (says,)


def test_the_interface() -> None:
    b = proto()
    b.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    b.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("z", 1, [2]))
    b.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert changes(b).interface == (
        "input x: float[n,4] -> float[batch,4]",
        "input added: z: float[2]",
        "output y: float[n,4] -> double[n,4]",
    )
    b = proto()
    b.graph.input.reverse()
    assert changes(b).interface == ("inputs: their order changed",)
