"""Model: what it loads from, what it refuses, copies."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.model import Model

F = TensorProto.FLOAT


@pytest.fixture
def proto() -> onnx.ModelProto:
    """y = Relu(x @ w), with w of 4 KiB, and an If that captures."""
    then = helper.make_graph(
        [helper.make_node("Add", ["h", "b"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", F, None)],
        [numpy_helper.from_array(np.ones(32, np.float32), "b")],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", F, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
            helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=otherwise),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", F, ["n", 32]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(32, 32), "w")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def path(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    file = tmp_path / "m.onnx"
    onnx.save(proto, file)
    return file


# -- what it loads from


def test_loads_from_paths_protos_gs_graphs_and_models(path: Path, proto: onnx.ModelProto) -> None:
    model = Model.load(path)
    assert model.path == path
    assert (model.ir_version, model.opset_imports) == (8, {"": 17})
    assert Model.load(str(path)).to_proto() == proto
    assert Model.load(proto).to_proto() == proto
    assert Model.load(proto).path is None
    assert Model.load(model) is model
    imported = Model.load(gs.import_onnx(proto))
    assert [n.op for n in imported.graph.nodes] == ["MatMul", "If"]
    assert type(imported.graph) is ir.Graph
    with pytest.raises(TypeError, match="int"):
        Model.load(3)  # type: ignore[arg-type]


def test_a_proto_is_copied(proto: onnx.ModelProto) -> None:
    model = Model.load(proto)
    proto.graph.initializer[0].raw_data = bytes(4096)
    proto.graph.node[0].name = "changed"
    assert model.graph.nodes[0].name == "matmul"
    assert next(iter(model.graph.initializers)).values[0, 1] == 1


def test_loading_does_not_load_weights(path: Path) -> None:
    model = Model.load(path)
    assert not any(c.is_loaded for body in model.bodies() for c in body.initializers)
    assert model.nbytes == pytest.approx(4096 + 128, abs=40)


def test_data_files_are_named(path: Path, proto: onnx.ModelProto, tmp_path: Path) -> None:
    assert Model.load(path).data_files == []
    assert Model.load(proto).data_files == []
    saved = Model.load(path).save(tmp_path / "e.onnx", external_data=True)
    assert Model.load(saved.model).data_files == list(saved.data)


def test_to_gs_gives_a_plain_graph_with_weights(path: Path) -> None:
    graph = Model.load(path).to_gs()
    assert type(graph) is gs.Graph
    assert graph.tensors()["w"].values[0, 1] == 1


def test_protos_with_and_without_weights(path: Path, proto: onnx.ModelProto) -> None:
    model = Model.load(path)
    assert model.to_proto(weights="inline") == proto
    branches = [a.name for a in proto.graph.node[1].attribute]
    at = branches.index("then_branch")
    for stripped in (model.to_proto(weights="none"), model.skeleton()):
        assert not stripped.graph.initializer[0].raw_data
        assert stripped.graph.node[1].attribute[at].g.initializer[0].raw_data
    inferred = onnx.shape_inference.infer_shapes(model.skeleton(), strict_mode=True)
    assert {v.name for v in inferred.graph.value_info} >= {"h"}


# -- copies


def test_a_copy_is_independent_and_shares_weights(path: Path, proto: onnx.ModelProto) -> None:
    model = Model.load(path)
    copy = model.copy()
    assert copy.to_proto() == proto
    w, w2 = next(iter(model.graph.initializers)), next(iter(copy.graph.initializers))
    assert w is not w2
    assert w2._values is w._values
    seen = {id(n) for body in model.bodies() for n in body.nodes}
    assert not any(id(n) in seen for body in copy.bodies() for n in body.nodes)
    then, then2 = (m.graph.nodes[1].attrs["then_branch"] for m in (model, copy))
    assert then2.nodes[0].inputs[0] is copy.graph.nodes[0].outputs[0]
    assert then.nodes[0].inputs[0] is model.graph.nodes[0].outputs[0]
    copy.graph.nodes[0].name = "changed"
    copy.graph.nodes[0].outputs[0].name = "changed_h"
    copy.opset_imports[""] = 18
    then2.nodes.clear()
    del copy.graph.initializers[w2]
    assert model.to_proto() == proto
    assert copy.to_proto().opset_import[0].version == 18
    assert then2.opset_imports is copy.opset_imports


def test_copies_of_functions_are_independent(proto: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(helper.make_function("d", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    model = Model.load(proto)
    copy = model.copy()
    assert copy.to_proto() == proto
    assert [b.name for b in copy.bodies()] == [b.name for b in model.bodies()]
    function = copy.graph.functions[0]
    function.opset_imports[""] = 18
    function.nodes[0].outputs[0].name = "changed"
    assert model.to_proto() == proto
    assert copy.to_proto().functions[0].opset_import[0].version == 18


def test_a_copy_keeps_what_passes_changed(path: Path) -> None:
    model = Model.load(path)
    node = model.graph.nodes[0]
    node.made_by, node.metadata = "p", {"k": "v"}
    made = ir.Constant("made", np.ones(3), made_by="p")
    model.graph.initializers[made] = None
    again = model.copy().copy()
    assert again.graph.nodes[0].made_by == "p"
    assert [c.made_by for c in again.graph.initializers] == ["", "p"]
    assert again.to_proto() == model.to_proto()


# -- what it refuses


def _refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Model.load(path)
    text = str(caught.value)
    assert str(path) in text
    return text


def test_missing_and_odd_files(tmp_path: Path) -> None:
    assert "no such file" in _refusal(tmp_path / "none.onnx")
    assert "not a file" in _refusal(tmp_path)
    (tmp_path / "empty.onnx").touch()
    assert "empty" in _refusal(tmp_path / "empty.onnx")
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    assert "no such file" in _refusal(tmp_path / "loop.onnx")


@pytest.mark.parametrize("kind", ["text", "zip", "pickle", "lfs", "random", "zeros", "ort", "weights"])
def test_files_that_are_no_models(tmp_path: Path, kind: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 100)
    data, hint = {
        "text": (b"hello world, this is not a model\n" * 10, "not an ONNX model"),
        "zip": (archive.getvalue(), "PyTorch checkpoint"),
        "pickle": (pickle.dumps([1, 2], protocol=2), "pickle"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        "random": (np.random.default_rng(0).bytes(5000), "not an ONNX model"),
        "zeros": (bytes(5000), "not an ONNX model"),
        "ort": (b"\x20\0\0\0ORTM" + bytes(100), "ORT-format"),
        "weights": (np.random.default_rng(0).standard_normal(5000).tobytes(), "not an ONNX model"),
    }[kind]
    file_path = tmp_path / "m.onnx"
    file_path.write_bytes(data)
    assert hint in _refusal(file_path)


def test_truncated_at_any_point(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.onnx"
    said = 0
    for end in (*range(1, 400, 7), *range(400, len(data), 509), len(data) - 1):
        cut.write_bytes(data[:end])
        said += "truncated" in _refusal(cut)
    assert said > 50


def test_flipped_bytes_never_crash(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    broken = tmp_path / "broken.onnx"
    refused = 0
    for at in (*range(60), *rng.integers(0, len(data), 200)):
        value = data[at]
        data[at] = int(rng.integers(256))
        broken.write_bytes(data)
        data[at] = value
        try:
            Model.load(broken).to_proto()
        except ModelError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("newer", ["ir", "opset", "ml opset"])
def test_models_from_the_future(proto: onnx.ModelProto, newer: str) -> None:
    if newer == "ir":
        proto.ir_version = 999
    elif newer == "opset":
        proto.opset_import[0].version = 999
    else:
        proto.opset_import.add(domain="ai.onnx.ml", version=999)
    with pytest.raises(ModelError, match=r"999.* newer than the .*onnx") as caught:
        Model.load(proto)
    assert "upgrade" in str(caught.value.fix)


def test_unknown_domains_may_have_any_version(proto: onnx.ModelProto) -> None:
    proto.opset_import.add(domain="com.example", version=999)
    assert Model.load(proto).opset_imports["com.example"] == 999


def test_a_message_that_is_no_model() -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        Model.load(onnx.ModelProto())
