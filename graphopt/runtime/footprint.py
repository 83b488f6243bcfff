"""How much memory a model takes while it is loaded and run, measured in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from graphopt.runtime.measure import Plan
from graphopt.runtime.session import Source, Translated, open_session
from graphopt.runtime.values import Feeds

_STATUS: Final = Path("/proc/self/status")
_TIMEOUT: Final = 300.0
_RUNS: Final = 2


class _Unpacked:
    """A session source that came out of a file."""

    def __init__(self, proto: bytes, folder: str | None) -> None:
        self.proto, self.folder = proto, folder


def footprint(source: Source, feeds: Sequence[Feeds], plan: Plan) -> int | None:
    """Bytes of memory that loading and running a model adds at most, on the host.

    Weights that are mapped from a file count as far as they are read.

    Returns:
        None where the system does not tell (it is Linux that does), or the model does not run.
    """
    if not _STATUS.exists():
        return None
    while isinstance(source, Translated):
        source = source.source
    if isinstance(source, bytes):
        packed: tuple[bytes, str | None] = (source, None)
    elif isinstance(source, onnx.ModelProto):
        packed = (source.SerializeToString(), None)
    else:
        packed = (source.proto, str(source.folder) if source.folder is not None else None)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        file = Path(folder) / "run.pickle"
        file.write_bytes(pickle.dumps((packed, [dict(f) for f in feeds], plan)))
        with contextlib.suppress(subprocess.SubprocessError, OSError, ValueError):
            done = subprocess.run(
                [sys.executable, "-m", "graphopt.runtime.footprint", str(file)],
                capture_output=True,
                text=True,
                check=True,
                timeout=_TIMEOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
            return int(done.stdout.split()[-1])
    return None


def _measure(packed: tuple[bytes, str | None], feeds: Sequence[Any], plan: Plan) -> int:
    from graphopt.runtime.session import onnxruntime

    onnxruntime()
    # A tiny session first, so that what onnxruntime itself takes is there already.
    tiny = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g(float[1] x) => (float[1] y) { y = Neg(x) }'
    )
    with open_session(tiny, provider=plan.provider, settings=plan.settings):
        pass
    before = _kilobytes("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    with open_session(
        _Unpacked(*packed),
        optimize=plan.optimize,
        threads=plan.threads,
        provider=plan.provider,
        settings=plan.settings,
    ) as session:
        for _ in range(_RUNS):
            for given in feeds:
                session.run(given)
    return max(_kilobytes("VmHWM") - before, 0) * 1024


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"the system does not tell {name}")


if __name__ == "__main__":
    # Written by the process that started this one.
    sys.stdout.write(f"{_measure(*pickle.loads(Path(sys.argv[1]).read_bytes()))}\n")
