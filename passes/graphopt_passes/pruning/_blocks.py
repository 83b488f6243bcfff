"""Residual blocks: what adds f(x) to x, and can be left out so that x goes on as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from graphopt.passkit import RANDOM_OPS, GraphView, Node, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.pruning._regions import Flow, summands

#: What makes a region a layer: operators with weights, and those that mix positions or steps.
LAYERS: Final = frozenset(
    "Attention Conv ConvInteger ConvTranspose DeformConv DynamicQuantizeLSTM DynamicQuantizeMatMul Einsum "
    "FusedConv FusedGemm FusedMatMul Gemm GroupQueryAttention GRU "
    "LinearAttention LSTM MatMul MatMulInteger MatMulIntegerToFloat MatMulNBits MoE "
    "MultiHeadAttention PackedAttention PackedMultiHeadAttention QAttention QGemm QLinearConv "
    "QLinearMatMul QMoE RNN".split()
)
_ATTENTION: Final = frozenset(
    "Attention GroupQueryAttention MultiHeadAttention PackedAttention PackedMultiHeadAttention QAttention "
    "Softmax".split()
)
_NORMS: Final = ("LayerNormalization", "RMSNormalization", "BatchNormalization")
# Sum is an Add of several tensors.
_ADDS: Final = ("Add", "Sum")


@dataclass(frozen=True, eq=False)
class Block:
    """x + f(x).

    Attributes:
        root: the Add.
        source: x.
        ends: tensors in whose place x may be read: what the Add computes; and what a norm behind it does.
        nodes: f, and the Add.
    """

    root: Node
    source: Tensor
    ends: tuple[Tensor, ...]
    nodes: frozenset[Node]

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.root.name or self.root.outputs[0].name)

    @property
    def is_attention(self) -> bool:
        """Whether positions attend to each other in it."""
        return any(node.op in _ATTENTION for node in self.nodes)

    @property
    def axis(self) -> int:
        """Where the channels of x lie."""
        return 1 if any(node.op.endswith(("Conv", "ConvTranspose")) for node in self.nodes) else -1


def find_blocks(graph: Rewriter) -> tuple[list[Block], dict[Node, str]]:
    """The residual blocks of a body, in its order, and why others that look like one are none."""
    flow = Flow(graph)
    blocks: list[Block] = []
    declined: dict[Node, str] = {}
    part: set[Node] = set()  # Adds that are summands of a larger sum that is a block
    for root in reversed(graph.by_op(*_ADDS)):
        if root in part:
            continue
        for terms, adds in (summands(graph, root, _ADDS), (list(root.inputs), frozenset((root,)))):
            try:
                block = _block(graph, flow, root, terms, adds)
            except RefusedRewrite as refused:
                declined[root] = refused.reason
                part |= adds
                break
            if block is not None:
                blocks.append(block)
                part |= adds
                break
            if len(adds) == 1:
                break
    rank = flow.rank
    return sorted(blocks, key=lambda b: rank[b.root]), declined


def _block(
    graph: Rewriter, flow: Flow, root: Node, terms: Sequence[Tensor], adds: frozenset[Node]
) -> Block | None:
    """The block that ends in `root`, where one does; raises RefusedRewrite if it cannot be left out."""
    terms = [t for t in terms if not graph.is_constant(t)]
    if len(terms) < 2:
        return None
    for x in terms:
        rest = [t for t in terms if t is not x]
        region = flow.between(x, rest, root) if len(rest) == len(terms) - 1 else None
        if region is not None:
            nodes = frozenset(region | adds)
            if not any(node.op in LAYERS for node in nodes):
                return None
            _check(graph, x, root, nodes)
            return Block(root, x, _ends(graph, x, root), nodes)
    if len(terms) == 2 and flow.both_computed(terms[0], terms[1], LAYERS):
        raise RefusedRewrite(
            "there is a layer on the shortcut as well: no input can take the place of the sum"
        )
    return None


def _check(graph: Rewriter, x: Tensor, root: Node, nodes: frozenset[Node]) -> None:
    before, after = graph.shape(x), graph.shape(root.outputs[0])
    if before is None or after is None or before != after:
        raise RefusedRewrite(f"{x.name} has {_words(before)}, and the sum {_words(after)}")
    for node in nodes:
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name or node.op} is kept")
        if node.op in RANDOM_OPS or any(n.op in RANDOM_OPS for n in _inner(node)):
            raise RefusedRewrite(f"{node.name or node.op} draws random numbers")
        for tensor in node.outputs:
            if node is root or not tensor.name:
                continue
            if graph.keeps(tensor):
                raise RefusedRewrite(f"{tensor.name} is kept")
            if graph.is_output(tensor):
                raise RefusedRewrite(f"{tensor.name}, inside the block, is an output")
            for reader in graph.consumers(tensor):
                if reader not in nodes:
                    captured = not graph.is_live(reader)
                    by = "captured by a body" if captured else f"read by {reader.name or reader.op}"
                    raise RefusedRewrite(f"{tensor.name}, inside the block, is {by} outside of it")
    with graph.trial(root):
        graph.bypass(root.outputs[0], x)


def _words(shape: Sequence[object] | None) -> str:
    return "a shape that is not known" if shape is None else f"the shape [{', '.join(map(str, shape))}]"


def _inner(node: Node) -> list[Node]:
    """The nodes of all bodies in a node."""
    found: list[Node] = []
    for body in node.bodies():
        for inner in body.nodes:
            found += [inner, *_inner(inner)]
    return found


def _ends(graph: Rewriter, x: Tensor, root: Node) -> tuple[Tensor, ...]:
    """The sum; and what is behind it and was applied to x already."""
    total = root.outputs[0]
    reader, before = graph.sole_consumer(total), graph.producer(x)
    if reader is None or before is None or reader.inputs[0] is not total or graph.keeps(reader):
        return (total,)
    after: Tensor = reader.outputs[0]
    if graph.shape(after) != graph.shape(x):
        return (total,)
    try:
        with graph.trial(root):
            graph.bypass(after, x)
    except RefusedRewrite:
        return (total,)
    if graph.is_op(reader, "Relu") and graph.is_op(before, "Relu"):
        return (after,)  # Relu(Relu(x)) = Relu(x)
    if graph.is_op(reader, *_NORMS) and graph.is_op(before, reader.op):
        return (total, after)
    return (total,)


def chains(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that follow each other, the one reading what the other computes."""
    found: list[list[Block]] = []
    for block in blocks:
        for chain in found:
            if any(block.source is end for end in chain[-1].ends):
                chain.append(block)
                break
        else:
            found.append([block])
    return found


def pairs(blocks: Sequence[Block]) -> list[tuple[Block, ...]]:
    """Whole layers: an attention block with the block behind it; without attention, neighbors two by two."""
    found: list[tuple[Block, ...]] = []
    for chain in chains(blocks):
        if any(block.is_attention for block in chain):
            found += [(a, b) for a, b in pairwise(chain) if a.is_attention and not b.is_attention]
        else:
            found += list(zip(chain[::2], chain[1::2], strict=False))
    return found


def skip(graph: Rewriter, unit: Sequence[Block], behind: bool) -> None:
    """Have what follows the blocks read what goes into them.

    Args:
        graph: the body; call this in a site or a trial.
        unit: the blocks, in order.
        behind: leave out norms behind them as well, where there are any.
    """
    now: dict[Tensor, Tensor] = {}
    for block in unit:
        x, end = block.source, block.ends[-1 if behind else 0]
        while x in now:
            x = now[x]
        is_output = graph.is_output(end)
        graph.bypass(end, x)
        if is_output:
            now[x] = end  # which the producer of x computes from here on
        else:
            now[end] = x


def weights(graph: GraphView) -> int:
    """How many numbers the constants of a body hold."""
    found = {c: c for node in graph.nodes() for t in node.inputs if (c := graph.constant(t)) is not None}
    total = 0
    for constant in found:
        size = 1
        for dim in constant.shape:
            size *= dim
        total += size
    return total
