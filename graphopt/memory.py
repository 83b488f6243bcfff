"""A bound on the memory of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from graphopt.errors import UserError


@contextlib.contextmanager
def memory_limited(limit: int | None) -> Iterator[None]:
    """Bound the memory that this process may allocate; mapped files do not count.

    Args:
        limit: bytes; None for no bound.

    Raises:
        UserError: the limit is reached, or this system has no such limits.
    """
    if limit is None:
        yield
        return
    try:
        import resource
    except ImportError as e:
        raise UserError("--memory-limit needs a Unix system", fix="run without it") from e
    old = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, old[1]))
    try:
        yield
    except Exception as e:
        if not _ran_out_of_memory(e):
            raise
        raise UserError(
            f"the memory limit of {limit / 1e9:.3g} GB is reached", fix="raise --memory-limit"
        ) from e
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what led to it, is a failed allocation, by whatever name its library calls it."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


# onnxruntime (while it is imported), and protobuf.
_OUT_OF_MEMORY = ("std::bad_alloc", "Failed to serialize proto")
