"""Where the data of large tensors goes when a model is written as protobuf messages."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import onnx

from graphopt.io.sources import Region
from graphopt.io.tensors import Tickets

#: What holds a tensor: the main graph's initializers, a nested body's, an attribute, or a part of a
#: sparse initializer.
Holder: TypeAlias = Literal["main", "body", "attribute", "sparse"]
#: Stored bytes of a tensor: a region of a source, or bytes in memory.
Data: TypeAlias = Region | memoryview


class Placement:
    """Decides what a written message says about one large tensor. Base class: puts the data inline.

    Attributes:
        keeps_typed: data in typed fields (`float_data`, ...) may stay there.
    """

    keeps_typed: bool = True

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Complete `tensor`, which has name, dims and element type.

        Args:
            tensor: the message to complete.
            data: the stored bytes.
            holder: what holds the tensor.
            feeds_shapes: shape inference reads its values (the shape of a Reshape, ...).
        """
        tensor.raw_data = bytes(view_of(data))


class Stripped(Placement):
    """Leaves large tensors without data, except those that shape inference reads."""

    keeps_typed = False

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Add the data only if shape inference reads it."""
        if feeds_shapes:
            super().place(tensor, data, holder, feeds_shapes)


class Weighed(Placement):
    """Leaves large tensors without data, and counts what they would take."""

    keeps_typed = False

    def __init__(self) -> None:
        self.nbytes = 0

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Count the data."""
        self.nbytes += size_of(data)


class Ticketed(Placement):
    """Puts a ticket in place of the data, for `wire.substitute` to replace by the data itself."""

    def __init__(self) -> None:
        self.tickets: Final = Tickets()
        self.data: list[Data] = []

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Put a ticket in, and keep the data aside."""
        tensor.raw_data = self.tickets.make(len(self.data))
        self.data.append(data)


class External(Placement):
    """Refers to a data file, and lays that file out.

    Args:
        location: name of the data file.

    Attributes:
        chunks: (offset, data) in the order of the file.
        size: bytes of the file so far.
    """

    keeps_typed = False

    def __init__(self, location: str) -> None:
        self.location = location
        self.chunks: list[tuple[int, Data]] = []
        self.size = 0
        self._placed: dict[Region, int] = {}

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Refer to the next free place of the data file.

        Parts of sparse tensors stay inline: onnx's own loader does not look for external data there.
        """
        if holder == "sparse":
            super().place(tensor, data, holder, feeds_shapes)
            return
        length = size_of(data)
        offset = self._placed.get(data) if isinstance(data, Region) else None
        if offset is None:
            # Pages for what runtimes map one by one, a cache line for the rest.
            align = 4096 if length >= 1 << 20 else 64
            offset = -(-self.size // align) * align
            self.chunks.append((offset, data))
            self.size = offset + length
            if isinstance(data, Region):
                self._placed[data] = offset
        refer(tensor, self.location, offset, length)


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor's data external."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def size_of(data: Data) -> int:
    """Bytes of stored data."""
    return data.length if isinstance(data, Region) else data.nbytes


def view_of(data: Data) -> memoryview:
    """The stored bytes."""
    return data.view() if isinstance(data, Region) else data
