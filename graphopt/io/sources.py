"""Where weight bytes live: mapped files and buffers in memory, and regions of them.

Arrays made from a source are read-only views of its mapping. Because of that the place of an array's
bytes can be found again from its address alone (`Sources.locate`), also when a pass made the array by
reshaping a weight: such a tensor costs no memory and is still copied from file to file on save.
"""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphopt.errors import ModelError

_CHUNK: Final = 1 << 24
#: Mapped files keep a descriptor each; beyond this many, regions are read into memory instead.
_MAX_MAPPED: Final = 256
#: Bytes handed out by a mapping before its pages are let go of.
_RESIDENT: Final = 1 << 26
#: Flags that some platforms need: not inherited by child processes, no newline translation.
OPEN_FLAGS: Final[int] = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: What copy_file_range and sendfile say when they cannot serve a pair of files.
_NO_KERNEL_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTSOCK}
)


@dataclass(frozen=True, slots=True)
class Region:
    """`length` bytes of a source, from `offset` on."""

    source: Source
    offset: int
    length: int

    def view(self) -> memoryview:
        """The bytes, without copying where the source is mapped."""
        return self.source.view(self.offset, self.length)


class Source:
    """Bytes that weights are read from. Base of `FileSource` and `BufferSource`."""

    path: Path | None
    size: int

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes [offset, offset + length), read-only."""
        raise NotImplementedError

    def copy_to(self, out: int, offset: int, length: int) -> None:
        """Append the bytes [offset, offset + length) to the file descriptor `out`."""
        write_all(out, self.view(offset, length))

    def base(self) -> int | None:
        """Address of the first byte when the whole source is mapped, else None."""
        return None

    def unchanged(self) -> bool:
        """The file at `path` is still the one that was opened."""
        return False

    def pin(self) -> None:
        """Keep the bytes reachable when the file at `path` is replaced or removed."""

    def release(self) -> None:
        """Let go of memory that only mirrors a file; views stay valid and are read again on use."""


class BufferSource(Source):
    """Bytes in memory (a model that was handed over as a ModelProto)."""

    def __init__(self, data: bytes) -> None:
        self.path = None
        self.size = len(data)
        self._view = memoryview(data)

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes [offset, offset + length), read-only."""
        return self._view[offset : offset + length]

    def base(self) -> int | None:
        """Address of the first byte, once it is mapped."""
        return _address(self._view)


class FileSource(Source):
    """A file, mapped when first read.

    The file is opened at most once and checked against what it was when the model was loaded, so that
    a file that was replaced meanwhile is an error rather than wrong weights.

    Args:
        path: the file.
        siblings: the sources of the same model; bounds how many of them are mapped at once.

    Raises:
        ModelError: it cannot be opened.
    """

    def __init__(self, path: Path, siblings: Sources | None = None) -> None:
        self.path = path
        self._siblings = siblings
        self._map: memoryview | None = None
        self._base: int | None = None
        self._fd: int | None = None
        self._lent = 0
        try:
            self._identity = _identity(os.stat(path))
        except OSError as error:
            raise _cannot_read(path, error) from error
        self.size = self._identity[2]

    def _open(self) -> int:
        if self._fd is None:
            assert self.path is not None
            try:
                fd = os.open(self.path, os.O_RDONLY | OPEN_FLAGS)
            except OSError as error:
                raise _cannot_read(self.path, error) from error
            if _identity(os.fstat(fd)) != self._identity:
                os.close(fd)
                raise ModelError(
                    "the file was changed or replaced while the model was in use",
                    where=str(self.path),
                    fix="load the model again",
                )
            self._fd = fd
        return self._fd

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes [offset, offset + length), read-only."""
        mapped = self._mapping()
        if mapped is not None:
            self._lent += length
            if self._lent > _RESIDENT:
                self.release()
                self._lent = length
            return mapped[offset : offset + length]
        held = self._fd is not None
        data = bytearray()
        for chunk in self._read(offset, length):
            data += chunk
        if not held:
            self.close()
        return memoryview(data).toreadonly()

    def _mapping(self) -> memoryview | None:
        if self._map is None and self.size:
            if self._siblings is not None and self._siblings.mapped() >= _MAX_MAPPED:
                return None
            held = self._fd is not None
            fd = self._open()
            try:
                mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                assert self.path is not None
                raise _cannot_read(self.path, error) from error
            if not held:  # the mapping keeps a descriptor of its own
                self.close()
            self._map = memoryview(mapped)
        return self._map

    def _read(self, offset: int, length: int) -> Iterator[bytes]:
        fd = self._open()
        while length:
            os.lseek(fd, offset, os.SEEK_SET)
            chunk = os.read(fd, min(length, _CHUNK))
            if not chunk:
                raise _shrunk(self.path)
            yield chunk
            offset += len(chunk)
            length -= len(chunk)

    def copy_to(self, out: int, offset: int, length: int) -> None:
        """Append the bytes to a file descriptor, inside the kernel where it can."""
        held = self._fd is not None
        fd = self._open()
        try:
            for kernel_copy in _KERNEL_COPIES:
                try:
                    while length:
                        done = kernel_copy(fd, out, min(length, 1 << 30), offset)
                        if not done:
                            raise _shrunk(self.path)
                        offset += done
                        length -= done
                    return
                except OSError as error:
                    if error.errno not in _NO_KERNEL_COPY:
                        raise
            for chunk in self._read(offset, length):
                write_all(out, memoryview(chunk))
        finally:
            if not held:
                self.close()

    def base(self) -> int | None:
        """Address of the first byte, once it is mapped."""
        if self._base is None and self._map is not None:
            self._base = _address(self._map)
        return self._base

    def is_mapped(self) -> bool:
        """The file is mapped, which holds a descriptor."""
        return self._map is not None

    def unchanged(self) -> bool:
        """The file at `path` is still the one that was opened."""
        assert self.path is not None
        try:
            return _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def pin(self) -> None:
        """Keep the bytes reachable when the file at `path` is replaced or removed."""
        self._open()

    def release(self) -> None:
        """Let go of the mapping's pages; views stay valid and are read again on use."""
        self._lent = 0
        if self._map is not None:
            drop_pages(self._map)

    def close(self) -> None:
        """Give the descriptor back; a mapping, if there is one, stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.close()


class Sources:
    """The sources of one model; shared by its copies."""

    def __init__(self) -> None:
        self.all: list[Source] = []
        self._files: dict[Path, FileSource] = {}
        self._lent = 0

    def file(self, path: Path) -> FileSource:
        """The source for a file, one per real path.

        Raises:
            ModelError: there is no such file, or it cannot be read.
        """
        source = self._files.get(path)
        if source is None:
            source = self._files[path] = FileSource(path, self)
            self.all.append(source)
        return source

    def buffer(self, data: bytes) -> BufferSource:
        """A source for bytes in memory."""
        source = BufferSource(data)
        self.all.append(source)
        return source

    def mapped(self) -> int:
        """How many files are mapped now."""
        return sum(source.is_mapped() for source in self._files.values())

    def lend(self, nbytes: int) -> None:
        """Somebody is about to read `nbytes` of an array: what was read long before is let go of."""
        self._lent += nbytes
        if self._lent > _RESIDENT:
            self.release()
            self._lent = nbytes

    def release(self) -> None:
        """Let go of the pages of all mapped files; views stay valid and are read again on use."""
        self._lent = 0
        for source in self.all:
            source.release()

    def locate(self, array: np.ndarray[Any, Any]) -> Region | None:
        """Where the bytes of `array` lie if it is a contiguous view of a source, else None."""
        if array.flags.writeable or not array.flags.c_contiguous or not array.nbytes:
            return None
        bases = sorted((base, i) for i, source in enumerate(self.all) if (base := source.base()) is not None)
        address = int(array.__array_interface__["data"][0])
        at = bisect_right(bases, (address, len(self.all))) - 1
        if at < 0:
            return None
        base, index = bases[at]
        source = self.all[index]
        if address + array.nbytes > base + source.size:
            return None
        return Region(source, address - base, array.nbytes)


def drop_pages(mapped: memoryview) -> None:
    """Unmap the pages of a read-only file mapping until they are used again, where the platform can."""
    if hasattr(mmap, "MADV_DONTNEED"):
        file = mapped.obj
        assert isinstance(file, mmap.mmap)
        file.madvise(mmap.MADV_DONTNEED)


def write_all(fd: int, data: memoryview) -> None:
    """Write every byte of `data` to a file descriptor."""
    data = data.cast("B")
    while data:
        data = data[os.write(fd, data[: 1 << 30]) :]


def _copy_file_range(source: int, out: int, length: int, offset: int) -> int:
    return os.copy_file_range(source, out, length, offset)


def _sendfile(source: int, out: int, length: int, offset: int) -> int:
    return os.sendfile(out, source, offset, length)


_KERNEL_COPIES: Final = (
    *((_copy_file_range,) if hasattr(os, "copy_file_range") else ()),
    *((_sendfile,) if hasattr(os, "sendfile") else ()),
)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _cannot_read(path: Path, error: OSError) -> ModelError:
    return ModelError(f"cannot be read: {error.strerror or error}", where=str(path))


def _shrunk(path: Path | None) -> ModelError:
    return ModelError("the file was cut short while the model was in use", where=str(path))
