"""Channels that can only be scaled together, and the constants that set and absorb their scales.

If `y = f(x)` and `f` is positively homogeneous, then `f(x / s) = y / s` for every positive `s`: a scale
passes through. So a scale per channel can be divided out of the weights that compute a tensor (its
*writers*) and multiplied into the weights that read it (its *readers*), wherever only such operators lie in
between.

What belongs together is found by walking the graph from one tensor. Each tensor gets a *layout*: an integer
array of the tensor's rank, of the tensor's size on axes along which the scale varies and of size 1
elsewhere, that holds a label per channel. Equal scales are joined labels (a union-find): the two operands
of an Add, the elements of a channel's plane that a pool averages, the heads that a Reshape takes apart.
Whatever the operators do to a tensor's axes they do to its layout, so Reshape, Transpose, Split and Concat
need no special care.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.passkit import Array, Dim, Node, RefusedRewrite, Rewriter, Tensor

# A layout with more labels than this is not worth the time: some hundred times the widest layers in use.
_MAX_LABELS = 1 << 20


@dataclass(frozen=True)
class Operand:
    """A constant input of a port, which becomes `constant * scale[channels] ** power`.

    Attributes:
        slot: which input of the node.
        power: 1 or -1.
        channels: int64, broadcastable to the constant (or the constant to it): the channel of each element.
        is_weight: it multiplies the data, and is not just added to it.
    """

    slot: int
    power: int
    channels: Array
    is_weight: bool = True


@dataclass(frozen=True)
class Port:
    """Where the scale of a region is set or absorbed.

    Attributes:
        node: the operator.
        data: the tensor of the region that it computes or reads.
        operands: the constants to scale.
        writes: it computes `data`, or adds to it; else it reads it.
        axis: for a Conv, ConvTranspose, Gemm or MatMul the axis of `data` along which its channels lie;
            None for elementwise and normalizing operators.
        channels: int64 `(C,)`: the channel of each position on that axis.
    """

    node: Node
    data: Tensor
    operands: tuple[Operand, ...]
    writes: bool
    axis: int | None = None
    channels: Array | None = None

    @property
    def is_linear(self) -> bool:
        """It multiplies by a weight and sums: what quantization turns into an integer kernel."""
        return self.axis is not None


@dataclass(frozen=True)
class Region:
    """Tensors that share one scale per channel, and everything that sets or absorbs it.

    Attributes:
        root: the linear operator from which it was found.
        count: number of channels that can be scaled independently.
        layouts: tensors -> the channel of each element, int64, 1 on axes along which it does not vary.
        ports: writers and readers, and the operators that add a constant on the way.
        fixed: bool `(count,)`: channels whose scale is 1, and stays so: they only lie beside the others.
    """

    root: Node
    count: int
    layouts: Mapping[Tensor, Array]
    ports: tuple[Port, ...]
    fixed: Array

    @property
    def writers(self) -> list[Port]:
        """The ports whose weights are divided by the scale."""
        return [p for p in self.ports if p.writes]

    @property
    def readers(self) -> list[Port]:
        """The ports whose weights are multiplied by the scale."""
        return [p for p in self.ports if not p.writes]


class Explorer:
    """Walks from one tensor over everything that must be scaled with it.

    Args:
        graph: the body.
        rules: operator type -> what it does; called as `rule(explorer, node, tensor)` for every tensor of the
            region that the node computes or reads. It places the node's other tensors and adds ports, and
            raises RefusedRewrite where the scale cannot go on.
        choices: which operand carries the scale of a product of two tensors, for the first, second, ...
            product that is reached from its output; the first candidate where there are no more.
    """

    def __init__(
        self, graph: Rewriter, rules: Mapping[str, Callable[..., None]], choices: Sequence[int] = ()
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.layouts: dict[Tensor, Array] = {}
        self.ports: list[Port] = []
        self.outsiders: list[tuple[Node, Tensor]] = []  # must stay out of the region
        self.n_choices = 0
        self._choices = choices
        self._parent: Array = np.zeros(1, np.int64)  # label 0 is that of channels whose scale is 1
        self._visited: set[tuple[Node, str]] = set()
        self._queue: deque[Tensor] = deque()
        self._beside: list[tuple[Tensor, Array]] = []

    # -- labels ----------------------------------------------------------------------------------

    def fresh(self, shape: Sequence[int]) -> Array:
        """A layout of labels that nothing else has."""
        count = int(np.prod(shape, dtype=np.int64))
        start = len(self._parent)
        if start + count > _MAX_LABELS:
            raise RefusedRewrite("it has more channels than are looked at")
        labels = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, labels])
        return labels.reshape(shape)

    def beside(self, piece: Tensor, shape: Sequence[int]) -> Array:
        """A layout for `piece`, which lies beside channels of the region.

        It is scaled with them only if it turns out to belong to the region itself.
        """
        layout = self.fresh(shape)
        self._beside.append((piece, layout))
        return layout

    def is_fixed(self, layout: Array) -> bool:
        """Whether some channel of `layout` is not scaled."""
        return bool((self.find(layout) == 0).any())

    def find(self, labels: Array) -> Array:
        """The representative of each label."""
        while True:
            above = self._parent[labels]
            if (above == labels).all():
                return above
            labels = above

    def join(self, a: Array, b: Array) -> None:
        """From now on `a` and `b`, which broadcast against each other, are the same channels."""
        left, right = np.broadcast_arrays(self.find(a), self.find(b))
        differ = left != right
        if not differ.any():
            return
        parent = self._parent
        for x, y in np.unique(np.stack([left[differ], right[differ]], axis=1), axis=0).tolist():
            while parent[x] != x:
                x = int(parent[x])
            while parent[y] != y:
                y = int(parent[y])
            parent[max(x, y)] = min(x, y)

    def level(self, layout: Array, axes: Sequence[int]) -> Array:
        """`layout` made constant along `axes`, which then have size 1."""
        for axis in axes:
            if layout.shape[axis] > 1:
                first = layout.take([0], axis)
                self.join(layout, first)
                layout = first
        return layout

    def along(self, layout: Array, axis: int) -> Array:
        """The labels along one axis, `(C,)`, with the layout made constant along all others."""
        axis %= layout.ndim
        return self.level(layout, [a for a in range(layout.ndim) if a != axis]).reshape(-1)

    # -- tensors ---------------------------------------------------------------------------------

    def shape(self, tensor: Tensor) -> tuple[Dim, ...]:
        """The shape of a tensor whose rank must be known."""
        shape = self.graph.shape(tensor)
        if shape is None:
            raise RefusedRewrite(f"the rank of {tensor.name} is not known")
        return shape

    def put(self, tensor: Tensor, layout: Array) -> None:
        """`tensor` belongs to the region with this layout; joined with the one that it has."""
        known = self.layouts.get(tensor)
        if known is not None:
            self.join(known, layout)
            if layout.size > known.size:  # the finer one, so that `known` is never a mere axis of size 1
                self.layouts[tensor] = layout
            return
        self._check(tensor)
        self.layouts[tensor] = layout
        self._queue.append(tensor)

    def restrict(self, layout: Array, tensor: Tensor) -> Array:
        """A layout of a tensor that `tensor` broadcasts to, as one of `tensor` itself."""
        shape = self.shape(tensor)
        lead = layout.ndim - len(shape)
        if lead < 0:
            raise RefusedRewrite(f"{tensor.name} has a higher rank than what is computed from it")
        layout = self.level(layout, range(lead)).reshape(layout.shape[lead:])
        narrow = []
        for axis, dim in enumerate(shape):
            if layout.shape[axis] > 1 and dim != layout.shape[axis]:
                if dim != 1:
                    raise RefusedRewrite(f"it is not known how {tensor.name} broadcasts")
                narrow.append(axis)
        return self.level(layout, narrow)

    def _check(self, tensor: Tensor) -> None:
        graph = self.graph
        if graph.is_output(tensor):
            raise RefusedRewrite(f"{tensor.name} is a graph output")
        if graph.producer(tensor) is None:
            raise RefusedRewrite(f"{tensor.name} is an input, which nothing here can scale")
        if not graph.is_local(tensor):
            raise RefusedRewrite(f"{tensor.name} is computed outside this body")
        if graph.keeps(tensor):
            raise RefusedRewrite(f"{tensor.name} is kept")

    # -- nodes -----------------------------------------------------------------------------------

    def is_first(self, node: Node, role: str = "") -> bool:
        """Whether `node` is looked at for the first time in this role."""
        key = (node, role)
        if key in self._visited:
            return False
        self._visited.add(key)
        return True

    def choose(self, count: int) -> int:
        """Which of `count` operands to take this time."""
        at = self.n_choices
        self.n_choices += 1
        return self._choices[at] % count if at < len(self._choices) else 0

    def explore(self) -> None:
        """Walk until nothing new is found.

        Raises:
            RefusedRewrite: something cannot be scaled.
        """
        graph = self.graph
        while self._queue:
            tensor = self._queue.popleft()
            producer = graph.producer(tensor)
            assert producer is not None
            for node in (producer, *graph.consumers(tensor)):
                self._visit(node, tensor)
        for piece, layout in self._beside:
            self.join(layout, self.layouts.get(piece, np.zeros(1, np.int64)))
        for node, tensor in self.outsiders:
            if tensor in self.layouts:
                raise RefusedRewrite(f"{node.op} multiplies channels by each other")

    def _visit(self, node: Node, tensor: Tensor) -> None:
        graph = self.graph
        if not graph.is_live(node):
            raise RefusedRewrite(f"{tensor.name} is read in the body of a control-flow operator")
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name or node.op} is kept")
        rule = self.rules.get(node.op) if graph.is_op(node, node.op) else None
        if rule is None:
            role = "computed" if graph.producer(tensor) is node else "read"
            raise RefusedRewrite(f"{tensor.name} is {role} by {node.op}, which does not pass scales on")
        rule(self, node, tensor)

    def region(self, root: Node) -> Region:
        """What was found, with channels numbered from 0."""
        used = [self.find(layout) for layout in self.layouts.values()]
        used += [self.find(o.channels) for p in self.ports for o in p.operands]
        roots = np.unique(np.concatenate([u.reshape(-1) for u in used]))

        def number(labels: Array) -> Array:
            numbers: Array = np.searchsorted(roots, self.find(labels))
            return numbers

        ports = [
            replace(
                p,
                operands=tuple(replace(o, channels=number(o.channels)) for o in p.operands),
                channels=None if p.channels is None else number(p.channels),
            )
            for p in self.ports
        ]
        layouts = {t: number(layout) for t, layout in self.layouts.items()}
        return Region(root, len(roots), layouts, tuple(ports), roots == 0)
