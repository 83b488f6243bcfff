"""onnxruntime sessions: quiet, typed errors, weights without copies, every ONNX dtype.

onnxruntime is imported inside functions only, so that `import graphopt` neither needs it nor pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import onnx

from graphopt.errors import GraphOptError, ProviderError
from graphopt.interface import InterfaceEdits
from graphopt.runtime import values
from graphopt.runtime.values import Feeds, Value

if TYPE_CHECKING:
    from types import ModuleType

CPU = "CPUExecutionProvider"

Optimize: TypeAlias = Literal["none", "basic", "extended", "all"]
FailureKind: TypeAlias = Literal["load", "invalid", "no-kernel", "run", "unsupported"]

# onnxruntime's words for it: bad_alloc, and what its arenas say on the CPU and on CUDA.
_OUT_OF_MEMORY = ("std::bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory")

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# What people type, besides onnxruntime's own names.
_ALIASES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}

_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


class SessionSourceLike(Protocol):
    """What a session is made from when the weights stay outside the message.

    Attributes:
        proto: a serialized ModelProto whose large initializers are external references.
        folder: what those references are relative to; None when there are none.
    """

    @property
    def proto(self) -> bytes:
        """The serialized model."""
        ...

    @property
    def folder(self) -> str | Path | None:
        """Where external references start."""
        ...


@dataclass(frozen=True)
class Translated:
    """A model that is fed what a changed one is fed, and gives what that gives.

    Attributes:
        source: the model before.
        edits: how its interface was changed.
    """

    source: Source
    edits: InterfaceEdits


Source: TypeAlias = SessionSourceLike | onnx.ModelProto | bytes | Translated


class RuntimeFailure(GraphOptError):
    """onnxruntime could not load or run a model.

    Args:
        kind: "load" (anything while loading that is not one of the next two), "invalid" (the model breaks
            ONNX's rules), "no-kernel" (an op or dtype that this provider has no kernel for), "run", or
            "unsupported" (values that the Python bindings cannot carry).
        message: onnxruntime's own words, without its banner.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(message)


@dataclass(frozen=True)
class Port:
    """An input, output or overridable initializer of a session.

    Attributes:
        name: its name in the model.
        type: onnxruntime's type string, like "tensor(float)" or "seq(tensor(int64))".
        elem_type: the ONNX element type of a tensor; None for sequences, maps and optionals.
        dims: one int, dim name or None per axis; empty when the rank is unknown or zero.
    """

    name: str
    type: str
    elem_type: int | None
    dims: tuple[int | str | None, ...]


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
        ProviderError: it is not available; the error names what is.
    """
    there = available_providers()
    known = {p.lower(): p for p in there} | {p.lower().removesuffix("executionprovider"): p for p in there}
    full = _ALIASES.get(name.lower(), name)
    if full.lower() in known:
        return known[full.lower()]
    hint = "; NVIDIA's come with: pip install 'graphopt[gpu]'" if full in _NVIDIA else ""
    raise ProviderError(
        f"execution provider {name!r} is not available", fix=f"available here: {', '.join(there)}{hint}"
    )


def _failure(e: Exception, while_running: bool) -> RuntimeFailure | MemoryError:
    text = str(e)
    if any(words in text for words in _OUT_OF_MEMORY):
        return MemoryError(text)  # says nothing about the model
    kind: FailureKind = "run" if while_running else "load"
    kinds: dict[str, FailureKind] = {"NotImplemented": "no-kernel", "InvalidGraph": "invalid"}
    kind = kinds.get(type(e).__name__, kind)
    if "is not a registered function/op" in text or "No Op registered for" in text:
        kind = "no-kernel"
    if text.startswith("[ONNXRuntimeError] : "):
        text = text.split(" : ", 3)[-1]
    return RuntimeFailure(kind, text.strip())


class Session:
    """A loaded model. Not thread-safe in what it promises about determinism; `close` frees it early.

    Attributes:
        inputs, outputs, overridable: its ports, in the model's order.
        provider: the execution provider that was asked for.
        optimize: onnxruntime's optimization level.
    """

    def __init__(self, raw: Any, provider: str, optimize: Optimize, keep_alive: Sequence[Any] = ()) -> None:
        self._raw, self._keep_alive = raw, keep_alive
        self.provider, self.optimize = provider, optimize
        self.inputs = _ports(raw.get_inputs())
        self.outputs = _ports(raw.get_outputs())
        self.overridable = _ports(raw.get_overridable_initializers())
        self._types = {p.name: p.elem_type for p in (*self.inputs, *self.overridable)}
        self._native = all(
            values.is_native(p.elem_type) for p in (*self.inputs, *self.overridable, *self.outputs)
        )

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Run once.

        Args:
            feeds: value per input; overridable initializers may be left out. None is an empty optional.
            outputs: names of the outputs wanted; all of them by default.

        Returns:
            output name -> array, list, dict, or None for an empty optional.

        Raises:
            RuntimeFailure: onnxruntime refused, or the bindings cannot carry a value.
        """
        names = list(outputs) if outputs is not None else [p.name for p in self.outputs]
        try:
            if self._native:
                return dict(zip(names, self._raw.run(names, dict(feeds)), strict=True))
            return self._run_ort_values(feeds, names)
        except RuntimeFailure:
            raise
        except Exception as e:  # the bindings raise unrelated classes, also plain RuntimeError and ValueError
            raise _failure(e, while_running=True) from e

    def _run_ort_values(self, feeds: Feeds, names: list[str]) -> dict[str, Value]:
        types = {p.name: p.elem_type for p in self.outputs}
        if any(types[name] is None for name in names) or any(self._types.get(n) is None for n in feeds):
            raise RuntimeFailure(
                "unsupported",
                "onnxruntime's bindings cannot mix sequences or optionals with bfloat16, float8 or int4",
            )
        # The arrays must outlive the run: an OrtValue only borrows native ones.
        given = {n: values.to_ort(v, self._types[n]) for n, v in feeds.items()}  # type: ignore[arg-type]
        results = self._raw.run_with_ort_values(names, given)
        return {n: values.from_ort(v, types[n] or 0) for n, v in zip(names, results, strict=True)}

    def close(self) -> None:
        """Free the session and its weights now."""
        self._raw, self._keep_alive = None, ()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _TranslatedSession(Session):
    """See `Translated`."""

    def __init__(self, inner: Session, edits: InterfaceEdits) -> None:
        self._inner, self._edits = inner, edits
        self.provider, self.optimize = inner.provider, inner.optimize
        self.inputs, self.outputs, self.overridable = inner.inputs, inner.outputs, inner.overridable

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Run once, on the inputs and with the outputs of the changed model."""
        return self._edits.outputs(self._inner.run(self._edits.original_feeds(feeds), outputs))

    def close(self) -> None:
        """Free the session."""
        self._inner.close()


def _ports(raw: Any) -> tuple[Port, ...]:
    return tuple(Port(p.name, p.type, values.elem_type_of(p.type), tuple(p.shape or ())) for p in raw)


def open_session(
    source: Source,
    *,
    optimize: Optimize = "none",
    threads: int = 1,
    provider: str = CPU,
    prepack: bool = True,
    arena: bool = True,
) -> Session:
    """Load a model.

    Args:
        source: a SessionSource, a ModelProto, or its bytes (below 2 GiB each).
        optimize: onnxruntime's graph optimization level; "all" is its default.
        threads: threads within an op (ops run one after the other).
        provider: execution provider, or a short name ("cpu", "cuda"). What it lacks runs on the CPU.
        prepack: let kernels repack constant weights: faster, but it copies them, and it changes bits.
        arena: let the allocator keep memory between runs: faster, but it holds the peak.

    Raises:
        ProviderError: onnxruntime or the provider is not there.
        RuntimeFailure: the model does not load.
    """
    if isinstance(source, Translated):
        inner = open_session(
            source.source,
            optimize=optimize,
            threads=threads,
            provider=provider,
            prepack=prepack,
            arena=arena,
        )
        return _TranslatedSession(inner, source.edits)
    ort = onnxruntime()
    provider = resolve_provider(provider)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimize])
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = arena
    # Threads that spin while they wait take the core that the others would need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    keep_alive: list[Any] = []
    if isinstance(source, bytes):
        proto = source
    elif isinstance(source, onnx.ModelProto):
        proto = source.SerializeToString()
    else:
        proto = source.proto
        if source.folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(source.folder)
            )
        keep_alive.append(source)  # it may own the file that the weights are read from
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        raw = ort.InferenceSession(proto, options, providers=providers)
    except Exception as e:  # see Session.run
        raise _failure(e, while_running=False) from e
    if raw.get_providers()[0] != provider:
        # onnxruntime falls back to the CPU in silence when the provider's libraries do not load.
        raise ProviderError(
            f"{provider} could not start (its libraries or its device are missing)",
            fix=f"available here: {', '.join(p for p in available_providers() if p != provider)}",
        )
    return Session(raw, provider, optimize, keep_alive)
