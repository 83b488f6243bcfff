"""Protobuf to graph objects: scoping, kinds of values, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.model import Model

F = TensorProto.FLOAT


def _info(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, F, [2, "n", None]) for name in names]


def _load(
    nodes: list[onnx.NodeProto],
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    initializers: tuple[onnx.TensorProto, ...] = (),
    **kwargs: object,
) -> Model:
    graph = helper.make_graph(nodes, "g", _info(*inputs), _info(*outputs), list(initializers), **kwargs)
    return Model.load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]))


def test_objects_are_linked_and_ours() -> None:
    model = _load([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Exp", ["h"], ["y"])])
    relu, exp = model.graph.nodes
    assert type(relu) is ir.Node
    assert relu.outputs[0] is exp.inputs[0]
    assert relu.outputs[0].outputs == [exp]
    assert relu.outputs[0].inputs == [relu]
    assert model.graph.inputs[0] is relu.inputs[0]
    assert model.graph.outputs[0] is exp.outputs[0]
    assert model.bodies() == [model.graph]
    x = model.graph.inputs[0]
    assert (x.dtype, x.shape, x.type) == (np.float32, [2, "n", None], "tensor_type")


def test_standard_domain_has_one_spelling() -> None:
    model = _load([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])
    assert model.graph.nodes[0].domain == ""


def test_omitted_inputs_and_outputs_are_empty_tensors() -> None:
    model = _load([helper.make_node("Clip", ["x", "", "m"], ["y", ""])], inputs=("x", "m"))
    node = model.graph.nodes[0]
    assert [t.is_empty() for t in node.inputs] == [False, True, False]
    assert node.outputs[1].is_empty()


def test_attributes_decode_to_python_values() -> None:
    node = helper.make_node(
        "Odd",
        ["x"],
        ["y"],
        domain="d",
        i=1,
        f=0.5,
        s="text",
        ints=[1, 2],
        floats=[0.5],
        strings=["a", "b"],
        t=numpy_helper.from_array(np.float32([1]), "tt"),
    )
    node.attribute.append(AttributeProto(name="raw", type=AttributeProto.STRING, s=b"\xff"))
    node.attribute.append(AttributeProto(name="old", i=3))  # early IR versions had no type
    tp = AttributeProto(name="tp", type=AttributeProto.TYPE_PROTO)
    node.attribute.append(tp)
    attrs = _load([node]).graph.nodes[0].attrs
    constant = attrs.pop("t")
    assert isinstance(constant, ir.Constant)
    assert constant.name == "tt"
    assert constant.values.tolist() == [1]
    assert attrs.pop("tp") == tp
    assert attrs == {
        "i": 1,
        "f": 0.5,
        "s": "text",
        "ints": [1, 2],
        "floats": [0.5],
        "strings": ["a", "b"],
        "raw": b"\xff",
        "old": 3,
    }


def test_captures_resolve_to_the_outer_object() -> None:
    inner = helper.make_graph([helper.make_node("Add", ["h", "w"], ["i"])], "then", [], _info("i"))
    outer = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "o", [], _info("o"))
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    model = _load(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("If", ["c"], ["y"], then_branch=outer)],
        inputs=("x", "c"),
        initializers=(w,),
    )
    relu, if_ = model.graph.nodes
    middle = if_.attrs["then_branch"]
    add = middle.nodes[0].attrs["then_branch"].nodes[0]
    assert add.inputs[0] is relu.outputs[0]
    assert add.inputs[1] in model.graph.initializers
    assert middle.nodes[0].inputs[0] is model.graph.inputs[1]
    assert add in relu.outputs[0].outputs
    assert [b.name for b in model.bodies()] == ["then", "o", "g"]


def test_a_branch_may_give_an_outer_tensor_as_its_output() -> None:
    inner = helper.make_graph(
        [], "then", [], [helper.make_tensor_value_info("h", F, [1], doc_string="inner")]
    )
    model = _load(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("If", ["c"], ["y"], then_branch=inner)],
        inputs=("x", "c"),
        value_info=_info("h"),
    )
    assert model.graph.nodes[1].attrs["then_branch"].outputs[0] is model.graph.nodes[0].outputs[0]
    assert model.to_proto().graph.node[1].attribute[0].g == inner


def test_branches_may_use_the_same_names() -> None:
    branches = {
        name: helper.make_graph([helper.make_node("Relu", ["x"], ["same"])], name, [], _info("same"))
        for name in ("then_branch", "else_branch")
    }
    model = _load([helper.make_node("If", ["c"], ["y"], **branches)], inputs=("x", "c"))
    a, b = (model.graph.nodes[0].attrs[name].outputs[0] for name in branches)
    assert a is not b


def test_a_branch_may_use_a_name_that_is_defined_outside_only_later() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["late"])], "then", [], _info("late"))
    model = _load(
        [helper.make_node("If", ["c"], ["h"], then_branch=inner), helper.make_node("Exp", ["h"], ["late"])],
        inputs=("x", "c"),
        outputs=("late",),
    )
    assert model.graph.nodes[0].attrs["then_branch"].outputs[0] is not model.graph.outputs[0]


@pytest.mark.parametrize("outer", ["x", "h", "w"])
def test_shadowing_is_refused(outer: str) -> None:
    inner = helper.make_graph([helper.make_node("Exp", ["x"], [outer])], "then", [], _info(outer))
    with pytest.raises(ModelError, match=f"'{outer}'.*defined more than once"):
        _load(
            [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("If", ["c"], ["y"], then_branch=inner)],
            inputs=("x", "c"),
            initializers=(numpy_helper.from_array(np.ones(2, np.float32), "w"),),
        )


@pytest.mark.parametrize(
    "case", ["output twice", "input as output", "initializer as output", "input twice", "initializer twice"]
)
def test_names_defined_twice_are_refused(case: str) -> None:
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    inputs: tuple[str, ...] = ("x",)
    initializers: tuple[onnx.TensorProto, ...] = (w,)
    if case == "output twice":
        nodes *= 2
    elif case == "input as output":
        nodes.append(helper.make_node("Relu", ["x"], ["x"]))
    elif case == "initializer as output":
        nodes.append(helper.make_node("Relu", ["x"], ["w"]))
    elif case == "input twice":
        inputs = ("x", "x")
    else:
        initializers = (w, w)
    with pytest.raises(ModelError, match="defined more than once"):
        _load(nodes, inputs=inputs, initializers=initializers)


def test_disorder_and_undefined_names_are_left_to_the_verifier() -> None:
    model = _load([helper.make_node("Exp", ["h"], ["y"]), helper.make_node("Add", ["x", "nowhere"], ["h"])])
    exp, add = model.graph.nodes
    assert exp.inputs[0] is add.outputs[0]
    assert add.inputs[1].name == "nowhere"
    assert not add.inputs[1].inputs


def test_overridable_initializers_are_inputs_not_constants() -> None:
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    model = _load([helper.make_node("Add", ["x", "w"], ["y"])], inputs=("x", "w"), initializers=(w,))
    graph = model.graph
    assert [t.name for t in graph.inputs] == ["x", "w"]
    assert not graph.initializers
    variable = graph.inputs[1]
    assert isinstance(variable, ir.Variable)
    assert graph.nodes[0].inputs[1] is variable
    assert graph.defaults[variable].values.tolist() == [1, 1]


def test_types_that_gs_cannot_read() -> None:
    infos = {}
    for name in ("seq", "opt", "optseq", "map", "opaque", "sparse", "nothing"):
        infos[name] = onnx.ValueInfoProto(name=name)
    infos["seq"].type.sequence_type.elem_type.tensor_type.elem_type = F
    infos["opt"].type.optional_type.elem_type.tensor_type.elem_type = TensorProto.INT64
    infos["optseq"].type.optional_type.elem_type.sequence_type.elem_type.tensor_type.elem_type = F
    infos["map"].type.map_type.key_type = TensorProto.INT64
    infos["map"].type.map_type.value_type.tensor_type.elem_type = F
    infos["opaque"].type.opaque_type.name = "t"
    infos["sparse"].type.sparse_tensor_type.elem_type = F
    infos["sparse"].type.sparse_tensor_type.shape.dim.add(dim_value=4)
    graph = helper.make_graph([], "g", list(infos.values()), [])
    model = Model.load(helper.make_model(graph))
    found = {t.name: (t.type, t.dtype, t.shape) for t in model.graph.inputs}
    assert found == {
        "seq": ("sequence_type", np.float32, None),
        "opt": ("optional_type", np.int64, None),
        "optseq": ("optional_type", np.float32, None),
        "map": ("map_type", None, None),
        "opaque": ("opaque_type", None, None),
        "sparse": ("sparse_tensor_type", np.float32, [4]),
        "nothing": ("tensor_type", None, None),
    }
    assert list(model.to_proto().graph.input) == list(infos.values())


def test_functions_have_their_own_scope_and_opsets() -> None:
    body = [helper.make_node("Mul", ["x", "x"], ["y"])]
    reference = helper.make_node("Constant", [], ["k"])
    attribute = reference.attribute.add(name="value_float", type=AttributeProto.FLOAT)
    attribute.ref_attr_name = "alpha"
    function = helper.make_function(
        "d", "f", ["x"], ["y"], [reference, *body], [helper.make_opsetid("", 18)], attributes=["alpha"]
    )
    graph = helper.make_graph([helper.make_node("f", ["x"], ["y"], domain="d")], "g", _info("x"), _info("y"))
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    model = Model.load(helper.make_model(graph, functions=[function], opset_imports=imports))
    loaded = model.graph.functions[0]
    assert loaded.opset_imports == {"": 18}
    assert model.graph.opset_imports == {"": 20, "d": 1}
    assert loaded.inputs[0] is not model.graph.inputs[0]
    assert loaded.inputs[0] is loaded.nodes[1].inputs[0]
    assert loaded.attrs == {"alpha": None}
    assert loaded.nodes[0].attrs["value_float"] == ir.AttributeRef("alpha", float)
    assert model.bodies() == [loaded, model.graph]


def test_functions_defined_twice_are_refused() -> None:
    function = helper.make_function("d", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [])
    graph = helper.make_graph([helper.make_node("f", ["x"], ["y"], domain="d")], "g", _info("x"), _info("y"))
    with pytest.raises(ModelError, match="'f' of 'd' is defined twice"):
        Model.load(helper.make_model(graph, functions=[function, function]))
    other = onnx.FunctionProto()
    other.CopyFrom(function)
    other.overload = "other"
    assert len(Model.load(helper.make_model(graph, functions=[function, other])).graph.functions) == 2


def test_node_fields_that_passes_may_read() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], doc_string="doc", overload="o")
    node.metadata_props.add(key="k", value="v")
    loaded = _load([node]).graph.nodes[0]
    assert (loaded.doc_string, loaded.overload, loaded.metadata) == ("doc", "o", {"k": "v"})


def test_import_leaves_the_garbage_collector_as_it_was() -> None:
    import gc

    assert gc.isenabled()
    gc.disable()
    try:
        _load([helper.make_node("Relu", ["x"], ["y"])])
        assert not gc.isenabled()
    finally:
        gc.enable()
