"""Lazy values of every element type, from files and from messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.io import weights
from graphopt.io.dtypes import NP_DTYPES, onnx_dtype, stored_nbytes
from graphopt.io.sources import FileSource, Sources
from graphopt.model import Model

_NUMERIC = [t for t in NP_DTYPES if t != TensorProto.STRING]
_NAMES = {v: k for k, v in TensorProto.DataType.items()}


def _array(data_type: int, n: int) -> np.ndarray:
    dtype = NP_DTYPES[data_type]
    return (np.arange(n) % 2).astype(dtype)


def _constants(tmp_path: Path, *tensors: TensorProto) -> dict[str, ir.Constant]:
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], list(tensors))), path)
    return {c.name: c for c in Model.load(path).graph.initializers}


@pytest.mark.parametrize("n", [3, 20_001])
@pytest.mark.parametrize("data_type", _NUMERIC, ids=lambda t: _NAMES[t])
def test_every_element_type(tmp_path: Path, data_type: int, n: int) -> None:
    array = _array(data_type, n)
    tensor = numpy_helper.from_array(array, "t")
    assert tensor.data_type == data_type
    constant = _constants(tmp_path, tensor)["t"]
    assert not constant.is_loaded
    assert constant.dtype == array.dtype
    assert constant.shape == array.shape
    assert constant.nbytes == array.nbytes
    assert weights.stored_size(constant._values) == pytest.approx(len(tensor.raw_data), abs=20)
    loaded = constant.values
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded.astype(np.complex128), array.astype(np.complex128))
    assert not loaded.flags.writeable
    assert constant.nbytes == array.nbytes
    # And back again: what a pass would write.
    assert onnx_dtype(array.dtype) == data_type
    assert stored_nbytes(data_type, array.shape) == len(tensor.raw_data)
    assert bytes(weights.to_raw(loaded)[1]) == tensor.raw_data


@pytest.mark.parametrize("data_type", _NUMERIC, ids=lambda t: _NAMES[t])
def test_typed_fields(tmp_path: Path, data_type: int) -> None:
    array = _array(data_type, 7)
    values = array.tolist() if array.dtype.kind in "fiubc" else [float(x) for x in array]
    tensor = helper.make_tensor("t", data_type, [7], values)
    loaded = _constants(tmp_path, tensor)["t"].values
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded.astype(np.complex128), array.astype(np.complex128))


def test_strings_that_are_not_utf8(tmp_path: Path) -> None:
    tensor = TensorProto(
        name="t", data_type=TensorProto.STRING, dims=[3], string_data=[b"\xff", b"", "é".encode()]
    )
    values = _constants(tmp_path, tensor)["t"].values
    assert values.tolist() == [b"\xff", "", "é"]
    assert weights.string_tensor(values).string_data == tensor.string_data


@pytest.mark.parametrize("layout", ["linear", "coordinates"])
def test_sparse_tensors_load_dense(layout: str, tmp_path: Path) -> None:
    indices = np.int64([1, 5]) if layout == "linear" else np.int64([[0, 1], [1, 2]])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "s"), numpy_helper.from_array(indices, "i"), [2, 3]
    )
    model = helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))
    constant = next(iter(Model.load(model).graph.initializers))
    assert (constant.shape, constant.dtype, constant.nbytes) == ((2, 3), np.float32, 24)
    assert constant.values.tolist() == [[0, 1, 0], [0, 0, 2]]


def test_sparse_indices_out_of_range_are_an_error() -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "s"),
        numpy_helper.from_array(np.int64([1, 6]), "i"),
        [2, 3],
    )
    model = helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))
    constant = next(iter(Model.load(model).graph.initializers))
    with pytest.raises(ModelError, match="'s' has indices"):
        constant.values  # noqa: B018


@pytest.mark.parametrize("n", [3, 3000])
def test_data_that_does_not_fit_the_shape_is_an_error(tmp_path: Path, n: int) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[n + 1], raw_data=bytes(4 * n))
    with pytest.raises(ModelError, match=f"tensor 't' has {4 * n} bytes of data, but .* need {4 * n + 4}"):
        _constants(tmp_path, tensor)


def test_typed_data_that_does_not_fit_the_shape_is_an_error_when_read(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], float_data=[1, 2, 3])
    constant = _constants(tmp_path, tensor)["t"]
    with pytest.raises(ModelError, match="tensor 't' holds data that does not fit"):
        constant.values  # noqa: B018


def test_views_of_other_layout_than_in_a_file_are_written_right(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.arange(4096, dtype=np.uint8) % 16, "t")
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [tensor])), path)
    model = Model.load(path)
    mapped = next(iter(model.graph.initializers)).values
    packed = mapped.view(NP_DTYPES[TensorProto.UINT4])
    swapped = mapped.view(">u2")
    for name, array in (("packed", packed), ("swapped", swapped)):
        model.graph.initializers[ir.Constant(name, array)] = None
    written = onnx.load(model.save(tmp_path / "o.onnx").model).graph.initializer
    assert len(written[1].raw_data) == 2048
    np.testing.assert_array_equal(numpy_helper.to_array(written[1]), packed)
    np.testing.assert_array_equal(numpy_helper.to_array(written[2]), swapped)


def test_unknown_element_types_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown element type 99"):
        _constants(tmp_path, TensorProto(name="t", data_type=99, dims=[1], raw_data=b"1"))


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    constants = _constants(
        tmp_path,
        numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
        numpy_helper.from_array(np.float32(3), "scalar"),
    )
    assert constants["empty"].values.shape == (0, 3)
    assert constants["scalar"].values.shape == ()
    assert constants["scalar"].values == 3


def test_gs_can_export_lazy_constants(linear: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear, path)
    exported = gs.export_onnx(Model.load(path).graph)
    assert {t.name: t.raw_data for t in exported.graph.initializer} == {
        t.name: t.raw_data for t in linear.graph.initializer
    }


def test_more_files_than_may_be_mapped_are_read_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.io.sources._MAX_MAPPED", 2)
    sources = Sources()
    views = []
    for i in range(4):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 100)
        views.append(sources.file(tmp_path / str(i)).view(10, 5))
    assert [bytes(v) for v in views] == [bytes([i]) * 5 for i in range(4)]
    assert sources.mapped() == 2
    assert all(v.readonly for v in views)


def test_a_file_replaced_before_it_was_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    source = FileSource(file)
    other = tmp_path / "g"
    other.write_bytes(b"new")
    other.rename(file)
    assert not source.unchanged()
    with pytest.raises(ModelError, match="changed or replaced"):
        source.view(0, 3)


def test_a_file_replaced_after_it_was_pinned_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    source = FileSource(file)
    source.pin()
    other = tmp_path / "g"
    other.write_bytes(b"new")
    other.rename(file)
    assert bytes(source.view(0, 3)) == b"old"
