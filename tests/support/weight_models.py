"""Models with random weights, and how far two of them are apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser

from graphopt.runtime.session import open_session
from graphopt.testing import random_feeds


def build(body: str, opset: int = 21, ir: int = 10, **weights: Any) -> onnx.ModelProto:
    """A model from `inputs => outputs { nodes }`; a weight is an array, or the shape of random float32."""
    rng = np.random.default_rng(7)
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> g {body}')
    for name, given in weights.items():
        array = (
            rng.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else np.asarray(given)
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def sqnr(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, Any] | None = None,
    optimize: str = "none",
) -> float:
    """The worst output's signal to noise ratio in dB, on random inputs; 200 where they are the same."""
    given = random_feeds(before, 5) if feeds is None else feeds
    with open_session(before, optimize="none") as one, open_session(after, optimize=optimize) as other:
        want, got = one.run(given), other.run(given)
    worst = 200.0
    for name in want:
        a, b = (np.asarray(v).astype(np.float64) for v in (want[name], got[name]))
        assert a.shape == b.shape, f"{name}: {b.shape} is not {a.shape}"
        assert want[name].dtype == got[name].dtype
        noise = float(((a - b) ** 2).sum())
        if noise:
            worst = min(worst, 10.0 * float(np.log10(max(float((a**2).sum()), 1e-300) / noise)))
    return worst


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers of the main graph by name."""
    return {t.name: t for t in model.graph.initializer}


def types_of(model: onnx.ModelProto) -> Counter[str]:
    """How many initializers, in all bodies, have each element type."""
    found: Counter[str] = Counter()

    def walk(graph: onnx.GraphProto) -> None:
        found.update(onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer)
        for node in graph.node:
            for a in node.attribute:
                if a.type == onnx.AttributeProto.GRAPH:
                    walk(a.g)

    walk(model.graph)
    return found


def ort_ops(model: onnx.ModelProto, tmp: Any, options: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Operators that ONNX Runtime executes after its own optimizations."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp / "optimized.onnx")
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    for key, value in options:
        settings.add_session_config_entry(key, value)
    ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp / "optimized.onnx").graph.node]
