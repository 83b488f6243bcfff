"""Small models, data and a metric for the tests of gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from graphopt.report.gated import Check, GateReport

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
TEXT = f"""{HEAD}
g (float[batch, 4] x) => (float[batch, 2] y, int64[batch] best)
<float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, -8}}, float[2] b = {{0.5, -0.5}}>
{{
    a = Identity(x)
    m = MatMul(a, w)
    y = Add(m, b)
    best = ArgMax <axis = 1, keepdims = 0> (y)
}}
"""
METRIC = """
import numpy as np

def figures(results):
    hits = [out["best"] == sample["label"] for sample, out in results]
    return {"accuracy": 100.0 * float(np.concatenate(hits).mean()), "samples": float(sum(map(len, hits)))}
"""


def weights(model: onnx.ModelProto, name: str, values: Any) -> onnx.ModelProto:
    """`model` with other values in an initializer."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (tensor,) = (t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
    return changed


def quantized(scale: float = 0.05) -> onnx.ModelProto:
    """Two Conv between Q/DQ, of which the second runs in float: nothing quantizes its output."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
    g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear(w, s, wz)
        [first] a = Conv <pads = [1, 1, 1, 1]> (xd, wd)
        [relu] r = Relu(a)
        rq = QuantizeLinear(r, s, z)
        rd = DequantizeLinear(rq, s, z)
        [second] b = Conv <pads = [1, 1, 1, 1]> (rd, wd)
        [tanh] y = Tanh(b)
    }""")
    constants = {
        "s": np.float32(scale),
        "z": np.uint8(0),
        "wz": np.int8(0),
        "w": np.ones((4, 4, 3, 3), np.int8),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def fill(folder: Path) -> None:
    """Write a small model, changed versions of it, data, and a metric."""
    model = onnx.parser.parse_model(TEXT)
    w = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, folder / "model.onnx")
    onnx.save(model, folder / "reference.onnx")
    onnx.save(weights(model, "w", w * np.float32(1.001)), folder / "near.onnx")
    onnx.save(weights(model, "w", -w), folder / "far.onnx")
    onnx.save(weights(model, "w", np.where(w == 3, np.float32("nan"), w)), folder / "nan.onnx")
    onnx.save(quantized(), folder / "quantized.onnx")
    large = weights(model, "w", np.tile(w, (1, 1)))
    large.graph.initializer.append(numpy_helper.from_array(np.ones(100_000, np.float32), "unused"))
    onnx.save(large, folder / "large.onnx")
    onnx.save(
        large,
        folder / "external.onnx",
        save_as_external_data=True,
        location="external.data",
        size_threshold=1024,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)).astype(np.float32)
    label = np.argmax(x @ w + np.float32([0.5, -0.5]), axis=1)
    label[:4] = 1 - label[:4]  # the model is right 9 times of 10
    np.savez(folder / "data.npz", x=x, label=label)
    (folder / "metric.py").write_text(METRIC)


def only(report: GateReport, name: str) -> Check:
    """The check of that name."""
    (check,) = (c for c in report.checks if c.name == name)
    return check
