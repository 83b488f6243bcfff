"""Execution providers: their names, whether they are there, and the options that they are opened with.

onnxruntime is imported inside functions only, so that `import graphopt` neither needs it nor pays for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, Literal, get_args

from graphopt.errors import ProviderError, UserError

if TYPE_CHECKING:
    from types import ModuleType

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

# What people type, besides onnxruntime's own names.
_ALIASES = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
    "trt": TENSORRT,
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}

NVIDIA: Final = (CUDA, TENSORRT)

ArenaStrategy = Literal["kNextPowerOfTwo", "kSameAsRequested"]
ConvSearch = Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]

#: The relative spacing of TF32 numbers: float32's range with ten bits of mantissa.
TF32_EPS: Final = 2.0**-10


@dataclass(frozen=True)
class ProviderSettings:
    """How an execution provider is opened. What is None is left at onnxruntime's default.

    Attributes:
        device_id: which GPU.
        tf32: let matrix products and convolutions of float32 round their operands to TF32 (ten bits of
            mantissa), on GPUs that can. onnxruntime's default is yes.
        memory_limit: most bytes that the device's memory arena may hold. What CUDA, cuDNN and cuBLAS take for
            themselves comes on top.
        arena_extend_strategy: how the arena grows: by powers of two (the default), or by what is asked for.
        cudnn_conv_algo_search: how cuDNN's algorithm is chosen: EXHAUSTIVE tries all on the first run.
        cudnn_conv_use_max_workspace: let convolutions take as much workspace as they want.
        do_copy_in_default_stream: copies and kernels in one stream.
        other: further options, by onnxruntime's names. They win over the fields above.
    """

    device_id: int | None = None
    tf32: bool | None = None
    memory_limit: int | None = None
    arena_extend_strategy: ArenaStrategy | None = None
    cudnn_conv_algo_search: ConvSearch | None = None
    cudnn_conv_use_max_workspace: bool | None = None
    do_copy_in_default_stream: bool | None = None
    other: Mapping[str, str] = field(default_factory=dict)

    def options(self, provider: str) -> dict[str, str]:
        """What onnxruntime is given for `provider`: option name -> value.

        Raises:
            UserError: something was asked for that this provider does not have.
        """
        found = {
            _OPTION[f.name]: _text(getattr(self, f.name))
            for f in fields(self)
            if f.name in _OPTION and getattr(self, f.name) is not None
        }
        if provider == TENSORRT and found:
            # TensorRT's own names; a fallback to CUDA takes what CUDA takes.
            found = {k: v for k, v in found.items() if k == "device_id"}
        elif provider != CUDA:
            found = {}
        return {**found, **self.other}

    def describe(self, provider: str) -> dict[str, str]:
        """What of this counts on `provider`, in words for a report."""
        words = self.options(provider)
        words.pop("use_tf32", None)
        if provider in NVIDIA:
            words["TF32"] = "on" if self.uses_tf32(provider) else "off"
        return words

    def uses_tf32(self, provider: str) -> bool:
        """Whether float32 products may be rounded to TF32 under this provider, on a GPU that can.

        TensorRT does so whatever is set here; NVIDIA's own NVIDIA_TF32_OVERRIDE=0 turns it off everywhere.
        """
        if provider not in NVIDIA or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
            return False
        return provider == TENSORRT or self.options(provider).get("use_tf32", "1") != "0"

    def eps(self, provider: str) -> float | None:
        """The relative spacing at which float32 operands are rounded; None where they are not."""
        return TF32_EPS if self.uses_tf32(provider) else None


_OPTION: Final = {
    "device_id": "device_id",
    "tf32": "use_tf32",
    "memory_limit": "gpu_mem_limit",
    "arena_extend_strategy": "arena_extend_strategy",
    "cudnn_conv_algo_search": "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace": "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream": "do_copy_in_default_stream",
}

#: For comparing numbers. TF32 rounds operands to three decimal digits, which would hide a wrong rewrite that
#: moves the fifth; with it off, what is left is float32's own reordering, which the noise floor knows.
EXACT_MATH: Final = ProviderSettings(tf32=False)
#: For measuring time: as onnxruntime runs a model if nobody says anything.
AS_DEPLOYED: Final = ProviderSettings()


_current: ContextVar[ProviderSettings] = ContextVar("provider settings", default=EXACT_MATH)


def current() -> ProviderSettings:
    """The settings that sessions are opened with where nothing else is said: TF32 is off by default."""
    return _current.get()


@contextlib.contextmanager
def using(settings: ProviderSettings) -> Iterator[None]:
    """Open sessions with these settings meanwhile, where nothing else is said: for all of a command."""
    token = _current.set(settings)
    try:
        yield
    finally:
        _current.reset(token)


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse_settings(
    pairs: Mapping[str, str],
    *,
    tf32: bool | None = None,
    memory_limit: int | None = None,
) -> ProviderSettings:
    """Settings from what people type.

    Args:
        pairs: options by onnxruntime's names, as in {"device_id": "1"}.
        tf32, memory_limit: see `ProviderSettings`.

    Raises:
        UserError: an option is given twice, or its value makes no sense.
    """
    for name, chosen in (("use_tf32", tf32), ("gpu_mem_limit", memory_limit)):
        if name in pairs and chosen is not None:
            option = {"use_tf32": "--tf32", "gpu_mem_limit": "--gpu-memory-limit"}[name]
            raise UserError(f"{option} and the provider option {name} say the same", fix="give one of them")
    allowed = {
        "arena_extend_strategy": get_args(ArenaStrategy),
        "cudnn_conv_algo_search": get_args(ConvSearch),
        **dict.fromkeys(
            ("use_tf32", "cudnn_conv_use_max_workspace", "do_copy_in_default_stream"), ("0", "1")
        ),
    }
    for name, value in pairs.items():
        if name in allowed and value not in allowed[name]:
            raise UserError(
                f"the provider option {name} cannot be {value!r}", fix=f"one of: {', '.join(allowed[name])}"
            )
        if name in ("device_id", "gpu_mem_limit") and not value.isdigit():
            raise UserError(f"the provider option {name} is a whole number, not {value!r}")
    return ProviderSettings(tf32=tf32, memory_limit=memory_limit, other=dict(pairs))


def onnxruntime() -> ModuleType:
    """The onnxruntime module; ProviderError saying what to install when it is missing."""
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise ProviderError(
            f"onnxruntime could not be imported ({e})",
            fix="install it with: pip install 'graphopt[cpu]'   (or 'graphopt[gpu]' for CUDA; never both)",
        ) from e
    module: ModuleType = ort
    return module


def available_providers() -> list[str]:
    """The execution providers that this onnxruntime was built with."""
    return list(onnxruntime().get_available_providers())


def resolve_provider(name: str) -> str:
    """Resolve what people type to onnxruntime's name of a provider ("cuda" -> "CUDAExecutionProvider").

    Raises:
        ProviderError: it is not available; the error names what is, and what to install.
    """
    there = available_providers()
    known = {p.lower(): p for p in there} | {p.lower().removesuffix("executionprovider"): p for p in there}
    full = _ALIASES.get(name.lower(), name)
    if full.lower() in known:
        return known[full.lower()]
    hint = ""
    if full in NVIDIA:
        from graphopt.runtime.cuda import missing_build

        hint = f"; {missing_build()}"
    raise ProviderError(
        f"execution provider {name!r} is not available", fix=f"available here: {', '.join(there)}{hint}"
    )
