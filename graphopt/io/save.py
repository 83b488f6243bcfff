"""Writing a model so that a crash or a full disk never leaves half of one.

Data first, under a name that nothing uses; then the model under a temporary name; both are synced to
disk; then the model takes its place in one rename, which is the commit. What it replaced goes last.
Weight bytes are copied from file to file by the kernel and never loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx
from google.protobuf.message import EncodeError

from graphopt.errors import ModelError, UserError
from graphopt.io import wire
from graphopt.io.loading import data_locations
from graphopt.io.placement import Data, External, Placement, Ticketed, size_of
from graphopt.io.sources import OPEN_FLAGS, Region, Sources, write_all

#: Protobuf's limit on one message.
MAX_MESSAGE: Final = (1 << 31) - 1

Export: TypeAlias = Callable[[Placement], onnx.ModelProto]


@dataclass(frozen=True)
class SavedFiles:
    """The files that a save wrote.

    Attributes:
        model: the model file.
        data: its external data files.
        nbytes: bytes of all of them.
    """

    model: Path
    data: tuple[Path, ...]
    nbytes: int


def save_model(
    path: Path, export: Export, sources: Sources, *, external: bool | None, overwrite: bool
) -> SavedFiles:
    """Write a model atomically.

    Args:
        path: the model file to write; a link is replaced, not followed.
        export: makes the ModelProto for a placement of the weights.
        sources: the sources of the model's weights; those that are replaced stay readable.
        external: weights in a data file beside the model; None: when the model passes 2 GiB without.
        overwrite: replace an existing file.

    Raises:
        UserError: it cannot be written; nothing has changed then.
    """
    path = Path(os.path.abspath(path))
    if not overwrite and os.path.lexists(path):
        raise UserError("the file exists already", where=str(path), fix="choose another name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError("is not a regular file", where=str(path), fix="choose a file name")
    real = Path(os.path.realpath(path))
    if any(source.path == real for source in sources.all[1:]):  # the first one is the model itself
        raise UserError(
            "is a data file that the model reads its weights from",
            where=str(path),
            fix="choose another name",
        )
    replaced = _replaced_data(path, sources)
    with _cleanup() as made:
        try:
            pieces: list[Any] = []
            if not external:
                pieces = _embedded(export)
                if sum(map(_length, pieces)) > MAX_MESSAGE:
                    if external is False:
                        raise UserError(
                            "the model has more than 2 GiB, which one file cannot hold",
                            where=str(path),
                            fix="save it with external data (--external-data)",
                        )
                    external = True
            data: tuple[Path, ...] = ()
            if external:
                pieces, data = _external(path, export, made)
            temporary = path.with_name(f".graphopt-{secrets.token_hex(8)}.tmp")
            fd = _create(temporary, like=path)
            made.temporary = temporary
            try:
                for piece in pieces:
                    _write(fd, piece)
                os.fsync(fd)
            finally:
                os.close(fd)
            going = {Path(os.path.realpath(file)) for file in (path, *replaced)}
            for source in sources.all:
                if source.path in going:
                    source.pin()
            os.replace(temporary, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
    _sync_folder(path.parent)
    for old in replaced:
        with contextlib.suppress(OSError):
            old.unlink()
    total = sum(file.stat().st_size for file in (path, *data))
    return SavedFiles(path, data, total)


def _embedded(export: Export) -> list[Any]:
    """The pieces of a model with all weights inside."""
    placement = Ticketed()
    return splice(_serialize(export(placement)), placement)


def splice(data: bytes, placement: Ticketed) -> list[Any]:
    """A serialized model with each ticket replaced by the data it stands for, as pieces."""
    prefix = placement.tickets.prefix
    places = []
    at = data.find(prefix)
    while at >= 0:
        places.append(at)
        at = data.find(prefix, at + 24)
    if not places:
        return [data]
    view = memoryview(data)

    def enter(start: int, stop: int) -> bool:
        nearest = bisect_left(places, start)
        return nearest < len(places) and places[nearest] < stop

    def swap(start: int, stop: int) -> tuple[Data, int] | None:
        index = placement.tickets.index(view[start:stop])
        if index is None:
            return None
        return placement.data[index], size_of(placement.data[index])

    return wire.substitute(view, enter, swap) or [data]


def _external(path: Path, export: Export, made: _Made) -> tuple[list[Any], tuple[Path, ...]]:
    """Write the data file. Returns the pieces of the model, and the files."""
    number = 0
    while True:
        name = f"{path.name}.data" if not number else f"{path.name}.{number}.data"
        file = path.with_name(name)
        number += 1
        try:
            fd = _create(file, like=path)
            break
        except FileExistsError:
            continue
    made.data.append(file)
    try:
        placement = External(name)
        model = _serialize(export(placement))
        position = 0
        for offset, data in placement.chunks:
            if offset > position:
                write_all(fd, memoryview(bytes(offset - position)))
            _write(fd, data)
            position = offset + size_of(data)
        os.fsync(fd)
    finally:
        os.close(fd)
    if not placement.chunks:  # nothing was large enough
        file.unlink()
        return [model], ()
    return [model], (file,)


def _serialize(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError, RuntimeError) as error:
        raise ModelError(
            "the model has more than 2 GiB besides its weights, which no file can hold"
        ) from error


def _write(fd: int, piece: Any) -> None:
    if isinstance(piece, Region):
        piece.source.copy_to(fd, piece.offset, piece.length)
    else:
        write_all(fd, memoryview(piece))


def _length(piece: Any) -> int:
    return piece.length if isinstance(piece, Region) else len(memoryview(piece).cast("B"))


def _create(file: Path, like: Path) -> int:
    """Create a file that must not exist, with the permissions of `like` if that does."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666)
    with contextlib.suppress(OSError, AttributeError):  # not every platform has fchmod
        os.fchmod(fd, stat.S_IMODE(os.stat(like).st_mode))
    return fd


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _replaced_data(path: Path, sources: Sources) -> list[Path]:
    """Data files of the model now at `path` that no other model can mean: named after it, beside it.

    When `path` is not the model being saved, what that one reads from stays.
    """
    if os.path.islink(path) or not os.path.isfile(path):
        return []
    in_use = {source.path for source in sources.all}
    if path.resolve() in in_use:
        in_use = set()
    found = []
    for location in data_locations(path):
        file = path.with_name(location)
        if (
            location == os.path.basename(location)
            and location.startswith(path.name)
            and location != path.name
            and file.is_file()
            and not file.is_symlink()
            and file.resolve() not in in_use
        ):
            found.append(file)
    return found


class _Made:
    """What a save has made so far."""

    def __init__(self) -> None:
        self.data: list[Path] = []
        self.temporary: Path | None = None


@contextlib.contextmanager
def _cleanup() -> Iterator[_Made]:
    """Remove what was made unless the commit has happened: then the temporary file is gone."""
    made = _Made()
    try:
        yield made
    finally:
        if made.temporary is None or made.temporary.exists():
            for file in (*made.data, made.temporary):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.unlink()


def _cannot_write(path: Path, error: OSError) -> UserError:
    fixes = {
        errno.ENOSPC: "free some space, or write to another disk",
        getattr(errno, "EDQUOT", None): "free some space, or write to another disk",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "choose a folder that you may write to",
        errno.ENOENT: "create the folder first",
        errno.ENOTDIR: "create the folder first",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    return UserError(
        f"cannot be written: {error.strerror or error}. Nothing was changed.",
        where=str(path),
        fix=fixes.get(error.errno),
    )
