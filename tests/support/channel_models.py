"""Random architectures, and what pruning their channels must equal: the original with masked consumers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.model import Model
from graphopt.pipeline.base import Numerics, Pass, PassContext
from graphopt.testing import Applied, apply

Kept = Mapping[str, tuple[int, Sequence[int]]]

# What multiplies its inputs with something and sums: where a removed channel counts as zero.
CONSUMERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "ReduceSum", "ReduceL2")
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass
class Builder:
    """Nodes with random weights, one after another."""

    seed: int = 0
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.count = 0

    def name(self, hint: str) -> str:
        """A fresh name."""
        self.count += 1
        return f"{hint}_{self.count}"

    def const(self, values: Any, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = self.name("w")
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, *shape: int, fan: int = 0) -> str:
        """A random initializer, scaled for `fan` inputs."""
        return self.const(self.rng.standard_normal(shape) / np.sqrt(fan or 1))

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """A node; its output or outputs."""
        outs = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=f"n_{outs[0]}", **attrs))
        return outs[0] if outputs == 1 else outs

    def conv(self, x: str, c_in: int, c_out: int, k: int = 3, groups: int = 1, **attrs: Any) -> str:
        """A convolution with bias that keeps the plane's size."""
        fan = c_in // groups * k * k
        w = self.random(c_out, c_in // groups, k, k, fan=fan)
        b = self.random(c_out)
        out: str = self.op("Conv", x, w, b, group=groups, pads=[k // 2] * 4, **attrs)
        return out

    def batch_norm(self, x: str, c: int) -> str:
        """BatchNormalization with statistics of its own."""
        scale, bias, mean = (self.random(c) for _ in range(3))
        variance = self.const(self.rng.uniform(0.5, 2.0, c))
        out: str = self.op("BatchNormalization", x, scale, bias, mean, variance)
        return out

    def linear(self, x: str, c_in: int, c_out: int, bias: bool = True) -> str:
        """MatMul and Add."""
        out: str = self.op("MatMul", x, self.random(c_in, c_out, fan=c_in))
        if bias:
            out = self.op("Add", out, self.random(c_out))
        return out

    def model(
        self,
        inputs: Mapping[str, Sequence[Any]],
        outputs: Mapping[str, Sequence[Any]],
        types: Mapping[str, int] | None = None,
    ) -> onnx.ModelProto:
        """The model, checked, with inferred value_info."""
        kinds = types or {}

        def infos(of: Mapping[str, Sequence[Any]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), list(s))
                for n, s in of.items()
            ]

        graph = helper.make_graph(self.nodes, "g", infos(inputs), infos(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


@dataclass(frozen=True)
class Grab(Pass):
    """Hands out what the passes before it have noted."""

    name: ClassVar[str] = "grab"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    found: ClassVar[list[dict[Any, Any]]] = []

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Keep the notes."""
        self.found.append(dict(ctx.notes))


def prune(passes: Pass | Sequence[Pass], before: onnx.ModelProto, **kwargs: Any) -> tuple[Applied, Kept]:
    """Run passes; the result, and what is left of every tensor that shrank, by name."""
    Grab.found.clear()
    items = [passes] if isinstance(passes, Pass) else list(passes)
    done = apply([*items, Grab()], before, **kwargs)
    notes = {}
    for found in Grab.found:
        notes.update(found)
    kept = {key[1].name: value for key, value in notes.items() if isinstance(key, tuple) and key[0] == "kept"}
    return done, kept


def masked(model: onnx.ModelProto, kept: Kept) -> onnx.ModelProto:
    """The model with every tensor that shrank multiplied by ones and zeros where consumers read it.

    A recurrence reads what the layer computes: there the columns of its weight are zero instead.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    loaded = Model.load(model)
    facts = infer(loaded)
    shapes = {t.name: facts.shape(t) or () for node in loaded.graph.nodes for t in node.outputs}
    weights = {t.name: t for t in result.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.op_type in CONSUMERS:
            for slot, name in enumerate(list(node.input)):
                if name not in kept or name in weights:
                    continue
                axis, indices = kept[name]
                shape = [1] * len(shapes[name])
                size = shapes[name][axis]
                assert isinstance(size, int)
                shape[axis] = size
                values = np.zeros(size, np.float32)
                values[list(indices)] = 1
                mask = f"{name}_mask_{len(nodes)}"
                result.graph.initializer.append(numpy_helper.from_array(values.reshape(shape), mask))
                nodes.append(helper.make_node("Mul", [name, mask], [f"{mask}_out"]))
                node.input[slot] = f"{mask}_out"
        if node.op_type in _GATES:
            out = next((name for name in node.output if name in kept), None)
            if out is not None:
                old = numpy_helper.to_array(weights[node.input[2]]).copy()
                gone = np.setdiff1d(np.arange(old.shape[2]), list(kept[out][1]))
                old[:, :, gone] = 0
                fresh = f"{node.input[2]}_masked_{len(nodes)}"
                result.graph.initializer.append(numpy_helper.from_array(old, fresh))
                node.input[2] = fresh
        nodes.append(node)
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del result.graph.node[:]
    result.graph.node.extend(copies)
    onnx.checker.check_model(result)
    return result


def declared(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Declared sizes of intermediate tensors."""
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
