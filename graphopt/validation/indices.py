"""Outputs that are indices, and the values that they point at.

Two correct runs may break a tie differently. So an index of ArgMax, ArgMin, TopK or NonMaxSuppression may
differ where the values that it points at agree: the reference run taps those values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from graphopt.interface import InterfaceEdits
from graphopt.runtime.session import Source, Translated
from graphopt.runtime.structure import Structure, attribute
from graphopt.runtime.values import Value
from graphopt.validation.compare import Pointed, Tolerance, tolerance_floor
from graphopt.validation.metrics import is_float, scale_of


@dataclass(frozen=True)
class IndexOutput:
    """An output that holds indices into a tensor.

    Attributes:
        output: the output's name.
        values: name of the tensor pointed into.
        kind, axis, keepdims: as in `compare.Pointed`.
    """

    output: str
    values: str
    kind: Literal["axis", "boxes"]
    axis: int
    keepdims: bool = True


def index_outputs(structure: Structure) -> list[IndexOutput]:
    """The main graph's outputs that are indices, seen through Cast and Identity."""
    found: list[IndexOutput] = []
    for output in structure.outputs:
        name = output.name
        node = structure.producers.get(name)
        while node is not None and node.op_type in ("Cast", "Identity"):
            name = node.input[0]
            node = structure.producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("ArgMax", "ArgMin"):
            keepdims = bool(attribute(node, "keepdims", 1))
            axis = attribute(node, "axis", 0)
            found.append(IndexOutput(output.name, node.input[0], "axis", axis, keepdims))
        elif node.op_type == "TopK" and len(node.output) > 1 and node.output[1] == name:
            found.append(IndexOutput(output.name, node.input[0], "axis", attribute(node, "axis", -1)))
        elif node.op_type == "NonMaxSuppression":
            found.append(IndexOutput(output.name, node.input[1], "boxes", 0))
    return found


@dataclass(frozen=True)
class TappedSource:
    """A session source with more outputs."""

    proto: bytes
    folder: str | None
    original: Source  # may own the file that the weights are read from


def tap(source: Source, names: list[str]) -> Source:
    """The same model with these tensors of its main graph as further outputs."""
    if isinstance(source, Translated):
        return Translated(tap(source.source, names), source.edits)
    proto = source if isinstance(source, bytes | onnx.ModelProto) else source.proto
    model = onnx.ModelProto()
    if isinstance(proto, bytes):
        model.ParseFromString(proto)
    else:
        model.CopyFrom(proto)
    for name in names:
        model.graph.output.add().name = name
    if isinstance(source, bytes | onnx.ModelProto):
        return model
    folder = str(source.folder) if source.folder is not None else None
    return TappedSource(model.SerializeToString(), folder, source)


def to_tap(indices: list[IndexOutput], structure: Structure) -> list[str]:
    """The tensors that only a tap can show: neither outputs already nor inputs."""
    shown = {v.name for v in structure.outputs} | {v.name for v in structure.inputs}
    return sorted({i.values for i in indices if i.values in structure.producers} - shown)


def pointed_values(
    indices: list[IndexOutput],
    feeds: Mapping[str, Value],
    outputs: Mapping[str, Value],
    tolerances: Mapping[str, Tolerance],
) -> dict[str, Pointed]:
    """What each index output points into, in one reference run."""
    found: dict[str, Pointed] = {}
    for i in indices:
        values = outputs.get(i.values, feeds.get(i.values))
        if not isinstance(values, np.ndarray):
            continue
        tolerance = tolerances.get(i.values, Tolerance())
        if i.values not in tolerances and is_float(values.dtype):
            scale = scale_of(values)
            tolerance = Tolerance(tolerance_floor(values.dtype, scale.rms), scale.cut)
        found[i.output] = Pointed(i.kind, values, i.axis, tolerance, i.keepdims)
    return found


def pointed_since(edits: InterfaceEdits, outputs: Mapping[str, Value]) -> dict[str, Pointed]:
    """What outputs point into that became indices by these edits; `outputs` are those before."""
    found: dict[str, Pointed] = {}
    before = dict(outputs)
    for edit in edits:
        if edit.kind != "output" or edit.adapter is None:
            continue
        values = before[edit.name]
        if edit.adapter.points is not None and isinstance(values, np.ndarray) and is_float(values.dtype):
            axis, keepdims = edit.adapter.points
            scale = scale_of(values)
            tolerance = Tolerance(tolerance_floor(values.dtype, scale.rms), scale.cut)
            found[edit.name] = Pointed("axis", values, axis, tolerance, keepdims)
        if isinstance(values, np.ndarray):
            before[edit.name] = edit.adapter.forward(values)
    return found
