"""Decoder-like graphs of any size, as messy as exporters make them.

    python synthetic.py nodes 10000 OUT.onnx      about 10,000 nodes, tiny weights
    python synthetic.py bytes 4000000000 OUT.onnx about 4 GB of weights in OUT.onnx.data

Every layer carries what an optimizer is there to remove: shape arithmetic at run time, Constant nodes,
decomposed normalizations and activations, the same expression twice, identities, casts to the same type,
Dropout, a branch that nobody reads, arithmetic on constants and, every eighth layer, an If with a constant
condition.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Array = np.ndarray[Any, Any]


class Weights(Protocol):
    """Makes a weight of a given shape."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> TensorProto: ...


@dataclass
class InlineWeights:
    """Small random weights inside the model."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, name: str, shape: tuple[int, ...]) -> TensorProto:
        values = self.random.standard_normal(shape) / np.sqrt(shape[0])
        return numpy_helper.from_array(values.astype(np.float32), name)


@dataclass
class ExternalWeights:
    """Large random weights, written straight to one external data file."""

    path: Path
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    offset: int = 0

    def __post_init__(self) -> None:
        self.noise = (0.02 * self.random.standard_normal(1 << 22)).astype(np.float32)
        self.path.write_bytes(b"")

    def __call__(self, name: str, shape: tuple[int, ...]) -> TensorProto:
        """Noise from a random place on, repeated: no two weights are equal, and drawing them is cheap."""
        elements = int(np.prod(shape))
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            left = elements
            while left:
                start = int(self.random.integers(0, self.noise.size // 2))
                piece = self.noise[start : start + left]
                file.write(piece.tobytes())
                left -= piece.size
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self.path.name, "offset": self.offset, "length": 4 * elements}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.offset += -(-4 * elements // 4096) * 4096
        return tensor


@dataclass(frozen=True)
class Size:
    """Widths of the decoder."""

    width: int = 16
    inner: int = 24
    heads: int = 4
    groups: int = 2
    vocabulary: int = 64

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's weights."""
        attention = 2 * self.width * self.width + 2 * self.width * self.groups * self.head
        return 4 * (attention + 3 * self.width * self.inner)


class Decoder:
    """Collects nodes and weights, layer by layer. Tensors are names; hidden is (batch, sequence, width)."""

    def __init__(self, size: Size, weights: Weights) -> None:
        self.size, self.weights = size, weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        table = self.weight(size.vocabulary, size.width)
        self.hidden = self.op("Gather", table, "input_ids")
        self.layers = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and name its output."""
        output = f"/model/{kind}_{len(self.nodes)}_output_0"
        name = output.removesuffix("_output_0")
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """A Constant node, one per use, as exporters write them."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def weight(self, *shape: int) -> str:
        """An initializer."""
        self.initializers.append(self.weights(f"model.weight_{len(self.initializers)}", shape))
        return self.initializers[-1].name

    def vector(self, value: float, length: int) -> str:
        """A constant vector as an initializer: each one equals many others."""
        name = f"model.vector_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.full(length, value, np.float32), name))
        return name

    def linear(self, x: str, rows: int, columns: int) -> str:
        """x @ W"""
        return self.op("MatMul", x, self.weight(rows, columns))

    def dim(self, x: str, axis: int) -> str:
        """One dim of `x` as a vector of one element."""
        size = self.op("Gather", self.op("Shape", x), self.constant(axis, np.int64), axis=0)
        return self.op("Unsqueeze", size, self.constant([0], np.int64))

    def shape_like(self, x: str, *tail: int) -> str:
        """The vector (batch, sequence, *tail), with batch and sequence taken from `x` at run time."""
        fixed = [self.constant([length], np.int64) for length in tail]
        return self.op("Concat", self.dim(x, 0), self.dim(x, 1), *fixed, axis=0)

    def norm(self, x: str) -> str:
        """RMS normalization in primitive operators, its input cast to float once more than needed."""
        wide = self.op("Cast", x, to=TensorProto.FLOAT)
        square = self.op("Pow", wide, self.constant(2.0))
        mean = self.op("ReduceMean", square, axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(1e-6)))
        scaled = self.op("Mul", x, self.op("Div", self.constant(1.0), root))
        return self.op("Mul", self.vector(1.0, self.size.width), scaled)

    def split_heads(self, x: str, heads: int) -> str:
        """(B, S, heads * head) -> (B, heads, S, head)"""
        parted = self.op("Reshape", x, self.shape_like(x, heads, self.size.head))
        return self.op("Transpose", parted, perm=[0, 2, 1, 3])

    def repeat(self, x: str) -> str:
        """(B, groups, S, head) -> (B, heads, S, head) through Expand, as exporters write grouped queries."""
        size = self.size
        times = size.heads // size.groups
        batch, sequence = self.dim(x, 0), self.dim(x, 2)
        groups, copies, head = (self.constant([n], np.int64) for n in (size.groups, times, size.head))
        five = self.op("Concat", batch, groups, copies, sequence, head, axis=0)
        wide = self.op("Expand", self.op("Unsqueeze", x, self.constant([2], np.int64)), five)
        heads = self.op("Mul", groups, copies)
        return self.op("Reshape", wide, self.op("Concat", batch, heads, sequence, head, axis=0))

    def causal_bias(self, x: str) -> str:
        """(S, S): 0 where a position may look, -1e4 where not; computed anew in every layer."""
        square = self.op("Concat", self.dim(x, 1), self.dim(x, 1), axis=0)
        ones = self.op("ConstantOfShape", square, value=numpy_helper.from_array(np.ones(1, np.float32)))
        allowed = self.op("Cast", self.op("Trilu", ones, upper=0), to=TensorProto.BOOL)
        return self.op("Where", allowed, self.constant(0.0), self.constant(-1e4))

    def attention(self, x: str) -> str:
        """Causal grouped-query attention with its scale computed from constants."""
        size = self.size
        narrow = size.groups * size.head
        query = self.split_heads(self.linear(x, size.width, size.width), size.heads)
        key = self.repeat(self.split_heads(self.linear(x, size.width, narrow), size.groups))
        value = self.repeat(self.split_heads(self.linear(x, size.width, narrow), size.groups))
        scale = self.op("Sqrt", self.op("Cast", self.constant(size.head, np.int64), to=TensorProto.FLOAT))
        scores = self.op("Div", self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2])), scale)
        weights = self.op("Softmax", self.op("Add", scores, self.causal_bias(x)), axis=-1)
        context = self.op("MatMul", self.op("Dropout", self.op("Identity", weights)), value)
        context = self.op("Transpose", context, perm=[0, 2, 1, 3])
        merged = self.op("Reshape", context, self.shape_like(x, size.width))
        return self.linear(merged, size.width, size.width)

    def feed_forward(self, x: str) -> str:
        """Gated feed-forward: SiLU in even layers, Gelu through Erf in odd ones."""
        gate = self.linear(x, self.size.width, self.size.inner)
        if self.layers % 2:
            erf = self.op("Erf", self.op("Div", gate, self.constant(np.sqrt(2.0))))
            tail = self.op("Mul", gate, self.op("Add", erf, self.constant(1.0)))
            active = self.op("Mul", tail, self.constant(0.5))
        else:
            active = self.op("Mul", gate, self.op("Sigmoid", gate))
        product = self.op("Mul", active, self.linear(x, self.size.width, self.size.inner))
        return self.linear(product, self.size.inner, self.size.width)

    def residual(self, branch: str) -> None:
        """Add a branch, damped so that hundreds of layers stay numerically tame."""
        self.hidden = self.op("Add", self.hidden, self.op("Mul", branch, self.constant(0.1)))

    def choice(self) -> None:
        """An If whose condition is always true: only one of its branches can ever run."""
        bodies = {}
        for branch, kind in (("then_branch", "Identity"), ("else_branch", "Neg")):
            output = helper.make_tensor_value_info(f"{branch}_{self.layers}", TensorProto.FLOAT, None)
            node = helper.make_node(kind, [self.hidden], [output.name], name=f"/model/{branch}_{self.layers}")
            bodies[branch] = helper.make_graph([node], branch, [], [output])
        self.hidden = self.op("If", self.constant(True, np.bool_), **bodies)

    def layer(self) -> None:
        """One decoder layer."""
        attended = self.norm(self.hidden)
        self.op("Relu", self.op("Neg", self.norm(self.hidden)))  # computed twice, and read by nobody
        self.residual(self.attention(attended))
        self.residual(self.feed_forward(self.norm(self.hidden)))
        if self.layers % 8 == 7:
            self.choice()
        self.layers += 1

    def model(self) -> onnx.ModelProto:
        """The finished model: input_ids (batch, sequence) int64 -> hidden (batch, sequence, width)."""
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        dims: Sequence[str | int] = ["batch", "sequence", self.size.width]
        self.nodes.append(
            helper.make_node("Identity", [self.norm(self.hidden)], ["hidden"], name="/model/out")
        )
        hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, "decoder", [ids], [hidden], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def with_nodes(nodes: int, path: Path) -> None:
    """Write a decoder of at least `nodes` nodes (Constants included), with tiny weights inside the file."""
    decoder = Decoder(Size(), InlineWeights())
    while len(decoder.nodes) < nodes:
        decoder.layer()
    onnx.save(decoder.model(), path)


def with_bytes(nbytes: int, path: Path) -> None:
    """Write a decoder with about `nbytes` of weights in `path`.data."""
    size = Size(width=2048, inner=5632, heads=32, groups=8, vocabulary=8192)
    decoder = Decoder(size, ExternalWeights(path.with_name(f"{path.name}.data")))
    for _ in range(max(1, round(nbytes / size.layer_bytes))):
        decoder.layer()
    onnx.save(decoder.model(), path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a messy decoder-like model.")
    parser.add_argument("what", choices=("nodes", "bytes"))
    parser.add_argument("amount", type=int)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    (with_nodes if args.what == "nodes" else with_bytes)(args.amount, args.out)


if __name__ == "__main__":
    main()
