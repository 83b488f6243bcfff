"""Session sources really run in onnxruntime, and refer to weights instead of copying them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.io.session_source import SessionSource
from graphopt.model import Model

ort = pytest.importorskip("onnxruntime")
F = TensorProto.FLOAT


def _run(source: SessionSource, level: str = "ORT_DISABLE_ALL", **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if source.folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(source.folder))
    session = ort.InferenceSession(source.proto, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _model(nodes: list[onnx.NodeProto], initializers: list[TensorProto], **kwargs: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n", 32])],
        [helper.make_tensor_value_info("y", F, None)],
        initializers,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], **kwargs)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)


def test_embedded_weights_refer_to_the_model_file(
    linear: onnx.ModelProto, tmp_path: Path, x: np.ndarray, weight: np.ndarray
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear, path)
    source = Model.load(path).session_source()
    assert (source.folder, source.inline_bytes) == (tmp_path, 0)
    assert len(source.proto) < 1000
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


def test_external_weights_refer_to_their_file(external: Path, x: np.ndarray, weight: np.ndarray) -> None:
    source = Model.load(external).session_source()
    assert (source.folder, source.inline_bytes) == (external.parent, 0)
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


def test_weights_in_several_folders_share_a_parent(external: Path, x: np.ndarray, weight: np.ndarray) -> None:
    folder = external.parent / "sub" / "deep"
    folder.mkdir(parents=True)
    (external.parent / "weights.bin").rename(folder / "w.bin")
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "sub/deep/w.bin"
    external.write_bytes(model.SerializeToString())
    source = Model.load(external).session_source()
    assert source.folder == external.parent
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


def test_few_weights_in_memory_go_into_the_message(
    linear: onnx.ModelProto, x: np.ndarray, weight: np.ndarray
) -> None:
    source = Model.load(linear).session_source()
    assert (source.folder, source.spill, source.inline_bytes) == (None, None, weight.nbytes)
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_many_weights_in_memory_go_to_a_temporary_file(
    linear: onnx.ModelProto,
    x: np.ndarray,
    weight: np.ndarray,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphopt.io.session_source.INLINE_LIMIT", 16)
    source = Model.load(linear).session_source()
    assert source.spill is not None
    assert source.inline_bytes == 0
    file = source.spill.path
    assert file.stat().st_size == weight.nbytes
    np.testing.assert_allclose(_run(source, level, x=x)[0], x @ weight + 1, rtol=1e-5)
    del source
    assert not file.exists()


def test_weights_that_a_pass_made_next_to_weights_in_a_file(
    linear: onnx.ModelProto, tmp_path: Path, x: np.ndarray, weight: np.ndarray
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear, path)
    model = Model.load(path)
    made = ir.Constant("made", weight * 2, made_by="p")
    model.graph.initializers[made] = None
    y = ir.Variable("z")
    model.graph.nodes.append(ir.Node("MatMul", "", {}, [model.graph.outputs[0], made], [y]))
    model.graph.outputs = [y]
    y.info = helper.make_tensor_value_info("z", F, None)
    source = model.session_source()
    assert source.folder == tmp_path
    assert source.inline_bytes == weight.nbytes
    np.testing.assert_allclose(_run(source, x=x)[0], (x @ weight + 1) @ (weight * 2), rtol=1e-4)


def _branches(weight: np.ndarray) -> onnx.ModelProto:
    graphs = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", F, None)],
            [numpy_helper.from_array(weight * k, f"{name}_w")],
        )
        for k, name in enumerate(("then_branch", "else_branch"), 1)
    }
    true = numpy_helper.from_array(np.array(True), "c")
    return _model([helper.make_node("If", ["c"], ["y"], **graphs)], [true])


def test_weights_of_nested_bodies_stay_in_the_file(tmp_path: Path, x: np.ndarray, weight: np.ndarray) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_branches(weight), path)
    source = Model.load(path).session_source()
    assert source.inline_bytes == 0
    assert len(source.proto) < 1000
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight, rtol=1e-5)


def test_weights_of_nested_bodies_in_memory_are_inlined(x: np.ndarray, weight: np.ndarray) -> None:
    source = Model.load(_branches(weight)).session_source()
    assert source.inline_bytes == 2 * weight.nbytes
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight, rtol=1e-5)


def test_weights_in_constant_nodes(tmp_path: Path, x: np.ndarray, weight: np.ndarray) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    path = tmp_path / "m.onnx"
    onnx.save(_model([constant, helper.make_node("MatMul", ["x", "w"], ["y"])], []), path)
    source = Model.load(path).session_source()
    assert source.inline_bytes == 0
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight, rtol=1e-5)


def test_weights_in_functions(tmp_path: Path, x: np.ndarray, weight: np.ndarray) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    body = [constant, helper.make_node("MatMul", ["a", "w"], ["b"])]
    function = helper.make_function("d", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = _model([helper.make_node("f", ["x"], ["y"], domain="d")], [], functions=[function])
    model.opset_import.add(domain="d", version=1)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    source = Model.load(path).session_source()
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight, rtol=1e-5)


def test_what_feeds_shapes_is_inline(tmp_path: Path, x: np.ndarray) -> None:
    repeats = numpy_helper.from_array(np.ones(200, np.int64), "r")
    nodes = [helper.make_node("Expand", ["x", "r"], ["e"]), helper.make_node("Identity", ["x"], ["y"])]
    path = tmp_path / "m.onnx"
    onnx.save(_model(nodes, [repeats]), path)
    source = Model.load(path).session_source()
    assert source.inline_bytes == 1600
    assert onnx.ModelProto.FromString(source.proto).graph.initializer[0] == repeats


def test_strings_and_exotic_types(tmp_path: Path, x: np.ndarray) -> None:
    text = TensorProto(name="s", data_type=TensorProto.STRING, dims=[600], string_data=[b"abc"] * 600)
    half = numpy_helper.from_array(np.arange(1024, dtype=np.float16).reshape(32, 32), "h")
    nodes = [
        helper.make_node("Cast", ["h"], ["w"], to=F),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Identity", ["s"], ["t"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(_model(nodes, [text, half]), path)
    source = Model.load(path).session_source()
    expected = x @ np.arange(1024, dtype=np.float32).reshape(32, 32)
    np.testing.assert_allclose(_run(source, x=x)[0], expected, rtol=1e-5)


def test_packed_weights_in_memory(x: np.ndarray) -> None:
    values = (np.arange(4096) % 16 - 8).astype(np.int8).reshape(32, 128)
    int4 = helper.make_tensor("q", TensorProto.INT4, [32, 128], values.reshape(-1).tolist())
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = _model(nodes, [int4, scale])
    model.ir_version = 10
    model.opset_import[0].version = 21
    source = Model.load(model).session_source()
    np.testing.assert_allclose(_run(source, x=x)[0], x @ (values * 0.5), rtol=1e-5)


@pytest.mark.parametrize("where", ["file", "memory"])
def test_overridable_initializers_stay_overridable(
    tmp_path: Path, x: np.ndarray, weight: np.ndarray, where: str
) -> None:
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(weight, "w")])
    model.graph.input.append(helper.make_tensor_value_info("w", F, [32, 32]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    source = Model.load(path if where == "file" else model).session_source()
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight, rtol=1e-5)
    np.testing.assert_allclose(_run(source, x=x, w=weight * 3)[0], x @ (weight * 3), rtol=1e-5)


def test_a_file_that_was_replaced_is_not_referred_to(
    linear: onnx.ModelProto, tmp_path: Path, x: np.ndarray, weight: np.ndarray
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear, path)
    model = Model.load(path)
    changed = model.copy()
    next(iter(changed.graph.initializers)).values = weight * 0
    changed.save(path)
    source = model.session_source()
    assert source.folder is None
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


def test_a_linked_model(linear: onnx.ModelProto, tmp_path: Path, x: np.ndarray, weight: np.ndarray) -> None:
    (tmp_path / "blobs").mkdir()
    onnx.save(linear, tmp_path / "blobs" / "hash")
    (tmp_path / "m.onnx").symlink_to("blobs/hash")
    source = Model.load(tmp_path / "m.onnx").session_source()
    assert source.folder == tmp_path / "blobs"
    np.testing.assert_allclose(_run(source, x=x)[0], x @ weight + 1, rtol=1e-5)


@pytest.mark.parametrize("where", ["file", "memory", "temporary file"])
def test_optimizers_that_rewrite_weights_find_them(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime folds the Mul into the weight of the Conv when it loads the model."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    scale = rng.standard_normal((16, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", F, [1, 8, 5, 5])],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(scale, "s")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    if where == "temporary file":
        monkeypatch.setattr("graphopt.io.session_source.INLINE_LIMIT", 16)
    source = Model.load(path if where == "file" else model).session_source()
    x = rng.standard_normal((1, 8, 5, 5)).astype(np.float32)
    results = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        if source.folder is not None:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(source.folder))
        session = ort.InferenceSession(source.proto, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": x})[0])
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)
