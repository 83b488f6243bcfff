"""Run one command and account for the whole process: CPU time, wall time, peak memory.

Standard library only, and on purpose: the kernel starts a child's peak memory at its parent's, so the
process that measures must stay small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Usage:
    """What one process cost.

    Attributes:
        status: its exit status; None when it was killed at the time limit.
        cpu: user and system seconds, including those of children that it waited for.
        wall: seconds from start to end, to 20 ms.
        peak_mb: largest resident set, including the pages of mapped files.
        anonymous_mb: largest resident set without mapped files, sampled every 20 ms.
        output: the end of its stdout and stderr.
    """

    status: int | None
    cpu: float
    wall: float
    peak_mb: float
    anonymous_mb: float
    output: str

    @property
    def failed(self) -> bool:
        """It ended with an error, or had to be killed."""
        return self.status != 0


def _anonymous_kb(pid: int) -> int:
    """Resident anonymous memory of a process right now; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:")), 0)


def run(command: Sequence[str], *, timeout: float) -> Usage:
    """Run `command` to its end, or kill its process group after `timeout` seconds."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        anonymous = 0
        killed = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max(anonymous, _anonymous_kb(process.pid))
            if not killed and time.perf_counter() - start > timeout:
                killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
        output = log.read().decode(errors="replace")
    return Usage(
        status=None if killed else process.returncode,
        cpu=usage.ru_utime + usage.ru_stime,
        wall=wall,
        peak_mb=usage.ru_maxrss / 1024,
        anonymous_mb=anonymous / 1024,
        output=output.strip(),
    )
