"""A region of the graph that a fusion replaces, collected while walking backwards from its last node."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.defs

from graphopt.passkit import AttributeRef, GraphView, Node, PassContext, RefusedRewrite, Rewriter, Tensor

_TYPES = onnx.TensorProto.DataType
MICROSOFT = "com.microsoft"
# The contrib kernels of ONNX Runtime are registered for these on every provider.
_CONTRIB_TYPES = frozenset({_TYPES.FLOAT, _TYPES.FLOAT16})
_EPS: dict[int, float] = {
    _TYPES.FLOAT: 2.0**-23,
    _TYPES.FLOAT16: 2.0**-10,
    _TYPES.DOUBLE: 2.0**-52,
    _TYPES.BFLOAT16: 2.0**-7,
}


class Region:
    """Nodes that vanish when the last of them is replaced.

    Attributes:
        graph: the body.
        nodes: the nodes so far.
        widest: the highest rank of the one-element constants met so far: broadcasting against them
            gives the result at least this rank.
    """

    def __init__(self, graph: GraphView) -> None:
        self.graph = graph
        self.nodes: dict[Node, None] = {}
        self.widest = 0

    def fork(self) -> Region:
        """A copy, for an attempt that may fail."""
        copy = Region(self.graph)
        copy.nodes, copy.widest = dict(self.nodes), self.widest
        return copy

    def join(self, other: Region) -> None:
        """Take over what an attempt that succeeded has collected."""
        self.nodes.update(other.nodes)
        self.widest = max(self.widest, other.widest)

    def find(self, tensor: Tensor | None, *ops: str) -> Node | None:
        """The node of this body and of type `ops` that computes `tensor`, which joins the region."""
        node = self.graph.producer_op(tensor, *ops)
        if node is None or tensor is None or not self.graph.is_live(node) or node.outputs[0] is not tensor:
            return None
        self.nodes[node] = None
        return node

    def scalar(self, tensor: Tensor | None) -> float | None:
        """The value of a numeric one-element constant."""
        constant = self.graph.constant(tensor)
        if constant is None or any(d != 1 for d in constant.shape):
            return None
        value = self.graph.scalar(constant)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        self.widest = max(self.widest, len(constant.shape))
        return float(value)

    def check_closed(self, root: Node) -> None:
        """Decline if a node other than `root` would have to stay.

        Raises:
            RefusedRewrite: one of its results is an output, is kept, or has a reader outside the region.
        """
        graph = self.graph
        for node in self.nodes:
            if node is root:
                continue
            for t in node.outputs:
                if graph.is_output(t):
                    raise RefusedRewrite(f"the {node.op} output {t.name} is a graph output")
                if not graph.only_read_by(t, self.nodes):
                    raise RefusedRewrite(f"the {node.op} output {t.name} has another reader")
            if graph.keeps(node):
                raise RefusedRewrite(f"{node.name or node.outputs[0].name} is kept")

    def check_rank(self, tensor: Tensor) -> None:
        """Decline if a constant has more dimensions than `tensor` may have, so that the result has too.

        Raises:
            RefusedRewrite: saying so.
        """
        rank = self.graph.rank(tensor)
        if self.widest > (rank or 0):
            known = "of unknown rank" if rank is None else f"of rank {rank}"
            raise RefusedRewrite(f"a constant of rank {self.widest} broadcasts {tensor.name} {known}")


def epsilon(dtype: int | None) -> float | None:
    """Distance from 1 to the next number of a float type; None for other types."""
    return None if dtype is None else _EPS.get(dtype)


def plain_attr(graph: GraphView, node: Node, name: str) -> object:
    """An attribute's value or default; None where it refers to a parameter of the function."""
    value = graph.attr(node, name)
    return None if isinstance(value, AttributeRef) else value


@cache
def _accepted(op: str, opset: int) -> frozenset[str]:
    schema = onnx.defs.get_schema(op, opset, "")
    return frozenset(schema.inputs[0].types)


def accepts(graph: GraphView, op: str, dtype: int | None) -> bool:
    """Whether the body's opset has `op` for inputs of type `dtype`."""
    if dtype is None or not graph.has_op(op):
        return False
    spelled = _TYPES.Name(dtype).lower()
    return f"tensor({spelled})" in _accepted(op, graph.opset)


def contrib_accepts(ctx: PassContext, op: str, dtype: int | None) -> bool:
    """Whether the target executes com.microsoft's `op` for inputs of type `dtype`."""
    return dtype in _CONTRIB_TYPES and ctx.target.has_contrib(op)


def replace_by_contrib(
    graph: Rewriter, old: Tensor, op: str, inputs: list[Tensor], attrs: dict[str, object] | None = None
) -> None:
    """`op` of com.microsoft computes `old`; the body imports the domain if it does not yet."""
    graph.import_domain(MICROSOFT, 1)
    graph.replace(old, op, inputs, attrs=attrs, domain=MICROSOFT)
