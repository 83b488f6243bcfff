"""A model in the form in which a runtime can open it without copying its weights.

onnxruntime takes a message in bytes whose weights are external data. It can also be handed arrays by name,
but its optimizer then looks for the data of those tensors in a file all the same (1.32: Conv fusions fail to
load). So weights that are in memory are put into the message, and when they are many, into a temporary file.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import EncodeError

from graphopt.errors import ModelError
from graphopt.io.placement import Data, Holder, Placement, refer, size_of, view_of
from graphopt.io.sources import Region, Sources

#: Weights in memory beyond this many bytes go to a temporary file rather than into the message.
INLINE_LIMIT: Final = 64 << 20
_MAX_INLINE: Final = (1 << 31) - (1 << 20)


@dataclass(frozen=True)
class SessionSource:
    """What it takes to open a session on a model.

    Attributes:
        proto: the serialized ModelProto. Small tensors are in it; large ones have external data.
        folder: the folder that external locations are relative to; None when there are none.
        inline_bytes: bytes of large tensors that had to be put into `proto`.
        spill: the temporary file that some locations may name; it lives as long as this object.
    """

    proto: bytes
    folder: Path | None = None
    inline_bytes: int = 0
    spill: Spill | None = field(default=None, repr=False)


class Spill:
    """A temporary file for weights that are in memory only; removed with the object."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="graphopt-", suffix=".data")
        self.path = Path(os.path.realpath(name))
        self._file = os.fdopen(descriptor, "wb")
        self._remove = weakref.finalize(self, self.path.unlink, missing_ok=True)

    def append(self, data: memoryview) -> int:
        """Write `data`; returns its offset, which is aligned."""
        offset = self._file.tell()
        offset += self._file.write(b"\0" * (-offset % 64))
        self._file.write(data)
        return offset

    def close(self) -> None:
        """Finish writing; the file stays until the object goes."""
        self._file.close()


def session_source(export: Callable[[Placement], onnx.ModelProto], sources: Sources) -> SessionSource:
    """Make the session source of a model.

    Raises:
        ModelError: more than 2 GiB of weights cannot be external (parts of sparse tensors, values that
            shape inference reads).
    """
    placement = _Referring(sources, None)
    proto = export(placement)
    if placement.inline_bytes > INLINE_LIMIT:
        placement = _Referring(sources, Spill())
        proto = export(placement)
    if placement.spill is not None:
        placement.spill.close()
    try:
        serialized = proto.SerializeToString()
    except (EncodeError, ValueError, RuntimeError) as error:
        raise _too_large() from error
    return SessionSource(serialized, placement.folder, placement.inline_bytes, placement.spill)


class _Referring(Placement):
    """Large tensors stay in their files; what is in memory goes inline, or into the spill file."""

    keeps_typed = False

    def __init__(self, sources: Sources, spill: Spill | None) -> None:
        self.inline_bytes = 0
        self.spill = spill
        self.folder: Path | None = None
        # A file that was replaced since must not be referred to by its name: its mapping still has
        # the bytes, which then count as memory.
        files = [s.path for s in sources.all if s.path is not None and s.unchanged()]
        if spill is not None:
            files.append(spill.path)
        self._locations: dict[Path, str] = {}
        if files:
            self.folder = Path(os.path.commonpath([file.parent for file in files]))
            self._locations = {file: file.relative_to(self.folder).as_posix() for file in files}

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        """Refer to where the data is, or put it where the runtime finds it."""
        if not feeds_shapes and holder != "sparse":
            path = data.source.path if isinstance(data, Region) else None
            location = None if path is None else self._locations.get(path)
            if location is not None and isinstance(data, Region):
                refer(tensor, location, data.offset, data.length)
                return
            if self.spill is not None:
                offset = self.spill.append(view_of(data))
                refer(tensor, self._locations[self.spill.path], offset, size_of(data))
                return
        self.inline_bytes += size_of(data)
        # Beyond the limit this message is thrown away: only the size counts.
        if self.inline_bytes <= INLINE_LIMIT or self.spill is not None:
            if self.inline_bytes > _MAX_INLINE:
                raise _too_large()
            super().place(tensor, data, holder, feeds_shapes)


def _too_large() -> ModelError:
    return ModelError(
        "more than 2 GiB of weights are in sparse tensors or in values that shapes are computed from, and "
        "no runtime can take them"
    )
