"""Models as drawings: nodes with a place, what became of each of them, and who made it.

Plain data under the rules of `document`: made by `graphopt.viewing`, shown by the HTML pages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

#: What became of a node from one model to the other.
State = Literal["same", "removed", "added", "changed"]
TensorKind = Literal["value", "input", "output", "initializer", "outer"]


@dataclass(frozen=True)
class DrawnTensor:
    """A tensor of one body.

    Attributes:
        name: its name.
        type: element type and dims, "" where nothing is known.
        kind: "outer" is a tensor of an enclosing body.
        stats: of an initializer: its size and what its values are like, in words.
    """

    name: str
    type: str = ""
    kind: TensorKind = "value"
    stats: str = ""


@dataclass(frozen=True)
class DrawnNode:
    """A node, or an input or output of the body.

    Attributes:
        name, op: the node; `op` has its domain unless that is the standard one.
        kind: "node"; or "input" and "output", which have one tensor each and no operator.
        state: what became of it.
        pair: its index in the same body of the other model, -1 for none.
        made_by: the pass that made it, "" for nodes of the input model; of a removed node, the pass that
            removed it.
        inputs, outputs: indices into the body's tensors; -1 for one that is left out.
        captures: tensors of this body that bodies within the node read.
        attributes: `key=value`, one each.
        changes: of a changed node: what differs, one phrase each.
        bodies: indices of the bodies that it holds, or of the function that it calls.
        x, y: its upper left corner.
        routes: lines to it that bend: (number among `inputs` and then `captures`, x1, y1, x2, y2, ...).
        cut: numbers of the inputs whose producer is so far away that no line is drawn.
    """

    name: str
    op: str
    kind: Literal["node", "input", "output"] = "node"
    state: State = "same"
    pair: int = -1
    made_by: str = ""
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    captures: tuple[int, ...] = ()
    attributes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    bodies: tuple[int, ...] = ()
    x: int = 0
    y: int = 0
    routes: tuple[tuple[int, ...], ...] = ()
    cut: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawnBody:
    """A graph, a nested body, or a local function.

    Attributes:
        label: its place, as `graphopt diff` names it: "main", "function domain::name", "node/attribute".
        parent: index of the body that holds it; -1 for the main graph and functions.
        holder: index of the node in `parent` that holds it; -1 for none.
        pair: index of the same body of the other model, -1 for none.
        nodes, tensors: what is in it.
        width, height: of the drawing.
    """

    label: str
    parent: int = -1
    holder: int = -1
    pair: int = -1
    nodes: tuple[DrawnNode, ...] = ()
    tensors: tuple[DrawnTensor, ...] = ()
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class DrawnModel:
    """One model; the main graph is the first body."""

    title: str
    bodies: tuple[DrawnBody, ...]

    @property
    def node_count(self) -> int:
        """Nodes of all bodies."""
        return sum(n.kind == "node" for body in self.bodies for n in body.nodes)

    def states(self) -> Counter[str]:
        """How many nodes are in which state."""
        return Counter(n.state for body in self.bodies for n in body.nodes if n.kind == "node")


@dataclass(frozen=True)
class GraphView:
    """One model, or two of which the second came from the first.

    Attributes:
        after: the model; of two, the second.
        before: the first of two.
        node_width, node_height: size of every node.
        notes: what is not shown.
    """

    after: DrawnModel
    before: DrawnModel | None = None
    node_width: int = 0
    node_height: int = 0
    notes: tuple[str, ...] = field(default=())
