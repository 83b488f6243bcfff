"""Which source a path is; .npz and .npy files, folders of them, ONNX test data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from graphopt.calibration.data import images
from graphopt.calibration.data.columns import npy_column, npz_columns
from graphopt.calibration.data.records import Lines, is_lines
from graphopt.calibration.data.samples import missing_inputs
from graphopt.calibration.data.source import Record, Source, Table
from graphopt.errors import UserError

_EXPECTED = "expected .npz files, .npy files, or input_*.pb files"


def open_path(path: Path, names: Sequence[str]) -> Source:
    """The source that a file or folder is.

    Args:
        path: where it is.
        names: the model's inputs, in order (for data that has no names).

    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise UserError("no such file or folder", where=str(path))
    if path.is_dir():
        return _folder(path, names)
    if path.suffix.lower() in images.SUFFIXES:
        raise _undescribed(path)
    if path.suffix.lower() == ".toml":
        return images.Images(path, names)
    if is_lines(path):
        return Lines(path)
    if path.suffix == ".npy":
        if len(names) != 1:
            raise UserError(
                f"the model has {len(names)} inputs, an .npy file holds one array",
                where=str(path),
                fix=f"use an .npz file with the arrays {', '.join(names)}",
            )
        return Table(str(path), lambda: {names[0]: npy_column(path)})
    return Table(str(path), lambda: npz_columns(path))


class _Files(Source):
    """A record per file."""

    quick = True

    def __init__(self, folder: Path, files: Sequence[Path], names: Sequence[str]) -> None:
        self.name, self._files, self._names = str(folder), files, names

    def records(self) -> Iterator[Record]:
        """The files, sorted by name."""
        for file in self._files:
            yield Record(str(file), self._read(file))

    def _read(self, file: Path) -> Mapping[str, Any]:
        if file.suffix == ".npy":
            return {self._names[0]: npy_column(file)}
        return npz_columns(file) if file.suffix == ".npz" else _test_data(file, self._names)


def _folder(path: Path, names: Sequence[str]) -> Source:
    files = sorted(path.glob("*.npz"))
    if files:
        return _Files(path, files, names)
    arrays = sorted(path.glob("*.npy"))
    if arrays:
        stems = [f.stem for f in arrays]
        if any(n in stems for n in names):
            return Table(str(path), lambda: {f.stem: npy_column(f) for f in arrays})
        if len(names) == 1:
            return _Files(path, arrays, names)
        raise missing_inputs(names, stems, str(path))
    sets = [path] if any(path.glob("input_*.pb")) else sorted(p for p in path.iterdir() if p.is_dir())
    sets = [p for p in sets if any(p.glob("input_*.pb"))]
    if sets:
        return _Files(path, sets, names)
    if any(f.suffix.lower() in images.SUFFIXES for f in path.rglob("*")):
        raise _undescribed(path)
    raise UserError("no inputs found", where=str(path), fix=_EXPECTED)


def _undescribed(path: Path) -> UserError:
    return UserError(
        "images alone do not say how they become inputs",
        where=str(path),
        fix="describe it in a data TOML file, and hand that in (see docs/data.md)",
    )


def _test_data(path: Path, names: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i, name in enumerate(names):
        file = path / f"input_{i}.pb"
        if not file.exists():
            continue
        try:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            values[tensor.name or name] = numpy_helper.to_array(tensor)
        except Exception as e:  # protobuf's and onnx's errors have no common base
            raise UserError(f"not a TensorProto: {e}", where=str(file)) from e
    return values
