"""Taking single nodes of a quantized graph back to float, and tidying up what then serves no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, GraphView, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import Grid, quant_type

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# These have integer kernels, which pay only between other integer kernels.
GLUE = (
    "Add",
    "AveragePool",
    "Concat",
    "GlobalAveragePool",
    "LeakyRelu",
    "Mul",
    "Sigmoid",
    "Softmax",
    "Where",
)
# These become part of the kernel before them.
_ACTIVATIONS = ("Relu", "Clip")
# Operators that move or select elements: they have no arithmetic, quantized or not.
_PASSES_ON = frozenset(
    {
        "Clip",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Relu",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear and a DequantizeLinear that reads it."""

    quantize: Node
    dequantize: Node

    @property
    def source(self) -> Tensor:
        """The tensor before the pair."""
        tensor: Tensor = self.quantize.inputs[0]
        return tensor


def pair_before(graph: GraphView, tensor: Tensor) -> Pair | None:
    """The pair that computes `tensor`, if one does."""
    dequantize = graph.producer(tensor)
    if dequantize is None or dequantize.op != "DequantizeLinear":
        return None
    quantize = graph.producer(dequantize.inputs[0])
    if quantize is None or quantize.op != "QuantizeLinear":
        return None
    return Pair(quantize, dequantize)


def stored_constant(graph: GraphView, tensor: Tensor) -> Node | None:
    """The DequantizeLinear that computes `tensor` from a stored integer constant, if one does."""
    node = graph.producer(tensor)
    if node is None or node.op != "DequantizeLinear" or not graph.is_constant(node.inputs[0]):
        return None
    return node


def is_quantized(graph: GraphView, node: Node) -> bool:
    """Whether an operand of `node` comes out of a DequantizeLinear."""
    operands = (node.inputs[slot] for slot in _operands(node))
    return any((p := graph.producer(t)) is not None and p.op == "DequantizeLinear" for t in operands)


def quantized_nodes(graph: GraphView) -> list[Node]:
    """The quantized nodes that do the arithmetic, in topological order."""
    found = {n for n in graph.by_op(*ANCHORS) if is_quantized(graph, n)}
    return [n for n in graph.nodes() if n in found]


def weight_elements(graph: GraphView, node: Node) -> int:
    """How many weights of `node` are stored as integers."""
    total = 0
    for tensor in node.inputs:
        stored = stored_constant(graph, tensor)
        if stored is not None:
            shape = graph.static_shape(stored.inputs[0]) or ()
            total += int(np.prod(shape))
    return total


def restore(graph: Rewriter, node: Node, ctx: PassContext) -> None:
    """Have `node` compute in float: its constants as they were, its activations without their pairs.

    An activation that an integer kernel computes stays what that kernel makes of it.

    Call inside a site or a trial. What the pairs around it were good for is not looked at: see `tidy`.
    """
    for slot, tensor in enumerate(node.inputs):
        stored = stored_constant(graph, tensor)
        if stored is not None:
            values = _float_values(graph, node, slot, stored, ctx)
            graph.set_input(node, slot, graph.new_constant(f"{tensor.name}_float", values))
            continue
        pair = pair_before(graph, tensor)
        # A float reader beside the pair would take the integer kernel from the node before it.
        if pair is not None and not _is_integer_result(graph, pair.source):
            graph.set_input(node, slot, pair.source)


def _kernel_before(graph: GraphView, source: Tensor) -> Node | None:
    """The node whose kernel computes `source`; a Relu or Clip behind it is part of that kernel."""
    node = graph.producer(source)
    while node is not None and node.op in _ACTIVATIONS:
        node = graph.producer(node.inputs[0])
    return node


def _is_integer_result(graph: GraphView, source: Tensor) -> bool:
    """Whether an integer kernel computes `source`."""
    node = _kernel_before(graph, source)
    return node is not None and node.op in (*ANCHORS, *GLUE) and _is_integer(graph, node)


def _float_values(graph: GraphView, node: Node, slot: int, stored: Node, ctx: PassContext) -> Array:
    original = ctx.reference.array(node, slot)
    if original is not None:
        return original
    # The node was made after the teacher was taken, or the model came in quantized.
    stored_values, scale = graph.array(stored.inputs[0]), graph.array(stored.inputs[1])
    zero_point = graph.array(stored.inputs[2]) if len(stored.inputs) > 2 else None
    kind = quant_type(graph.dtype(stored.inputs[0]))
    if stored_values is None or scale is None or kind is None:
        raise RefusedRewrite(f"{stored.outputs[0].name} cannot be dequantized: its scale is no constant")
    axis = int(graph.attr(stored, "axis") or 0) if scale.ndim else None
    grid = Grid(kind, scale, zero_point, axis, int(graph.attr(stored, "block_size") or 0))
    return grid.dequantize(stored_values).astype(scale.dtype, copy=False)


def tidy(graph: Rewriter) -> None:
    """Remove the pairs that no integer kernel needs, and take glue between float nodes back to float.

    Call inside a site or a trial.
    """
    while _drop_pairs(graph) or _drop_glue(graph):
        pass


def _drop_pairs(graph: Rewriter) -> bool:
    changed = False
    for quantize in graph.by_op("QuantizeLinear"):
        source = quantize.inputs[0]
        readers = graph.consumers(quantize.outputs[0])
        if graph.is_constant(source) or graph.is_output(quantize.outputs[0]):
            continue
        if not readers or any(r.op != "DequantizeLinear" for r in readers):
            continue
        if not any(graph.is_read(r.outputs[0]) for r in readers):
            continue  # dead already: it goes with the site
        users = [u for r in readers for u in graph.consumers(r.outputs[0])]
        useful = any(_is_integer(graph, u) for u in users) or _needs_output_pair(graph, source)
        if useful and not _would_be_requantized(graph, source):
            continue
        changed = _bypass_pair(graph, quantize) or changed
    return changed


def _drop_glue(graph: Rewriter) -> bool:
    changed = False
    for node in graph.by_op(*GLUE):
        pairs = [pair_before(graph, node.inputs[slot]) for slot in _operands(node)]
        if not any(pairs) or not _is_integer(graph, node):
            continue
        before = any(_computed_as_integer(graph, p.source) for p in pairs if p is not None)
        after = any(_is_integer(graph, u) for u in _users(graph, node.outputs[0]))
        if before and after:
            continue
        # Each time a pair goes, so this comes to an end.
        bypassed = [_bypass_pair(graph, quantize) for quantize in _quantizers_behind(graph, node)]
        if not any(bypassed):
            continue
        changed = True
        for slot, pair in zip(_operands(node), pairs, strict=True):
            if pair is not None and not _is_integer_result(graph, pair.source):
                graph.set_input(node, slot, pair.source)
    return changed


def _would_be_requantized(graph: GraphView, source: Tensor) -> bool:
    """Whether a node in float computes `source` between a DequantizeLinear and this pair.

    onnxruntime quantizes the float weight of such a node itself, for each tensor and without being asked.
    """
    node = _kernel_before(graph, source)
    return (
        node is not None
        and node.op in ANCHORS
        and not _is_integer(graph, node)
        and any(pair_before(graph, node.inputs[slot]) is not None for slot in _operands(node))
    )


def _bypass_pair(graph: Rewriter, quantize: Node) -> bool:
    """Have the readers behind a QuantizeLinear read what is before it; whether any of them does then."""
    done = False
    for reader in graph.consumers(quantize.outputs[0]):
        if not graph.is_read(reader.outputs[0]):
            continue
        try:
            graph.bypass(reader.outputs[0], quantize.inputs[0])
            done = True
        except RefusedRewrite:
            continue  # it computes an output of the graph by that name
    return done


def _quantizers_behind(graph: GraphView, node: Node) -> list[Node]:
    """The live QuantizeLinear nodes that read a result of `node`, behind a Relu or Clip if there is one."""
    found = []
    for reader in graph.consumers(node.outputs[0]):
        if reader.op in _ACTIVATIONS:
            found += _quantizers_behind(graph, reader)
        elif reader.op == "QuantizeLinear" and _is_live(graph, reader):
            found.append(reader)
    return found


def _operands(node: Node) -> range:
    """Slots of the inputs that a kernel computes with (not the bias)."""
    if node.op in ("Concat",):
        return range(len(node.inputs))
    if node.op == "Where":
        return range(1, min(3, len(node.inputs)))
    return range(min(2 if node.op in (*ANCHORS, "Add", "Mul") else 1, len(node.inputs)))


def _is_integer(graph: GraphView, node: Node) -> bool:
    """Whether the pairs around `node` let it run as an integer kernel."""
    if node.op in ANCHORS:
        return bool(_operands(node)) and all(
            (p := graph.producer(node.inputs[slot])) is not None and p.op == "DequantizeLinear"
            for slot in _operands(node)
        )
    if node.op in GLUE:
        operands = [node.inputs[slot] for slot in _operands(node)]
        if any(pair_before(graph, t) is None and stored_constant(graph, t) is None for t in operands):
            return False
        return _output_is_quantized(graph, node)
    if node.op in _PASSES_ON:
        return _output_is_quantized(graph, node)
    return False


def _output_is_quantized(graph: GraphView, node: Node) -> bool:
    readers = [r for r in graph.consumers(node.outputs[0]) if _is_live(graph, r)]
    return bool(readers) and all(
        r.op == "QuantizeLinear" or (r.op in _ACTIVATIONS and _output_is_quantized(graph, r)) for r in readers
    )


def _is_live(graph: GraphView, node: Node) -> bool:
    """Whether a reader is one still: in a trial, dead pairs stand until its end."""
    if node.op == "QuantizeLinear":
        return any(_is_live(graph, r) for r in graph.consumers(node.outputs[0]))
    return any(graph.is_read(t) for t in node.outputs if t.name)


def _needs_output_pair(graph: GraphView, source: Tensor) -> bool:
    """Whether the kernel that computes `source` is an integer one only if its output is quantized."""
    node = _kernel_before(graph, source)
    through = node is not graph.producer(source)
    # A product's result may stay float, but not with an activation behind it.
    needy = ("Conv", *GLUE, *(("MatMul", "Gemm") if through else ()))
    return node is not None and node.op in needy and _is_integer(graph, node)


def _computed_as_integer(graph: GraphView, source: Tensor) -> bool:
    """Whether an integer kernel computes `source`, seen through what only moves elements."""
    node = graph.producer(source)
    while node is not None and (node.op in _PASSES_ON or node.op in ("QuantizeLinear", "DequantizeLinear")):
        node = graph.producer(node.inputs[0])
    return node is not None and node.op in (*ANCHORS, *GLUE) and _is_integer(graph, node)


def _users(graph: GraphView, tensor: Tensor) -> Iterator[Node]:
    """Nodes that compute with `tensor`, seen through pairs and through what only moves elements."""
    pending, seen = [tensor], {tensor}
    while pending:
        for reader in graph.consumers(pending.pop()):
            if reader.op in _PASSES_ON or reader.op in ("QuantizeLinear", "DequantizeLinear"):
                for t in reader.outputs:
                    if t not in seen:
                        seen.add(t)
                        pending.append(t)
            else:
                yield reader
