"""Take labels out of a body: cut the constants, fix what states sizes, and have every new size confirmed."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passkit import Array, Constant, Dim, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.labels import Ints, Mask

Shape = tuple[Dim, ...]


class Surgery:
    """One removal, to be done within one site.

    Args:
        graph: the body.
        axes: what is known of it, as it was before anything was removed.
        before: by label, whether it is gone already.
        after: by label, whether it is gone then.
    """

    def __init__(self, graph: Rewriter, axes: Axes, before: Mask, after: Mask) -> None:
        self.graph, self.axes = graph, axes
        self._gone = before, after
        self._made: dict[tuple[Any, ...], Constant] = {}
        self.shapes: dict[Tensor, Shape] = {}
        self.kept: dict[Tensor, tuple[int, Ints]] = {}
        self._extents: dict[Tensor, int] = {}
        for tensor, layout in [*axes.layouts.items(), *axes.quantized]:
            place = self._place(layout)
            if place is not None:
                axis, left = place
                now = list(self.after(tensor))
                self._extents[tensor] = left.size
                now[axis] = int(left.sum())
                self.shapes[tensor] = tuple(now)
                self.kept[tensor] = axis, np.flatnonzero(left)

    def _place(self, layout: Ints) -> tuple[int, Mask] | None:
        """The axis along which something of `layout` goes, and what of it stays; None when nothing goes."""
        labels = self.axes.labels.find(layout)
        gone = self._gone[1][labels]
        if not (gone & ~self._gone[0][labels]).any():
            return None
        axes = self.axes.labels.varying(layout)
        if len(axes) != 1:
            raise RefusedRewrite("not all of a tensor can be removed")
        left = self.left(layout, axes[0])
        if not left.any():
            raise RefusedRewrite("nothing would be left of a tensor")
        return axes[0], left

    def left(self, layout: Ints, axis: int) -> Mask:
        """What stays of that which is there along `axis`, bool; all where nothing goes."""
        labels = self.axes.labels.find(np.moveaxis(layout, axis, 0).reshape(layout.shape[axis], -1)[:, 0])
        there = ~self._gone[0][labels]
        left: Mask = ~self._gone[1][labels[there]]
        return left

    def stays(self, layout: Ints, axis: int) -> Mask:
        """By the positions along `axis` before anything was removed, whether they stay."""
        labels = self.axes.labels.find(np.moveaxis(layout, axis, 0).reshape(layout.shape[axis], -1)[:, 0])
        stays: Mask = ~self._gone[1][labels]
        return stays

    def count(self, labels: Ints) -> int:
        """How many of the labels (n,) are left then."""
        return int((~self._gone[1][self.axes.labels.find(labels)]).sum())

    def before(self, tensor: Tensor) -> Shape:
        """The shape that `tensor` has now."""
        return self.axes.shape(tensor)

    def after(self, tensor: Tensor) -> Shape:
        """The shape that it will have."""
        return self.shapes.get(tensor) or self.before(tensor)

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Set an attribute."""
        if self.graph.attr(node, name) != value:
            self.graph.set_attr(node, name, value)

    def set_constant(self, node: Node, slot: int, values: Array) -> None:
        """Have `node` read a new constant."""
        old = self.graph.input(node, slot)
        hint = (
            old.name if old is not None and self.graph.is_constant(old) else f"{node.name or node.op}_sizes"
        )
        self.graph.set_input(node, slot, self.graph.new_constant(hint, values))

    def perform(self) -> None:
        """Make all changes.

        Raises:
            RefusedRewrite: a size is not confirmed, a node is kept.
        """
        for fix in self.axes.fixes:
            if self._place_any(fix.layout):
                fix.apply(self)
        for cut in self.axes.cuts:
            place = self._place(cut.layout)
            if place is not None:
                self._cut(cut.node, cut.slot, *place)
        self.graph.resize(self.shapes)

    def _place_any(self, layout: Ints) -> bool:
        labels = self.axes.labels.find(layout)
        return bool((self._gone[1][labels] & ~self._gone[0][labels]).any())

    def _cut(self, node: Node, slot: int, axis: int, left: Mask) -> None:
        old = self.graph.constant(node.inputs[slot])
        if old is None or old.shape[axis] != left.size:
            raise RefusedRewrite(f"{node.inputs[slot].name} is not what it was")
        key = (old, axis, left.tobytes())
        made = self._made.get(key)
        if made is None:
            values = self.graph.array(old)
            assert values is not None
            cut = np.ascontiguousarray(np.compress(left, values, axis))
            made = self._made[key] = self.graph.new_constant(old.name, cut)
        self.graph.set_input(node, slot, made)

    def lasts(self) -> bool:
        """Whether the site is still there: it may have been withheld, for a bisection."""
        return all(self.graph.shape(t) == shape for t, shape in self.shapes.items())

    def note(self, ctx: PassContext) -> None:
        """Tell later passes which of the teacher's elements are left."""
        for tensor, (axis, indices) in self.kept.items():
            key = ("kept", tensor)
            earlier = ctx.notes.get(key)
            ctx.notes.setdefault(("extent", tensor), self._extents[tensor])
            if earlier is not None and earlier[0] == axis:
                indices = earlier[1][indices]
            ctx.notes[key] = axis, indices


def remove(graph: Rewriter, axes: Axes, before: Mask, after: Mask, root: Node, why: str) -> bool:
    """Remove what is gone `after` and was not `before`, in one site; False when it was refused.

    Args:
        graph: the body.
        axes: what is known of it.
        before, after: by label, whether it is gone.
        root: where the site is.
        why: the change in words.
    """
    done: list[Surgery] = []
    with graph.site(root, why):
        surgery = Surgery(graph, axes, before, after)
        surgery.perform()
        done.append(surgery)
    return bool(done) and done[0].lasts()
