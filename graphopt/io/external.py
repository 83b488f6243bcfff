"""External data: which file a tensor may refer to, and which bytes of it.

The rules are onnx 1.23's own, and they are checked before anything is read: a model must not be able
to pull the content of other files into what graphopt writes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import onnx

from graphopt.errors import ExternalDataError
from graphopt.io.dtypes import stored_nbytes
from graphopt.io.sources import FileSource, Region, Sources

_KEYS: Final = frozenset({"location", "offset", "length", "checksum", "basepath"})
_TRUST: Final = "if you trust this model, pass --trust-external-paths (trust_external_paths=True)"


class ExternalFiles:
    """Resolves the external data of one model, after checking that the model may have it.

    Args:
        model: path of the model file as it was named; None for a model without a file.
        sources: where opened files are registered.
        trust: allow locations outside the model's folder, links, and hard-linked files.
    """

    def __init__(self, model: Path | None, sources: Sources, trust: bool = False) -> None:
        self._model = model
        self._sources = sources
        self._trust = trust
        self._resolved: dict[str, FileSource] = {}
        self._taken: dict[FileSource, list[tuple[int, int, str]]] = {}
        if model is not None:
            self._folder = Path(os.path.abspath(model)).parent
            # A model cache hands out links: the data then lies beside the link or beside its target.
            target = Path(os.path.realpath(model))
            self._linked = model.is_symlink()
            self._roots = [Path(os.path.realpath(self._folder))]
            if self._linked:
                self._roots.append(target.parent)

    @property
    def used(self) -> bool:
        """Some tensor of the model has external data."""
        return bool(self._resolved)

    def region(self, tensor: onnx.TensorProto) -> Region:
        """Where the data of an external tensor is.

        Raises:
            ExternalDataError: the reference breaks one of the rules; the message names tensor and file.
        """
        entries = self._entries(tensor)
        source = self._source(tensor, entries["location"])
        size = _byte_size(tensor)
        offset = _number(tensor, entries, "offset") or 0
        length = _number(tensor, entries, "length")
        if length is not None and length != size:
            raise _error(
                tensor,
                f"has {length} bytes of external data, but its shape {list(tensor.dims)} and "
                f"element type need {size}",
            )
        if offset + size > source.size:
            raise _error(
                tensor,
                f"needs bytes {offset} to {offset + size} of {entries['location']!r}, which has only "
                f"{source.size}",
                "the data file is cut off or belongs to another model: fetch or export both again",
            )
        if size:
            self._taken.setdefault(source, []).append((offset, offset + size, tensor.name))
        return Region(source, offset, size)

    def check_overlaps(self) -> None:
        """Tensors may share one region exactly; two that overlap in part are refused.

        Raises:
            ExternalDataError: two tensors' data overlap in part.
        """
        for source, spans in self._taken.items():
            spans.sort()
            reach, holder = spans[0], spans[0]
            for span in spans[1:]:
                if span[0] < reach[1] and span[:2] != holder[:2]:
                    raise ExternalDataError(
                        f"the external data of tensors {holder[2]!r} and {span[2]!r} overlap in part "
                        f"in {source.path}",
                        where=str(self._model),
                        fix="export the model again; no writer lays tensors out like this",
                    )
                if span[1] > reach[1]:
                    reach = span
                holder = span

    def _entries(self, tensor: onnx.TensorProto) -> dict[str, str]:
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key.startswith("prepacked"):
                continue  # onnxruntime's own copy of the weights in a layout of its kernels
            if entry.key not in _KEYS:
                raise _error(
                    tensor,
                    f"has external data with the unknown key {entry.key[:100]!r}",
                    f"known keys: {', '.join(sorted(_KEYS))}",
                )
            if entry.key in entries:
                raise _error(tensor, f"has external data with the key {entry.key!r} twice")
            entries[entry.key] = entry.value
        if not entries.get("location"):
            raise _error(tensor, "has external data without a location")
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            if len(getattr(tensor, field)):
                raise _error(tensor, f"has both external data and {field}")
        return entries

    def _source(self, tensor: onnx.TensorProto, location: str) -> FileSource:
        source = self._resolved.get(location)
        if source is None:
            source = self._sources.file(self._check(tensor, location))
            self._resolved[location] = source
        return source

    def _check(self, tensor: onnx.TensorProto, location: str) -> Path:
        """The real path of a location that the model may refer to."""
        if self._model is None:
            raise _error(
                tensor,
                "has external data, but the model was not loaded from a file",
                "load the model from its path, or load its external data first",
            )
        if "\0" in location:
            raise _error(tensor, "has external data with a malformed location")
        path = self._folder / location
        if not self._trust:
            windows = PureWindowsPath(location)
            if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
                raise _error(tensor, f"refers to external data by absolute path {location!r}", _TRUST)
            if ".." in PurePosixPath(location).parts or ".." in windows.parts:
                raise _error(
                    tensor, f"refers to external data outside the model's folder: {location!r}", _TRUST
                )
        try:
            real = path.resolve(strict=True)
            status = real.stat()
        except FileNotFoundError:
            candidate = self._roots[-1] / location
            if not (self._linked and candidate.exists()):
                raise _error(
                    tensor,
                    f"has its data in {location!r}, which does not exist in {self._folder}",
                    "put the data file beside the model under exactly this name",
                ) from None
            path, real = candidate, candidate.resolve()
            status = real.stat()
        except (OSError, RuntimeError) as error:
            raise _error(tensor, f"has its data in {location!r}, which cannot be read: {error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise _error(tensor, f"refers to external data {location!r}, which is not a regular file")
        if not self._trust:
            if not any(real.is_relative_to(root) for root in self._roots):
                raise _error(
                    tensor,
                    f"refers to external data {location!r}, which is really {real}, outside the "
                    "model's folder",
                    _TRUST,
                )
            if path.is_symlink() and not self._linked:
                raise _error(tensor, f"refers to external data {location!r}, which is a link", _TRUST)
            if status.st_nlink > 1 and not self._linked:
                raise _error(
                    tensor,
                    f"refers to external data {location!r}, which has {status.st_nlink} hard links and "
                    "so may be a file from elsewhere",
                    f"Copy the file. {_TRUST}",
                )
        return real


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _error(tensor, f"has external data with {key} {text[:40]!r}, which is no byte count")
    return int(text)


def _byte_size(tensor: onnx.TensorProto) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise _error(tensor, f"has a negative dimension: {list(tensor.dims)}")
    size = stored_nbytes(tensor.data_type, tensor.dims)
    if size is None:
        raise _error(tensor, f"has element type {tensor.data_type}, which cannot be external data")
    return size


def _error(tensor: onnx.TensorProto, what: str, fix: str | None = None) -> ExternalDataError:
    return ExternalDataError(f"tensor {tensor.name!r} {what}", fix=fix)
