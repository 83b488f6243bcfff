"""How elements of channel axes depend on each other: layouts of all tensors, and what removal has to cut.

One pass over the nodes in topological order. Operators with a constant weight make new channels, with labels
that nothing else has; all others say how the layouts of what they compute follow from those of what they
read (`rules`), which constants have to be cut with them, and which labels must therefore be the same. Where
an operator says nothing, or mixes channels so that removing one changes the others, its inputs stay whole.

This is the dependency graph of Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023
(arXiv:2301.12900), element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passkit import Constant, Dim, GraphView, Node, RefusedRewrite, Tensor
from graphopt_passes.pruning._channels.labels import Ints, Labels, along, fixed

if TYPE_CHECKING:
    from graphopt_passes.pruning._channels.surgery import Surgery


@dataclass(frozen=True, eq=False)
class Cut:
    """A constant that `node` reads at `slot`, and the label of each of its elements."""

    node: Node
    slot: int
    layout: Ints


@dataclass(frozen=True, eq=False)
class Fix:
    """Something else that changes with the size of a tensor: an attribute, the target of a Reshape.

    Attributes:
        node: whose.
        layout: labels on which it depends.
        apply: makes the change.
    """

    node: Node
    layout: Ints
    apply: Callable[[Surgery], None]


@dataclass(frozen=True, eq=False)
class Producer:
    """An operator that makes channels.

    Attributes:
        node: the operator.
        labels: (n,), of its output's channels.
        kind: what they are: "channels" or, of recurrent layers, "hidden units".
    """

    node: Node
    labels: Ints
    kind: str = "channels"


@dataclass(frozen=True, eq=False)
class Consumer:
    """An operator that multiplies channels with a constant weight and sums over them.

    Attributes:
        node: the operator.
        slot: where it reads the weight.
        data: the tensor whose channels it sums over.
        labels: (n,), of the columns of one group; those of depthwise convolutions are no sums.
        axis: the weight's axis that they lie on.
    """

    node: Node
    slot: int
    data: Tensor
    labels: Ints
    axis: int


Rule = Callable[["Axes", Node], None]


@dataclass
class Axes:
    """What is known about the channels of one body.

    Attributes:
        graph: the body.
        rules: by operator type; a rule puts the layouts of the node's outputs.
        makers: operator types that can make channels of their own.
        labels: which elements belong together.
        layouts: by tensor, of all that are computed here.
    """

    graph: GraphView
    rules: Mapping[str, Rule]
    makers: frozenset[str]
    labels: Labels = field(default_factory=Labels)
    layouts: dict[Tensor, Ints] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    #: Operators that could have made channels, and why they do not.
    failed: list[tuple[Node, str]] = field(default_factory=list)
    #: Labels of what are heads of an attention.
    heads: list[Ints] = field(default_factory=list)
    #: What Q/DQ make of constants that are cut; one entry for each axis.
    quantized: list[tuple[Tensor, Ints]] = field(default_factory=list)
    #: Constants that are broadcast to a layout.
    beside: list[tuple[Node, int, Ints]] = field(default_factory=list)
    #: Labels along an axis of which every single position must stay, however the rest is cut.
    rigid: list[tuple[Ints, int, str]] = field(default_factory=list)

    # -- the walk ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Look at all nodes."""
        for node in self.graph.nodes():
            self._visit(node)
        self._settle_axes()
        self._cut_beside()
        self._settle_weights()
        self._settle_axes()

    def _visit(self, node: Node) -> None:
        graph = self.graph
        if node.op not in self.makers and not any(t in self.layouts for t in node.inputs):
            return
        rule = self.rules.get(node.op) if graph.is_op(node, node.op) else None
        try:
            if graph.keeps(node):
                raise RefusedRewrite(f"{node.name or node.op} is kept")
            if rule is None:
                raise RefusedRewrite(f"it is read by {node.op} {node.name}, for which there is no rule")
            rule(self, node)
        except RefusedRewrite as refused:
            if node.op in self.makers:
                self.failed.append((node, refused.reason))
            for t in node.inputs:
                self._pin_tensor(t, refused.reason)
            for t in node.outputs:
                self._pin_tensor(t, refused.reason)
                self.layouts.pop(t, None)
        for t in node.outputs:
            if t not in self.layouts:
                continue
            if graph.is_output(t):
                self._pin_tensor(t, f"{t.name} is a graph output")
            elif graph.keeps(t):
                self._pin_tensor(t, f"{t.name} is kept")
            elif any(not graph.is_live(reader) for reader in graph.consumers(t)):
                self._pin_tensor(t, f"{t.name} is read in the body of a control-flow operator")

    def _pin_tensor(self, tensor: Tensor, reason: str) -> None:
        layout = self.layouts.get(tensor)
        if layout is not None:
            self.labels.pin(layout, reason)

    def _cut_beside(self) -> None:
        """Cut constant operands, now that it is known along which axis."""
        for node, slot, layout in self.beside:
            shape = self.weight_shape(node.inputs[slot]) or ()
            layout = self.labels.compress(layout)
            axis = next((a for a, d in enumerate(layout.shape) if d > 1), -1)
            own = axis - (layout.ndim - len(shape))
            if axis >= 0 and own >= 0 and shape[own] != 1:
                try:
                    self.cut(node, slot, along(layout.reshape(-1), own, len(shape)))
                except RefusedRewrite as refused:
                    self.labels.pin(layout, refused.reason)

    def _settle_weights(self) -> None:
        """A matrix with several readers is cut alike for all of them, or not at all."""
        by_constant: dict[Constant, list[Cut]] = {}
        for cut in self.cuts:
            constant = self.graph.constant(cut.node.inputs[cut.slot])
            if constant is not None and sum(int(d) > 1 for d in constant.shape) > 1:
                by_constant.setdefault(constant, []).append(cut)
        for constant, cuts in by_constant.items():
            readers = {(use.node, use.slot) for use in self.graph.uses(constant)}
            if len(readers) < 2:
                continue
            reason = f"{constant.name} is also read where it cannot be cut alike"
            for axis in range(len(constant.shape)):
                here = [c for c in cuts if c.layout.shape[axis] > 1]
                if {(c.node, c.slot) for c in here} != readers:
                    for c in here:
                        self.labels.pin(c.layout, reason)
                for c in here[1:]:
                    self.labels.join(c.layout, here[0].layout, reason)

    def _settle_axes(self) -> None:
        """Of every tensor and constant, elements can be removed along one axis only: whole slices of it."""
        labels = self.labels
        layouts = [*self.layouts.values(), *(c.layout for c in self.cuts), *(x for _, x in self.quantized)]
        layouts = [layout for layout in layouts if layout.size > 1]
        while True:
            stable = True
            for layout, axis, reason in self.rigid:
                if axis in labels.varying(layout) and not labels.is_pinned(layout):
                    labels.pin(layout, reason)
                    stable = False
            for layout in layouts:
                compressed = labels.compress(layout)
                axes = [a for a, size in enumerate(compressed.shape) if size > 1]
                if len(axes) < 2:
                    continue
                # The axis with the most to choose from, as if the others were of size 1.
                keep = max(axes, key=lambda a: (compressed.shape[a], -a))
                labels.level(layout, [a for a in range(layout.ndim) if a != keep])
                stable = False
            if stable:
                return

    # -- for rules -----------------------------------------------------------------------------------

    def shape(self, tensor: Tensor) -> tuple[Dim, ...]:
        """The shape of a tensor whose rank must be known."""
        shape = self.graph.shape(tensor)
        if shape is None:
            raise RefusedRewrite(f"the rank of {tensor.name} is not known")
        return shape

    def layout(self, tensor: Tensor) -> Ints:
        """The layout of a tensor, constants and inputs included."""
        known = self.layouts.get(tensor)
        return fixed(len(self.shape(tensor))) if known is None else known

    def varies(self, tensor: Tensor | None) -> bool:
        """Whether elements of `tensor` might be removed."""
        return tensor is not None and tensor in self.layouts

    def put(self, tensor: Tensor, layout: Ints) -> None:
        """`tensor` has this layout."""
        if tensor.name and layout.any():
            self.layouts[tensor] = layout

    def channels(self, tensor: Tensor, axis: int, size: int) -> Ints:
        """Labels (size,) along one axis of `tensor`, constant along the others.

        Raises:
            RefusedRewrite: elements can be removed along another axis.
        """
        layout = self.layout(tensor)
        axis %= layout.ndim
        if any(a != axis for a, d in enumerate(layout.shape) if d > 1):
            layout = self.labels.level(layout, [a for a in range(layout.ndim) if a != axis])
        flat = layout.reshape(-1)
        if flat.size not in (1, size):
            raise RefusedRewrite(f"{tensor.name} has {flat.size} channels where {size} are read")
        return np.broadcast_to(flat, (size,))

    def weight_shape(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """The shape of a constant, or of what Q/DQ make of one; None when it is none."""
        if tensor is None:
            return None
        found = self.graph.constant(tensor)
        if found is not None:
            return tuple(int(d) for d in found.shape)
        node = self.graph.producer_op(tensor, "QuantizeLinear", "DequantizeLinear")
        if node is None or self.graph.sole_consumer(tensor) is None:
            return None
        if any(t.name and not self.graph.is_constant(t) for t in node.inputs[1:]):
            return None
        return self.weight_shape(node.inputs[0])

    def cut(self, node: Node, slot: int, layout: Ints) -> None:
        """The constant at `slot` has this layout.

        Raises:
            RefusedRewrite: it is no constant.
        """
        tensor = node.inputs[slot]
        constant = self.graph.constant(tensor)
        if constant is not None:
            if layout.ndim != len(constant.shape):
                raise RefusedRewrite(f"{tensor.name} has an unexpected rank")
            if layout.any():
                self.cuts.append(Cut(node, slot, layout))
            return
        maker = self.graph.producer_op(tensor, "QuantizeLinear", "DequantizeLinear")
        if maker is None or self.weight_shape(tensor) is None:
            raise RefusedRewrite(f"{tensor.name}, which {node.op} {node.name} reads, is not constant")
        if self.graph.attr(maker, "block_size"):
            raise RefusedRewrite(f"{tensor.name} is quantized in blocks")
        self.cut(maker, 0, layout)
        for extra in (1, 2):
            scale = self.weight_shape(self.graph.input(maker, extra))
            if scale is None or int(np.prod(scale)) == 1:
                continue
            axis = int(self.graph.attr(maker, "axis")) % layout.ndim
            if len(scale) != 1:
                raise RefusedRewrite(f"{tensor.name} is quantized in blocks")
            if layout.shape[axis] > 1:
                other = [a for a in range(layout.ndim) if a != axis]
                self.cut(maker, extra, self.labels.level(layout, other).reshape(-1))
        self.quantized.append((tensor, layout))

    def cut_beside(self, node: Node, slot: int, layout: Ints) -> None:
        """The constant at `slot` is broadcast to something that has this layout."""
        if layout.any():
            self.beside.append((node, slot, layout))

    def fix(self, node: Node, layout: Ints, apply: Callable[[Surgery], None]) -> None:
        """Do this when labels of `layout` are removed."""
        if layout.any():
            self.fixes.append(Fix(node, layout, apply))

    def same_along(self, layouts: Sequence[Ints], reason: str) -> Ints:
        """Join layouts of one rank that broadcast against each other."""
        shape = np.broadcast_shapes(*(x.shape for x in layouts))
        whole = max(layouts, key=lambda x: x.size)
        if whole.shape != shape:
            whole = np.ascontiguousarray(np.broadcast_to(whole, shape))
        for other in layouts:
            self.labels.join(whole, other, reason)
        return whole
