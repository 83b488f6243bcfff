"""What keeps NVIDIA's execution providers from starting or running, and what to do about it.

onnxruntime tells little: when a library is missing it falls back to the CPU without an error. So its shared
object is asked which libraries it needs, and each of those is tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graphopt.errors import ProviderError, UserError
from graphopt.runtime.elf import needed
from graphopt.runtime.logs import LogLine
from graphopt.runtime.providers import CUDA, TENSORRT

_DRIVER: Final = "libcuda.so"
# Which of NVIDIA's packages brings a library: for CUDA 12 with "-cu12" behind it, from 13 on without.
_PACKAGES: Final = {
    "libcublas": "nvidia-cublas",
    "libcublasLt": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvJitLink": "nvidia-nvjitlink",
    "libcudnn": "nvidia-cudnn",
    "libnvinfer": "tensorrt",
    "libnvonnxparser": "tensorrt",
}
_SHARED_OBJECT: Final = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
# From 1.30 on loaded by name when it is first used, so that no list of needed libraries has it.
_CUDNN: Final = "libcudnn.so.9"

_CALL: Final = re.compile(r"(CUDA|CUDNN|CUBLAS|CUFFT|CURAND) failure (\d+): ([^;\n]*)")
_UNKNOWN_OPTION: Final = re.compile(r'Unknown provider option: "([^"]*)"')
_BAD_OPTION: Final = re.compile(r'Failed to parse provider option "([^"]*)"')
_UNAVAILABLE: Final = re.compile(r"(cuDNN|cuFFT) is (?:not available|unavailable)")
_MEMORY: Final = ("Failed to allocate memory for requested buffer", "Available memory of", "out of memory")
_SIZE: Final = re.compile(r"requested buffer of size (\d+)")


class DeviceMemoryError(UserError, MemoryError):
    """The memory of a GPU, or the limit that was set for it, does not suffice."""


@dataclass(frozen=True)
class MissingLibrary:
    """A shared library that does not load.

    Attributes:
        name: of the file: "libcublasLt.so.13".
        why: the dynamic loader's own words.
        package: the pip package that brings it; "" for what comes with the driver, or is not known.
    """

    name: str
    why: str
    package: str = ""

    @property
    def is_driver(self) -> bool:
        """It comes with NVIDIA's driver."""
        return self.name.startswith(_DRIVER)


@functools.lru_cache(maxsize=1)  # what is loaded stays
def preload(ort: Any) -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's pip packages, where they are installed so."""
    if not hasattr(ort, "preload_dlls"):
        return
    # It prints what it does not find; missing libraries are reported by `not_started`.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls(directory="")


def installed_builds() -> dict[str, str]:
    """The onnxruntime packages that are installed: name -> version."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def conflict(builds: Mapping[str, str] | None = None) -> str:
    """What to do when both builds are installed, each over the other's files; "" when it is one."""
    builds = installed_builds() if builds is None else builds
    if len(builds) < 2:
        return ""
    versions = " and ".join(f"{name} {version}" for name, version in builds.items())
    return (
        f"{versions} are both installed, and overwrite each other's files: "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then: pip install 'graphopt[gpu]'"
    )


def missing_build(builds: Mapping[str, str] | None = None) -> str:
    """What to install where this onnxruntime was built without NVIDIA's providers."""
    builds = installed_builds() if builds is None else builds
    both = conflict(builds)
    if both:
        return both
    if "onnxruntime" in builds:
        return (
            "this is the build for CPUs; NVIDIA's providers come with another: "
            "pip uninstall -y onnxruntime, then: pip install 'graphopt[gpu]'"
        )
    return "NVIDIA's come with: pip install 'graphopt[gpu]'"


def missing_libraries(provider: str, ort: Any) -> tuple[MissingLibrary, ...]:
    """The libraries that a provider needs and that do not load, the driver's last."""
    shared_object = Path(ort.__file__).parent / "capi" / _SHARED_OBJECT.get(provider, "")
    names = list(needed(shared_object)) if shared_object.is_file() else []
    cuda_major = _cuda_major(ort, names)
    found: dict[str, MissingLibrary] = {}
    # What is loaded when it is first used keeps nothing from starting: it is named beside others only.
    later = [_CUDNN] if provider == CUDA and _CUDNN not in names else []
    for name in (*names, *later):
        why = _why_not(name) if name in names or found else ""
        if why:
            # What does not load may be a library that this one needs in turn.
            guilty = why.partition(":")[0] if "cannot open shared object file" in why else name
            found[guilty] = MissingLibrary(guilty, why, package_of(guilty, cuda_major))
    return tuple(sorted(found.values(), key=lambda m: m.is_driver))


def _why_not(name: str) -> str:
    try:
        ctypes.CDLL(name)
    except OSError as e:
        return str(e)
    return ""


def _cuda_major(ort: Any, names: Sequence[str]) -> str:
    version = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
    if version.isdigit():
        return version
    runtime = next((n for n in names if n.startswith("libcudart.so.")), "")
    return runtime.removeprefix("libcudart.so.").partition(".")[0]


def package_of(library: str, cuda_major: str) -> str:
    """The pip package that brings a library: ("libcudnn.so.9", "13") -> "nvidia-cudnn-cu13"."""
    stem = library.partition(".so")[0]
    package = _PACKAGES.get(stem) or next((p for s, p in _PACKAGES.items() if stem.startswith(f"{s}_")), "")
    old = cuda_major.isdigit() and int(cuda_major) < 13
    if package == "nvidia-cudnn" or (package.startswith("nvidia-") and old):
        return f"{package}-cu{cuda_major}" if cuda_major else package
    return package


def not_started(provider: str, ort: Any, log: Sequence[LogLine] = ()) -> UserError:
    """Why a provider that this onnxruntime has did not start, and what to do about it.

    Args:
        provider: the execution provider.
        ort: the onnxruntime module.
        log: what it logged meanwhile.
    """
    both = conflict()
    if both:
        return ProviderError(f"{provider} could not start", fix=both)
    missing = missing_libraries(provider, ort)
    if not missing:
        for line in log:
            told = explain(provider, line.text, {}) if "Failed to load library" not in line.text else None
            if told is not None:
                return told
    return _describe(provider, missing, str(getattr(ort, "cuda_version", "") or ""))


def _describe(provider: str, missing: Sequence[MissingLibrary], cuda_version: str) -> ProviderError:
    libraries = [m for m in missing if not m.is_driver]
    driver = [m for m in missing if m.is_driver]
    if not missing:
        return ProviderError(
            f"{provider} could not start, although all libraries that it needs load",
            fix="see whether a GPU is visible: nvidia-smi, CUDA_VISIBLE_DEVICES"
            + (f"; this onnxruntime wants CUDA {cuda_version}" if cuda_version else ""),
        )
    fixes = []
    if libraries:
        packages = sorted({m.package for m in libraries if m.package})
        unknown = [m.name for m in libraries if not m.package]
        if packages:
            fixes.append(f"they come with: pip install {' '.join(packages)}")
        if unknown:
            fixes.append(f"look for what brings {', '.join(unknown)}")
    if driver:
        needs = f" that can do CUDA {cuda_version}" if cuda_version else ""
        fixes.append(f"{driver[0].name} comes with NVIDIA's driver: install one{needs} (nvidia-smi shows it)")
    names = ", ".join(m.name for m in missing)
    others = [m.why for m in libraries if "cannot open shared object file" not in m.why]
    details = f" ({'; '.join(others)})" if others else ""
    return ProviderError(
        f"{provider} could not start: it needs {names}, which {'does' if len(missing) == 1 else 'do'} "
        f"not load{details}",
        fix="\n  ".join(fixes),
    )


def explain(provider: str, text: str, options: Mapping[str, str]) -> UserError | None:
    """What a failure of NVIDIA's providers means; None where it is no matter of libraries or devices.

    Args:
        provider: the execution provider.
        text: onnxruntime's words.
        options: what the provider was opened with.
    """
    if match := _UNAVAILABLE.search(text):
        return _unavailable(provider, match[1])
    if match := _UNKNOWN_OPTION.search(text):
        return UserError(
            f"{provider} has no option {match[1]!r}",
            fix="its options: https://onnxruntime.ai/docs/execution-providers/",
        )
    call = _CALL.search(text)
    if call is not None:
        told = _explain_call(provider, call[1], int(call[2]), call[3].strip(), options)
        if told is not None:
            return told
    if match := _BAD_OPTION.search(text):
        name = match[1]
        return UserError(f"{provider} does not take {options.get(name, '')!r} for its option {name}")
    if "Please install TensorRT libraries" in text or "Failed to load library" in text:
        from graphopt.runtime.providers import onnxruntime

        return not_started(provider, onnxruntime())
    if any(words in text for words in _MEMORY):
        size = _SIZE.search(text)
        wanted = f" ({int(size[1]):,} more bytes were wanted)" if size else ""
        return _out_of_memory(provider, wanted, options)
    if call is not None:
        return ProviderError(f"{provider} failed: {call[1]} error {call[2]}, {call[3].strip()}")
    return None


def _unavailable(provider: str, what: str) -> ProviderError:
    """One of the libraries that are loaded when they are first used is not there."""
    from graphopt.runtime.providers import onnxruntime

    major = _cuda_major(onnxruntime(), ())
    library = {"cuDNN": _CUDNN, "cuFFT": "libcufft.so"}[what]
    package = package_of(library, major or "13")
    return ProviderError(
        f"{provider} needs {what} for this model, and {library} does not load ({_why_not(library)})",
        fix=f"it comes with: pip install {package}",
    )


def _explain_call(
    provider: str, library: str, code: int, words: str, options: Mapping[str, str]
) -> UserError | None:
    device = options.get("device_id", "0")
    if library == "CUDA":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f"; CUDA_VISIBLE_DEVICES is {visible!r}" if visible is not None else ""
        known = {
            35: (
                "NVIDIA's driver is older than this onnxruntime's CUDA",
                "update the driver (nvidia-smi shows up to which CUDA it goes), or install an "
                "onnxruntime-gpu built for an older CUDA",
            ),
            100: ("there is no GPU", f"nvidia-smi lists what the driver sees{hidden}"),
            101: (f"there is no GPU {device}", f"GPUs count from 0; nvidia-smi lists them{hidden}"),
            209: (
                "this onnxruntime has no kernels for this GPU's architecture",
                "nvidia-smi --query-gpu=name,compute_cap --format=csv shows it; install an onnxruntime-gpu "
                "that was built for it",
            ),
            222: (
                "the driver cannot compile this onnxruntime's kernels for this GPU",
                "update NVIDIA's driver",
            ),
            803: ("NVIDIA's driver and its libraries are of different versions", "restart after an update"),
            804: ("this GPU does not run newer CUDA on an older driver", "update NVIDIA's driver"),
        }
        if code == 2:
            return _out_of_memory(provider, "", options)
        if code in known:
            what, fix = known[code]
            return ProviderError(f"{provider} cannot be used: {what} (CUDA error {code}: {words})", fix=fix)
    if "ALLOC_FAILED" in words or "out of memory" in words:
        return _out_of_memory(provider, "", options)
    if library == "CUDNN" and "SUBLIBRARY" in words:
        return ProviderError(
            f"{provider} cannot be used: a part of cuDNN is missing or of another version ({words})",
            fix="install it anew: pip install --force-reinstall nvidia-cudnn-cu12 (or -cu13)",
        )
    return None


def _out_of_memory(provider: str, wanted: str, options: Mapping[str, str]) -> DeviceMemoryError:
    limit = options.get("gpu_mem_limit")
    if limit:
        return DeviceMemoryError(
            f"{provider} ran out of the {int(limit):,} bytes that it may take{wanted}",
            fix="raise --gpu-memory-limit, or take smaller inputs (--input-shape)",
        )
    return DeviceMemoryError(
        f"{provider} ran out of the GPU's memory{wanted}",
        fix="nvidia-smi shows who takes it; take smaller inputs (--input-shape), or another GPU "
        "(--provider-option device_id=1)",
    )
