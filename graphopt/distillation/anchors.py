"""Tensors of a model that another one may have as well: what layers compute, sums of branches, norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from graphopt.graph.dataflow import reads
from graphopt.graph.view import GraphView
from graphopt.ir import Node, Tensor

Kind = Literal["layer", "sum", "norm"]

_LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Along axis 1 they have their channels; all other operators along the last axis.
_AXIS_1: Final = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization")
_NORMS: Final = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
# What an operand of attention goes through on its way to the product.
_MOVES: Final = (
    "Add Cast Concat Div Gather Identity Mul Neg Reshape Slice Split Squeeze Transpose Unsqueeze".split()
)
_PRODUCTS: Final = ("Attention", "Einsum", "MatMul", "MultiHeadAttention", "GroupQueryAttention")
_REACH: Final = 32
# They treat every channel by itself, and alike whatever its number.
_CHANNELWISE: Final = frozenset(
    "Abs Add AveragePool BatchNormalization Cast Celu Clip Div Dropout Elu Erf Exp Gelu "
    "GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Identity "
    "InstanceNormalization LayerNormalization LeakyRelu Max MaxPool Min Mish Mul Neg Pad Pow PRelu "
    "ReduceMean Relu Resize RMSNormalization Selu Sigmoid Softplus Softsign Sqrt Sub Sum Swish Tanh "
    "ThresholdedRelu Where".split()
)


@dataclass(frozen=True, eq=False)
class Anchor:
    """A tensor that may be compared with one of another model.

    Attributes:
        tensor: the tensor.
        kind: what computes it.
        axis: along which its channels lie: 1 or -1.
        level: how many anchors lie on the way to it.
        attends: what it is in attention, "q", "k" or "v": there its channels have an order. "" outside.
        clipped: what reads it is a Relu.
        group: anchors with the same number have the same channels.
        owner: output of the layer that is judged by it; for a norm its own.
        form: kernel and strides of a convolution.
    """

    tensor: Tensor
    kind: Kind
    axis: int
    level: int
    attends: str
    clipped: bool
    group: int
    owner: str
    form: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The tensor's name."""
        return str(self.tensor.name)


def find_anchors(graph: GraphView) -> list[Anchor]:
    """The anchors of a body, in its order."""
    found: dict[Tensor, tuple[Kind, int]] = {}
    owner: dict[Tensor, Node] = {}
    for node in graph.nodes():
        axis = 1 if node.op in _AXIS_1 else -1
        if graph.is_op(node, *_LAYERS) and any(graph.is_constant(t) for t in node.inputs[:2]):
            tensor = behind_bias(graph, node.outputs[0])
            found.setdefault(tensor, ("layer", axis))
            owner[tensor] = node
            for total in _sums(graph, tensor):
                found.setdefault(total, ("sum", axis))
                owner[total] = node
        elif graph.is_op(node, *_NORMS) and node.outputs[0] not in owner:
            found[node.outputs[0]] = ("norm", axis)
            owner[node.outputs[0]] = node
    level = _levels(graph, found)
    groups = _Groups(graph)
    return [
        Anchor(
            t,
            kind,
            axis,
            level[t],
            _attends(graph, t) if kind == "layer" else "",
            _clipped(graph, t),
            groups.number(t),
            str(owner[t].outputs[0].name),
            _form(graph, owner[t]),
        )
        for t, (kind, axis) in found.items()
    ]


def behind_bias(graph: GraphView, tensor: Tensor) -> Tensor:
    """What a layer computes once its bias is added and its BatchNormalization applied."""
    while (reader := graph.sole_consumer(tensor)) is not None and graph.is_live(reader):
        rest = [t for t in reader.inputs if t is not tensor]
        constant = all(graph.is_constant(t) for t in rest)
        if not constant or not graph.is_op(reader, "Add", "BatchNormalization"):
            break
        if graph.rank(reader.outputs[0]) != graph.rank(tensor):
            break
        tensor = reader.outputs[0]
    return tensor


def _sums(graph: GraphView, tensor: Tensor) -> Iterator[Tensor]:
    """The sums of branches that a layer's output goes into."""
    while (reader := graph.sole_consumer(tensor)) is not None and graph.is_live(reader):
        if not graph.is_op(reader, "Add") or any(graph.is_constant(t) for t in reader.inputs):
            return
        tensor = reader.outputs[0]
        yield tensor


def _levels(graph: GraphView, anchors: dict[Tensor, tuple[Kind, int]]) -> dict[Tensor, int]:
    level: dict[Tensor, int] = {}
    for node in graph.nodes():
        before = max((level.get(t, 0) for t in reads(node)), default=0)
        for tensor in node.outputs:
            level[tensor] = before + (tensor in anchors)
    return level


def _attends(graph: GraphView, tensor: Tensor) -> str:
    """As what `tensor` goes into attention: some of "k", "q" and "v"; "" if it does not."""
    found: set[str] = set()
    seen, stack = {tensor}, [tensor]
    while stack and len(seen) < _REACH:
        current = stack.pop()
        for reader in graph.consumers(current):
            dynamic = [t for t in reader.inputs if t.name and not graph.is_constant(t)]
            if reader.op in _PRODUCTS and len(dynamic) > 1:
                found.add(_role(graph, reader, current))
                continue
            if reader.op not in _MOVES or (reader.op in ("Add", "Mul", "Div") and len(dynamic) > 1):
                continue
            new = [t for t in reader.outputs if t not in seen]
            seen.update(new)
            stack += new
    return "".join(sorted(found))


def _role(graph: GraphView, product: Node, operand: Tensor) -> str:
    slot = next(i for i, t in enumerate(product.inputs) if t is operand)
    if product.op not in ("MatMul", "Einsum"):
        return "qkv"[min(slot, 2)]
    seen, stack = set(product.outputs), list(product.outputs)
    while stack and len(seen) < _REACH:
        for reader in graph.consumers(stack.pop()):
            if reader.op == "Softmax":
                return "qk"[slot]
            if reader.op in (*_MOVES, "Where"):
                new = [t for t in reader.outputs if t not in seen]
                seen.update(new)
                stack += new
    return "v"


def _form(graph: GraphView, node: Node) -> tuple[int, ...]:
    if node.op != "Conv":
        return ()
    shape = graph.static_shape(node.inputs[1]) or ()
    return (*shape[2:], *(graph.attr(node, "strides") or ()))


def _clipped(graph: GraphView, tensor: Tensor) -> bool:
    readers = graph.consumers(tensor)
    return bool(readers) and all(graph.is_op(reader, "Relu") for reader in readers)


class _Groups:
    """Sets of tensors with the same channels."""

    def __init__(self, graph: GraphView) -> None:
        self._parent: dict[Tensor, Tensor] = {}
        self._numbers: dict[Tensor, int] = {}
        for node in graph.nodes():
            if _is_channelwise(graph, node):
                dynamic = [t for t in node.inputs if t.name and not graph.is_constant(t)]
                rank = graph.rank(node.outputs[0])
                for t in dynamic:
                    if graph.rank(t) == rank:
                        self._join(t, node.outputs[0])

    def _find(self, tensor: Tensor) -> Tensor:
        while (parent := self._parent.get(tensor, tensor)) is not tensor:
            tensor = parent
        return tensor

    def _join(self, a: Tensor, b: Tensor) -> None:
        a, b = self._find(a), self._find(b)
        if a is not b:
            self._parent[b] = a

    def number(self, tensor: Tensor) -> int:
        """The number of the set of `tensor`."""
        return self._numbers.setdefault(self._find(tensor), len(self._numbers))


def _is_channelwise(graph: GraphView, node: Node) -> bool:
    if graph.is_op(node, *_CHANNELWISE):
        return True
    if not graph.is_op(node, "Conv"):
        return False
    shape = graph.static_shape(node.inputs[1])
    group = graph.attr(node, "group")
    return shape is not None and group == shape[0] and shape[1] == 1 and group > 1
