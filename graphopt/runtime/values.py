"""Values that go in and out of a session, also of the dtypes that numpy or onnxruntime's bindings lack.

A value is an array, a sequence of values, a map, or None (an empty optional). Arrays of bfloat16, of
the 8-bit floats and of the 4-bit types are `ml_dtypes` arrays, one element per item; onnxruntime's
Python bindings refuse those, so they cross the border as raw bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper

Array: TypeAlias = np.ndarray[Any, Any]
Value: TypeAlias = Array | Sequence["Value"] | Mapping[Any, Any] | None
Feeds: TypeAlias = Mapping[str, Value]

TensorType = onnx.TensorProto

# The names onnxruntime uses inside "tensor(...)".
_ORT_NAMES = {
    "float": "FLOAT",
    "double": "DOUBLE",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "string": "STRING",
    "bool": "BOOL",
    "complex64": "COMPLEX64",
    "complex128": "COMPLEX128",
}

_NATIVE = {
    *(TensorType.FLOAT, TensorType.DOUBLE, TensorType.FLOAT16, TensorType.BOOL, TensorType.STRING),
    *(TensorType.INT8, TensorType.INT16, TensorType.INT32, TensorType.INT64),
    *(TensorType.UINT8, TensorType.UINT16, TensorType.UINT32, TensorType.UINT64),
    *(TensorType.COMPLEX64, TensorType.COMPLEX128),
}


def elem_type_of(ort_type: str) -> int | None:
    """The ONNX element type in onnxruntime's "tensor(...)"; None for sequences, maps and optionals."""
    if not (ort_type.startswith("tensor(") and ort_type.endswith(")")):
        return None
    name = ort_type[len("tensor(") : -1]
    name = _ORT_NAMES.get(name, name.upper())
    return int(TensorType.DataType.Value(name)) if name in TensorType.DataType.keys() else None  # noqa: SIM118


def elem_type_of_array(array: Array) -> int:
    """The ONNX element type of an array; raises TypeError for a dtype that ONNX has not."""
    if array.dtype.kind in "OUST":
        return int(onnx.TensorProto.STRING)
    try:
        return int(helper.np_dtype_to_tensor_dtype(array.dtype))
    except (KeyError, ValueError) as e:
        raise TypeError(f"ONNX has no tensors of dtype {array.dtype}") from e


def numpy_dtype(elem_type: int) -> np.dtype[Any]:
    """The numpy (or ml_dtypes) dtype of an ONNX element type; object for strings."""
    if elem_type == onnx.TensorProto.STRING:
        return np.dtype(object)
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))


def is_native(elem_type: int | None) -> bool:
    """Whether onnxruntime's bindings take and give arrays of this element type directly."""
    return elem_type is None or elem_type in _NATIVE


def bits_of(elem_type: int) -> int:
    """Storage bits of one element: 2 and 4 for the packed types."""
    name = TensorType.DataType.Name(elem_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return numpy_dtype(elem_type).itemsize * 8


def pack(array: Array, elem_type: int) -> Array:
    """The bytes (uint8, flat) in which onnxruntime stores `array`, low bits first for packed types."""
    bits = bits_of(elem_type)
    flat = np.ascontiguousarray(array).reshape(-1)
    if bits >= 8:
        return flat.view(np.uint8)
    per = 8 // bits
    codes = flat.view(np.uint8) & ((1 << bits) - 1)
    codes = np.concatenate([codes, np.zeros(-codes.size % per, np.uint8)]).reshape(-1, per)
    packed = np.zeros(codes.shape[0], np.uint8)
    for i in range(per):
        packed |= codes[:, i] << (bits * i)
    return packed


def unpack(data: bytes, elem_type: int, shape: Sequence[int]) -> Array:
    """The inverse of `pack`."""
    dtype, bits = numpy_dtype(elem_type), bits_of(elem_type)
    raw = np.frombuffer(data, np.uint8)
    if bits >= 8:
        return raw.view(dtype).reshape(shape).copy()
    count, per = int(np.prod(shape, dtype=np.int64)), 8 // bits
    fields = [(raw >> (bits * i)) & ((1 << bits) - 1) for i in range(per)]
    codes = np.stack(fields, axis=1).reshape(-1)[:count]
    if TensorType.DataType.Name(elem_type).startswith("INT"):
        sign = 1 << (bits - 1)
        return ((codes.astype(np.int8) ^ sign) - sign).astype(dtype).reshape(shape)
    return codes.astype(np.uint8).view(dtype).reshape(shape).copy()


def to_ort(value: Array, elem_type: int | None = None) -> Any:
    """An OrtValue on the CPU that shares `value`'s memory when its dtype is native and contiguous."""
    import onnxruntime as ort

    elem_type = elem_type_of_array(value) if elem_type is None else elem_type
    if elem_type in _NATIVE:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    if bits_of(elem_type) >= 8:
        array = np.ascontiguousarray(value).reshape(value.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, elem_type)
    # The binding takes shape and address from the array: one byte per item is more room than is read.
    packed = pack(value, elem_type)
    room = np.zeros(value.shape, np.uint8)
    room.reshape(-1)[: packed.size] = packed
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(room, elem_type)


def from_ort(value: Any, elem_type: int) -> Array:
    """The array (a copy) in an OrtValue that holds a tensor."""
    if elem_type in _NATIVE:
        native: Array = value.numpy()
        return native
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return unpack(data, elem_type, value.shape())
