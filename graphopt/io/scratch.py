"""Weights that passes make and that are too many to hold: they wait in a temporary file for the save."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any, Final

import numpy as np

from graphopt.io.dtypes import PACKED_BITS, onnx_dtype
from graphopt.io.sources import Region, Source, Sources, drop_pages, write_all
from graphopt.io.weights import FileValues, to_raw

#: Smaller arrays stay in memory.
STOWED_BYTES: Final = 1 << 20
#: What passes may make before anything is stowed, in bytes.
HELD_BYTES: Final = 1 << 25


class ScratchSource(Source):
    """One array in the temporary file.

    Args:
        descriptor: the open temporary file; stays with whoever opened it.
        keeper: object that closes the file when it goes.
        start: where the bytes begin, a multiple of the mapping granularity.
        size: how many there are.
    """

    def __init__(self, descriptor: int, keeper: object, start: int, size: int) -> None:
        self.path = None
        self.size = size
        self._fd, self._keeper, self._start = descriptor, keeper, start
        self._map: memoryview | None = None

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes [offset, offset + length), read-only."""
        if self._map is None:
            mapped = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ, offset=self._start)
            self._map = memoryview(mapped)
        return self._map[offset : offset + length]

    def copy_to(self, out: int, offset: int, length: int) -> None:
        """Append the bytes to a file descriptor, without mapping them."""
        place = self._start + offset
        while length:
            chunk = os.pread(self._fd, min(length, 1 << 22), place)
            if not chunk:
                raise OSError("the temporary file is shorter than what was written to it")
            write_all(out, memoryview(chunk))
            place += len(chunk)
            length -= len(chunk)

    def release(self) -> None:
        """Let go of the mapping's pages; views stay valid and are read again on use."""
        if self._map is not None:
            drop_pages(self._map)

    def base(self) -> int | None:
        """Address of the first byte, once it is mapped."""
        if self._map is None:
            return None
        return int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])


class Scratch:
    """Takes large arrays out of memory once there are many.

    The file has no name, so it goes with the process whatever happens.
    """

    def __init__(self) -> None:
        self._held = 0
        self._file: Any = None
        self._end = 0

    def stow(self, array: np.ndarray[Any, Any], sources: Sources) -> np.ndarray[Any, Any] | FileValues:
        """`array`, or the same values in the temporary file.

        Args:
            array: values that nobody changes any more.
            sources: the sources of the model, which the temporary file joins.

        Returns:
            `array` itself where it is small, is part of a file already, or cannot be written.
        """
        if array.nbytes < STOWED_BYTES or array.dtype.hasobject or array.dtype.byteorder == ">":
            return array
        if onnx_dtype(array.dtype) in PACKED_BITS or sources.locate(array) is not None:
            return array
        self._held += array.nbytes
        if self._held <= HELD_BYTES:
            return array
        data_type, data = to_raw(array)
        try:
            source = self._append(data)
        except OSError:  # no room for temporary files: memory is all there is
            return array
        self._held -= array.nbytes
        sources.all.append(source)
        return FileValues(Region(source, 0, source.size), data_type, array.shape)

    def _append(self, data: memoryview) -> ScratchSource:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="graphopt-", buffering=0)  # noqa: SIM115
        descriptor = self._file.fileno()
        start = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.lseek(descriptor, start, os.SEEK_SET)
        write_all(descriptor, data)
        self._end = start + data.nbytes
        return ScratchSource(descriptor, self._file, start, data.nbytes)
