"""Writing text files so that a failure leaves what was there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from graphopt.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name beside it, and rename it.

    Raises:
        UserError: it cannot be written; nothing was changed.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=target.parent, prefix=".graphopt-", delete=False
        ) as stream:
            temporary = Path(stream.name)
            stream.write(text)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise UserError(
            f"cannot be written: {error.strerror or error}. Nothing was changed.", where=str(path)
        ) from error


def _umask() -> int:
    """The permissions that new files do not get (temporary files have none for others)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
