"""The protobuf wire format, as far as it takes to lift weights out of a model and put them back.

A model is a tree of length-delimited messages. `substitute` walks only the branches that can hold
tensors, and replaces the `raw_data` of some by other bytes, fixing the lengths of everything around
it. Loading replaces each large `raw_data` in a mapped file by a short ticket, so that protobuf parses
kilobytes instead of gigabytes; saving replaces the tickets by the places the bytes come from, so that
they can be copied from file to file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from graphopt.errors import ModelError

Buffer: TypeAlias = memoryview

#: Protobuf's own bound on nesting; deeper input is hostile.
_MAX_DEPTH: Final = 100

_RAW: Final = "raw_data"
# message -> field number -> the message that it holds. Only what leads to tensors that we lift.
_NESTED: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 11: "graph"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {9: _RAW},
}


class WireError(ModelError):
    """The bytes are not a well-formed message."""

    def __init__(self, what: str, *, offset: int, truncated: bool = False) -> None:
        super().__init__(what)
        self.offset = offset
        self.truncated = truncated


def encode_varint(value: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if pos >= end:
            raise WireError("a field runs past the end", offset=pos, truncated=True)
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift > 63:
            raise WireError("a malformed integer", offset=pos)


#: Says whether a message at [start, stop) is worth descending into.
Enter: TypeAlias = Callable[[int, int], bool]
#: Gives what a `raw_data` at [start, stop) is replaced by and its length, or None to keep it.
Swap: TypeAlias = Callable[[int, int], tuple[Any, int] | None]


def substitute(data: Buffer, enter: Enter, swap: Swap) -> list[Any] | None:
    """Replace the `raw_data` of tensors in a serialized ModelProto.

    Args:
        data: the serialized model.
        enter: called with the bounds of each message (and each raw_data field) that may hold a
            tensor's data; False skips it.
        swap: called with the bounds of each `raw_data` entered; gives the replacement and its
            length in bytes, or None to keep the bytes.

    Returns:
        The pieces that make up the new message, in order: views of `data`, bytes, and what `swap`
        gave; None when nothing was replaced.

    Raises:
        WireError: the bytes are no message; `truncated` tells a cut-off one from garbage.
    """
    found = _message(data, 0, len(data), "model", enter, swap, 0)
    return None if found is None else found[0]


def _message(
    data: Buffer, start: int, end: int, kind: str, enter: Enter, swap: Swap, depth: int
) -> tuple[list[Any], int] | None:
    """Pieces and total length of the message at [start, end) if anything in it was replaced."""
    if depth > _MAX_DEPTH:
        raise WireError("messages are nested too deeply", offset=start)
    nested = _NESTED[kind]
    pieces: list[Any] = []
    size = 0
    kept = pos = start  # [kept, pos) is unchanged and not yet in `pieces`
    while pos < end:
        field_at = pos
        tag = data[pos]
        pos += 1
        if tag >= 0x80:
            tag, pos = _varint(data, field_at, end)
        wire = tag & 7
        if wire == 2:
            if pos >= end:
                raise WireError("a field runs past the end", offset=pos, truncated=True)
            length = data[pos]
            pos += 1
            if length >= 0x80:
                length, pos = _varint(data, pos - 1, end)
            body, pos = pos, pos + length
            if pos > end:
                raise WireError("a field runs past the end", offset=field_at, truncated=True)
            inner = nested.get(tag >> 3)
            if inner is None or not enter(body, pos):
                continue
            new: list[Any]
            if inner is _RAW:
                swapped = swap(body, pos)
                if swapped is None:
                    continue
                new, new_size = [swapped[0]], swapped[1]
            else:
                deeper = _message(data, body, pos, inner, enter, swap, depth + 1)
                if deeper is None:
                    continue
                new, new_size = deeper
            header = encode_varint(tag) + encode_varint(new_size)
            if field_at > kept:
                pieces.append(data[kept:field_at])
            pieces.append(header)
            pieces.extend(new)
            size += (field_at - kept) + len(header) + new_size
            kept = pos
        elif wire == 0:
            _, pos = _varint(data, pos, end)
        elif wire == 5 or wire == 1:
            pos += 4 if wire == 5 else 8
            if pos > end:
                raise WireError("a field runs past the end", offset=field_at, truncated=True)
        else:
            raise WireError(f"a field of unknown kind {wire}", offset=field_at)
    if kept == start:
        return None
    if end > kept:
        pieces.append(data[kept:end])
        size += end - kept
    return pieces, size
