"""Arrays that are read row by row: in memory, mapped from .npy and stored .npz members, or inflated."""

from __future__ import annotations

import contextlib
import math
import struct
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.errors import UserError
from graphopt.runtime.values import Array

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CHUNK = 1 << 20


class Column(ABC):
    """An array that may be too large to hold.

    Attributes:
        shape: its shape.
        dtype: its dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def rows(self) -> Iterator[Array]:
        """The items along axis 0, in order, as copies that may be kept."""

    @abstractmethod
    def whole(self) -> Array:
        """All of it, as a copy."""


class Held(Column):
    """An array in memory (or one that the caller has mapped)."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def rows(self) -> Iterator[Array]:
        """The items along axis 0."""
        for i in range(self.shape[0]):
            yield np.array(self.array[i])

    def whole(self) -> Array:
        """All of it."""
        return np.array(self.array)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int  # bytes from the start of the .npy data to its first element


def _read_header(file: IO[bytes]) -> _Header:
    """The header of .npy data; ValueError when it is none, or holds Python objects."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"unknown version {version} of the .npy format")
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are code and are never loaded")
    return _Header(shape, fortran, dtype, file.tell() - start)


class Mapped(Column):
    """An array at some offset of a file, mapped while it is read."""

    def __init__(self, path: Path | IO[bytes], header: _Header, offset: int) -> None:
        self.path, self.shape, self.dtype = path, header.shape, header.dtype
        self._offset, self._fortran = offset, header.fortran

    def _map(self) -> Array:
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        order = "F" if self._fortran else "C"
        file: Any = self.path  # numpy's stubs lack open files
        return np.memmap(file, self.dtype, "r", self._offset, self.shape, order)  # type: ignore[call-overload,no-any-return]

    def rows(self) -> Iterator[Array]:
        """The items along axis 0."""
        array = self._map()
        for i in range(self.shape[0]):
            yield np.array(array[i])

    def whole(self) -> Array:
        """All of it."""
        return np.array(self._map())


class Inflated(Column):
    """A compressed member of an .npz file, inflated as it is read."""

    def __init__(self, path: Path, member: str, header: _Header) -> None:
        self.path, self.member, self.header = path, member, header
        self.shape, self.dtype = header.shape, header.dtype

    def rows(self) -> Iterator[Array]:
        """The items along axis 0."""
        if self.header.fortran:  # a row's items lie all over the file
            with self._spilled() as mapped:
                yield from mapped.rows()
            return
        with self._open() as file:
            for _ in range(self.shape[0]):
                yield self._read(file, self.shape[1:])

    def whole(self) -> Array:
        """All of it."""
        if self.header.fortran:
            with self._spilled() as mapped:
                return mapped.whole()
        with self._open() as file:
            return self._read(file, self.shape)

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            file.read(self.header.length)
            yield file

    def _read(self, file: IO[bytes], shape: tuple[int, ...]) -> Array:
        data = bytearray(math.prod(shape) * self.dtype.itemsize)
        view, done = memoryview(data), 0
        while done < len(data):
            piece = file.read(min(_CHUNK, len(data) - done))
            if not piece:
                raise UserError(f"array {self.member!r} ends too early", where=str(self.path))
            view[done : done + len(piece)] = piece
            done += len(piece)
        return np.frombuffer(data, self.dtype).reshape(shape)

    @contextlib.contextmanager
    def _spilled(self) -> Iterator[Mapped]:
        with tempfile.TemporaryFile() as copy:
            with self._open() as file:
                while piece := file.read(_CHUNK):
                    copy.write(piece)
            copy.flush()
            yield Mapped(copy, self.header, 0)


def npy_column(path: Path) -> Column:
    """An .npy file.

    Raises:
        UserError: it is none, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file)
    except (OSError, ValueError, EOFError) as e:
        raise unreadable(path, e) from e
    _check_length(path, header, path.stat().st_size - header.length)
    return Mapped(path, header, header.length)


def npz_columns(path: Path) -> dict[str, Column]:
    """The arrays of an .npz file by name, none of them read yet.

    Raises:
        UserError: it is none, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            return {
                i.filename.removesuffix(".npy"): _member(path, archive, raw, i) for i in archive.infolist()
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        raise unreadable(path, e) from e


def _member(path: Path, archive: zipfile.ZipFile, raw: IO[bytes], info: zipfile.ZipInfo) -> Column:
    with archive.open(info) as file:
        header = _read_header(file)
    _check_length(path, header, info.file_size - header.length, info.filename)
    if info.compress_type != zipfile.ZIP_STORED:
        return Inflated(path, info.filename, header)
    # The central directory says where the member's own header starts, but not how long that is.
    raw.seek(info.header_offset)
    fields = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
    return Mapped(path, header, start + header.length)


def _check_length(path: Path, header: _Header, there: int, member: str = "") -> None:
    wanted = math.prod(header.shape) * header.dtype.itemsize
    if there < wanted:
        what = f"array {member!r}" if member else "the array"
        raise UserError(
            f"{what} ends too early: {wanted} bytes are declared, {there} are there", where=str(path)
        )


def unreadable(path: Path, e: Exception) -> UserError:
    """The error for a file that is not what its name says."""
    what = "it is neither .npz nor .npy" if isinstance(e, zipfile.BadZipFile) or "magic" in str(e) else str(e)
    return UserError(
        f"not readable as numpy data: {what}", where=str(path), fix="as in: numpy.savez(path, image=array)"
    )
