"""The ONNX backend node suite that ships in the onnx package, with its inputs and expected outputs."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from graphopt.runtime.session import RuntimeFailure, open_session


@dataclass(frozen=True)
class Case:
    """One model of the suite with its first data set."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    expected: dict[str, Any]
    rtol: float
    atol: float

    def run(self, model: onnx.ModelProto) -> dict[str, Any]:
        with open_session(model, optimize="none", prepack=False) as session:
            names = {p.name for p in (*session.inputs, *session.overridable)}
            return session.run({k: v for k, v in self.feeds.items() if k in names})

    def agrees(self, results: dict[str, Any]) -> str:
        """Why `results` are not what the suite expects, "" if they are."""
        for name, want in self.expected.items():
            reason = differs(want, results.get(name), self.rtol, self.atol)
            if reason:
                return f"{name}: {reason}"
        return ""


def _value(value: Any) -> Any:
    """Data sets hold arrays, or messages where numpy has no type of its own."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def differs(want: Any, got: Any, rtol: float, atol: float) -> str:
    """Why `got` is not `want` within the suite's tolerance, "" if it is."""
    if want is None or got is None:
        return "" if want is got else "one is empty"
    if isinstance(want, list):
        if len(want) != len(got):
            return f"{len(got)} elements, not {len(want)}"
        return next((r for a, b in zip(want, got, strict=True) if (r := differs(a, b, rtol, atol))), "")
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{b.dtype}{b.shape}, not {a.dtype}{a.shape}"
    if a.dtype.kind in "OUS":
        return "" if (a == b).all() else "text differs"
    wide = (
        (a.astype(np.complex128), b.astype(np.complex128))
        if a.dtype.kind == "c"
        else (a.astype(np.float64), b.astype(np.float64))
    )
    if np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    return f"off by {np.nanmax(np.abs(wide[0] - wide[1]))}"


@functools.cache
def cases() -> dict[str, Case]:
    """All cases of the suite, by name."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    for test in loaded:
        if test.model is None or not test.data_sets:
            continue
        inputs, outputs = test.data_sets[0]
        graph = test.model.graph
        feeds = {v.name: _value(x) for v, x in zip(graph.input, inputs, strict=False)}
        expected = {v.name: _value(x) for v, x in zip(graph.output, outputs, strict=False)}
        found[test.name] = Case(test.name, test.model, feeds, expected, test.rtol, test.atol)
    return found


@functools.cache
def baseline(name: str) -> str:
    """Why plain ONNX Runtime does not pass this case, "" if it does."""
    case = cases()[name]
    try:
        return case.agrees(case.run(case.model))
    except (RuntimeFailure, ValueError, TypeError, NotImplementedError) as error:
        return f"does not run: {error}"
