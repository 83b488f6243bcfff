"""Policies to start from, with comments; from a model, one that it passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from graphopt import summary
from graphopt.graph.stats import model_stats
from graphopt.interface import type_text
from graphopt.model import Model
from graphopt.validation.interface import Interface

_HEAD = """\
# A policy for `graphopt gate MODEL --policy gate.toml`. Every limit that is here is checked.
# All keys: docs/gate.md.
"""

_MEASURE = """
[measure]
# Relative to this file; --reference, --data, --metric and --providers go first.
{reference}
# data = "samples.npz"                # real inputs; without them they are synthesized
# metric = "metrics.py:accuracy"      # called with (sample, outputs) pairs; higher is better
providers = {providers}
"""

_SOUND = """
[model]
valid = true                          # ONNX's checker finds nothing wrong
runs = true                           # on every provider

[weights]
finite = true                         # no NaN, no infinity
# finite_except = ["*mask*"]          # masks may hold -inf

[external_data]
inside_folder = true
"""

_VERSIONS = """
[opset]
max = {opset}                              # what the runtime in production knows

[ir_version]
max = {ir}

[ops]
random = false
# banned = ["Loop", "com.microsoft::*"]

[domains]
allowed = {domains}
"""

_SIZE = """
[file]
max_mb = {mb}
"""

_CLOSE = """
[numerics]
standard = "close"                    # within the reference's own floating-point noise
"""

_LOSSY = """
[numerics]
min_sqnr_db = 15                      # of every float output
min_cosine = 0.99

# [numerics.outputs.logits]           # another limit for one output
# min_sqnr_db = 25

# [metrics.accuracy]                  # a figure of `metric`
# min = 98.0
# max_drop = 0.5
"""

_INT8 = """
[int8]
min_share = 0.9                       # of the nodes that could run as integer kernels
max_fallbacks = 0                     # quantized, and run in float all the same
"""

_CUDA = """
[providers.cuda]
min_share = 1.0                       # no node falls back to the CPU
allow_memcpy = false
"""

_SPEED = """
[latency]
max_ratio = {ratio}                       # of the reference's time, in paired runs
# max_ms = 5.0
# percentile = 95
"""


def starter(preset: str, path: Path | None = None) -> str:
    """The text of a policy.

    Args:
        preset: "minimal"; "float" for models that must not move the numbers; "int8"; "cuda".
        path: a model: versions, size, domains, inputs and outputs become limits that it keeps.

    Raises:
        UserError: the model cannot be read.
    """
    model = None if path is None else Model.load(path)
    parts = [_HEAD, f'name = "{preset}"\n']
    if preset != "minimal":
        reference = 'reference = "original.onnx"          # what the model is compared with'
        providers = '["cuda"]' if preset == "cuda" else '["cpu"]'
        parts.append(_MEASURE.format(reference=reference, providers=providers))
    parts.append(_SOUND)
    parts += _of_model(model, path)
    if preset == "float":
        parts += [_CLOSE, _SPEED.format(ratio="1.05")]
    elif preset == "int8":
        parts += [_LOSSY, _INT8, _SPEED.format(ratio="1.0")]
    elif preset == "cuda":
        parts += [_LOSSY, _CUDA, _SPEED.format(ratio="1.05")]
    return "".join(parts)


def _of_model(model: Model | None, path: Path | None) -> list[str]:
    """Limits that the model keeps; without one, those that most do."""
    if model is None:
        return [_VERSIONS.format(opset=21, ir=10, domains='["ai.onnx"]')]
    stats = model_stats(model)
    domains = sorted({op.rpartition("::")[0] or "ai.onnx" for op in stats.ops} | {"ai.onnx"})
    size = summary.file_info(path, model.data_files).bytes
    mb = _rounded_up(1.1 * size / 1e6)
    opset = stats.opsets.get("", 0) or 21
    return [
        _VERSIONS.format(opset=opset, ir=stats.ir_version, domains=json.dumps(domains)),
        _SIZE.format(mb=f"{mb:<29g}# it has {size / 1e6:.4g} now"),
        _interface(model),
    ]


def _interface(model: Model) -> str:
    """What callers of the model rely on."""
    found = Interface.of(model.skeleton())
    lines = ['\n# "?" stands for any dim.']
    for kind, ports in (("inputs", found.inputs), ("outputs", found.outputs)):
        for port in ports:
            lines += [f"[[interface.{kind}]]", f"name = {_quoted(port.name)}"]
            tensor = port.type.tensor_type
            if port.type.WhichOneof("value") == "tensor_type":
                lines.append(f"dtype = {_quoted(type_text(port, dims=False))}")
                if tensor.HasField("shape"):
                    dims = [
                        d.dim_value if d.HasField("dim_value") else d.dim_param or "?"
                        for d in tensor.shape.dim
                    ]
                    lines.append(f"dims = [{', '.join(_toml(d) for d in dims)}]")
            lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _toml(dim: int | str) -> str:
    return str(dim) if isinstance(dim, int) else _quoted(dim)


#: TOML's basic strings are JSON's, but for the DEL character, which no name has.
_quoted: Callable[[str], str] = json.dumps


def _rounded_up(value: float) -> float:
    """Two significant digits, upwards."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")
