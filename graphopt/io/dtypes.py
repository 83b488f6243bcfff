"""Element types of ONNX tensors: numpy dtypes and stored sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx

_T = onnx.TensorProto

_BITS: Final = {
    "UINT4": 4,
    "INT4": 4,
    "FLOAT4E2M1": 4,
    "UINT2": 2,
    "INT2": 2,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
}
#: Types of which several elements share a byte, as far as onnx has them: element type -> bits.
PACKED_BITS: Final[dict[int, int]] = {
    int(getattr(_T, name)): bits for name, bits in _BITS.items() if hasattr(_T, name)
}

STRING: Final = int(_T.STRING)


def _np_dtypes() -> dict[int, np.dtype[Any]]:
    known = {}
    for value in _T.DataType.values():
        if value != _T.UNDEFINED:
            known[int(value)] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value))
    return known


#: ONNX element type -> numpy dtype (ml_dtypes' for what numpy lacks; object for strings).
NP_DTYPES: Final[dict[int, np.dtype[Any]]] = _np_dtypes()
_FROM_NP: Final[dict[np.dtype[Any], int]] = {
    dtype: value for value, dtype in NP_DTYPES.items() if value != STRING
}


def onnx_dtype(dtype: Any) -> int:
    """The TensorProto.DataType of a numpy dtype, scalar type, or an element type itself.

    Raises:
        TypeError: ONNX has no such element type.
    """
    if isinstance(dtype, int):
        return dtype
    dtype = np.dtype(dtype)
    if dtype.kind in "OUS":
        return STRING
    found = _FROM_NP.get(dtype) or _FROM_NP.get(dtype.newbyteorder("="))
    if found is None:
        raise TypeError(f"ONNX has no element type for numpy's {dtype}")
    return found


def volume(dims: Sequence[int]) -> int:
    """Number of elements of a tensor with these dims (1 for a scalar)."""
    return math.prod(dims)


def stored_nbytes(data_type: int, dims: Sequence[int]) -> int | None:
    """Bytes of `raw_data` for a tensor; None when its element type has no fixed size."""
    bits = PACKED_BITS.get(data_type)
    if bits is not None:
        return (volume(dims) * bits + 7) // 8
    dtype = NP_DTYPES.get(data_type)
    if dtype is None or data_type == STRING:
        return None
    return volume(dims) * dtype.itemsize
