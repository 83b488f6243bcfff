"""JSON lines: one sample per line, as an object from input names to values."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.calibration.data.source import Record, Source
from graphopt.errors import UserError

#: How files with JSON lines are called; each may end in `.gz` in addition.
SUFFIXES = (".jsonl", ".ndjson")

_FIELDS = {"data", "shape", "dtype"}


def is_lines(path: Path) -> bool:
    """Whether the file's name says that it holds JSON lines."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


class Lines(Source):
    """A file of JSON lines, read line by line.

    A value is a nested list (a number, for a scalar), which gets the input's dtype; or an object with
    `data` (flat or nested), and optionally `shape` and `dtype`.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def records(self) -> Iterator[Record]:
        """A record per line; empty lines are passed over."""
        try:
            with self._open() as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield self._record(number, line)
        except (OSError, EOFError, UnicodeDecodeError) as e:
            raise UserError(f"not readable as JSON lines: {e}", where=self.name) from e

    def _open(self) -> IO[str]:
        if self._path.suffix.lower() == ".gz":
            return gzip.open(self._path, "rt", encoding="utf-8")
        return self._path.open(encoding="utf-8")

    def _record(self, number: int, line: str) -> Record:
        where = f"{self.name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"not JSON: {e}", where=where, fix="each line is one object") from e
        if not isinstance(values, Mapping):
            raise UserError(
                f"a line is an object from input names to values, not {type(values).__name__}",
                where=where,
                fix='as in: {"image": [[0.1, 0.2], [0.3, 0.4]]}',
            )
        return Record(where, {name: _value(name, v, where) for name, v in values.items()})


def _value(name: str, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "data" not in value or set(value) - _FIELDS:
        raise UserError(
            f"{name!r} is an object with {', '.join(map(repr, value)) or 'nothing in it'}",
            where=where,
            fix="an object holds data, and optionally shape and dtype",
        )
    return _array(name, value, where)


def _array(name: str, value: Mapping[str, Any], where: str) -> Any:
    data, dtype, shape = value["data"], value.get("dtype"), value.get("shape")
    try:
        if dtype is None:
            if shape is None:
                return data
            flat = np.asarray(data)
            # The dtype stays open: lists get the input's.
            return flat.reshape(_checked(shape, flat.size)).tolist()
        array = np.asarray(data, dtype=np.dtype("object" if dtype == "string" else dtype))
        return array if shape is None else array.reshape(_checked(shape, array.size))
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{name!r} is not an array: {e}", where=where) from e


def _checked(shape: Any, size: int) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(isinstance(d, int) and d >= 0 for d in shape):
        raise ValueError(f"shape {shape!r} is no list of sizes")
    if math.prod(shape) != size:
        raise ValueError(f"shape {shape} needs {math.prod(shape)} values, there are {size}")
    return tuple(shape)
