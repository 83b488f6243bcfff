"""Who produces, reads and holds what: one identity-keyed index over every body of a model.

onnx-graphsurgeon's own links are lists from which removal costs O(readers); here every link is a dict
entry. The index covers all bodies at once, so a tensor captured by an If or Loop body counts its
readers there like any other.

Each node carries a *rank*: a float such that a producer ranks below its readers. New nodes get a rank
just above their producers, so sorting by rank is the topological order without sorting the graph anew
after every rewrite; `GraphState.settle_order` re-ranks in the rare case that it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from graphopt.ir import Body, Constant, Function, Graph, Node, Tensor, bodies


class Use(NamedTuple):
    """One reading of a tensor: `node.inputs[slot]`."""

    node: Node
    slot: int


class Index:
    """Links of a whole model. Only GraphState writes to it; everything else reads.

    Attributes:
        producer: tensor -> the node that computes it.
        readers: tensor -> {reading node: number of slots}. Nodes of every body.
        output_slots: tensor -> number of body outputs that are this tensor.
        home: node -> the body it stands in.
        holder: body -> the node whose attribute it is; absent for the main graph and functions.
        nodes: body -> its nodes, in insertion order.
        by_op: body -> (domain, op) -> nodes.
        rank: node -> its place in the topological order of its body.
        constant_home: initializer -> the body that owns it.
        names: every tensor and node name in use.
        suffixes: the last number that was put behind a name to make a new one.
    """

    def __init__(self, main: Graph) -> None:
        self.producer: dict[Tensor, Node] = {}
        self.readers: dict[Tensor, dict[Node, int]] = {}
        self.output_slots: dict[Tensor, int] = {}
        self.home: dict[Node, Body] = {}
        self.holder: dict[Body, Node] = {}
        self.nodes: dict[Body, dict[Node, None]] = {}
        self.by_op: dict[Body, dict[tuple[str, str], dict[Node, None]]] = {}
        self.rank: dict[Node, float] = {}
        self.constant_home: dict[Constant, Body] = {}
        self.names: set[str] = set()
        self.suffixes: dict[str, int] = {}
        self.function_ops = frozenset((f.domain or "", f.name) for f in main.functions)
        for body in bodies(main):
            self.add_body(body)

    def add_body(self, body: Body) -> None:
        """Index `body` and its nodes, not the bodies that they hold."""
        self.nodes[body] = {}
        self.by_op[body] = {}
        names = self.names
        for constant in body.initializers:
            self.constant_home[constant] = body
            names.add(constant.name)
        names.update(t.name for t in body.inputs)
        for t in body.outputs:
            self.output_slots[t] = self.output_slots.get(t, 0) + 1
        for place, node in enumerate(body.nodes):
            self.add_node(body, node, float(place))
            names.add(node.name)
            names.update(t.name for t in node.outputs)

    def add_node(self, body: Body, node: Node, rank: float) -> None:
        """Link `node` into `body`."""
        self.home[node] = body
        self.nodes[body][node] = None
        self.by_op[body].setdefault((node.domain or "", node.op), {})[node] = None
        self.rank[node] = rank
        for inner in node.bodies():
            self.holder[inner] = node
        readers = self.readers
        for t in node.inputs:
            if t.name:
                slots = readers.setdefault(t, {})
                slots[node] = slots.get(node, 0) + 1
        for t in node.outputs:
            if t.name:
                self.producer[t] = node

    def remove_node(self, node: Node) -> None:
        """Unlink `node` from its body. Its input and output lists stay as they are."""
        body = self.home.pop(node)
        del self.nodes[body][node]
        del self.by_op[body][(node.domain or "", node.op)][node]
        self.rank.pop(node, None)
        for t in node.inputs:
            if t.name:
                self.unread(t, node)
        for t in node.outputs:
            if self.producer.get(t) is node:
                del self.producer[t]

    def read(self, tensor: Tensor, node: Node) -> None:
        """Count one more slot of `node` that reads `tensor`."""
        slots = self.readers.setdefault(tensor, {})
        slots[node] = slots.get(node, 0) + 1

    def unread(self, tensor: Tensor, node: Node) -> None:
        """Count one slot less; the pair vanishes at zero."""
        slots = self.readers[tensor]
        if slots[node] > 1:
            slots[node] -= 1
        else:
            del slots[node]

    def uses(self, tensor: Tensor) -> list[Use]:
        """Every slot that reads `tensor`, in any body."""
        return [
            Use(node, slot)
            for node in self.readers.get(tensor, ())
            for slot, t in enumerate(node.inputs)
            if t is tensor
        ]

    def is_read(self, tensor: Tensor) -> bool:
        """Whether a node reads `tensor` or a body returns it."""
        return bool(self.readers.get(tensor)) or tensor in self.output_slots

    def holders(self, body: Body) -> Iterator[Node]:
        """The nodes around `body`, innermost first."""
        while (node := self.holder.get(body)) is not None:
            yield node
            body = self.home[node]

    def encloses(self, outer: Body, inner: Body) -> bool:
        """Whether `inner` is `outer` or stands inside it."""
        return outer is inner or any(self.home[n] is outer for n in self.holders(inner))

    def captured(self, node: Node) -> Iterator[Tensor]:
        """Tensors read inside the bodies of `node`, at any depth, that are defined outside of them.

        Constants owned by an outer body are included.
        """
        inside: set[Body] = set()
        stack = list(node.bodies())
        read: list[Tensor] = []
        while stack:
            body = stack.pop()
            inside.add(body)
            for inner in self.nodes[body]:
                read.extend(t for t in inner.inputs if t.name)
                stack.extend(inner.bodies())
            read.extend(body.outputs)
        inputs = {t for body in inside for t in body.inputs}
        for t in read:
            producer = self.producer.get(t)
            if producer is not None:
                if self.home[producer] not in inside:
                    yield t
            elif t not in inputs and (not isinstance(t, Constant) or self.constant_home.get(t) not in inside):
                yield t

    def relink(self) -> None:
        """Write the links back into onnx-graphsurgeon's own lists, and the node lists of the bodies."""
        touched: set[Tensor] = set()
        for body, nodes in self.nodes.items():
            body.nodes = sorted(nodes, key=self.rank.__getitem__)
            touched.update(body.inputs, body.outputs, body.initializers)
            for node in body.nodes:
                touched.update(node.inputs, node.outputs)
        for t in touched:
            list.clear(t.inputs)
            list.clear(t.outputs)
        for body in self.nodes:
            for node in body.nodes:
                for t in node.inputs:
                    if t.name:
                        list.append(t.outputs, node)
                for t in node.outputs:
                    if t.name:
                        list.append(t.inputs, node)


def is_function_call(index: Index, node: Node) -> bool:
    """Whether `node` calls a model-local function rather than an operator of that name."""
    return (node.domain or "", node.op) in index.function_ops


def body_label(index: Index, body: Body) -> str:
    """A name for `body` that a person can find in the model, such as ``main/If_3:then_branch``."""
    if isinstance(body, Function):
        return f"function {body.domain}.{body.name}"
    holder = index.holder.get(body)
    if holder is None:
        return "main"
    slot = next((name for name, value in holder.attrs.items() if value is body), "body")
    outer = body_label(index, index.home[holder])
    return f"{outer}/{holder.name or holder.op}:{slot}"
