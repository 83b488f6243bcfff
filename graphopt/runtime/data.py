"""Inputs that the user hands in: arrays, .npz and .npy files, folders of them, ONNX test data sets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.errors import UserError
from graphopt.runtime.inputs import ProbeSet
from graphopt.runtime.values import Array, Feeds

Data: TypeAlias = str | Path | Feeds | Iterable[Feeds]

_MOST_SETS = 16


def load_data(data: Data, names: list[str], optional: Iterable[str] = ()) -> list[ProbeSet]:
    """Read feeds.

    Files often hold more than the inputs, labels for example. Once every input is there, arrays of other
    names are left out; before that, a name that is no input is more likely a misspelt one, and stays for
    the caller to complain about.

    Args:
        data: an .npz file whose keys are input names; a folder of such files, of one .npy file per input,
            or of `input_0.pb` ... as the ONNX test suite has them; feeds, or several of them.
        names: the model's inputs, in order (for data that has no names).
        optional: further names that may be fed: overridable initializers.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    if isinstance(data, Mapping):
        return [ProbeSet(data, source="data")]
    if not isinstance(data, str | Path):
        return [ProbeSet(feeds, source=f"data #{i}") for i, feeds in enumerate(data)]
    path = Path(data)
    if not path.exists():
        raise UserError("no such file or folder", where=str(path))
    sets = _folder(path, names) if path.is_dir() else [_file(path, names)]
    if not sets:
        raise UserError(
            "no inputs found",
            where=str(path),
            fix="expected .npz files, one .npy per input, or input_*.pb files",
        )
    known = {*names, *optional}
    return [_inputs_only(s, names, known) for s in sets[:_MOST_SETS]]


def _inputs_only(given: ProbeSet, names: list[str], known: set[str]) -> ProbeSet:
    if not all(name in given.feeds for name in names):
        return given
    return replace(given, feeds={name: value for name, value in given.feeds.items() if name in known})


def _file(path: Path, names: list[str]) -> ProbeSet:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ProbeSet({names[0]: loaded}, source=str(path))
        with loaded:
            return ProbeSet({name: loaded[name] for name in loaded.files}, source=str(path))
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        # numpy takes what it does not know for pickled data, which is code and is never loaded.
        what = "it is neither .npz nor .npy" if "pickle" in str(e) else str(e)
        raise UserError(
            f"not readable as numpy data: {what}",
            where=str(path),
            fix="as in: numpy.savez(path, image=array)",
        ) from e


def _folder(path: Path, names: list[str]) -> list[ProbeSet]:
    files = sorted(path.glob("*.npz"))
    if files:
        return [_file(f, names) for f in files[:_MOST_SETS]]
    arrays = sorted(path.glob("*.npy"))
    if arrays:
        return [ProbeSet({f.stem: _file(f, [f.stem]).feeds[f.stem] for f in arrays}, source=str(path))]
    if any(path.glob("input_*.pb")):
        return [_test_data(path, names)]
    nested = sorted(p for p in path.iterdir() if p.is_dir() and any(p.glob("input_*.pb")))
    return [_test_data(p, names) for p in nested[:_MOST_SETS]]


def _test_data(path: Path, names: list[str]) -> ProbeSet:
    feeds: dict[str, Array] = {}
    for i, name in enumerate(names):
        file = path / f"input_{i}.pb"
        if not file.exists():
            continue
        try:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            feeds[tensor.name or name] = numpy_helper.to_array(tensor)
        except Exception as e:  # protobuf's and onnx's errors have no common base
            raise UserError(f"not a TensorProto: {e}", where=str(file)) from e
    return ProbeSet(feeds, source=str(path))
