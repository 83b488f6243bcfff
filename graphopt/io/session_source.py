"""A model in the form in which a runtime can open it without copying its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from graphopt.errors import ModelError
from graphopt.io.placement import Data, Holder, Placement, refer, size_of, view_of
from graphopt.io.sources import Region, Sources
from graphopt.io.weights import from_raw

_MAX_INLINE: Final = (1 << 31) - (1 << 20)


@dataclass(frozen=True)
class SessionSource:
    """What it takes to open a session on a model.

    Attributes:
        proto: the serialized ModelProto. Small tensors are in it; large ones have external data.
        folder: the folder that external locations are relative to; None when there are none.
        arrays: initializers of the main graph whose data is in memory: name -> array, read-only.
        inline_bytes: bytes of large tensors that had to be put into `proto`.
    """

    proto: bytes
    folder: Path | None = None
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    inline_bytes: int = 0


def session_source(export: Callable[[Placement], onnx.ModelProto], sources: Sources) -> SessionSource:
    """Make the session source of a model.

    Raises:
        ModelError: more than 2 GiB of weights are neither in files nor in the main graph.
    """
    placement = _Referring(sources)
    proto = export(placement)
    try:
        serialized = proto.SerializeToString()
    except (EncodeError, ValueError, RuntimeError) as error:
        raise _too_large() from error
    return SessionSource(serialized, placement.folder, placement.arrays, placement.inline_bytes)


class _Referring(Placement):
    """Large tensors stay in their files; what is in memory is handed over by name, or put inline."""

    keeps_typed = False

    def __init__(self, sources: Sources) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.inline_bytes = 0
        self.folder: Path | None = None
        # A file that was replaced since must not be referred to by its name: its mapping still has
        # the bytes, which then count as memory.
        files = [s.path for s in sources.all if s.path is not None and s.unchanged()]
        self._locations: dict[Path, str] = {}
        if files:
            self.folder = Path(os.path.commonpath([file.parent for file in files]))
            self._locations = {file: file.relative_to(self.folder).as_posix() for file in files}

    def place(self, tensor: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        if not feeds_shapes and holder != "sparse":
            path = data.source.path if isinstance(data, Region) else None
            location = None if path is None else self._locations.get(path)
            if location is not None and isinstance(data, Region):
                refer(tensor, location, data.offset, data.length)
                return
            if holder == "main":
                dims = tuple(tensor.dims)
                self.arrays[tensor.name] = from_raw(view_of(data), tensor.data_type, dims)
                # The array replaces this before a runtime would open it, but onnxruntime first checks
                # that the location exists in the folder: "." always does.
                refer(tensor, ".", 0, size_of(data))
                return
        self.inline_bytes += size_of(data)
        if self.inline_bytes > _MAX_INLINE:
            raise _too_large()
        super().place(tensor, data, holder, feeds_shapes)


def _too_large() -> ModelError:
    return ModelError(
        "more than 2 GiB of weights in nested bodies or attributes are held in memory, and no runtime "
        "can take them",
        fix="Save the model with external data and run the saved one.",
    )
