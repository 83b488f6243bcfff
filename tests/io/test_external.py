"""Which external data a model may have: one test per rule, and nothing may be read before the check."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model import Model


def _entry(model_path: Path, /, **changes: str | None) -> None:
    """Change (or remove) entries of the external data of `w` in the model at a path."""
    model = onnx.load(model_path, load_external_data=False)
    tensor = model.graph.initializer[0]
    entries = {e.key: e.value for e in tensor.external_data}
    entries.update({k: v for k, v in changes.items() if v is not None})
    del tensor.external_data[:]
    for key, value in entries.items():
        if not (key in changes and changes[key] is None):
            tensor.external_data.add(key=key, value=value)
    model_path.write_bytes(model.SerializeToString())


def _refused(path: Path, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        Model.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "'w'" in text
    return caught.value


def test_loads_lazily_and_right(external: Path, weight: np.ndarray) -> None:
    model = Model.load(external)
    constant = next(iter(model.graph.initializers))
    assert not constant.is_loaded
    assert constant.shape == (32, 32)
    assert constant.dtype == np.float32
    assert constant.nbytes == 4096
    np.testing.assert_array_equal(constant.values, weight)
    with pytest.raises(ValueError, match="read-only"):
        constant.values[0, 0] = 1
    assert model.had_external_data


def test_missing_file_names_it_and_says_what_to_do(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    error = _refused(external, "'weights.bin', which does not exist")
    assert error.fix is not None
    assert "beside the model" in error.fix


@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "sub/../weights.bin", "..\\secret.bin"]
)
def test_parent_folders_are_refused(external: Path, location: str) -> None:
    (external.parent.parent / "secret.bin").write_bytes(bytes(5000))
    (external.parent / "sub").mkdir()
    _entry(external, location=location)
    _refused(external, "outside the model's folder")


@pytest.mark.parametrize("location", ["/etc/passwd", "C:\\secret.bin", "\\\\host\\share\\x", "C:secret"])
def test_absolute_paths_are_refused(external: Path, location: str) -> None:
    _entry(external, location=location)
    _refused(external, "absolute path")


def test_absolute_path_is_allowed_when_trusted(external: Path, weight: np.ndarray) -> None:
    elsewhere = external.parent.parent / "elsewhere.bin"
    (external.parent / "weights.bin").rename(elsewhere)
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = str(elsewhere)
    external.write_bytes(model.SerializeToString())
    _refused(external, "absolute path")
    trusted = Model.load(external, trust_external_paths=True)
    np.testing.assert_array_equal(next(iter(trusted.graph.initializers)).values, weight)


@pytest.mark.parametrize("target", ["inside", "outside"])
def test_links_are_refused(external: Path, target: str, weight: np.ndarray) -> None:
    data = external.parent / "weights.bin"
    real = external.parent / "real.bin" if target == "inside" else external.parent.parent / "real.bin"
    data.rename(real)
    data.symlink_to(real)
    _refused(external, "is a link" if target == "inside" else "outside the model's folder")
    trusted = Model.load(external, trust_external_paths=True)
    np.testing.assert_array_equal(next(iter(trusted.graph.initializers)).values, weight)


def test_folders_that_are_links_out_are_refused(external: Path) -> None:
    outside = external.parent.parent / "outside"
    outside.mkdir()
    (external.parent / "weights.bin").rename(outside / "weights.bin")
    (external.parent / "sub").symlink_to(outside)
    _entry(external, location="sub/weights.bin")
    _refused(external, "outside the model's folder")


def test_hard_links_are_refused(external: Path) -> None:
    os.link(external.parent / "weights.bin", external.parent / "other.bin")
    _refused(external, "2 hard links")
    assert Model.load(external, trust_external_paths=True).had_external_data


def test_only_regular_files(external: Path) -> None:
    data = external.parent / "weights.bin"
    data.unlink()
    data.mkdir()
    _refused(external, "not a regular file")
    data.rmdir()
    os.mkfifo(data)
    _refused(external, "not a regular file")


@pytest.mark.parametrize("location", ["", None])
def test_location_is_required(external: Path, location: str | None) -> None:
    _entry(external, location=location)
    _refused(external, "without a location")


def test_unknown_keys_are_refused(external: Path) -> None:
    _entry(external, path="/etc/passwd")
    _refused(external, "unknown key 'path'")


def test_known_keys_are_accepted(external: Path, weight: np.ndarray) -> None:
    _entry(external, checksum="abc", basepath="x")
    np.testing.assert_array_equal(next(iter(Model.load(external).graph.initializers)).values, weight)


def test_repeated_keys_are_refused(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="other")
    external.write_bytes(model.SerializeToString())
    _refused(external, "'location' twice")


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "1e3", " 5", "0x10", "٣", "9" * 30, ""])
def test_numbers_must_be_byte_counts(external: Path, key: str, value: str) -> None:
    _entry(external, **{key: value})
    _refused(external, "no byte count")


def test_data_beyond_the_end_is_refused(external: Path) -> None:
    _entry(external, offset="200")
    _refused(external, "needs bytes 200 to 4296 of 'weights.bin', which has only 4224")
    _entry(external, offset=str(1 << 62))
    _refused(external, "which has only 4224")


def test_cut_off_file_is_refused(external: Path) -> None:
    os.truncate(external.parent / "weights.bin", 1000)
    error = _refused(external, "has only 1000")
    assert error.fix is not None
    assert "cut off" in error.fix


def test_length_must_match_the_shape(external: Path) -> None:
    _entry(external, length="4092")
    _refused(external, "4092 bytes of external data, but its shape")


def test_length_and_offset_may_be_left_out(external: Path, weight: np.ndarray) -> None:
    _entry(external, length=None, offset=None)
    np.testing.assert_array_equal(next(iter(Model.load(external).graph.initializers)).values, weight)


@pytest.mark.parametrize("dims", [[-1, 32], [1 << 62, 1 << 62]])
def test_hostile_dims_are_refused(external: Path, dims: list[int]) -> None:
    model = onnx.load(external, load_external_data=False)
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    external.write_bytes(model.SerializeToString())
    _refused(external, "dimension|bytes of external data")


def test_strings_cannot_be_external(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].data_type = TensorProto.STRING
    external.write_bytes(model.SerializeToString())
    _refused(external, "cannot be external data")


def test_external_and_inline_data_at_once_is_refused(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].raw_data = bytes(4096)
    external.write_bytes(model.SerializeToString())
    _refused(external, "both external data and raw_data")


def _shared(path: Path, offset: int) -> None:
    """Add a tensor v of 32 x 32 to the model, at `offset` in the same file."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(model.graph.initializer[0])
    tensor.name = "v"
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = str(offset)
    path.write_bytes(model.SerializeToString())
    with (path.parent / "weights.bin").open("ab") as file:
        file.write(bytes(8192))


def test_partly_overlapping_tensors_are_refused(external: Path) -> None:
    _shared(external, 64)
    error = _refused(external, "overlap in part")
    assert "'v'" in str(error)


def test_nested_overlaps_are_found_behind_other_tensors(external: Path) -> None:
    """`b` (128 bytes) placed inside `w`, while another tensor equals `w` exactly."""
    _shared(external, 0)
    model = onnx.load(external, load_external_data=False)
    for entry in model.graph.initializer[1].external_data:
        if entry.key == "offset":
            entry.value = "1024"
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="overlap in part"):
        Model.load(external)


def test_exactly_equal_regions_are_sharing(external: Path, weight: np.ndarray) -> None:
    _shared(external, 0)
    constants = {c.name: c for c in Model.load(external).graph.initializers}
    np.testing.assert_array_equal(constants["v"].values, weight)


@pytest.fixture
def cache(external: Path) -> Path:
    """A model cache: blobs/<hash> files, and snapshots/<revision>/ with links to them."""
    root = external.parent.parent
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    external.rename(blobs / "hash1")
    (external.parent / "weights.bin").rename(blobs / "hash2")
    (snapshot / "m.onnx").symlink_to("../../blobs/hash1")
    (snapshot / "weights.bin").symlink_to("../../blobs/hash2")
    return snapshot / "m.onnx"


def test_linked_model_may_have_linked_data_beside_its_target(cache: Path, weight: np.ndarray) -> None:
    np.testing.assert_array_equal(next(iter(Model.load(cache).graph.initializers)).values, weight)


def test_linked_model_may_have_data_only_beside_its_target(external: Path, weight: np.ndarray) -> None:
    link = external.parent.parent / "link.onnx"
    link.symlink_to(external)
    np.testing.assert_array_equal(next(iter(Model.load(link).graph.initializers)).values, weight)


def test_linked_model_may_not_have_data_anywhere_else(cache: Path) -> None:
    outside = cache.parent.parent.parent / "outside.bin"
    outside.write_bytes(bytes(5000))
    (cache.parent / "weights.bin").unlink()
    (cache.parent / "weights.bin").symlink_to(outside)
    _refused(cache, "outside the model's folder")


def test_constant_attributes_obey_the_same_rules(tmp_path: Path, weight: np.ndarray) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[32, 32], data_location=1)
    tensor.external_data.add(key="location", value="data.bin")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 32])
    path = tmp_path / "m.onnx"
    model = helper.make_model(helper.make_graph([node], "g", [], [out]))
    path.write_bytes(model.SerializeToString())
    _refused(path, "does not exist")
    (tmp_path / "data.bin").write_bytes(weight.tobytes())
    loaded = Model.load(path)
    np.testing.assert_array_equal(loaded.graph.nodes[0].attrs["value"].values, weight)
    written = loaded.to_proto().graph.node[0].attribute[0].t
    assert written == numpy_helper.from_array(weight, "w")


@pytest.mark.parametrize("holder", ["sparse", "tensors", "function", "training"])
def test_tensors_in_odd_places_obey_the_same_rules(
    tmp_path: Path, weight: np.ndarray, holder: str, linear: onnx.ModelProto
) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1024], data_location=1)
    tensor.external_data.add(key="location", value="data.bin")
    indices = numpy_helper.from_array(np.arange(1024, dtype=np.int64), "i")
    find: Callable[[onnx.ModelProto], TensorProto]
    if holder == "sparse":
        linear.graph.initializer[0].name = "dense"
        linear.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [2048]))

        def find(m: onnx.ModelProto) -> TensorProto:
            return m.graph.sparse_initializer[0].values
    elif holder == "tensors":
        attribute = linear.graph.node[0].attribute.add(name="ts", type=onnx.AttributeProto.TENSORS)
        attribute.tensors.append(tensor)

        def find(m: onnx.ModelProto) -> TensorProto:
            return m.graph.node[0].attribute[0].tensors[0]
    elif holder == "function":
        function = linear.functions.add(name="f", domain="d")
        function.opset_import.add(domain="", version=17)
        default = function.attribute_proto.add(name="t", type=onnx.AttributeProto.TENSOR)
        default.t.CopyFrom(tensor)

        def find(m: onnx.ModelProto) -> TensorProto:
            return m.functions[0].attribute_proto[0].t
    else:
        linear.training_info.add().algorithm.initializer.append(tensor)

        def find(m: onnx.ModelProto) -> TensorProto:
            return m.training_info[0].algorithm.initializer[0]

    path = tmp_path / "m.onnx"
    path.write_bytes(linear.SerializeToString())
    _refused(path, "does not exist")
    (tmp_path / "data.bin").write_bytes(weight.tobytes())
    loaded = Model.load(path)
    for written in (loaded.to_proto(), onnx.load(loaded.save(tmp_path / "o.onnx").model)):
        assert find(written) == numpy_helper.from_array(weight.reshape(-1), "w")


def test_a_proto_with_external_data_needs_its_path(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    with pytest.raises(ModelError, match="not loaded from a file") as caught:
        Model.load(proto)
    assert caught.value.fix is not None
    assert "path" in caught.value.fix
