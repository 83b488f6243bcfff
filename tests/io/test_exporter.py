"""Load -> save loses nothing; what passes change is written; what they did not is not touched."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from graphopt import ir
from graphopt.model import Model

Check = Callable[[onnx.ModelProto, onnx.ModelProto], None]

_DATA = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
_FILES = sorted(glob.glob(f"{_DATA}/**/*.onnx", recursive=True))


def _meta(message: object, **entries: str) -> None:
    for key, value in entries.items():
        message.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


def kitchen_sink() -> onnx.ModelProto:
    """One model with everything that onnx-graphsurgeon loses, or cannot read."""
    f32 = TensorProto.FLOAT
    w = numpy_helper.from_array(np.arange(512, dtype=np.float32), "w")
    w.doc_string = "weights"
    _meta(w, trained="yes")
    typed = TensorProto(name="typed", data_type=f32, dims=[2, 300], float_data=[0.5] * 600)
    int4 = helper.make_tensor("int4", TensorProto.INT4, [3], [1, -8, 7])
    fp8 = helper.make_tensor("fp8", TensorProto.FLOAT8E4M3FN, [2], [1.0, 2.0])
    bf16 = helper.make_tensor("bf16", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    text = TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"\xff\xfe", b"a"])
    unused = numpy_helper.from_array(np.zeros(3, np.int64), "unused")
    default = numpy_helper.from_array(np.ones(512, np.float32), "overridable")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "sparse"),
        numpy_helper.from_array(np.int64([3, 7]), "sparse_indices"),
        [10],
    )

    x = helper.make_tensor_value_info("x", f32, ["batch", 512], doc_string="the input")
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    x.type.denotation = "TENSOR"
    _meta(x, unit="metres")
    sequence = helper.make_tensor_sequence_value_info("seq", f32, [None])
    optional = ValueInfoProto(name="opt")
    optional.type.optional_type.elem_type.tensor_type.elem_type = f32
    mapping = ValueInfoProto(name="map")
    mapping.type.map_type.key_type = TensorProto.INT64
    mapping.type.map_type.value_type.tensor_type.elem_type = f32
    opaque = ValueInfoProto(name="opaque")
    opaque.type.opaque_type.domain = "d"
    opaque.type.opaque_type.name = "t"

    mul = helper.make_node("Mul", ["x", "w"], ["xw"], name="mul", doc_string="scale", domain="ai.onnx")
    _meta(mul, layer="1")
    device = mul.device_configurations.add(configuration_id="gpu", pipeline_stage=1)
    device.sharding_spec.add(tensor_name="xw", device=[0, 1])
    custom = helper.make_node("Odd", ["xw", "", "w"], ["odd", "", "odd2"], domain="my.domain", overload="v2")
    bytes_ = AttributeProto(name="bytes", type=AttributeProto.STRING, s=b"\xff\x00", doc_string="raw")
    tensors = AttributeProto(name="tensors", type=AttributeProto.TENSORS)
    tensors.tensors.append(numpy_helper.from_array(np.arange(400, dtype=np.float64), "t0"))
    type_ = AttributeProto(name="type", type=AttributeProto.TYPE_PROTO)
    type_.tp.tensor_type.elem_type = f32
    sparse_attribute = AttributeProto(name="sparse", type=AttributeProto.SPARSE_TENSOR)
    sparse_attribute.sparse_tensor.CopyFrom(sparse)
    custom.attribute.extend([bytes_, tensors, type_, sparse_attribute])
    custom.attribute.extend(
        [
            helper.make_attribute("f", 0.1),
            helper.make_attribute("fs", [0.1, 0.2]),
            helper.make_attribute("empty", [], attr_type=AttributeProto.FLOATS),
            helper.make_attribute("ss", [b"a", b"\xff"]),
            helper.make_attribute("graphs", [helper.make_graph([], "g0", [], [])]),
        ]
    )
    big = numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(2, 300))
    constant = helper.make_node("Constant", [], ["big"], value=big)

    then = helper.make_graph(
        [helper.make_node("Add", ["x", "inner_w"], ["then_y"], doc_string="in then")],
        "then",
        [],
        [helper.make_tensor_value_info("then_y", f32, None, doc_string="out of then")],
        [numpy_helper.from_array(np.arange(512, dtype=np.float32) * 2, "inner_w")],
        doc_string="then branch",
        value_info=[helper.make_tensor_value_info("stale", f32, [1])],
    )
    _meta(then, branch="then")
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["xw"], ["else_y"])],
        "else",
        [],
        [helper.make_empty_tensor_value_info("else_y")],
    )
    if_ = helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=otherwise)
    call = helper.make_node("Fn", ["y"], ["z"], domain="local", alpha=0.5)

    graph = helper.make_graph(
        [mul, custom, constant, if_, call],
        "main",
        [
            x,
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            sequence,
            optional,
            mapping,
            opaque,
            helper.make_tensor_value_info("overridable", f32, [512]),
        ],
        [
            helper.make_tensor_value_info("z", f32, ["batch", 512]),
            helper.make_tensor_value_info("x", f32, ["batch", 512], doc_string="passed through"),
            helper.make_tensor_value_info("w", f32, [512]),
        ],
        [w, typed, int4, fp8, bf16, text, unused, default],
        doc_string="graph doc",
        value_info=[
            helper.make_tensor_value_info("xw", f32, ["batch", 512], doc_string="info"),
            helper.make_tensor_value_info("typed", f32, [2, 300]),
            helper.make_tensor_value_info("nobody", f32, [1]),
        ],
        sparse_initializer=[sparse],
    )
    _meta(graph.value_info[0], k="v")
    _meta(graph, graph="meta")
    annotation = graph.quantization_annotation.add(tensor_name="xw")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    function = helper.make_function(
        "local",
        "Fn",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"]),
            helper.make_node("Mul", ["a", "k"], ["b"], doc_string="fn"),
        ],
        [helper.make_opsetid("", 20)],
        attributes=["alpha"],
        attribute_protos=[helper.make_attribute("beta", 2.0)],
        doc_string="function doc",
        value_info=[helper.make_tensor_value_info("b", f32, [3])],
    )
    reference = function.node[0].attribute.add(name="value_float", type=AttributeProto.FLOAT)
    reference.ref_attr_name = "alpha"
    _meta(function, fn="meta")
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[
            helper.make_opsetid("", 21),
            helper.make_opsetid("my.domain", 3),
            helper.make_opsetid("local", 1),
        ],
        ir_version=11,
        producer_name="p",
        producer_version="1",
        doc_string="model doc",
        domain="org.example",
        model_version=7,
    )
    _meta(model, author="me", license="MIT")
    training = model.training_info.add()
    training.initialization.name = "init"
    training.initialization.node.append(helper.make_node("Constant", [], ["i"], value=big))
    training.update_binding.add(key="w", value="i")
    model.configuration.add(name="gpu", num_devices=2, device=["a", "b"])
    return model


def test_kitchen_sink_round_trips(assert_same: Check) -> None:
    model = kitchen_sink()
    loaded = Model.load(model)
    assert_same(model, loaded.to_proto())
    assert_same(model, loaded.copy().to_proto())


def test_kitchen_sink_survives_reading_every_value(assert_same: Check) -> None:
    """Loading values must not change what is written (passes read constants all the time)."""
    model = kitchen_sink()
    # Typed fields come back as raw_data, which is equal in meaning only.
    kept = [t for t in model.graph.initializer if t.name not in ("typed", "int4", "fp8", "bf16")]
    kept = [TensorProto.FromString(t.SerializeToString()) for t in kept]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    del model.graph.value_info[1]
    loaded = Model.load(model)
    for body in loaded.bodies():
        for constant in (*body.initializers, *body.defaults.values()):
            if not constant.name.startswith("sparse"):
                assert constant.values is not None
        for node in body.nodes:
            for value in node.attrs.values():
                if isinstance(value, ir.Constant):
                    assert value.values is not None
    assert_same(model, loaded.to_proto())


@pytest.mark.parametrize("file", _FILES, ids=[f[len(_DATA) + 1 :] for f in _FILES])
def test_onnx_own_models_round_trip(file: str, assert_same: Check) -> None:
    loaded = Model.load(file)
    original = onnx.load(file)
    assert_same(original, loaded.to_proto())
    assert_same(original, loaded.copy().to_proto())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_node_conformance_models_round_trip(assert_same: Check) -> None:
    cases = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    assert len(cases) > 1000
    for case in cases:
        loaded = Model.load(case.model)
        assert_same(case.model, loaded.to_proto())


def test_origin_messages_are_never_changed(assert_same: Check) -> None:
    model = kitchen_sink()
    loaded = Model.load(model)
    first = loaded.copy()
    for node in first.graph.nodes:
        node.name += "_renamed"
        node.attrs_changed = True
    first.to_proto()
    first.skeleton()
    assert_same(model, loaded.to_proto())


def test_pass_made_nodes_are_written_with_their_provenance(linear: onnx.ModelProto) -> None:
    for ir_version in (8, 10):
        linear.ir_version = ir_version
        model = Model.load(linear)
        graph = model.graph
        y = ir.Variable("relu_y")
        node = ir.Node("Relu", "relu", {}, [graph.outputs[0]], [y])
        node.made_by = "some-pass"
        graph.nodes.append(node)
        graph.outputs = [y]
        written = model.to_proto().graph
        assert written.node[2].op_type == "Relu"
        assert list(written.node[2].input) == ["y"]
        if ir_version < 10:
            assert written.node[2].doc_string == "graphopt: some-pass"
        else:
            assert written.node[2].metadata_props[0].key == "graphopt.pass"
            assert written.node[2].metadata_props[0].value == "some-pass"
        assert written.output[0].name == "relu_y"
        assert [info.name for info in written.value_info] == ["y"]


def test_changed_attributes_are_encoded_and_the_rest_of_the_node_stays() -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], name="n", doc_string="d", alpha=0.25)
    node.attribute[0].doc_string = "slope"
    _meta(node, k="v")
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    model = Model.load(helper.make_model(helper.make_graph([node], "g", info[:1], info[1:])))
    changed = model.graph.nodes[0]
    changed.attrs["alpha"] = 1  # an int where the operator wants a float
    changed.attrs_changed = True
    written = model.to_proto().graph.node[0]
    assert (written.name, written.doc_string, written.metadata_props[0].value) == ("n", "d", "v")
    assert written.attribute[0].type == AttributeProto.FLOAT
    assert written.attribute[0].f == 1.0
    assert written.attribute[0].doc_string == "slope"


def test_new_nodes_get_attribute_types_from_the_schema() -> None:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    model = Model.load(
        helper.make_model(
            helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
        )
    )
    graph = model.graph
    z = ir.Variable("z")
    attrs = {
        "alpha": 1,
        "empty": [],
        "perm": np.int64([1, 0]).tolist(),
        "value": np.float32([1, 2]),
        "none": b"\xff",
    }
    graph.nodes.append(ir.Node("LeakyRelu", "", attrs, [graph.outputs[0]], [z]))
    written = {a.name: a for a in model.to_proto().graph.node[1].attribute}
    assert written["alpha"].type == AttributeProto.FLOAT
    assert written["empty"].type == AttributeProto.INTS
    assert list(written["perm"].ints) == [1, 0]
    assert numpy_helper.to_array(written["value"].t).tolist() == [1, 2]
    assert written["none"].s == b"\xff"


def test_renamed_tensors_are_renamed_everywhere(linear: onnx.ModelProto) -> None:
    linear.graph.value_info.append(helper.make_tensor_value_info("xw", TensorProto.FLOAT, ["n", 32]))
    model = Model.load(linear)
    tensor = model.graph.nodes[0].outputs[0]
    tensor.name = "fresh"
    constant = next(iter(model.graph.initializers))
    constant.name = "renamed_w"
    model.graph.nodes[1].name = "renamed_add"
    written = model.to_proto().graph
    assert list(written.node[0].output) == ["fresh"]
    assert list(written.node[1].input) == ["fresh", "b"]
    assert [node.name for node in written.node] == ["matmul", "renamed_add"]
    assert written.value_info[0].name == "fresh"
    assert [t.name for t in written.initializer] == ["renamed_w", "b"]
    assert list(written.node[0].input) == ["x", "renamed_w"]


def test_an_output_keeps_its_declaration_when_another_tensor_takes_its_name(
    linear: onnx.ModelProto,
) -> None:
    """A bypass lets an inner tensor become the output; the interface must not change with it."""
    linear.graph.value_info.append(helper.make_tensor_value_info("xw", TensorProto.FLOAT, [5, 32]))
    model = Model.load(linear)
    graph = model.graph
    inner = graph.nodes[0].outputs[0]
    del graph.nodes[1]
    inner.name = "y"
    graph.outputs = [inner]
    written = model.to_proto().graph
    assert written.output[0] == linear.graph.output[0]
    assert not written.value_info


def test_a_pass_may_declare_a_new_interface(linear: onnx.ModelProto) -> None:
    model = Model.load(linear)
    graph = model.graph
    graph.doc_string = "frozen"
    for tensor in (graph.inputs[0], graph.outputs[0]):
        tensor.info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [4, 32])
    written = model.to_proto().graph
    assert (written.input[0], written.output[0]) == (graph.inputs[0].info, graph.outputs[0].info)
    assert written.doc_string == "frozen"
    assert linear.graph.input[0] != written.input[0]


def test_constants_of_functions_are_written_as_nodes() -> None:
    model = Model.load(kitchen_sink())
    function = model.graph.functions[0]
    constant = ir.Constant("made", np.float32([1, 2]), made_by="p")
    function.initializers[constant] = None
    node = function.nodes[1]
    node.inputs[1] = constant
    written = model.to_proto().functions[0]
    assert written.node[0].op_type == "Constant"
    assert list(written.node[0].output) == ["made"]
    assert numpy_helper.to_array(written.node[0].attribute[0].t).tolist() == [1, 2]
    assert list(written.node[2].input) == ["a", "made"]


def test_annotations_of_vanished_tensors_are_dropped() -> None:
    model = Model.load(kitchen_sink())
    graph = model.graph
    constant = next(c for c in graph.initializers if c.name == "unused")
    del graph.initializers[constant]
    assert not model.to_proto().graph.quantization_annotation


def test_initializers_stay_listed_as_inputs_before_ir_4(linear: onnx.ModelProto, assert_same: Check) -> None:
    linear.ir_version = 3
    listed = [
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 32]),
        linear.graph.input[0],
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [32]),
    ]
    listed = [ValueInfoProto.FromString(v.SerializeToString()) for v in listed]
    linear.graph.ClearField("input")
    linear.graph.input.extend(listed)
    model = Model.load(linear)
    assert [t.name for t in model.graph.inputs] == ["x"]
    assert [c.name for c in model.graph.initializers] == ["w", "b"]
    assert not model.graph.defaults
    assert_same(linear, model.to_proto())
    model.graph.initializers[ir.Constant("new", np.zeros(2, np.float32))] = None
    assert [v.name for v in model.to_proto().graph.input] == ["w", "x", "b", "new"]


def test_opset_imports_follow_the_dict(linear: onnx.ModelProto) -> None:
    linear.opset_import[0].domain = "ai.onnx"
    linear.opset_import.add(domain="gone", version=1)
    model = Model.load(linear)
    assert model.opset_imports == {"": 17, "gone": 1}
    del model.opset_imports["gone"]
    model.opset_imports[""] = 18
    model.opset_imports["new"] = 2
    imports = [(o.domain, o.version) for o in model.to_proto().opset_import]
    assert imports == [("ai.onnx", 18), ("new", 2)]


def test_stripped_models_keep_types_and_what_feeds_shapes() -> None:
    shape = numpy_helper.from_array(np.ones(200, np.int64), "shape")  # 1,600 bytes
    w = numpy_helper.from_array(np.ones(400, np.float32), "w")
    typed = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[600], float_data=[0.5] * 600)
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    nodes = [helper.make_node("Reshape", ["w", "shape"], ["r"]), helper.make_node("Sum", ["x", "r"], ["y"])]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [shape, w, typed])
    written = {t.name: t for t in Model.load(helper.make_model(graph)).skeleton().graph.initializer}
    assert written["shape"] == shape
    assert (list(written["w"].dims), written["w"].data_type) == ([400], TensorProto.FLOAT)
    assert written["w"].raw_data == b""
    assert not written["t"].float_data
    assert not written["w"].external_data
