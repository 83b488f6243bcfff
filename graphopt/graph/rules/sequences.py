"""Sequences of known length, and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graphopt.graph.dims import Dim, fresh_dim
from graphopt.graph.rules.call import INT64, MAX_ELEMENTS, Call, Rule, Shape, Unknown, axis_of


def split_to_sequence(call: Call) -> None:
    """Split into chunks of a size, of given sizes, or (by default) of length 1 whose axis is dropped."""
    shape = call.need_shape(0)
    axis = axis_of(call.attr("axis", 0), len(shape))
    dim = shape[axis]
    if not isinstance(dim, int):
        raise Unknown
    keep = True
    if call.tensor(1) is None:
        sizes = [1] * dim
        keep = bool(call.attr("keepdims", 1))
    else:
        given = call.ints(1)
        if given is None:
            raise Unknown
        if call.shape(1) == ():
            chunk = given[0]
            sizes = [min(chunk, dim - at) for at in range(0, dim, chunk)]
        else:
            sizes = given
    if len(sizes) > MAX_ELEMENTS:
        raise Unknown
    items = tuple(shape[:axis] + ((size,) if keep else ()) + shape[axis + 1 :] for size in sizes)
    call.facts.state_sequence(call.node.outputs[0], call.dtype(0), items)


def sequence_construct(call: Call) -> None:
    """A sequence of the inputs."""
    items = tuple(call.shape(i) for i in range(len(call.node.inputs)))
    call.facts.state_sequence(call.node.outputs[0], call.dtype(0), items)


def _items(call: Call) -> tuple[int | None, tuple[Shape | None, ...]]:
    known = call.facts.sequence(call.node.inputs[0])
    if known is None:
        raise Unknown
    return known


def sequence_at(call: Call) -> None:
    """One item; what all items have in common where the position is not known."""
    dtype, items = _items(call)
    position = call.ints(1)
    if position is not None:
        call.out(0, dtype, items[position[0]])
        return
    shapes = [s for s in items if s is not None]
    if not shapes or len(shapes) < len(items) or len({len(s) for s in shapes}) > 1:
        call.out(0, dtype, None)
        return
    call.out(0, dtype, tuple(d[0] if len(set(d)) == 1 else fresh_dim() for d in zip(*shapes, strict=True)))


def sequence_length(call: Call) -> None:
    """The number of items."""
    known = call.facts.sequence(call.node.inputs[0])
    call.out(0, INT64, (), None if known is None else (len(known[1]),))


def concat_from_sequence(call: Call) -> None:
    """The items joined along an axis, or stacked along a new one."""
    dtype, items = _items(call)
    shapes = [s for s in items if s is not None]
    if not shapes or len(shapes) < len(items):
        raise Unknown
    first = shapes[0]
    if call.attr("new_axis", 0):
        at = axis_of(call.attr("axis"), len(first) + 1)
        call.out(0, dtype, first[:at] + (len(shapes),) + first[at:])
        return
    at = axis_of(call.attr("axis"), len(first))
    total: Dim = 0
    for shape in shapes:
        total = total + shape[at]
    call.out(0, dtype, first[:at] + (total,) + first[at + 1 :])


def loss(call: Call) -> None:
    """NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss (which may give log probabilities too)."""
    shape = call.need_shape(0)
    unreduced = call.attr("reduction", "mean") == "none"
    call.out(0, call.dtype(0), shape[:1] + shape[2:] if unreduced else ())
    call.out(1, call.dtype(0), shape)


RULES: Final[Mapping[str, Rule]] = {
    "ConcatFromSequence": concat_from_sequence,
    "NegativeLogLikelihoodLoss": loss,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceLength": sequence_length,
    "SoftmaxCrossEntropyLoss": loss,
    "SplitToSequence": split_to_sequence,
}
