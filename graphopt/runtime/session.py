"""onnxruntime sessions: quiet, typed errors, weights without copies, every ONNX dtype.

onnxruntime is imported inside functions only, so that `import graphopt` neither needs it nor pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import onnx

from graphopt.errors import GraphOptError, ProviderError
from graphopt.interface import InterfaceEdits
from graphopt.runtime import values
from graphopt.runtime.providers import (
    CPU,
    EXACT_MATH,
    NVIDIA,
    ProviderSettings,
    available_providers,
    current,
    onnxruntime,
    resolve_provider,
)
from graphopt.runtime.values import Feeds, Value

if TYPE_CHECKING:
    from graphopt.runtime.binding import Bound

__all__ = [
    "CPU",
    "Optimize",
    "Port",
    "RuntimeFailure",
    "Session",
    "SessionSourceLike",
    "Source",
    "Translated",
    "available_providers",
    "create",
    "failure",
    "message",
    "onnxruntime",
    "open_session",
    "resolve_provider",
    "session_options",
]

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


def failure(e: Exception, while_running: bool, session: Session | None = None) -> Exception:
    """What an exception of onnxruntime's means: RuntimeFailure, MemoryError, or what is wrong with a GPU."""
    text = str(e)
    if session is not None and session.provider in NVIDIA:
        from graphopt.runtime import cuda

        told = cuda.explain(session.provider, text, session.settings.options(session.provider))
        if told is not None:
            return told
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
        settings: the provider's options.
    """

    def __init__(
        self,
        raw: Any,
        provider: str,
        optimize: Optimize,
        keep_alive: Sequence[Any] = (),
        settings: ProviderSettings = EXACT_MATH,
    ) -> None:
        self._raw, self._keep_alive = raw, keep_alive
        self.provider, self.optimize, self.settings = provider, optimize, settings
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
            raise failure(e, while_running=True, session=self) from e

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

    def bind(self, feeds: Feeds) -> Bound:
        """A run that is ready to go: inputs already on the device, outputs left there. See `Bound`.

        Raises:
            RuntimeFailure: the values cannot be bound.
        """
        from graphopt.runtime.binding import bind

        return bind(self._raw, self, feeds)

    def end_profiling(self) -> Path:
        """Finish the profiler's file; returns where it is."""
        return Path(self._raw.end_profiling())

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
    settings: ProviderSettings | None = None,
    affinity: Sequence[int] = (),
    profile: str | Path | None = None,
) -> Session:
    """Load a model.

    Args:
        source: a SessionSource, a ModelProto, or its bytes (below 2 GiB each).
        optimize: onnxruntime's graph optimization level; "all" is its default.
        threads: threads within an op (ops run one after the other).
        provider: execution provider, or a short name ("cpu", "cuda"). What it lacks runs on the CPU.
        prepack: let kernels repack constant weights: faster, but it copies them, and it changes bits.
        arena: let the allocator keep memory between runs: faster, but it holds the peak.
        settings: the provider's options; by default those of `providers.using`, else TF32 is off, so that
            results are float32's.
        affinity: processors that onnxruntime's own threads are bound to, in turn. The calling thread is the
            caller's to bind.
        profile: where the profiler's file goes, without its ending; `Session.end_profiling` finishes it.

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
            settings=settings,
            affinity=affinity,
            profile=profile,
        )
        return _TranslatedSession(inner, source.edits)
    ort = onnxruntime()
    provider = resolve_provider(provider)
    settings = current() if settings is None else settings
    config = _affinity_entry(threads, affinity)
    if not prepack:
        config["session.disable_prepacking"] = "1"
    options = session_options(optimize=optimize, threads=threads, arena=arena, config=config)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    proto, keep_alive = message(source, options)
    raw = create(ort, proto, options, provider, settings)
    return Session(raw, provider, optimize, keep_alive, settings)


def session_options(
    *, optimize: Optimize, threads: int = 1, arena: bool = True, config: Mapping[str, str] | None = None
) -> Any:
    """SessionOptions of onnxruntime, quiet, with further configuration entries."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimize])
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = arena
    # Threads that spin while they wait take the core that the others would need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def message(source: SessionSourceLike | onnx.ModelProto | bytes, options: Any) -> tuple[bytes, list[Any]]:
    """The serialized model, and what must live as long as its session; tells `options` where weights are."""
    if isinstance(source, bytes):
        return source, []
    if isinstance(source, onnx.ModelProto):
        return source.SerializeToString(), []
    if source.folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(source.folder)
        )
    return source.proto, [source]  # it may own the file that the weights are read from


def create(ort: Any, proto: bytes | str, options: Any, provider: str, settings: ProviderSettings) -> Any:
    """An InferenceSession on `provider`, with what that lacks on the CPU.

    `proto` is a serialized model, or a file. What onnxruntime logs of a provider that does not start goes
    into the error, not to stderr.

    Raises:
        ProviderError: the provider did not start; says which library, driver or device is missing.
        RuntimeFailure: the model does not load.
        MemoryError: the host's or the device's memory does not suffice.
    """
    if provider not in NVIDIA:
        return _create(ort, proto, options, [provider] if provider == CPU else [provider, CPU], settings)
    from graphopt.runtime import cuda
    from graphopt.runtime.logs import captured

    cuda.preload(ort)
    chosen = settings.options(provider)
    with captured(ort) as lines:
        try:
            raw = _create(ort, proto, options, [provider, CPU], settings)
        except RuntimeFailure as e:
            told = cuda.explain(provider, e.message, chosen)
            raise (told if told is not None else e) from e
    if raw.get_providers()[0] != provider:
        # onnxruntime falls back to the CPU in silence when the provider's libraries do not load.
        raise cuda.not_started(provider, ort, lines)
    return raw


def _create(
    ort: Any, proto: bytes | str, options: Any, providers: Sequence[str], settings: ProviderSettings
) -> Any:
    chosen = [settings.options(name) if name != CPU else {} for name in providers]
    named = [(name, given) if given else name for name, given in zip(providers, chosen, strict=True)]
    try:
        # Without its fallback, which prints to stdout and starts again on the CPU.
        raw = ort.InferenceSession(proto, options, providers=named, enable_fallback=0)
    except Exception as e:  # see Session.run
        raise failure(e, while_running=False) from e
    if raw.get_providers()[0] != providers[0] and providers[0] not in NVIDIA:
        raise ProviderError(
            f"{providers[0]} could not start (its libraries or its device are missing)",
            fix=f"available here: {', '.join(p for p in available_providers() if p != providers[0])}",
        )
    return raw


def _affinity_entry(threads: int, affinity: Sequence[int]) -> dict[str, str]:
    """The configuration entry that binds onnxruntime's own threads; it counts processors from 1."""
    own = threads - 1  # the calling thread is one of `threads`
    if not affinity or own < 1:
        return {}
    bound = [affinity[(i + 1) % len(affinity)] + 1 for i in range(own)]
    return {"session.intra_op_thread_affinities": ";".join(map(str, bound))}
