"""Values of constants that are not loaded until somebody reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import ModelError
from graphopt.io.dtypes import NP_DTYPES, PACKED_BITS, onnx_dtype, stored_nbytes
from graphopt.io.sources import Region

Array = np.ndarray[Any, Any]


class FileValues(LazyValues):  # type: ignore[misc]
    """A tensor whose stored bytes are a region of a source.

    Attributes:
        region: where the bytes are (`raw_data` layout: little-endian, sub-byte types packed).
        data_type: the ONNX element type.
        shape: the dims.
        dtype: the numpy dtype of the loaded array.
        nbytes: bytes of the loaded array (sub-byte types take one byte per element).
    """

    def __init__(self, region: Region, data_type: int, dims: tuple[int, ...]) -> None:
        self.region = region
        self.data_type = data_type
        self.shape = dims
        self.dtype = NP_DTYPES[data_type]
        self.nbytes = math.prod(dims) * self.dtype.itemsize

    @property
    def tensor(self) -> onnx.TensorProto:
        """A complete TensorProto (onnx-graphsurgeon's own exporter asks for it). Loads the bytes."""
        return onnx.TensorProto(dims=self.shape, data_type=self.data_type, raw_data=bytes(self.region.view()))

    def load(self) -> Array:
        """The values: a read-only view of the mapped file, a fresh array for sub-byte types.

        Raises:
            ModelError: the file has changed since the model was loaded.
        """
        return from_raw(self.region.view(), self.data_type, self.shape)


class ProtoValues(LazyValues):  # type: ignore[misc]
    """A tensor whose data is held by its TensorProto: small ones, strings, typed data fields."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.tensor = tensor

    @property
    def data_type(self) -> int:
        """The ONNX element type."""
        return int(self.tensor.data_type)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims."""
        return tuple(self.tensor.dims)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the loaded array."""
        return NP_DTYPES[self.tensor.data_type]

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded array."""
        return int(math.prod(self.tensor.dims) * self.dtype.itemsize)

    def load(self) -> Array:
        """The values, read-only. Strings give an object array of `str` (`bytes` where not UTF-8).

        Raises:
            ModelError: the data does not fit dims and element type.
        """
        return array_of(self.tensor)


class SparseProtoValues(SparseValues):  # type: ignore[misc]
    """A sparse initializer; `load` gives the dense array.

    Args:
        tensor: the SparseTensorProto (name, doc string and metadata live in `tensor.values`).
        values: the non-zero values.
        indices: their places, linear ([nnz]) or one row each ([nnz, rank]).
    """

    def __init__(self, tensor: onnx.SparseTensorProto, values: LazyValues, indices: LazyValues) -> None:
        self.tensor = tensor
        self.values = values
        self.indices = indices

    @property
    def data_type(self) -> int:
        """The ONNX element type of the values."""
        return int(self.values.data_type)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of the dense tensor."""
        return tuple(self.tensor.dims)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the dense array."""
        return NP_DTYPES[self.data_type]

    @property
    def nbytes(self) -> int:
        """Bytes of the dense array."""
        return int(math.prod(self.tensor.dims) * self.dtype.itemsize)

    def load(self) -> Array:
        """The dense array, read-only.

        Raises:
            ModelError: the indices do not fit the dims.
        """
        dense = np.zeros(self.shape, self.dtype)
        values, indices = self.values.load(), self.indices.load()
        try:
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (IndexError, ValueError) as error:
            raise ModelError(
                f"sparse tensor {self.tensor.values.name!r} has indices that do not fit its dims"
            ) from error
        dense.flags.writeable = False
        return dense


def from_raw(data: memoryview | bytes, data_type: int, dims: tuple[int, ...]) -> Array:
    """The array that `raw_data` bytes stand for: a view, except for sub-byte types."""
    if data_type in PACKED_BITS:
        packed = onnx.TensorProto(dims=dims, data_type=data_type, raw_data=bytes(data))
        array = onnx.numpy_helper.to_array(packed)
        array.flags.writeable = False
        return array
    return np.frombuffer(data, NP_DTYPES[data_type]).reshape(dims)


def array_of(tensor: onnx.TensorProto) -> Array:
    """The values of a TensorProto that holds its own data, read-only.

    Raises:
        ModelError: the data does not fit dims and element type.
    """
    try:
        if tensor.data_type == onnx.TensorProto.STRING:
            strings = np.empty(len(tensor.string_data), object)
            strings[:] = [_text(s) for s in tensor.string_data]
            array = strings.reshape(tuple(tensor.dims))
        else:
            array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"tensor {tensor.name!r} holds data that does not fit its shape "
            f"{list(tensor.dims)} and element type {tensor.data_type} ({error})"
        ) from error
    if array.flags.writeable:
        array.flags.writeable = False
    return array


def to_raw(array: Array) -> tuple[int, memoryview]:
    """Element type and `raw_data` bytes of an array (not of strings); a view where possible."""
    data_type = onnx_dtype(array.dtype)
    if data_type in PACKED_BITS:
        return data_type, memoryview(onnx.numpy_helper.from_array(array).raw_data)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1)
    return data_type, flat.view(np.uint8).data


def string_tensor(array: Array) -> onnx.TensorProto:
    """A TensorProto of strings; elements are `str` or `bytes`."""
    items = [s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1).tolist()]
    return onnx.TensorProto(dims=array.shape, data_type=onnx.TensorProto.STRING, string_data=items)


def stored_size(values: Array | LazyValues) -> int:
    """Bytes that a constant's data takes in a file, without loading it."""
    if isinstance(values, FileValues):
        return values.region.length
    if isinstance(values, np.ndarray):
        if values.dtype.hasobject:
            return sum(len(s) for s in values.reshape(-1).tolist())
        return stored_nbytes(onnx_dtype(values.dtype), values.shape) or 0
    return int(values.tensor.ByteSize())


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def sparse_values(name: str, dense: Array) -> SparseProtoValues:
    """`dense` as its elements that are not zero, and their linear indices."""
    flat = np.ascontiguousarray(dense).reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64)
    data_type = onnx_dtype(dense.dtype)
    values = onnx.TensorProto(
        name=name, data_type=data_type, dims=[len(places)], raw_data=flat[places].tobytes()
    )
    indices = onnx.TensorProto(
        data_type=onnx.TensorProto.INT64, dims=[len(places)], raw_data=places.astype("<i8").tobytes()
    )
    tensor = onnx.SparseTensorProto(values=values, indices=indices, dims=dense.shape)
    return SparseProtoValues(tensor, ProtoValues(tensor.values), ProtoValues(tensor.indices))
