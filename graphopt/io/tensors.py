"""From TensorProto to lazily loaded values, and the tickets that stand for lifted-out data."""

from __future__ import annotations

import math
import os
from typing import Any, Final

import onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import ModelError
from graphopt.io import wire
from graphopt.io.dtypes import NP_DTYPES, stored_nbytes
from graphopt.io.external import ExternalFiles
from graphopt.io.sources import Region, Source
from graphopt.io.weights import FileValues, ProtoValues, SparseProtoValues

#: Tensors up to this many bytes stay inside their message; larger ones are lifted out.
INLINE_BYTES: Final = 1024


class Tickets:
    """Numbered stand-ins for `raw_data`: a random prefix, which no input can guess, and an index."""

    def __init__(self) -> None:
        self.prefix = os.urandom(20)

    def make(self, index: int) -> bytes:
        """The ticket with this number."""
        return self.prefix + index.to_bytes(4, "little")

    def index(self, data: bytes | memoryview) -> int | None:
        """The number of a ticket, None for other data."""
        if len(data) == 24 and data[:20] == self.prefix:
            return int.from_bytes(data[20:], "little")
        return None


class TensorReader:
    """Makes the lazy values of a model's tensors.

    Args:
        tickets: the tickets that stand for lifted-out data.
        regions: where the data of each ticket is.
        external: resolves external data.
    """

    def __init__(self, tickets: Tickets, regions: list[Region], external: ExternalFiles) -> None:
        self._tickets = tickets
        self._regions = regions
        self._external = external

    def values(self, tensor: onnx.TensorProto) -> LazyValues:
        """The values of a tensor; takes tickets and external references out of `tensor`.

        Raises:
            ModelError: the data is not as large as dims and element type say, or breaks a rule of
                external data.
        """
        raw = tensor.raw_data
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            region = self._external.region(tensor)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        elif len(raw) == 24 and (index := self._tickets.index(raw)) is not None:
            region = self._regions[index]
            tensor.ClearField("raw_data")
            if stored_nbytes(tensor.data_type, tensor.dims) != region.length or min(tensor.dims) < 0:
                raise _misfit(tensor, region.length)
        else:
            if tensor.data_type not in NP_DTYPES:
                raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}")
            if raw and stored_nbytes(tensor.data_type, tensor.dims) != len(raw):
                raise _misfit(tensor, len(raw))
            return ProtoValues(tensor)
        return FileValues(region, tensor.data_type, tuple(tensor.dims))

    def sparse(self, tensor: onnx.SparseTensorProto) -> SparseProtoValues:
        """The values of a sparse initializer.

        Raises:
            ModelError: as for `values`, or the indices are not int64 of rank 1 or 2.
        """
        name = tensor.values.name
        if tensor.indices.data_type != onnx.TensorProto.INT64 or len(tensor.indices.dims) not in (1, 2):
            raise ModelError(f"sparse tensor {name!r} has indices that are not int64 of rank 1 or 2")
        return SparseProtoValues(tensor, self.values(tensor.values), self.values(tensor.indices))

    def embed(self, message: Any) -> None:
        """Pull external data into the tensors of a message that graphopt passes on as it is.

        Raises:
            ModelError: a reference breaks a rule of external data.
        """
        if isinstance(message, onnx.TensorProto):
            if message.data_location == onnx.TensorProto.EXTERNAL:
                region = self._external.region(message)
                message.ClearField("external_data")
                message.ClearField("data_location")
                message.raw_data = bytes(region.view())
            return
        for field, value in message.ListFields():
            if field.message_type is not None:
                for inner in value if field.is_repeated else (value,):
                    self.embed(inner)


def _misfit(tensor: onnx.TensorProto, size: int) -> ModelError:
    need = stored_nbytes(tensor.data_type, tensor.dims)
    return ModelError(
        f"tensor {tensor.name!r} has {size} bytes of data, but its shape {list(tensor.dims)} and element "
        f"type {tensor.data_type} need {need}"
    )


def lift(source: Source, tickets: Tickets) -> tuple[bytes | memoryview, list[Region]]:
    """A serialized model with every large `raw_data` replaced by a ticket.

    Args:
        source: the serialized ModelProto.
        tickets: makes the tickets.

    Returns:
        The bytes to parse, and the region that each ticket stands for.

    Raises:
        wire.WireError: the bytes are not a well-formed message.
    """
    regions: list[Region] = []

    def enter(start: int, stop: int) -> bool:
        return stop - start > INLINE_BYTES

    def swap(start: int, stop: int) -> tuple[bytes, int]:
        regions.append(Region(source, start, stop - start))
        return tickets.make(len(regions) - 1), 24

    data = source.view(0, source.size)
    pieces = wire.substitute(data, enter, swap)
    return (data if pieces is None else b"".join(pieces)), regions


def is_stripped(tensor: onnx.TensorProto) -> bool:
    """The tensor's data was lifted out of the message: dims and element type are all it holds."""
    return not (
        tensor.raw_data
        or tensor.float_data
        or tensor.int32_data
        or tensor.int64_data
        or tensor.string_data
        or tensor.double_data
        or tensor.uint64_data
    ) and bool(math.prod(tensor.dims))
