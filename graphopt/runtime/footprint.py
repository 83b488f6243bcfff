"""Memory that loading and running a model adds to a process, measured in one of its own.

The model is loaded from its file, as programs load it, not the way graphopt does, which maps weights. What
counts is the peak of the resident memory of the host: a device's own memory is not in it, mapped files are as
far as they were read.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graphopt.errors import GraphOptError
from graphopt.runtime.providers import AS_DEPLOYED, CPU, ProviderSettings
from graphopt.runtime.session import Optimize, RuntimeFailure, Session, create, onnxruntime, session_options
from graphopt.runtime.values import Value

_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")
_MARK: Final = b"\0graphopt footprint\0"


@dataclass(frozen=True)
class Footprint:
    """What a model takes.

    Attributes:
        loaded: bytes that the process holds more once the model is loaded.
        peak: bytes that it held more at most, while loading or running.
    """

    loaded: int
    peak: int


class NotMeasurable(GraphOptError):
    """The memory of a process cannot be measured on this system, or the process did not end well."""


def footprint(
    path: str | Path,
    feeds: Sequence[Mapping[str, Value]],
    *,
    provider: str = CPU,
    threads: int = 1,
    optimize: Optimize = "all",
    settings: ProviderSettings = AS_DEPLOYED,
    timeout: float = 600,
) -> Footprint:
    """Load a model in a new process, run it once on each of `feeds`, and see how far its memory grew.

    Args:
        path: the model's file.
        feeds: inputs, run in turn.
        provider: execution provider, by onnxruntime's name.
        threads: threads within an operator.
        optimize: onnxruntime's graph optimization level.
        settings: the provider's options.
        timeout: seconds, after which the process is ended.

    Raises:
        RuntimeFailure: the model does not load or run.
        NotMeasurable: this system does not say, or the process crashed.
    """
    if not _STATUS.exists():
        raise NotMeasurable("this system does not tell the peak memory of a process")
    job = {
        "path": os.path.abspath(path),  # a link stays one: the data may lie beside it
        "feeds": [dict(given) for given in feeds],
        "provider": provider,
        "threads": threads,
        "optimize": optimize,
        "settings": settings,
    }
    code = "from graphopt.runtime.footprint import _child; _child()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            input=pickle.dumps(job),
            capture_output=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasurable(f"the model did not run within {timeout:g} seconds") from error
    _, mark, answer = done.stdout.rpartition(_MARK)
    if done.returncode or not mark:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NotMeasurable(f"the process that ran the model ended with {how}: {' '.join(said)}".rstrip(": "))
    found: Any = pickle.loads(answer)
    if isinstance(found[0], str):  # exceptions do not survive being pickled
        raise RuntimeFailure(*found)
    return Footprint(*found)


def _child() -> None:
    """In the new process: measure, and write the answer to stdout."""
    job: Any = pickle.loads(sys.stdin.buffer.read())
    try:
        answer: Any = _measure(**job)
    except RuntimeFailure as failure:
        answer = (failure.kind, failure.message)
    except (GraphOptError, MemoryError) as error:
        answer = ("load", str(error))
    sys.stdout.buffer.write(_MARK + pickle.dumps(answer))
    sys.stdout.buffer.flush()


def _measure(
    path: str,
    feeds: Sequence[Mapping[str, Value]],
    provider: str,
    threads: int,
    optimize: Optimize,
    settings: ProviderSettings,
) -> tuple[int, int]:
    ort = onnxruntime()
    options = session_options(optimize=optimize, threads=threads)
    _RESET.write_text("5")  # from now on the peak starts at what is held
    before = _memory("VmRSS")
    raw = create(ort, path, options, provider, settings)
    loaded = _memory("VmRSS")
    with Session(raw, provider, optimize) as session:
        for given in feeds:
            session.run(given)
        return loaded - before, _memory("VmHWM") - before


def _memory(what: str) -> int:
    """A figure of this process in bytes."""
    for line in _STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == what:
            return int(rest.split()[0]) * 1024
    raise NotMeasurable(f"this system does not tell {what}")
