"""What onnxruntime writes to its log while something is done, as data instead of as text on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_LETTERS: Final = "VIWEF"
# As in "2026-01-01 00:00:00.0 [I:onnxruntime:Default, graph.cc:1 Apply] text", coloured on a terminal.
_LINE: Final = re.compile(r"\[([VIWEF]):onnxruntime:[^,\]]*, ([^\]]*)\] ?(.*)")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class LogLine:
    """One message.

    Attributes:
        severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal.
        place: source file, line and function.
        text: the message.
    """

    severity: int
    place: str
    text: str


@contextlib.contextmanager
def captured(ort: Any) -> Iterator[list[LogLine]]:
    """Collect what onnxruntime logs meanwhile; how much it says is a matter of the session's options.

    From onnxruntime 1.32 on through its own callback. Before, by diverting file descriptor 2: what
    others write to stderr meanwhile is written there afterwards. Within another capture, both get all.
    """
    lines: list[LogLine] = []
    _open.append(lines)
    try:
        if len(_open) > 1:
            yield lines
        else:
            with _collected(ort):
                yield lines
    finally:
        _open[:] = [x for x in _open if x is not lines]


# The captures that are going on; onnxruntime's log is one per process.
_open: list[list[LogLine]] = []


def _tell(line: LogLine) -> None:
    for lines in _open:
        lines.append(line)


@contextlib.contextmanager
def _collected(ort: Any) -> Iterator[None]:
    if hasattr(ort, "set_default_logger_callback"):

        def take(severity: int, category: str, logid: str, place: str, text: str) -> None:
            _tell(LogLine(severity, place, text))

        ort.set_default_logger_callback(take)
        try:
            yield
        finally:
            ort.set_default_logger_callback(None)
        return
    with _diverted_stderr() as read:
        try:
            yield
        finally:
            for line in parse(read()):
                _tell(line)


@contextlib.contextmanager
def _diverted_stderr() -> Iterator[Any]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            others = [x for x in read().splitlines(keepends=True) if not _is_ours(x)]
            if others:
                os.write(2, "".join(others).encode())


def _is_ours(line: str) -> bool:
    plain = _COLOUR.sub("", line)
    return not plain.strip() or _LINE.search(plain) is not None


def parse(text: str) -> list[LogLine]:
    """Messages out of what onnxruntime writes to stderr; lines that are none of its are left out."""
    found = []
    for line in _COLOUR.sub("", text).splitlines():
        match = _LINE.search(line)
        if match:
            letter, place, words = match.groups()
            found.append(LogLine(_LETTERS.index(letter), place, words))
    return found
