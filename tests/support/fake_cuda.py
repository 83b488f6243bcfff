"""An onnxruntime that says it has CUDA, writes down what is asked of it, and computes on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from graphopt.runtime import cuda, providers, session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeCuda:
    """A session. `log` has the calls that concern the device, with their plain arguments."""

    def __init__(self, proto: Any, options: Any, **kwargs: Any) -> None:
        self.chosen = [p if isinstance(p, str) else p[0] for p in kwargs["providers"]]
        self.real = onnxruntime.InferenceSession(proto, options, providers=[CPU])
        self.log: list[Any] = [("providers", kwargs["providers"])]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return self.chosen

    def io_binding(self) -> Any:
        real, log = self.real.io_binding(), self.log

        def note(name: str) -> Any:
            def call(*args: Any) -> Any:
                log.append((name, *[a for a in args if isinstance(a, str | int)]))
                if name == "bind_output":
                    return real.bind_output(args[0], "cpu", 0)
                return getattr(real, name)(*args)

            return call

        names = "bind_ortvalue_input bind_output synchronize_inputs synchronize_outputs get_outputs".split()
        return SimpleNamespace(real=real, **{name: note(name) for name in names})

    def run_with_iobinding(self, bound: Any) -> None:
        self.log.append(("run",))
        self.real.run_with_iobinding(bound.real)


class Module(SimpleNamespace):
    """Stands for the module onnxruntime; modules can be keys."""

    __hash__ = object.__hash__


def install(monkeypatch: pytest.MonkeyPatch) -> list[FakeCuda]:
    """Let graphopt use it; returns the list of sessions that are opened from now on."""
    opened: list[FakeCuda] = []

    class OrtValue:
        """Values on the device, which here is the host."""

        @staticmethod
        def ortvalue_from_numpy(array: Any, device: str = "cpu", number: int = 0) -> Any:
            opened[-1].log.append(("to", device, number))
            return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def start(proto: Any, options: Any, **kwargs: Any) -> FakeCuda:
        opened.append(FakeCuda(proto, options, **kwargs))
        return opened[-1]

    fake = Module(
        __file__=onnxruntime.__file__,
        cuda_version="13.0",
        InferenceSession=start,
        OrtValue=OrtValue,
        SessionOptions=onnxruntime.SessionOptions,
        GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
        get_available_providers=lambda: [CUDA, CPU],
        set_default_logger_callback=lambda callback: None,
    )
    for module in (session, providers):
        monkeypatch.setattr(module, "onnxruntime", lambda: fake)
    monkeypatch.setattr("graphopt.runtime.assignment.onnxruntime", lambda: fake)
    monkeypatch.setattr(cuda, "preload", lambda ort: None)
    return opened
