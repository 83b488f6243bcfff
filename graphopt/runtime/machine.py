"""What the machine is, in words for a report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from graphopt.runtime.providers import NVIDIA, ProviderSettings

_TIMEOUT: Final = 20.0


def machine(provider: str, settings: ProviderSettings) -> str:
    """The processor and, under NVIDIA's providers, the GPU with its driver."""
    words = f"{_processor()}, {len(processors())} processors"
    gpu = _gpu(settings) if provider in NVIDIA else ""
    return f"{words}; {gpu}" if gpu else words


def processors() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load() -> float | None:
    """How many processes want to run, over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _gpu(settings: ProviderSettings) -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    number = str(settings.device_id or settings.other.get("device_id", 0))
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    try:
        done = subprocess.run(
            [tool, query, "--format=csv,noheader", "-i", number],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
        )
    except (subprocess.SubprocessError, OSError):
        return ""
    name, driver, arch, memory = [w.strip() for w in done.stdout.strip().splitlines()[0].split(",")]
    return f"{name} ({memory}, compute capability {arch}, driver {driver})"
