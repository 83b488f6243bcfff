"""Which shared libraries a shared object needs, read from its ELF file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

_MAGIC: Final = b"\x7fELF"
_CLASS_64 = 2
_LITTLE_ENDIAN = 1
_PT_LOAD = 1
_PT_DYNAMIC = 2
_DT_NULL = 0
_DT_NEEDED = 1
_DT_STRTAB = 5


def needed(path: Path) -> tuple[str, ...]:
    """The DT_NEEDED entries of a 64-bit little-endian ELF file, in order; empty for any other file."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _needed(data)
            except (struct.error, IndexError, ValueError, StopIteration):
                return ()


def _needed(data: mmap.mmap) -> tuple[str, ...]:
    if data[4] != _CLASS_64 or data[5] != _LITTLE_ENDIAN:
        return ()
    (table,) = struct.unpack_from("<Q", data, 0x20)
    entry_size, count = struct.unpack_from("<HH", data, 0x36)
    loads: list[tuple[int, int, int]] = []  # address, offset in the file, size
    dynamic = (0, 0)
    for i in range(count):
        header = struct.unpack_from("<IIQQQQQQ", data, table + i * entry_size)
        kind, _, offset, address, _, size, _, _ = header
        if kind == _PT_LOAD:
            loads.append((address, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, size)
    names: list[int] = []
    strings = 0
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = value
    base = next(o + strings - a for a, o, size in loads if a <= strings < a + size)
    return tuple(_text(data, base + name) for name in names)


def _text(data: mmap.mmap, start: int) -> str:
    return data[start : data.find(b"\0", start)].decode()
