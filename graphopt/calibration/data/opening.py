"""open_dataset: from what the user named to samples that fit the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx

from graphopt.calibration.data.dataset import Dataset, PortLike, Sample, as_port
from graphopt.calibration.data.files import open_path
from graphopt.calibration.data.function import Function, is_function, load_callable
from graphopt.calibration.data.samples import Fitter
from graphopt.calibration.data.source import Items, Source, Table
from graphopt.errors import UserError

#: A path, "module:function", "synthetic:N"; arrays by name; samples, or a function that makes them.
DataSpec: TypeAlias = (
    str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[..., Any] | Dataset
)

_SYNTHETIC = re.compile(r"synthetic(?::(\d+))?")


class _Fitted(Dataset):
    """The records of a source as samples."""

    def __init__(self, source: Source, fitter: Fitter) -> None:
        super().__init__(source.name)
        self._source, self._fitter = source, fitter
        self._size: int | None = None

    @property
    def size(self) -> int | None:
        """From the sources' headers, where those are quick to read."""
        if self._source.count is not None:
            return self._source.count
        if self._size is None and self._source.quick:
            self._size = sum(map(self._fitter.count, self._source.records()))
        return self._size

    def __iter__(self) -> Iterator[Sample]:
        for record in self._source.records():
            yield from self._fitter.samples(record)


def open_dataset(
    spec: DataSpec,
    ports: Sequence[PortLike],
    overridable: Sequence[PortLike] = (),
    *,
    model: onnx.ModelProto | None = None,
    strict: bool = True,
) -> Dataset:
    """Data as samples that fit a model's inputs.

    Args:
        spec: a path (.npz, .npy, .jsonl, a folder of those, an ONNX test data set, a data .toml file);
            "module:function" or "file.py:function"; "synthetic" or "synthetic:N"; arrays by name, of which
            axis 0 counts samples; several such mappings; a function that returns them; or a Dataset.
        ports: the model's inputs.
        overridable: initializers that may be fed as well.
        model: for synthetic data only; initializers may be stripped of their data.
        strict: every input must be there, and every float finite.

    Raises:
        UserError: there is nothing of that name, or what is found first cannot be read. Samples are read, and
            checked, while the dataset is iterated.
    """
    if isinstance(spec, Dataset):
        return spec
    fitter = Fitter([as_port(p) for p in ports], [as_port(p) for p in overridable], strict)
    if isinstance(spec, str | Path):
        text = str(spec)
        match = _SYNTHETIC.fullmatch(text)
        if match and not Path(text).exists():
            if model is None:
                raise ValueError("synthetic data needs the model")
            from graphopt.calibration.data.synthetic import Synthetic

            return Synthetic(model, int(match[1] or 32))
        if text.startswith("synthetic:") and not Path(text).exists():
            raise UserError(f"--data {text!r} does not say how many", fix="as in: --data synthetic:32")
        if is_function(text) and not Path(text).exists():
            return _Fitted(Function(text, load_callable(text)), fitter)
        return _Fitted(open_path(Path(text), fitter.required), fitter)
    if isinstance(spec, Mapping):
        return _Fitted(Table("data", lambda: spec), fitter)
    if callable(spec):
        return _Fitted(Function(str(getattr(spec, "__name__", spec)), spec), fitter)
    if strict and iter(spec) is spec:
        raise UserError(
            "an iterator can be read only once, and the data is needed more often",
            fix="hand in a list, or the function that makes the iterator",
        )
    return _Fitted(Items("data", spec), fitter)
