"""Bytes to a parsed model with its weights lifted out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnx.defs
from google.protobuf.message import DecodeError

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.io import wire
from graphopt.io.external import ExternalFiles
from graphopt.io.importer import import_model, opset_imports
from graphopt.io.sources import Source, Sources
from graphopt.io.tensors import TensorReader, Tickets, lift

#: First bytes of files that people take for ONNX models -> what they are and what to do.
_LOOKALIKES: Final = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)", "export it: torch.onnx.export"),
    (0, b"\x80\x02", "a Python pickle", "export the model: torch.onnx.export"),
    (4, b"ORTM", "an ORT-format model", "name the .onnx file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it: python -m tf2onnx.convert --tflite"),
    (0, b"\x89HDF", "an HDF5 file", "convert the model: python -m tf2onnx.convert"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
)


@dataclass
class Loaded:
    """What a model file holds.

    Attributes:
        graph: the main body.
        origin: the ModelProto without graph and functions.
        sources: the files and buffers that weights are read from.
        had_external: some weights were in external data files.
    """

    graph: ir.Graph
    origin: onnx.ModelProto
    sources: Sources
    had_external: bool


def load_file(path: Path, trust_external_paths: bool) -> Loaded:
    """Read a model file.

    Raises:
        ModelError: it does not exist, is no model, or breaks a rule of external data.
    """
    if not path.exists():
        raise ModelError("there is no such file", where=str(path))
    if not path.is_file():
        raise ModelError("is not a file", where=str(path), fix="name the .onnx file itself")
    sources = Sources()
    source = sources.file(Path(os.path.realpath(path)))
    if not source.size:
        raise ModelError("the file is empty", where=str(path))
    return _load(source, sources, path, trust_external_paths)


def load_proto(proto: onnx.ModelProto) -> Loaded:
    """Take over a ModelProto; later changes to it do not matter.

    Raises:
        ModelError: it is no complete model, or refers to external data.
    """
    sources = Sources()
    try:
        data = proto.SerializeToString()
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            "a ModelProto of more than 2 GiB cannot be serialized",
            fix="save it with external data and load it from its path",
        ) from error
    return _load(sources.buffer(data), sources, None, False)


def _load(source: Source, sources: Sources, path: Path | None, trust: bool) -> Loaded:
    tickets = Tickets()
    try:
        data, regions = lift(source, tickets)
    except wire.WireError as error:
        raise _not_a_model(source, path, error) from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data if isinstance(data, bytes) else bytes(data))
    except DecodeError as error:
        raise _not_a_model(source, path, None) from error
    del data
    if not proto.HasField("graph") or not proto.ir_version:
        raise _not_a_model(source, path, None)
    try:
        _check_versions(proto)
        external = ExternalFiles(path, sources, trust)
        graph = import_model(proto, TensorReader(tickets, regions, external))
        external.check_overlaps()
    except ModelError as error:
        if error.where is None and path is not None:
            raise type(error)(error.what, where=str(path), fix=error.fix) from error
        raise
    return Loaded(graph, proto, sources, external.used)


def _check_versions(proto: onnx.ModelProto) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {proto.ir_version}, newer than the {onnx.IR_VERSION} that the "
            f"installed onnx {onnx.__version__} knows",
            fix="upgrade the onnx package, or export the model for an older IR version",
        )
    newest = {
        "": onnx.defs.onnx_opset_version(),
        "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()
        if hasattr(onnx.defs, "onnx_ml_opset_version")
        else None,
    }
    for domain, version in opset_imports(proto.opset_import).items():
        limit = newest.get(domain)
        if limit is not None and version > limit:
            raise ModelError(
                f"the model needs opset {version} of {domain or 'ai.onnx'}, newer than the {limit} that the "
                f"installed onnx {onnx.__version__} knows",
                fix="upgrade the onnx package, or export the model for an older opset",
            )


def _not_a_model(source: Source, path: Path | None, error: wire.WireError | None) -> ModelError:
    where = None if path is None else str(path)
    head = bytes(source.view(0, min(source.size, 64)))
    for at, magic, what, fix in _LOOKALIKES:
        if head[at : at + len(magic)] == magic:
            return ModelError(f"this is {what}, not an ONNX model", where=where, fix=fix)
    # Every exporter writes the IR version first: such a file began as a model.
    if error is not None and error.truncated and head[:1] == b"\x08":
        return ModelError(
            f"the file is truncated: it ends after {source.size} bytes, inside a field",
            where=where,
            fix="copy, download or export it again",
        )
    return ModelError(
        "this is not an ONNX model", where=where, fix="name the .onnx file that an exporter wrote"
    )


def data_locations(path: Path) -> set[str]:
    """Locations of the external data that a file refers to; none when it is no readable model."""
    return {entries["location"] for entries in _external_entries(path) if "location" in entries}


def data_checksums(path: Path) -> dict[str, set[str]]:
    """The SHA-1 digests that a file states of its external data, by location; usually there are none."""
    found: dict[str, set[str]] = {}
    for entries in _external_entries(path):
        if "location" in entries and "checksum" in entries:
            found.setdefault(entries["location"], set()).add(entries["checksum"].lower())
    return found


def _external_entries(path: Path) -> Iterator[dict[str, str]]:
    """What each tensor with external data says of it."""
    try:
        sources = Sources()
        data, _ = lift(sources.file(path), Tickets())
        proto = onnx.ModelProto()
        serialized = data if isinstance(data, bytes) else bytes(data)
        if b"location" not in serialized:
            return
        proto.ParseFromString(serialized)
    except (ModelError, DecodeError):
        return
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):
            if message.external_data:
                yield {entry.key: entry.value for entry in message.external_data}
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend(value if field.is_repeated else (value,))
